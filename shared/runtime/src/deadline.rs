//! Total time limits.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use duration::GoDuration;
use tokio::time::Instant;

use crate::exit::{Exit, Failure};
use crate::signal::{Signal, Signals};

/// A point in time by which something has to be done.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    budget: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Deadline,
    Signal(Signal),
}

/// Runs the work until it ends, the deadline passes or a signal arrives. Unfinished
/// work is dropped.
pub async fn race<T>(
    deadline: Deadline,
    signals: &mut Signals,
    work: impl Future<Output = T>,
) -> Result<T, Cut> {
    tokio::select! {
        biased;
        done = work => Ok(done),
        signal = signals.next() => Err(Cut::Signal(signal)),
        () = deadline.passed() => Err(Cut::Deadline),
    }
}

// === impl Cut ===

impl Cut {
    pub fn failure(self, deadline: Deadline) -> Failure {
        match self {
            Self::Deadline => {
                Failure::new(Exit::Deadline, format_args!("no answer within {deadline}"))
                    .hint("check the log of the node's Consul agent, or raise --timeout")
            }
            Self::Signal(signal) => Failure::new(Exit::Failure, format_args!("ended by {signal}")),
        }
    }
}

// === impl Deadline ===

impl Deadline {
    /// `budget` from now on.
    pub fn after(budget: Duration) -> Self {
        // A budget beyond the clock's range counts as unlimited.
        let at = Instant::now()
            .checked_add(budget)
            .unwrap_or_else(|| Instant::now() + Duration::from_secs(1 << 30));
        Self { at, budget }
    }

    /// The same, but earlier, to leave time for what follows.
    #[must_use]
    pub fn earlier_by(self, time: Duration) -> Self {
        Self { at: self.at.checked_sub(time).unwrap_or(self.at), ..self }
    }

    pub async fn passed(self) {
        tokio::time::sleep_until(self.at).await;
    }

    pub fn left(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }
}

impl fmt::Display for Deadline {
    /// The total budget as flags are written: `2m0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanoseconds = i64::try_from(self.budget.as_nanos()).unwrap_or(i64::MAX);
        GoDuration::from_nanoseconds(nanoseconds).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_earlier_deadline_leaves_time_within_the_whole() {
        let whole = Deadline::after(Duration::from_secs(4));
        let work = whole.earlier_by(Duration::from_secs(1));
        assert_eq!((work.left(), whole.left()), (Duration::from_secs(3), Duration::from_secs(4)));
        work.passed().await;
        assert_eq!(whole.left(), Duration::from_secs(1));
        // The message names the total budget, which the user has set.
        assert_eq!(work.to_string(), "4s");
    }
}
