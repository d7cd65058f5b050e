//! A memory limit: a cgroup of version 1 or 2, which is removed on drop.
//!
//! Sources: the kernel's "Control Group v2" and "Memory Resource Controller"
//! (v1) documents.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Result, until};

/// A cgroup with limited memory and without swap.
#[derive(Debug)]
pub struct MemoryLimit {
    folder: PathBuf,
    names: &'static Names,
}

/// File names of a cgroup version.
#[derive(Debug)]
struct Names {
    limit: &'static str,
    swap: &'static str,
    /// Whether that limit includes memory and swap.
    swap_has_memory: bool,
    peak: &'static str,
}

static V1: Names = Names {
    limit: "memory.limit_in_bytes",
    swap: "memory.memsw.limit_in_bytes",
    swap_has_memory: true,
    peak: "memory.max_usage_in_bytes",
};
static V2: Names = Names {
    limit: "memory.max",
    swap: "memory.swap.max",
    swap_has_memory: false,
    peak: "memory.peak",
};

// === impl MemoryLimit ===

impl MemoryLimit {
    /// Creates the cgroup.
    ///
    /// # Errors
    /// It can't be created: this requires root and a writable hierarchy.
    pub fn new(bytes: u64) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("connect-e2e-{}-{number}", std::process::id());
        let mut problems = Vec::new();
        for (parent, names) in parents()? {
            let limit = Self { folder: parent.join(&name), names };
            match limit.make(&parent, bytes) {
                Ok(()) => return Ok(limit),
                Err(error) => problems.push(format!("{}: {error}", parent.display())),
            }
        }
        Err(format!("cannot make a cgroup with a memory limit: {}", problems.join("; ")).into())
    }

    fn make(&self, parent: &Path, bytes: u64) -> Result<()> {
        fs::create_dir(&self.folder)?;
        if !self.folder.join(self.names.limit).exists() {
            put(&parent.join("cgroup.subtree_control"), "+memory")?;
        }
        put(&self.folder.join(self.names.limit), &bytes.to_string())?;
        // Without swap, all memory in use counts.
        let swap = if self.names.swap_has_memory { bytes } else { 0 };
        let _ = put(&self.folder.join(self.names.swap), &swap.to_string());
        fs::read(self.folder.join(self.names.peak))?;
        Ok(())
    }

    /// The file to which a process writes to join.
    pub fn entrance(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }

    /// Peak memory so far, in bytes.
    ///
    /// # Errors
    /// It can't be read.
    pub fn peak(&self) -> Result<u64> {
        Ok(fs::read_to_string(self.folder.join(self.names.peak))?.trim().parse()?)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // The last process in it may still be exiting.
        let _ = until("the end of the cgroup", || {
            !self.folder.exists() || fs::remove_dir(&self.folder).is_ok()
        });
    }
}

/// Where to try to create a memory cgroup: beside our own, in it, and at the root.
fn parents() -> Result<Vec<(PathBuf, &'static Names)>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let mut parents = Vec::new();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, mount, kind, options, ..] = fields[..] else { continue };
        let mount = Path::new(mount);
        let (names, ours) = match kind {
            "cgroup" if options.split(',').any(|option| option == "memory") => (&V1, ":memory:"),
            "cgroup2" if controllers(mount).contains("memory") => (&V2, "0::"),
            _ => continue,
        };
        let path = own.lines().find_map(|line| line.split_once(ours).map(|(_, path)| path));
        let ours = mount.join(path.unwrap_or("/").trim_start_matches('/'));
        parents
            .extend(ours.parent().filter(|parent| parent.starts_with(mount)).map(Path::to_owned));
        parents.push(ours);
        parents.push(mount.to_owned());
        return Ok(parents.into_iter().map(|parent| (parent, names)).collect());
    }
    Err("no cgroup hierarchy for memory is mounted".into())
}

fn controllers(mount: &Path) -> String {
    fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default()
}

fn put(file: &Path, text: &str) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .open(file)
        .map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(file.write_all(text.as_bytes())?)
}
