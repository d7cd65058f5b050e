//! Whether the application is ready: its own readiness probe says so, or else that
//! it listens. It is looked at from inside the pod: an application may listen on
//! 127.0.0.1 only, where the agent can't see it.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ::probe::{Health, Probe, STARTING};
use registration::check::Status;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::probe;

/// How often an application is looked at that listens.
const LISTENING: Duration = Duration::from_secs(5);

/// After how long without a listener a warning is due: the port may be wrong.
const LATE: Duration = Duration::from_secs(10);

/// What is in the pod answers at once or not at all.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The application, and what is known of it.
#[derive(Debug)]
pub(crate) struct Application {
    /// None until it was looked at.
    known: watch::Receiver<Option<Known>>,
    /// Looks by itself: who waits for a change may stop waiting in the midst of a look.
    looks: JoinHandle<()>,
}

#[derive(Clone, Debug)]
struct Known {
    is_ready: bool,
    why: String,
}

// === impl Application ===

impl Application {
    /// An application that is not known to be ready yet: with a probe, it is asked by
    /// that, else whether it listens on its port.
    pub(crate) fn on(port: u16, probe: Option<Probe>, pod: IpAddr) -> Self {
        let unanswered = probe.as_ref().map(|probe| Known {
            is_ready: false,
            why: format!("the readiness probe ({}) has no answer yet", probe.action),
        });
        let (tell, known) = watch::channel(unanswered);
        let looks = tokio::spawn(async move {
            match probe {
                Some(probe) => follow_probe(&probe, pod, &tell).await,
                None => follow_port(port, &tell).await,
            }
        });
        Self { known, looks }
    }

    /// What its check is to say, and why; none before it was looked at.
    pub(crate) fn check(&mut self) -> Option<(Status, String)> {
        let Known { is_ready, why } = self.known.borrow_and_update().clone()?;
        Some((if is_ready { Status::Passing } else { Status::Critical }, why))
    }

    /// Waits until its status is another than [`Self::check`] returned last. It may be
    /// dropped and called again.
    pub(crate) async fn changed(&mut self) {
        if self.known.changed().await.is_err() {
            // Nobody looks any more.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.looks.abort();
    }
}

/// Passes on what was seen. Who waits is woken by another status only; other words go
/// out with the next renewal.
fn tell(known: &watch::Sender<Option<Known>>, is_ready: bool, why: String) {
    known.send_if_modified(|known| {
        let before = known.replace(Known { is_ready, why });
        before.is_none_or(|before| before.is_ready != is_ready)
    });
}

/// Asks the probe again and again.
async fn follow_probe(probe: &Probe, pod: IpAddr, known: &watch::Sender<Option<Known>>) {
    let action = &probe.action;
    let mut health = Health::new(probe);
    tokio::time::sleep(probe.initial_delay).await;
    loop {
        let asked = Instant::now();
        let answer = probe::look(probe, pod).await;
        let changed = health.count(answer.is_ok());
        let is_ready = health.is_ready();
        if changed || !is_ready {
            let why = match (&answer, is_ready) {
                (_, true) => format!("the readiness probe ({action}) succeeds"),
                (Err(why), false) => format!("the readiness probe ({action}) fails: {why}"),
                (Ok(()), false) => {
                    format!("the readiness probe ({action}) has not succeeded often enough yet")
                }
            };
            if changed {
                tracing::info!(port = action.port(), "{why}");
            }
            tell(known, is_ready, why);
        } else if let Err(why) = answer {
            tracing::debug!("the readiness probe ({action}) fails: {why}");
        }
        tokio::time::sleep_until(asked + health.pause()).await;
    }
}

/// Looks again and again whether somebody listens.
async fn follow_port(port: u16, known: &watch::Sender<Option<Known>>) {
    let mut late = Some(Instant::now() + LATE);
    let mut before = None;
    loop {
        let listens = listens(port).await;
        if before != Some(listens) {
            let why = said_of_port(port, listens);
            if listens || before.is_some() {
                tracing::info!(port, "{why}");
            }
            tell(known, listens, why);
            before = Some(listens);
        }
        if !listens && late.is_some_and(|late| Instant::now() >= late) {
            late = None;
            warn_of_port(port);
        }
        tokio::time::sleep(if listens { LISTENING } else { STARTING }).await;
    }
}

fn said_of_port(port: u16, listens: bool) -> String {
    if listens {
        format!("the application listens on port {port}")
    } else {
        format!("nothing in the pod listens on port {port}")
    }
}

/// A wrong port is seen nowhere else in the log.
fn warn_of_port(port: u16) {
    tracing::warn!(
        port,
        "nothing in the pod has listened on the service's port for {LATE:?}: Consul sends no \
         traffic; hint: if the application listens on another port, name that by the \
         annotation consul.hashicorp.com/connect-service-port"
    );
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
    async fn notices_that_the_application_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut application = Application::on(port, None, Ipv4Addr::LOCALHOST.into());
        // Nothing is said before anyone looked.
        assert_eq!(application.check(), None);
        application.changed().await;
        assert_eq!(application.check().map(|(status, _)| status), Some(Status::Passing));
    }
}
