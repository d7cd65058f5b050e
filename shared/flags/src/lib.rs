//! Consul's flags and environment variables, and exit codes, the same for all
//! binaries.
//!
//! - [`agent`]: which agent, and how to speak to it, [`AgentArgs`]
//! - [`xds`]: where Envoy gets its configuration from
//! - [`bootstrap`]: the Envoy bootstrap of a proxy that the agent knows, [`BootstrapArgs`]
//! - [`report`]: how a binary ends with an error of a library, [`Report`]

pub mod agent;
pub mod bootstrap;
pub mod report;
pub mod xds;

pub use agent::AgentArgs;
pub use bootstrap::BootstrapArgs;
pub use report::Report;
pub use xds::XdsServer;
