//! Standard output: data, and nothing else.

use std::io::{ErrorKind, Write};

use crate::{Exit, Failure};

/// Writes text or bytes. If the reader has closed its end, as `head` does, that is no
/// failure.
///
/// # Errors
/// Any other error of the write, such as a full disk.
pub fn write(data: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut stdout = std::io::stdout();
    match stdout.write_all(data.as_ref()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(|error| {
            Failure::new(Exit::CannotWrite, format_args!("cannot write standard output: {error}"))
        }),
    }
}
