//! The exit codes, the same for every binary, and the failure that carries one.

use std::fmt;
use std::process::ExitCode;

/// How a binary ends. The numbers above 1 are those of BSD's `sysexits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It did what it was asked.
    Done = 0,
    /// Another failure.
    Failure = 1,
    /// The command line or the configuration is wrong.
    Usage = 64,
    /// The agent can't be reached.
    Unreachable = 69,
    /// A file can't be written.
    CannotWrite = 73,
    /// The deadline passed.
    Deadline = 75,
    /// The agent's ACLs forbid it.
    Denied = 77,
    /// The agent refused the registration.
    Refused = 78,
}

/// The exit codes as `--help` lists them.
pub const HELP: &str = "Exit codes:
  0   done
  1   other failure
  64  usage or configuration
  69  agent unreachable
  73  cannot write a file
  75  deadline passed
  77  ACL denied
  78  the agent refused the registration";

/// Why a binary did not do what it was asked: what was tried, where, the cause,
/// and what to do next. It is for the person who reads the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    exit: Exit,
    message: String,
    hint: Option<String>,
}

// === impl Exit ===

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

// === impl Failure ===

impl Failure {
    /// A failure with its exit code and its message: one sentence, lowercase,
    /// without a full stop.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, message: message.to_string(), hint: None }
    }

    /// A mistake in the command line or the configuration.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// Puts what was being done in front of the message.
    #[must_use]
    pub fn while_doing(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// Puts it in other words; exit code and hint stay.
    #[must_use]
    pub fn saying(self, message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), ..self }
    }

    /// Its exit code.
    pub fn exit(&self) -> Exit {
        self.exit
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_and_what_next() {
        let failure = Failure::usage("port `0` is out of range")
            .hint("choose 1 to 65535")
            .while_doing("reading --service");
        assert_eq!(
            failure.to_string(),
            "reading --service: port `0` is out of range; hint: choose 1 to 65535"
        );
        assert_eq!(failure.exit(), Exit::Usage);
    }

    #[test]
    fn help_lists_every_code() {
        use Exit::{CannotWrite, Deadline, Denied, Done, Failure, Refused, Unreachable, Usage};
        for exit in [Done, Failure, Usage, Unreachable, CannotWrite, Deadline, Denied, Refused] {
            assert!(
                HELP.lines().any(|line| line.trim().starts_with(&format!("{} ", exit as u8))),
                "{exit:?}"
            );
        }
    }
}
