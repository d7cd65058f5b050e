//! Registration by hand, for services outside Kubernetes and for whoever
//! debugs a pod.
//!
//! - `args`: the command line
//! - `register`, `deregister`, `bootstrap`: one module a subcommand
//! - `flags`, `files`: services from flags and from definition files
//! - `agent`: asking the agent, with patience
//! - `output`: stdout

mod agent;
mod args;
mod bootstrap;
mod deregister;
mod files;
mod flags;
mod output;
mod register;

use std::process::ExitCode;

use runtime::{Exit, Failure, Signals};

use crate::args::{Args, Command};

fn main() -> ExitCode {
    match runtime::parse::<Args>() {
        Ok(Args { command, log }) => runtime::start(&log, |signals| run(command, signals)),
        Err(code) => code,
    }
}

async fn run(command: Command, signals: Signals) -> Result<ExitCode, Failure> {
    match command {
        Command::Register(args) => register::run(args, signals).await?,
        Command::Deregister(args) => deregister::run(args, signals).await?,
        Command::Bootstrap(args) => bootstrap::run(args, signals).await?,
    }
    Ok(Exit::Done.into())
}
