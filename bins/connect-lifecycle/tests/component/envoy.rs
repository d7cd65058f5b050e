//! A fake Envoy: a process that waits for its exit code on stdin, and an admin interface in
//! the test, which sends it. Requests are recorded with their time, so that a test can
//! compare them with the agent's.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ChildStdin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};
use testkit::{PATIENCE, Port};

/// The process: it reads its exit code from stdin, and exits with 0 at the end of stdin.
pub(crate) const COMMAND: [&str; 3] = ["/bin/sh", "-c", "read code; exit ${code:-0}"];

/// By default ready, and without open connections.
pub(crate) struct FakeEnvoy {
    admin: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) at: Instant,
    pub(crate) what: String,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_starting: bool,
    refuses_drain: bool,
    refuses_to_count: bool,
    connections: u32,
    is_cut_off: bool,
    /// How often it was asked for its stream.
    looks: u32,
    rejected: u32,
    /// The certificates that it presents.
    leaves: Vec<Value>,
    listener: u16,
    asked: Vec<Asked>,
    process: Option<ChildStdin>,
    is_over: bool,
}

// === impl FakeEnvoy ===

impl FakeEnvoy {
    pub(crate) fn start() -> Self {
        Self::start_with(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// One that has its admin listener on that port.
    pub(crate) fn start_at(port: &Port) -> Self {
        Self::start_with(port.listen())
    }

    fn start_with(listener: TcpListener) -> Self {
        let admin = listener.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        let served = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if served.lock().is_over {
                    return;
                }
                // The client may be gone.
                let _ = stream.and_then(|stream| served.answer(stream));
            }
        });
        Self { admin, shared }
    }

    /// Address of its admin listener.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Sets whether it has its configuration.
    pub(crate) fn is_ready(&self, ready: bool) {
        self.shared.lock().is_starting = !ready;
    }

    /// Sets whether the agent refuses its stream.
    pub(crate) fn is_cut_off(&self, is_cut_off: bool) {
        self.shared.lock().is_cut_off = is_cut_off;
    }

    /// Sets how many updates it has rejected.
    pub(crate) fn has_rejected(&self, rejected: u32) {
        self.shared.lock().rejected = rejected;
    }

    /// It presents leaf certificates of Connect's with these dates, in RFC 3339.
    pub(crate) fn has_leaves(&self, dates: &[[&str; 2]]) {
        let uri = "spiffe://d.consul/ns/default/dc/dc1/svc/web";
        let leaf = |[from, to]: &[&str; 2]| {
            json!({"cert_chain": [{"subject_alt_names": [{"uri": uri}],
                "valid_from": from, "expiration_time": to}]})
        };
        self.shared.lock().leaves = dates.iter().map(leaf).collect();
    }

    /// The same Envoy, with its public listener on that port.
    pub(crate) fn on(self, port: u16) -> Self {
        self.listens_on(port);
        self
    }

    pub(crate) fn listens_on(&self, port: u16) {
        self.shared.lock().listener = port;
    }

    /// Makes it answer requests to drain with an error.
    pub(crate) fn refuses_drain(&self) {
        self.shared.lock().refuses_drain = true;
    }

    /// Sets whether it answers requests for its statistics with an error.
    pub(crate) fn refuses_to_count(&self, refuses: bool) {
        self.shared.lock().refuses_to_count = refuses;
    }

    /// Sets how many connections are open.
    pub(crate) fn has_connections(&self, connections: u32) {
        self.shared.lock().connections = connections;
    }

    /// Sets the stdin of the process.
    pub(crate) fn is(&self, process: ChildStdin) {
        self.shared.lock().process = Some(process);
    }

    /// Makes the process exit with that code.
    pub(crate) fn dies(&self, code: u8) {
        self.shared.lock().end(code);
    }

    /// The requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.lock().asked.clone()
    }

    /// Waits for a request, unless it was sent already.
    pub(crate) fn await_asked(&self, what: &str) -> Asked {
        let find =
            |state: &State| state.asked.iter().find(|asked| asked.what.starts_with(what)).cloned();
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.lock(), PATIENCE, |state| find(state).is_none())
            .unwrap_or_else(PoisonError::into_inner);
        find(&state).unwrap_or_else(|| panic!("Envoy is never asked {what}, but {:?}", state.asked))
    }
}

impl Drop for FakeEnvoy {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        // Wakes the thread, which may have exited already.
        let _ = TcpStream::connect(self.admin);
    }
}

// === impl Shared ===

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        for line in lines {
            if line?.is_empty() {
                break;
            }
        }
        let what = request.trim_end_matches(" HTTP/1.1").to_owned();
        let (status, body) = self.receive(what);
        write!(
            stream,
            "HTTP/1.1 {status} Whatever\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    }

    /// Records a request and returns its answer. Recorded first, because a client that has its
    /// answer may exit before the test looks.
    fn receive(&self, what: String) -> (u16, String) {
        let mut state = self.lock();
        let answer = state.answer(&what);
        state.asked.push(Asked { at: Instant::now(), what });
        self.changed.notify_all();
        answer
    }
}

// === impl State ===

impl State {
    fn answer(&mut self, what: &str) -> (u16, String) {
        match what.split(['?']).next().unwrap_or_default() {
            "GET /ready" if self.is_starting => (503, "PRE_INITIALIZING\n".to_owned()),
            "GET /ready" => (200, "LIVE\n".to_owned()),
            "POST /drain_listeners" if self.refuses_drain => (404, "invalid path\n".to_owned()),
            "POST /drain_listeners" => (200, "OK\n".to_owned()),
            "GET /stats/prometheus" => (200, "# TYPE envoy_up gauge\nenvoy_up 1\n".to_owned()),
            "GET /stats" if what.contains("connected_state") => {
                // Envoy counts a stream that is being opened as connected.
                let opens = u8::from(self.is_cut_off && self.looks.is_multiple_of(2));
                let is_connected = u8::from(!self.is_cut_off) | opens;
                self.looks += 1;
                let pending = "cluster.local_agent.upstream_rq_pending_active";
                let state = "control_plane.connected_state";
                (200, format!("{pending}: {opens}\n{state}: {is_connected}\n"))
            }
            "GET /stats" if what.contains("update_rejected") => {
                let rejected = self.rejected;
                (200, format!("listener_manager.lds.update_rejected: {rejected}\n"))
            }
            "GET /certs" => (200, json!({"certificates": self.leaves}).to_string()),
            "GET /listeners" => (200, format!("public_listener::10.0.0.7:{}\n", self.listener)),
            "GET /stats" if self.refuses_to_count => (503, "later\n".to_owned()),
            "GET /stats" => {
                let count = self.connections;
                (200, format!("listener.10.0.0.7_20000.downstream_cx_active: {count}\n"))
            }
            "POST /quitquitquit" => {
                self.end(0);
                (200, "OK\n".to_owned())
            }
            _ => (404, "invalid path\n".to_owned()),
        }
    }

    /// Leaves stdin open, because an Envoy that is started in its place reads it, too.
    fn end(&mut self, code: u8) {
        if let Some(process) = &mut self.process {
            // The process may have exited.
            let _ = writeln!(process, "{code}");
        }
    }
}
