//! Outcome of a process.

use std::process::{Command, Stdio};

use assert_cmd::assert::{Assert, OutputAssertExt as _};

use crate::PATIENCE;

#[derive(Debug)]
pub struct Outcome(Assert);

#[expect(clippy::return_self_not_must_use, reason = "an assertion is made when it is written")]
impl Outcome {
    pub fn of(command: Command) -> Self {
        Self(assert_cmd::Command::from_std(command).timeout(PATIENCE).assert())
    }

    /// Runs a program whose standard output has no reader, as after `| head`.
    pub fn unread(mut command: Command) -> Self {
        let (reader, writer) = std::io::pipe().expect("there is room for a pipe");
        drop(reader);
        let output = command.stdin(Stdio::null()).stdout(writer).output();
        Self(output.expect("the program starts").assert())
    }

    /// Asserts the exit code.
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        Self(self.0.code(code))
    }

    /// Asserts that stderr contains all of this.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        let stderr = self.stderr();
        for words in words {
            assert!(stderr.contains(words), "`{words}` is not in:\n{stderr}");
        }
        self
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.0.get_output().stderr).into_owned()
    }

    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.0.get_output().stdout).into_owned()
    }
}
