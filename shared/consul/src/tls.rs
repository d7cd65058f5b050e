//! TLS with the agent: the files, and how its certificate is verified.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use serde::{Deserialize, Serialize};

use crate::error::SetupError;

/// TLS files, and how the agent's certificate is verified.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TlsFiles {
    /// PEM file with CA certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Directory of PEM files with CA certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_path: Option<PathBuf>,
    /// CA certificates as PEM text. Never serialized: a record names a file that
    /// contains them.
    #[serde(skip)]
    pub inline_ca_pem: Option<String>,
    /// PEM file with the client certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
    /// Name that the agent's certificate must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Accepts any certificate (`CONSUL_HTTP_SSL_VERIFY=false`).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub skip_verify: bool,
}

/// Whether the name in the agent's certificate is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameCheck {
    /// It must be the host of the address, or [`TlsFiles::server_name`].
    Required,
    /// Any name is accepted if the CA signed the certificate, as Envoy does.
    Skipped,
}

/// CA certificates, and the problems met while reading them.
#[derive(Debug, Default)]
struct Cas {
    certificates: Vec<CertificateDer<'static>>,
    /// One sentence each.
    problems: Vec<String>,
}

const BEGIN: &[u8] = b"-----BEGIN ";

/// Line width of PEM (RFC 7468, section 2).
const PEM_WIDTH: usize = 64;

// === impl TlsFiles ===

impl TlsFiles {
    /// All CA certificates as PEM: those of the file, then those of the directory in
    /// the order of file names, then the inline ones. Empty if none are given.
    ///
    /// Comments and unreadable certificates are left out, because Envoy accepts the
    /// text as a whole or not at all.
    ///
    /// # Errors
    /// A file can't be read, or a given source contains no certificate.
    pub fn ca_pem(&self) -> Result<String, SetupError> {
        Ok(self.cas()?.certificates.iter().map(|certificate| to_pem(certificate)).collect())
    }

    pub fn has_ca(&self) -> bool {
        self.ca_file.is_some() || self.ca_path.is_some() || self.inline_ca_pem.is_some()
    }

    fn cas(&self) -> Result<Cas, SetupError> {
        let mut cas = Cas::default();
        if let Some(file) = &self.ca_file {
            let before = cas.certificates.len();
            cas.read_file("--ca-file", file)?;
            cas.needs_more_than(before, "--ca-file", file.display().to_string())?;
        }
        if let Some(folder) = &self.ca_path {
            let unreadable = |source| unreadable("--ca-path", folder, source);
            let mut files = Vec::new();
            for entry in std::fs::read_dir(folder).map_err(unreadable)? {
                let path = entry.map_err(unreadable)?.path();
                if path.is_file() {
                    files.push(path);
                }
            }
            files.sort();
            let before = cas.certificates.len();
            for file in &files {
                cas.read_file("--ca-path", file)?;
            }
            cas.needs_more_than(before, "--ca-path", folder.display().to_string())?;
        }
        if let Some(pem) = &self.inline_ca_pem {
            let before = cas.certificates.len();
            cas.read("CONSUL_CACERT_PEM", pem.as_bytes());
            cas.needs_more_than(before, "--ca-pem (CONSUL_CACERT_PEM)", "the text".to_owned())?;
        }
        Ok(cas)
    }

    /// Makes rustls' client configuration.
    ///
    /// # Errors
    /// A file can't be read, or has the wrong contents.
    pub fn client_config(&self, name_check: NameCheck) -> Result<ClientConfig, SetupError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(self.verifier(provider, name_check)?));
        let (Some(cert), Some(key)) = (&self.client_cert, &self.client_key) else {
            return Ok(builder.with_no_client_auth());
        };
        let chain = CertificateDer::pem_file_iter(cert)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|source| not_pem("--client-cert", cert, source))?;
        let key_der = PrivateKeyDer::from_pem_file(key)
            .map_err(|source| not_pem("--client-key", key, source))?;
        builder.with_client_auth_cert(chain, key_der).map_err(|source| SetupError::KeyPair {
            cert: cert.clone(),
            key: key.clone(),
            source,
        })
    }

    fn verifier(
        &self,
        provider: Arc<CryptoProvider>,
        name_check: NameCheck,
    ) -> Result<AgentVerifier, SetupError> {
        // Wrong files are reported even if verification is off.
        let trust = Trust::new(self.cas()?, &provider)?;
        let trust = if self.skip_verify { Trust::Anybody } else { trust };
        let name = match &self.server_name {
            None => None,
            Some(name) => Some(
                ServerName::try_from(name.clone())
                    .map_err(|_| SetupError::ServerName(name.clone()))?,
            ),
        };
        Ok(AgentVerifier { files: self.clone(), trust: trust.into(), name, name_check, provider })
    }
}

