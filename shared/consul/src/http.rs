//! The one place that builds an HTTP client.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use reqwest::redirect::Policy;
use runtime::Failure;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::{Deserialize, Serialize};

use crate::address::Address;

/// The files of TLS with the agent, and the name that its certificate must have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TlsFiles {
    /// A PEM file with CA certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// A folder of such files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_path: Option<PathBuf>,
    /// CA certificates themselves, as PEM. Never written down: what is read back
    /// has them in a file.
    #[serde(skip)]
    pub inline_ca_pem: Option<String>,
    /// A PEM file with the certificate shown to the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<PathBuf>,
    /// A PEM file with its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
    /// The name that the agent's certificate must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

/// How long a connection may take to be made. The agent is on the same node.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

// === impl TlsFiles ===

impl TlsFiles {
    /// The CA certificates, as PEM: the file's, then those of the folder in the
    /// order of its files' names, then those given as they are. Empty without any.
    pub fn ca_pem(&self) -> Result<String, Failure> {
        let mut files: Vec<PathBuf> = self.ca_file.iter().cloned().collect();
        if let Some(folder) = &self.ca_path {
            let entries = std::fs::read_dir(folder)
                .map_err(|error| unreadable("--ca-path", folder, &error))?;
            let mut inside = Vec::new();
            for entry in entries {
                let path = entry.map_err(|error| unreadable("--ca-path", folder, &error))?.path();
                if path.is_file() {
                    inside.push(path);
                }
            }
            inside.sort();
            files.append(&mut inside);
        }
        let mut pem = String::new();
        for file in files {
            let text = std::fs::read_to_string(&file)
                .map_err(|error| unreadable("--ca-file", &file, &error))?;
            pem.push_str(text.trim_end());
            pem.push('\n');
        }
        if let Some(text) = &self.inline_ca_pem {
            pem.push_str(text.trim());
            pem.push('\n');
        }
        Ok(pem)
    }
}

fn unreadable(flag: &str, file: &Path, error: &std::io::Error) -> Failure {
    Failure::usage(format_args!("cannot read {}: {error}", file.display()))
        .hint(format_args!("check {flag}"))
}

/// Builds the client for an agent.
pub(crate) fn client(address: &Address, tls: &TlsFiles) -> Result<Client, Failure> {
    // The configuration is handed over ready-made, for three reasons: the system's
    // certificates are not parsed (an image from scratch has none, which would be
    // an error), no provider has to be installed for the whole process, and the
    // name that the certificate must have can differ from the address.
    let mut builder = Client::builder()
        .tls_backend_preconfigured(tls_config(tls)?)
        .user_agent(concat!("connect-sidecar/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(Policy::none())
        .tls_info(true)
        .no_proxy();
    if let Address::Unix(socket) = address {
        builder = builder.unix_socket(socket.as_path());
    }
    builder.build().map_err(|error| Failure::usage(format_args!("cannot set up HTTP: {error}")))
}

fn tls_config(tls: &TlsFiles) -> Result<ClientConfig, Failure> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let unusable =
        |error: rustls::Error| Failure::usage(format_args!("cannot set up TLS: {error}"));
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;

    let roots = Arc::new(roots(&tls.ca_pem()?)?);
    let builder = match &tls.server_name {
        None => builder.with_root_certificates(roots),
        Some(name) => {
            let name = ServerName::try_from(name.clone()).map_err(|_| {
                Failure::usage(format_args!("`{name}` is neither a host name nor an IP address"))
                    .hint("check --tls-server-name (CONSUL_TLS_SERVER_NAME)")
            })?;
            let inner = WebPkiServerVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(|error| {
                    Failure::usage(format_args!("cannot set up TLS: {error}"))
                        .hint("--tls-server-name needs a CA: give --ca-file, --ca-path or --ca-pem")
                })?;
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(NamedServer { inner, name }))
        }
    };
    let (Some(cert), Some(key)) = (&tls.client_cert, &tls.client_key) else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| not_pem("--client-cert", cert, &error))?;
    let key_der =
        PrivateKeyDer::from_pem_file(key).map_err(|error| not_pem("--client-key", key, &error))?;
    builder.with_client_auth_cert(chain, key_der).map_err(|error| {
        Failure::usage(format_args!(
            "{} and {} do not belong together: {error}",
            cert.display(),
            key.display()
        ))
        .hint("check --client-cert and --client-key")
    })
}

fn roots(pem: &str) -> Result<RootCertStore, Failure> {
    let wrong = |problem: &dyn std::fmt::Display| {
        Failure::usage(format_args!("the CA certificates are unusable: {problem}"))
            .hint("check --ca-file, --ca-path and --ca-pem (CONSUL_CACERT_PEM)")
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
    }
    if !pem.is_empty() && roots.is_empty() {
        return Err(wrong(&"there is no certificate in them"));
    }
    Ok(roots)
}

fn not_pem(flag: &str, file: &Path, error: &pem::Error) -> Failure {
    Failure::usage(format_args!("cannot read {} as PEM: {error}", file.display()))
        .hint(format_args!("check {flag}"))
}

/// Checks a server's certificate as usual, but against a given name instead of
/// the address: a node's agent is reached by an IP address that its certificate
/// need not have.
#[derive(Debug)]
struct NamedServer {
    inner: Arc<WebPkiServerVerifier>,
    name: ServerName<'static>,
}

impl ServerCertVerifier for NamedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _address: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner.verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
