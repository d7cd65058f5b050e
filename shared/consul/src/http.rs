//! Builds the HTTP client.

use std::time::Duration;

use reqwest::Client;
use reqwest::redirect::Policy;

use crate::address::Address;
use crate::error::SetupError;
use crate::tls::{NameCheck, TlsFiles};

/// Time limit of connecting. The agent is on the same node.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Idle time before the first TCP keepalive probe, and between probes. The kernel sends
/// them, so that a process that waits for a blocking query sleeps on. Without them, a
/// connection whose other end disappeared (the agent's pod was replaced behind a
/// hostPort) is only noticed when a request times out.
const KEEPALIVE: Duration = Duration::from_secs(3);

/// Unanswered probes after which the connection is given up.
const PROBES: u32 = 2;

/// How long sent data may stay unacknowledged by the other end's kernel.
const UNACKNOWLEDGED: Duration = Duration::from_secs(6);

pub(crate) fn client(address: &Address, tls: &TlsFiles) -> Result<Client, SetupError> {
    // The TLS configuration is passed ready-made, for three reasons: system
    // certificates are not parsed (an image from scratch has none, which would be an
    // error), no provider has to be installed for the whole process, and the name in
    // the certificate may differ from the address.
    let mut builder = Client::builder()
        .tls_backend_preconfigured(tls.client_config(NameCheck::Required)?)
        .user_agent(concat!("connect-sidecar/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_keepalive(KEEPALIVE)
        .tcp_keepalive_interval(KEEPALIVE)
        .tcp_keepalive_retries(PROBES)
        .tcp_user_timeout(UNACKNOWLEDGED)
        .redirect(Policy::none())
        .tls_info(true)
        .no_proxy();
    if let Address::Unix(socket) = address {
        builder = builder.unix_socket(socket.as_path());
    }
    Ok(builder.build()?)
}
