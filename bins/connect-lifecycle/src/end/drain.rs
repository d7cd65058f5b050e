//! Drains Envoy's connections, then stops it.

use std::process::ExitStatus;
use std::time::Duration;

use envoy::Envoy;
use nix::sys::signal::Signal;
use runtime::Deadline;
use tokio::time::Instant;

use crate::child::Child;
use crate::keep::application;

/// How often to ask Envoy how many connections are open. Envoy has no event for this.
const AGAIN: Duration = Duration::from_millis(50);

/// How often to check whether the application still listens.
const LISTENING: Duration = Duration::from_millis(200);

/// What must be finished before Envoy is stopped.
#[derive(Clone, Debug)]
pub(crate) struct Busy {
    pub(crate) envoy: Envoy,
    /// Ports on which Envoy answers itself, such as that of its metrics. Connections to
    /// these don't delay shutdown.
    pub(crate) pages: Vec<u16>,
    /// The application's port. While it is open, the application serves clients with
    /// stale endpoints and may still send requests to its upstreams.
    pub(crate) application: Option<u16>,
}

/// How long Envoy may take to answer `/quitquitquit`, and then to exit.
const QUIT: Duration = Duration::from_secs(1);

/// How long a pod without a port must have no connections to count as idle. Nothing else
/// shows whether its application is still working.
const IDLE: Duration = Duration::from_secs(3);

/// Waits until connections are closed, at most until the deadline or until `hurry`.
/// Returns whether Envoy still runs.
pub(crate) async fn wait(
    busy: &Busy,
    child: &mut Child,
    deadline: Deadline,
    hurry: impl Future<Output = ()>,
) -> bool {
    tokio::select! {
        biased;
        status = child.end() => {
            tracing::warn!(%status, "Envoy exited while its connections were drained");
            return false;
        }
        () = busy.drained() => tracing::info!("no connection is in flight"),
        () = deadline.passed() => {
            tracing::warn!("drain timeout reached after {deadline}: closing open connections");
        }
        () = hurry => tracing::warn!("received a second signal: closing open connections"),
    }
    true
}

pub(crate) async fn quit(envoy: Envoy, mut child: Child) -> ExitStatus {
    end(envoy, &mut child).await
}

/// Stops Envoy once its connections are closed or the deadline has passed, so that it can
/// be started again. The application keeps running.
pub(crate) async fn restart(busy: &Busy, child: &mut Child, deadline: Deadline) -> ExitStatus {
    let busy = Busy { application: None, ..busy.clone() };
    if wait(&busy, child, deadline, std::future::pending()).await {
        end(busy.envoy, child).await
    } else {
        ExitStatus::default()
    }
}

async fn end(envoy: Envoy, child: &mut Child) -> ExitStatus {
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

// === impl Busy ===

impl Busy {
    /// Tells clients to close their connections, and waits until the application and the
    /// last connection are gone. Errors of Envoy's admin interface don't stop the wait:
    /// there may still be connections.
    async fn drained(&self) {
        if let Err(error) = self.envoy.drain_inbound().await {
            tracing::warn!("cannot drain Envoy's listeners: {error}");
        }
        let mut is_blind = false;
        let mut idle_since = None;
        loop {
            let pause = match self.envoy.connections(&self.pages).await {
                Ok(0) => {
                    is_blind = false;
                    let since = *idle_since.get_or_insert_with(Instant::now);
                    match self.application {
                        Some(port) if application::listens(port).await => LISTENING,
                        Some(_) => return,
                        None if since.elapsed() >= IDLE => return,
                        None => AGAIN,
                    }
                }
                Ok(_) => {
                    is_blind = false;
                    idle_since = None;
                    AGAIN
                }
                Err(error) => {
                    // Logged once per series of failures.
                    if !is_blind {
                        tracing::warn!("cannot count open connections, still waiting: {error}");
                    }
                    is_blind = true;
                    AGAIN
                }
            };
            tokio::time::sleep(pause).await;
        }
    }
}
