//! What any client in the cluster can do to the injector, all at the same time, while a
//! well-behaved client keeps sending reviews; in a memory cgroup with the chart's limit.
//!
//! With `E2E_BIN_DIR`, which `scripts/test` sets, this tests the release binary; otherwise
//! the one of this build, outside a cgroup and with twice the memory, because a debug build
//! of the allocator writes to all memory that it hands out.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::{
    Certified, ECHO_SERVER, Injector, PATIENCE, client, install_provider, review, yaml,
};

/// More than the injector accepts on a connection at a time.
const MOST_STREAMS: usize = 64;
/// Maximum resident memory of the injector under any load. Observed: 37 to 42 MiB.
const MOST: usize = 64 << 20;

/// The injector, in a memory cgroup if the user may create one.
struct Confined {
    injector: Injector,
    is_shipped: bool,
    /// Dropped after the injector: a cgroup with a process in it can't be removed.
    _group: Option<Cgroup>,
}

/// A memory cgroup; removed when dropped.
struct Cgroup(PathBuf);

impl Confined {
    #[expect(clippy::print_stderr, reason = "a skip is to be seen")]
    fn start() -> Self {
        let shipped =
            std::env::var_os("E2E_BIN_DIR").map(|bins| PathBuf::from(bins).join("connect-inject"));
        let injector = match &shipped {
            Some(program) => Injector::start_program(program, Certified::new(), &[]),
            None => Injector::start_showing(Certified::new(), &[]),
        };
        let group = shipped.as_ref().and_then(|_| Cgroup::around(&injector));
        if group.is_none() {
            let why = "without a memory cgroup, what is resident is measured only";
            match &shipped {
                Some(_) => drop(testkit::or_skip::<()>(Err(why.to_owned()))),
                None => eprintln!("{why}"),
            }
        }
        Self { injector, is_shipped: shipped.is_some(), _group: group }
    }

    /// Maximum resident memory in bytes so far; without the mapped binary for a debug
    /// build.
    fn most_resident(&self) -> usize {
        let (most, of_file) = self.injector.most_resident();
        if self.is_shipped { most } else { most - of_file }
    }

    #[expect(clippy::print_stderr, reason = "figures")]
    fn stage(&self, what: &str) {
        eprintln!("after {what}: {} KiB resident at most", self.most_resident() >> 10);
    }
}

impl Cgroup {
    /// `None` if the user may not create one.
    #[expect(clippy::disallowed_methods, reason = "files of the kernel")]
    fn around(injector: &Injector) -> Option<Self> {
        let name = format!("connect-inject-load-{}", injector.id());
        for (root, limit) in
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
        {
            let folder = PathBuf::from(root).join(&name);
            if std::fs::create_dir(&folder).is_err() {
                continue;
            }
            let group = Self(folder);
            let write = |file: &str, text: String| std::fs::write(group.0.join(file), text).is_ok();
            if group.0.join(limit).exists()
                && write(limit, limit_of_the_chart().to_string())
                && write("cgroup.procs", injector.id().to_string())
            {
                return Some(group);
            }
        }
        None
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The process has ended; the kernel may need a moment to notice.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The chart's memory limit in bytes.
fn limit_of_the_chart() -> usize {
    let values = yaml(include_str!("../../chart/values.yaml"));
    let limit = values["connectInject"]["resources"]["limits"]["memory"].as_str().unwrap();
    limit.strip_suffix("Mi").unwrap().parse::<usize>().unwrap() << 20
}

/// A connection from one of several addresses, with a small receive buffer.
async fn connection(to: &str, from: usize) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    let from = SocketAddr::from(([127, 0, 0, 2 + u8::try_from(from % 8).unwrap()], 0));
    socket.bind(from).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(to.parse().unwrap()).await.ok()
}

async fn encrypted(
    injector: &Injector,
    from: usize,
    protocol: &str,
) -> Option<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(injector.pair.cert.as_bytes()).unwrap()).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let stream = connection(&injector.address, from).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()
}

