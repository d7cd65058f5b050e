//! The real binary, over real sockets and pipes.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod harness;
mod inject;
mod offline;
mod serve;
mod shutdown;
