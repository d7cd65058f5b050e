//! The servers of one kind, in the order in which they are asked.

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

/// How long until the next server is asked as well.
const NEXT: Duration = Duration::from_secs(1);

/// How long a query may take in all: less than the 5 s after which a C library
/// asks again.
const PATIENCE: Duration = Duration::from_secs(4);

/// How long a silent server is asked last.
const LAST: Duration = Duration::from_secs(10);

/// Servers that know the same names.
#[derive(Debug)]
pub(super) struct Upstreams {
    /// Whose they are, for the log.
    whose: &'static str,
    /// What follows if none answers, and what to do.
    then: &'static str,
    source: Source,
    state: Mutex<State>,
}

/// Where the addresses are from.
#[derive(Debug)]
pub(super) enum Source {
    /// A flag.
    Fixed(SocketAddr),
    /// The nameservers of a `resolv.conf`, which is read again when it changes.
    File {
        path: PathBuf,
        /// Our own address, if we serve: it is never asked.
        not: Option<SocketAddr>,
    },
}

#[derive(Debug, Default)]
struct State {
    /// Of the file that was read, to see when it changes.
    file: Option<Stamp>,
    addresses: Vec<SocketAddr>,
    search: Vec<Domain>,
    servers: BTreeMap<SocketAddr, Server>,
    /// When one of them answered last.
    answered: Option<Instant>,
    /// Whether the log says that none answers.
    is_down: bool,
}

/// When a file was written, and its length.
type Stamp = (SystemTime, u64);

/// What is known of a server.
#[derive(Clone, Copy, Debug, Default)]
struct Server {
    answered: Option<Instant>,
    silent: Option<Instant>,
}

// === impl Upstreams ===

impl Upstreams {
    pub(super) fn new(whose: &'static str, then: &'static str, source: Source) -> Self {
        Self { whose, then, source, state: Mutex::default() }
    }

    /// The domains under which a short name is looked for, as the file has them now.
    pub(super) fn search(&self) -> Vec<Domain> {
        let Source::File { path, not } = &self.source else { return Vec::new() };
        self.with(|state| {
            state.read(path, *not);
            state.search.clone()
        })
    }

    /// The servers, as they are to be asked now: those that were silent last.
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

    /// The answer of the first server that has one. An error such as SERVFAIL
    /// counts if no other server knows better; none if nobody answers in time.
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

    /// Notes that a server does not answer, unless it has answered another query since.
    fn note_silence(&self, server: SocketAddr, began: Instant) {
        self.with(|state| {
            let known = state.servers.entry(server).or_default();
            if known.answered < Some(began) {
                known.silent = Some(Instant::now());
            }
        });
    }

    /// Says once that none answers, unless one has answered another query since.
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
    /// Reads the file if it is another than before. One that can't be read is
    /// perhaps being written: what is known stays.
    fn read(&mut self, path: &Path, not: Option<SocketAddr>) {
        let stamp = fs::metadata(path).and_then(|file| Ok((file.modified()?, file.len()))).ok();
        if self.file.is_some() && (stamp.is_none() || self.file == stamp) {
            return;
        }
        let Ok(text) = fs::read_to_string(path) else { return };
        let ResolvConf { mut nameservers, unknown, search } = ResolvConf::read(&text);
        nameservers.retain(|address| Some(*address) != not);
        if !unknown.is_empty() {
            tracing::warn!("ignored nameservers of {}: {unknown:?}", path.display());
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
