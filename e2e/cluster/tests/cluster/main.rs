//! What only a real Kubernetes can show:
//! `scripts/cluster run cargo test --package cluster --test cluster`.

#![expect(clippy::unwrap_used, reason = "fixtures are tests, too: the panic is the report")]

mod acl;
mod admission;
mod agent;
mod document;
mod ends;
mod evictions;
mod helm;
mod injector;
mod ipv6;
mod keeper;
mod kills;
mod memory;
mod others;
mod pods;
mod probes;
mod restricted;
mod several;
mod sidecars;
mod support;
mod traffic;
