//! A limited number of places. Who comes when all are taken gets that of the
//! one who has waited longest.
//!
//! In a flood, the oldest query is the one that least likely gets an answer: it
//! is asked of a server that is silent, and its client is about to give up. If
//! instead newcomers were refused, names that nobody answers would keep out those
//! that are answered at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

#[derive(Debug)]
pub(crate) struct Places {
    limit: usize,
    taken: Mutex<Taken>,
}

/// Those taken, in the order in which they were.
#[derive(Debug, Default)]
struct Taken {
    next: u64,
    places: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A place that is left when this is dropped.
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
                // Its sender is dropped: that is how its owner hears of it.
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
    /// Waits until another one has got it.
    pub(crate) async fn lost(&mut self) {
        // Nothing is sent: the other end is dropped.
        let _ = (&mut self.lost).await;
    }

    /// Counts from now on, as if it were taken only now.
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
    fn a_newcomer_gets_the_place_of_the_one_who_waited_longest() {
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
    fn a_lost_place_is_not_had_again() {
        let places = Places::new(1);
        let mut first = places.take();
        let mut second = places.take();
        first.renew();
        drop(first);
        assert!(!is_lost(&mut second));
        assert_eq!(places.with(|taken| taken.places.len()), 1);
    }
}
