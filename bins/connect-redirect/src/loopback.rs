//! Whether a connection really comes back to Envoy's port. In a pod whose rules
//! are loaded from outside it is the only thing that can be seen from within.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use redirect::Plan;
use runtime::deadline::{Cut, race};
use runtime::{Deadline, Exit, Failure, Signals};
use tokio::net::{TcpListener, TcpStream};

/// How long a connection may take to come back.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why nothing can be said, or that it did not come back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Envoy or another process has the port.
    #[error("port {0} of 127.0.0.1 is taken")]
    Taken(u16),
    /// Another error of `bind`.
    #[error("cannot listen on port {0} of 127.0.0.1: {1}")]
    Listen(u16, io::Error),
    /// There is no way out of the pod.
    #[error("this pod has no route to IPv4 addresses: {0}")]
    NoRoute(io::Error),
    /// The connection went elsewhere.
    #[error("a connection to {to} did not come back to port {port}: {why}")]
    Elsewhere {
        /// Where it was meant to go.
        to: SocketAddrV4,
        /// Where it should have come back.
        port: u16,
        /// What was seen instead.
        why: String,
    },
    /// The plan leaves this user's connections alone, or all.
    #[error("connections of user {0} are all excluded: nothing can be tried")]
    Excluded(u32),
    /// A signal came.
    #[error("ended by a signal")]
    Signal,
}

/// Listens where Envoy will, and connects to an address that nobody has. Nothing
/// leaves the pod but, without rules, the first packet of a connection.
///
/// # Errors
/// The connection did not come back, or that can't be tried.
pub(crate) async fn verify(plan: &Plan, mut signals: Signals) -> Result<(), Error> {
    let (port, uid) = (plan.outbound, nix::unistd::geteuid().as_raw());
    let to = plan.witness(uid).ok_or(Error::Excluded(uid))?;
    let elsewhere = |why: String| Error::Elsewhere { to, port, why };
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(|error| {
            match error.kind() {
                io::ErrorKind::AddrInUse => Error::Taken(port),
                _ => Error::Listen(port, error),
            }
        })?;
    let back = async {
        let client = TcpStream::connect(SocketAddr::V4(to));
        tokio::try_join!(client, listener.accept())
    };
    let (_client, (server, _)) = match race(Deadline::after(PATIENCE), &mut signals, back).await {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NetworkUnreachable => {
            return Err(Error::NoRoute(error));
        }
        Ok(Err(error)) => return Err(elsewhere(error.to_string())),
        Err(Cut::Deadline) => return Err(elsewhere(format!("nothing came within {PATIENCE:?}"))),
        Err(Cut::Signal(_)) => return Err(Error::Signal),
    };
    // Anybody may have connected to the port.
    let meant = getsockopt(&server.as_fd(), sockopt::OriginalDst)
        .map_err(|errno| elsewhere(format!("the kernel knows no destination of it: {errno}")))?;
    let address = Ipv4Addr::from(u32::from_be(meant.sin_addr.s_addr));
    let meant = SocketAddrV4::new(address, u16::from_be(meant.sin_port));
    if meant == to { Ok(()) } else { Err(elsewhere(format!("one to {meant} did"))) }
}

// === impl Error ===

impl Error {
    /// As the user reads it, with what to do next.
    pub(crate) fn failure(self) -> Failure {
        let hint = match &self {
            Self::Taken(_) => "verify before Envoy is started",
            Self::Listen(..) | Self::Signal => "start it again",
            Self::Excluded(_) => "verify as a user who is not excluded",
            Self::NoRoute(_) => "transparent proxy needs IPv4 in the pod",
            Self::Elsewhere { .. } => {
                "load the rules first (connect-redirect apply), and verify as a user who is \
                 not excluded"
            }
        };
        Failure::new(Exit::Failure, self).hint(hint)
    }
}
