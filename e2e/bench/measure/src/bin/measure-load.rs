//! Sends reviews to a webhook over kept-alive TLS connections, and prints as JSON how many
//! were answered and how long that took.
//!
//! Without a rate, each connection sends the next review when the last is answered: this
//! measures the throughput, and latencies under saturation. With a rate, reviews are due at
//! fixed times, and the latency counts from the time when a review was due, even if it had to
//! wait for another's answer.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsConnector;

/// Send reviews to a webhook, and print how long the answers took
#[derive(Clone, Parser)]
struct Args {
    /// Address of the webhook
    #[arg(long)]
    address: SocketAddr,
    /// Expected certificate, in PEM
    #[arg(long)]
    ca: PathBuf,
    /// File with the review
    #[arg(long)]
    body: PathBuf,
    /// Text that each answer must contain
    #[arg(long, default_value = "\"allowed\":true")]
    expect: String,
    /// Number of connections
    #[arg(long, default_value_t = 1)]
    connections: u32,
    /// Duration in milliseconds
    #[arg(long, default_value_t = 1000)]
    millis: u64,
    /// Number of reviews, however long they take [default: as many as the duration allows]
    #[arg(long)]
    reviews: Option<u64>,
    /// Reviews per second, over all connections [default: as fast as they are answered]
    #[arg(long)]
    rate: Option<u32>,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

// One thread, to leave the other cores to the webhook.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(line) => {
            let _ = writeln!(std::io::stdout(), "{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "measure-load: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<String, Error> {
    let body = Bytes::from(std::fs::read(&args.body)?);
    let length = body.len();
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&args.ca)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(tls));
    let barrier = Arc::new(Barrier::new(usize::try_from(args.connections)?));
    let mut workers = Vec::new();
    for index in 0..args.connections {
        let (args, connector) = (args.clone(), connector.clone());
        let (body, barrier) = (body.clone(), Arc::clone(&barrier));
        workers.push(tokio::spawn(worker(index, args, connector, body, barrier)));
    }
    let mut latencies = Vec::new();
    let mut took = Duration::ZERO;
    for worker in workers {
        let (mut found, span) = worker.await??;
        latencies.append(&mut found);
        took = took.max(span);
    }
    latencies.sort_unstable();
    let at = |share: usize| {
        let index = (latencies.len() * share / 1000).min(latencies.len().saturating_sub(1));
        latencies.get(index).map_or(0, Duration::as_nanos)
    };
    Ok(json!({
        "reviews": latencies.len(),
        "bytes": length,
        "took_ns": took.as_nanos(),
        "p50_ns": at(500),
        "p99_ns": at(990),
        "max_ns": at(1000),
    })
    .to_string())
}

/// Runs one connection. Returns its latencies, and how long it was busy.
async fn worker(
    index: u32,
    args: Args,
    connector: TlsConnector,
    body: Bytes,
    barrier: Arc<Barrier>,
) -> Result<(Vec<Duration>, Duration), Error> {
    let connected = connect(&args, &connector).await;
    // Even if this connection failed, because the others wait for it.
    barrier.wait().await;
    let mut sender = connected?;
    let began = Instant::now();
    let end = began + Duration::from_millis(args.millis);
    let share = args.reviews.map(|reviews| reviews / u64::from(args.connections));
    let between = args.rate.map(|rate| Duration::from_secs(1) * args.connections / rate);
    let first = between.map(|between| began + between * index / args.connections);
    let mut latencies: Vec<Duration> = Vec::new();
    loop {
        let sent = u32::try_from(latencies.len())?;
        let due =
            first.zip(between).map_or_else(Instant::now, |(first, between)| first + between * sent);
        let over = match share {
            Some(share) => u64::from(sent) >= share,
            None => due >= end,
        };
        if over {
            return Ok((latencies, began.elapsed()));
        }
        // If the last answer was late, this review was due before. Otherwise don't count the
        // timer's delay of a millisecond and more.
        let mut since = due;
        if due > Instant::now() {
            sleep_until(due).await;
            since = Instant::now();
        }
        review(&mut sender, &args, body.clone()).await?;
        latencies.push(since.elapsed());
    }
}

async fn connect(args: &Args, connector: &TlsConnector) -> Result<SendRequest<Full<Bytes>>, Error> {
    let stream = TcpStream::connect(args.address).await?;
    stream.set_nodelay(true)?;
    let stream = connector.connect(ServerName::from(args.address.ip()), stream).await?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn review(
    sender: &mut SendRequest<Full<Bytes>>,
    args: &Args,
    body: Bytes,
) -> Result<(), Error> {
    let request = Request::post("/mutate?timeout=5s")
        .header(HOST, args.address.to_string())
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))?;
    sender.ready().await?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let answer = answer.into_body().collect().await?.to_bytes();
    let expected = args.expect.as_bytes();
    if status != StatusCode::OK || !answer.windows(expected.len()).any(|part| part == expected) {
        return Err(format!("answered {status}: {}", String::from_utf8_lossy(&answer)).into());
    }
    Ok(())
}
