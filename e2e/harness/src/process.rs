//! Child processes that end with their parent.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Result, until};

/// A child process, with its output in a file.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

// === impl Process ===

impl Process {
    /// Starts a program. It is killed when the calling thread ends, however it ends.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(
        name: &str,
        log: PathBuf,
        program: &Path,
        args: &[impl AsRef<OsStr>],
        env: &[(&str, &str)],
    ) -> Result<Self> {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(args)
            .envs(env.iter().copied());
        Self::spawn(name, log, command)
    }

    /// Starts a command that is not killed with the calling thread.
    pub(crate) fn spawn(name: &str, log: PathBuf, mut command: Command) -> Result<Self> {
        let out = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().map_err(|error| format!("cannot start {name}: {error}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its output so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn pid(&self) -> i32 {
        // No overflow: the kernel's process ids are below 2^22.
        self.child.id().cast_signed()
    }

    /// Its exit status, if it has exited.
    ///
    /// # Errors
    /// The status can't be read.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until it exits.
    ///
    /// # Errors
    /// It did not exit in time.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let mut status = None;
        until(&format!("the end of {}", self.name), || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })?;
        status.ok_or_else(|| format!("{} did not end", self.name).into())
    }

    /// Waits until its output contains a text.
    ///
    /// # Errors
    /// It exited before, or did not write the text in time; with its output.
    pub fn await_output(&mut self, text: &str) -> Result<()> {
        let log = self.log.clone();
        let mut ended = false;
        let waited = until(&format!("`{text}` from {}", self.name), || {
            ended = matches!(self.child.try_wait(), Ok(Some(_)) | Err(_));
            ended || std::fs::read_to_string(&log).is_ok_and(|output| output.contains(text))
        });
        if self.output().contains(text) {
            return Ok(());
        }
        let why = if ended { format!("{} ended early", self.name) } else { format!("{waited:?}") };
        Err(format!("{why}; its output:\n{}", self.output()).into())
    }

    /// # Errors
    /// It has exited.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid()), signal)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes a file atomically.
///
/// # Errors
/// It can't be written.
pub fn write(file: &Path, text: &str) -> Result<()> {
    Ok(std::io::Write::write_all(&mut File::create(file)?, text.as_bytes())?)
}

/// The last lines of an output.
pub fn tail(output: &str, count: usize) -> String {
    let lines: Vec<&str> = output.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Runs a command, and returns its output.
///
/// # Errors
/// It can't be started, or its exit code is not 0; with its output.
pub fn run(program: &str, args: &[impl AsRef<OsStr>]) -> Result<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("cannot start {program}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let args: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy().into_owned()).collect();
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}\n{text}{errors}", args.join(" "), output.status).into())
}
