//! Measures what the binaries cost: `scripts/bench`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use bench::compare::Stored;
use bench::instructions::{self, Noted};
use bench::report::{Place, Section, rewrite, save, table};
use bench::{CASES, CLUSTER_CASES, Case, Plan};
use clap::Parser;
use harness::parts::Parts;
use harness::process::run as output_of;

/// Measure the binaries, and compare them with an alternative that a user could pick, and
/// with the minimum cost of the job
#[derive(Parser)]
struct Args {
    /// Cases: start, end, footprint, webhook, scale, writes, redirect, audit, parsers [default:
    /// all of these]; or pods, on the cluster of KUBECONFIG
    cases: Vec<String>,
    /// Number of runs of each command
    #[arg(long, default_value_t = 15)]
    runs: usize,
    /// Measure a million reviews, 500 pods and a quiet hour of the servers: takes two hours
    #[arg(long)]
    full: bool,
    /// Directory for results and plots
    #[arg(long)]
    out: PathBuf,
    /// Directory with the programs of the package `measure`
    #[arg(long)]
    measure: PathBuf,
    /// Target triple of the binaries
    #[arg(long, default_value = "unknown")]
    target: String,
    /// Consul 1.8, with whose command line the pod's start is compared, too
    #[arg(long = "consul-1.8", value_name = "PROGRAM")]
    consul_1_8: Option<PathBuf>,
    /// consul-k8s, with whose injector the webhook is compared
    #[arg(long, value_name = "PROGRAM")]
    consul_k8s: Option<PathBuf>,
    /// Directory with criterion's results
    #[arg(long)]
    criterion: Option<PathBuf>,
    /// Compare with the results.json of another run
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Markdown file in which to replace the figures, of all cases or of pods
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Only count instructions, and compare them with this file
    #[arg(long, value_name = "FILE")]
    check_instructions: Option<PathBuf>,
    /// Only count instructions, and write them to this file
    #[arg(long, value_name = "FILE")]
    note_instructions: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            say(&format!("bench: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> harness::Result<ExitCode> {
    let Args {
        cases,
        runs,
        full,
        out,
        measure,
        target,
        consul_1_8,
        consul_k8s,
        criterion,
        compare,
        write: document,
        check_instructions,
        note_instructions,
    } = args;
    let plan =
        Plan { parts: Parts::find()?, measure, consul_1_8, consul_k8s, criterion, runs, full };
    if let Some(file) = check_instructions.as_ref().or(note_instructions.as_ref()) {
        let rustc = output_of("rustc", &["--version"])?;
        let found = Noted {
            built_with: format!("{}, {target}", rustc.trim()),
            instructions: instructions::count(&plan)?,
        };
        if note_instructions.is_some() {
            return note(&found, file);
        }
        let noted = std::fs::read_to_string(file)
            .map_err(|error| format!("{}: {error}", file.display()))?;
        let (lines, good) = instructions::compare(&found, &serde_json::from_str(&noted)?);
        writeln!(std::io::stdout(), "{}", lines.join("\n"))?;
        return Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }

    let mut chosen: Vec<&Case> = Vec::new();
    for name in &cases {
        let all = || CASES.iter().chain(CLUSTER_CASES);
        let case = all().find(|case| case.name == name);
        let names: Vec<&str> = all().map(|case| case.name).collect();
        chosen
            .push(case.ok_or_else(|| format!("no case `{name}`: there are {}", names.join(", ")))?);
    }
    if chosen.is_empty() {
        chosen.extend(CASES);
    }
    let names: Vec<&str> = chosen.iter().map(|case| case.name).collect();
    let document = document.map(|file| Place::of(&names).map(|place| (file, place))).transpose()?;
    let stored = compare.as_deref().map(Stored::read).transpose()?;
    let machine = machine(&plan.parts);
    let mut sections = Vec::new();
    let mut good = true;
    for case in chosen {
        say(&format!("-- {}", case.title));
        let began = Instant::now();
        match case.measure(&plan) {
            Ok(found) => {
                say(&format!("   took {:.0} s", began.elapsed().as_secs_f64()));
                sections.push(Section::new(case.name, case.title, found));
            }
            Err(error) => {
                good = false;
                say(&format!("   {}: nothing is measured: {error}", case.name));
            }
        }
        // After each case, because all of them take hours, and a run can be cut off. After one
        // that failed, too: results of an earlier run must not pass for this one's.
        save(&out, &sections, &machine)?;
    }
    match document {
        Some((file, place)) if good => rewrite(&file, place, &sections, &machine)?,
        Some((file, _)) => {
            say(&format!("{} stays as it is: not everything was measured", file.display()));
        }
        None => {}
    }
    write!(std::io::stdout(), "{}", table(&sections))?;
    if let Some(stored) = stored {
        write!(std::io::stdout(), "\n{}\n", stored.against(&sections).join("\n"))?;
    }
    say(&format!("results and plots are in {}", out.display()));
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn note(found: &Noted, file: &Path) -> harness::Result<ExitCode> {
    let text = serde_json::to_string_pretty(found)? + "\n";
    std::fs::File::create(file)?.write_all(text.as_bytes())?;
    write!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

/// Describes the machine and the versions, which figures depend on.
fn machine(parts: &Parts) -> Vec<(String, String)> {
    let line = |program: &str, args: &[&str]| {
        let output = output_of(program, args).unwrap_or_default();
        output.lines().find(|line| !line.trim().is_empty()).unwrap_or("unknown").trim().to_owned()
    };
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("unknown", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    // The program's path comes before the version.
    let envoy = line(&parts.envoy.to_string_lossy(), &["--version"]);
    let envoy = envoy.rsplit("version: ").next().unwrap_or_default().to_owned();
    [
        ("processor", format!("{cores} cores, {model}")),
        ("load before", read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")),
        ("kernel", line("uname", &["-sr"])),
        ("rustc", line("rustc", &["--version"])),
        ("Consul", line(&parts.consul.to_string_lossy(), &["version"])),
        ("Envoy", envoy),
        ("curl", line("curl", &["--version"])),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

fn say(line: &str) {
    // Standard output may be closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}
