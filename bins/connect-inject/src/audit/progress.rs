//! Shows the progress of the audit, only on a terminal.

use std::io::{IsTerminal, Write as _};

/// A line on stderr with the number of objects read so far; erased on drop.
pub(super) struct Progress {
    is_shown: bool,
}

/// Number of objects after which the line is updated.
const STEP: usize = 100;

impl Progress {
    pub(super) fn start() -> Self {
        Self { is_shown: std::io::stderr().is_terminal() }
    }

    pub(super) fn at(&mut self, what: &str, count: usize) {
        if self.is_shown && count.is_multiple_of(STEP) {
            // A failure to show progress is harmless.
            let _ = write!(std::io::stderr(), "\r\x1b[Kread {count} {what}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
