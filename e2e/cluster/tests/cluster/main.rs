//! Tests that need a real Kubernetes:
//! `scripts/cluster run cargo test --package cluster --test cluster`.

#![expect(clippy::unwrap_used, reason = "fixtures are tests, too: the panic is the report")]

mod admission;
/// Tests that disturb the agent or the injector, which all others need. Each waits for the
/// tests that are running; their name makes them start early.
mod alone {
    mod agent;
    mod audit;
    mod injector;
}
/// Tests that start their own clusters.
mod clusters {
    mod ipv6;
    mod keeper;
}
mod cni;
mod ends;
mod evictions;
mod examples;
mod helm;
mod kills;
mod logins;
mod memory;
mod others;
mod pods;
mod probes;
mod restricted;
mod several;
mod sidecars;
mod support;
mod traffic;
mod transparent;
mod tutorial;
