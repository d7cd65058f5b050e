//! stdout: data, and nothing else.

use std::io::Write;

use clap::ValueEnum;
use runtime::{Exit, Failure};
use serde_json::Value;

/// In which form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Lines for people, as Consul's CLI prints them
    #[default]
    Text,
    /// For programs
    Json,
}

/// In which form, of what has rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rows {
    /// A table for people
    #[default]
    Table,
    /// For programs
    Json,
}

/// Writes lines to stdout.
pub(crate) fn print(lines: impl IntoIterator<Item = String>) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    lines
        .into_iter()
        .try_for_each(|line| writeln!(stdout, "{line}"))
        .and_then(|()| stdout.flush())
        .map_err(|error| cannot_write(&error))
}

/// Writes a JSON document to stdout.
pub(crate) fn print_json(document: &Value) -> Result<(), Failure> {
    print([format!("{document:#}")])
}

/// Writes what is a document already.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| cannot_write(&error))
}

fn cannot_write(error: &std::io::Error) -> Failure {
    Failure::new(Exit::CannotWrite, format_args!("cannot write to stdout: {error}"))
}
