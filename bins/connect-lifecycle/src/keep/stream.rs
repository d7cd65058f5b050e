//! Envoy's xDS stream: whether the agent accepts it, and what happens if it does not.
//!
//! While agent or servers are away, Envoy keeps its configuration, and the pod stays
//! ready. But if the agent refuses only the stream, for instance because the ACL token
//! was deleted, Envoy's configuration is stale: a new deny intention would not be
//! enforced. Such a pod is cut off: its checks become critical and it becomes unready.

use std::time::Duration;

use runtime::TerminationMessage;
use tokio::time::Instant;

/// State of the stream.
#[derive(Debug)]
pub(crate) struct Stream {
    /// How long the agent may refuse it before the pod is cut off.
    patience: Duration,
    message: TerminationMessage,
    refused_since: Option<Instant>,
    cut_off: Option<String>,
}

/// Why a pod is cut off.
const WHY: &str = "Envoy gets no configuration from the agent, which answers other requests: its gRPC port refuses the stream, or is off";

const HINT: &str = "check the agent's log for `envoy`, its gRPC port and the ACL token: the pod gets no traffic until then";

// === impl Stream ===

impl Stream {
    pub(crate) fn new(patience: Duration, message: TerminationMessage) -> Self {
        Self { patience, message, refused_since: None, cut_off: None }
    }

    /// Envoy has its stream.
    pub(crate) fn is_connected(&mut self) {
        self.refused_since = None;
        if self.cut_off.take().is_some() {
            tracing::info!("Envoy gets its configuration again");
            self.message.set(None);
        }
    }

    /// Envoy has no stream, but not because the agent refuses it: agent or servers are
    /// away, or Envoy is being restarted. A pod that was cut off stays cut off.
    pub(crate) fn is_excused(&mut self) {
        self.refused_since = None;
    }

    /// Envoy has no stream, although agent and servers answer.
    pub(crate) fn is_refused(&mut self) {
        let since = *self.refused_since.get_or_insert_with(Instant::now);
        if self.cut_off.is_none() && since.elapsed() >= self.patience {
            tracing::error!("{WHY}; hint: {HINT}");
            self.message.set(Some(&format!("{WHY}; hint: {HINT}")));
            self.cut_off = Some(WHY.to_owned());
        }
    }

    /// Why the pod is cut off; `None` if it is not.
    pub(crate) fn cut_off(&self) -> Option<&str> {
        self.cut_off.as_deref()
    }
}
