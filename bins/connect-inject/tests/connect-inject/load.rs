//! What any client in the cluster may do to the injector, all at once, while an
//! honest one goes on asking: in a memory cgroup of the chart's limit, where the
//! machine allows one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

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

/// The limit of the chart.
const LIMIT: usize = 256 << 20;
/// What the injector may have in RAM, whatever is sent: 64 MiB, and half as much
/// again for a build without optimization.
const MOST: usize = if cfg!(debug_assertions) { 96 << 20 } else { 64 << 20 };

/// A memory cgroup with the injector in it; removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    /// None where this user can make none, which is said.
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
                && write(limit, LIMIT.to_string())
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

/// A connection from one of several addresses.
async fn connection(to: &str, from: usize) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    let from = SocketAddr::from(([127, 0, 0, 2 + u8::try_from(from % 8).unwrap()], 0));
    socket.bind(from).unwrap();
    socket.connect(to.parse().unwrap()).await.ok()
}

async fn encrypted(injector: &Injector, from: usize) -> Option<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(injector.pair.cert.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let stream = connection(&injector.address, from).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()
}

/// A request that says how long it is, and stops after its first bytes.
async fn slow(
    injector: &Injector,
    from: usize,
    announced: usize,
    sent: usize,
) -> Option<TlsStream<TcpStream>> {
    let mut stream = encrypted(injector, from).await?;
    let head = format!("POST /mutate HTTP/1.1\r\nHost: x\r\nContent-Length: {announced}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    stream.write_all(&vec![b' '; sent]).await.ok()?;
    stream.flush().await.ok()?;
    Some(stream)
}

fn pod(annotations: &Value, containers: usize) -> Value {
    let containers: Vec<_> = (0..containers).map(|n| json!({"name": format!("c{n}")})).collect();
    json!({"metadata": {"name": "hostile", "annotations": annotations}, "spec": {"containers": containers}})
}

fn upstreams(count: usize) -> String {
    (0..count).map(|n| format!("u{n}:{}", 1024 + n % 60_000)).collect::<Vec<_>>().join(",")
}

/// Bodies that once took seconds, hundreds of megabytes, or lines of the log.
fn hostile() -> Vec<String> {
    let inject = "consul.hashicorp.com/connect-inject";
    let list = "consul.hashicorp.com/connect-service-upstreams";
    let mut unknown = json!({inject: "true"});
    for n in 0..60_000 {
        unknown[format!("consul.hashicorp.com/connect-servic{n}")] = "".into();
    }
    let of = |pod: &Value| review("v1", "u", pod).to_string();
    let good = of(&yaml(ECHO_SERVER));
    let parts = |part: &str| {
        let parts = part.repeat((3 << 20) / part.len());
        good.replace("\"containers\":[", &format!("\"containers\":[{parts}"))
    };
    vec![
        of(&pod(&json!({inject: "true", list: upstreams(350)}), 350)),
        of(&pod(&json!({inject: "true", list: upstreams(256)}), 1000)),
        of(&pod(&json!({inject: "true", list: upstreams(1000)}), 1000)),
        of(&pod(&json!({inject: "true", list: "a:1,".repeat(250_000)}), 1)),
        of(&pod(&json!({inject: "true", list: "a.b:1,a-b:2,".repeat(100)}), 1)),
        of(&pod(&unknown, 1)),
        parts("{\"name\":\"a\"},"),
        parts("{\"a\":{}},"),
        parts("[],"),
        parts("[[[[],[]]]],"),
        good.replace(
            "AdmissionReview",
            "x\\n2026-01-01T00:00:00Z  INFO review{uid=forged}: injected",
        ),
        good.replace("\"uid\":\"u\"", &format!("\"uid\":\"{}\\nforged\"", "u".repeat(1_000_000))),
        good.replace("echo-server", &format!("{}\\nforged", "n".repeat(300_000))),
        "[".repeat(1 << 20),
        " ".repeat(3 << 20),
    ]
}

/// Posts all of them at once: how often each status came, or none.
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

#[expect(clippy::print_stderr, reason = "figures")]
fn stage(what: &str, injector: &Injector) {
    eprintln!("after {what}: {} KiB resident at most", injector.most_resident() >> 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_knocks_the_injector_over() {
    install_provider();
    // Declared first, and so dropped last: a cgroup with a process in it stays.
    let group;
    let injector = Injector::start_showing(Certified::new(), &[]);
    group = Cgroup::around(&injector);
    if group.is_none() {
        eprintln!("without a memory cgroup: what is resident is measured only");
    }
    let over = Arc::new(AtomicBool::new(false));
    let honest = tokio::spawn({
        let (client, url, livez) =
            (client(&injector.pair), injector.url("/mutate"), injector.admin_url("/livez"));
        let over = Arc::clone(&over);
        async move {
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
            took.sort();
            took
        }
    });

    // Large reviews, all at once: each waited for memory that another held (I3).
    let large = {
        let mut pod = yaml(ECHO_SERVER);
        pod["metadata"]["annotations"]["example.com/large"] = "x".repeat(200 << 10).into();
        let variable = json!({"name": "NAME", "value": "x".repeat(10_000)});
        pod["spec"]["containers"][0]["env"] = vec![variable; 130].into();
        review("v1", "large", &pod).to_string()
    };
    let statuses = posted(&injector, std::iter::repeat_n(large, 64)).await;
    // On a busy machine, some are too late for the 10 s that a body may take.
    let [answered, late] = [200, 408].map(|s| statuses.get(&Some(s)).copied().unwrap_or_default());
    assert!(answered + late == 64 && answered > late, "{statuses:?}");
    stage("large reviews", &injector);
    // Connections that say nothing, to both ports.
    let mut open = Vec::new();
    for n in 0..2000 {
        open.extend(connection(&injector.address, n).await);
        if n % 4 == 0 {
            open.extend(connection(&injector.admin, n).await);
        }
    }
    stage("idle connections", &injector);
    // Bodies that never arrive.
    let mut slowly = Vec::new();
    for n in 0..200 {
        slowly.extend(slow(&injector, n, 30 << 10, 29 << 10).await);
        if n % 10 == 0 {
            slowly.extend(slow(&injector, n, 3 << 20, 2 << 20).await);
        }
    }
    stage("slow bodies", &injector);
    let statuses = posted(&injector, hostile()).await;
    stage("hostile reviews", &injector);
    over.store(true, Ordering::Relaxed);
    let took = honest.await.unwrap();
    let most = injector.most_resident();
    eprintln!(
        "{} honest reviews: p50 {:?}, p99 {:?}, longest {:?}; the others: {statuses:?}; {} KiB resident at most",
        took.len(),
        took[took.len() / 2],
        took[took.len() * 99 / 100],
        took[took.len() - 1],
        most >> 10
    );
    assert!(most < MOST, "{most} bytes");
    drop((open, slowly));
    injector.is_well().await;
    let mut injector = injector;
    injector.signal(nix::sys::signal::Signal::SIGTERM);
    let lines = injector.log_until("not ready any more");
    for line in &lines {
        let text = line.to_string();
        assert!(line.is_object(), "a line of somebody else's: {text:.300}");
        assert!(text.len() < 4096, "a line of {} bytes: {text:.300}", text.len());
    }
    drop(injector);
    drop(group);
}
