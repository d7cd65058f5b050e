//! Trying again, with jitter, until the deadline.

use std::fmt::{self, Display};
use std::future::Future;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::Instant;

use crate::deadline::Deadline;

/// How long to wait between tries: doubling from `first` to `longest`, each
/// with jitter, so that the pods of a node do not come back all at once.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// Before the second try.
    pub first: Duration,
    /// At most.
    pub longest: Duration,
}

/// For an agent on the same node: soon at first, never rarer than every 3 s.
pub const NODE_AGENT: Backoff =
    Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(3) };

/// A random time of up to that, so that the pods of a cluster do not do at once
/// what each has to do at times.
pub fn jitter(longest: Duration) -> Duration {
    longest.mul_f64(fastrand::f64())
}

#[derive(Debug)]
pub enum Stopped<E> {
    /// A failure that trying again can't mend.
    Final(E),
    /// The deadline passed; with what failed last, if a try had ended by then.
    Deadline(Deadline, Option<E>),
}

/// For what servers replicate to each other, in milliseconds mostly.
pub const REPLICATION: Backoff =
    Backoff { first: Duration::from_millis(10), longest: Duration::from_secs(3) };

/// Tries until it works, fails for good, or the deadline passes. A transient
/// failure is logged once for each new cause, not once for each try.
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

/// As [`until`], for a failure that is normal at first: only what lasts longer
/// than `quiet` is logged as a warning.
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
    /// The last cause says more than that it took too long.
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
    /// The pauses, without end.
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
