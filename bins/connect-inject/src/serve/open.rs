//! The open connections of a listener: their clients, and how long they have been idle.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// A handshake or a review is given this long before another connection may replace its
/// connection.
const FRESH: Duration = Duration::from_secs(1);

/// Limits of a listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) all: usize,
    /// Connections of one client address.
    pub(super) peer: usize,
    /// Requests in flight on all connections.
    pub(super) requests: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Open(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limits: Limits,
    connections: Mutex<Connections>,
}

#[derive(Debug, Default)]
struct Connections {
    last: u64,
    open: BTreeMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    peer: IpAddr,
    /// When its last request began or ended, or when it was accepted.
    since: Instant,
    /// Whether it has had a request.
    began: bool,
    /// Number of requests in flight.
    busy: usize,
    closed: CancellationToken,
}

/// The place of an open connection; dropping it frees the place.
#[derive(Debug)]
pub(super) struct Ticket {
    open: Open,
    id: u64,
    peer: IpAddr,
    closed: CancellationToken,
}

/// A request in flight.
pub(super) struct Busy {
    open: Open,
    id: u64,
}

// === impl Open ===

impl Open {
    pub(super) fn new(limits: Limits) -> Self {
        Self(Arc::new(Inner { limits, connections: Mutex::default() }))
    }

    /// Adds a connection, and closes another one if there are too many.
    pub(super) fn enter(&self, peer: IpAddr) -> Ticket {
        let closed = CancellationToken::new();
        let id = self.with(|connections| {
            let Limits { all, peer: most, .. } = self.0.limits;
            let of_peer = connections.open.values().filter(|open| open.peer == peer).count();
            if of_peer >= most {
                connections.close_one(most, |open| open.peer == peer);
            } else if connections.open.len() >= all {
                connections.close_one(all, |_| true);
            }
            connections.last += 1;
            let connection = Connection {
                peer,
                since: Instant::now(),
                began: false,
                busy: 0,
                closed: closed.clone(),
            };
            connections.open.insert(connections.last, connection);
            connections.last
        });
        Ticket { open: self.clone(), id, peer, closed }
    }

    fn with<T>(&self, look: impl FnOnce(&mut Connections) -> T) -> T {
        look(&mut self.0.connections.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut Connection)) {
        self.with(|connections| connections.open.get_mut(&id).map(change));
    }
}

// === impl Connections ===

impl Connections {
    /// Closes the connection with the most requests in flight, if all connections together
    /// have more than `most`.
    fn close_busiest(&mut self, most: usize) {
        let requests: usize = self.open.values().map(|open| open.busy).sum();
        if requests <= most {
            return;
        }
        let busiest = self.open.iter().max_by_key(|(_, open)| open.busy).map(|(id, _)| *id);
        if let Some(connection) = busiest.and_then(|id| self.open.remove(&id)) {
            connection.closed.cancel();
        }
    }

    /// Closes the least useful connection; among equals, the one that has been so longest.
    fn close_one(&mut self, most: usize, may: impl Fn(&Connection) -> bool) {
        let now = Instant::now();
        let waiting = self.open.values().filter(|open| may(open) && !open.began).count();
        let is_crowded = waiting > most / 4;
        let rank = |open: &Connection| {
            let is_fresh = now - open.since < FRESH;
            match (open.began, open.busy > 0) {
                (false, _) if !is_fresh => 0,
                (false, _) if is_crowded => 1,
                (true, false) if !is_fresh => 2,
                // Probably a body that arrives slowly.
                (true, true) if !is_fresh => 3,
                (false, _) => 4,
                (true, _) => 5,
            }
        };
        let least = self
            .open
            .iter()
            .filter(|(_, open)| may(open))
            .min_by_key(|(_, open)| (rank(open), open.since))
            .map(|(id, _)| *id);
        if let Some(connection) = least.and_then(|id| self.open.remove(&id)) {
            connection.closed.cancel();
        }
    }
}

// === impl Ticket ===

