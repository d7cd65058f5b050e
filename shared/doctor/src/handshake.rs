//! Finds out whether an address speaks gRPC, with the handshakes that Envoy would make: TLS
//! and HTTP/2. Makes no gRPC call.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use bootstrap::GrpcAddress;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// Why the address does not speak gRPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    Unreachable(String),
    /// The TLS handshake failed, in rustls' words.
    Tls(String),
    /// The answer to plain text was TLS.
    WantsTls,
    /// The connection was closed without an answer.
    Closed,
    /// The answer was not HTTP/2.
    Strange,
}

/// RFC 9113, section 3.4: the client's preface, and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Length of a frame's header, and the position of the type in it.
const FRAME_HEADER: usize = 9;
const FRAME_TYPE: usize = 3;
const SETTINGS: u8 = 4;

/// First bytes of a TLS alert: record type and major version.
const TLS_ALERT: [u8; 2] = [0x15, 0x03];

/// Connects and waits for the first HTTP/2 frame. Only this frame shows that the server
/// accepted the client certificate: in TLS 1.3, the client finishes the handshake first.
pub(crate) async fn greet(address: &GrpcAddress, tls: Option<ClientConfig>) -> Result<(), Trouble> {
    match address {
        GrpcAddress::Tcp { host, port, .. } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await;
            over(stream.map_err(|error| unreachable(&error))?, host, tls).await
        }
        GrpcAddress::Unix(path) => {
            let stream = UnixStream::connect(path).await;
            over(stream.map_err(|error| unreachable(&error))?, "localhost", tls).await
        }
    }
}

fn unreachable(error: &io::Error) -> Trouble {
    Trouble::Unreachable(error.to_string())
}

async fn over(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    tls: Option<ClientConfig>,
) -> Result<(), Trouble> {
    let Some(mut config) = tls else { return preface(stream).await };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(host.to_owned()).map_err(|_| {
        Trouble::Unreachable(format!("`{host}` is neither a name nor an IP address"))
    })?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    preface(stream.map_err(|error| trouble(&error))?).await
}

async fn preface(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), Trouble> {
    let mut header = [0; FRAME_HEADER];
    let mut length = 0;
    stream.write_all(PREFACE).await.map_err(|error| trouble(&error))?;
    stream.flush().await.map_err(|error| trouble(&error))?;
    while length < FRAME_HEADER {
        match stream.read(&mut header[length..]).await {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) => return Err(trouble(&error)),
        }
    }
    match &header[..length] {
        [] => Err(Trouble::Closed),
        header if header.starts_with(&TLS_ALERT) => Err(Trouble::WantsTls),
        header if header.get(FRAME_TYPE) == Some(&SETTINGS) && length == FRAME_HEADER => Ok(()),
        _ => Err(Trouble::Strange),
    }
}

fn trouble(error: &io::Error) -> Trouble {
    let wrapped = error.get_ref().map(|inner| inner as &(dyn StdError + 'static));
    match wrapped.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => Trouble::Tls(tls.to_string()),
        None => match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe => Trouble::Closed,
            _ => Trouble::Unreachable(error.to_string()),
        },
    }
}
