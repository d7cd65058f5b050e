//! Runs the whole program against a scripted agent on real sockets. A shell process
//! replaces Envoy, and the test serves its admin interface; the end-to-end tests run the
//! real Envoy.
//!
//! - [`pod`]: a pod whose sidecar the test starts, stops and restarts
//! - [`envoy`]: the fake Envoy
//! - [`acl`]: login and logout
//! - [`keep`]: heartbeats, and registering again
//! - [`buried`]: no registration after the pod was deregistered
//! - [`deregister`]: the preStop hook
//! - [`end`]: how the sidecar shuts down
//! - [`merge`]: merged metrics
//! - [`dns`]: the pod's DNS, with scripted nameservers ([`nameserver`])
//! - [`child`]: forwarding signals, reaping orphans
//! - [`readiness`]: the application's readiness probe
//! - [`leaf`]: a certificate that is not renewed in time
//! - [`ready`]: whether the sidecar is ready
//! - [`relay`]: kubelet probes that can't go through Envoy
//! - [`roots`]: following the roots of Connect's CA
//! - [`stream`]: an xDS stream that the agent refuses
//! - [`virtual_address`]: following the service's virtual address
//! - [`wait`]: running a command while the proxy runs, for Jobs

#![expect(clippy::unwrap_used, reason = "in fixtures, too, a panic reports the failure")]

mod acl;
mod buried;
mod child;
mod deregister;
mod dns;
mod end;
mod envoy;
mod keep;
mod leaf;
mod merge;
mod nameserver;
mod pod;
mod readiness;
mod ready;
mod relay;
mod roots;
mod stream;
mod virtual_address;
mod wait;
