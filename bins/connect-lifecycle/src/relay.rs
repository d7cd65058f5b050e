//! The kubelet's probes of a transparent pod that can't go through Envoy, such as a
//! connection to a port: Envoy would take it whatever the application does. The kubelet
//! asks for a page here instead, and the probe is run over loopback.
//!
//! Everybody who reaches the pod may ask. All that they get is whether a probe succeeds:
//! why it fails is in the log.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use probe::{NotRun, Probe};
use runtime::{Exit, Failure};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::args::RelayArgs;
use crate::page::{question, write_all};
use crate::places::{Place, Places};
use crate::probe::look;

/// A probe, and the path of its page.
#[derive(Clone, Debug)]
pub(crate) struct Relayed {
    path: String,
    probe: Probe,
    /// Whether the log says that it fails.
    is_failing: Arc<AtomicBool>,
}

/// Pages with the results of probes.
#[derive(Debug)]
pub(crate) struct Relay {
    listener: TcpListener,
    probes: Vec<Relayed>,
    pod: IpAddr,
}

/// How many probes run at once; the oldest makes room, so that whoever holds
/// connections open keeps no kubelet away.
const AT_ONCE: usize = 32;

/// How long the question may take, which the kubelet asks in one piece.
const QUESTION: Duration = Duration::from_secs(1);

// === impl Relayed ===

impl FromStr for Relayed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || "expected /PATH=JSON".to_owned();
        let (path, probe) = text.split_once('=').ok_or_else(form)?;
        if !path.starts_with('/') {
            return Err(form());
        }
        let probe = probe.parse().map_err(|error: NotRun| error.to_string())?;
        Ok(Self { path: path.to_owned(), probe, is_failing: Arc::default() })
    }
}

impl Relayed {
    async fn succeeds(&self, pod: IpAddr) -> bool {
        let Self { path, probe, is_failing } = self;
        let result = look(probe, pod).await;
        let was_failing = is_failing.swap(result.is_err(), Ordering::Relaxed);
        let action = &probe.action;
        match &result {
            Ok(()) if was_failing => tracing::info!("the probe {path} ({action}) succeeds again"),
            Err(why) if !was_failing => tracing::info!("the probe {path} ({action}) fails: {why}"),
            Ok(()) | Err(_) => {}
        }
        result.is_ok()
    }
}

// === impl Relay ===

impl Relay {
    /// Listens, if there are probes.
    pub(crate) async fn listen(args: RelayArgs, pod: &str) -> Result<Option<Self>, Failure> {
        let RelayArgs { probe_port, probe: probes } = args;
        let Some(port) = probe_port else { return Ok(None) };
        let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port.get());
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Failure::new(Exit::Failure, format_args!("cannot serve probes at {address}: {error}"))
                .hint("let --probe-port be a port that nothing in the pod uses")
        })?;
        let pod = pod.parse().unwrap_or(Ipv4Addr::LOCALHOST.into());
        Ok(Some(Self { listener, probes, pod }))
    }

    /// Answers, for good.
    pub(crate) async fn serve(self) {
        let relay = Arc::new(self);
        let places = Places::new(AT_ONCE);
        loop {
            let stream = match relay.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!("a probe was not accepted: {error}");
                    tokio::time::sleep(QUESTION).await;
                    continue;
                }
            };
            let (relay, place) = (Arc::clone(&relay), places.take());
            tokio::spawn(async move {
                if let Err(error) = relay.answer(&stream, place).await {
                    tracing::debug!("a probe was not answered: {error}");
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
            () = place.lost() => Err(io::Error::other("another one needs its place")),
            answered = answered => answered,
        }
    }
}
