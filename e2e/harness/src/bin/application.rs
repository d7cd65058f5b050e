//! An application for the tests of protocols: `application LISTEN`. It speaks
//! HTTP/1 and HTTP/2 without TLS, and answers
//!
//! - a request to upgrade with 101, and then with each byte that it gets;
//! - a gRPC call with its own message, and trailers;
//! - `/events/N` with N server-sent events, ten a second;
//! - everything else with the request's path.

use std::convert::Infallible;
use std::io::Write;
use std::pin::Pin;
use std::process::ExitCode;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, UPGRADE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::net::TcpListener;
use tokio::time::{Interval, interval};

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let listen = std::env::args().nth(1).unwrap_or_default();
    match TcpListener::bind(&listen).await {
        Ok(listener) => serve(&listener).await,
        Err(error) => {
            // There is no log here to write to.
            let _ = writeln!(std::io::stderr(), "application: cannot listen on {listen}: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(listener: &TcpListener) -> ExitCode {
    while let Ok((stream, _)) = listener.accept().await {
        // A client that disconnects early is not an error.
        tokio::spawn(async move {
            let builder = Builder::new(TokioExecutor::new());
            let stream = TokioIo::new(stream);
            drop(builder.serve_connection_with_upgrades(stream, service_fn(answer)).await);
        });
    }
    ExitCode::FAILURE
}

async fn answer(mut request: Request<Incoming>) -> hyper::Result<Answer> {
    if let Some(protocol) = request.headers().get(UPGRADE).cloned() {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let (mut from, mut into) = tokio::io::split(TokioIo::new(upgraded));
            let _ = tokio::io::copy(&mut from, &mut into).await;
        });
        let mut answer = Response::new(text(""));
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        answer.headers_mut().insert(UPGRADE, protocol);
        answer.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
        return Ok(answer);
    }
    let kind = request.headers().get(CONTENT_TYPE).cloned();
    if let Some(kind) = kind.filter(|kind| kind == "application/grpc") {
        let message = request.into_body().collect().await?.to_bytes();
        let trailers = HeaderMap::from_iter([(
            hyper::header::HeaderName::from_static("grpc-status"),
            HeaderValue::from_static("0"),
        )]);
        let body = Stream::new(message, 1, Some(trailers));
        let mut answer = Response::new(body.map_err(|never| match never {}).boxed());
        answer.headers_mut().insert(CONTENT_TYPE, kind);
        return Ok(answer);
    }
    let path = request.uri().path();
    let events = path.strip_prefix("/events/").and_then(|count| count.parse().ok());
    let Some(left) = events else { return Ok(Response::new(text(path))) };
    let events = Stream::new(Bytes::from_static(b"data: event\n\n"), left, None);
    let mut answer = Response::new(events.map_err(|never| match never {}).boxed());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    Ok(answer)
}

fn text(text: &str) -> BoxBody<Bytes, hyper::Error> {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes()));
    body.map_err(|never| match never {}).boxed()
}

/// A body of unknown length: the same bytes, ten times a second.
struct Stream {
    data: Bytes,
    left: u32,
    trailers: Option<HeaderMap>,
    interval: Interval,
}

impl Stream {
    fn new(data: Bytes, left: u32, trailers: Option<HeaderMap>) -> Self {
        Self { data, left, trailers, interval: interval(Duration::from_millis(100)) }
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        ready!(self.interval.poll_tick(context));
        self.left -= 1;
        Poll::Ready(Some(Ok(Frame::data(self.data.clone()))))
    }
}
