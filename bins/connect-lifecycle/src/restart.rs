//! Restarts Envoy in place, so that it uses a new ACL token. An Envoy that watches its
//! token's file needs no restart.

use std::cell::Cell;

use tokio::sync::Notify;

/// Whether a restart of Envoy is requested or in progress.
#[derive(Debug, Default)]
pub(crate) struct Restart {
    is_under_way: Cell<bool>,
    requested: Notify,
    changed: Notify,
}

// === impl Restart ===

impl Restart {
    /// Requests a restart. The pod's checks are critical until it is done.
    pub(crate) fn request(&self) {
        self.is_under_way.set(true);
        self.requested.notify_one();
    }

    /// Waits for a request.
    pub(crate) async fn requested(&self) {
        self.requested.notified().await;
    }

    /// Called when Envoy was started again.
    pub(crate) fn is_done(&self) {
        self.is_under_way.set(false);
        self.changed.notify_one();
    }

    pub(crate) fn is_under_way(&self) -> bool {
        self.is_under_way.get()
    }

    /// Waits until a restart is done.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}
