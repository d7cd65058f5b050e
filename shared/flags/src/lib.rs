//! Consul's flags and environment variables, and exit codes, for all binaries.
//!
//! - [`agent`]: flags that name an agent, [`AgentArgs`]
//! - [`envoy`]: flags of Envoy's bootstrap, [`BootstrapArgs`]
//! - [`xds`]: where Envoy gets its configuration from
//! - [`bootstrap`]: the Envoy bootstrap of a registered proxy
//! - [`report`]: the exit code of a library's error, [`Report`]

pub mod agent;
pub mod bootstrap;
pub mod envoy;
pub mod report;
pub mod xds;

pub use agent::AgentArgs;
pub use envoy::BootstrapArgs;
pub use report::Report;
pub use xds::XdsServer;
