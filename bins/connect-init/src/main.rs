//! Registers a pod's service and sidecar proxy with the node's Consul agent, and writes
//! the files that the sidecar starts from.
//!
//! A registration has these stages:
//!
//! - [`args`]: the command line
//! - [`declare`]: the pod's services as the flags declare them
//! - [`helper`]: copies connect-lifecycle into the directory meanwhile
//! - [`sidecar`]: one service of the pod with its sidecar
//!   - [`taken`]: whether another pod has its id
//!   - [`register`]: registers service and proxy, both or neither
//!
//! The crate `provision` prepares the directory and writes Envoy's bootstrap and the
//! record for `connect-lifecycle`.
//!
//! [`dry_run`] describes a run instead.
//!
//! [`run`] goes through the stages, and rolls back if one fails.

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
