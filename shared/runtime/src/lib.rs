//! What all binaries have in common.
//!
//! - [`command`]: from `main` to the exit code: flags, log, signals, report
//! - [`exit`]: exit codes, and [`Failure`], which carries one
//! - [`log`]: flags of the log
//! - [`signal`]: SIGTERM and SIGINT as futures
//! - [`stdout`]: standard output
//! - [`deadline`]: total time limits
//! - [`retry`]: retries with jitter, until the deadline
//! - [`file`]: atomic writes

pub mod command;
pub mod deadline;
pub mod exit;
pub mod file;
pub mod log;
pub mod retry;
pub mod signal;
pub mod stdout;

pub use command::{parse, parse_command, start, start_on};
pub use deadline::Deadline;
pub use exit::{Exit, Failure};
pub use log::{LogArgs, TerminationMessage};
pub use signal::Signals;
