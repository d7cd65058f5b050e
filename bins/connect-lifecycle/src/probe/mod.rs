//! The application's readiness probe, run over loopback: one look.
//!
//! - [`page`]: a page over HTTP or HTTPS
//! - [`certificate`]: any certificate will do
//! - [`grpc`]: the health service of gRPC
//!
//! Source: "Configure Liveness, Readiness and Startup Probes" of the Kubernetes
//! documentation.

mod certificate;
mod grpc;
mod page;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use probe::{Action, Probe};
use tokio::net::TcpStream;

/// What the kubelet calls itself begins with this; filters of logs know it.
const USER_AGENT: &str = concat!("kube-probe/connect-lifecycle-", env!("CARGO_PKG_VERSION"));

/// Asks once. The error says how the application answered.
pub(crate) async fn look(probe: &Probe, pod: IpAddr) -> Result<(), String> {
    let asked = async {
        match &probe.action {
            Action::Http(page) => page::ask(page, pod, probe.timeout).await,
            Action::Tcp { port } => connect(*port).await.map(drop),
            Action::Grpc { port, service } => {
                grpc::ask(connect(*port).await?, SocketAddr::new(pod, *port), service).await
            }
        }
    };
    match tokio::time::timeout(probe.timeout, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {:?}", probe.timeout)),
    }
}

/// Connects to a port of loopback, by IPv4 or IPv6.
async fn connect(port: u16) -> Result<TcpStream, String> {
    let mut why = io::Error::from(io::ErrorKind::ConnectionRefused);
    for loopback in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let address = SocketAddr::new(loopback, port);
        match TcpStream::connect(address).await {
            // A port from which connections are made may be met by its own probe:
            // then nothing listens.
            Ok(stream) if stream.local_addr().ok() != Some(address) => return Ok(stream),
            // Where there is no IPv6, the first error says more.
            Err(error) if loopback.is_ipv4() => why = error,
            Ok(_) | Err(_) => {}
        }
    }
    Err(format!("cannot connect to 127.0.0.1:{port}: {why}"))
}
