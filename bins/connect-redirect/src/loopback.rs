//! Tests whether a connection is redirected to Envoy's port. Without NET_ADMIN, this is the
//! only way to see rules that were loaded from outside of the pod.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use redirect::Plan;
use runtime::deadline::{Cut, race};
use runtime::{Deadline, Exit, Failure, Signals};
use tokio::net::{TcpListener, TcpStream};

/// How long the redirected connection may take to arrive.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why the test failed or is not possible.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Envoy or another process listens on the port.
    #[error("port {0} of 127.0.0.1 is in use")]
    Taken(u16),
    /// Another error of `bind`.
    #[error("cannot listen on port {0} of 127.0.0.1: {1}")]
    Listen(u16, io::Error),
    /// The pod has no default route.
    #[error("this pod has no route to IPv4 addresses: {0}")]
    NoRoute(io::Error),
    /// The connection was not redirected.
    #[error("a connection to {to} was not redirected to port {port}: {why}")]
    Elsewhere {
        /// Where the connection was going.
        to: SocketAddrV4,
        /// Where it should have arrived.
        port: u16,
        /// What happened instead.
        why: String,
    },
    /// The plan excludes this user's connections, or all destinations.
    #[error("all connections of user {0} are excluded: none can be tested")]
    Excluded(u32),
    #[error("ended by a signal")]
    Signal,
}

/// Listens on Envoy's outbound port, and connects to an address that no host has. Without
/// rules, the connection's first packet leaves the pod.
///
/// # Errors
/// The connection was not redirected, or the test is not possible.
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
        Err(Cut::Deadline) => {
            return Err(elsewhere(format!("no connection arrived within {PATIENCE:?}")));
        }
        Err(Cut::Signal(_)) => return Err(Error::Signal),
    };
    // Another process may have connected to the port directly.
    let meant = getsockopt(&server.as_fd(), sockopt::OriginalDst)
        .map_err(|errno| elsewhere(format!("the kernel has no original destination: {errno}")))?;
    let address = Ipv4Addr::from(u32::from_be(meant.sin_addr.s_addr));
    let meant = SocketAddrV4::new(address, u16::from_be(meant.sin_port));
    if meant == to { Ok(()) } else { Err(elsewhere(format!("one to {meant} was"))) }
}

// === impl Error ===

impl Error {
    /// Adds the hint.
    pub(crate) fn failure(self) -> Failure {
        let hint = match &self {
            Self::Taken(_) => "verify before Envoy is started",
            Self::Listen(..) | Self::Signal => "run it again",
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
