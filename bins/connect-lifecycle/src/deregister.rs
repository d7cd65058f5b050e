//! The registration, taken back: the sidecar's preStop hook.

use std::process::ExitCode;

use handoff::{Handoff, Record};
use runtime::{Deadline, Failure, Signals};

use crate::args::{DeregisterArgs, HandoffArgs};

/// Takes the registration back. A signal does not cut it short: the deadline
/// does, and the kubelet's SIGKILL.
pub(crate) async fn run(args: DeregisterArgs, _signals: Signals) -> Result<ExitCode, Failure> {
    let DeregisterArgs { handoff: HandoffArgs { dir }, timeout } = args;
    let handoff = Handoff::new(dir);
    let record = Record::read(&handoff)?;
    let agent = record.agent.connect()?;
    handoff.deregister(&agent, &record.pair, Deadline::after(timeout)).await?;
    Ok(ExitCode::SUCCESS)
}
