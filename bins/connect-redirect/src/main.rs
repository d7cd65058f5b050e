//! Loads the redirect rules of a transparent pod, and verifies them.
//!
//! - [`args`]: the command line
//! - [`netlink`]: the kernel: a transaction given to it, its rules read back
//! - [`loopback`]: whether a connection really comes back to Envoy's port

mod args;
mod loopback;
mod netlink;

use std::process::ExitCode;

use args::{Args, Command};
use netlink::Netlink;
use redirect::{Plan, Transaction};
use runtime::{Exit, Failure, Signals, stdout};

fn main() -> ExitCode {
    let Args { log, command } = match runtime::parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    runtime::start(&log, async |signals| match command {
        Command::Apply(args) => apply(&args.plan()?, signals).await,
        Command::Verify(args) => verify(&args.plan()?, signals).await,
        Command::Print(args) => {
            stdout::write(&args.plan()?.to_string())?;
            Ok(Exit::Done.into())
        }
    })
}

/// Loads the rules, and looks whether they do what they should.
async fn apply(plan: &Plan, signals: Signals) -> Result<ExitCode, Failure> {
    let transaction = Transaction::from(plan);
    let load = || {
        let mut netlink = Netlink::open()?;
        netlink.load(&transaction)?;
        Ok(netlink)
    };
    let netlink =
        load().map_err(|error: netlink::Error| error.failure("cannot load the redirect rules"))?;
    netlink
        .verify(&transaction)
        .map_err(|error| error.failure("the redirect rules are loaded, but"))?;
    match loopback::verify(plan, signals).await {
        // Rules are loaded into a pod that lives, or leave this user alone.
        Err(why @ (loopback::Error::Taken(_) | loopback::Error::Excluded(_))) => {
            tracing::info!(%why, "the redirect rules are loaded; no connection was tried");
        }
        other => {
            other.map_err(loopback::Error::failure)?;
            tracing::info!(rules = plan.rules().len(), "the redirect rules are loaded and work");
        }
    }
    Ok(Exit::Done.into())
}

/// Looks whether connections come back; and whether the rules are those, where
/// that may be asked.
async fn verify(plan: &Plan, signals: Signals) -> Result<ExitCode, Failure> {
    match Netlink::open().and_then(|netlink| netlink.verify(&Transaction::from(plan))) {
        Ok(()) => {}
        Err(netlink::Error::Denied(_)) => {
            tracing::info!("the rules can't be read without NET_ADMIN: only a connection is tried");
        }
        Err(error) => return Err(error.failure("the redirect rules are not as they should be")),
    }
    loopback::verify(plan, signals).await.map_err(loopback::Error::failure)?;
    tracing::info!("connections of this pod go through Envoy");
    Ok(Exit::Done.into())
}
