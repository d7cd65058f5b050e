//! Envoy's admin interface.
//!
//! Source: Envoy's "Administration interface" page.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

#[derive(Clone, Copy, Debug)]
pub struct Envoy {
    admin: SocketAddr,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct About {
    /// `LIVE`, `PRE_INITIALIZING` (no configuration yet), `INITIALIZING` or `DRAINING`.
    pub state: String,
    /// The node that it is to its control plane.
    pub node: Node,
}

/// What an Envoy is to its control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Node {
    /// With Consul: the id of the proxy.
    pub id: String,
}

/// A certificate that Envoy shows to others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Leaf {
    /// The names that it is for; a Connect certificate has one URI.
    pub subject_alt_names: Vec<AltName>,
    /// Until when it is good, as RFC 3339 writes it.
    pub expiration_time: String,
    /// Whole days until then; a number or a text.
    pub days_until_expiration: serde_json::Value,
}

/// A name that a certificate is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AltName {
    /// The URI; empty: it is another kind of name.
    pub uri: String,
}

/// A request to Envoy that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("Envoy's admin listener at {0}: {1}")]
    Connect(SocketAddr, std::io::Error),
    #[error("Envoy's admin listener at {0}: {1}")]
    Http(SocketAddr, hyper::Error),
    #[error("Envoy's admin listener at {0}: unreadable answer: {1}")]
    Body(SocketAddr, Box<dyn std::error::Error + Send + Sync>),
    #[error("Envoy's admin listener at {0}: no answer within 5 s")]
    Timeout(SocketAddr),
    /// The answer is a refusal.
    #[error("Envoy answers {path} with status {status}: {body}")]
    Status { path: &'static str, status: u16, body: String },
}

/// Envoy answers from its main thread, which is never blocked for long.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The list of a large Envoy's connection gauges is far smaller.
const LARGEST_ANSWER: usize = 1 << 20;

// === impl Envoy ===

impl Envoy {
    /// The Envoy whose admin listener is there.
    pub fn at(admin: SocketAddr) -> Self {
        Self { admin }
    }

    /// Succeeds when Envoy has its listeners and takes traffic.
    pub async fn ready(self) -> Result<(), Error> {
        self.ask(Method::GET, "/ready").await.map(drop)
    }

    /// Whether Envoy has its stream to the agent.
    pub async fn is_connected(self) -> Result<bool, Error> {
        let path = "/stats?filter=^control_plane.connected_state$";
        let stats = self.ask(Method::GET, path).await?;
        Ok(stats.lines().any(|line| line.trim_end().ends_with("connected_state: 1")))
    }

    /// The names of Envoy's listeners, and how many updates of its configuration it
    /// rejected last.
    pub async fn listeners(self) -> Result<String, Error> {
        self.ask(Method::GET, "/listeners").await
    }

    /// How many updates of listeners or clusters Envoy has rejected, and took none since.
    pub async fn rejections(self) -> Result<String, Error> {
        self.ask(Method::GET, "/stats?filter=manager.[lc]ds.update_rejected$").await
    }

    pub async fn about(self) -> Result<About, Error> {
        self.document("/server_info").await
    }

    /// The certificates that it shows to others: Connect's leaf certificates.
    pub async fn leaves(self) -> Result<Vec<Leaf>, Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Certificates {
            certificates: Vec<Certificate>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Certificate {
            cert_chain: Vec<Leaf>,
        }
        let Certificates { certificates } = self.document("/certs").await?;
        // The first of a chain is the certificate itself.
        Ok(certificates.into_iter().filter_map(|each| each.cert_chain.into_iter().next()).collect())
    }

    async fn document<T: DeserializeOwned>(self, path: &'static str) -> Result<T, Error> {
        let text = self.ask(Method::GET, path).await?;
        serde_json::from_str(&text).map_err(|error| Error::Body(self.admin, error.into()))
    }

    /// Tells clients to go elsewhere, and closes no connection: inbound ones
    /// only, since the application may still need its upstreams. `skip_exit`
    /// keeps releases from 1.37 on from exiting; older ones ignore it.
    pub async fn drain_inbound(self) -> Result<(), Error> {
        self.ask(Method::POST, "/drain_listeners?inboundonly&graceful&skip_exit").await.map(drop)
    }

    /// The connections that applications and clients have open now; those to
    /// pages of Envoy's own, which are on these ports, do not count.
    pub async fn connections(self, pages: &[u16]) -> Result<u64, Error> {
        let stats = self.ask(Method::GET, "/stats?usedonly&filter=downstream_cx_active$").await?;
        Ok(count_connections(&stats, pages))
    }

    pub async fn quit(self) -> Result<(), Error> {
        self.ask(Method::POST, "/quitquitquit").await.map(drop)
    }

    async fn ask(self, method: Method, path: &'static str) -> Result<String, Error> {
        tokio::time::timeout(TIMEOUT, self.exchange(method, path))
            .await
            .unwrap_or(Err(Error::Timeout(self.admin)))
    }

    async fn exchange(self, method: Method, path: &'static str) -> Result<String, Error> {
        let admin = self.admin;
        let stream =
            TcpStream::connect(admin).await.map_err(|error| Error::Connect(admin, error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Error::Http(admin, error))?;
        // The request and its method and path are ours: they are well-formed.
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, admin.to_string())
            .body(Empty::<Bytes>::new())
            .expect("a request of fixed parts");
        let exchange = async {
            let response =
                sender.send_request(request).await.map_err(|error| Error::Http(admin, error))?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
            let body = body.map_err(|error| Error::Body(admin, error))?.to_bytes();
            let body = String::from_utf8_lossy(&body).trim().to_owned();
            if status == 200 { Ok(body) } else { Err(Error::Status { path, status, body }) }
        };
        // The connection moves the bytes; it ends with the exchange.
        tokio::select! {
            biased;
            answer = exchange => answer,
            Err(error) = connection => Err(Error::Http(admin, error)),
        }
    }
}

/// Sums the gauges `listener.<address>_<port>.downstream_cx_active`, but for the
/// admin listener's, the pages' and the per-worker ones.
fn count_connections(stats: &str, pages: &[u16]) -> u64 {
    stats
        .lines()
        .filter_map(|line| line.split_once(": "))
        .filter(|(name, _)| {
            name.strip_prefix("listener.")
                .and_then(|rest| rest.strip_suffix(".downstream_cx_active"))
                .is_some_and(|listener| {
                    let port = listener.rsplit('_').next().and_then(|port| port.parse().ok());
                    !listener.starts_with("admin")
                        && !listener.contains(".worker_")
                        && port.is_none_or(|port| !pages.contains(&port))
                })
        })
        .filter_map(|(_, count)| count.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_clients_have_open() {
        let stats = "http.admin.downstream_cx_active: 1\n\
                     listener.10.0.0.7_20000.downstream_cx_active: 2\n\
                     listener.10.0.0.7_20000.worker_0.downstream_cx_active: 2\n\
                     listener.127.0.0.1_1234.downstream_cx_active: 3\n\
                     listener.admin.downstream_cx_active: 1\n\
                     listener.admin.main_thread.downstream_cx_active: 1\n";
        assert_eq!(count_connections(stats, &[]), 5);
        assert_eq!(count_connections(stats, &[1234, 9]), 2);
        assert_eq!(count_connections("", &[]), 0);
        let ipv6 = "listener.[__]_20200.downstream_cx_active: 1\n";
        assert_eq!(count_connections(ipv6, &[]), 1);
        assert_eq!(count_connections(ipv6, &[20200]), 0);
    }
}
