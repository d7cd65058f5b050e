//! The sidecar's own small servers.
//!
//! - [`merge`]: Envoy's and the application's metrics together
//! - [`relay`]: kubelet probes that can't go through Envoy
//! - [`page`]: reads requests and writes responses of those two
//! - [`dns`]: the pod's DNS, split between the agent and the pod's nameservers
//! - [`places`]: limits how many requests are handled at once

pub(crate) mod dns;
pub(crate) mod merge;
mod page;
mod places;
pub(crate) mod relay;
