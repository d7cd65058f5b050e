//! The injector: a mutating admission webhook that adds a Connect sidecar to
//! pods that ask for it, and the same code offline.
//!
//! The road of a pod: [`serve`] or [`documents`] → [`judge`] → [`inject`] →
//! [`plan`] → [`outcome`], [`pod`] → [`policy`], [`json`] → [`names`],
//! [`annotation`]. No module imports one above it.

mod annotation;
mod args;
mod documents;
mod inject;
mod json;
mod judge;
mod names;
mod outcome;
mod plan;
mod pod;
mod policy;
mod serve;
mod values;
mod yaml;

use std::process::ExitCode;

use args::{Args, Command};
use mimalloc::MiMalloc;
use runtime::{Failure, LogArgs};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let Args { log, command } = match args::parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    match command {
        Command::Serve(args) => {
            runtime::start(&log, async |signals| serve::run(args.settings().await?, signals).await)
        }
        Command::Inject(args) => offline(&log, || documents::inject(args.settings_to_write()?)),
        Command::Uninject(args) => offline(&log, || documents::uninject(&args.files)),
        Command::Explain(args) => offline(&log, || documents::explain(args.settings()?)),
    }
}

/// How many cases a property is tried with: `PROPTEST_CASES`, or so many.
#[cfg(test)]
fn cases(usual: u32) -> u32 {
    let is_told = std::env::var_os("PROPTEST_CASES").is_some();
    if is_told { proptest::test_runner::Config::default().cases } else { usual }
}

/// Without the event loop: it would take over SIGINT, which is to end a program
/// that waits for its standard input.
fn offline(log: &LogArgs, body: impl FnOnce() -> Result<ExitCode, Failure>) -> ExitCode {
    log.init();
    body().unwrap_or_else(|failure| {
        log.report(&failure);
        failure.exit().into()
    })
}
