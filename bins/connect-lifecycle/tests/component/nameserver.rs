//! A scripted nameserver, a client, and DNS messages.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use testkit::{PATIENCE, Port};

/// A nameserver on UDP and TCP.
pub(crate) struct Nameserver {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// A query that the nameserver received.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) name: String,
    pub(crate) message: Vec<u8>,
    pub(crate) from: SocketAddr,
    pub(crate) by_tcp: bool,
    /// How many queries for that name came before.
    pub(crate) before: usize,
}

/// Returns the answers to a query.
type Script = Box<dyn Fn(&Asked) -> Vec<Vec<u8>> + Send + Sync>;

struct Shared {
    script: Script,
    asked: Mutex<Vec<Asked>>,
    is_over: AtomicBool,
}

/// Waits for the port if it is the source port of another test's query: it is reserved for
/// TCP only.
fn bind(address: SocketAddr) -> UdpSocket {
    let until = Instant::now() + PATIENCE;
    loop {
        match UdpSocket::bind(address) {
            Ok(socket) => return socket,
            Err(error) => assert!(Instant::now() < until, "{address}: {error}"),
        }
        std::thread::yield_now();
    }
}

// === impl Nameserver ===

impl Nameserver {
    /// A nameserver that answers each query with these messages.
    pub(crate) fn start(script: impl Fn(&Asked) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        Self::start_at(&Port::keep(), script)
    }

    /// A nameserver that answers each query with that address.
    pub(crate) fn with(address: [u8; 4]) -> Self {
        Self::start(move |asked| vec![answer(&asked.message, address)])
    }

    /// A nameserver that does not answer.
    pub(crate) fn silent() -> Self {
        Self::start(|_| vec![])
    }

    /// A nameserver on that port.
    pub(crate) fn start_at(
        port: &Port,
        script: impl Fn(&Asked) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let address = port.address();
        let (tcp, udp) = (port.listen(), bind(address));
        let shared = Arc::new(Shared {
            script: Box::new(script),
            asked: Mutex::default(),
            is_over: AtomicBool::default(),
        });
        let (by_udp, by_tcp) = (Arc::clone(&shared), Arc::clone(&shared));
        std::thread::spawn(move || by_udp.serve_udp(&udp));
        std::thread::spawn(move || by_tcp.serve_tcp(&tcp));
        Self { address, shared }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The queries so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// Whether it received a query for that name.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.asked().iter().any(|asked| asked.name == name)
    }
}

impl Drop for Nameserver {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        // Wakes the threads.
        let _ = UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&[], self.address);
        let _ = TcpStream::connect(self.address);
    }
}

// === impl Shared ===

impl Shared {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    fn answer(&self, message: &[u8], from: SocketAddr, by_tcp: bool) -> Vec<Vec<u8>> {
        let name = name_of(message);
        let mut seen = self.asked.lock().unwrap();
        let before = seen.iter().filter(|asked| asked.name == name).count();
        let asked = Asked { name, message: message.to_vec(), from, by_tcp, before };
        seen.push(asked.clone());
        drop(seen);
        (self.script)(&asked)
    }

    fn serve_udp(&self, socket: &UdpSocket) {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if self.is_over() {
                return;
            }
            for answer in self.answer(&buffer[..length], from, false) {
                let _ = socket.send_to(&answer, from);
            }
        }
    }

    fn serve_tcp(&self, listener: &TcpListener) {
        // Connections without an answer stay open.
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            if self.is_over() {
                return;
            }
            let from = stream.peer_addr().unwrap();
            if let Some(message) = read(&mut stream) {
                for answer in self.answer(&message, from, true) {
                    send(&mut stream, &answer);
                }
            }
            kept.push(stream);
        }
    }
}

/// A DNS client in the pod.
pub(crate) struct Client {
    socket: UdpSocket,
}

// === impl Client ===

impl Client {
    /// A client of that server.
    pub(crate) fn of(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket }
    }

    pub(crate) fn send(&self, message: &[u8]) {
        self.socket.send(message).unwrap();
    }

    /// The next answer.
    pub(crate) fn receive(&self) -> Vec<u8> {
        let mut buffer = vec![0; u16::MAX.into()];
        let length = self.socket.recv(&mut buffer).expect("an answer");
        buffer[..length].to_vec()
    }

    /// The answer to a message.
    pub(crate) fn ask(&self, message: &[u8]) -> Vec<u8> {
        self.send(message);
        self.receive()
    }
}

pub(crate) fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

pub(crate) fn send(stream: &mut TcpStream, message: &[u8]) {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, message].concat()).unwrap();
}

/// Reads a message over TCP; `None` at the end of the connection.
pub(crate) fn read(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

/// A query for the A records of a name.
pub(crate) fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// An answer without records, with that response code, to a query without EDNS.
pub(crate) fn fail(query: &[u8], code: u8) -> Vec<u8> {
    let mut message = query.to_vec();
    message[2] |= 0x80;
    message[3] = 0x80 | code;
    message
}

/// An answer with that address, to a query without EDNS.
pub(crate) fn answer(query: &[u8], address: [u8; 4]) -> Vec<u8> {
    answer_for(query, &[address], 0)
}

/// An answer with those addresses and that TTL in seconds, to a query without EDNS.
pub(crate) fn answer_for(query: &[u8], addresses: &[[u8; 4]], ttl: u8) -> Vec<u8> {
    let mut message = fail(query, 0);
    message[7] = u8::try_from(addresses.len()).unwrap();
    for address in addresses {
        message.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, ttl, 0, 4]);
        message.extend(address);
    }
    message
}

pub(crate) fn code(answer: &[u8]) -> u8 {
    answer[3] & 0x0f
}

/// The name in a query.
fn name_of(message: &[u8]) -> String {
    let mut labels = Vec::new();
    let mut rest = &message[12..];
    while let [length, after @ ..] = rest
        && *length > 0
    {
        let (label, after) = after.split_at((*length).into());
        labels.push(String::from_utf8_lossy(label).into_owned());
        rest = after;
    }
    labels.join(".")
}
