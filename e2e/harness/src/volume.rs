//! A volume in memory of a given size, as a kubelet makes one for an emptyDir.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::Result;

/// A volume in memory, until this is dropped.
#[derive(Debug)]
#[must_use = "it is gone when this is dropped"]
pub struct Volume(PathBuf);

/// Mounts one for this thread, and for the processes that it starts from now
/// on. Nobody else sees it.
///
/// # Errors
/// It can't be mounted: this takes root.
pub fn mount_in_memory(folder: &Path, kibibytes: u32) -> Result<Volume> {
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let options = format!("size={kibibytes}k,mode=0777");
    mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
    Ok(Volume(folder.to_owned()))
}

impl Volume {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // While it is mounted, its folder can't be removed.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
