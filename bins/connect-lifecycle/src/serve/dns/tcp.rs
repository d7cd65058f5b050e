//! Queries over TCP: several per connection, one after the other.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use dns::{Malformed, Query};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::exchange::{Protocol, read, write};
use super::{LONGEST_QUERY, Resolver};
use crate::serve::places::{Place, Places};

/// Maximum number of connections. A new one evicts the one that is idle longest.
const CONNECTIONS: usize = 64;

/// How long a connection may be idle, and how long a client may take to send a query or to
/// read an answer.
const IDLE: Duration = Duration::from_secs(10);

/// Pause after `accept` failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Serves until the process exits.
pub(super) async fn serve(listener: TcpListener, resolver: Arc<Resolver>) {
    let places = Places::new(CONNECTIONS);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!("cannot accept a DNS connection: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let place = places.take();
        let resolver = Arc::clone(&resolver);
        tokio::spawn(async move {
            if let Err(error) = answer_all(stream, &resolver, place).await {
                tracing::debug!("closed a DNS connection: {error}");
            }
        });
    }
}

/// Answers until the client closes the connection, is idle for too long, or is evicted.
async fn answer_all(
    mut stream: TcpStream,
    resolver: &Resolver,
    mut place: Place,
) -> io::Result<()> {
    loop {
        let answered = tokio::select! {
            biased;
            () = place.lost() => return Err(io::Error::other("evicted by a new connection")),
            answered = answer_one(&mut stream, resolver) => answered,
        };
        answered?;
        place.renew();
    }
}

async fn answer_one(stream: &mut TcpStream, resolver: &Resolver) -> io::Result<()> {
    let message = timeout(IDLE, read(stream, LONGEST_QUERY)).await??;
    let answer = match Query::read(&message) {
        Ok(query) => resolver.answer(query, Protocol::Tcp).await,
        Err(Malformed::Question { answer }) => answer.to_vec(),
        Err(Malformed::Noise) => return Err(io::Error::other("not a query")),
    };
    timeout(IDLE, write(stream, &answer)).await?
}
