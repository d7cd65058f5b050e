//! Registration by hand, for services outside Kubernetes and for debugging a pod.
//!
//! - `args`: the command line
//! - `register`, `sidecar`, `deregister`, `validate`, `status`, `bootstrap`,
//!   `generate`: the subcommands
//! - `flags`, `files`: services from flags and from definition files
//! - `agent`: requests to the agent, retried until the deadline
//! - `catalog`: the servers' catalog
//! - `output`: standard output

mod agent;
mod args;
mod bootstrap;
mod catalog;
mod deregister;
mod files;
mod flags;
mod generate;
mod output;
mod register;
mod sidecar;
mod status;
mod validate;

use std::process::ExitCode;

use runtime::{Exit, Failure, Signals};

use crate::args::{Args, Command};

fn main() -> ExitCode {
    match runtime::command::parse_beside::<Args>(args::ELSEWHERE) {
        Ok(Args { command, log }) => runtime::start(&log, |signals| run(command, signals)),
        Err(code) => code,
    }
}

async fn run(command: Command, signals: Signals) -> Result<ExitCode, Failure> {
    match command {
        Command::Register(args) => register::run(args, signals).await?,
        Command::Sidecar(args) => Box::pin(sidecar::run(args, signals)).await?,
        Command::Deregister(args) => deregister::run(args, signals).await?,
        Command::Validate(args) => validate::run(&args)?,
        Command::Status(args) => status::run(args, signals).await?,
        Command::Bootstrap(args) => bootstrap::run(args, signals).await?,
        Command::Completions(args) => generate::completions(&args)?,
        Command::Man(args) => generate::man(&args)?,
    }
    Ok(Exit::Done.into())
}
