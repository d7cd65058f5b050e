//! The scripted agent, and what tests observe of it.
//!
//! - `server`: HTTP over TCP, TLS and unix sockets, with faults
//! - `state`: registrations, requests and faults, which agent and server share
//! - `stream`: a connection that can be reset

mod server;
mod state;
mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio_rustls::TlsAcceptor;

use crate::PATIENCE;
use crate::fault::{At, Effect, Fault, Gate, Scripted, Times};
use crate::model::Check;
use crate::port::Port;
use crate::request::Request;
use server::Listener;
use state::{Shared, lock};

pub use state::State;

/// A Consul agent with scripted faults. Dropping it stops it.
#[derive(Debug)]
pub struct ScriptedAgent {
    place: Place,
    tls: Option<Tls>,
    shared: Arc<Shared>,
    runtime: Handle,
    serving: Mutex<Option<Serving>>,
    /// Dropping it stops the thread.
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Requests that are held until the test releases them.
#[derive(Debug)]
#[must_use = "what is held is let go when this is dropped"]
pub struct Held<'a> {
    agent: &'a ScriptedAgent,
    at: At,
    gate: Gate,
}

#[derive(Debug)]
enum Place {
    Tcp(Port),
    Unix { path: PathBuf, _folder: TempDir },
}

#[derive(Debug)]
struct Tls {
    ca_pem: String,
    /// Client certificate and key signed by the same CA.
    client_pem: (String, String),
    config: Arc<ServerConfig>,
}

/// Variants of an agent's TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Twist {
    None,
    /// Its certificate has expired.
    Expired,
    /// It requires a client certificate signed by its CA.
    Mutual,
}

#[derive(Debug)]
struct Serving {
    stop: oneshot::Sender<()>,
    stopped: mpsc::Receiver<()>,
}

// === impl ScriptedAgent ===

impl ScriptedAgent {
    /// An agent on 127.0.0.1.
    pub fn start() -> Self {
        let agent = Self::absent();
        agent.listen_again();
        agent
    }

    /// An agent that does not listen yet: connections are refused.
    pub fn absent() -> Self {
        Self::at(Place::Tcp(Port::keep()), None)
    }

    /// An agent with TLS. Its certificate is for `name`, a host name or an IP address,
    /// and signed by a CA of its own.
    pub fn start_tls(name: &str) -> Self {
        Self::start_at(Port::keep(), Some(Tls::for_name(name, Twist::None)))
    }

    /// Like [`Self::start_tls`], with an expired certificate.
    pub fn start_expired_tls(name: &str) -> Self {
        Self::start_at(Port::keep(), Some(Tls::for_name(name, Twist::Expired)))
    }

    /// Like [`Self::start_tls`], but requires a client certificate signed by its CA.
    pub fn start_mutual_tls(name: &str) -> Self {
        Self::start_at(Port::keep(), Some(Tls::for_name(name, Twist::Mutual)))
    }

    pub fn start_v6() -> Self {
        Self::start_at(Port::keep_v6(), None)
    }

    /// An agent with TLS on ::1.
    pub fn start_tls_v6() -> Self {
        Self::start_at(Port::keep_v6(), Some(Tls::for_name("::1", Twist::None)))
    }

    fn start_at(port: Port, tls: Option<Tls>) -> Self {
        let agent = Self::at(Place::Tcp(port), tls);
        agent.listen_again();
        agent
    }

    pub fn start_unix() -> Self {
        let folder = tempfile::tempdir().expect("a directory for the socket");
        let path = folder.path().join("consul.sock");
        let agent = Self::at(Place::Unix { path, _folder: folder }, None);
        agent.listen_again();
        agent
    }

