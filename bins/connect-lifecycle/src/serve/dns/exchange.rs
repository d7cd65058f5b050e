//! Sends one query to one server.
//!
//! Each query uses its own socket, connected to the server, and its own id, so that a
//! forged answer has to guess server, port and id.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dns::Query;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// The protocol of a query, also used to forward it: a client uses TCP because the answer
/// over UDP was truncated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Udp,
    Tcp,
}

/// How long until a datagram is sent again, because query or answer may be lost.
const AGAIN: Duration = Duration::from_secs(1);

/// Asks until there is an answer, without a time limit.
pub(super) async fn ask(
    server: SocketAddr,
    query: Query<'_>,
    protocol: Protocol,
) -> io::Result<Vec<u8>> {
    match protocol {
        Protocol::Udp => ask_by_udp(server, query).await,
        Protocol::Tcp => ask_by_tcp(server, query).await,
    }
}

async fn ask_by_udp(server: SocketAddr, query: Query<'_>) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // The kernel picks a random port.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let id = random_id();
    let message = query.with_id(id);
    let answer = async {
        loop {
            await_news(&socket).await?;
            if let Some(answer) = receive(&socket, query, id)? {
                return Ok(answer);
            }
        }
    };
    tokio::pin!(answer);
    loop {
        socket.send(&message).await?;
        if let Ok(answer) = timeout(AGAIN, &mut answer).await {
            return answer;
        }
    }
}

/// Waits for a datagram, or for an ICMP error about ours: the kernel reports it as an
/// error of the socket, which does not make the socket readable.
async fn await_news(socket: &UdpSocket) -> io::Result<()> {
    let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
    if ready.is_error() {
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        // The error was reported already: clear the readiness, and wait for the next one.
        let told = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        let _ = socket.try_io(Interest::ERROR, told);
    }
    Ok(())
}

/// The answer, if there is one. Not async, so that the 64 KiB buffer is not part of every
/// waiting query's future.
fn receive(socket: &UdpSocket, query: Query<'_>, id: u16) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = vec![0; u16::MAX.into()];
    match socket.try_recv(&mut buffer) {
        Ok(length) => Ok(query.answered(id, &buffer[..length])),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

async fn ask_by_tcp(server: SocketAddr, query: Query<'_>) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let id = random_id();
    write(&mut stream, &query.with_id(id)).await?;
    let answer = read(&mut stream, u16::MAX.into()).await?;
    query.answered(id, &answer).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "the answer is not for this query")
    })
}

/// Writes a message after its length, in one piece.
pub(super) async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.set_nodelay(true)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}

/// Reads a message after its length.
pub(super) async fn read(stream: &mut TcpStream, longest: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > longest {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too long"));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// An id that can't be guessed from earlier ones: a keyed hash of a counter.
fn random_id() -> u16 {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let [low, high, ..] = KEY.hash_one(COUNTER.fetch_add(1, Ordering::Relaxed)).to_be_bytes();
    u16::from_be_bytes([low, high])
}
