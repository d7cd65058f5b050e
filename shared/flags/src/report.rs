//! Exit codes of the libraries' errors.

use consul::error::Cause;
use consul::grpc::GrpcError;
use consul::{Error, SetupError};
use handoff::lock::LockError;
use handoff::record::ReadError;
use lifecycle::session::{LoginError, NotKnown};
use lifecycle::{Leftovers, RegisterError, SessionError, Stays};
use runtime::deadline::Cut;
use runtime::file::WriteError;
use runtime::retry::Stopped;
use runtime::{Exit, Failure};

/// An error that ends a binary.
pub trait Report {
    /// Its message, hint and exit code.
    fn failure(self) -> Failure;
}

/// The exit code of a failed request to the agent.
pub(crate) fn exit(error: &Error) -> Exit {
    match &error.cause {
        Cause::Refused
        | Cause::NoRoute(_)
        | Cause::Unresolved(_)
        | Cause::NoSocket
        | Cause::NoPermission
        | Cause::Timeout
        | Cause::Broken(_)
        | Cause::Tls(_)
        | Cause::PlainText => Exit::Unreachable,
        Cause::Denied(_) => Exit::Denied,
        Cause::Unavailable(..) => Exit::Deadline,
        Cause::Refusal(..) => Exit::Refused,
        Cause::NotFound(_) | Cause::Garbage(_) => Exit::Failure,
        Cause::Unsendable(_) => Exit::Usage,
    }
}

impl Report for Failure {
    fn failure(self) -> Failure {
        self
    }
}

impl Report for WriteError {
    fn failure(self) -> Failure {
        self.into()
    }
}

impl<E: Report> Report for Stopped<E> {
    fn failure(self) -> Failure {
        match self {
            Self::Final(error) => error.failure(),
            Self::Deadline(deadline, Some(error)) => {
                error.failure().while_doing(format_args!("gave up after {deadline}"))
            }
            Self::Deadline(deadline, None) => Cut::Deadline.failure(deadline),
        }
    }
}

impl Report for Error {
    fn failure(self) -> Failure {
        Failure::new(exit(&self), &self).hint(self.hint())
    }
}

