//! The lock for registering and deregistering.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use runtime::Deadline;
use runtime::file::WriteError;

use crate::Handoff;

/// The right to register or deregister. The kernel releases the lock however the
/// process ends.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error(transparent)]
    File(#[from] WriteError),
    /// Another process holds it.
    #[error("another process of the pod was still registering or deregistering after {0}")]
    Held(Deadline),
}

/// Interval at which a held lock is requested again. The kernel offers no event for it
/// that can be awaited beside others, and it is rarely held for longer than a request
/// to the agent.
const AGAIN: Duration = Duration::from_millis(10);

impl Handoff {
    /// Takes the lock, waiting until the deadline.
    pub async fn lock(&self, deadline: Deadline) -> Result<Lock, LockError> {
        let path = self.lock_file();
        let open = OpenOptions::new().create(true).append(true).mode(0o640).open(&path);
        let mut file = open.map_err(|source| WriteError { path: path.clone(), source })?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => return Ok(Lock { _file: file }),
                Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) => file = back,
                Err((_, errno)) => return Err(WriteError { path, source: errno.into() }.into()),
            }
            tokio::select! {
                biased;
                () = deadline.passed() => return Err(LockError::Held(deadline)),
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let handoff = Handoff::new(folder.path());
        let first = handoff.lock(Deadline::after(Duration::from_secs(5))).await.unwrap();
        let second = handoff.lock(Deadline::after(Duration::from_millis(30))).await;
        assert!(matches!(second, Err(LockError::Held(_))));
        drop(first);
        handoff.lock(Deadline::after(Duration::from_secs(5))).await.unwrap();
    }
}
