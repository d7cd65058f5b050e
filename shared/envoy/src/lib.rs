//! Client of Envoy's admin interface.
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
    /// Identity towards the control plane.
    pub node: Node,
}

/// Envoy's identity towards its control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Node {
    /// For Consul, the proxy's id.
    pub id: String,
}

/// A certificate that Envoy presents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Leaf {
    /// A Connect certificate has one URI.
    pub subject_alt_names: Vec<AltName>,
    /// In RFC 3339.
    pub valid_from: String,
    /// In RFC 3339.
    pub expiration_time: String,
    /// Whole days until expiry, as a number or a text.
    pub days_until_expiration: serde_json::Value,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AltName {
    /// Empty for another kind of name.
    pub uri: String,
}

/// A failed request to Envoy.
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
    /// A status other than 200.
    #[error("Envoy answers {path} with status {status}: {body}")]
    Status { path: &'static str, status: u16, body: String },
}

/// Envoy answers from its main thread, which never blocks for long.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Far larger than the list of connection gauges of a busy Envoy.
const LARGEST_ANSWER: usize = 1 << 20;

// === impl Envoy ===

impl Envoy {
    /// The Envoy with this admin listener.
    pub fn at(admin: SocketAddr) -> Self {
        Self { admin }
    }

    /// Succeeds when Envoy has its listeners and accepts traffic.
    pub async fn ready(self) -> Result<(), Error> {
        self.ask(Method::GET, "/ready").await.map(drop)
    }

    /// Whether Envoy has an xDS stream to the agent.
    ///
    /// Envoy counts a stream as connected from its start, also while it waits for a
    /// connection that never comes.
    pub async fn is_connected(self) -> Result<bool, Error> {
        let path = "/stats?filter=^(control_plane.connected_state|cluster.local_agent.upstream_rq_pending_active)$";
        let stats = self.ask(Method::GET, path).await?;
        let value = |name: &str| {
            let line = stats.lines().find_map(|line| line.trim_end().strip_prefix(name));
            line.and_then(|value| value.strip_prefix(": "))
        };
        Ok(value("control_plane.connected_state") == Some("1")
            && value("cluster.local_agent.upstream_rq_pending_active").unwrap_or("0") == "0")
    }

    /// The names of Envoy's listeners, and the number of consecutively rejected
    /// configuration updates.
    pub async fn listeners(self) -> Result<String, Error> {
        self.ask(Method::GET, "/listeners").await
    }

    /// How many updates of listeners or clusters Envoy has rejected since it last
    /// accepted one.
    pub async fn rejections(self) -> Result<String, Error> {
        self.ask(Method::GET, "/stats?filter=manager.[lc]ds.update_rejected$").await
    }

    pub async fn about(self) -> Result<About, Error> {
        self.document("/server_info").await
    }

    /// The certificates that Envoy presents: Connect's leaf certificates.
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
        // The first of a chain is the leaf.
        Ok(certificates.into_iter().filter_map(|each| each.cert_chain.into_iter().next()).collect())
    }

    async fn document<T: DeserializeOwned>(self, path: &'static str) -> Result<T, Error> {
        let text = self.ask(Method::GET, path).await?;
        serde_json::from_str(&text).map_err(|error| Error::Body(self.admin, error.into()))
    }

    /// Tells clients of inbound listeners to reconnect elsewhere, without closing
    /// connections. Outbound listeners go on, since the application may still need its
    /// upstreams. From 1.37 on, Envoy would exit without `skip_exit`; older releases
    /// ignore it.
    pub async fn drain_inbound(self) -> Result<(), Error> {
        self.ask(Method::POST, "/drain_listeners?inboundonly&graceful&skip_exit").await.map(drop)
    }

    /// Counts open connections of applications and clients, except those to Envoy's own
    /// endpoints on these ports.
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
        // Method and path are constants of ours, and well-formed.
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
        // The connection task transfers the bytes; it ends with the request.
        tokio::select! {
            biased;
            answer = exchange => answer,
            Err(error) = connection => Err(Error::Http(admin, error)),
        }
    }
}

/// Sums the gauges `listener.<address>_<port>.downstream_cx_active`, except those of
/// the admin listener, of the given ports and of single workers.
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
