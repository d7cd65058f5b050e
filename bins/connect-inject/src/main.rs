//! The injector: a mutating admission webhook that adds a Connect sidecar to
//! pods that ask for it, and the same code offline.
//!
//! A review or a document goes one way through it: [`admission`] or
//! [`documents`] → [`verdict`], which asks [`decision`] whether a pod is
//! injected, [`plan`] what is injected, and [`edit`] to do it → [`patch`].

mod admission;
mod annotation;
mod args;
mod decision;
mod denial;
mod documents;
mod edit;
mod names;
mod patch;
mod plan;
mod pod;
mod policy;
mod quantity;
mod reason;
mod serve;
mod shape;
mod sidecar;
mod undo;
mod unsupported;
mod verdict;
mod words;

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
        Command::Serve(args) => runtime::start(&log, |signals| serve::run(*args, signals)),
        Command::Inject(args) => offline(&log, || documents::inject(args)),
        Command::Uninject(args) => offline(&log, || documents::uninject(&args)),
        Command::Explain(args) => offline(&log, || documents::explain(args)),
    }
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
