//! Copies connect-lifecycle, by far the largest file, into the directory while the pod
//! is being registered. Writability is checked first.

use std::fs::File;
use std::path::{Path, PathBuf};

use handoff::Handoff;
use runtime::file::Begun;
use runtime::{Exit, Failure};
use tokio::sync::watch;

/// The connect-lifecycle program that comes with this one.
pub(crate) struct Helper(File);

/// A copy in progress.
pub(crate) struct Installing(watch::Receiver<Option<Result<(), Failure>>>);

/// Its name, in the directory of this program.
const NAME: &str = "connect-lifecycle";

// === impl Helper ===

impl Helper {
    /// Opens the given file, or the program beside this one.
    pub(crate) fn find(path: Option<PathBuf>) -> Result<Self, Failure> {
        let path = path.map_or_else(beside_this_program, Ok)?;
        let file = File::open(&path).map_err(|error| {
            Failure::usage(format_args!(
                "cannot read connect-lifecycle at {}: {error}",
                path.display()
            ))
            .hint("name connect-lifecycle with --helper")
        })?;
        Ok(Self(file))
    }

    /// Starts copying in a thread.
    ///
    /// # Errors
    /// The directory can't be written to.
    pub(crate) fn install(self, handoff: &Handoff) -> Result<Installing, Failure> {
        let begun = Begun::new(&handoff.helper())?;
        let (end, installing) = watch::channel(None);
        tokio::task::spawn_blocking(move || {
            end.send_replace(Some(begun.finish(0o555, self.0).map_err(Failure::from)));
        });
        Ok(Installing(installing))
    }
}

// === impl Installing ===

impl Installing {
    /// Waits for the copy.
    pub(crate) async fn done(&self) -> Result<(), Failure> {
        let mut end = self.0.clone();
        let end = end.wait_for(Option::is_some).await;
        // The thread reports its result before it ends.
        end.expect("the thread has ended well").clone().expect("it was waited for")
    }
}

fn beside_this_program() -> Result<PathBuf, Failure> {
    let program = std::env::current_exe().map_err(|error| {
        Failure::new(Exit::Failure, format_args!("cannot tell where this program is: {error}"))
            .hint("name connect-lifecycle with --helper")
    })?;
    Ok(program.parent().unwrap_or(Path::new("/")).join(NAME))
}
