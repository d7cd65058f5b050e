//! The program under test, and files for it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use assert_cmd::cargo::cargo_bin;
use serde_json::Value;
use tempfile::TempDir;

/// What a run of the program left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The program with some arguments, and without the environment of the tests.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(cargo_bin("connect-register"));
    command.env_clear().args(args).stdin(Stdio::null());
    command
}

/// Runs it to its end, against an agent.
pub(crate) fn run(agent: &str, args: &[&str]) -> Ran {
    ran(command(args).env("CONSUL_HTTP_ADDR", agent).output().unwrap())
}

/// Runs it with something on standard input.
pub(crate) fn run_with_stdin(agent: &str, args: &[&str], stdin: &str) -> Ran {
    let mut command = assert_cmd::Command::from_std(command(args));
    ran(command.env("CONSUL_HTTP_ADDR", agent).write_stdin(stdin).output().unwrap())
}

/// Starts it, so that something can happen to it meanwhile.
pub(crate) fn start(agent: &str, args: &[&str]) -> Child {
    let mut command = command(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env("CONSUL_HTTP_ADDR", agent).spawn().unwrap()
}

pub(crate) fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().expect("no signal ended it"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Ran {
    /// It did what it was asked, and printed this.
    #[track_caller]
    pub(crate) fn printed(&self, stdout: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (0, stdout), "{}", self.stderr);
    }

    /// It failed with this code, printed nothing and said all of this.
    #[track_caller]
    pub(crate) fn failed(&self, code: i32, said: &[&str]) {
        assert_eq!((self.code, self.stdout.as_str()), (code, ""), "{}", self.stderr);
        self.said(said);
    }

    #[track_caller]
    pub(crate) fn said(&self, said: &[&str]) {
        for words in said {
            assert!(self.stderr.contains(words), "lacks {words:?}: {}", self.stderr);
        }
    }

    /// The JSON that it printed.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.stderr);
        serde_json::from_str(&self.stdout).unwrap()
    }
}

/// A directory with files.
pub(crate) struct Files(TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Writes a file and returns its path.
    #[expect(clippy::disallowed_methods, reason = "nobody reads it before it is whole")]
    pub(crate) fn add(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        shown(&path)
    }

    /// Writes a JSON file and returns its path.
    pub(crate) fn json(&self, name: &str, value: &Value) -> String {
        self.add(name, &value.to_string())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn folder(&self) -> String {
        shown(self.0.path())
    }
}

fn shown(path: &Path) -> String {
    path.to_str().expect("temporary files have plain names").to_owned()
}