/// A connection on which `text` was written and nothing is read.
async fn silent(injector: &Injector, from: usize, text: &[u8]) -> Option<TlsStream<TcpStream>> {
    let mut stream = encrypted(injector, from, "http/1.1").await?;
    let write = async {
        stream.write_all(text).await?;
        stream.flush().await
    };
    // The injector stops reading at its limit.
    let _ = tokio::time::timeout(Duration::from_secs(1), write).await;
    Some(stream)
}

fn post(headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST /mutate HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// A request that announces a length and stops after its first bytes.
fn slow(announced: usize, sent: usize) -> Vec<u8> {
    post(&format!("Content-Length: {announced}"), &vec![b' '; sent])
}

type Sender = SendRequest<BoxBody<Bytes, std::convert::Infallible>>;

/// An HTTP/2 connection with a window of one byte for each response.
async fn narrow(injector: &Injector, from: usize) -> Option<Sender> {
    let stream = encrypted(injector, from, "h2").await?;
    let (sender, connection) = Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1)
        .handshake(TokioIo::new(stream))
        .await
        .ok()?;
    tokio::spawn(connection);
    Some(sender)
}

/// A body that is announced but never sent.
struct Never(u64);

impl Body for Never {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Pending
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}

/// Sends as many concurrent requests as the connection allows; reads no response.
async fn flood(
    mut sender: Sender,
    body: impl Fn() -> BoxBody<Bytes, std::convert::Infallible>,
) -> Sender {
    for _ in 0..MOST_STREAMS {
        let request = Request::post("https://127.0.0.1/mutate").body(body()).unwrap();
        if sender.ready().await.is_err() {
            break;
        }
        // The response is kept with its stream while the connection exists.
        let answer = sender.send_request(request);
        tokio::spawn(async move {
            let _answer = answer.await;
            std::future::pending::<()>().await;
        });
    }
    sender
}

fn pod(annotations: &Value, containers: usize) -> Value {
    let containers: Vec<_> = (0..containers).map(|n| json!({"name": format!("c{n}")})).collect();
    json!({"metadata": {"name": "hostile", "annotations": annotations}, "spec": {"containers": containers}})
}

fn upstreams(count: usize) -> String {
    (0..count).map(|n| format!("u{n}:{}", 1024 + n % 60_000)).collect::<Vec<_>>().join(",")
}

const INJECT: &str = "consul.hashicorp.com/connect-inject";
const UPSTREAMS: &str = "consul.hashicorp.com/connect-service-upstreams";

fn of(pod: &Value) -> String {
    review("v1", "u", pod).to_string()
}

/// A small review with a large response.
fn amplified() -> String {
    of(&pod(&json!({INJECT: "true", UPSTREAMS: upstreams(256)}), 8))
}

/// Large reviews, of a realistic size.
fn large() -> String {
    let mut pod = yaml(ECHO_SERVER);
    pod["metadata"]["annotations"]["example.com/large"] = "x".repeat(200 << 10).into();
    let variable = json!({"name": "NAME", "value": "x".repeat(10_000)});
    pod["spec"]["containers"][0]["env"] = vec![variable; 130].into();
    of(&pod)
}

