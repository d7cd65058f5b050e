//! An in-memory volume of a given size, like an emptyDir with `medium: Memory`.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::Result;

/// An in-memory volume, unmounted on drop.
#[derive(Debug)]
#[must_use = "it is gone when this is dropped"]
pub struct Volume(PathBuf);

/// Mounts a volume for this thread and the processes that it starts afterwards. Other
/// processes don't see it.
///
/// # Errors
/// It can't be mounted: this requires root.
pub fn mount_in_memory(folder: &Path, kibibytes: u32) -> Result<Volume> {
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let options = format!("size={kibibytes}k,mode=0777");
    mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
    Ok(Volume(folder.to_owned()))
}

impl Volume {
    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // The directory can be removed only after the unmount.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
