//! The one place that builds an HTTP client.

use std::time::Duration;

use reqwest::Client;
use reqwest::redirect::Policy;

use crate::address::Address;
use crate::error::SetupError;
use crate::tls::{NameCheck, TlsFiles};

/// How long a connection may take to be made. The agent is on the same node.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// When an idle connection is probed for the first time, and then how often. The
/// kernel does it: a process that waits for a blocking query sleeps on. Without
/// it, a connection whose other end is gone (the agent's pod was replaced behind
/// a hostPort) is only noticed when a request times out.
const KEEPALIVE: Duration = Duration::from_secs(3);

/// After how many unanswered probes a connection is given up.
const PROBES: u32 = 2;

/// How long what was sent may go unacknowledged by the other end's kernel.
const UNACKNOWLEDGED: Duration = Duration::from_secs(6);

pub(crate) fn client(address: &Address, tls: &TlsFiles) -> Result<Client, SetupError> {
    // The configuration is handed over ready-made, for three reasons: the system's
    // certificates are not parsed (an image from scratch has none, which would be
    // an error), no provider has to be installed for the whole process, and the
    // name that the certificate must have can differ from the address.
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
