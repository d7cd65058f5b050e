//! What `--output` chooses between, and how each form is written.

use clap::ValueEnum;
use runtime::{Failure, stdout};
use serde_json::Value;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Lines for people, as Consul's CLI prints them
    #[default]
    Text,
    /// For programs
    Json,
}

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
    let mut text = String::new();
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    stdout::write(text)
}

/// Writes a JSON document to stdout.
pub(crate) fn print_json(document: &Value) -> Result<(), Failure> {
    print([format!("{document:#}")])
}
