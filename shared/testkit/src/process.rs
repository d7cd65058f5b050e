//! The process under test.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

pub use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::PATIENCE;

/// A process that is killed when this is dropped. Its stdin is a pipe without data: a
/// child that reads it ends when this process does.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    /// Stderr. A file, so that it can be read as soon as it is written.
    log: File,
}

// === impl Process ===

impl Process {
    pub fn start(command: &mut Command) -> Self {
        let log = tempfile::tempfile().expect("a temporary file");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log.try_clone().expect("another descriptor"))
            .spawn()
            .expect("the program is there");
        Self { stdin: child.stdin.take(), child, log }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Stdin, for a child that reads it.
    pub fn take_stdin(&mut self) -> ChildStdin {
        self.stdin.take().expect("it was not taken yet")
    }

    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.id()).expect("a process id");
        kill(Pid::from_raw(id), signal).expect("the process is there");
    }

    /// Everything that it and its children have written to stderr.
    pub fn log(&self) -> String {
        let length = self.log.metadata().expect("the file's length").len();
        let mut text = vec![0; usize::try_from(length).expect("a short log")];
        self.log.read_exact_at(&mut text, 0).expect("the file only grows");
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until stderr contains these words.
    pub fn await_log(&self, words: &str) {
        self.await_one_of(&[words]);
    }

    /// Waits until stderr contains one of these, and returns it.
    pub fn await_one_of<'w>(&self, words: &[&'w str]) -> &'w str {
        let waiting = Instant::now();
        loop {
            let log = self.log();
            if let Some(found) = words.iter().find(|words| log.contains(**words)) {
                return found;
            }
            assert!(waiting.elapsed() < PATIENCE, "none of {words:?} is in the log:\n{log}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end, and returns the exit code; `None` if a signal ended it.
    pub fn end(&mut self) -> Option<i32> {
        let waiting = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status.code();
            }
            assert!(waiting.elapsed() < PATIENCE, "it does not end; its log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a condition.
pub fn await_that(what: &str, is_so: impl Fn() -> bool) {
    let waiting = Instant::now();
    while !is_so() {
        assert!(waiting.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
