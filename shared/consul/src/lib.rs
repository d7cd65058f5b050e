//! The node's Consul agent over HTTP; the only crate that talks to Consul.
//!
//! - [`args`]: the flags by which an agent is named, as Consul's CLI has them
//! - [`acl`]: its ACLs: tokens by login
//! - [`address`]: where the agent listens
//! - [`agent`]: what is asked of it
//! - [`answer`]: what it answers
//! - [`diagnosis`]: the doctor: whether it can serve sidecars
//! - [`envoy_version`]: whether an Envoy is one that it knows
//! - [`bootstrap`]: the Envoy bootstrap of a proxy that it knows
//! - [`error`]: why it did not, by cause, with what to do
//!
//! Nothing here tries again: callers decide, by [`Error::is_transient`].

pub mod acl;
pub mod address;
pub mod agent;
pub mod answer;
pub mod args;
pub mod bootstrap;
pub mod diagnosis;
pub mod envoy_version;
pub mod error;
mod http;

pub use address::Address;
pub use agent::{Agent, Config};
pub use args::AgentArgs;
pub use bootstrap::BootstrapArgs;
pub use error::Error;
pub use http::TlsFiles;
