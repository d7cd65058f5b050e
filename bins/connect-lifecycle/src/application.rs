//! Whether the application listens. It is looked at from inside the pod: an
//! application may listen on 127.0.0.1 only, where the agent can't see it.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use registration::check::Status;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// How often an application is looked at that does not listen yet: its start
/// is not to be held up.
const STARTING: Duration = Duration::from_millis(500);

/// How often an application is looked at that listens.
const LISTENING: Duration = Duration::from_secs(5);

/// After how long without a listener a warning is due: the port may be wrong.
const LATE: Duration = Duration::from_secs(10);

/// What is in the pod answers at once or not at all.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The application's port, and what is known of it.
#[derive(Debug)]
pub(crate) struct Application {
    port: u16,
    listens: bool,
    next_look: Instant,
    /// When to warn that nothing listens; none after that.
    late: Option<Instant>,
}

// === impl Application ===

impl Application {
    /// An application that does not listen yet.
    pub(crate) fn on(port: u16) -> Self {
        let now = Instant::now();
        Self { port, listens: false, next_look: now, late: Some(now + LATE) }
    }

    /// What its check is to say, and why.
    pub(crate) fn check(&self) -> (Status, String) {
        let port = self.port;
        if self.listens {
            (Status::Passing, format!("the application listens on port {port}"))
        } else {
            (Status::Critical, format!("nothing in the pod listens on port {port}"))
        }
    }

    /// Waits until that changes. It may be dropped and called again.
    pub(crate) async fn changed(&mut self) {
        loop {
            tokio::time::sleep_until(self.next_look).await;
            let listens = listens(self.port).await;
            self.next_look = Instant::now() + if listens { LISTENING } else { STARTING };
            if listens != self.listens {
                self.listens = listens;
                let (_, output) = self.check();
                tracing::info!(port = self.port, "{output}");
                return;
            }
            self.warn_if_late();
        }
    }

    /// Warns once: a wrong port is seen nowhere else in the log.
    fn warn_if_late(&mut self) {
        if self.listens || self.late.is_none_or(|late| Instant::now() < late) {
            return;
        }
        self.late = None;
        tracing::warn!(
            port = self.port,
            "nothing in the pod has listened on the service's port for {LATE:?}: Consul sends no \
             traffic; hint: if the application listens on another port, name that by the \
             annotation consul.hashicorp.com/connect-service-port"
        );
    }
}

/// Whether something on loopback takes connections on that port, by IPv4 or IPv6.
pub(crate) async fn listens(port: u16) -> bool {
    for address in [
        SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    ] {
        if takes_connections(address).await {
            return true;
        }
    }
    false
}

/// Whether something in the pod takes connections at that address.
pub(crate) async fn takes_connections(address: SocketAddr) -> bool {
    match tokio::time::timeout(TIMEOUT, TcpStream::connect(address)).await {
        // A port from which connections are made may be met by its own probe:
        // then nothing listens.
        Ok(Ok(stream)) => stream.local_addr().ok() != Some(address),
        Ok(Err(error)) => {
            if error.kind() != ErrorKind::ConnectionRefused {
                tracing::debug!(%address, %error, "cannot be looked at");
            }
            false
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn notices_that_the_application_listens_and_that_it_stops() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut application = Application::on(listener.local_addr().unwrap().port());
        assert_eq!(application.check().0, Status::Critical);
        application.changed().await;
        assert_eq!(application.check().0, Status::Passing);
        drop(listener);
        application.next_look = Instant::now();
        application.changed().await;
        assert_eq!(application.check().0, Status::Critical);
    }
}
