//! HTTP for the sidecar's own small servers: one request per connection.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a client may go without reading a byte of the response.
const READER: Duration = Duration::from_secs(2);

/// Maximum length of a request's head. The expected ones are far shorter.
const LONGEST_QUESTION: usize = 8 << 10;

/// Reads a request's head. Returns method and path, without the query.
pub(crate) async fn question(stream: &TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        stream.readable().await?;
        let mut buffer = [0; 1024];
        match stream.try_read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) if head.len() > LONGEST_QUESTION => return Err(io::ErrorKind::InvalidData.into()),
            Ok(length) => head.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    let head = String::from_utf8_lossy(&head);
    let mut words = head.split([' ', '?', '\r']);
    Ok([words.next(), words.next()].map(Option::unwrap_or_default).join(" "))
}

/// Writes to a client that may be slow, but must not stop reading.
pub(crate) async fn write_all(stream: &TcpStream, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        timeout(READER, stream.writable()).await??;
        match stream.try_write(data) {
            Ok(length) => data = &data[length..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
