//! Limits how many requests are handled at once. When all places are taken, a new request
//! evicts the oldest.
//!
//! In a flood, the oldest query is the least likely to get an answer: its server is
//! silent, and its client is about to give up. If new queries were rejected instead,
//! queries for names that nobody answers would block those that are answered at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

#[derive(Debug)]
pub(crate) struct Places {
    limit: usize,
    taken: Mutex<Taken>,
}

/// The places that are taken, oldest first.
#[derive(Debug, Default)]
struct Taken {
    next: u64,
    places: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A place, freed when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    of: Arc<Places>,
    number: u64,
    lost: oneshot::Receiver<()>,
}

// === impl Places ===

impl Places {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: Mutex::default() })
    }

    pub(crate) fn take(self: &Arc<Self>) -> Place {
        let (sender, lost) = oneshot::channel();
        let number = self.with(|taken| {
            if taken.places.len() >= self.limit {
                // Dropping the sender notifies the owner.
                taken.places.pop_first();
            }
            taken.add(sender)
        });
        Place { of: Arc::clone(self), number, lost }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Taken) -> T) -> T {
        change(&mut self.taken.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

// === impl Taken ===

impl Taken {
    fn add(&mut self, sender: oneshot::Sender<()>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.places.insert(number, sender);
        number
    }
}

// === impl Place ===

impl Place {
    /// Waits until a new request has evicted this one.
    pub(crate) async fn lost(&mut self) {
        // Nothing is ever sent; the sender is dropped.
        let _ = (&mut self.lost).await;
    }

    /// Makes this place the newest.
    pub(crate) fn renew(&mut self) {
        let number = self.number;
        let renewed =
            self.of.with(|taken| taken.places.remove(&number).map(|sender| taken.add(sender)));
        self.number = renewed.unwrap_or(number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.with(|taken| taken.places.remove(&self.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_lost(place: &mut Place) -> bool {
        place.lost.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn a_new_request_evicts_the_oldest() {
        let places = Places::new(2);
        let mut first = places.take();
        let mut second = places.take();
        assert!(!is_lost(&mut first));
        first.renew();
        let mut third = places.take();
        assert!(is_lost(&mut second));
        assert!(!is_lost(&mut first));
        drop((first, second));
        let _fourth = places.take();
        assert!(!is_lost(&mut third));
        assert_eq!(places.with(|taken| taken.places.len()), 2);
    }

    #[test]
    fn renewing_a_lost_place_does_not_take_it_back() {
        let places = Places::new(1);
        let mut first = places.take();
        let mut second = places.take();
        first.renew();
        drop(first);
        assert!(!is_lost(&mut second));
        assert_eq!(places.with(|taken| taken.places.len()), 1);
    }
}