// === impl Cas ===

impl Cas {
    fn read_file(&mut self, flag: &'static str, file: &Path) -> Result<(), SetupError> {
        let text = std::fs::read(file).map_err(|source| unreadable(flag, file, source))?;
        self.read(&file.display().to_string(), &text);
        Ok(())
    }

    /// Parses what can be parsed. Each section is parsed by itself: one that is cut off
    /// would swallow the next.
    fn read(&mut self, source: &str, text: &[u8]) {
        for section in sections(text) {
            // Sections of another kind, such as a key, are skipped.
            for certificate in CertificateDer::pem_slice_iter(section) {
                match certificate {
                    Ok(certificate) => self.certificates.push(certificate),
                    Err(error) => {
                        self.problems.push(format!("{source}: unreadable CA certificate: {error}"));
                    }
                }
            }
        }
    }

    fn needs_more_than(
        &self,
        before: usize,
        flag: &'static str,
        place: String,
    ) -> Result<(), SetupError> {
        if self.certificates.len() > before {
            return Ok(());
        }
        let problem = self.problems.last().cloned();
        Err(SetupError::NoCa { flag, place, problem })
    }
}

/// Splits the text before each `-----BEGIN `.
fn sections(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let next = rest.windows(BEGIN.len()).skip(1).position(|window| window == BEGIN);
        let (section, after) = rest.split_at(next.map_or(rest.len(), |at| at + 1));
        rest = after;
        Some(section)
    })
}

fn to_pem(certificate: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(PEM_WIDTH));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

fn unreadable(flag: &'static str, path: &Path, source: std::io::Error) -> SetupError {
    SetupError::Read { flag, path: path.to_owned(), source }
}

fn not_pem(flag: &'static str, path: &Path, source: pem::Error) -> SetupError {
    SetupError::Pem { flag, path: path.to_owned(), source }
}

#[derive(Debug)]
struct AgentVerifier {
    /// Read again for each connection: CAs are rotated while a pod lives.
    files: TlsFiles,
    trust: Mutex<Trust>,
    /// Replaces the host of the address: pods reach the agent by the node's IP address,
    /// which its certificate may lack.
    name: Option<ServerName<'static>>,
    name_check: NameCheck,
    provider: Arc<CryptoProvider>,
}

