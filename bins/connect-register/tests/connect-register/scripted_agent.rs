//! An agent on a real socket that answers as a test says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

/// A request, as far as tests look at it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    /// Method and path, without the query.
    pub(crate) line: String,
    /// What follows the path, with its `?`.
    pub(crate) query: String,
    pub(crate) token: Option<String>,
    pub(crate) body: Value,
}

/// What the agent does with a request.
pub(crate) enum Answer {
    Status(u16, String),
    /// Closes the connection instead.
    Close,
    /// Says something else than HTTP.
    Garbage,
    /// Never answers.
    Hang,
}

type Script = Box<dyn Fn(&Request, usize) -> Answer + Send + Sync>;

/// An agent that follows a script until it is dropped.
pub(crate) struct ScriptedAgent {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

struct Shared {
    script: Script,
    state: Mutex<State>,
    changed: Condvar,
    /// Whether an assertion of the script failed.
    has_failed: AtomicBool,
}

#[derive(Default)]
struct State {
    requests: Vec<Request>,
    is_over: bool,
}

pub(crate) fn ok(body: &Value) -> Answer {
    Answer::Status(200, body.to_string())
}

/// The answer to what has none.
pub(crate) fn done() -> Answer {
    Answer::Status(200, String::new())
}

/// The agent knows no such service.
pub(crate) fn unknown() -> Answer {
    Answer::Status(404, "unknown service ID".to_owned())
}

/// An agent without services, which takes all that comes.
pub(crate) fn willing(request: &Request) -> Answer {
    if request.line.starts_with("GET /v1/agent/service/") { unknown() } else { done() }
}

/// An address at which nothing listens.
pub(crate) const NOBODY: &str = "127.0.0.1:1";

impl ScriptedAgent {
    /// Starts an agent. The script sees each request, and how many of the same
    /// line came before it.
    pub(crate) fn start(
        script: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script: Box::new(script),
            state: Mutex::default(),
            changed: Condvar::new(),
            has_failed: AtomicBool::new(false),
        });
        let listening = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for stream in listener.incoming() {
                    if shared.state.lock().unwrap().is_over {
                        return;
                    }
                    let shared = Arc::clone(&shared);
                    let stream = stream.unwrap();
                    // It ends with its connection, which is the client's.
                    std::thread::spawn(move || {
                        let served = catch_unwind(AssertUnwindSafe(|| shared.serve(&stream)));
                        if served.is_err() {
                            shared.has_failed.store(true, Ordering::SeqCst);
                        }
                    });
                }
            }
        });
        Self { address, shared, listening: Some(listening) }
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// All requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.state.lock().unwrap().requests.clone()
    }

    /// Starts a new list of requests.
    pub(crate) fn forget(&self) {
        self.shared.state.lock().unwrap().requests.clear();
    }

    /// The first lines of all requests so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.line).collect()
    }

    /// Waits until that many requests of this line have come.
    pub(crate) fn wait_for(&self, line: &str, count: usize) {
        let is_less = |state: &mut State| {
            state.requests.iter().filter(|request| request.line == line).count() < count
        };
        let state = self.shared.state.lock().unwrap();
        let limit = Duration::from_secs(20);
        let (_state, waited) =
            self.shared.changed.wait_timeout_while(state, limit, is_less).unwrap();
        assert!(!waited.timed_out(), "{line} did not come");
    }
}

impl Shared {
    fn serve(&self, stream: &TcpStream) {
        let mut reader = BufReader::new(stream);
        while let Some(request) = read(&mut reader) {
            let before = {
                let mut state = self.state.lock().unwrap();
                let before = state.requests.iter().filter(|r| r.line == request.line).count();
                state.requests.push(request.clone());
                self.changed.notify_all();
                before
            };
            let mut stream = stream;
            // The client may be gone: that is its affair.
            let _ = match (self.script)(&request, before) {
                Answer::Status(status, body) => write!(
                    stream,
                    "HTTP/1.1 {status} -\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                ),
                Answer::Garbage => stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n"),
                Answer::Close => return,
                Answer::Hang => {
                    let state = self.state.lock().unwrap();
                    drop(self.changed.wait_while(state, |state| !state.is_over));
                    return;
                }
            };
        }
    }
}

/// Reads a request; none at the connection's end.
fn read(reader: &mut BufReader<&TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let (mut token, mut length) = (None, 0);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok().filter(|length| *length > 0)?;
        match header.trim().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("x-consul-token") => {
                token = Some(value.to_owned());
            }
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().unwrap();
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    let target = line.split(' ').nth(1)?;
    let query = target.find('?').map_or("", |start| &target[start..]).to_owned();
    let line = line.split(['?', ' ']).take(2).collect::<Vec<_>>().join(" ");
    Some(Request { line, query, token, body })
}

impl Drop for ScriptedAgent {
    fn drop(&mut self) {
        // A poisoned lock means that a test has failed already.
        if let Ok(mut state) = self.shared.state.lock() {
            state.is_over = true;
        }
        self.shared.changed.notify_all();
        // Wakes the one who accepts.
        drop(TcpStream::connect(self.address));
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
        // The client only saw that its connection was closed.
        let has_failed = self.shared.has_failed.load(Ordering::SeqCst);
        assert!(!has_failed || std::thread::panicking(), "an assertion of the script failed");
    }
}
