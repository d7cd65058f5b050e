//! Blocking queries: requests that are answered once something has changed.
//!
//! A proxy in front of the agent may answer them at once although nothing changed. So the
//! client paces them, and a caller that asks in a loop does not spin.
//!
//! Source: "Blocking Queries" of Consul's API documentation.

use std::time::Duration;

use runtime::retry::jitter;
use tokio::time::Instant;

use crate::agent::{Answered, Call};
use crate::answer::AgentService;
use crate::error::{Error, Request};

/// The state of a service that a blocking query on it starts from.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Content hash of the known state.
    pub hash: String,
    /// Maximum wait for a change.
    pub wait: Duration,
}

/// Follows something that the servers know, by one blocking query after another.
#[derive(Debug)]
pub struct Follow {
    /// Maximum wait for a change.
    wait: Duration,
    /// The index of the last answer. With 0, the next query does not block.
    known: u64,
    /// How long to wait before the next query.
    rest: Duration,
}

/// How late the answer to a blocking query may be. If it is later, the connection has
/// gone silent, which must be noticed before the service's TTL check expires.
const LATE: Duration = Duration::from_secs(2);

/// Minimum duration of a blocking query that finds nothing new.
const UNBLOCKED: Duration = Duration::from_secs(1);

/// Minimum time between two answers: a script may keep changing what is followed.
const PACE: Duration = Duration::from_secs(1);

/// Longest pause after a query on the servers that did not block.
const PAUSE: Duration = Duration::from_secs(5);

/// Time limit of a blocking query: the agent adds up to a sixteenth of the wait as
/// jitter.
fn patience(wait: Duration) -> Duration {
    wait + wait / 16 + LATE
}

// === impl Watch ===

impl Watch {
    pub(crate) fn apply<'a>(&self, call: Call<'a>) -> Call<'a> {
        let Self { hash, wait } = self;
        let call = call.query("hash", hash).query("wait", &format!("{}ms", wait.as_millis()));
        call.within(patience(*wait))
    }

    /// How long to hold back an answer that came at once although nothing changed. An entry
    /// without a content hash can't be waited for.
    pub(crate) fn held_back(&self, service: &AgentService, took: Duration) -> Duration {
        let Self { hash, wait } = self;
        if service.content_hash.is_empty() || service.content_hash == *hash {
            UNBLOCKED.min(*wait).saturating_sub(took)
        } else {
            Duration::ZERO
        }
    }
}

// === impl Follow ===

impl Follow {
    /// The first query is answered at once, each later one when something has changed or
    /// `wait` is over.
    pub fn new(wait: Duration) -> Self {
        Self { wait, known: 0, rest: Duration::ZERO }
    }

    /// The next answer, as `read` reads it. After an error, the next query is sent and
    /// answered at once: the servers may be others.
    pub(crate) async fn answer<T>(
        &mut self,
        call: Call<'_>,
        read: impl FnOnce(Answered, Request) -> Result<T, Error>,
    ) -> Result<T, Error> {
        tokio::time::sleep(std::mem::take(&mut self.rest)).await;
        let known = std::mem::take(&mut self.known);
        let call = match known {
            0 => call,
            _ => call
                .query("index", &known.to_string())
                .query("wait", &format!("{}ms", self.wait.as_millis()))
                .within(patience(self.wait)),
        };
        let (request, asked) = (call.request(), Instant::now());
        let answered = call.answered().await?;
        let (index, took) = (answered.index, asked.elapsed());
        let read = read(answered, request)?;
        (self.known, self.rest) = after(known, index, took, self.wait);
        Ok(read)
    }
}

/// The index and the pause of the next query, after one that took this long.
fn after(known: u64, index: Option<u64>, took: Duration, wait: Duration) -> (u64, Duration) {
    match index.unwrap_or_default() {
        // Without an index, the next query can't block.
        0 => (0, wait),
        // The first answer.
        index if known == 0 => (index, Duration::ZERO),
        index if index < known => (0, PACE),
        index if index == known && took < UNBLOCKED => (index, jitter(PAUSE)),
        index => (index, PACE.saturating_sub(took)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(10);
    const AT_ONCE: Duration = Duration::from_millis(1);

    /// A connection that went silent must be noticed before the TTL check, which is
    /// renewed every 10 s, is overdue at 30 s.
    #[test]
    fn a_blocking_query_is_given_up_soon_after_its_wait() {
        assert!(patience(WAIT) > WAIT + WAIT / 16);
        assert!(patience(WAIT) < Duration::from_secs(13));
    }

    #[test]
    fn a_blocking_query_that_does_not_block_is_not_repeated_at_once() {
        let watch = Watch { hash: "a".to_owned(), wait: WAIT };
        let held = |hash: &str, took: Duration| {
            let service = AgentService { content_hash: hash.to_owned(), ..AgentService::default() };
            watch.held_back(&service, took)
        };
        assert_eq!(held("b", AT_ONCE), Duration::ZERO);
        assert_eq!(held("a", WAIT), Duration::ZERO);
        for unchanged in ["a", ""] {
            assert!(held(unchanged, AT_ONCE) > Duration::from_millis(900), "{unchanged}");
        }
    }

    #[test]
    fn the_next_query_starts_from_the_index_unless_that_went_backwards() {
        // A change must not happen unseen before the next query waits for it.
        assert_eq!(after(0, Some(7), AT_ONCE, WAIT), (7, Duration::ZERO));
        assert_eq!(after(7, Some(8), WAIT, WAIT), (8, Duration::ZERO));
        assert_eq!(after(7, Some(7), WAIT, WAIT), (7, Duration::ZERO));
        assert_eq!(after(7, Some(8), AT_ONCE, WAIT), (8, PACE.saturating_sub(AT_ONCE)));
        assert_eq!(after(7, Some(6), AT_ONCE, WAIT), (0, PACE));
        assert_eq!(after(7, None, AT_ONCE, WAIT), (0, WAIT));
        assert_eq!(after(0, Some(0), AT_ONCE, WAIT), (0, WAIT));
        let (index, rest) = after(7, Some(7), AT_ONCE, WAIT);
        assert!(index == 7 && rest < PAUSE, "{rest:?}");
    }
}
