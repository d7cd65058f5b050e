//! What `connect-init` leaves in the pod for `connect-lifecycle`, and how the
//! processes of a pod keep out of each other's way.
//!
//! - [`Handoff`]: the folder and its files
//! - [`record`]: the registration as it is written down, [`record::Record`]
//! - [`tombstone`](Handoff::bury): the registration was taken back for good
//! - [`lock`]: one process at a time registers or deregisters
//! - [`protocol`]: how a registration is made and taken back
//!
//! Two rules keep a registration from coming back after it was taken back:
//! every registration is made under the lock and only if there is no
//! tombstone; every deregistration writes the tombstone first and then takes
//! the lock, and so waits for a registration that is under way.
//!
//! Releases read each other's files: unknown fields are ignored, and a field is
//! never given another meaning.

pub mod lock;
pub mod protocol;
pub mod record;

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use runtime::file::{WriteError, write_whole};

pub use lock::Lock;
pub use record::Record;

/// The folder that the pod's injected containers share, if no flag names another.
pub const DEFAULT_DIR: &str = "/consul/connect-inject";

/// A registration's files in the folder that the pod's containers share.
#[derive(Clone, Debug)]
pub struct Handoff {
    dir: PathBuf,
}

// === impl Handoff ===

impl Handoff {
    /// The files in that folder.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// What was registered, and with whom.
    pub fn record(&self) -> PathBuf {
        self.dir.join("registration.json")
    }

    /// What Envoy starts from. It holds the ACL token.
    pub fn bootstrap(&self) -> PathBuf {
        self.dir.join("envoy-bootstrap.json")
    }

    /// The ACL token.
    pub fn token(&self) -> PathBuf {
        self.dir.join("acl-token")
    }

    /// The CA certificates of the agent.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("consul-ca.pem")
    }

    /// The lifecycle helper, for containers whose image lacks it.
    pub fn helper(&self) -> PathBuf {
        self.dir.join("connect-lifecycle")
    }

    fn tombstone(&self) -> PathBuf {
        self.dir.join("deregistered")
    }

    fn lock_file(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// Notes that the registration is taken back for good: from now on nobody
    /// makes it again. The note survives a crash.
    pub fn bury(&self) -> Result<(), WriteError> {
        write_whole(&self.tombstone(), 0o640, io::empty())
    }

    /// Whether the registration was taken back for good.
    pub fn is_buried(&self) -> bool {
        self.tombstone().exists()
    }

    /// Takes the note back: the container starts again, so its pod lives.
    pub fn unbury(&self) -> Result<(), WriteError> {
        remove(&self.tombstone())
    }
}

/// Removes a file so that it stays removed; one that is not there is fine.
fn remove(path: &Path) -> Result<(), WriteError> {
    let removed = match std::fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
        Ok(()) => path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all()),
    };
    removed.map_err(|source| WriteError { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tombstone_stands_until_it_is_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let handoff = Handoff::new(folder.path());
        assert!(!handoff.is_buried());
        handoff.unbury().unwrap();
        handoff.bury().unwrap();
        handoff.bury().unwrap();
        assert!(handoff.is_buried());
        handoff.unbury().unwrap();
        assert!(!handoff.is_buried());
    }
}
