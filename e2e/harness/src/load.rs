//! Constant load from a pod: requests from its own network, one after another,
//! each over a connection of its own or all over one.

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

/// Load that goes on until it is stopped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    workers: Vec<JoinHandle<()>>,
}

/// What came of the requests.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// The bodies that came back, and how often.
    pub answers: BTreeMap<String, u64>,
    /// What went wrong, with the time since the load began.
    pub failures: Vec<String>,
    /// The longest that an answer took.
    pub slowest: Duration,
}

/// Between the requests of one worker: two cores serve all that is tested here.
const PACE: Duration = Duration::from_millis(5);

// === impl Load ===

impl Load {
    /// Starts so many workers, which ask that port of the pod's loopback.
    pub fn start(pod: &Pod<'_>, port: u16, workers: u8) -> Self {
        Self::start_in(&pod.network(), port, workers)
    }

    /// As [`Self::start`], in the network that a file names.
    pub fn start_in(network: &Path, port: u16, workers: u8) -> Self {
        Self::start_by(network, workers, move |network| connect_in(network, port).and_then(get))
    }

    /// Starts one worker that asks over one connection, which it makes anew only
    /// when it breaks. That is a failure.
    pub fn start_kept(pod: &Pod<'_>, port: u16) -> Self {
        Self::start_kept_in(&pod.network(), port)
    }

    /// As [`Self::start_kept`], in the network that a file names.
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

    /// What came of it so far.
    pub fn so_far(&self) -> Tally {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until each of these has answered once more.
    ///
    /// # Errors
    /// One did not; with what came of the load.
    pub fn await_answers(&self, bodies: &[&str]) -> Result<()> {
        let count = |tally: &Tally, body: &str| tally.answers.get(body).copied().unwrap_or(0);
        let before = self.so_far();
        let waited = until(&format!("answers of {bodies:?}"), || {
            let now = self.so_far();
            bodies.iter().all(|body| count(&now, body) > count(&before, body))
        });
        waited.map_err(|error| format!("{error}; {:?}", self.so_far()).into())
    }

    /// Stops it. The last requests are brought to their end.
    pub fn stop(mut self) -> Tally {
        self.end();
        self.so_far()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            // One that panicked has no answers to add.
            let _ = worker.join();
        }
    }
}

// === impl Tally ===

impl Tally {
    /// Adds what came of further requests.
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

/// A connection to that port of the loopback of a [`Pod::network`].
///
/// # Errors
/// It is refused, or the pod is gone.
pub fn connect(network: &Path, port: u16) -> Result<TcpStream> {
    let network = network.to_owned();
    // In a thread of its own, which changes its network for good.
    let connected = std::thread::spawn(move || connect_in(&network, port)).join();
    connected.unwrap_or_else(|_| Err("the connecting thread panicked".into()))
}

/// The same, for a thread that is in no other network afterwards.
fn connect_in(network: &Path, port: u16) -> Result<TcpStream> {
    setns(File::open(network)?, CloneFlags::CLONE_NEWNET)?;
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Asks for `/`, and returns the body.
///
/// # Errors
/// The answer does not come whole, or is no success.
pub fn get(mut stream: TcpStream) -> Result<String> {
    stream.write_all(REQUEST)?;
    answer(&stream)
}

/// A request for `/` over a connection that stays open.
pub const KEPT_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n";

/// A request for `/` over a connection that is closed behind the answer.
pub const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";

/// Reads one answer of success and nothing behind it, and returns its body
/// without the last newline.
///
/// # Errors
/// As [`get`].
pub fn answer(stream: &TcpStream) -> Result<String> {
    match response(stream)? {
        (200, body) => Ok(body),
        (status, body) => Err(format!("answered {status} {body}").into()),
    }
}

/// Reads one answer and nothing behind it, and returns its status and its body
/// without the last newline.
///
/// # Errors
/// The answer does not come whole.
pub fn response(stream: &TcpStream) -> Result<(u16, String)> {
    let mut stream = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), None);
    while !head.ends_with("\r\n\r\n") {
        let start = head.len();
        if stream.read_line(&mut head)? == 0 {
            return Err(format!("the answer is cut off: {head:?}").into());
        }
        if let Some((name, value)) = head[start..].split_once(": ")
            && name.eq_ignore_ascii_case("content-length")
        {
            length = Some(value.trim_end().parse()?);
        }
    }
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    let status = status.ok_or_else(|| format!("the answer has no status: {head:?}"))?;
    let mut body = vec![0; length.ok_or("the answer does not tell its length")?];
    stream.read_exact(&mut body)?;
    Ok((status, String::from_utf8(body)?.trim_end().to_owned()))
}
