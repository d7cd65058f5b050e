//! Retries with jitter, until the deadline.

use std::fmt::{self, Display};
use std::future::Future;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::Instant;

use crate::deadline::Deadline;

/// Pauses between tries: doubling from `first` to `longest`, with jitter, so that the
/// pods of a node do not retry all at once.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// Before the second try.
    pub first: Duration,
    /// Maximum pause.
    pub longest: Duration,
}

/// For the agent of the same node: short at first, at most 3 s.
pub const NODE_AGENT: Backoff =
    Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(3) };

/// A random time up to `longest`, so that the pods of a cluster do not do periodic work
/// at the same moment.
pub fn jitter(longest: Duration) -> Duration {
    longest.mul_f64(fastrand::f64())
}

#[derive(Debug)]
pub enum Stopped<E> {
    /// A failure that a retry can't help.
    Final(E),
    /// The deadline passed. The second value is the last failure, if a try had ended by
    /// then.
    Deadline(Deadline, Option<E>),
}

/// For state that servers replicate to each other, mostly within milliseconds.
pub const REPLICATION: Backoff =
    Backoff { first: Duration::from_millis(10), longest: Duration::from_secs(3) };

/// Retries while the failure is transient and the deadline has not passed. A transient
/// failure is logged once per cause.
pub async fn until<T, E, F>(
    deadline: Deadline,
    backoff: Backoff,
    transient: impl Fn(&E) -> bool,
    attempt: impl FnMut() -> F,
) -> Result<T, Stopped<E>>
where
    E: Display,
    F: Future<Output = Result<T, E>>,
{
    until_quietly(deadline, backoff, Duration::ZERO, transient, attempt).await
}

/// Like [`until`], for a failure that is normal at first: it is logged as a warning
/// only if it lasts longer than `quiet`.
pub async fn until_quietly<T, E, F>(
    deadline: Deadline,
    backoff: Backoff,
    quiet: Duration,
    transient: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> F,
) -> Result<T, Stopped<E>>
where
    E: Display,
    F: Future<Output = Result<T, E>>,
{
    let began = Instant::now();
    let mut pauses = backoff.pauses();
    let mut warned: Option<String> = None;
    let mut last: Option<E> = None;
    loop {
        let result = tokio::select! {
            biased;
            result = attempt() => result,
            () = deadline.passed() => return Err(Stopped::Deadline(deadline, last)),
        };
        let error = match result {
            Ok(done) => return Ok(done),
            Err(error) if !transient(&error) => return Err(Stopped::Final(error)),
            Err(error) => error,
        };
        let cause = error.to_string();
        if began.elapsed() < quiet {
            tracing::debug!(left = ?deadline.left(), "{cause}; trying again");
        } else if warned.as_ref() != Some(&cause) {
            tracing::warn!(left = ?deadline.left(), "{cause}; trying again");
            warned = Some(cause);
        }
        last = Some(error);
        let pause = pauses.next().unwrap_or(backoff.longest);
        tokio::select! {
            biased;
            () = deadline.passed() => return Err(Stopped::Deadline(deadline, last)),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

// === impl Stopped ===

impl<E: Display> Display for Stopped<E> {
    /// The last cause says more than "it took too long".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Final(error) => error.fmt(f),
            Self::Deadline(deadline, Some(error)) => write!(f, "gave up after {deadline}: {error}"),
            Self::Deadline(deadline, None) => write!(f, "no answer within {deadline}"),
        }
    }
}

impl<E: std::error::Error> std::error::Error for Stopped<E> {}

// === impl Backoff ===

impl Backoff {
    /// The endless sequence of pauses.
    pub fn pauses(self) -> impl Iterator<Item = Duration> {
        ExponentialBuilder::new()
            .with_min_delay(self.first)
            .with_max_delay(self.longest)
            .with_jitter()
            .without_max_times()
            .build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deadline() -> Deadline {
        Deadline::after(Duration::from_secs(60))
    }

    #[tokio::test(start_paused = true)]
    async fn tries_until_it_works() {
        let mut tries = 0;
        let result = until(
            deadline(),
            NODE_AGENT,
            |_: &&str| true,
            || {
                tries += 1;
                let result = if tries < 5 { Err("refused") } else { Ok(tries) };
                async move { result }
            },
        );
        assert_eq!(result.await.unwrap(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_final_failure_ends_it() {
        let result =
            until(deadline(), NODE_AGENT, |_: &&str| false, || async { Err::<(), _>("denied") })
                .await;
        assert!(matches!(result, Err(Stopped::Final("denied"))));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_it_with_the_last_cause() {
        let result =
            until(deadline(), NODE_AGENT, |_: &&str| true, || async { Err::<(), _>("refused") })
                .await;
        assert!(matches!(result, Err(Stopped::Deadline(_, Some("refused")))));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_a_try_that_hangs() {
        let result = until(
            deadline(),
            NODE_AGENT,
            |_: &&str| true,
            std::future::pending::<Result<(), &str>>,
        )
        .await;
        assert!(matches!(result, Err(Stopped::Deadline(_, None))));
    }

    #[test]
    fn pauses_grow_to_the_longest() {
        let pauses: Vec<_> = NODE_AGENT.pauses().take(50).collect();
        assert!(pauses[0] >= NODE_AGENT.first && pauses[0] < 3 * NODE_AGENT.first, "{pauses:?}");
        assert!(
            pauses[40] >= NODE_AGENT.longest && pauses[40] <= 2 * NODE_AGENT.longest,
            "{pauses:?}"
        );
    }
}
