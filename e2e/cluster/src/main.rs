//! A real one-node Kubernetes with Consul and the injector: `scripts/cluster`.

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cluster::{client::Cluster, demo, keeper, network::Family};
use harness::Result;

/// Start and stop clusters
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Do,
}

#[derive(Subcommand)]
enum Do {
    /// Start a cluster that stays, and print shell assignments to reach it
    Up {
        #[arg(default_value = "default")]
        name: String,
    },
    /// Stop it
    Down {
        #[arg(default_value = "default")]
        name: String,
    },
    /// Start a cluster for a command, and stop it when the command exits
    Run {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Check whether the tests can run on the cluster of KUBECONFIG
    Check,
    /// Play the tutorial on the cluster of KUBECONFIG
    Demo,
    #[command(hide = true)]
    Keep { name: String },
    #[command(hide = true)]
    Sweep { name: String },
    #[command(hide = true)]
    Init { name: String },
    #[command(hide = true)]
    Node {
        name: String,
        /// From the environment, which all processes in between pass on
        #[arg(long, env = "CLUSTER_FAMILY", value_enum, default_value_t)]
        family: Family,
    },
}

fn main() -> ExitCode {
    let done = |result: Result<()>| result.map(|()| ExitCode::SUCCESS);
    let result = match Args::parse().command {
        Do::Up { name } => done(keeper::up(&name).and_then(|text| say(&text))),
        Do::Down { name } => done(keeper::down(&name)),
        Do::Run { command } => keeper::run(&command),
        Do::Check => done(Cluster::find().map(drop)),
        Do::Demo => done(Cluster::find().and_then(|cluster| demo::play(&cluster, &mut demo_line))),
        Do::Keep { name } => done(keeper::keep(&name)),
        Do::Sweep { name } => done(keeper::sweep(&name)),
        Do::Init { name } => keeper::init(&name),
        Do::Node { name, family } => done(keeper::node(&name, family)),
    };
    result.unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "cluster: {error}");
        ExitCode::FAILURE
    })
}

fn say(text: &str) -> Result<()> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

fn demo_line(line: &str) {
    let mark = if line.starts_with(' ') { "  " } else { "\n==" };
    // Standard output may be closed.
    let _ = say(&format!("{mark} {line}\n"));
}
