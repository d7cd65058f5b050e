//! gRPC probes: one request to the gRPC health service, in plain text.
//!
//! One request and one response of a few bytes need little of HTTP/2. An HTTP/2 crate
//! would make up a twentieth of the binary's size. Response headers are not decoded: a
//! server that returns an error sends no message, and that is all we need to know.
//!
//! Source: gRPC's "Health Checking" page and "gRPC over HTTP2"; RFC 9113 (HTTP/2),
//! sections 4 and 6; RFC 7541 (HPACK), section 6 and appendix A.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Connection preface of a client.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Types of frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

// Flags of frames.
const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

/// Stream ids: of frames of the connection, and of the one request.
const CONNECTION: u32 = 0;
const STREAM: u32 = 1;

/// The setting `SETTINGS_ENABLE_PUSH` with value 0.
const NO_PUSH: [u8; 6] = [0, 2, 0, 0, 0, 0];

/// Default of `SETTINGS_MAX_FRAME_SIZE`.
const LARGEST_FRAME: usize = 1 << 14;

/// The expected response is two bytes, after a prefix of five.
const LARGEST_ANSWER: usize = 1 << 10;

/// `ServingStatus` of `HealthCheckResponse`.
const STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
const SERVING: u8 = 1;

/// Sends the request. The error says how the server answered.
pub(super) async fn ask(
    mut stream: TcpStream,
    authority: SocketAddr,
    service: &str,
) -> Result<(), String> {
    let question = [
        PREFACE,
        &frame(SETTINGS, 0, CONNECTION, &NO_PUSH),
        &frame(HEADERS, END_HEADERS, STREAM, &headers(authority)),
        &frame(DATA, END_STREAM, STREAM, &message(service)),
    ];
    stream.write_all(&question.concat()).await.map_err(broken)?;
    let answer = answer(&mut stream).await?;
    // Ends the connection politely: last stream 0, NO_ERROR.
    let _ = stream.write_all(&frame(GOAWAY, 0, CONNECTION, &[0; 8])).await;
    match status(&answer) {
        _ if answer.is_empty() => Err("gRPC: the server returned an error: it does not implement \
                                       grpc.health.v1, or does not know the service"
            .to_owned()),
        Some(SERVING) => Ok(()),
        Some(status) => {
            let name = STATUSES.get(usize::from(status)).unwrap_or(&"unknown");
            Err(format!("gRPC: the service's status is {name}"))
        }
        None => Err("gRPC: the response is not a HealthCheckResponse".to_owned()),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn broken(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "gRPC: the server closed the connection".to_owned(),
        _ => format!("gRPC: {error}"),
    }
}

/// Reads the response's message; empty if there is none.
async fn answer(stream: &mut TcpStream) -> Result<Vec<u8>, String> {
    let mut answer = Vec::new();
    loop {
        let (kind, flags, id, payload) = read_frame(stream).await?;
        match (kind, id) {
            (DATA, STREAM) => {
                answer.extend_from_slice(unpadded(flags, &payload).unwrap_or_default());
                if answer.len() > LARGEST_ANSWER {
                    return Ok(answer);
                }
            }
            (RST_STREAM, STREAM) => return Err("gRPC: the server reset the stream".to_owned()),
            // GOAWAY begins with the last stream that the server will process.
            (GOAWAY, _) if payload.get(..4) < Some(&STREAM.to_be_bytes()) => {
                return Err("gRPC: the server accepts no requests".to_owned());
            }
            (SETTINGS, _) if flags & ACK == 0 => {
                stream.write_all(&frame(SETTINGS, ACK, CONNECTION, &[])).await.map_err(broken)?;
            }
            (PING, _) if flags & ACK == 0 => {
                stream.write_all(&frame(PING, ACK, CONNECTION, &payload)).await.map_err(broken)?;
            }
            _ => {}
        }
        if id == STREAM && matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            return Ok(answer);
        }
    }
}

/// Type, flags, stream and payload.
async fn read_frame(stream: &mut TcpStream) -> Result<(u8, u8, u32, Vec<u8>), String> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.map_err(broken)?;
    let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = head;
    let length = usize::try_from(u32::from_be_bytes([0, l0, l1, l2])).unwrap_or(usize::MAX);
    if length > LARGEST_FRAME {
        return Err("gRPC: the server does not speak HTTP/2 in plain text".to_owned());
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await.map_err(broken)?;
    // The first bit is reserved.
    Ok((kind, flags, u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]), payload))
}

fn unpadded(flags: u8, payload: &[u8]) -> Option<&[u8]> {
    if flags & PADDED == 0 {
        return Some(payload);
    }
    let (padding, data) = payload.split_first()?;
    data.get(..data.len().checked_sub(usize::from(*padding))?)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    // No overflow: a probe's size is limited to some KiB.
    let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The request's headers. Names are indices of HPACK's static table, nothing is added to
/// the dynamic table, and each value is far shorter than 127 bytes.
fn headers(authority: SocketAddr) -> Vec<u8> {
    let authority = authority.to_string();
    let texts: [(&[u8], &str); 5] = [
        (&[0x04], "/grpc.health.v1.Health/Check"), // :path
        (&[0x01], &authority),                     // :authority
        (&[0x0f, 31 - 15], "application/grpc"),    // content-type
        (b"\0\x02te", "trailers"),
        (&[0x0f, 58 - 15], super::USER_AGENT), // user-agent
    ];
    let mut block = vec![0x83, 0x86]; // :method POST, :scheme http
    for (name, text) in texts {
        block.extend_from_slice(name);
        block.push(low_bits(text.len()));
        block.extend_from_slice(text.as_bytes());
    }
    block
}

/// A `HealthCheckRequest`, whose first field is the service's name, after gRPC's length
/// prefix.
fn message(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length > 0x7f {
            message.push(0x80 | low_bits(length));
            length >>= 7;
        }
        message.push(low_bits(length));
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).unwrap_or_default();
    [&[0], &length.to_be_bytes()[..], &message].concat()
}

fn low_bits(number: usize) -> u8 {
    u8::try_from(number & 0x7f).unwrap_or_default()
}

/// The status, which is the first field of `HealthCheckResponse`; 0, the default, may be
/// omitted. `None` if the message is invalid.
fn status(answer: &[u8]) -> Option<u8> {
    let (head, message) = answer.split_first_chunk::<5>()?;
    // The first byte is the compression flag; the request offers no compression.
    if *head != [0, 0, 0, 0, u8::try_from(message.len()).ok()?] {
        return None;
    }
    match message {
        [] => Some(0),
        [0x08, status, ..] => Some(*status),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_encoded_as_protobuf() {
        assert_eq!(message(""), [0, 0, 0, 0, 0]);
        assert_eq!(message("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = message(&"x".repeat(300));
        assert_eq!(long[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 0x02]);
        assert_eq!(status(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(status(&[0, 0, 0, 0, 0]), Some(0));
        for wrong in [&[][..], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 3, 8, 1], &[0, 0, 0, 0, 1, 9]]
        {
            assert_eq!(status(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn frames_are_encoded_as_in_http_2() {
        assert_eq!(frame(PING, ACK, CONNECTION, b"12345678")[..9], [0, 0, 8, 6, 1, 0, 0, 0, 0]);
        assert_eq!(unpadded(0, b"ab"), Some(&b"ab"[..]));
        assert_eq!(unpadded(PADDED, b"\x02ab\0\0"), Some(&b"ab"[..]));
        assert_eq!(unpadded(PADDED, b"\x09ab"), None);
        assert_eq!(unpadded(PADDED, b""), None);
    }
}
