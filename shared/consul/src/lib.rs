//! Client of a Consul agent's HTTP API; the only crate that talks to Consul.
//!
//! - [`acl`]: login, logout, and reading the own token
//! - [`address`]: the agent's HTTP address
//! - [`agent`]: requests to the agent
//! - [`answer`]: answers of the agent
//! - [`blocking`]: blocking queries and their pace
//! - [`catalog`]: the servers' view of all nodes
//! - [`envoy_version`]: whether the agent supports a release of Envoy
//! - [`grpc`]: where the agent serves xDS
//! - [`tls`]: TLS files, and how the agent's certificate is verified
//! - [`token`]: the ACL token in a file
//! - [`error`]: errors by cause, each with a hint; binaries choose the exit codes
//!
//! Nothing here retries: callers decide, by [`Error::is_transient`].

pub mod acl;
pub mod address;
pub mod agent;
pub mod answer;
pub mod blocking;
pub mod catalog;
pub mod envoy_version;
pub mod error;
pub mod grpc;
mod http;
pub mod tls;
pub mod token;

pub use address::Address;
pub use agent::{Agent, Config};
pub use error::{Error, SetupError};
pub use tls::TlsFiles;
