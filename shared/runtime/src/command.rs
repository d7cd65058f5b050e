//! From `main` to the exit code.

use std::future::Future;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::exit::{Exit, Failure};
use crate::log::LogArgs;
use crate::signal::Signals;

/// Reads the command line.
///
/// # Errors
/// The code to exit with at once: 64 where a flag is wrong (clap has said which
/// on stderr), 0 after `--help` or `--version`.
pub fn parse<A: Parser>() -> Result<A, ExitCode> {
    A::try_parse().map_err(|error| {
        // Nothing can be done about a closed stdout or stderr.
        let _ = error.print();
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Done.into(),
            _ => Exit::Usage.into(),
        }
    })
}

/// Opens the log, takes over SIGTERM and SIGINT, runs `body` on this thread
/// and reports its failure.
pub fn start<F>(log: &LogArgs, body: impl FnOnce(Signals) -> F) -> ExitCode
where
    F: Future<Output = Result<ExitCode, Failure>>,
{
    log.init();
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            Failure::new(Exit::Failure, format_args!("cannot start the event loop: {error}"))
        })
        .and_then(|runtime| {
            let outcome = runtime.block_on(async { body(Signals::install()?).await });
            // A lookup of a host name that hangs must not hold up the exit.
            runtime.shutdown_background();
            outcome
        });
    outcome.unwrap_or_else(|failure| {
        log.report(&failure);
        failure.exit().into()
    })
}
