//! What the component tests of the binaries share: a Consul agent on real
//! sockets that fails as it is told, and the process under test. For tests
//! only.
//!
//! - [`agent`]: the [`ScriptedAgent`], and what a test sees of it
//! - [`command_line`]: a command line held against its README, pages and completions
//! - [`fault`]: what goes wrong, where and how often
//! - [`model`]: what an agent without faults does, in memory
//! - [`port`]: a [`Port`] that nobody else gets while nobody listens on it
//! - [`process`]: the [`Process`] under test, while it runs
//! - [`reference`]: reference tables of Markdown files, generated from the code
//! - [`outcome`]: how one ended, [`Outcome`]
//! - [`skip`]: what a machine may lack, told or a failure
//! - `server`, `stream`: HTTP over TCP, TLS and unix sockets, cut where a fault says so
//!
//! Nothing here sleeps for a while and hopes: a test waits for a condition,
//! and fails with what it saw if that does not come within [`PATIENCE`].

use std::time::Duration;

pub mod agent;
pub mod command_line;
pub mod fault;
pub mod model;
pub mod outcome;
pub mod port;
pub mod process;
pub mod reference;
mod server;
pub mod skip;
mod stream;

pub use agent::{Request, ScriptedAgent};
pub use command_line::{agrees_with_its_pages, agrees_with_readme};
pub use fault::{Fault, Route, Times};
pub use outcome::Outcome;
pub use port::Port;
pub use process::Process;
pub use skip::or_skip;

/// How long a test waits for what must happen. It is never used up by a test
/// that passes, however slow the machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
