//! The node's Consul agent over HTTP; the only crate that talks to Consul.
//!
//! - [`acl`]: its ACLs: tokens by login
//! - [`address`]: where the agent listens
//! - [`agent`]: what is asked of it
//! - [`answer`]: what it answers
//! - [`catalog`]: what the servers know of all nodes
//! - [`envoy_version`]: whether an Envoy is one that it knows
//! - [`grpc`]: where it serves xDS
//! - [`tls`]: what its certificate is checked against
//! - [`token`]: the ACL token, in a file
//! - [`error`]: why it did not, by cause, with what to do; exit codes are chosen
//!   by whoever reports it
//!
//! Nothing here tries again: callers decide, by [`Error::is_transient`].

pub mod acl;
pub mod address;
pub mod agent;
pub mod answer;
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
