//! The process under test.

use std::io::Read;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
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
    log: Arc<Log>,
}

/// Collected stderr.
#[derive(Debug, Default)]
struct Log {
    text: Mutex<String>,
    grown: Condvar,
}

// === impl Process ===

impl Process {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program is there");
        let log = Arc::new(Log::default());
        let stderr = child.stderr.take().expect("stderr is a pipe");
        let written = Arc::clone(&log);
        std::thread::spawn(move || written.follow(stderr));
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

    pub fn log(&self) -> String {
        self.log.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until stderr contains these words.
    pub fn await_log(&self, words: &str) {
        let text = self.log.text.lock().unwrap_or_else(PoisonError::into_inner);
        let (text, waited) = self
            .log
            .grown
            .wait_timeout_while(text, PATIENCE, |text| !text.contains(words))
            .unwrap_or_else(PoisonError::into_inner);
        assert!(!waited.timed_out(), "`{words}` is not in the log:\n{text}");
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

// === impl Log ===

impl Log {
    fn follow(&self, mut stderr: impl Read) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stderr.read(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]);
            self.text.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            self.grown.notify_all();
        }
    }
}
