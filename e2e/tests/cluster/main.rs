//! What only a real Kubernetes can show:
//! `scripts/cluster run cargo test --package e2e --test cluster`.

mod acl;
mod admission;
mod agent;
mod document;
mod ends;
mod injector;
mod kills;
mod others;
mod several;
mod support;
mod traffic;
