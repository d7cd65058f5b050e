//! Makes a TLS handshake with the injector, as the API server would.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64_simd::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::super::snapshot::Served;

/// Timeout of the handshake: that of the chart's webhooks by default (`timeoutSeconds`).
const PATIENCE: Duration = Duration::from_secs(5);

/// Decodes a caBundle; empty if it is absent or invalid.
pub(super) fn decoded(bundle: &Value) -> String {
    let bytes = bundle.as_str().and_then(|text| STANDARD.decode_to_vec(text).ok());
    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
}

/// Verifies the certificate that the address shows for a name; `None` if the address is not an
/// IP address.
pub(super) async fn ask(address: &str, port: u16, name: &str, ca_bundle: &str) -> Option<Served> {
    let address: IpAddr = address.parse().ok()?;
    let asked = tokio::time::timeout(PATIENCE, served((address, port), name, ca_bundle)).await;
    Some(asked.unwrap_or_else(|_| {
        Served::Unreachable(format!("no answer within {} s", PATIENCE.as_secs()))
    }))
}

async fn served(address: (IpAddr, u16), name: &str, ca_bundle: &str) -> Served {
    let untrusted = |problem: &dyn std::fmt::Display| Served::Untrusted(problem.to_string());
    let config = match trusting(ca_bundle) {
        Ok(config) => config,
        Err(problem) => return Served::Untrusted(problem),
    };
    let name = match ServerName::try_from(name.to_owned()) {
        Ok(name) => name,
        Err(error) => return untrusted(&error),
    };
    let stream = match TcpStream::connect(address).await {
        Ok(stream) => stream,
        Err(error) => return Served::Unreachable(error.to_string()),
    };
    match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => {
            let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            match shown.and_then(|shown| certificate::validity(shown)) {
                Some(validity) => Served::Trusted(validity.not_after),
                None => Served::Untrusted("the certificate cannot be read".to_owned()),
            }
        }
        // rustls wraps its own errors, such as an invalid certificate, in an I/O error.
        Err(error) if error.get_ref().is_some() => untrusted(&error),
        Err(error) => Served::Unreachable(error.to_string()),
    }
}

fn trusting(ca_bundle: &str) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_bundle.as_bytes()) {
        let certificate = certificate.map_err(|error| format!("invalid PEM: {error}"))?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
