//! Why the registration could not be maintained, and how long to wait before the next
//! attempt.

use std::time::Duration;

use consul::SetupError;
use flags::Report as _;
use lifecycle::{Outcome, RegisterError, SessionError};
use runtime::Failure;
use runtime::retry::Backoff;
use tokio_util::sync::CancellationToken;

/// While the agent is away: short enough to notice its return within a second.
const AGENT_AWAY: Backoff =
    Backoff { first: Duration::from_millis(50), longest: Duration::from_millis(500) };

/// While the agent rejects the registration: an operator has to act.
const REFUSED: Duration = Duration::from_secs(10);

/// The current failure, and how long to wait before the next attempt.
pub(super) struct Trouble {
    cause: Option<String>,
    is_refusal: bool,
    pauses: Box<dyn Iterator<Item = Duration>>,
}

/// Why a step failed.
pub(super) struct Wrong {
    pub(super) failure: Failure,
    pub(super) outcome: Outcome,
}

// === impl Trouble ===

impl Trouble {
    pub(super) fn none() -> Self {
        Self { cause: None, is_refusal: false, pauses: Box::new(AGENT_AWAY.pauses()) }
    }

    /// Logs a failure unless it has the same cause as the one before.
    pub(super) fn note(&mut self, wrong: Wrong) -> Outcome {
        let Wrong { failure, outcome } = wrong;
        self.is_refusal = matches!(outcome, Outcome::Refused | Outcome::Foreign);
        let cause = failure.to_string();
        if self.cause.as_ref() != Some(&cause) {
            tracing::warn!("{cause}");
        }
        self.cause = Some(cause);
        outcome
    }

    /// Waits before the next attempt, longer each time.
    pub(super) async fn pause(&mut self, stop: &CancellationToken) -> Outcome {
        let pause = if self.is_refusal {
            REFUSED
        } else {
            self.pauses.next().unwrap_or(AGENT_AWAY.longest)
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
        Outcome::Done
    }

    /// Called when the registration is complete and correct.
    pub(super) fn is_over(&mut self) {
        self.is_refusal = false;
        if self.cause.take().is_some() {
            tracing::info!("registration restored");
        }
    }

    /// Called when the registration has been correct for a while: the pauses start short
    /// again.
    pub(super) fn is_forgotten(&mut self) {
        self.pauses = Box::new(AGENT_AWAY.pauses());
    }
}

// === impl Wrong ===

impl From<RegisterError> for Wrong {
    fn from(error: RegisterError) -> Self {
        Self { outcome: error.outcome(), failure: error.failure() }
    }
}

impl From<consul::Error> for Wrong {
    fn from(error: consul::Error) -> Self {
        RegisterError::from(error).into()
    }
}

impl From<SessionError> for Wrong {
    /// `Refused`, because a failed login has been retried for a while already.
    fn from(error: SessionError) -> Self {
        Self { failure: error.failure(), outcome: Outcome::Refused }
    }
}

impl From<SetupError> for Wrong {
    fn from(error: SetupError) -> Self {
        Self { failure: error.failure(), outcome: Outcome::Refused }
    }
}
