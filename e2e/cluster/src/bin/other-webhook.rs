//! Another mutating admission webhook: it adds a container `beside` to every pod without one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Parser;
use harness::Result;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

/// Adds a container to every pod
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Address to listen on
    #[arg(long, default_value = "0.0.0.0:8443")]
    listen: SocketAddr,
    /// Directory with tls.crt and tls.key, in PEM
    #[arg(long)]
    tls: PathBuf,
    /// Image of the container
    #[arg(long)]
    image: String,
}

fn main() -> ExitCode {
    match serve(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "other-webhook: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &Args) -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = Arc::new(config(&args.tls)?);
    for stream in TcpListener::bind(args.listen)?.incoming() {
        if let Err(error) = answer(stream?, &config, &args.image) {
            let _ = writeln!(std::io::stderr(), "other-webhook: {error}");
        }
    }
    Ok(())
}

fn config(folder: &Path) -> Result<ServerConfig> {
    let chain = CertificateDer::pem_file_iter(folder.join("tls.crt"))?
        .collect::<std::result::Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(folder.join("tls.key"))?;
    Ok(ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?)
}

/// Answers one review, and closes.
fn answer(stream: TcpStream, config: &Arc<ServerConfig>, image: &str) -> Result<()> {
    let connection = ServerConnection::new(Arc::clone(config))?;
    let mut reader = BufReader::new(StreamOwned::new(connection, stream));
    let (mut length, mut line) = (0, String::new());
    while reader.read_line(&mut line)? > 0 && !line.trim_end().is_empty() {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse()?;
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body = review(&serde_json::from_slice(&body)?, image).to_string();
    let mut stream = reader.into_inner();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )?;
    stream.conn.send_close_notify();
    Ok(stream.flush()?)
}

fn review(review: &Value, image: &str) -> Value {
    let request = &review["request"];
    let containers = request["object"]["spec"]["containers"].as_array();
    let has_it = containers.is_none_or(|list| list.iter().any(|each| each["name"] == "beside"));
    let mut response = json!({"uid": request["uid"], "allowed": true});
    if !has_it {
        let container = json!({"name": "beside", "image": image, "command": ["sleep", "1000000"]});
        let patch = json!([{"op": "add", "path": "/spec/containers/-", "value": container}]);
        response["patchType"] = json!("JSONPatch");
        response["patch"] = json!(BASE64_STANDARD.encode(patch.to_string()));
    }
    json!({"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response})
}
