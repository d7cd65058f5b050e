//! What every binary does alike.
//!
//! - [`command`]: from `main` to the exit code: flags, log, signals, report
//! - [`exit`]: the exit codes, and [`Failure`], which carries one
//! - [`log`]: the flags of the log
//! - [`signal`]: SIGTERM and SIGINT, as something to await
//! - [`stdout`]: data, for programs and people
//! - [`deadline`]: how long the whole may take
//! - [`retry`]: trying again, with jitter, until the deadline
//! - [`reference`]: a README, held against the command line
//! - [`file`]: files that a reader sees whole or not at all

pub mod command;
pub mod deadline;
pub mod exit;
pub mod file;
pub mod log;
pub mod reference;
pub mod retry;
pub mod signal;
pub mod stdout;

pub use command::{parse, parse_command, start};
pub use deadline::Deadline;
pub use exit::{Exit, Failure};
pub use log::{LogArgs, TerminationMessage};
pub use signal::Signals;
