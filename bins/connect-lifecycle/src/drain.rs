//! Envoy, ended when nothing is in flight.

use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use runtime::Deadline;

use crate::child::Child;
use crate::envoy::Envoy;

/// How often Envoy is asked for its connections. It has no event for it.
const AGAIN: Duration = Duration::from_millis(50);

/// How long Envoy may take to answer when it is told to end, and then to end.
const QUIT: Duration = Duration::from_secs(2);

/// Lets connections end, at most until the deadline or until `hurry`; then ends
/// Envoy. An idle Envoy ends at once.
pub(crate) async fn end(
    envoy: Envoy,
    child: &mut Child,
    deadline: Deadline,
    hurry: impl Future<Output = ()>,
) -> ExitStatus {
    tokio::select! {
        biased;
        status = child.end() => {
            tracing::warn!(%status, "Envoy ended while its connections were drained");
            return status;
        }
        () = drained(envoy) => tracing::info!("no connection is in flight"),
        () = deadline.passed() => tracing::warn!("connections are still open after {deadline}: they are cut"),
        () = hurry => tracing::warn!("asked to end a second time: open connections are cut"),
    }
    let quit = tokio::time::timeout(QUIT, envoy.quit()).await;
    if !matches!(quit, Ok(Ok(()))) {
        if let Ok(Err(error)) = quit {
            tracing::warn!("{error}");
        }
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

/// Tells clients to go elsewhere, and waits until the last connection is gone.
/// Trouble with either must not end Envoy before its connections do.
async fn drained(envoy: Envoy) {
    if let Err(error) = envoy.drain_inbound().await {
        tracing::warn!("cannot tell clients to go elsewhere: {error}");
    }
    let mut is_blind = false;
    loop {
        match envoy.connections().await {
            Ok(0) => return,
            Ok(_) => is_blind = false,
            // Said once: the next tries say the same.
            Err(error) if !is_blind => {
                is_blind = true;
                tracing::warn!("cannot count connections, and waits: {error}");
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}
