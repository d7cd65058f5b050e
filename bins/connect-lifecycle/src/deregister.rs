//! The registration, taken back: the sidecar's preStop hook.

use std::process::ExitCode;

use envoy::Envoy;
use flags::Report;
use runtime::{Deadline, Failure, Signals};

use crate::args::DeregisterArgs;
use crate::pod::Pod;

/// Takes the registration back. A signal does not cut it short: the deadline
/// does, and the kubelet's SIGKILL. The ACL token stays: Envoy needs it until
/// its connections are over.
pub(crate) async fn run(args: DeregisterArgs, _signals: Signals) -> Result<ExitCode, Failure> {
    let DeregisterArgs { handoff, timeout } = args;
    let Pod { handoff, record, agent, .. } = Pod::open(handoff)?;
    // Clients are told to go elsewhere at once; `run` says what goes wrong with it.
    let drained = Envoy::at(record.admin).drain_inbound();
    let deadline = Deadline::after(timeout);
    let deregistered = lifecycle::deregister(&handoff, &agent, &record.pair, deadline);
    let (_drained, deregistered) = tokio::join!(drained, deregistered);
    let _stays_logged_in = deregistered.map_err(Report::failure)?;
    Ok(ExitCode::SUCCESS)
}
