//! The webhook's certificate, from files or self-managed.

use std::sync::Arc;

use rustls::ServerConfig;

use super::clock::{LAST_MINUTE, now};
use super::self_managed::SelfManaged;
use super::tls::Pair;

/// Where the webhook's certificate comes from.
#[derive(Debug)]
pub(crate) enum Certificates {
    Files(Pair),
    /// Issued and shared by the replicas.
    SelfManaged(Box<SelfManaged>),
}

// === impl Certificates ===

impl Certificates {
    /// The certificate to serve; `None` until there is one.
    pub(super) fn current(&self) -> Option<Arc<ServerConfig>> {
        match self {
            Self::Files(pair) => Some(pair.current()),
            Self::SelfManaged(shared) => shared.current(),
        }
    }

    /// When it expires, in seconds since 1970, if that is known.
    pub(super) fn not_after(&self) -> Option<i64> {
        match self {
            Self::Files(pair) => pair.not_after(),
            Self::SelfManaged(shared) => shared.not_after(),
        }
    }

    /// Why no client would accept it.
    pub(super) fn unready(&self) -> Option<String> {
        let ended = self.not_after().filter(|end| *end < now() + LAST_MINUTE).map(|end| {
            format!("the certificate expires or has expired: {}", certificate::rfc3339(end))
        });
        ended.or_else(|| match self {
            Self::Files(_) => None,
            Self::SelfManaged(shared) => shared.unready(),
        })
    }

    /// Keeps it up to date. Never returns.
    pub(super) async fn keep(&self) {
        match self {
            Self::Files(_) => std::future::pending().await,
            Self::SelfManaged(shared) => shared.keep().await,
        }
    }
}
