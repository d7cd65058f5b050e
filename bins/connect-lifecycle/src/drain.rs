//! Envoy, ended when nothing is in flight.

use std::process::ExitStatus;
use std::time::Duration;

use envoy::Envoy;
use nix::sys::signal::Signal;
use runtime::Deadline;
use tokio::time::Instant;

use crate::application;
use crate::child::Child;

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
const QUIT: Duration = Duration::from_secs(1);

/// How long a pod without a port has to be without connections until it counts as
/// idle: nothing tells whether its application still works.
const IDLE: Duration = Duration::from_secs(3);

/// Lets connections end, at most until the deadline or until `hurry`. Returns
/// whether Envoy still runs.
pub(crate) async fn wait(
    busy: &Busy,
    child: &mut Child,
    deadline: Deadline,
    hurry: impl Future<Output = ()>,
) -> bool {
    tokio::select! {
        biased;
        status = child.end() => {
            tracing::warn!(%status, "Envoy ended while its connections were drained");
            return false;
        }
        () = busy.drained() => tracing::info!("no connection is in flight"),
        () = deadline.passed() => tracing::warn!("not all is over after {deadline}: open connections are cut"),
        () = hurry => tracing::warn!("asked to end a second time: open connections are cut"),
    }
    true
}

/// Ends Envoy.
pub(crate) async fn quit(envoy: Envoy, mut child: Child) -> ExitStatus {
    end(envoy, &mut child).await
}

/// Ends Envoy once its connections are over or the deadline has passed, so that
/// it can be started again. The application goes on.
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
    /// Tells clients to go elsewhere, and waits until the application and the
    /// last connection are gone. Trouble with Envoy must not end it before its
    /// connections do.
    async fn drained(&self) {
        if let Err(error) = self.envoy.drain_inbound().await {
            tracing::warn!("cannot tell clients to go elsewhere: {error}");
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
