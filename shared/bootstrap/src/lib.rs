//! The bootstrap: the configuration that an Envoy sidecar starts with.
//!
//! It tells Envoy its identity, where its node's Consul agent serves xDS and with which
//! token, and which metrics to expose where. Everything else (listeners, clusters,
//! certificates) comes from the agent later.
//!
//! [`render`] is a pure function from [`Input`] to JSON: the caller resolves names,
//! reads files and looks up the token. The result is an Envoy
//! `config.bootstrap.v3.Bootstrap`, equivalent to that of `consul connect envoy
//! -bootstrap`, and Envoy accepts it without a warning.
//!
//! ```
//! use bootstrap::{Input, XdsAddress};
//!
//! let agent = XdsAddress::Tcp(([10, 0, 0, 1], 8502).into());
//! let input = Input::new("web-sidecar-proxy", "web", agent);
//! let document = bootstrap::render(&input, &|_variable| None)?;
//! assert_eq!(document["node"]["id"], "web-sidecar-proxy");
//! # Ok::<(), bootstrap::Error>(())
//! ```

mod document;
mod error;
mod input;

pub use document::ca::{ca_secret, watch_ca};
pub use document::render;
pub use document::token::{WATCHES_TOKEN, replace_token, token_secret, watch_token};
pub use error::Error;
pub use input::access_log::{AccessLogSink, AccessLogs};
pub use input::grpc_address::{GrpcAddress, GrpcAddressError};
pub use input::{
    Admin, ClientCertificate, Input, Prometheus, PrometheusCa, PrometheusTls, Proxy, Token, Xds,
    XdsAddress,
};

#[cfg(test)]
mod tests;
