//! Whether the application is ready: its readiness probe succeeds or, without a probe, it
//! listens on its port. The check runs inside the pod, because the agent can't reach an
//! application that listens on 127.0.0.1 only.

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

/// How often an application that listens is checked.
const LISTENING: Duration = Duration::from_secs(5);

/// How often a closed port is checked: the first request waits for this. Unlike a probe, a
/// connection costs next to nothing.
const OPENING: Duration = Duration::from_millis(50);

/// How long a port may be closed before it is checked less often. If it was never open, it may
/// be the wrong port, and a warning is logged.
const LATE: Duration = Duration::from_secs(10);

/// Short, because processes of the same pod answer at once or not at all.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The application and its last known state.
#[derive(Debug)]
pub(crate) struct Application {
    /// `None` until the first check.
    known: watch::Receiver<Option<Known>>,
    /// Checks in a task of its own, because whoever waits for a change may be cancelled
    /// during a check.
    looks: JoinHandle<()>,
}

#[derive(Clone, Debug)]
struct Known {
    is_ready: bool,
    why: String,
}

// === impl Application ===

impl Application {
    /// Starts to check an application with its probe or, without one, by connecting to its
    /// port.
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

    /// Status and output for the application's check; `None` before the first result.
    pub(crate) fn check(&mut self) -> Option<(Status, String)> {
        let Known { is_ready, why } = self.known.borrow_and_update().clone()?;
        Some((if is_ready { Status::Passing } else { Status::Critical }, why))
    }

    /// Waits until the status differs from what [`Self::check`] returned last. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        if self.known.changed().await.is_err() {
            // The task that checks has ended.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.looks.abort();
    }
}

/// Publishes a result. Only a new status wakes the keeper; a new output is sent with the
/// next heartbeat.
fn tell(known: &watch::Sender<Option<Known>>, is_ready: bool, why: String) {
    known.send_if_modified(|known| {
        let before = known.replace(Known { is_ready, why });
        before.is_none_or(|before| before.is_ready != is_ready)
    });
}

/// Runs the probe repeatedly.
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

/// Checks repeatedly whether a process listens on the port.
async fn follow_port(port: u16, known: &watch::Sender<Option<Known>>) {
    let mut closed = Instant::now();
    let mut before = None;
    // An application that has listened knows its port.
    let mut may_be_wrong = true;
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
        let pause = if listens {
            may_be_wrong = false;
            closed = Instant::now();
            LISTENING
        } else if closed.elapsed() < LATE {
            OPENING
        } else {
            if std::mem::take(&mut may_be_wrong) {
                warn_of_port(port);
            }
            STARTING
        };
        tokio::time::sleep(pause).await;
    }
}

fn said_of_port(port: u16, listens: bool) -> String {
    if listens {
        format!("the application listens on port {port}")
    } else {
        format!("nothing in the pod listens on port {port}")
    }
}

/// Nothing else in the log points to a wrong port.
fn warn_of_port(port: u16) {
    tracing::warn!(
        port,
        "nothing in the pod has listened on the service's port for {LATE:?}: Consul sends no \
         traffic; hint: if the application listens on another port, name it in the \
         annotation consul.hashicorp.com/connect-service-port"
    );
}

/// Whether a process accepts connections to that port on loopback, over IPv4 or IPv6.
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

/// Whether a process in the pod accepts connections at that address.
pub(crate) async fn takes_connections(address: SocketAddr) -> bool {
    match tokio::time::timeout(TIMEOUT, TcpStream::connect(address)).await {
        // If the kernel picks the very port as the connection's source port, TCP connects
        // it to itself although nothing listens.
        Ok(Ok(stream)) => stream.local_addr().ok() != Some(address),
        Ok(Err(error)) => {
            if error.kind() != ErrorKind::ConnectionRefused {
                tracing::debug!(%address, %error, "cannot connect");
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
    async fn an_application_passes_once_it_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut application = Application::on(port, None, Ipv4Addr::LOCALHOST.into());
        // No status before the first check.
        assert_eq!(application.check(), None);
        application.changed().await;
        assert_eq!(application.check().map(|(status, _)| status), Some(Status::Passing));
    }
}
