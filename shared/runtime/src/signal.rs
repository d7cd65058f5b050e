//! SIGTERM and SIGINT as futures.

use std::fmt;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use crate::exit::{Exit, Failure};

/// Signals that ask a program to end. Handlers are installed at once: process 1 of a
/// container ignores a signal without a handler.
#[derive(Debug)]
pub struct Signals {
    terminate: Stream,
    interrupt: Stream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, which the kubelet sends.
    Terminate,
    /// SIGINT, which a terminal sends.
    Interrupt,
}

// === impl Signals ===

impl Signals {
    /// Installs the handlers. Requires a running tokio runtime.
    pub fn install() -> Result<Self, Failure> {
        let take = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(Exit::Failure, format_args!("cannot handle signals: {error}"))
            })
        };
        Ok(Self {
            terminate: take(SignalKind::terminate())?,
            interrupt: take(SignalKind::interrupt())?,
        })
    }

    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.interrupt.recv() => Signal::Interrupt,
        }
    }
}

// === impl Signal ===

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        })
    }
}
