//! Whether Envoy's public listener is open.

use std::net::SocketAddr;
use std::time::Duration;

use super::application;

/// How often to check a listener that is not open yet: Envoy needs some hundreds of
/// milliseconds.
const OPENING: Duration = Duration::from_millis(50);

/// Envoy's public listener. The agent's check of it starts as critical and runs every
/// 10 s; to save that time, we tell the agent as soon as Envoy listens.
#[derive(Debug)]
pub(super) struct Listener {
    address: Option<SocketAddr>,
    /// Whether the agent's check may be critical although Envoy listens.
    pub(super) is_due: bool,
    listens: bool,
}

// === impl Listener ===

impl Listener {
    pub(super) fn at(address: Option<SocketAddr>) -> Self {
        Self { address, is_due: true, listens: false }
    }

    /// Checks whether Envoy listens.
    pub(super) async fn look(&mut self) -> bool {
        self.listens = match self.address {
            Some(address) => application::takes_connections(address).await,
            None => false,
        };
        self.listens
    }

    /// Waits until Envoy listens, if the agent has to be told.
    pub(super) async fn opens(&mut self) {
        if !self.is_due || self.listens || self.address.is_none() {
            return std::future::pending().await;
        }
        while !self.look().await {
            tokio::time::sleep(OPENING).await;
        }
    }
}
