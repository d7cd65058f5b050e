//! Serves Envoy's and the application's metrics in one response, on the port of
//! connect-init's `--prometheus-backend-port`. It listens on loopback; Prometheus scrapes
//! Envoy's Prometheus listener, which forwards the request.
//!
//! The metrics are passed on line by line, so that memory stays small, and end with two
//! metrics that say whether each part is complete. A client that stops reading is
//! disconnected after a timeout and does not block others meanwhile.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use runtime::{Exit, Failure};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::serve::page::{question, write_all};

/// The application's metrics endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Port on loopback.
    pub(crate) port: u16,
    pub(crate) path: String,
}

/// The server of the merged metrics.
#[derive(Debug)]
pub(crate) struct Merge {
    listener: TcpListener,
    envoy: SocketAddr,
    application: Source,
}

/// Path of the metrics on Envoy's admin listener, and here.
///
/// Source: Envoy's "Administration interface" page.
const PAGE: &str = "/stats/prometheus";

/// How long each part may take: together less than Prometheus' default timeout of 10 s.
const HALF: Duration = Duration::from_secs(4);

/// How long a request may take to arrive; Envoy sends it in one piece.
const QUESTION: Duration = Duration::from_secs(1);

/// Maximum number of scrapes at once: two Prometheus replicas and a person.
const AT_ONCE: usize = 4;

/// Maximum length of a line. Lines of metrics are far shorter.
const LONGEST_LINE: usize = 64 << 10;

/// Maximum size of each part, in bytes.
const LARGEST_HALF: usize = 16 << 20;

// === impl Merge ===

impl Merge {
    pub(crate) async fn listen(
        port: u16,
        envoy: SocketAddr,
        application: Source,
    ) -> Result<Self, Failure> {
        // The bootstrap expects it at the admin listener's address.
        let address = SocketAddr::new(envoy.ip(), port);
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Failure::new(
                Exit::Failure,
                format_args!("cannot serve merged metrics at {address}: {error}"),
            )
            .hint("set --merged-metrics-port to a port that nothing in the pod uses")
        })?;
        Ok(Self { listener, envoy, application })
    }

    /// Serves until the process exits.
    pub(crate) async fn serve(self) {
        let merge = Arc::new(self);
        let places = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            // Never an error: the semaphore is never closed.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let stream = match merge.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!("cannot accept a scrape: {error}");
                    tokio::time::sleep(QUESTION).await;
                    continue;
                }
            };
            let merge = Arc::clone(&merge);
            tokio::spawn(async move {
                if let Err(error) = merge.answer(&stream).await {
                    tracing::debug!("cannot answer a scrape: {error}");
                }
                drop(place);
            });
        }
    }

    async fn answer(&self, stream: &TcpStream) -> io::Result<()> {
        let line = timeout(QUESTION, question(stream)).await??;
        if line != format!("GET {PAGE}") {
            return write_all(
                stream,
                b"HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            )
            .await;
        }
        // The length is not known yet, so closing the connection ends the body.
        write_all(stream, b"HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\nconnection: close\r\n\r\n").await?;
        let application = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.application.port);
        let envoy = half("Envoy", stream, self.envoy, PAGE).await?;
        let application =
            half("the application", stream, application, &self.application.path).await?;
        let [envoy, application] = [envoy, application].map(u8::from);
        // The second has the name that consul-k8s uses.
        let end = format!(
            "# TYPE connect_merged_envoy_metrics_success gauge\n\
             connect_merged_envoy_metrics_success {envoy}\n\
             # TYPE consul_merged_service_metrics_success gauge\n\
             consul_merged_service_metrics_success {application}\n"
        );
        write_all(stream, end.as_bytes()).await
    }
}

