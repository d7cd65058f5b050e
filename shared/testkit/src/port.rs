//! A port that stays reserved while nobody listens on it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;

use crate::PATIENCE;

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

    /// Listens on the port until the listener is dropped. Waits for an earlier listener: a
    /// process that another thread starts holds a copy of it until it executes its program,
    /// and accepts connections until then.
    pub fn listen(&self) -> TcpListener {
        let waiting = Instant::now();
        loop {
            let error = match TcpListener::bind(self.address) {
                Ok(listener) => return listener,
                Err(error) => error,
            };
            let may_pass = error.kind() == io::ErrorKind::AddrInUse;
            let address = self.address;
            assert!(
                may_pass && waiting.elapsed() < PATIENCE,
                "cannot listen on {address}: {error}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_listened_on_again_once_all_copies_of_its_listener_are_gone() {
        let port = Port::keep();
        let copy = port.listen().try_clone().unwrap();
        let refused = TcpListener::bind(port.address()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        std::thread::scope(|scope| {
            scope.spawn(|| drop(copy));
            assert_eq!(port.listen().local_addr().unwrap(), port.address());
        });
    }
}
