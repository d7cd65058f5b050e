//! Following the roots of Connect's CA, behind a proxy whose blocking queries don't block.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;
use testkit::process::await_that;
use testkit::{Process, ScriptedAgent};

use crate::pod::Pod;

/// Path of the file with the roots in the pod's directory.
const ROOTS: &str = "connect-roots/roots.pem";

/// A proxy in front of an agent. It answers a request for the roots at once, and any other
/// with an error.
struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    pem: String,
    /// The index of each answer, by the number of answers before; 0 for an error.
    index: fn(usize) -> usize,
    file: PathBuf,
    /// Inode of the file at each request for the roots. Each time the file is written, it
    /// gets another.
    inodes: Mutex<Vec<u64>>,
    others: Mutex<usize>,
    is_over: AtomicBool,
}

// === impl Proxy ===

impl Proxy {
    fn start(pem: &str, file: PathBuf, index: fn(usize) -> usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            pem: pem.to_owned(),
            index,
            file,
            inodes: Mutex::default(),
            others: Mutex::default(),
            is_over: AtomicBool::default(),
        });
        let served = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if served.is_over.load(Ordering::SeqCst) {
                    return;
                }
                // The client may be gone.
                let _ = stream.and_then(|stream| served.answer(stream));
            }
        });
        Self { address, shared }
    }

    /// Inode of the file at each request for the roots so far.
    fn inodes(&self) -> Vec<u64> {
        self.shared.inodes.lock().unwrap().clone()
    }

    /// How many other requests it has received.
    fn others(&self) -> usize {
        *self.shared.others.lock().unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        // Wakes the thread.
        let _ = TcpStream::connect(self.address);
    }
}

// === impl Shared ===

impl Shared {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        for line in lines {
            if line?.is_empty() {
                break;
            }
        }
        let (head, body) = if request.starts_with("GET /v1/agent/connect/ca/roots") {
            let mut inodes = self.inodes.lock().unwrap();
            let index = (self.index)(inodes.len());
            inodes.push(std::fs::metadata(&self.file)?.ino());
            if index == 0 {
                ("500 Internal Server Error".to_owned(), "No cluster leader".to_owned())
            } else {
                let roots = json!({"Roots": [{"RootCert": self.pem}]});
                (format!("200 OK\r\nx-consul-index: {index}"), roots.to_string())
            }
        } else {
            *self.others.lock().unwrap() += 1;
            ("500 Internal Server Error".to_owned(), "No cluster leader".to_owned())
        };
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        )
    }
}

/// Starts the sidecar of a pod that was registered with `--auto-encrypt`, behind that proxy.
fn run(agent: &ScriptedAgent, index: fn(usize) -> usize) -> (Pod, Proxy, Process) {
    let pod = Pod::of(agent);
    let pem = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
    pod.make_folder("connect-roots");
    pod.write(ROOTS, &pem);
    let proxy = Proxy::start(&pem, pod.path(ROOTS).into(), index);
    let mut record = pod.record(agent, pod.envoy.admin());
    record["agent"]["http_addr"] = format!("http://{}", proxy.address).into();
    record["agent"]["tls"]["ca_path"] = pod.path("connect-roots").into();
    pod.write("registration.json", &record.to_string());
    let sidecar = pod.run();
    (pod, proxy, sidecar)
}

#[test]
fn a_blocking_query_that_returns_at_once_is_not_repeated_back_to_back() {
    let agent = ScriptedAgent::start();
    let (_pod, proxy, _sidecar) = run(&agent, |_| 7);
    // The keeper retries about twice a second. The pauses between queries are random: 2.5 s on
    // average, and most unlikely to be all short.
    await_that("further requests of the keeper", || proxy.others() >= 6);
    let asked = proxy.inodes().len();
    assert!((1..30).contains(&asked), "asked for the roots {asked} times");
}

/// Each write is synced to the disk.
#[test]
fn roots_that_are_unchanged_are_not_written_again() {
    let agent = ScriptedAgent::start();
    let (_pod, proxy, _sidecar) = run(&agent, |before| before.min(3) + 1);
    await_that("answers with another index", || proxy.inodes().len() >= 4);
    let inodes = proxy.inodes();
    // The first answer is written, because the file may be older.
    assert_ne!(inodes[0], inodes[1]);
    assert_eq!(inodes[1..4], [inodes[1]; 3], "{inodes:?}");
}

/// As an agent answers in the first seconds after its start.
#[test]
fn an_agent_that_answers_with_an_error_is_soon_asked_again() {
    let agent = ScriptedAgent::start();
    let (_pod, proxy, _sidecar) = run(&agent, |before| before);
    await_that("another query", || proxy.inodes().len() >= 2);
}
