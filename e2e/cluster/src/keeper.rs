//! The cluster from outside: its namespaces are made, and nothing of it is
//! left, however it ends.
//!
//! Four processes stand in a row. The *keeper* makes the namespaces; its end is
//! the cluster's. The *sweeper* waits for that end and takes away what the
//! kernel does not: control groups and the cluster's folder. *Init* is process 1
//! in there, and buries the dead. Its child, the *node*, runs the programs.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::network::Family;
use crate::node::{Node, Settings};
use crate::parts::Parts;
use crate::{mesh, write};
use harness::process::tail;
use harness::{Result, until};

/// How long a cluster may take to come up: many times what it takes.
const START: Duration = Duration::from_secs(300);

/// What `up` says to the keeper when the cluster is to stay.
const STAY: &[u8] = b"stay";

/// A cluster that this process keeps.
struct Kept {
    folder: PathBuf,
    namespaces: Child,
    sweeper: Child,
}

/// Starts a cluster of its own for a command, and ends as the command does.
///
/// # Errors
/// The cluster did not come up, or the command can't be started.
pub fn run(command: &[String]) -> Result<ExitCode> {
    let kept = Kept::start(&format!("run-{}", std::process::id()))?;
    let [program, args @ ..] = command else { return Err("there is no command".into()) };
    let bin = kept.folder.join("bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([bin].into_iter().chain(std::env::split_paths(&path)))?;
    // If this process is killed, the command is told to end.
    let status = Command::new("setpriv")
        .args(["--pdeathsig", "TERM", "--", program])
        .args(args)
        .env("KUBECONFIG", kept.folder.join("kubeconfig"))
        .env("PATH", path)
        .status()
        .map_err(|error| format!("cannot start {program}: {error}"))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// Starts a cluster that stays, unless it is there already, and returns how it
/// is reached: as assignments for a shell.
///
/// # Errors
/// It did not come up.
pub fn up(name: &str) -> Result<String> {
    let folder = folder_of(name);
    if !folder.join("ready").exists() {
        let log = tempfile::tempfile()?;
        // In a group of its own: it stays when this terminal goes. Until the
        // cluster is up, it ends with this process, which holds its input.
        let mut keeper = Command::new(std::env::current_exe()?)
            .args(["keep", name])
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            .process_group(0)
            .spawn()?;
        while !folder.join("ready").exists() {
            if let Some(status) = keeper.try_wait()? {
                let mut said = String::new();
                let mut log = log;
                std::io::Seek::rewind(&mut log)?;
                log.read_to_string(&mut said)?;
                return Err(format!("the cluster ended early: {status}\n{said}").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        if let Some(mut input) = keeper.stdin.take() {
            input.write_all(STAY)?;
        }
    }
    Ok(format!(
        "export KUBECONFIG='{}' PATH='{}':\"$PATH\"\n",
        folder.join("kubeconfig").display(),
        folder.join("bin").display()
    ))
}

/// Keeps a cluster until this process is ended, or nobody wants it to stay: its
/// input ends without [`STAY`].
///
/// # Errors
/// It did not come up, or ended by itself.
pub fn keep(name: &str) -> Result<()> {
    std::thread::spawn(|| {
        let mut said = Vec::new();
        let read = std::io::stdin().read_to_end(&mut said);
        if read.is_err() || said != STAY {
            // As if it were told to by anybody.
            let _ = kill(Pid::this(), Signal::SIGTERM);
        }
    });
    let mut kept = Kept::start(name)?;
    let status = kept.namespaces.wait()?;
    let log = fs::read_to_string(kept.folder.join("node.log")).unwrap_or_default();
    Err(format!("the cluster ended: {status}\n{}", tail(&log, 40)).into())
}

/// Ends a cluster that stayed, and waits until nothing of it is left.
///
/// # Errors
/// There is none of that name.
pub fn down(name: &str) -> Result<()> {
    let folder = folder_of(name);
    let pid = fs::read_to_string(folder.join("pid"))
        .map_err(|_| format!("there is no cluster `{name}`"))?;
    // It may be gone already, and its sweeper at work.
    let _ = kill(Pid::from_raw(pid.trim().parse()?), Signal::SIGTERM);
    until(&format!("the end of the cluster `{name}`"), || !folder.exists())
}

/// What remains of a cluster when its keeper has ended: called before it begins,
/// and waits for that by an input that the keeper holds.
///
/// # Errors
/// Something can't be taken away.
pub fn sweep(name: &str) -> Result<()> {
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    until("the end of all processes of the cluster", || {
        // They end when the kernel comes to it, and make groups until then.
        let mut left = processes_of(name);
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            remove_groups(&hierarchy.path().join(cgroup_of(name)), &mut left);
        }
        left.is_empty()
    })?;
    Ok(fs::remove_dir_all(folder_of(name))?)
}

/// Process 1 of a cluster: starts the node, buries what else ends, and ends
/// with it.
///
/// # Errors
/// The node can't be started.
pub fn init(name: &str) -> Result<ExitCode> {
    // Its input is the door, which it passes on.
    let node = Command::new("/proc/self/exe").args(["node", name]).spawn()?;
    let node = Pid::from_raw(node.id().cast_signed());
    loop {
        match waitpid(None, None)? {
            WaitStatus::Exited(pid, code) if pid == node => {
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
            }
            WaitStatus::Signaled(pid, _, _) if pid == node => return Ok(ExitCode::FAILURE),
            _ => {}
        }
    }
}

/// The node: starts all programs, installs the mesh, and watches.
///
/// # Errors
/// Something did not come up, or ended.
pub fn node(name: &str, family: Family) -> Result<()> {
    let parts = Parts::find()?;
    let folder = folder_of(name);
    let door = TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let settings = Settings { folder: folder.clone(), cgroup: cgroup_of(name), door, family };
    let node = Node::start(&parts, settings)?;
    fs::create_dir(folder.join("bin"))?;
    std::os::unix::fs::symlink(parts.kubernetes("kubectl"), folder.join("bin/kubectl"))?;
    mesh::install(&parts.kubernetes("kubectl"), &node.kubeconfig, family)?;
    write(&folder.join("ready"), "")?;
    node.watch()
}

// === impl Kept ===

impl Kept {
    /// Starts a cluster, and waits until everything in it is ready.
    fn start(name: &str) -> Result<Self> {
        // What is missing is said before anything is made.
        Parts::find()?;
        let folder = folder_of(name);
        fs::create_dir(&folder).map_err(|error| {
            format!("cannot make {}: {error}; is there a cluster `{name}`?", folder.display())
        })?;
        // In a group of its own: what a terminal sends does not reach it.
        let sweeper = Command::new("/proc/self/exe")
            .args(["sweep", name])
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()?;
        write(&folder.join("pid"), &std::process::id().to_string())?;
        // A socket of this network: who connects to it is led into the cluster's.
        let door = OwnedFd::from(TcpListener::bind("127.0.0.1:0")?);
        let log = fs::File::create(folder.join("node.log"))?;
        let namespaces = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .args(["unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "--kill-child", "--"])
            .arg(std::env::current_exe()?)
            .args(["init", name])
            .stdin(door)
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let mut kept = Self { folder, namespaces, sweeper };
        kept.await_ready()?;
        Ok(kept)
    }

    fn await_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        while !self.folder.join("ready").exists() {
            let ended = self.namespaces.try_wait()?;
            if ended.is_some() || start.elapsed() > START {
                let log = fs::read_to_string(self.folder.join("node.log")).unwrap_or_default();
                return Err(format!("the cluster did not come up:\n{}", tail(&log, 40)).into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // The kernel ends every process of the namespaces with it.
        let _ = self.namespaces.kill();
        let _ = self.namespaces.wait();
        // The sweeper sees that nobody holds the other end of its input any more.
        drop(self.sweeper.stdin.take());
        let _ = self.sweeper.wait();
    }
}

/// Where a cluster's folder is, by its name.
fn folder_of(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("connect-cluster-{name}"))
}

/// The name of a cluster's control groups.
fn cgroup_of(name: &str) -> String {
    format!("connect-cluster-{name}")
}

/// The processes in a cluster's namespaces: all of them name it, or its folder.
fn processes_of(name: &str) -> Vec<PathBuf> {
    let folder = folder_of(name).display().to_string();
    let namespace_of = |process: &Path| fs::read_link(process.join("ns/pid")).ok();
    let ours = namespace_of(Path::new("/proc/self"));
    let is_of_it = |process: &PathBuf| {
        let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments);
        let says = |command| arguments.ends_with(&format!("\0{command}\0{name}\0"));
        // One out here may only read what is in the folder.
        let is_inside = namespace_of(process).is_some_and(|its| Some(its) != ours);
        is_inside && (arguments.contains(&folder) || says("init") || says("node"))
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    all.filter(is_of_it).collect()
}

/// Removes a control group with those in it; what has processes yet, stays.
fn remove_groups(group: &Path, left: &mut Vec<PathBuf>) {
    for inner in fs::read_dir(group).into_iter().flatten().flatten() {
        if inner.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&inner.path(), left);
        }
    }
    if group.is_dir() && fs::remove_dir(group).is_err() {
        left.push(group.to_owned());
    }
}
