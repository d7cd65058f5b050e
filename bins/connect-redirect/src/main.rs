//! Loads the redirect rules of a transparent pod, and verifies them.
//!
//! - [`args`]: the command line
//! - [`loopback`]: whether a connection really comes back to Envoy's port

mod args;
mod loopback;

use std::process::ExitCode;

use args::{Args, Command};
use netfilter::Netlink;
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
    let netlink = load().map_err(|error| refused(&error, "cannot load the redirect rules"))?;
    netlink
        .verify(&transaction)
        .map_err(|error| refused(&error, "the redirect rules are loaded, but"))?;
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
    let read = Netlink::open().and_then(|netlink| netlink.verify(&Transaction::from(plan)));
    let from_outside = match read {
        Ok(()) => false,
        Err(netfilter::Error::Denied(_)) => {
            tracing::info!(
                "the rules cannot be read without NET_ADMIN: only a connection is tried"
            );
            true
        }
        Err(error) => return Err(refused(&error, "the redirect rules are not as they should be")),
    };
    loopback::verify(plan, signals).await.map_err(|error| match error {
        loopback::Error::Elsewhere { .. } if from_outside => {
            Failure::new(Exit::Failure, error).hint(UNREDIRECTED)
        }
        error => error.failure(),
    })?;
    tracing::info!("connections of this pod go through Envoy");
    Ok(Exit::Done.into())
}

/// A container that starts again has the same network: only a new pod gets another one.
const UNREDIRECTED: &str = "delete the pod, so that it gets a network with redirect rules: \
     connect-cni was not in the node's CNI configuration when the pod was started, or the \
     container runtime hands no annotations to CNI plugins";

/// Adds the hint for a container.
fn refused(error: &netfilter::Error, doing: &str) -> Failure {
    let hint = match error {
        netfilter::Error::Denied(_) => {
            "give the container user 0 and the capability NET_ADMIN \
             (securityContext.capabilities.add); PodSecurity baseline and restricted refuse \
             that: use a namespace at the level privileged, or connect-cni"
        }
        error => error.hint(),
    };
    Failure::new(Exit::Failure, error).while_doing(doing).hint(hint)
}
