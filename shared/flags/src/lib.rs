//! Consul's flags and environment variables, the same for all binaries.
//!
//! - [`agent`]: which agent, and how to speak to it, [`AgentArgs`]
//! - [`xds`]: where Envoy gets its configuration from
//! - [`bootstrap`]: the Envoy bootstrap of a proxy that the agent knows, [`BootstrapArgs`]

pub mod agent;
pub mod bootstrap;
pub mod xds;

pub use agent::AgentArgs;
pub use bootstrap::BootstrapArgs;
pub use xds::XdsServer;
