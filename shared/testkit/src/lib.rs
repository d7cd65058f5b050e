//! For component tests of the binaries: a Consul agent on real sockets with scripted
//! faults, and the process under test.
//!
//! - [`agent`]: the [`ScriptedAgent`], and what tests observe of it
//! - [`command_line`]: compares a command line with its README, pages and completions
//! - [`fault`]: what goes wrong, where and how often
//! - [`model`]: an agent without faults, in memory
//! - [`port`]: a [`Port`] that is reserved while nobody listens on it
//! - [`process`]: the [`Process`] under test, while it runs
//! - [`reference`]: reference tables of Markdown files, generated from the code
//! - [`request`]: a [`Request`] to the scripted agent
//! - [`outcome`]: the [`Outcome`] of a process
//! - [`skip`]: skips a test, or fails in CI, where the machine lacks something
//!
//! Nothing here sleeps for a fixed time: a test waits for a condition, and fails with
//! what it saw if that takes longer than [`PATIENCE`].

use std::time::Duration;

pub mod agent;
pub mod command_line;
pub mod fault;
pub mod model;
pub mod outcome;
pub mod port;
pub mod process;
pub mod reference;
pub mod request;
pub mod skip;

pub use agent::ScriptedAgent;
pub use command_line::{agrees_with_its_pages, agrees_with_readme};
pub use fault::{Fault, Route, Times};
pub use outcome::Outcome;
pub use port::Port;
pub use process::Process;
pub use request::Request;
pub use skip::{or_skip, part};

/// How long a test waits for what must happen. It is never used up by a test
/// that passes, however slow the machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
