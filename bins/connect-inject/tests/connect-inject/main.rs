//! Tests of the real binary, over real sockets and pipes.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod audit;
mod harness;
mod inject;
mod kubernetes;
mod load;
mod offline;
mod self_managed;
mod serve;
mod shutdown;
