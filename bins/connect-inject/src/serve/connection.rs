//! Connections: accepted, encrypted if there is a certificate, and bounded in
//! number and time whatever the client does.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::certificates::Certificates;

/// The most connections at a time. API servers are few, and keep few each.
const MOST_CONNECTIONS: usize = 512;
/// The most bytes of a connection that have arrived and are not read yet.
const MOST_UNREAD: usize = 128 << 10;
/// How long a client may take for the TLS handshake, and again for its first
/// request.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// How long a connection of HTTP/1.1 may be idle. Longer than the 90 s of the
/// API server, so that it is the one to close: a request that crosses with a
/// close fails.
const IDLE: Duration = Duration::from_secs(120);
/// How old a connection may become, so that new replicas get their share and
/// new certificates are seen.
const MOST_AGE: Duration = Duration::from_secs(600);
/// How long a request in flight may take once its connection is to end.
const LAST_REQUEST: Duration = Duration::from_secs(15);

/// Serves connections until `stop`, and then until the last of them has ended.
pub(crate) async fn serve<H, F>(
    listener: TcpListener,
    tls: Option<Arc<Certificates>>,
    handler: H,
    stop: CancellationToken,
) where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let connections = TaskTracker::new();
    let free = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    while let Some(stream) = stop.run_until_cancelled(next(&listener, &free)).await {
        let Some((stream, permit)) = stream else { continue };
        let (tls, handler, stop) = (tls.clone(), handler.clone(), stop.clone());
        connections.spawn(async move {
            match tls {
                None => http(stream, false, handler, stop).await,
                Some(certificates) => https(stream, &certificates, handler, stop).await,
            }
            drop(permit);
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// The next connection, when there may be one more.
async fn next(
    listener: &TcpListener,
    free: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(free).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            // Answers are short: none of them is to wait for another packet.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "cannot turn Nagle's algorithm off");
            }
            Some((stream, permit))
        }
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            // Out of file descriptors, most likely: let some become free.
            sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn https<H, F>(
    stream: TcpStream,
    certificates: &Certificates,
    handler: H,
    stop: CancellationToken,
) where
    H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let Some(config) = certificates.current() else {
        tracing::info!("no TLS handshake: there is no certificate yet");
        return;
    };
    let handshake = TlsAcceptor::from(config).accept(stream);
    match timeout(FIRST_REQUEST, handshake).await {
        Ok(Ok(stream)) => {
            let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            http(stream, is_h2, handler, stop).await;
        }
        Ok(Err(error)) => tracing::info!(%error, "no TLS handshake"),
        Err(_) => tracing::info!("no TLS handshake in time"),
    }
}

async fn http<I, H, F>(stream: I, is_h2: bool, handler: H, stop: CancellationToken)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(MOST_UNREAD);
    // What a client may send before it is read, so that many can't fill memory.
    let unread = u32::try_from(MOST_UNREAD).ok();
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_connection_window_size(unread)
        .initial_stream_window_size(unread)
        .max_header_list_size(16 << 10);
    let builder = if is_h2 { builder.http2_only() } else { builder.http1_only() };

    let began = CancellationToken::new();
    let service = service_fn(|request| {
        began.cancel();
        let answer = handler(request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = silent(&began) => return,
        () = either(stop.cancelled(), sleep(MOST_AGE)) => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_REQUEST, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Waits for a client that does not send its first request in time.
async fn silent(began: &CancellationToken) {
    if timeout(FIRST_REQUEST, began.cancelled()).await.is_ok() {
        std::future::pending::<()>().await;
    }
}

async fn either(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    tokio::select! {
        () = one => {}
        () = other => {}
    }
}
