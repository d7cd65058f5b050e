//! Files that `connect-init` leaves in the pod for `connect-lifecycle`, and the lock
//! between the processes of a pod.
//!
//! - [`Handoff`]: the directory and its files
//! - [`record`]: the record of the registration, [`record::Record`]
//! - [`tombstone`](Handoff::bury): the registration is deregistered for good
//! - [`lock`]: one process at a time registers or deregisters
//!
//! Two rules prevent a registration after the pod has deregistered: every registration
//! is made under the lock and only if there is no tombstone; every deregistration
//! writes the tombstone first and then takes the lock, and so waits for a registration
//! in flight.
//!
//! Releases read each other's files: unknown fields are ignored, and a field never
//! changes its meaning.

pub mod lock;
pub mod record;

use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use runtime::file::{WriteError, write_whole};
use serde_json::Value;

pub use lock::Lock;
pub use record::{Login, Record};

/// Default of the directory that the pod's injected containers share.
pub const DEFAULT_DIR: &str = "/consul/connect-inject";

/// A state that a sidecar has reached, and that is not checked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Milestone {
    /// It has been ready since its container started.
    Ready,
    /// It has been in service since its container started: Consul would send it
    /// traffic.
    InService,
    /// The servers have listed it as healthy since its registration.
    Listed,
    /// `connect-init` has tried to register it.
    Tried,
}

/// The files of a registration in the directory that the pod's containers share. Each
/// service of the pod has its own; files that all services need exist once.
#[derive(Clone, Debug)]
pub struct Handoff {
    dir: PathBuf,
    /// Distinguishes a further service's files from those of the first.
    suffix: String,
}

// === impl Handoff ===

