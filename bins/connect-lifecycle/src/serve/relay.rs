//! Runs probes of a transparent pod that the kubelet can't send through Envoy, such as a
//! TCP probe: Envoy accepts connections whatever the application does. The kubelet sends
//! an HTTP request here instead, and this process runs the probe over loopback.
//!
//! Everybody who can reach the pod can send such a request. The response says only
//! whether the probe succeeds; why it fails is in the log.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use runtime::{Exit, Failure};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::args::RelayArgs;
use crate::probe::Relayed;
use crate::serve::page::{question, write_all};
use crate::serve::places::{Place, Places};

/// The server of the probes.
#[derive(Debug)]
pub(crate) struct Relay {
    listener: TcpListener,
    probes: Vec<Relayed>,
    pod: IpAddr,
}

/// Maximum number of probes at once. A new request evicts the oldest, so that clients that
/// hold connections open can't lock the kubelet out.
const AT_ONCE: usize = 32;

/// How long a request may take to arrive; the kubelet sends it in one piece.
const QUESTION: Duration = Duration::from_secs(1);

// === impl Relay ===

impl Relay {
    /// Listens; `None` without `--probe-port`.
    pub(crate) async fn listen(args: RelayArgs, pod: &str) -> Result<Option<Self>, Failure> {
        let RelayArgs { probe_port, probe: probes } = args;
        let Some(port) = probe_port else { return Ok(None) };
        let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port.get());
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Failure::new(Exit::Failure, format_args!("cannot serve probes at {address}: {error}"))
                .hint("set --probe-port to a port that nothing in the pod uses")
        })?;
        let pod = pod.parse().unwrap_or(Ipv4Addr::LOCALHOST.into());
        Ok(Some(Self { listener, probes, pod }))
    }

    /// Serves until the process exits.
    pub(crate) async fn serve(self) {
        let relay = Arc::new(self);
        let places = Places::new(AT_ONCE);
        loop {
            let stream = match relay.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!("cannot accept a probe: {error}");
                    tokio::time::sleep(QUESTION).await;
                    continue;
                }
            };
            let (relay, place) = (Arc::clone(&relay), places.take());
            tokio::spawn(async move {
                if let Err(error) = relay.answer(&stream, place).await {
                    tracing::debug!("cannot answer a probe: {error}");
                }
            });
        }
    }

    async fn answer(&self, stream: &TcpStream, mut place: Place) -> io::Result<()> {
        let answered = async {
            let line = timeout(QUESTION, question(stream)).await??;
            let asked = |relayed: &&Relayed| line.strip_prefix("GET ") == Some(&relayed.path);
            let status = match self.probes.iter().find(asked) {
                None => "404 Not Found",
                Some(relayed) if relayed.succeeds(self.pod).await => "200 OK",
                Some(_) => "503 Service Unavailable",
            };
            let page =
                format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
            write_all(stream, page.as_bytes()).await
        };
        tokio::select! {
            biased;
            () = place.lost() => Err(io::Error::other("evicted by a new request")),
            answered = answered => answered,
        }
    }
}
