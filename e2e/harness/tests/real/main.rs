//! The tests on the real parts: Consul with its own xDS, Envoy, and pods made of
//! network namespaces. One behaviour a file.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "fixtures are tests, too: the panic is the report, and so are the figures"
)]

mod acl;
mod agent;
mod demo;
mod full;
mod injected;
mod job;
mod kill;
mod many;
mod memory;
mod metrics;
mod stop;