/// Bodies that once took seconds, hundreds of megabytes, or thousands of log lines.
fn hostile() -> Vec<String> {
    let mut unknown = json!({INJECT: "true"});
    for n in 0..60_000 {
        unknown[format!("consul.hashicorp.com/connect-servic{n}")] = "".into();
    }
    let good = of(&yaml(ECHO_SERVER));
    let parts = |part: &str| {
        let parts = part.repeat((3 << 20) / part.len());
        good.replace("\"containers\":[", &format!("\"containers\":[{parts}"))
    };
    let annotations = |part: &str| {
        let parts: Vec<_> =
            (0..(3 << 20) / (part.len() + 10)).map(|n| format!("\"{n}\":{part},")).collect();
        good.replace("\"annotations\":{", &format!("\"annotations\":{{{}", parts.concat()))
    };
    let with =
        |annotation: &str, value: String| of(&pod(&json!({INJECT: "true", annotation: value}), 1));
    vec![
        of(&pod(&json!({INJECT: "true", UPSTREAMS: upstreams(350)}), 350)),
        of(&pod(&json!({INJECT: "true", UPSTREAMS: upstreams(256)}), 1000)),
        of(&pod(&json!({INJECT: "true", UPSTREAMS: upstreams(256)}), 30_000)),
        of(&pod(&json!({INJECT: "true", UPSTREAMS: upstreams(1000)}), 1000)),
        with(UPSTREAMS, "a:1,".repeat(250_000)),
        with(UPSTREAMS, "a.b:1,a-b:2,".repeat(100)),
        with(UPSTREAMS, ",".repeat(3 << 20)),
        with("consul.hashicorp.com/envoy-extra-args", "a ".repeat(1 << 20)),
        with("consul.hashicorp.com/service-tags", "\\,".repeat(1 << 20)),
        with("consul.hashicorp.com/proxy-config-map", "[".repeat(1 << 20)),
        with(
            "consul.hashicorp.com/consul-sidecar-user-volume",
            format!("[{}", "{},".repeat(1 << 18)),
        ),
        of(&pod(&unknown, 1)),
        annotations("\"\""),
        annotations("[[],[]]"),
        annotations("1e300"),
        parts("{\"name\":\"a\"},"),
        parts("{\"name\":\"a\",\"env\":[{},{}]},"),
        parts("{\"a\":{}},"),
        parts("[],"),
        parts("[[[[],[]]]],"),
        good.replace(
            "AdmissionReview",
            "x\\n2026-01-01T00:00:00Z  INFO review{uid=forged}: injected",
        ),
        good.replace("\"uid\":\"u\"", &format!("\"uid\":\"{}\\nforged\"", "u".repeat(1_000_000))),
        good.replace("\"uid\":\"u\"", &format!("\"uid\":\"{}\"", "\\u0000".repeat(500_000))),
        good.replace("echo-server", &format!("{}\\nforged", "n".repeat(300_000))),
        "[".repeat(1 << 20),
        "{\"a\":".repeat(600_000),
        "\"".to_owned() + &"\\u00e9".repeat(600_000),
        " ".repeat(3 << 20),
    ]
}

/// Posts all bodies at once; counts each status, or `None` for no response.
async fn posted(
    injector: &Injector,
    bodies: impl IntoIterator<Item = String>,
) -> BTreeMap<Option<u16>, u32> {
    let mut posts = Vec::new();
    for body in bodies {
        let (client, url) = (client(&injector.pair), injector.url("/mutate"));
        posts.push(tokio::spawn(async move {
            let request = client.post(url).header("content-type", "application/json").body(body);
            let response = request.send().await.ok()?;
            let status = response.status().as_u16();
            let answer = response.bytes().await.ok()?;
            Some((status, answer.len()))
        }));
    }
    let mut statuses = BTreeMap::new();
    for post in posts {
        let answer = tokio::time::timeout(PATIENCE, post).await.unwrap().unwrap();
        if let Some((_, length)) = answer {
            assert!(length < 2 << 20, "an answer of {length} bytes");
        }
        *statuses.entry(answer.map(|(status, _)| status)).or_default() += 1;
    }
    statuses
}

/// Sends reviews without a pause until the attacks are over, and checks liveness; returns
/// how long each review took.
async fn honest(
    client: reqwest::Client,
    url: String,
    livez: String,
    over: Arc<AtomicBool>,
) -> Vec<Duration> {
    let body = review("v1", "honest", &yaml(ECHO_SERVER));
    let mut took = Vec::new();
    while !over.load(Ordering::Relaxed) || took.len() < 100 {
        let began = Instant::now();
        let answer = client.post(&url).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer["response"]["auditAnnotations"]["reason"], "requested");
        took.push(began.elapsed());
        if took.len() % 20 == 0 {
            assert_eq!(client.get(&livez).send().await.unwrap().status(), 200);
        }
    }
    took
}

