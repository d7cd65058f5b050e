//! The sidecar's preStop hook.

use std::process::ExitCode;

use envoy::Envoy;
use flags::Report;
use runtime::{Deadline, Exit, Failure, Signals};

use crate::args::DeregisterArgs;
use crate::pod::Pod;

/// Deregisters. SIGTERM does not cut it short; only the deadline and the kubelet's
/// SIGKILL do. The pod stays logged in, because Envoy needs the ACL token while it
/// drains.
///
/// If the pod's token no longer exists, `run` has to deregister, because only `run` logs
/// in: two processes that do would leave a token behind. The hook must not even try. An
/// agent accepts a token for 30 s after its end, but can't tell the servers.
pub(crate) async fn run(args: DeregisterArgs, _signals: Signals) -> Result<ExitCode, Failure> {
    let DeregisterArgs { handoff, timeout } = args;
    let Pod { handoff, record, agent, session } = Pod::open(handoff)?;
    // Clients must stop sending requests at once; if this fails, `run` logs why.
    let drained = Envoy::at(record.admin).drain_inbound();
    let deadline = Deadline::after(timeout);
    let deregistered = async {
        if let Some(session) = &session {
            // First, so that nobody registers meanwhile.
            let buried = handoff.bury();
            // While the servers don't answer, the agent may still deregister.
            if !session.look_first(timeout).await.unwrap_or(true) {
                buried?;
                return Err(Failure::new(Exit::Denied, "the ACL token no longer exists").hint(
                    "`connect-lifecycle run` logs in again and deregisters when it gets SIGTERM",
                ));
            }
        }
        let done = lifecycle::deregister(&handoff, &agent, &record.pair, deadline).await;
        let _stays_logged_in = done.map_err(Report::failure)?;
        Ok(ExitCode::SUCCESS)
    };
    tokio::join!(drained, deregistered).1
}
