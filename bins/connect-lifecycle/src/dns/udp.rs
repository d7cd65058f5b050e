//! Queries by UDP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dns::{Malformed, Query, Rcode};
use tokio::net::UdpSocket;

use super::exchange::Protocol;
use super::{LONGEST_QUERY, Resolver};
use crate::places::{Place, Places};

/// How many queries are under way to the agent, and to the pod's nameservers. Each
/// has a socket, or one for each nameserver that is silent.
const TO_AGENT: usize = 64;
const TO_NAMESERVERS: usize = 128;

/// How long until the next try, if the kernel does not give a datagram.
const PAUSE: Duration = Duration::from_secs(1);

/// Answers, for good.
pub(super) async fn serve(socket: UdpSocket, resolver: Arc<Resolver>) {
    let socket = Arc::new(socket);
    let (agent, nameservers) = (Places::new(TO_AGENT), Places::new(TO_NAMESERVERS));
    // What is longer would be cut, and so is seen to be longer.
    let mut buffer = [0; LONGEST_QUERY + 1];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!("a DNS query was not received: {error}");
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

/// The answer to a query; SERVFAIL if another query got its place.
async fn answer(resolver: Arc<Resolver>, message: Vec<u8>, mut place: Place) -> Option<Vec<u8>> {
    // It was read before.
    let query = Query::read(&message).ok()?;
    Some(tokio::select! {
        biased;
        () = place.lost() => query.fail(Rcode::ServFail),
        answer = resolver.answer(query, Protocol::Udp) => answer,
    })
}

/// Sends an answer, or drops it: the client asks again.
fn send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    if let Err(error) = socket.try_send_to(answer, client) {
        tracing::debug!("a DNS answer was not sent: {error}");
    }
}
