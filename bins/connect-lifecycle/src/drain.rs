//! Envoy, ended when nothing is in flight.

use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use runtime::Deadline;

use crate::application;
use crate::child::Child;
use crate::envoy::Envoy;

/// How often Envoy is asked for its connections. It has no event for it.
const AGAIN: Duration = Duration::from_millis(50);

/// How often an application is looked at that goes on.
const LISTENING: Duration = Duration::from_millis(200);

/// What has to be over before Envoy is ended.
#[derive(Clone, Debug)]
pub(crate) struct Busy {
    /// Envoy's connections.
    pub(crate) envoy: Envoy,
    /// The ports of Envoy's own pages: who reads those does not keep it.
    pub(crate) pages: Vec<u16>,
    /// The application's port: while it listens, it serves those who have not
    /// heard yet that it ends, and may still ask others.
    pub(crate) application: Option<u16>,
}

/// How long Envoy may take to answer when it is told to end, and then to end.
const QUIT: Duration = Duration::from_secs(2);

/// Lets connections end, at most until the deadline or until `hurry`; then ends
/// Envoy. An idle Envoy ends at once.
pub(crate) async fn end(
    busy: Busy,
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
        () = busy.drained() => tracing::info!("no connection is in flight"),
        () = deadline.passed() => tracing::warn!("not all is over after {deadline}: open connections are cut"),
        () = hurry => tracing::warn!("asked to end a second time: open connections are cut"),
    }
    let quit = tokio::time::timeout(QUIT, busy.envoy.quit()).await;
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

// === impl Busy ===

impl Busy {
    /// Tells clients to go elsewhere, and waits until the application and the
    /// last connection are gone. Trouble with Envoy must not end it before its
    /// connections do.
    async fn drained(&self) {
        if let Err(error) = self.envoy.drain_inbound().await {
            tracing::warn!("cannot tell clients to go elsewhere: {error}");
        }
        let mut is_blind = false;
        loop {
            let pause = match self.envoy.connections(&self.pages).await {
                Ok(0) => {
                    is_blind = false;
                    match self.application {
                        Some(port) if application::listens(port).await => LISTENING,
                        _ => return,
                    }
                }
                Ok(_) => {
                    is_blind = false;
                    AGAIN
                }
                Err(error) => {
                    // Said once: the next tries say the same.
                    if !is_blind {
                        tracing::warn!("cannot count connections, and waits: {error}");
                    }
                    is_blind = true;
                    AGAIN
                }
            };
            tokio::time::sleep(pause).await;
        }
    }
}