/// Whose certificates are accepted.
#[derive(Clone, Debug)]
enum Trust {
    /// All: verification is off.
    Anybody,
    /// None: no CA was given.
    Nobody,
    /// Those that the given CAs signed, as webpki verifies them, and one more.
    ///
    /// A certificate that the user gave as a CA may be the agent's own, as `openssl req
    /// -x509` makes it (`CA:TRUE`): webpki rejects any CA certificate as that of a
    /// server. Accepting exactly the certificate that the user trusts gives nobody new
    /// power: the server proves in the handshake that it has its key, and whoever has
    /// that key could sign a certificate for any name that this client would accept
    /// anyway. Its dates and name are still verified.
    Cas { chain: Arc<WebPkiServerVerifier>, given: Arc<[CertificateDer<'static>]> },
}

// === impl Trust ===

impl Trust {
    fn new(cas: Cas, provider: &Arc<CryptoProvider>) -> Result<Self, SetupError> {
        let Cas { certificates, mut problems } = cas;
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            if let Err(error) = roots.add(certificate.clone()) {
                problems.push(format!("a CA certificate cannot be used: {error}"));
            }
        }
        if roots.is_empty() && !certificates.is_empty() {
            return Err(SetupError::UnusableCas(problems.join("; ")));
        }
        for problem in problems {
            tracing::warn!("{problem}; the other CA certificates are used");
        }
        if roots.is_empty() {
            return Ok(Self::Nobody);
        }
        let chain =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        let chain = chain.build().map_err(|error| SetupError::UnusableCas(error.to_string()))?;
        Ok(Self::Cas { chain, given: certificates.into() })
    }
}

/// Verifies dates and name of a certificate that is trusted itself.
fn verify_given(
    certificate: &CertificateDer<'_>,
    name: &ServerName<'_>,
    now: UnixTime,
) -> Result<ServerCertVerified, rustls::Error> {
    let validity = certificate::validity(certificate).ok_or(CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < validity.not_before {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after {
        return Err(CertificateError::Expired.into());
    }
    verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
    Ok(ServerCertVerified::assertion())
}

// === impl AgentVerifier ===

impl AgentVerifier {
    /// Reloads the CA files if they changed; keeps the loaded ones if they can't be read.
    fn trust(&self) -> Trust {
        let mut trust = self.trust.lock().unwrap_or_else(PoisonError::into_inner);
        if let Trust::Cas { given, .. } = &*trust {
            let read = match self.files.cas() {
                Ok(cas) if cas.certificates[..] == given[..] => None,
                Ok(cas) => Some(Trust::new(cas, &self.provider)),
                Err(error) => Some(Err(error)),
            };
            match read {
                None => {}
                Some(Ok(read)) => *trust = read,
                Some(Err(error)) => {
                    tracing::warn!("{error}; the CA certificates of before are used");
                }
            }
        }
        trust.clone()
    }
}

impl ServerCertVerifier for AgentVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        address: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let name = self.name.as_ref().unwrap_or(address);
        let verified = match self.trust() {
            Trust::Anybody => return Ok(ServerCertVerified::assertion()),
            Trust::Nobody => return Err(CertificateError::UnknownIssuer.into()),
            Trust::Cas { chain, given } => {
                match chain.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
                {
                    // `Other` is how rustls reports webpki's CaUsedAsEndEntity.
                    Err(rustls::Error::InvalidCertificate(CertificateError::Other(_)))
                        if given.contains(end_entity) =>
                    {
                        verify_given(end_entity, name, now)
                    }
                    verified => verified,
                }
            }
        };
        match verified {
            // The name is verified last, so everything else is valid.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.name_check == NameCheck::Skipped => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, Issuer, KeyPair, date_time_ymd,
    };

    const NOON_2026: u64 = 1_795_000_000;

    fn params(name: &str, is_ca: bool) -> CertificateParams {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2030, 1, 1);
        if is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params
    }

    /// A CA certificate that a server uses, as `openssl req -x509` makes it.
    fn self_signed(name: &str) -> rcgen::Certificate {
        params(name, true).self_signed(&KeyPair::generate().unwrap()).unwrap()
    }

    fn files(pem: &str) -> TlsFiles {
        TlsFiles { inline_ca_pem: Some(pem.to_owned()), ..TlsFiles::default() }
    }

    fn verify(
        files: &TlsFiles,
        name_check: NameCheck,
        certificate: &CertificateDer<'_>,
        now: u64,
    ) -> Result<(), String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = files.verifier(provider, name_check).unwrap();
        let address = ServerName::try_from("agent.example").unwrap();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
        let verified = server.verify_server_cert(certificate, &[], &address, &[], now);
        verified.map(drop).map_err(|error| error.to_string())
    }

    /// I31: a pod may live longer than the CA that it started with.
    #[test]
    fn whoever_is_trusted_is_read_again_for_each_connection() {
        let (before, after) = (self_signed("agent.example"), self_signed("agent.example"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let write = |text: &str| {
            std::fs::File::create(&file).unwrap().write_all(text.as_bytes()).unwrap();
        };
        write(&before.pem());
        let files = TlsFiles { ca_file: Some(file.clone()), ..TlsFiles::default() };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = files.verifier(provider, NameCheck::Required).unwrap();
        let trusts = |certificate: &rcgen::Certificate| {
            let address = ServerName::try_from("agent.example").unwrap();
            let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOON_2026));
            server.verify_server_cert(certificate.der(), &[], &address, &[], now).is_ok()
        };
        assert!(trusts(&before) && !trusts(&after));
        write(&after.pem());
        assert!(!trusts(&before) && trusts(&after));
        // Half a file, or none, takes no trust away.
        write("");
        assert!(trusts(&after));
        std::fs::remove_file(&file).unwrap();
        assert!(trusts(&after));
    }

    /// As curl and Consul's CLI do.
    #[test]
    fn a_self_signed_ca_certificate_given_as_ca_may_be_the_agents_own() {
        let own = self_signed("agent.example");
        let files = files(&own.pem());
        assert_eq!(verify(&files, NameCheck::Required, own.der(), NOON_2026), Ok(()));
        // Its dates and name are still verified.
        let late = verify(&files, NameCheck::Required, own.der(), NOON_2026 + (10 << 25));
        assert!(late.unwrap_err().contains("expired"));
        let other = self_signed("other.example");
        let files = super::tests::files(&other.pem());
        let named = verify(&files, NameCheck::Required, other.der(), NOON_2026);
        assert!(named.unwrap_err().contains("not valid for name"));
        assert_eq!(verify(&files, NameCheck::Skipped, other.der(), NOON_2026), Ok(()));
        // Only the given certificate is accepted.
        let strange = self_signed("agent.example");
        assert!(verify(&files, NameCheck::Skipped, strange.der(), NOON_2026).is_err());
    }

