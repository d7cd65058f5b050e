//! Standard output: data, never log lines.

use std::io::{ErrorKind, Write};

use crate::{Exit, Failure};

/// Writes text or bytes. A closed pipe is not an error: a reader such as `head` has
/// seen enough.
///
/// # Errors
/// The write failed, for instance because the disk is full.
pub fn write(data: &(impl AsRef<[u8]> + ?Sized)) -> Result<(), Failure> {
    let mut stdout = std::io::stdout();
    match stdout.write_all(data.as_ref()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(|error| {
            Failure::new(Exit::CannotWrite, format_args!("cannot write standard output: {error}"))
        }),
    }
}
