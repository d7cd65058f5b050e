//! The floor of a webhook: the same server as the injector's, which answers `allowed` without
//! parsing the review. Or any other server that always gives the same answer.

use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio_rustls::TlsAcceptor;

/// Give the same answer to every request, over TLS
#[derive(Parser)]
struct Args {
    /// Address to listen on
    #[arg(long)]
    listen: SocketAddr,
    /// Certificate, in PEM
    #[arg(long)]
    cert: PathBuf,
    /// Private key, in PEM
    #[arg(long)]
    key: PathBuf,
    /// The answer, in JSON
    #[arg(long, default_value = ALLOWED)]
    answer: String,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

const ALLOWED: &str = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"","allowed":true}}"#;

fn main() -> ExitCode {
    // As many threads as in the injector.
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let event_loop = Builder::new_multi_thread().worker_threads(cores.min(2)).enable_all().build();
    match event_loop.map_err(Error::from).and_then(|it| it.block_on(serve(Args::parse()))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "measure-floor: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(Args { listen, cert, key, answer }: Args) -> Result<(), Error> {
    let chain = CertificateDer::pem_file_iter(cert)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    // Like Go's server, which an API server is made of, it has nothing to say when the
    // handshake ends: the kernel delays its acknowledgement.
    config.send_tls13_tickets = 0;
    let answer = Bytes::from(answer);
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(listen).await?;
    writeln!(std::io::stdout(), "listening")?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (acceptor, answer) = (acceptor.clone(), answer.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let connection = auto::Builder::new(TokioExecutor::new())
                .http1_only()
                .serve_connection(
                    TokioIo::new(stream),
                    service_fn(|it| respond(it, answer.clone())),
                )
                .await;
            // A client that disconnects is not an error.
            drop(connection);
        });
    }
}

async fn respond(
    request: Request<Incoming>,
    answer: Bytes,
) -> Result<Response<Full<Bytes>>, Infallible> {
    // The body must be read, and is dropped.
    let _ = request.into_body().collect().await;
    let mut response = Response::new(Full::new(answer));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
