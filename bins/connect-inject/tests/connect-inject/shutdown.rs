//! Shutdown, as the kubelet requests it.

use std::sync::Arc;

use nix::sys::signal::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::harness::{ECHO_SERVER, Injector, PATIENCE, client, review, until, yaml};

#[tokio::test]
async fn it_keeps_serving_while_it_is_unready() {
    // Longer than any test: only the second signal ends the process.
    let mut injector = Injector::start(&["--shutdown-delay", "1h"]);
    injector.signal(Signal::SIGTERM);
    injector.await_log("not ready any more");
    let client = client(&injector.pair);
    let status =
        async |path| client.get(injector.admin_url(path)).send().await.unwrap().status().as_u16();
    // The log line is written before readiness fails.
    until(async || match status("/readyz").await {
        503 => Ok(()),
        other => Err(other),
    })
    .await;
    assert_eq!(status("/livez").await, 200);
    injector.is_well().await;

    injector.signal(Signal::SIGINT);
    assert_eq!(injector.await_exit().code(), Some(1));
}

#[tokio::test]
async fn reviews_in_flight_are_completed() {
    let mut injector = Injector::start(&["--shutdown-delay", "0s"]);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(injector.pair.cert.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(&injector.address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();

    let body = review("v1", "late", &yaml(ECHO_SERVER)).to_string();
    let head = format!(
        "POST /mutate HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // `100 Continue` shows that the request is in flight.
    let mut answer = vec![0; 25];
    timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, b"HTTP/1.1 100 Continue\r\n\r\n");
    injector.signal(Signal::SIGTERM);
    injector.await_log("not ready any more");
    // The webhook's port is closed.
    until(async || TcpStream::connect(&injector.address).await.map_or_else(|_| Ok(()), Err)).await;

    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // The server sends no TLS close_notify; all data has arrived by then.
    let _ = timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains(r#""uid":"late""#), "{answer}");
    assert_eq!(injector.await_exit().code(), Some(0));
}

// Multi-threaded, because the client must notice the end while this thread waits.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_does_not_delay_the_shutdown() {
    let mut injector = Injector::start(&["--shutdown-delay", "0s"]);
    // The client's pool keeps its connection.
    let client = client(&injector.pair);
    let request = client.post(injector.url("/mutate")).json(&review("v1", "u", &yaml(ECHO_SERVER)));
    assert_eq!(request.send().await.unwrap().status(), 200);
    injector.signal(Signal::SIGINT);
    injector.await_log("no reviews in flight");
    assert_eq!(injector.await_exit().code(), Some(0));
}
