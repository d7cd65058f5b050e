//! The whole program against a scripted agent on real sockets. A process that
//! does nothing stands for Envoy, and the test for its admin interface; the
//! real one is in the end-to-end tests.
//!
//! - [`pod`]: a pod whose sidecar is run, stopped and started again
//! - [`envoy`]: what stands for Envoy
//! - [`acl`]: the token: given back at the end, had anew when it is gone
//! - [`keep`]: the registration, kept true while the pod lives
//! - [`buried`]: the registration, never made again after it was taken back
//! - [`deregister`]: the preStop hook
//! - [`end`]: the end of the sidecar: asked for, or Envoy's own
//! - [`merge`]: Envoy's and the application's metrics on one page
//! - [`dns`]: the pod's DNS, by scripted nameservers ([`nameserver`])
//! - [`child`]: signals passed on, orphans reaped
//! - [`readiness`]: the application's readiness probe
//! - [`ready`]: whether Envoy is ready
//! - [`stream`]: whether Envoy has its configuration from the agent
//! - [`wait`]: a command that runs while the proxy does, for Jobs

#![expect(clippy::unwrap_used, reason = "fixtures are tests, too: the panic is the report")]

mod acl;
mod buried;
mod child;
mod deregister;
mod dns;
mod end;
mod envoy;
mod keep;
mod merge;
mod nameserver;
mod pod;
mod readiness;
mod ready;
mod relay;
mod stream;
mod virtual_address;
mod wait;
