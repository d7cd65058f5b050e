//! Starts and signals a child process, and reaps the container's orphans.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use runtime::{Exit, Failure};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// A running child. As process 1 of the container we also inherit every orphan and have
/// to reap it, so a single `waitpid` for all children does the waiting.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    name: String,
    ended: Stream,
    forwarded: [(Stream, Signal); 5],
}

// === impl Child ===

impl Child {
    pub(crate) fn spawn(command: &[OsString]) -> Result<Self, Failure> {
        let stream = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(Exit::Failure, format_args!("cannot handle signals: {error}"))
            })
        };
        // Before the child exists, so that its exit is not missed.
        let ended = stream(SignalKind::child())?;
        let forwarded = [
            (stream(SignalKind::hangup())?, Signal::SIGHUP),
            (stream(SignalKind::quit())?, Signal::SIGQUIT),
            // Envoy reopens its log files on SIGUSR1.
            (stream(SignalKind::user_defined1())?, Signal::SIGUSR1),
            (stream(SignalKind::user_defined2())?, Signal::SIGUSR2),
            (stream(SignalKind::window_change())?, Signal::SIGWINCH),
        ];
        let [program, args @ ..] = command else {
            return Err(Failure::usage("there is no command to run"));
        };
        let name = program.to_string_lossy().into_owned();
        let child = Command::new(program).args(args).spawn().map_err(|error| {
            Failure::usage(format_args!("cannot start `{name}`: {error}"))
                .hint("check the image and the command behind `--`")
        })?;
        let pid = i32::try_from(child.id()).map_err(Failure::usage)?;
        tracing::info!(pid, "started {name}");
        Ok(Self { pid: Pid::from_raw(pid), name, ended, forwarded })
    }

    /// Waits until the child exits; meanwhile, reaps orphans and forwards signals. Cancel
    /// safe.
    pub(crate) async fn end(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.reap() {
                return status;
            }
            let [hangup, quit, user1, user2, window] = &mut self.forwarded;
            let signal = tokio::select! {
                _ = self.ended.recv() => continue,
                _ = hangup.0.recv() => hangup.1,
                _ = quit.0.recv() => quit.1,
                _ = user1.0.recv() => user1.1,
                _ = user2.0.recv() => user2.1,
                _ = window.0.recv() => window.1,
            };
            self.kill(signal);
        }
    }

    /// Reaps all processes that have exited; returns the child's status if it is one of
    /// them.
    fn reap(&self) -> Option<ExitStatus> {
        let mut own = None;
        loop {
            let status = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, ExitStatus::from_raw(code << 8)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid, ExitStatus::from_raw(signal as i32))
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return own,
                // Stopped or continued, but still alive.
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(errno) => {
                    tracing::error!(%errno, "cannot wait for {}", self.name);
                    return own;
                }
            };
            match status {
                (pid, status) if pid == self.pid => own = Some(status),
                (pid, status) => tracing::debug!(pid = pid.as_raw(), %status, "reaped an orphan"),
            }
        }
    }

    pub(crate) fn kill(&self, signal: Signal) {
        match kill(self.pid, signal) {
            Ok(()) => tracing::info!("sent {signal} to {}", self.name),
            Err(errno) => tracing::warn!(%errno, "cannot send {signal} to {}", self.name),
        }
    }
}

/// The child's exit code, or 128 plus the signal that killed it, as in a shell.
pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
