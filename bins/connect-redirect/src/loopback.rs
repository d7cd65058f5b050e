//! Whether a connection really comes back to Envoy's port. In a pod whose rules
//! are loaded from outside it is the only thing that can be seen from within.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use runtime::deadline::{Cut, race};
use runtime::{Deadline, Exit, Failure, Signals};
use tokio::net::{TcpListener, TcpStream};

/// Nobody has this address: it is for documents
/// ([RFC 5737](https://www.rfc-editor.org/rfc/rfc5737)). Nothing is sent to it
/// but the first packet of a connection, and only without rules.
const NOBODY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 9);

/// How long a connection may take to come back.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why nothing can be said, or that it did not come back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Envoy or another process has the port.
    #[error("port {0} of 127.0.0.1 is taken")]
    Taken(u16),
    /// The port can't be had for another reason.
    #[error("cannot listen on port {0} of 127.0.0.1: {1}")]
    Listen(u16, io::Error),
    /// There is no way out of the pod.
    #[error("this pod has no route to IPv4 addresses: {0}")]
    NoRoute(io::Error),
    /// The connection went elsewhere.
    #[error("a connection to {NOBODY} did not come back to port {0}: {1}")]
    Elsewhere(u16, String),
    /// It took too long.
    #[error("a connection to {NOBODY} did not come back to port {0} within 2s")]
    Nothing(u16),
    /// A signal came.
    #[error("ended by a signal")]
    Signal,
}

/// Listens where Envoy will, and connects to an address that nobody has.
///
/// # Errors
/// The connection did not come back, or that can't be tried.
pub(crate) async fn verify(port: u16, mut signals: Signals) -> Result<(), Error> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(|error| {
            match error.kind() {
                io::ErrorKind::AddrInUse => Error::Taken(port),
                _ => Error::Listen(port, error),
            }
        })?;
    let back = async {
        let client = TcpStream::connect(SocketAddr::V4(NOBODY));
        tokio::try_join!(client, listener.accept())
    };
    let (_client, (server, _)) = match race(Deadline::after(PATIENCE), &mut signals, back).await {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NetworkUnreachable => {
            return Err(Error::NoRoute(error));
        }
        Ok(Err(error)) => return Err(Error::Elsewhere(port, error.to_string())),
        Err(Cut::Deadline) => return Err(Error::Nothing(port)),
        Err(Cut::Signal(_)) => return Err(Error::Signal),
    };
    // Anybody may have connected to the port.
    let meant = getsockopt(&server.as_fd(), sockopt::OriginalDst).map_err(|errno| {
        Error::Elsewhere(port, format!("the kernel knows no original destination: {errno}"))
    })?;
    let address = Ipv4Addr::from(u32::from_be(meant.sin_addr.s_addr));
    let meant = SocketAddrV4::new(address, u16::from_be(meant.sin_port));
    if meant == NOBODY {
        Ok(())
    } else {
        Err(Error::Elsewhere(port, format!("one to {meant} did")))
    }
}

// === impl Error ===

impl Error {
    /// As the user reads it, with what to do next.
    pub(crate) fn failure(self) -> Failure {
        let hint = match &self {
            Self::Taken(_) => "verify before Envoy is started",
            Self::Listen(..) | Self::Signal => "start it again",
            Self::NoRoute(_) => "transparent proxy needs IPv4 in the pod",
            Self::Elsewhere(..) | Self::Nothing(_) => {
                "load the rules first (connect-redirect apply), and verify as a user who is \
                 not excluded"
            }
        };
        Failure::new(Exit::Failure, self).hint(hint)
    }
}
