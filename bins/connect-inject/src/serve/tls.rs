//! The webhook's certificate and key, from files that may change at any time.
//!
//! The files are read for each connection; an API server opens few, and keeps them long.
//! Watching the files would miss changes, because the kubelet updates a Secret's volume by
//! swapping the symbolic link `..data`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate and its key, with the names of their files.
#[derive(Debug)]
pub(crate) struct Pair {
    cert_file: PathBuf,
    key_file: PathBuf,
    loaded: Mutex<Loaded>,
}

/// The last valid pair, and the contents that were read last, valid or not.
#[derive(Debug)]
struct Loaded {
    seen: Contents,
    config: Arc<ServerConfig>,
    not_after: Option<i64>,
}

/// Contents of the files.
#[derive(PartialEq, Eq)]
struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
}

// === impl Pair ===

impl Pair {
    /// Loads the pair for the first time.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub(crate) fn load(cert_file: PathBuf, key_file: PathBuf) -> Result<Self, String> {
        let seen = Contents::read(&cert_file, &key_file)?;
        let (config, not_after) = seen.config(&cert_file, &key_file)?;
        let loaded = Mutex::new(Loaded { seen, config, not_after });
        Ok(Self { cert_file, key_file, loaded })
    }

    /// The pair in the files, or the last valid one if that is invalid.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        self.refreshed(|loaded| Arc::clone(&loaded.config))
    }

    /// When the certificate in use expires, in seconds since 1970.
    pub(crate) fn not_after(&self) -> Option<i64> {
        self.refreshed(|loaded| loaded.not_after)
    }

    fn refreshed<T>(&self, take: impl FnOnce(&Loaded) -> T) -> T {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        match Contents::read(&self.cert_file, &self.key_file) {
            Ok(seen) if seen == loaded.seen => {}
            Ok(seen) => {
                match seen.config(&self.cert_file, &self.key_file) {
                    Ok((config, not_after)) => {
                        tracing::info!(file = %self.cert_file.display(), "new certificate");
                        loaded.config = config;
                        loaded.not_after = not_after;
                    }
                    // The files may have been read between two writes.
                    Err(error) => tracing::warn!("{error}; the last certificate stays in use"),
                }
                // Remembered even if invalid, so that an invalid pair is reported once.
                loaded.seen = seen;
            }
            Err(error) => tracing::warn!("{error}; the last certificate stays in use"),
        }
        take(&loaded)
    }
}

// === impl Contents ===

impl Contents {
    fn read(cert_file: &Path, key_file: &Path) -> Result<Self, String> {
        let read = |file: &Path| {
            std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))
        };
        Ok(Self { cert: read(cert_file)?, key: read(key_file)? })
    }

    fn config(
        &self,
        cert_file: &Path,
        key_file: &Path,
    ) -> Result<(Arc<ServerConfig>, Option<i64>), String> {
        let (cert_name, key_name) = (cert_file.display(), key_file.display());
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&self.cert)
            .collect::<Result<_, pem::Error>>()
            .map_err(|error| format!("{cert_name}: invalid PEM: {error}"))?;
        let Some(leaf) = chain.first() else {
            return Err(format!("{cert_name}: no PEM certificate in it"));
        };
        let not_after = certificate::validity(leaf).map(|validity| validity.not_after);
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| format!("{key_name}: no PEM private key in it: {error}"))?;
        let config = server_config(chain, key)
            .map_err(|error| format!("{cert_name} and {key_name} do not match: {error}"))?;
        Ok((config, not_after))
    }
}

/// The TLS configuration for a certificate chain and its key.
pub(super) fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl std::fmt::Debug for Contents {
    /// Hides the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contents").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn made() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "half a file is what some of these tests are about"
    )]
    fn write(file: &Path, contents: &str) {
        fs::write(file, contents).unwrap();
    }

    #[test]
    fn an_error_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        let load = || Pair::load(cert.clone(), key.clone()).unwrap_err();
        assert!(load().contains("tls.crt: No such file"), "{}", load());
        write(&cert, "");
        assert!(load().contains("tls.key: No such file"), "{}", load());
        write(&key, "");
        assert!(load().contains("tls.crt: no PEM certificate"), "{}", load());
        let (good_cert, good_key) = made();
        write(&cert, &good_cert);
        assert!(load().contains("tls.key: no PEM private key"), "{}", load());
        write(&key, &made().1);
        assert!(load().contains("do not match"), "{}", load());
        write(&key, &good_key);
        assert!(Pair::load(cert.clone(), key.clone()).is_ok());
        write(&cert, &good_cert[..good_cert.len() / 2]);
        assert!(load().contains("tls.crt: invalid PEM"), "{}", load());
    }

    #[test]
    fn the_last_valid_pair_stays_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        let first = made();
        write(&cert, &first.0);
        write(&key, &first.1);
        let pair = Pair::load(cert.clone(), key.clone()).unwrap();
        let before = pair.current();
        assert!(Arc::ptr_eq(&before, &pair.current()), "read again without a change");
        let second = made();
        write(&cert, &second.0);
        assert!(Arc::ptr_eq(&before, &pair.current()), "half a change");
        fs::remove_file(&key).unwrap();
        assert!(Arc::ptr_eq(&before, &pair.current()), "no key");
        write(&key, &second.1);
        assert!(!Arc::ptr_eq(&before, &pair.current()), "the new pair");
    }
}
