//! The registration, taken back: the sidecar's preStop hook.

use std::process::ExitCode;

use runtime::{Deadline, Failure, Signals};

use crate::args::DeregisterArgs;
use crate::pod::Pod;

/// Takes the registration back. A signal does not cut it short: the deadline
/// does, and the kubelet's SIGKILL. The ACL token stays: Envoy needs it until
/// its connections are over.
pub(crate) async fn run(args: DeregisterArgs, _signals: Signals) -> Result<ExitCode, Failure> {
    let DeregisterArgs { handoff, timeout } = args;
    let Pod { handoff, record, agent, .. } = Pod::open(handoff)?;
    lifecycle::deregister(&handoff, &agent, &record.pair, Deadline::after(timeout)).await?;
    Ok(ExitCode::SUCCESS)
}
