//! A small container runtime: own namespaces for mounts, processes and IPC, the pod's
//! network namespace, a root of read-only mounts, and a user.
//!
//! The runtime is the binary `pod-runtime`. It needs no daemon and leaves nothing behind:
//! when it ends, the kernel removes its namespaces.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, chdir, pivot_root, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};

/// A container to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// An empty directory on which to build the container's root.
    pub root: PathBuf,
    /// Mounts in the root.
    pub mounts: Vec<Mount>,
    /// Symbolic links in the root: link, then target.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Whether everything but the writable mounts is read-only.
    pub read_only_root: bool,
    /// The network namespace to join, as a file.
    pub network: PathBuf,
    /// Program and arguments.
    pub command: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    pub uid: u32,
    pub gid: u32,
    /// A file that the runtime writes right before the program starts.
    pub started: PathBuf,
    /// The file to which to write to join a cgroup, if any.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
}

/// A file or directory of the host in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Path on the host.
    pub source: PathBuf,
    /// Path in the container.
    pub target: PathBuf,
    pub writable: bool,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Runs a container and returns its program's exit code. The program is process 1 of its PID
/// namespace, so none of its children outlives it.
///
/// # Errors
/// A namespace can't be created: this requires root.
pub fn run(spec: &Path) -> Result<ExitCode> {
    die_with_parent()?;
    let Spec { network, .. } = read(spec)?;
    setns(File::open(&network)?, CloneFlags::CLONE_NEWNET)?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )?;
    let status = Command::new("/proc/self/exe").arg("enter").arg(spec).status()?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Builds the container's root and executes its program. Called in the namespaces that
/// [`run`] created.
///
/// # Errors
/// A mount fails, or the program can't be started.
pub fn enter(spec: &Path) -> Result<ExitCode> {
    let spec = read(spec)?;
    // Before the root changes.
    let mut started = OpenOptions::new().create(true).append(true).open(&spec.started)?;
    let cgroup = spec.cgroup.as_ref().map(|file| OpenOptions::new().write(true).open(file));
    build_root(&spec)?;
    let [program, args @ ..] = spec.command.as_slice() else {
        return Err("the container has no command".into());
    };
    if let Some(file) = cgroup {
        // 0 means the process that writes it.
        file?.write_all(b"0\n")?;
    }
    setgroups(&[])?;
    let (uid, gid) = (Uid::from_raw(spec.uid), Gid::from_raw(spec.gid));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    prctl::set_no_new_privs()?;
    // Only now, because a change of user resets it.
    die_with_parent()?;
    started.write_all(b"started\n")?;
    let error = Command::new(program).args(args).env_clear().envs(&spec.env).exec();
    Err(format!("cannot start `{program}`: {error}").into())
}

/// Holds a network namespace until stdin closes: a pod's sandbox.
///
/// # Errors
/// The namespace can't be created: this requires root.
pub fn sandbox() -> Result<ExitCode> {
    die_with_parent()?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let mut out = std::io::stdout();
    out.write_all(b"ready\n")?;
    out.flush()?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(ExitCode::SUCCESS)
}

fn read(spec: &Path) -> Result<Spec> {
    Ok(serde_json::from_slice(&fs::read(spec)?)?)
}

fn die_with_parent() -> Result<()> {
    Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)
}

fn build_root(spec: &Spec) -> Result<()> {
    let none: Option<&str> = None;
    let root = spec.root.as_path();
    // Keep these mounts out of the host's mount namespace.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("tmpfs"), root, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))?;
    for folder in ["proc", "dev", "tmp"] {
        fs::create_dir(root.join(folder))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    mount(Some("proc"), &root.join("proc"), Some("proc"), MsFlags::empty(), none)?;
    let devices = ["null", "zero", "random", "urandom"].map(|name| Path::new("/dev").join(name));
    let devices = devices.map(|path| Mount { source: path.clone(), target: path, writable: true });
    for each in devices.iter().chain(&spec.mounts) {
        bind(root, each)
            .map_err(|error| format!("cannot mount {}: {error}", each.target.display()))?;
    }
    for (link, target) in &spec.links {
        symlink(target, inside(root, link))?;
    }
    let old = root.join(".old");
    fs::create_dir(&old)?;
    pivot_root(root, &old)?;
    chdir("/")?;
    umount2("/.old", MntFlags::MNT_DETACH)?;
    fs::remove_dir("/.old")?;
    if spec.read_only_root {
        mount(none, "/", none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY, none)?;
    }
    Ok(())
}

fn bind(root: &Path, what: &Mount) -> Result<()> {
    let none: Option<&str> = None;
    let target = inside(root, &what.target);
    if what.source.is_dir() {
        fs::create_dir_all(&target)?;
    } else {
        fs::create_dir_all(target.parent().unwrap_or(root))?;
        File::create(&target)?;
    }
    mount(Some(&what.source), &target, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    if !what.writable {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(none, &target, none, flags, none)?;
    }
    Ok(())
}

fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}
