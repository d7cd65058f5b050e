//! An xDS v3 server that stands where a newer agent's gRPC port would be.
//!
//! Today's Envoy speaks only xDS v3, and the agent that tests run against only
//! v2. This server makes up the difference and nothing else: certificates, roots,
//! endpoints, intentions and the proxy's registration all come from the real
//! agent's HTTP API, and it follows them as they change.
//!
//! Data flows one way: [`agent`] asks, [`snapshot`] folds the answers,
//! [`resources()`](resources::resources) makes Envoy's resources of them,
//! [`delta`] decides what to send, [`stream`] sends it.

pub mod agent;
pub mod delta;
pub mod resources;
pub mod snapshot;
pub mod stream;

use std::future::Future;
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};

/// An Envoy whose network has gone without a word is noticed after this time.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Why the server can't serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent can't be asked.
    #[error(transparent)]
    Agent(#[from] agent::Error),
    /// The certificate or key is no good, or the socket broke.
    #[error("gRPC server: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves xDS on `listener` for the proxies of `agent`, an address such as
/// `http://127.0.0.1:8500`, until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    agent: String,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    run(Server::builder(), listener, &agent, shutdown).await
}

/// The same over TLS, with a certificate and key in PEM.
pub async fn serve_tls(
    listener: TcpListener,
    agent: String,
    identity: Identity,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let server = Server::builder().tls_config(ServerTlsConfig::new().identity(identity))?;
    run(server, listener, &agent, shutdown).await
}

async fn run(
    server: Server,
    listener: TcpListener,
    agent: &str,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let streams = CancellationToken::new();
    let ads = stream::Ads { agent: agent::Agent::new(agent)?, shutdown: streams.clone() };
    let shutdown = async {
        shutdown.await;
        // A graceful end waits for all streams, and those don't end by themselves.
        streams.cancel();
    };
    server
        .http2_keepalive_interval(Some(KEEPALIVE))
        .add_service(AggregatedDiscoveryServiceServer::new(ads))
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            shutdown,
        )
        .await?;
    Ok(())
}
