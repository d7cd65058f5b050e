//! How far it has come, on a terminal only.

use std::io::{IsTerminal, Write as _};

/// A line on stderr that counts what was read; gone when it is dropped.
pub(super) struct Progress {
    is_shown: bool,
}

/// After how many objects it is written anew.
const STEP: usize = 100;

impl Progress {
    pub(super) fn start() -> Self {
        Self { is_shown: std::io::stderr().is_terminal() }
    }

    pub(super) fn at(&mut self, what: &str, count: usize) {
        if self.is_shown && count.is_multiple_of(STEP) {
            // Nobody misses it.
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