#[expect(clippy::too_many_lines, reason = "one attack after the other")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_can_overload_the_injector() {
    install_provider();
    let confined = Confined::start();
    let injector = &confined.injector;
    let over = Arc::new(AtomicBool::new(false));
    // On a thread of its own, so that it does not wait for the attackers.
    let honest = std::thread::spawn({
        let asked = honest(
            client(&injector.pair),
            injector.url("/mutate"),
            injector.admin_url("/livez"),
            Arc::clone(&over),
        );
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(asked)
        }
    });

    // All at once: each waited for memory that another held.
    let statuses = posted(injector, std::iter::repeat_n(large(), 64)).await;
    // On a busy machine, some exceed the 10 s that a body may take.
    let [answered, late] = [200, 408].map(|s| statuses.get(&Some(s)).copied().unwrap_or_default());
    assert!(answered + late == 64 && answered > late, "{statuses:?}");
    confined.stage("large reviews");

    // Connections that send nothing, to both ports; some begin a request.
    let mut open = Vec::new();
    let half = [&[0x16, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff][..], &[0; 16_000]].concat();
    for n in 0..2000 {
        let mut stream = connection(&injector.address, n).await;
        if let Some(stream) = stream.as_mut().filter(|_| n % 4 == 0) {
            let _ = stream.write_all(&half).await;
        }
        open.extend(stream);
        if n % 4 == 0 {
            open.extend(connection(&injector.admin, n).await);
        }
    }
    confined.stage("idle connections");
    drop(open);

    // Requests that never end: bodies, headers, chunks.
    let mut silently = Vec::new();
    for n in 0..300 {
        silently.extend(silent(injector, n, &slow(30 << 10, 29 << 10)).await);
        if n % 10 == 0 {
            silently.extend(silent(injector, n, &slow(3 << 20, 2 << 20)).await);
        }
    }
    confined.stage("slow bodies");
    let header = format!("A: {}", "x".repeat(60_000));
    for n in 0..300 {
        silently.extend(
            silent(injector, n, post(&header, b"").strip_suffix(b"\r\n\r\n").unwrap()).await,
        );
    }
    confined.stage("endless headers");
    let chunk = format!("{:x}\r\n{}", 4 << 20, " ".repeat(1 << 20));
    for n in 0..40 {
        silently.extend(
            silent(injector, n, &post("Transfer-Encoding: chunked", chunk.as_bytes())).await,
        );
    }
    confined.stage("endless chunks");
    drop(silently);

    // Unread responses, each many times as large as its review, and endless streams.
    let amplified = amplified();
    let announced = format!("Content-Length: {}", amplified.len());
    let mut unread = Vec::new();
    for n in 0..200 {
        unread.extend(silent(injector, n, &post(&announced, amplified.as_bytes())).await);
    }
    confined.stage("unread answers");
    let mut streams = Vec::new();
    for n in 0..32 {
        if let Some(sender) = narrow(injector, n).await {
            streams.push(flood(sender, || Full::from(amplified.clone()).boxed()).await);
        }
    }
    confined.stage("unread answers of HTTP/2");
    for n in 0..200 {
        if let Some(sender) = narrow(injector, n).await {
            streams.push(flood(sender, || Never(30 << 10).boxed()).await);
        }
    }
    confined.stage("streams without a body");

    let statuses = posted(injector, hostile()).await;
    confined.stage("hostile reviews");
    drop((unread, streams));
    over.store(true, Ordering::Relaxed);
    let mut took = tokio::task::spawn_blocking(|| honest.join().unwrap()).await.unwrap();
    took.sort();
    let most = confined.most_resident();
    // Printed, not asserted: the durations depend on the load of the machine. Observed p99
    // on two busy cores: 8 to 36 ms.
    eprintln!(
        "{} honest reviews: p50 {:?}, p99 {:?}, longest {:?}; the others: {statuses:?}; {} KiB resident at most",
        took.len(),
        took[took.len() / 2],
        took[took.len() * 99 / 100],
        took[took.len() - 1],
        most >> 10
    );
    assert!(most < if confined.is_shipped { MOST } else { 2 * MOST }, "{most} bytes");
    injector.is_well().await;
    let mut confined = confined;
    confined.injector.signal(nix::sys::signal::Signal::SIGTERM);
    let lines = confined.injector.log_until("not ready any more");
    let strange: Vec<_> = lines.iter().filter(|line| !line.is_object()).collect();
    assert!(strange.is_empty(), "forged log lines: {strange:.2000?}");
    for line in &lines {
        let text = line.to_string();
        assert!(text.len() < 4096, "a line of {} bytes: {text:.300}", text.len());
    }
}
