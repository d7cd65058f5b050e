//! Runs a probe of the application once, over loopback, as the kubelet would.
//!
//! - [`page`]: HTTP and HTTPS probes
//! - [`certificate`]: accepts any certificate
//! - [`grpc`]: gRPC probes
//! - [`relayed`]: a probe that the kubelet requests by a path
//!
//! Source: "Configure Liveness, Readiness and Startup Probes" of the Kubernetes
//! documentation.

mod certificate;
mod grpc;
mod page;
mod relayed;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use probe::{Action, Probe};
use tokio::net::TcpStream;

pub(crate) use relayed::Relayed;

/// Begins as the kubelet's user agent does, because log filters match that.
const USER_AGENT: &str = concat!("kube-probe/connect-lifecycle-", env!("CARGO_PKG_VERSION"));

/// Runs the probe. The error says how the application answered.
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

/// Connects to a port on loopback, over IPv4 or IPv6.
async fn connect(port: u16) -> Result<TcpStream, String> {
    let mut why = io::Error::from(io::ErrorKind::ConnectionRefused);
    for loopback in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let address = SocketAddr::new(loopback, port);
        match TcpStream::connect(address).await {
            // If the kernel picks the very port as the connection's source port, TCP
            // connects it to itself although nothing listens.
            Ok(stream) if stream.local_addr().ok() != Some(address) => return Ok(stream),
            // Without IPv6, the error of IPv4 says more.
            Err(error) if loopback.is_ipv4() => why = error,
            Ok(_) | Err(_) => {}
        }
    }
    Err(format!("cannot connect to 127.0.0.1:{port}: {why}"))
}
