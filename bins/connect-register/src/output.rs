//! Standard output in the form that `--output` chooses.

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

/// Prints each line.
pub(crate) fn print(lines: impl IntoIterator<Item = String>) -> Result<(), Failure> {
    let mut text = String::new();
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    stdout::write(&text)
}

pub(crate) fn print_json(document: &Value) -> Result<(), Failure> {
    print([format!("{document:#}")])
}
