//! Runs Envoy, maintains the pod's registration while the pod lives, and deregisters it
//! when the pod ends.
//!
//! - [`args`]: the command line
//! - [`pod`]: the pod as described by connect-init's files
//! - [`run`]: the sidecar's main process, from Envoy's start to its exit
//! - [`child`]: starts and signals a child process, and reaps the container's orphans
//! - [`restart`]: restarts Envoy in place with a new ACL token
//! - [`keep`]: maintains the registration while the pod lives
//! - [`end`]: shuts the pod down within its termination grace period
//! - [`serve`]: merged metrics, probes and DNS
//! - [`probe`]: runs the application's probes over loopback
//! - [`deregister`]: the preStop hook
//! - [`ready`]: the readiness check, which also delays the application's start
//! - [`wait`]: runs a command while the proxy runs, for Jobs

mod args;
mod child;
mod deregister;
mod end;
mod keep;
mod pod;
mod probe;
mod ready;
mod restart;
mod run;
mod serve;
mod wait;

use std::process::ExitCode;

use args::{Args, Command};

#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let Args { log, command } = match runtime::parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    let log = match &command {
        Command::Run(_) | Command::Wait(_) => log,
        // Only the container's main process may write its termination message.
        Command::Ready(_) => log.of_a_probe(),
        Command::Deregister(_) => log.without_termination_message(),
    };
    runtime::start(&log, async |signals| match command {
        Command::Run(args) => run::run(*args, log.termination_message(), signals).await,
        Command::Deregister(args) => deregister::run(args, signals).await,
        Command::Ready(args) => ready::run(args, signals).await,
        Command::Wait(args) => wait::run(args, signals).await,
    })
}