    fn at(place: Place, tls: Option<Tls>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("an event loop for the agent");
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            // An error means that the other end is gone, which also ends the
            // connection.
            let _ = runtime.block_on(ended);
        });
        Self {
            place,
            tls,
            shared: Arc::new(Shared::new()),
            runtime: handle,
            serving: Mutex::new(None),
            end: Some(end),
            thread: Some(thread),
        }
    }

    /// In the form of `CONSUL_HTTP_ADDR`.
    pub fn address(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        match &self.place {
            Place::Tcp(port) => format!("{scheme}://{}", port.address()),
            Place::Unix { path, .. } => format!("unix://{}", path.display()),
        }
    }

    /// PEM of the CA that signed its certificate.
    pub fn ca_pem(&self) -> &str {
        &self.tls.as_ref().expect("an agent with TLS").ca_pem
    }

    /// PEM of a client certificate signed by that CA, and of its key.
    pub fn client_pem(&self) -> (&str, &str) {
        let (cert, key) = &self.tls.as_ref().expect("an agent with TLS").client_pem;
        (cert, key)
    }

    /// Goes away: connections are reset and new ones refused.
    pub fn stop_listening(&self) {
        let serving = lock(&self.serving).take().expect("it listens");
        // It may have stopped by itself, which is fine.
        let _ = serving.stop.send(());
        let _ = serving.stopped.recv_timeout(PATIENCE);
        if let Place::Unix { path, .. } = &self.place {
            std::fs::remove_file(path).expect("the socket is there");
        }
    }

    /// Comes back at the same address with its data.
    pub fn listen_again(&self) {
        let mut serving = lock(&self.serving);
        assert!(serving.is_none(), "it listens already");
        let _runtime = self.runtime.enter();
        let listener = match &self.place {
            Place::Tcp(port) => {
                let listener = port.listen();
                listener.set_nonblocking(true).expect("a socket can be so");
                Listener::Tcp(TcpListener::from_std(listener).expect("the event loop takes it"))
            }
            Place::Unix { path, .. } => {
                Listener::Unix(UnixListener::bind(path).expect("the directory is ours"))
            }
        };
        let (stop, stop_asked) = oneshot::channel();
        let (done, stopped) = mpsc::channel();
        let tls = self.tls.as_ref().map(|tls| TlsAcceptor::from(Arc::clone(&tls.config)));
        let shared = Arc::clone(&self.shared);
        self.runtime.spawn(async move {
            server::serve(listener, tls, shared, stop_asked).await;
            // Releases held requests.
            let _ = done.send(());
        });
        *serving = Some(Serving { stop, stopped });
    }

    /// Adds a fault. Faults for the same request happen in the order in which they were
    /// added.
    pub fn fault(&self, at: impl Into<At>, fault: Fault, times: Times) -> &Self {
        self.script(Scripted::new(at.into(), Effect::Fault(fault), times));
        self
    }

    fn script(&self, scripted: Scripted) {
        self.shared.change(|state| state.script.push(scripted));
    }

    /// Removes all faults.
    pub fn heal(&self) {
        self.shared.change(|state| state.script.clear());
    }

    /// Holds requests until the test releases them; then they take effect.
    pub fn hold(&self, at: impl Into<At>) -> Held<'_> {
        let at = at.into();
        let gate = Gate(Arc::new(Semaphore::new(0)));
        self.script(Scripted::new(at.clone(), Effect::Hold(gate.clone()), Times::Always));
        Held { agent: self, at, gate }
    }

    /// Makes existing connections silent in both directions; they stay established. New
    /// ones work.
    pub fn silence(&self) {
        self.shared.change(|state| state.silent = state.connections);
    }

    /// Forgets all registrations, like an agent that lost its data.
    pub fn wipe(&self) {
        self.shared.change(|state| state.model.wipe());
    }

    /// Registers a service on behalf of somebody else.
    pub fn seed(&self, service: Value) -> &Self {
        self.shared.change(|state| state.model.put(service, true));
        self
    }

    /// Restarts with its data: checks that the agent runs itself start critical again.
    pub fn restart(&self) {
        self.shared.change(|state| state.model.restart());
    }

    /// Makes the agent report that ACL tokens expire; `None`: never.
    pub fn tokens_end(&self, seconds: Option<u64>) -> &Self {
        self.shared.change(|state| state.model.token_life = seconds);
        self
    }

    /// Deregisters a service on behalf of somebody else.
    pub fn remove(&self, id: &str) {
        self.shared.change(|state| state.model.deregister(id));
    }

    /// Turns ACLs on: requests need a token, which a login creates.
    pub fn with_acls(&self) -> &Self {
        self.shared.change(|state| state.model.tokens = Some(BTreeSet::new()));
        self
    }

    /// Adds an ACL token.
    pub fn have_token(&self, token: &str) -> &Self {
        self.shared
            .change(|state| state.model.tokens.get_or_insert_default().insert(token.to_owned()));
        self
    }

    pub fn tokens(&self) -> BTreeSet<String> {
        self.shared.look(|state| state.model.tokens.clone().unwrap_or_default())
    }

    /// Deletes all ACL tokens on behalf of somebody else.
    pub fn revoke_tokens(&self) {
        self.shared.change(|state| {
            state.model.tokens.iter_mut().for_each(BTreeSet::clear);
        });
    }

    /// Adds a config entry.
    pub fn config_entry(&self, kind: &str, name: &str, entry: Value) -> &Self {
        let key = (kind.to_owned(), name.to_owned());
        self.shared.change(|state| state.model.entries.insert(key, entry));
        self
    }

    /// Adds central configuration that is merged into every proxy's own.
    pub fn proxy_config(&self, key: &str, value: impl Into<Value>) -> &Self {
        self.shared.change(|state| state.model.proxy_config.insert(key.to_owned(), value.into()));
        self
    }

    /// Changes the agent's description of itself.
    pub fn about(&self, about: Value) -> &Self {
        self.shared.change(|state| state.model.about = about);
        self
    }

    /// Limits the wait of blocking queries, as an agent may. Work that a client does
    /// after each wait then happens as often.
    pub fn longest_wait(&self, wait: Duration) -> &Self {
        self.shared.change(|state| state.longest_wait = wait);
        self
    }

    /// The services by id, as they were registered.
    pub fn services(&self) -> BTreeMap<String, Value> {
        self.shared.look(|state| state.model.services().clone())
    }

    pub fn check(&self, id: &str) -> Option<Check> {
        self.shared.look(|state| state.model.check(id).cloned())
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.look(|state| state.requests.clone())
    }

    /// The requests so far of one kind.
    pub fn asked(&self, at: impl Into<At>) -> Vec<Request> {
        let at = at.into();
        self.requests().into_iter().filter(|request| at.is(request)).collect()
    }

    /// Clears the list of requests.
    pub fn forget_requests(&self) {
        self.shared.change(|state| state.requests.clear());
    }

    /// Waits for a request, unless it has come already.
    pub fn await_request(&self, at: impl Into<At>) -> Request {
        let at = at.into();
        self.until(&format!("a request for {at:?}"), |state| {
            state.requests.iter().find(|request| at.is(request)).cloned()
        })
    }

    /// Waits for a condition.
    pub fn await_that(&self, what: &str, is_so: impl Fn(&State) -> bool) {
        self.until(what, |state| is_so(state).then_some(()));
    }

    /// Waits until `look` returns a value, and returns it.
    pub fn until<T>(&self, what: &str, look: impl Fn(&State) -> Option<T>) -> T {
        let mut found = None;
        let state = lock(&self.shared.state);
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, PATIENCE, |state| {
                found = look(state);
                found.is_none()
            })
            .unwrap_or_else(PoisonError::into_inner);
        found.unwrap_or_else(|| {
            panic!(
                "waited in vain for {what}\nservices: {:?}\nrequests:\n{}",
                state.model.services().keys(),
                describe(&state.requests),
            )
        })
    }
}

