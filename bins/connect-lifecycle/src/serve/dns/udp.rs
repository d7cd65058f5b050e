//! Queries over UDP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dns::{Malformed, Query, Rcode};
use tokio::net::UdpSocket;

use super::exchange::Protocol;
use super::{LONGEST_QUERY, Resolver};
use crate::serve::places::{Place, Places};

/// Maximum number of queries that wait for the agent, and for the pod's nameservers. Each
/// has one socket per server that was asked.
const TO_AGENT: usize = 64;
const TO_NAMESERVERS: usize = 128;

/// Pause after `recv_from` failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Serves until the process exits.
pub(super) async fn serve(socket: UdpSocket, resolver: Arc<Resolver>) {
    let socket = Arc::new(socket);
    let (agent, nameservers) = (Places::new(TO_AGENT), Places::new(TO_NAMESERVERS));
    // One byte more, to recognize longer datagrams, which the kernel truncates.
    let mut buffer = [0; LONGEST_QUERY + 1];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!("cannot receive a DNS query: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let message = &buffer[..length];
        let query = match Query::read(message) {
            Ok(query) if length <= LONGEST_QUERY => query,
            Ok(query) => {
                send(&socket, &query.fail(Rcode::FormErr), client);
                continue;
            }
            Err(Malformed::Question { answer }) => {
                send(&socket, &answer, client);
                continue;
            }
            Err(Malformed::Noise) => continue,
        };
        let places = if resolver.is_of_agent(query) { &agent } else { &nameservers };
        let place = places.take();
        let answer = answer(Arc::clone(&resolver), message.to_vec(), place);
        let socket = Arc::clone(&socket);
        tokio::spawn(async move {
            if let Some(answer) = answer.await {
                send(&socket, &answer, client);
            }
        });
    }
}

/// The answer to a query; SERVFAIL if a new query evicted it.
async fn answer(resolver: Arc<Resolver>, message: Vec<u8>, mut place: Place) -> Option<Vec<u8>> {
    // Never `None`: the caller has parsed it already.
    let query = Query::read(&message).ok()?;
    Some(tokio::select! {
        biased;
        () = place.lost() => query.fail(Rcode::ServFail),
        answer = resolver.answer(query, Protocol::Udp) => answer,
    })
}

/// Sends an answer, or drops it if the socket is full: the client asks again.
fn send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    if let Err(error) = socket.try_send_to(answer, client) {
        tracing::debug!("cannot send a DNS answer: {error}");
    }
}
