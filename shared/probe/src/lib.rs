//! An application's readiness probe, run from inside its pod. Pure.
//!
//! - [`Probe`]: what is asked and how often, as a Pod's specification has it
//! - [`Health`]: what the results in a row come to
//!
//! Source: "Configure Liveness, Readiness and Startup Probes" of the Kubernetes
//! documentation.

mod form;
mod health;

use std::fmt;
use std::time::Duration;

pub use form::{Named, NotRun};
pub use health::{Health, STARTING};

/// A probe that can be run over loopback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub action: Action,
    /// How long the application is left alone at first.
    pub initial_delay: Duration,
    /// How long one result stands before the next is asked for.
    pub period: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How many successes in a row make a failing application ready.
    pub success_threshold: u32,
    /// How many failures in a row make a ready application unready.
    pub failure_threshold: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Http(Page),
    Tcp {
        port: u16,
    },
    /// The health service of gRPC, in plain text.
    Grpc {
        port: u16,
        /// Of which service; empty: of the whole server.
        service: String,
    },
}

/// A page that answers with a status from 200 to 399 if all is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub port: u16,
    /// Whether over TLS, by any certificate.
    pub tls: bool,
    /// Path and query.
    pub path: String,
    /// Further headers, which replace the default ones.
    pub headers: Vec<(String, String)>,
}

// === impl Action ===

impl Action {
    /// The port that is asked.
    pub fn port(&self) -> u16 {
        match self {
            Self::Http(Page { port, .. }) | Self::Tcp { port } | Self::Grpc { port, .. } => *port,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(Page { port, tls, path, .. }) => {
                let scheme = if *tls { "HTTPS" } else { "HTTP" };
                write!(f, "{scheme} GET {path} on port {port}")
            }
            Self::Tcp { port } => write!(f, "TCP on port {port}"),
            Self::Grpc { port, service } if service.is_empty() => {
                write!(f, "gRPC on port {port}")
            }
            Self::Grpc { port, service } => write!(f, "gRPC service {service} on port {port}"),
        }
    }
}
