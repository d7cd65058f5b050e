//! `xds-server`: an xDS v3 server in front of a Consul agent that has none.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::Identity;
use tracing::{error, info};

/// Serves xDS v3 for the Connect proxies of a Consul agent, made of what the
/// agent's HTTP API says
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Where to listen
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8502")]
    listen: SocketAddr,
    /// The agent's HTTP API
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8500")]
    agent: String,
    /// Serve TLS with this certificate chain, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    match run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error, "cannot serve");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), Box<dyn std::error::Error>> {
    let Args { listen, agent, tls_cert, tls_key } = args;
    let mut terminate = signal(SignalKind::terminate())?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => (),
            _ = tokio::signal::ctrl_c() => (),
        }
    };
    let listener = TcpListener::bind(listen).await?;
    info!(listen = %listener.local_addr()?, agent, tls = tls_cert.is_some(), "serves");
    match tls_cert.zip(tls_key) {
        None => e2e::xds::serve(listener, agent, shutdown).await?,
        Some((cert, key)) => {
            let identity = Identity::from_pem(std::fs::read(cert)?, std::fs::read(key)?);
            e2e::xds::serve_tls(listener, agent, identity, shutdown).await?;
        }
    }
    info!("ends");
    Ok(())
}