    /// Another CA certificate, signed by the given one, is not accepted as a server's.
    #[test]
    fn a_ca_certificate_that_was_not_given_is_refused() {
        let root = CertifiedIssuer::self_signed(params("root", true), KeyPair::generate().unwrap())
            .unwrap();
        let issuer: &Issuer<'_, KeyPair> = &root;
        let below =
            params("agent.example", true).signed_by(&KeyPair::generate().unwrap(), issuer).unwrap();
        let files = files(&root.pem());
        assert!(verify(&files, NameCheck::Required, below.der(), NOON_2026).is_err());
    }

    #[test]
    fn the_name_check_may_be_skipped_but_not_the_chain() {
        let root = CertifiedIssuer::self_signed(params("root", true), KeyPair::generate().unwrap())
            .unwrap();
        let issuer: &Issuer<'_, KeyPair> = &root;
        let leaf =
            params("server.dc1.consul", false).signed_by(&KeyPair::generate().unwrap(), issuer);
        let leaf = leaf.unwrap();
        let files = files(&root.pem());
        assert!(verify(&files, NameCheck::Required, leaf.der(), NOON_2026).is_err());
        assert_eq!(verify(&files, NameCheck::Skipped, leaf.der(), NOON_2026), Ok(()));
        let named = TlsFiles { server_name: Some("server.dc1.consul".to_owned()), ..files };
        assert_eq!(verify(&named, NameCheck::Required, leaf.der(), NOON_2026), Ok(()));
        let stranger = super::tests::files(&self_signed("x").pem());
        assert!(verify(&stranger, NameCheck::Skipped, leaf.der(), NOON_2026).is_err());
        let nothing = TlsFiles::default();
        assert!(verify(&nothing, NameCheck::Skipped, leaf.der(), NOON_2026).is_err());
        let unchecked = TlsFiles { skip_verify: true, ..nothing };
        assert_eq!(verify(&unchecked, NameCheck::Required, leaf.der(), NOON_2026), Ok(()));
    }

    /// A Latin-1 comment, a broken certificate, one cut off, and a key.
    #[test]
    fn the_good_certificates_of_an_impure_file_are_used() {
        let good = self_signed("agent.example").pem();
        let key = KeyPair::generate().unwrap().serialize_pem();
        let cut_off = &good[..good.len() / 2];
        let broken = "-----BEGIN CERTIFICATE-----\n%%%%\n-----END CERTIFICATE-----\n";
        let mut text = b"# B\xfcro\r\n".to_vec();
        for part in [broken, cut_off, "\n", &good, &key, broken] {
            text.extend_from_slice(part.as_bytes());
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        runtime::file::write_whole(&file, 0o644, text.as_slice()).unwrap();
        for files in [
            TlsFiles { ca_file: Some(file.clone()), ..TlsFiles::default() },
            TlsFiles { ca_path: Some(folder.path().to_owned()), ..TlsFiles::default() },
        ] {
            assert_eq!(files.ca_pem().unwrap(), good.replace("\r\n", "\n"));
            assert_eq!(files.cas().unwrap().problems.len(), 3, "{:?}", files.cas());
            assert!(files.client_config(NameCheck::Required).is_ok());
        }
    }

    #[test]
    fn a_place_without_a_certificate_is_named_with_its_flag() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        runtime::file::write_whole(&file, 0o644, b"garbage".as_slice()).unwrap();
        for (files, flag) in [
            (TlsFiles { ca_file: Some(file.clone()), ..TlsFiles::default() }, "--ca-file"),
            (
                TlsFiles { ca_path: Some(folder.path().to_owned()), ..TlsFiles::default() },
                "--ca-path",
            ),
            (files("garbage"), "CONSUL_CACERT_PEM"),
        ] {
            let error = files.ca_pem().unwrap_err();
            assert!(error.to_string().contains("holds no CA certificate"), "{error}");
            assert!(error.hint().unwrap().contains(flag), "{error}");
        }
        assert_eq!(TlsFiles::default().ca_pem().unwrap(), "");
    }

    #[test]
    fn records_of_older_releases_check_certificates() {
        let files: TlsFiles = serde_json::from_str(r#"{"ca_file": "/ca.pem"}"#).unwrap();
        assert!(!files.skip_verify);
        assert_eq!(serde_json::to_string(&files).unwrap(), r#"{"ca_file":"/ca.pem"}"#);
    }
}
