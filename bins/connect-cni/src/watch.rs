//! Waits until a directory changes.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe::Receiver;

/// Reports changes of directories.
pub(crate) struct Watch {
    /// An inotify descriptor, which can be read like a pipe.
    events: Receiver,
}

// === impl Watch ===

impl Watch {
    /// Starts to watch.
    pub(crate) fn new(folders: &[&Path]) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // Not IN_CREATE and IN_MODIFY: files that are still being written.
        let changes = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE;
        for folder in folders {
            inotify.add_watch(*folder, changes)?;
        }
        let events = Receiver::from_file_unchecked(File::from(OwnedFd::from(inotify)))?;
        Ok(Self { events })
    }

    /// Waits for changes and discards them.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        self.events.readable().await?;
        let mut discarded = [0; 4096];
        loop {
            match self.events.try_read(&mut discarded) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}
