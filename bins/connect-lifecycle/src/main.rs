//! Keeps a pod's registration true while the pod lives, and takes it back when
//! it ends.
//!
//! - [`args`]: the command line
//! - [`pod`]: the pod as connect-init left it
//! - [`run`]: the sidecar's main process, from Envoy's start to its end
//! - [`keep`]: the registration, kept on the agent
//! - [`application`]: whether the application is ready
//! - [`probe`]: its readiness probe, run over loopback
//! - [`deregister`]: the registration, taken back; also the preStop hook
//! - [`end`]: how a pod ends, within one budget
//! - [`drain`]: Envoy, ended when nothing is in flight
//! - [`ready`]: whether Envoy is ready; the hold on the application's start
//! - [`restart`]: Envoy, restarted in place with another ACL token
//! - [`stream`]: whether Envoy has its configuration from the agent
//! - [`wait`]: a command that runs while the proxy does, for Jobs
//! - [`merge`]: Envoy's and the application's metrics on one page
//! - [`relay`]: probes of the kubelet that cannot go through Envoy
//! - [`page`]: pages that the sidecar serves itself
//! - [`places`]: how many questions at once
//! - [`dns`]: the pod's DNS, split between the agent and the pod's nameservers
//! - [`virtual_address`]: the address by which transparent clients know the service
//! - [`child`]: a child process, and the orphans of the container

mod application;
mod args;
mod child;
mod deregister;
mod dns;
mod drain;
mod end;
mod keep;
mod merge;
mod page;
mod places;
mod pod;
mod probe;
mod ready;
mod relay;
mod restart;
mod roots;
mod run;
mod stream;
mod virtual_address;
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
        // Probe and hook run beside the container's main process.
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
