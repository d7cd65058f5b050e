//! Envoy, restarted in place: an Envoy that does not watch its token's file gets
//! another token only so.

use std::cell::Cell;

use tokio::sync::Notify;

/// Whether Envoy is to be restarted, or is being.
#[derive(Debug, Default)]
pub(crate) struct Restart {
    is_under_way: Cell<bool>,
    requested: Notify,
    changed: Notify,
}

// === impl Restart ===

impl Restart {
    /// Asks for it. From now on the pod is out of service.
    pub(crate) fn request(&self) {
        self.is_under_way.set(true);
        self.requested.notify_one();
    }

    /// Waits until it is asked for.
    pub(crate) async fn requested(&self) {
        self.requested.notified().await;
    }

    /// Envoy was started again.
    pub(crate) fn is_done(&self) {
        self.is_under_way.set(false);
        self.changed.notify_one();
    }

    pub(crate) fn is_under_way(&self) -> bool {
        self.is_under_way.get()
    }

    /// Waits until it is done.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}
