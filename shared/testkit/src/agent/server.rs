//! HTTP over TCP, TLS and unix sockets, with faults.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::CONTENT_LENGTH;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::state::Shared;
use super::stream::{Reset, Socket, Stream};
use crate::fault::{Effect, Fault, Route};
use crate::model::Answer;
use crate::request;

/// Default wait of a blocking query, as in Consul.
const WAIT: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

#[derive(Debug)]
pub(crate) struct Answered {
    pieces: VecDeque<Bytes>,
    end: End,
}

/// The end of a body.
#[derive(Debug)]
enum End {
    Whole,
    /// Cut off after this part.
    Cut {
        out: bool,
    },
    Never,
}

/// Serves until `stop`; afterwards nothing listens and no connection is left.
pub(crate) async fn serve(
    listener: Listener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    mut stop: oneshot::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    loop {
        let socket = tokio::select! {
            _ = &mut stop => break,
            socket = listener.accept() => socket,
            Some(_) = connections.join_next() => continue,
        };
        // The client has disconnected already.
        let Ok(socket) = socket else { continue };
        let reset = Reset::default();
        let stream = Stream::new(socket, reset.clone());
        let shared = Arc::clone(&shared);
        let number = shared.change(|state| {
            state.connections += 1;
            state.connections
        });
        match tls.clone() {
            None => connections.spawn(connection(stream, number, reset, shared)),
            Some(tls) => connections.spawn(async move {
                if let Ok(stream) = tls.accept(stream).await {
                    connection(stream, number, reset, shared).await;
                }
            }),
        };
    }
    drop(listener);
    connections.shutdown().await;
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    number: usize,
    reset: Reset,
    shared: Arc<Shared>,
) {
    let service = service_fn(|request| heard(request, number, &reset, &shared));
    // Fails where a fault cuts the connection, or when the client disconnects.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// The answer; never returns if the connection has become silent, as neither request
/// nor answer arrives then.
async fn heard(
    request: Request<Incoming>,
    connection: usize,
    reset: &Reset,
    shared: &Shared,
) -> Result<Response<Answered>, io::Error> {
    if !shared.is_silent(connection) {
        let answered = answer(request, connection, reset, shared).await;
        if !shared.is_silent(connection) {
            return answered;
        }
    }
    std::future::pending().await
}

async fn answer(
    request: Request<Incoming>,
    connection: usize,
    reset: &Reset,
    shared: &Shared,
) -> Result<Response<Answered>, io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let request = request::Request::new(&head, body.to_vec(), connection);
    let fault = match shared.receive(&request) {
        None => return Ok(whole(ordinary(&request, shared).await)),
        Some(Effect::Hold(gate)) => {
            let _permit = gate.0.acquire().await.map_err(io::Error::other)?;
            return Ok(whole(ordinary(&request, shared).await));
        }
        Some(Effect::Fault(fault)) => fault,
    };
    match fault {
        Fault::Status(status, words) => Ok(whole(Answer::words(status, words))),
        Fault::Hidden => Ok(whole(Answer { is_filtered: true, ..Answer::words(200, "[]") })),
        Fault::Hang => std::future::pending().await,
        Fault::Slow(delay) => {
            tokio::time::sleep(delay).await;
            Ok(whole(ordinary(&request, shared).await))
        }
        Fault::Reset => {
            reset.demand();
            Err(cut())
        }
        Fault::LostAnswer => {
            ordinary(&request, shared).await;
            reset.demand();
            Err(cut())
        }
        Fault::ResetMidAnswer => {
            let response = half(&ordinary(&request, shared).await);
            reset.demand();
            Ok(response)
        }
        Fault::Truncated => Ok(half(&ordinary(&request, shared).await)),
        Fault::Garbage => Ok(whole(Answer::words(200, "<!DOCTYPE html><title>It works!</title>"))),
        Fault::Huge => Ok(Response::new(Answered { pieces: VecDeque::new(), end: End::Never })),
    }
}

/// The answer without faults, after the wait of a blocking query.
async fn ordinary(request: &request::Request, shared: &Shared) -> Answer {
    if let (Some(Route::Service), Some(known)) =
        (Route::asked_by(request), request.query_value("hash"))
    {
        let id = request.id().unwrap_or_default();
        let wait = request.query_value("wait").map_or(Some(WAIT), |text| milliseconds(&text));
        let Some(wait) = wait else {
            return Answer::words(400, "Invalid wait time");
        };
        let until = Instant::now() + wait.min(shared.longest_wait());
        let mut news = shared.news();
        while shared.look(|state| state.model.content_hash(&id)).as_ref() == Some(&known) {
            tokio::select! {
                _ = news.changed() => {}
                () = tokio::time::sleep_until(until) => break,
            }
        }
    }
    shared.change(|state| state.model.answer(request))
}

fn milliseconds(text: &str) -> Option<Duration> {
    text.strip_suffix("ms")?.parse().ok().map(Duration::from_millis)
}

fn cut() -> io::Error {
    io::Error::other("cut, as the test asked")
}

fn whole(answer: Answer) -> Response<Answered> {
    let Answer { status, content_hash, is_filtered, body } = answer;
    let mut response = Response::builder().status(status);
    if let Some(hash) = content_hash {
        response = response.header("X-Consul-Contenthash", hash);
    }
    if is_filtered {
        response = response.header("X-Consul-Results-Filtered-By-ACLs", "true");
    }
    let pieces = VecDeque::from([Bytes::from(body)]);
    response.body(Answered { pieces, end: End::Whole }).expect("a status that is one")
}

/// Half of the answer under its full declared length.
fn half(answer: &Answer) -> Response<Answered> {
    let body = answer.body.as_bytes();
    let pieces = VecDeque::from([Bytes::copy_from_slice(&body[..body.len() / 2])]);
    Response::builder()
        .status(answer.status)
        .header(CONTENT_LENGTH, body.len().max(100))
        .body(Answered { pieces, end: End::Cut { out: false } })
        .expect("a status that is one")
}

// === impl Listener ===

impl Listener {
    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Socket::Tcp(stream))
            }
            Self::Unix(listener) => Ok(Socket::Unix(listener.accept().await?.0)),
        }
    }
}

// === impl Answered ===

impl Body for Answered {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(piece) = self.pieces.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match &mut self.end {
            End::Whole => Poll::Ready(None),
            End::Cut { out: true } => Poll::Ready(Some(Err(cut()))),
            End::Cut { out } => {
                // The server flushes when there is no more data for now.
                *out = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            End::Never => Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![b' '; 1 << 16]))))),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.end {
            End::Whole => {
                SizeHint::with_exact(self.pieces.iter().map(|piece| piece.len() as u64).sum())
            }
            End::Cut { .. } | End::Never => SizeHint::default(),
        }
    }
}
