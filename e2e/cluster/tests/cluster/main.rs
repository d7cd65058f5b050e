//! What only a real Kubernetes can show:
//! `scripts/cluster run cargo test --package cluster --test cluster`.

#![expect(clippy::unwrap_used, reason = "fixtures are tests, too: the panic is the report")]

mod admission;
/// Tests that disturb the agent or the injector, which all others need. They come
/// early, as tests are started by their names: each waits for those that run.
mod alone {
    mod agent;
    mod audit;
    mod injector;
}
/// Tests of clusters that they start themselves.
mod clusters {
    mod ipv6;
    mod keeper;
}
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
