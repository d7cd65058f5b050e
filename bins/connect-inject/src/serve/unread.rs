//! Limits the memory of responses that clients have not read yet. API servers read theirs
//! at once. If other clients leave too much unread, the connection with the most is closed
//! before the next review is judged.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::body::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Maximum bytes of unread responses.
const MOST: usize = 4 << 20;
/// Memory of a response besides its bytes: the state of its request.
const EACH: usize = 4 << 10;

/// Unread responses of a listener.
#[derive(Clone, Debug, Default)]
pub(super) struct Unread(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    answers: Mutex<Answers>,
    /// Lets one task at a time wait for room.
    turn: tokio::sync::Mutex<()>,
    read: Notify,
}

#[derive(Debug, Default)]
struct Answers {
    bytes: usize,
    /// Keyed by connection.
    waiting: BTreeMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    bytes: usize,
    /// Cancelled to close the connection.
    closed: CancellationToken,
}

/// A response until its last byte is written.
struct Held {
    answer: Bytes,
    unread: Unread,
    connection: u64,
}

// === impl Unread ===

impl Unread {
    /// Waits until there is room for another response; closes connections to make room.
    pub(super) async fn room(&self) {
        let _turn = self.0.turn.lock().await;
        while self.with(Answers::are_too_many) {
            self.0.read.notified().await;
        }
    }

    /// Counts a response until it is dropped. `closed` is cancelled if others need the
    /// memory.
    pub(super) fn hold(&self, answer: Bytes, connection: u64, closed: CancellationToken) -> Bytes {
        let held = Held { answer, unread: self.clone(), connection };
        let bytes = held.bytes();
        self.with(|answers| {
            answers.bytes += bytes;
            let waiting = answers.waiting.entry(connection);
            waiting.or_insert(Waiting { bytes: 0, closed }).bytes += bytes;
        });
        Bytes::from_owner(held)
    }

    fn with<T>(&self, look: impl FnOnce(&mut Answers) -> T) -> T {
        look(&mut self.0.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

// === impl Answers ===

impl Answers {
    /// Whether the limit is exceeded; if so, closes the connections with the most.
    fn are_too_many(&mut self) -> bool {
        let (closing, open): (Vec<_>, Vec<_>) =
            self.waiting.values().partition(|waiting| waiting.closed.is_cancelled());
        let mut left = self.bytes - closing.iter().map(|waiting| waiting.bytes).sum::<usize>();
        let mut open = open;
        open.sort_by_key(|waiting| waiting.bytes);
        while left > MOST
            && let Some(largest) = open.pop()
        {
            largest.closed.cancel();
            left -= largest.bytes;
        }
        self.bytes > MOST
    }
}

// === impl Held ===

impl Held {
    fn bytes(&self) -> usize {
        self.answer.len() + EACH
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.answer
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.unread.with(|answers| {
            answers.bytes -= self.bytes();
            if let Some(waiting) = answers.waiting.get_mut(&self.connection) {
                waiting.bytes -= self.bytes();
                if waiting.bytes == 0 {
                    answers.waiting.remove(&self.connection);
                }
            }
        });
        self.unread.0.read.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn the_connection_with_the_most_is_closed() {
        let unread = Unread::default();
        let tokens: Vec<_> = (0..3).map(|_| CancellationToken::new()).collect();
        let hold = |connection: usize, size: usize| {
            let closed = tokens[connection].clone();
            unread.hold(Bytes::from(vec![0; size]), connection as u64, closed)
        };
        let closed = || tokens.iter().map(CancellationToken::is_cancelled).collect::<Vec<_>>();
        let small = hold(0, 5000);
        assert_eq!(small.len(), 5000);
        let large: Vec<_> = (0..4).map(|n| hold(1 + n % 2, MOST / 5)).collect();
        assert!(unread.room().now_or_never().is_some());
        let another = hold(1, MOST / 5);
        let mut waiting = Box::pin(unread.room());
        assert!(waiting.as_mut().now_or_never().is_none());
        assert_eq!(closed(), [false, true, false]);
        // Closing the connection drops its responses.
        drop(another);
        assert!(waiting.now_or_never().is_some());
        assert_eq!(closed(), [false, true, false]);
        drop((small, large));
        assert!(unread.with(|answers| answers.bytes == 0 && answers.waiting.is_empty()));
    }

    #[test]
    fn many_small_responses_count_as_well() {
        let unread = Unread::default();
        let token = CancellationToken::new();
        let held: Vec<_> =
            (0..=MOST / EACH).map(|_| unread.hold(Bytes::new(), 0, token.clone())).collect();
        assert!(unread.room().now_or_never().is_none() && token.is_cancelled());
        drop(held);
    }
}
