//! A port that stays reserved while nobody listens on it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use tokio::net::TcpSocket;

/// A port of loopback. A socket that does not listen reserves it: connections are
/// refused, and no other process gets it.
#[derive(Debug)]
pub struct Port {
    address: SocketAddr,
    _kept: TcpSocket,
}

// === impl Port ===

impl Port {
    /// Reserves a free port.
    pub fn keep() -> Self {
        Self::keep_on(Ipv4Addr::LOCALHOST.into(), TcpSocket::new_v4())
    }

    /// Reserves a free port of IPv6.
    pub fn keep_v6() -> Self {
        Self::keep_on(Ipv6Addr::LOCALHOST.into(), TcpSocket::new_v6())
    }

    fn keep_on(loopback: IpAddr, socket: io::Result<TcpSocket>) -> Self {
        let socket = socket.expect("a socket");
        // A later listener shares the port.
        socket.set_reuseaddr(true).expect("a port can be shared");
        socket.bind(SocketAddr::new(loopback, 0)).expect("loopback has a free port");
        let address = socket.local_addr().expect("a bound socket has an address");
        Self { address, _kept: socket }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Listens on the port until the listener is dropped.
    pub fn listen(&self) -> TcpListener {
        TcpListener::bind(self.address).expect("the port is ours")
    }
}
