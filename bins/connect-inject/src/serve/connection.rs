//! Accepts connections, with TLS if there is a certificate. Their number, age and idle time
//! are limited. At the limit, the connection that has been idle longest is closed in favour
//! of the new one.

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
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
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::certificates::Certificates;
use super::open::{Limits, Open, Ticket};
use super::unread::Unread;

/// Maximum number of bytes of an HTTP/2 connection, which carries many requests, that have
/// arrived and are not read yet; below, of an HTTP/1 connection.
const MOST_UNREAD: u32 = 64 << 10;
const MOST_UNREAD_HTTP1: usize = 32 << 10;
/// Maximum number of concurrent requests on an HTTP/2 connection. An API server opens
/// another connection for more.
const MOST_STREAMS: u32 = 16;
/// Timeout of the TLS handshake, and again of the first request.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// Idle timeout. Longer than the API server's 90 s, so that the API server closes the
/// connection: a request that crosses with our close would fail.
const IDLE: Duration = Duration::from_secs(120);
/// Maximum age of a connection, so that load reaches new replicas and clients see new
/// certificates.
const MOST_AGE: Duration = Duration::from_secs(600);
/// Maximum time for requests in flight once a connection is being closed.
const LAST_REQUEST: Duration = Duration::from_secs(15);

/// Serves connections until `stop`, then waits for the open ones to end.
pub(crate) async fn serve<H, F>(
    listener: TcpListener,
    tls: Option<Arc<Certificates>>,
    (limits, unread): (Limits, Unread),
    handler: H,
    stop: CancellationToken,
) where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Bytes>> + Send + 'static,
{
    let connections = TaskTracker::new();
    let open = Open::new(limits);
    while let Some(stream) = stop.run_until_cancelled(next(&listener)).await {
        let Some((stream, peer)) = stream else { continue };
        let ticket = open.enter(peer);
        let (tls, handler, stop) = (tls.clone(), handler.clone(), stop.clone());
        let unread = unread.clone();
        connections.spawn(async move {
            let closed = ticket.closed();
            let serving = async {
                match tls {
                    None => http(stream, false, (&ticket, &unread), handler, stop).await,
                    Some(certificates) => {
                        https(stream, &certificates, (&ticket, &unread), handler, stop).await;
                    }
                }
            };
            tokio::select! {
                () = serving => {}
                () = closed.cancelled() => {
                    tracing::debug!(%peer, "closed a connection to make room for another");
                }
            }
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Accepts a connection; returns it with the client's address.
async fn next(listener: &TcpListener) -> Option<(TcpStream, IpAddr)> {
    match listener.accept().await {
        Ok((stream, peer)) => {
            // Responses are short; Nagle's algorithm would only delay them.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "cannot turn Nagle's algorithm off");
            }
            Some((stream, peer.ip()))
        }
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            // Probably out of file descriptors: wait until some are closed.
            sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn https<H, F>(
    stream: TcpStream,
    certificates: &Certificates,
    (ticket, unread): (&Ticket, &Unread),
    handler: H,
    stop: CancellationToken,
) where
    H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Bytes>> + Send + 'static,
{
    let peer = ticket.peer();
    let Some(config) = certificates.current() else {
        tracing::info!(%peer, "closed a connection: there is no certificate yet");
        return;
    };
    let handshake = TlsAcceptor::from(config).accept(stream);
    match timeout(FIRST_REQUEST, handshake).await {
        Ok(Ok(stream)) => {
            let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            http(stream, is_h2, (ticket, unread), handler, stop).await;
        }
        Ok(Err(error)) => tracing::info!(%peer, %error, "the TLS handshake failed"),
        Err(_) => tracing::info!(%peer, "the TLS handshake timed out"),
    }
}

async fn http<I, H, F>(
    stream: I,
    is_h2: bool,
    (ticket, unread): (&Ticket, &Unread),
    handler: H,
    stop: CancellationToken,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Bytes>> + Send + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(MOST_UNREAD_HTTP1);
    // Limits what clients can make us buffer before it is read.
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_connection_window_size(MOST_UNREAD)
        .initial_stream_window_size(MOST_UNREAD)
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(16 << 10);
    let builder = if is_h2 { builder.http2_only() } else { builder.http1_only() };

    let service = service_fn(|request| {
        let busy = ticket.busy();
        let answer = handler(request);
        let (unread, id, closed) = (unread.clone(), ticket.id(), ticket.closed());
        async move {
            let answer = answer.await;
            drop(busy);
            Ok::<_, Infallible>(answer.map(|body| Full::new(unread.hold(body, id, closed))))
        }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = ticket.silent(FIRST_REQUEST) => return,
        () = either(stop.cancelled(), either(sleep(MOST_AGE), ticket.idle(IDLE))) => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_REQUEST, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %ticket.peer(), %error, "the connection failed");
    }
}

async fn either(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    tokio::select! {
        () = one => {}
        () = other => {}
    }
}
