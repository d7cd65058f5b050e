//! Envoy, ended when nothing is in flight.

use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use runtime::Deadline;

use crate::child::Child;
use crate::envoy::Envoy;

/// How often Envoy is asked for its connections. It has no event for it.
const AGAIN: Duration = Duration::from_millis(50);

/// How long Envoy may take to end when it is told to.
const QUIT: Duration = Duration::from_secs(3);

/// Lets connections end, at most until the deadline or until `hurry`; then ends
/// Envoy. An idle Envoy ends at once.
pub(crate) async fn end(
    envoy: Envoy,
    child: &mut Child,
    deadline: Deadline,
    hurry: impl Future<Output = ()>,
) -> ExitStatus {
    // A drain that fails must not end Envoy before its connections do.
    if let Err(error) = envoy.drain_inbound().await {
        tracing::warn!("cannot tell clients to go elsewhere: {error}");
    }
    tokio::select! {
        biased;
        status = child.end() => {
            tracing::warn!(%status, "Envoy ended while its connections were drained");
            return status;
        }
        idle = idle(envoy) => match idle {
            Ok(()) => tracing::info!("no connection is in flight"),
            Err(error) => tracing::warn!("cannot count connections: {error}"),
        },
        () = deadline.passed() => tracing::warn!("connections are still open after {deadline}: they are cut"),
        () = hurry => tracing::warn!("asked to end a second time: open connections are cut"),
    }
    if let Err(error) = envoy.quit().await {
        tracing::warn!("{error}");
        child.kill(Signal::SIGTERM);
    }
    tokio::select! {
        biased;
        status = child.end() => status,
        () = tokio::time::sleep(QUIT) => {
            child.kill(Signal::SIGKILL);
            child.end().await
        }
    }
}

async fn idle(envoy: Envoy) -> Result<(), crate::envoy::Error> {
    while envoy.connections().await? > 0 {
        tokio::time::sleep(AGAIN).await;
    }
    Ok(())
}