impl Handoff {
    /// The files of the pod's first service.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), suffix: String::new() }
    }

    /// The files of a further service of the pod.
    pub fn of_further(dir: impl Into<PathBuf>, service: &str) -> Self {
        Self { dir: dir.into(), suffix: format!("-{service}") }
    }

    /// The record of the registration and its agent.
    pub fn record(&self) -> PathBuf {
        self.own("registration", ".json")
    }

    /// Envoy's bootstrap. It may contain the ACL token.
    pub fn bootstrap(&self) -> PathBuf {
        self.own("envoy-bootstrap", ".json")
    }

    pub fn token(&self) -> PathBuf {
        self.own("acl-token", "")
    }

    /// Removes the ACL token's file, if it exists.
    pub fn remove_token(&self) -> Result<(), WriteError> {
        remove(&self.token())
    }

    /// The ACL token in the form that Envoy watches.
    pub fn envoy_token(&self) -> PathBuf {
        self.own("envoy-acl-token", ".json")
    }

    /// Whether Envoy reads its token from a file rather than from the bootstrap.
    pub fn has_envoy_token(&self) -> bool {
        self.envoy_token().exists()
    }

    pub fn write_envoy_token(&self, document: &Value) -> Result<(), WriteError> {
        write_whole(&self.envoy_token(), 0o600, format!("{document}\n").as_bytes())
    }

    /// Removes the token file that Envoy watches: the bootstrap contains the token.
    pub fn remove_envoy_token(&self) -> Result<(), WriteError> {
        remove(&self.envoy_token())
    }

    /// Whether the sidecar has reached a milestone.
    pub fn has_reached(&self, milestone: Milestone) -> bool {
        self.milestone(milestone).exists()
    }

    /// Records that the sidecar has reached a milestone.
    pub fn note(&self, milestone: Milestone) -> Result<(), WriteError> {
        write_whole(&self.milestone(milestone), 0o600, io::empty())
    }

    /// Forgets a milestone.
    pub fn forget(&self, milestone: Milestone) -> Result<(), WriteError> {
        remove(&self.milestone(milestone))
    }

    fn milestone(&self, milestone: Milestone) -> PathBuf {
        let stem = match milestone {
            Milestone::Ready => "ready",
            Milestone::InService => "in-service",
            Milestone::Listed => "listed",
            Milestone::Tried => "tried",
        };
        self.own(stem, "")
    }

    /// Why Envoy gets no configuration although the agent answers, if that is so.
    pub fn cut_off(&self) -> Option<String> {
        std::fs::read_to_string(self.own("cut-off", "")).ok()
    }

    /// Records why Envoy gets no configuration, or that it does.
    pub fn note_cut_off(&self, why: Option<&str>) -> Result<(), WriteError> {
        let path = self.own("cut-off", "");
        match why {
            Some(why) => write_whole(&path, 0o600, why.as_bytes()),
            None => remove(&path),
        }
    }

    /// The address by which transparent clients know the service, if `connect-lifecycle`
    /// found another than the record has.
    pub fn virtual_address(&self) -> Option<Ipv4Addr> {
        std::fs::read_to_string(self.own("virtual-address", "")).ok()?.parse().ok()
    }

    /// Notes that address, or that the record's counts.
    pub fn note_virtual_address(&self, address: Option<Ipv4Addr>) -> Result<(), WriteError> {
        let path = self.own("virtual-address", "");
        match address {
            Some(address) => write_whole(&path, 0o600, address.to_string().as_bytes()),
            None => remove(&path),
        }
    }

    /// When the tombstone was written, if it was.
    pub fn buried_at(&self) -> Option<SystemTime> {
        std::fs::metadata(self.tombstone()).and_then(|file| file.modified()).ok()
    }

    fn tombstone(&self) -> PathBuf {
        self.own("deregistered", "")
    }

    /// The file of the lock for registering and deregistering.
    pub fn lock_file(&self) -> PathBuf {
        self.own("lock", "")
    }

    fn own(&self, stem: &str, extension: &str) -> PathBuf {
        self.dir.join(format!("{stem}{}{extension}", self.suffix))
    }

    pub fn ca(&self) -> PathBuf {
        self.dir.join("consul-ca.pem")
    }

    /// The directory with the roots of Connect's CA, where agents have their certificates
    /// from it.
    pub fn roots(&self) -> PathBuf {
        self.dir.join("connect-roots")
    }

    /// Writes the roots of Connect's CA, in PEM.
    pub fn write_roots(&self, pem: &str) -> Result<(), WriteError> {
        let folder = self.roots();
        std::fs::create_dir_all(&folder)
            .map_err(|source| WriteError { path: folder.clone(), source })?;
        write_whole(&folder.join("roots.pem"), 0o640, pem.as_bytes())
    }

    /// The CA certificates of the agent as Envoy reads them, and reads them again when
    /// they change.
    pub fn envoy_ca(&self) -> PathBuf {
        self.dir.join("envoy-agent-ca.json")
    }

    /// Writes the CA certificates of the agent as Envoy reads them.
    pub fn write_envoy_ca(&self, document: &Value) -> Result<(), WriteError> {
        write_whole(&self.envoy_ca(), 0o640, format!("{document}\n").as_bytes())
    }

    /// The client certificate for the agent.
    pub fn client_cert(&self) -> PathBuf {
        self.dir.join("client-cert.pem")
    }

    pub fn client_key(&self) -> PathBuf {
        self.dir.join("client-key.pem")
    }

    /// User and password for HTTP basic authentication with the agent.
    pub fn http_auth(&self) -> PathBuf {
        self.dir.join("http-auth")
    }

    /// A copy of `connect-lifecycle`, for containers whose image lacks it.
    pub fn helper(&self) -> PathBuf {
        self.dir.join("connect-lifecycle")
    }

    pub fn write_bootstrap(&self, document: &Value) -> Result<(), WriteError> {
        // It may contain the ACL token.
        write_whole(&self.bootstrap(), 0o600, format!("{document:#}\n").as_bytes())
    }

    /// Removes temporary files of a process that was killed. Call it before any other
    /// process of the pod writes.
    pub fn sweep(&self) -> Result<(), WriteError> {
        let unreadable = |source| WriteError { path: self.dir.clone(), source };
        for entry in std::fs::read_dir(&self.dir).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if runtime::file::is_half_written(&path) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Writes the tombstone: from now on, no process of the pod registers. It survives
    /// a crash.
    pub fn bury(&self) -> Result<(), WriteError> {
        if self.tombstone().is_file() {
            return Ok(()); // the first sign counts
        }
        write_whole(&self.tombstone(), 0o640, io::empty())
    }

    /// Whether there is a tombstone.
    pub fn is_buried(&self) -> bool {
        self.tombstone().exists()
    }

    /// Removes the tombstone: the container starts again, so its pod lives.
    pub fn unbury(&self) -> Result<(), WriteError> {
        remove(&self.tombstone())
    }
}

/// Removes a file durably, if it exists.
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
    fn each_service_of_a_pod_has_its_own_files() {
        let first = Handoff::new("/d");
        let further = Handoff::of_further("/d", "web-admin");
        for (path, name) in [
            (first.record(), "registration.json"),
            (first.token(), "acl-token"),
            (further.record(), "registration-web-admin.json"),
            (further.bootstrap(), "envoy-bootstrap-web-admin.json"),
            (further.token(), "acl-token-web-admin"),
            (further.tombstone(), "deregistered-web-admin"),
            (further.lock_file(), "lock-web-admin"),
            (further.ca(), "consul-ca.pem"),
        ] {
            assert_eq!(path, Path::new("/d").join(name));
        }
    }

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
