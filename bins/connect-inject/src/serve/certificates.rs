//! The certificate that the webhook shows, wherever it comes from.

use std::sync::Arc;

use rustls::ServerConfig;

use super::clock::{LAST_MINUTE, now};
use super::self_managed::SelfManaged;
use super::tls::Pair;

/// The certificate that the webhook shows.
#[derive(Debug)]
pub(crate) enum Certificates {
    /// From files.
    Files(Pair),
    /// Made by the replicas.
    SelfManaged(Box<SelfManaged>),
}

// === impl Certificates ===

impl Certificates {
    /// The certificate to show now; none: there is none yet.
    pub(super) fn current(&self) -> Option<Arc<ServerConfig>> {
        match self {
            Self::Files(pair) => Some(pair.current()),
            Self::SelfManaged(shared) => shared.current(),
        }
    }

    /// When it ends, in seconds since 1970; none if that is unknown.
    pub(super) fn not_after(&self) -> Option<i64> {
        match self {
            Self::Files(pair) => pair.not_after(),
            Self::SelfManaged(shared) => shared.not_after(),
        }
    }

    /// Why no client can be served with it.
    pub(super) fn unready(&self) -> Option<String> {
        let ended = self
            .not_after()
            .filter(|end| *end < now() + LAST_MINUTE)
            .map(|end| format!("the certificate ends or has ended: {end} s since 1970"));
        ended.or_else(|| match self {
            Self::Files(_) => None,
            Self::SelfManaged(shared) => shared.unready(),
        })
    }

    /// Keeps it good, for ever.
    pub(super) async fn keep(&self) {
        match self {
            Self::Files(_) => std::future::pending().await,
            Self::SelfManaged(shared) => shared.keep().await,
        }
    }
}
