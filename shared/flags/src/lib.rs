//! Consul's flags and environment variables, the same for all binaries.
//!
//! - [`agent`]: which agent, and how to speak to it, [`AgentArgs`]
//! - [`bootstrap`]: the Envoy bootstrap of a proxy that the agent knows, [`BootstrapArgs`]

pub mod agent;
pub mod bootstrap;

pub use agent::AgentArgs;
pub use bootstrap::BootstrapArgs;
