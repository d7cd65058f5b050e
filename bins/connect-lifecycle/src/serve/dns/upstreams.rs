//! Servers that know the same names: which to ask first, and which next.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use dns::query::is_no_answer;
use dns::{Domain, Query, ResolvConf};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::exchange::{self, Protocol};

/// How long until the next server is asked, too.
const NEXT: Duration = Duration::from_secs(1);

/// How long a query may take in total: less than the 5 s after which the C library asks
/// again.
const PATIENCE: Duration = Duration::from_secs(4);

/// For how long a server that did not answer is asked last.
const LAST: Duration = Duration::from_secs(10);

/// Servers that know the same names.
#[derive(Debug)]
pub(super) struct Upstreams {
    /// Name for the log.
    whose: &'static str,
    /// Consequence and hint for the log, if none answers.
    then: &'static str,
    source: Source,
    state: Mutex<State>,
}

/// Where the addresses come from.
#[derive(Debug)]
pub(super) enum Source {
    /// A flag.
    Fixed(SocketAddr),
    /// The nameservers of a `resolv.conf`, which is read again when it changes.
    File {
        path: PathBuf,
        /// Our own address, if we serve DNS: never asked, to avoid a loop.
        not: Option<SocketAddr>,
    },
}

#[derive(Debug, Default)]
struct State {
    /// Of the file when it was read, to notice changes.
    file: Option<Stamp>,
    addresses: Vec<SocketAddr>,
    search: Vec<Domain>,
    servers: BTreeMap<SocketAddr, Server>,
    /// When a server last answered.
    answered: Option<Instant>,
    /// Whether the log already says that none answers.
    is_down: bool,
}

/// A file's modification time and length.
type Stamp = (SystemTime, u64);

/// State of a server.
#[derive(Clone, Copy, Debug, Default)]
struct Server {
    /// When it last answered.
    answered: Option<Instant>,
    /// When it last failed to answer, unless it has answered since.
    silent: Option<Instant>,
}

// === impl Upstreams ===

impl Upstreams {
    pub(super) fn new(whose: &'static str, then: &'static str, source: Source) -> Self {
        Self { whose, then, source, state: Mutex::default() }
    }

    /// The search list that the file has now.
    pub(super) fn search(&self) -> Vec<Domain> {
        let Source::File { path, not } = &self.source else { return Vec::new() };
        self.with(|state| {
            state.read(path, *not);
            state.search.clone()
        })
    }

    /// The servers, in the order in which to ask them: those that did not answer lately
    /// come last.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        let (path, not) = match &self.source {
            Source::Fixed(address) => return vec![*address],
            Source::File { path, not } => (path, *not),
        };
        self.with(|state| {
            state.read(path, not);
            let now = Instant::now();
            let is_silent = |address: &SocketAddr| {
                let silent = state.servers.get(address).and_then(|server| server.silent);
                silent.is_some_and(|at| now.duration_since(at) < LAST)
            };
            let mut addresses = state.addresses.clone();
            addresses.sort_by_key(is_silent);
            addresses
        })
    }

    /// The first answer. An error such as SERVFAIL is returned only if no other server has
    /// an answer. `None` if no server answers in time.
    pub(super) async fn ask(&self, query: Query<'_>, protocol: Protocol) -> Option<Vec<u8>> {
        let began = Instant::now();
        let mut second_best = None;
        let mut problem = io::Error::other("no nameserver is known");
        let asked = self.ask_in_turn(query, protocol, &mut second_best, &mut problem);
        let answer = timeout(PATIENCE, asked).await.unwrap_or_else(|_| {
            problem = io::Error::other(format!("no answer within {PATIENCE:?}"));
            None
        });
        let answer = answer.or(second_best);
        if answer.is_none() {
            self.note_down(began, &problem);
        }
        answer
    }

    async fn ask_in_turn(
        &self,
        query: Query<'_>,
        protocol: Protocol,
        second_best: &mut Option<Vec<u8>>,
        problem: &mut io::Error,
    ) -> Option<Vec<u8>> {
        let mut waiting = self.addresses().into_iter().peekable();
        let mut asked = JoinSet::new();
        loop {
            let last = waiting.next().map(|server| (server, Instant::now()));
            if let Some((server, began)) = last {
                let message = query.message().to_vec();
                asked.spawn(async move {
                    let answer = async {
                        let query = Query::read(&message).map_err(io::Error::other)?;
                        exchange::ask(server, query, protocol).await
                    };
                    (server, began, answer.await)
                });
            }
            let is_last = waiting.peek().is_none();
            tokio::select! {
                biased;
                done = asked.join_next() => match done {
                    None if is_last => return None,
                    Some(Ok((server, _, Ok(answer)))) => {
                        self.note_answer(server);
                        if !is_no_answer(&answer) {
                            return Some(answer);
                        }
                        second_best.get_or_insert(answer);
                    }
                    Some(Ok((server, began, Err(error)))) => {
                        self.note_silence(server, began);
                        *problem = io::Error::new(error.kind(), format!("{server}: {error}"));
                    }
                    None | Some(Err(_)) => {}
                },
                () = sleep(NEXT), if !is_last => {
                    if let Some((server, began)) = last {
                        self.note_silence(server, began);
                    }
                }
            }
        }
    }

    fn note_answer(&self, server: SocketAddr) {
        let now = Some(Instant::now());
        let was_down = self.with(|state| {
            state.servers.insert(server, Server { answered: now, silent: None });
            state.answered = now;
            std::mem::take(&mut state.is_down)
        });
        if was_down {
            tracing::info!("{} answers again", self.whose);
        }
    }

    /// Records that a server did not answer, unless it has answered another query since.
    fn note_silence(&self, server: SocketAddr, began: Instant) {
        self.with(|state| {
            let known = state.servers.entry(server).or_default();
            if known.answered < Some(began) {
                known.silent = Some(Instant::now());
            }
        });
    }

    /// Logs once that no server answers, unless one has answered another query since.
    fn note_down(&self, began: Instant, problem: &io::Error) {
        let is_news = self.with(|state| {
            let is_down = state.answered < Some(began);
            is_down && !std::mem::replace(&mut state.is_down, true)
        });
        if is_news {
            tracing::warn!("{} does not answer: {problem}: {}", self.whose, self.then);
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

// === impl State ===

impl State {
    /// Reads the file if it changed. If it can't be read, it is perhaps being written, and
    /// the addresses stay.
    fn read(&mut self, path: &Path, not: Option<SocketAddr>) {
        let stamp = fs::metadata(path).and_then(|file| Ok((file.modified()?, file.len()))).ok();
        if self.file.is_some() && (stamp.is_none() || self.file == stamp) {
            return;
        }
        let Ok(text) = fs::read_to_string(path) else { return };
        let ResolvConf { mut nameservers, unknown, search } = ResolvConf::read(&text);
        nameservers.retain(|address| Some(*address) != not);
        if !unknown.is_empty() {
            tracing::warn!("ignored invalid nameservers in {}: {unknown:?}", path.display());
        }
        *self = Self {
            file: stamp,
            addresses: nameservers,
            search,
            is_down: self.is_down,
            ..Self::default()
        };
    }
}
