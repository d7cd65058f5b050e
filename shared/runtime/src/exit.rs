//! Exit codes, the same for every binary, and the failure that carries one.

use std::fmt;
use std::process::ExitCode;

/// The numbers above 1 are those of BSD's `sysexits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Done = 0,
    /// Any other failure.
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

/// Why a binary failed: what was tried on which input, the cause, and what to do next.
/// For the reader of the log.
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
    /// A failure with exit code and message: one sentence, lowercase, without a full
    /// stop.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, message: message.to_string(), hint: None }
    }

    /// An error in the command line or the configuration.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }

    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// Prepends what was being done.
    #[must_use]
    pub fn while_doing(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// Replaces the message; exit code and hint stay.
    #[must_use]
    pub fn saying(self, message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), ..self }
    }

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
