//! Constant load from a pod: requests from its network namespace, one after the other, each
//! over a new connection or all over one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use crate::kubelet::Pod;
use crate::{PATIENCE, Result, until};

/// Load that continues until it is stopped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    workers: Vec<JoinHandle<()>>,
}

/// Results of the requests.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Number of responses, by body.
    pub answers: BTreeMap<String, u64>,
    /// Failures, with the time since the load began.
    pub failures: Vec<String>,
    /// The longest time of a response.
    pub slowest: Duration,
}

/// Pause between the requests of one worker, because everything under test shares two cores.
const PACE: Duration = Duration::from_millis(5);

// === impl Load ===

impl Load {
    /// Starts that many workers, which send requests to that port of the pod's loopback.
    pub fn start(pod: &Pod<'_>, port: u16, workers: u8) -> Self {
        Self::start_in(&pod.network(), port, workers)
    }

    /// Like [`Self::start`], in a network namespace given as a file.
    pub fn start_in(network: &Path, port: u16, workers: u8) -> Self {
        Self::start_by(network, workers, move |network| connect_in(network, port).and_then(get))
    }

    /// Starts one worker that uses one connection. If it breaks, the worker counts a failure
    /// and connects again.
    pub fn start_kept(pod: &Pod<'_>, port: u16) -> Self {
        Self::start_kept_in(&pod.network(), port)
    }

    /// Like [`Self::start_kept`], in a network namespace given as a file.
    pub fn start_kept_in(network: &Path, port: u16) -> Self {
        let kept = Mutex::new(None);
        Self::start_by(network, 1, move |network| {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            let mut stream = match kept.take() {
                Some(stream) => stream,
                None => connect_in(network, port)?,
            };
            stream.write_all(KEPT_REQUEST)?;
            let body = answer(&stream)?;
            *kept = Some(stream);
            Ok(body)
        })
    }

    fn start_by(
        network: &Path,
        workers: u8,
        ask: impl Fn(&Path) -> Result<String> + Send + Sync + 'static,
    ) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let tally = Arc::<Mutex<Tally>>::default();
        let began = Instant::now();
        let ask = Arc::new(ask);
        let workers = (0..workers).map(|_| {
            let (stop, tally, network) =
                (Arc::clone(&stop), Arc::clone(&tally), network.to_owned());
            let ask = Arc::clone(&ask);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    let answer = ask(&network);
                    let took = asked.elapsed();
                    {
                        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                        match answer {
                            Ok(body) => *tally.answers.entry(body).or_default() += 1,
                            Err(error) => {
                                tally
                                    .failures
                                    .push(format!("after {:?}: {error}", began.elapsed()));
                            }
                        }
                        tally.slowest = tally.slowest.max(took);
                    }
                    std::thread::sleep(PACE);
                }
            })
        });
        let workers = workers.collect();
        Self { stop, tally, workers }
    }

    /// The results so far.
    pub fn so_far(&self) -> Tally {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for one more response with each of these bodies.
    ///
    /// # Errors
    /// One did not arrive; with the results so far.
    pub fn await_answers(&self, bodies: &[&str]) -> Result<()> {
        let count = |tally: &Tally, body: &str| tally.answers.get(body).copied().unwrap_or(0);
        let before = self.so_far();
        let waited = until(&format!("answers of {bodies:?}"), || {
            let now = self.so_far();
            bodies.iter().all(|body| count(&now, body) > count(&before, body))
        });
        waited.map_err(|error| format!("{error}; {:?}", self.so_far()).into())
    }

    /// Finishes the current requests and stops.
    pub fn stop(mut self) -> Tally {
        self.end();
        self.so_far()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            // A worker that panicked has no results to add.
            let _ = worker.join();
        }
    }
}

// === impl Tally ===

impl Tally {
    /// Adds the results of other requests.
    pub fn add(&mut self, further: Self) {
        let Self { answers, failures, slowest } = further;
        for (body, count) in answers {
            *self.answers.entry(body).or_default() += count;
        }
        self.failures.extend(failures);
        self.slowest = self.slowest.max(slowest);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

/// Connects to that port on loopback, in a [`Pod::network`].
///
/// # Errors
/// It is refused, or the pod is gone.
pub fn connect(network: &Path, port: u16) -> Result<TcpStream> {
    let network = network.to_owned();
    // In a thread of its own, which stays in that network namespace.
    let connected = std::thread::spawn(move || connect_in(&network, port)).join();
    connected.unwrap_or_else(|_| Err("the connecting thread panicked".into()))
}

/// Moves the thread into the network namespace and connects.
fn connect_in(network: &Path, port: u16) -> Result<TcpStream> {
    setns(File::open(network)?, CloneFlags::CLONE_NEWNET)?;
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Requests `/`, and returns the body.
///
/// # Errors
/// The response is incomplete, or its status is not a success.
pub fn get(mut stream: TcpStream) -> Result<String> {
    stream.write_all(REQUEST)?;
    answer(&stream)
}

/// A request for `/` over a connection that stays open.
pub const KEPT_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n";

/// A request for `/` over a connection that is closed after the response.
pub const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";

/// Reads one successful response and nothing after it. Returns its body without the last
/// newline.
///
/// # Errors
/// As [`get`].
pub fn answer(stream: &TcpStream) -> Result<String> {
    match response(stream)? {
        (200, body) => Ok(body),
        (status, body) => Err(format!("answered {status} {body}").into()),
    }
}

/// Reads one response and nothing after it. Returns its status, and its body without the
/// last newline.
///
/// # Errors
/// The response is incomplete.
pub fn response(stream: &TcpStream) -> Result<(u16, String)> {
    let mut stream = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), None);
    while !head.ends_with("\r\n\r\n") {
        let start = head.len();
        if stream.read_line(&mut head)? == 0 {
            return Err(format!("the response is incomplete: {head:?}").into());
        }
        if let Some((name, value)) = head[start..].split_once(": ")
            && name.eq_ignore_ascii_case("content-length")
        {
            length = Some(value.trim_end().parse()?);
        }
    }
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    let status = status.ok_or_else(|| format!("the response has no status: {head:?}"))?;
    let mut body = vec![0; length.ok_or("the response has no content-length")?];
    stream.read_exact(&mut body)?;
    Ok((status, String::from_utf8(body)?.trim_end().to_owned()))
}
