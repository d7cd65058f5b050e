//! Standard output: data, and nothing else.

use std::io::{ErrorKind, Write};

use crate::{Exit, Failure};

/// Writes a text. A reader that has closed its end, such as `head`, has seen enough.
///
/// # Errors
/// It can't be written.
pub fn write(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(|error| {
            Failure::new(Exit::CannotWrite, format_args!("cannot write standard output: {error}"))
        }),
    }
}
