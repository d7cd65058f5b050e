//! Envoy's xDS stream: whether the agent feeds Envoy, and what follows if it
//! refuses to.
//!
//! Envoy goes on with what it has when agent or servers are away, and its pod
//! stays in service. It is another matter if only the stream is refused, for
//! instance because its ACL token is gone: what Envoy has is stale then, and an
//! intention that denies would not be enforced. Such a pod is cut off.

use std::time::Duration;

use runtime::TerminationMessage;
use tokio::time::Instant;

/// What is known of the stream.
#[derive(Debug)]
pub(crate) struct Stream {
    /// How long it may be refused until the pod is cut off.
    patience: Duration,
    message: TerminationMessage,
    refused_since: Option<Instant>,
    cut_off: Option<String>,
}

/// Why a pod is cut off.
const WHY: &str = "Envoy gets no configuration from the agent, which answers otherwise: its gRPC port refuses the stream, or is off";

/// What to do about it.
const HINT: &str = "compare the agent's log at `envoy`, its gRPC port and the ACL token: the pod is out of service";

// === impl Stream ===

impl Stream {
    pub(crate) fn new(patience: Duration, message: TerminationMessage) -> Self {
        Self { patience, message, refused_since: None, cut_off: None }
    }

    /// It is there.
    pub(crate) fn is_connected(&mut self) {
        self.refused_since = None;
        if self.cut_off.take().is_some() {
            tracing::info!("Envoy gets its configuration again");
            self.message.set(None);
        }
    }

    /// It is not there, and nobody can tell whether it would be refused: agent or
    /// servers are away, or Envoy is being restarted. A pod that was cut off before
    /// stays so.
    pub(crate) fn is_excused(&mut self) {
        self.refused_since = None;
    }

    /// It is not there, although agent and servers answer.
    pub(crate) fn is_refused(&mut self) {
        let since = *self.refused_since.get_or_insert_with(Instant::now);
        if self.cut_off.is_none() && since.elapsed() >= self.patience {
            tracing::error!("{WHY}; hint: {HINT}");
            self.message.set(Some(&format!("{WHY}; hint: {HINT}")));
            self.cut_off = Some(WHY.to_owned());
        }
    }

    /// Why the pod is cut off; none if it is not.
    pub(crate) fn cut_off(&self) -> Option<&str> {
        self.cut_off.as_deref()
    }
}
