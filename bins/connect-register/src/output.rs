//! stdout: data, and nothing else.

use std::io::Write;

use runtime::{Exit, Failure};

/// Writes lines to stdout.
pub(crate) fn print(lines: impl IntoIterator<Item = String>) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    lines
        .into_iter()
        .try_for_each(|line| writeln!(stdout, "{line}"))
        .and_then(|()| stdout.flush())
        .map_err(|error| {
            Failure::new(Exit::CannotWrite, format_args!("cannot write to stdout: {error}"))
        })
}