impl Drop for ScriptedAgent {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed.
            let _ = thread.join();
        }
    }
}

fn describe(requests: &[Request]) -> String {
    let lines = requests.iter().map(|Request { method, path, query, .. }| {
        format!("  {method} {path}{}{query}\n", if query.is_empty() { "" } else { "?" })
    });
    lines.collect()
}

// === impl Held ===

impl Held<'_> {
    /// Waits until a request is held.
    pub fn await_one(&self) -> Request {
        self.agent.await_request(self.at.clone())
    }

    /// Releases the held requests, and later ones.
    pub fn release(self) {}
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.agent
            .shared
            .change(|state| state.script.retain(|scripted| !scripted.is_by(&self.gate)));
        self.gate.0.add_permits(Semaphore::MAX_PERMITS / 2);
    }
}

// === impl Tls ===

impl Tls {
    fn for_name(name: &str, twist: Twist) -> Self {
        let key = || KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, key()).expect("a CA");
        let params = |name: &str| {
            CertificateParams::new([name.to_owned()]).expect("a host name or an address")
        };
        let leaf_key = key();
        let mut leaf = params(name);
        if twist == Twist::Expired {
            leaf.not_before = date_time_ymd(2020, 1, 1);
            leaf.not_after = date_time_ymd(2020, 12, 31);
        }
        let leaf = leaf.signed_by(&leaf_key, &ca).expect("a certificate");
        let client_key = key();
        let client = params("client").signed_by(&client_key, &ca).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("ring has them");
        let builder = if twist == Twist::Mutual {
            let mut roots = RootCertStore::empty();
            roots.add(ca.der().clone()).expect("a CA");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .expect("there is a CA");
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let config = builder
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::try_from(leaf_key.serialize_der()).expect("a key"),
            )
            .expect("key and certificate belong together");
        Self {
            ca_pem: ca.pem(),
            client_pem: (client.pem(), client_key.serialize_pem()),
            config: Arc::new(config),
        }
    }
}