impl Ticket {
    /// Number of the connection, unique in its listener.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn peer(&self) -> IpAddr {
        self.peer
    }

    /// Cancelled when another connection needs the place.
    pub(super) fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    /// Records a request, which is in flight until the result is dropped.
    pub(super) fn busy(&self) -> Busy {
        self.open.change(self.id, |connection| {
            connection.began = true;
            connection.busy += 1;
            connection.since = Instant::now();
        });
        let most = self.open.0.limits.requests;
        self.open.with(|connections| connections.close_busiest(most));
        Busy { open: self.open.clone(), id: self.id }
    }

    /// Waits until the connection has had no request for `longest` since it was accepted.
    pub(super) async fn silent(&self, longest: Duration) {
        self.unchanged(longest, |connection| !connection.began).await;
    }

    /// Waits until no request has been in flight for `longest`.
    pub(super) async fn idle(&self, longest: Duration) {
        self.unchanged(longest, |connection| connection.busy == 0).await;
    }

    async fn unchanged(&self, longest: Duration, is_so: impl Fn(&Connection) -> bool) {
        let mut until = Instant::now() + longest;
        loop {
            sleep_until(until).await;
            let now = Instant::now();
            let end = self.open.with(|connections| {
                let connection = connections.open.get(&self.id)?;
                Some(if is_so(connection) { connection.since + longest } else { now + longest })
            });
            match end {
                Some(end) if end > now => until = end,
                _ => return,
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.open.with(|connections| connections.open.remove(&self.id));
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.open.change(self.id, |connection| {
            connection.busy -= 1;
            connection.since = Instant::now();
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn peer(n: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, n).into()
    }

    /// 512 idle connections kept all other clients out.
    #[tokio::test(start_paused = true)]
    async fn at_the_limit_the_one_idle_longest_is_closed() {
        let open = Open::new(Limits { all: 4, peer: 3, requests: 9 });
        let pause = async || tokio::time::sleep(Duration::from_secs(1)).await;
        let served = open.enter(peer(1));
        drop(served.busy());
        pause().await;
        let busy = open.enter(peer(1));
        let in_flight = busy.busy();
        pause().await;
        let first = open.enter(peer(2));
        pause().await;
        let second = open.enter(peer(3));
        let closed = |ticket: &Ticket| ticket.closed().is_cancelled();
        let third = open.enter(peer(4));
        assert!(closed(&first), "without a request, and longest");
        let fourth = open.enter(peer(5));
        assert!(closed(&second) && !closed(&third));
        drop((third, fourth));
        // Connections of one address.
        let own = open.enter(peer(1));
        assert!(!closed(&served));
        pause().await;
        let _more = open.enter(peer(1));
        assert!(closed(&own) && !closed(&served) && !closed(&busy));
        drop(in_flight);
    }

    #[test]
    fn with_too_many_requests_the_busiest_connection_is_closed() {
        let open = Open::new(Limits { all: 4, peer: 4, requests: 5 });
        let (few, many) = (open.enter(peer(1)), open.enter(peer(2)));
        let some = [few.busy(), few.busy()];
        let more: Vec<_> = (0..3).map(|_| many.busy()).collect();
        assert!(!many.closed().is_cancelled());
        let last = few.busy();
        assert!(many.closed().is_cancelled() && !few.closed().is_cancelled());
        drop((some, more, last));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_silent_until_its_first_request_and_idle_after() {
        let open = Open::new(Limits { all: 4, peer: 4, requests: 9 });
        let ticket = open.enter(peer(1));
        let second = Duration::from_secs(1);
        ticket.silent(second).await;
        ticket.idle(second).await;
        let busy = ticket.busy();
        let long = Duration::from_secs(60);
        assert!(tokio::time::timeout(long, ticket.silent(second)).await.is_err());
        assert!(tokio::time::timeout(long, ticket.idle(second)).await.is_err());
        drop(busy);
        ticket.idle(second).await;
    }
}
