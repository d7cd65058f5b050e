//! Queries by TCP: several on a connection, one after the other.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use dns::{Malformed, Query};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::exchange::{Protocol, read, write};
use super::{LONGEST_QUERY, Resolver};
use crate::places::{Place, Places};

/// How many connections there are at once; the one idle longest makes room.
const CONNECTIONS: usize = 64;

/// How long a connection may be idle, and how long a client may take to send a
/// query or to take an answer.
const IDLE: Duration = Duration::from_secs(10);

/// How long until the next try, if the kernel does not give a connection.
const PAUSE: Duration = Duration::from_secs(1);

/// Answers, for good.
pub(super) async fn serve(listener: TcpListener, resolver: Arc<Resolver>) {
    let places = Places::new(CONNECTIONS);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!("a DNS connection was not accepted: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let place = places.take();
        let resolver = Arc::clone(&resolver);
        tokio::spawn(async move {
            if let Err(error) = answer_all(stream, &resolver, place).await {
                tracing::debug!("a DNS connection was closed: {error}");
            }
        });
    }
}

/// Answers until the client has no more queries, or is not worth waiting for.
async fn answer_all(
    mut stream: TcpStream,
    resolver: &Resolver,
    mut place: Place,
) -> io::Result<()> {
    loop {
        let answered = tokio::select! {
            biased;
            () = place.lost() => return Err(io::Error::other("another one needs its place")),
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
