//! The cluster from outside: creates its Linux namespaces, and leaves nothing behind, however
//! the cluster ends.
//!
//! There are four processes. The *keeper* creates the namespaces; when it ends, the cluster
//! ends. The *sweeper* waits for that and removes what the kernel does not: control groups
//! and the cluster's directory. *Init* is process 1 in the namespaces and reaps orphans. Its
//! child, the *node*, runs the programs.

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

/// How long a cluster may take to become ready: many times what it needs.
const START: Duration = Duration::from_secs(300);

/// What `up` writes to the keeper's stdin to let the cluster stay.
const STAY: &[u8] = b"stay";

/// A cluster that ends with this process.
struct Kept {
    folder: PathBuf,
    namespaces: Child,
    sweeper: Child,
}

/// Starts a cluster for a command, and returns the command's exit code.
///
/// # Errors
/// The cluster did not become ready, or the command can't be started.
pub fn run(command: &[String]) -> Result<ExitCode> {
    let kept = Kept::start(&format!("run-{}", std::process::id()))?;
    let [program, args @ ..] = command else { return Err("there is no command".into()) };
    let bin = kept.folder.join("bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([bin].into_iter().chain(std::env::split_paths(&path)))?;
    // If this process is killed, the command gets a signal.
    let status = Command::new("setpriv")
        .args(["--pdeathsig", "TERM", "--", program])
        .args(args)
        .env("KUBECONFIG", kept.folder.join("kubeconfig"))
        .env("PATH", path)
        .status()
        .map_err(|error| format!("cannot start {program}: {error}"))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// Starts a cluster that stays, unless it runs already. Returns shell assignments that say
/// how to reach it.
///
/// # Errors
/// It did not become ready.
pub fn up(name: &str) -> Result<String> {
    let folder = folder_of(name);
    if !folder.join("ready").exists() {
        let log = tempfile::tempfile()?;
        // In its own process group, so that it survives the terminal. Until the cluster is
        // ready, it ends with this process, which holds its stdin open.
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

/// Keeps a cluster until this process gets a signal, or its stdin closes without [`STAY`].
///
/// # Errors
/// The cluster did not become ready, or ended by itself.
pub fn keep(name: &str) -> Result<()> {
    std::thread::spawn(|| {
        let mut said = Vec::new();
        let read = std::io::stdin().read_to_end(&mut said);
        if read.is_err() || said != STAY {
            // Ends it like any other signal.
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
/// There is no cluster with that name.
pub fn down(name: &str) -> Result<()> {
    let folder = folder_of(name);
    let pid = fs::read_to_string(folder.join("pid"))
        .map_err(|_| format!("there is no cluster `{name}`"))?;
    // It may have ended already, while its sweeper still runs.
    let _ = kill(Pid::from_raw(pid.trim().parse()?), Signal::SIGTERM);
    until(&format!("the end of the cluster `{name}`"), || !folder.exists())
}

/// Cleans up a cluster after its keeper has exited. Started before the cluster;
/// waits until its stdin closes, which the keeper holds open.
///
/// # Errors
/// Something can't be removed.
pub fn sweep(name: &str) -> Result<()> {
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    until("the end of all processes of the cluster", || {
        // The kernel kills the processes with some delay; until then they create groups.
        let mut left = processes_of(name);
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            remove_groups(&hierarchy.path().join(cgroup_of(name)), &mut left);
        }
        left.is_empty()
    })?;
    Ok(fs::remove_dir_all(folder_of(name))?)
}

/// Process 1 of a cluster: starts the node, reaps orphans, and ends with the node.
///
/// # Errors
/// The node can't be started.
pub fn init(name: &str) -> Result<ExitCode> {
    // Its stdin is the socket that the node forwards to the API server; the node inherits it.
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

/// The node: starts all programs, installs the mesh, and watches the programs.
///
/// # Errors
/// A program did not become ready, or ended.
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
        // Report missing parts before anything is created.
        Parts::find()?;
        let folder = folder_of(name);
        fs::create_dir(&folder).map_err(|error| {
            format!("cannot make {}: {error}; is there a cluster `{name}`?", folder.display())
        })?;
        // In its own process group, so that signals of the terminal don't reach it.
        let sweeper = Command::new("/proc/self/exe")
            .args(["sweep", name])
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()?;
        write(&folder.join("pid"), &std::process::id().to_string())?;
        // A socket in this network namespace: the node forwards its connections to the API
        // server.
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
        // The kernel kills all other processes of the PID namespace with it.
        let _ = self.namespaces.kill();
        let _ = self.namespaces.wait();
        // This closes the sweeper's stdin.
        drop(self.sweeper.stdin.take());
        let _ = self.sweeper.wait();
    }
}

/// A cluster's directory, by its name.
fn folder_of(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("connect-cluster-{name}"))
}

/// The name of a cluster's control groups.
fn cgroup_of(name: &str) -> String {
    format!("connect-cluster-{name}")
}

/// The processes of a cluster: each has its name or its directory in its arguments.
fn processes_of(name: &str) -> Vec<PathBuf> {
    let folder = folder_of(name).display().to_string();
    let namespace_of = |process: &Path| fs::read_link(process.join("ns/pid")).ok();
    let ours = namespace_of(Path::new("/proc/self"));
    let is_of_it = |process: &PathBuf| {
        let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments);
        let says = |command| arguments.ends_with(&format!("\0{command}\0{name}\0"));
        // A process outside of the cluster may be reading a file of the directory.
        let is_inside = namespace_of(process).is_some_and(|its| Some(its) != ours);
        is_inside && (arguments.contains(&folder) || says("init") || says("node"))
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    all.filter(is_of_it).collect()
}

/// Removes a control group and its children, except those that still have processes.
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