/// Passes one part on. Returns whether it is complete; fails only if the client is gone.
async fn half(whose: &str, to: &TcpStream, address: SocketAddr, path: &str) -> io::Result<bool> {
    let mut lines = Lines::default();
    let passed = timeout(HALF, pass_on(to, address, path, &mut lines)).await;
    let problem = match passed {
        Ok(Ok(())) => return Ok(true),
        Ok(Err(Problem::Reader(error))) => return Err(error),
        Ok(Err(Problem::Source(problem))) => problem,
        Err(_) => format!("not complete within {HALF:?}"),
    };
    tracing::warn!("the metrics of {whose} at http://{address}{path} are missing: {problem}");
    Ok(false)
}

/// Why a part is not complete.
enum Problem {
    /// The client disconnected or stopped reading.
    Reader(io::Error),
    /// The metrics endpoint failed.
    Source(String),
}

async fn pass_on(
    to: &TcpStream,
    address: SocketAddr,
    path: &str,
    lines: &mut Lines,
) -> Result<(), Problem> {
    let stream = TcpStream::connect(address).await.map_err(source)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(source)?;
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .header(ACCEPT, "text/plain;version=0.0.4")
        .body(Empty::<Bytes>::new())
        .map_err(source)?;
    let exchange = async {
        let mut response = sender.send_request(request).await.map_err(source)?;
        if response.status() != StatusCode::OK {
            return Err(source(format_args!("status {}", response.status())));
        }
        let mut size = 0;
        while let Some(frame) = response.frame().await {
            let Ok(data) = frame.map_err(source)?.into_data() else { continue };
            size += data.len();
            if size > LARGEST_HALF {
                return Err(source(format_args!("more than {LARGEST_HALF} bytes")));
            }
            let whole = lines.add(&data).map_err(source)?;
            write_all(to, &whole).await.map_err(Problem::Reader)?;
        }
        write_all(to, &lines.end()).await.map_err(Problem::Reader)
    };
    // The connection's future does the I/O while the exchange waits.
    tokio::select! {
        biased;
        passed = exchange => passed,
        Err(error) = connection => Err(source(error)),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn source(problem: impl ToString) -> Problem {
    Problem::Source(problem.to_string())
}

/// Splits text that arrives in pieces into whole lines: a truncated line would make the
/// part that follows invalid, too.
#[derive(Debug, Default)]
struct Lines {
    rest: Vec<u8>,
}

// === impl Lines ===

impl Lines {
    /// Adds a piece. Returns the lines that are complete now.
    fn add(&mut self, data: &[u8]) -> Result<Vec<u8>, &'static str> {
        self.rest.extend_from_slice(data);
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let rest = self.rest.split_off(whole);
        let whole = std::mem::replace(&mut self.rest, rest);
        if self.rest.len() > LONGEST_LINE {
            return Err("a line is too long: these are not metrics");
        }
        Ok(without_end_mark(whole))
    }

    /// The rest, as a line.
    fn end(&mut self) -> Vec<u8> {
        let mut last = std::mem::take(&mut self.rest);
        if !last.is_empty() {
            last.push(b'\n');
        }
        without_end_mark(last)
    }
}

/// Removes OpenMetrics' end marker, because another part follows.
fn without_end_mark(lines: Vec<u8>) -> Vec<u8> {
    const MARK: &[u8] = b"# EOF\n";
    // Most pieces have no comments at all, and to look for one byte is far faster.
    let has_mark = || lines.windows(MARK.len()).any(|window| window == MARK);
    if !lines.contains(&MARK[0]) || !has_mark() {
        return lines;
    }
    let kept = lines.split_inclusive(|byte| *byte == b'\n').filter(|line| *line != MARK);
    kept.flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_whole_lines() {
        let mut lines = Lines::default();
        let mut add = |data: &str| String::from_utf8(lines.add(data.as_bytes()).unwrap()).unwrap();
        assert_eq!(add("a 1\nb"), "a 1\n");
        assert_eq!(add(" 2"), "");
        assert_eq!(add("\nc 3\n# E"), "b 2\nc 3\n");
        assert_eq!(add("OF\nd 4"), "");
        assert_eq!(lines.end(), b"d 4\n");
        assert_eq!(lines.end(), b"");
        assert!(lines.add(&vec![b'x'; LONGEST_LINE + 1]).is_err());
    }
}
