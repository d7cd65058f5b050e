//! Tests with the real parts: Consul with its own xDS, Envoy, and pods made of network
//! namespaces. One topic per file.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "fixtures are tests, too: the panic is the report, and so are the figures"
)]

mod acl;
mod agent;
mod bare;
mod demo;
mod dns;
mod faults;
mod full;
mod gateways;
mod injected;
mod intentions;
mod leader;
mod machine;
mod many;
mod memory;
mod mesh;
mod operations;
mod protocols;
mod rejected;
mod status;
mod stop;
mod tls;
mod token_ends;
mod tokens;
mod transparent;
