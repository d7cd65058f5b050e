//! Registers a pod's service and sidecar proxy with the node's Consul agent, and writes
//! what the sidecar starts from.
//!
//! A registration walks through these rooms:
//!
//! - [`args`]: the command line
//! - [`declare`]: what the flags declare of the pod's services
//! - [`helper`]: the lifecycle helper, on its way into the directory meanwhile
//! - [`sidecar`]: one service of the pod with its sidecar, for which
//!   - [`taken`]: whether its id is another pod's
//!   - [`register`]: service and proxy registered, both or neither
//!
//! The directory, Envoy's bootstrap and the record for `connect-lifecycle` are made by
//! the crate `provision`.
//!
//! [`dry_run`] tells what would be done instead.
//!
//! [`run`] leads through them, and back out if one fails.

mod args;
mod declare;
mod dry_run;
mod helper;
mod register;
mod run;
mod sidecar;
mod taken;
mod virtual_address;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let args: args::Args = match runtime::parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    runtime::start(&args.log.clone(), |signals| run::run(args, signals))
}