impl Report for SetupError {
    fn failure(self) -> Failure {
        let failure = Failure::usage(&self);
        match self.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl Report for GrpcError {
    fn failure(self) -> Failure {
        Failure::usage(&self).hint(self.hint())
    }
}

impl Report for ReadError {
    fn failure(self) -> Failure {
        Failure::usage(&self).hint(self.hint())
    }
}

impl Report for LockError {
    fn failure(self) -> Failure {
        match self {
            Self::File(error) => error.failure(),
            Self::Held(_) => Failure::new(Exit::Deadline, self)
                .hint("the agent is slow to answer: check its log"),
        }
    }
}

impl Report for RegisterError {
    fn failure(self) -> Failure {
        let words = self.to_string();
        let failure = match self {
            Self::Agent(error) | Self::Proxy(error) => error.failure(),
            Self::Lock(error) => error.failure(),
        };
        failure.saying(words)
    }
}

impl Report for Leftovers {
    fn failure(self) -> Failure {
        let words = self.to_string();
        let Self { services, tombstone, lock, login, unused: _ } = self;
        let agent = services.iter().find_map(|(_, stays)| match stays {
            Stays::Agent(error) => Some(exit(error)),
            Stays::StillThere | Stays::Unanswered => None,
        });
        let other = tombstone.map(Report::failure).or(lock.map(Report::failure));
        let exit = agent.or(other.map(|other| other.exit())).unwrap_or(Exit::Deadline);
        match login {
            // Without a token that exists, the agent can't tell the servers anything.
            Some(login) => (*login).failure().saying(words),
            None => Failure::new(exit, words)
                .hint("anything left behind becomes critical when its TTL check expires; the agent removes it a minute later"),
        }
    }
}

impl Report for SessionError {
    fn failure(self) -> Failure {
        let words = self.to_string();
        let failure = match self {
            Self::Read(error) => error.failure(),
            Self::Look(cause) => cause.failure(),
            Self::Login { cause, hint, .. } => match hint {
                Some(hint) => cause.failure().hint(hint),
                None => cause.failure(),
            },
            Self::NotKnown(cause) => cause.failure(),
            Self::Bootstrap { .. } => {
                Failure::new(Exit::Failure, &words).hint("let connect-init write it again")
            }
            Self::Write(error) => error.failure(),
            Self::UnderWay(_) => Failure::new(Exit::Deadline, &words),
            Self::Needed { auth_method, meta } => Failure::new(Exit::Failure, &words).hint(format_args!(
                "when the services of this pod are out of the catalog, delete the token with the description {meta:?}; a MaxTokenTTL of auth method `{auth_method}` would do so by itself"
            )),
            Self::Left { auth_method, meta, cause } => cause.failure().hint(format_args!(
                "find it by its description, {meta:?}, and delete it; a MaxTokenTTL of auth method `{auth_method}` would do so by itself"
            )),
        };
        failure.saying(words)
    }
}

impl Report for LoginError {
    fn failure(self) -> Failure {
        match self {
            Self::Agent(error) => error.failure(),
            Self::BearerToken(_) => Failure::usage(self).hint(
                "check --bearer-token-file; a pod's service account token must be mounted there",
            ),
            Self::Broken(_) => Failure::new(Exit::Failure, self),
            Self::Write(error) => error.failure(),
        }
    }
}

impl Report for NotKnown {
    fn failure(self) -> Failure {
        match self {
            Self::Yet => Failure::new(Exit::Denied, self)
                .hint("check that ACL replication between the servers works"),
            Self::Agent(error) => error.failure(),
        }
    }
}

#[cfg(test)]
mod tests {
    use consul::error::Request;

    use super::*;

    fn error(cause: Cause) -> Error {
        let request = Request {
            method: "PUT",
            agent: "http://10.0.0.1:8500".to_owned(),
            path: "/v1/agent/service/register".to_owned(),
            node: Some("n1".to_owned()),
        };
        Error { request, cause }
    }

    #[test]
    fn each_class_of_cause_has_its_exit_code() {
        for (cause, exit) in [
            (Cause::Refused, Exit::Unreachable),
            (Cause::PlainText, Exit::Unreachable),
            (Cause::Denied("Permission denied".to_owned()), Exit::Denied),
            (Cause::NotFound("unknown service ID: x".to_owned()), Exit::Failure),
            (Cause::Unavailable(429, "Rate limit reached".to_owned()), Exit::Deadline),
            (Cause::Unavailable(500, "No cluster leader".to_owned()), Exit::Deadline),
            (Cause::Refusal(400, "Missing service name".to_owned()), Exit::Refused),
            (Cause::Unsendable("`..` is not a service id".to_owned()), Exit::Usage),
        ] {
            let failure = error(cause).failure();
            assert_eq!(failure.exit(), exit, "{failure}");
            assert!(failure.to_string().contains("; hint: "), "{failure}");
        }
    }

    #[test]
    fn leftovers_have_one_hint_and_the_exit_code_of_what_the_agent_said() {
        let stays = Stays::Agent(error(Cause::Denied("Permission denied".to_owned())));
        let tombstone = WriteError {
            path: "/d/deregistered".into(),
            source: std::io::ErrorKind::PermissionDenied.into(),
        };
        let leftovers = Leftovers {
            services: vec![("web-0-web".to_owned(), stays)],
            tombstone: Some(tombstone),
            ..Leftovers::default()
        };
        let failure = leftovers.failure();
        assert_eq!(failure.exit(), Exit::Denied);
        let text = failure.to_string();
        assert_eq!(text.matches("hint:").count(), 1, "{text}");
        assert!(text.contains("; cannot write /d/deregistered"), "{text}");
        let leftovers = Leftovers {
            services: vec![("web-0-web".to_owned(), Stays::StillThere)],
            ..Leftovers::default()
        };
        assert_eq!(leftovers.failure().exit(), Exit::Deadline);
    }
}
