//! A volume in memory of a given size, as a kubelet makes one for an emptyDir.

use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::Result;

/// Mounts one for this thread, and for the processes that it starts from now
/// on. Nobody else sees it, and it is gone when they are.
///
/// # Errors
/// It can't be mounted: this takes root.
pub fn mount_in_memory(folder: &Path, kibibytes: u32) -> Result<()> {
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let options = format!("size={kibibytes}k,mode=0777");
    mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
    Ok(())
}
