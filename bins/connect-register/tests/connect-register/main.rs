//! The program as a whole: against a scripted agent that fails in every way,
//! and against a real Consul agent.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod bootstrap;
mod compare;
mod deregister;
mod page;
mod parity;
mod program;
mod real;
mod real_agent;
mod register;
mod scripted_agent;
mod sidecar;
mod status;
