//! The certificate and its key, from files that may change at any time.
//!
//! They are read for each connection: an API server keeps few, for long. To
//! watch them instead would be a trap, because the kubelet changes a Secret's
//! volume by swapping the symbolic link `..data`, not the files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate and its key, and the files that they come from.
#[derive(Debug)]
pub(crate) struct Pair {
    cert_file: PathBuf,
    key_file: PathBuf,
    loaded: Mutex<Loaded>,
}

/// The last good pair, and what was last read, be it good or not.
#[derive(Debug)]
struct Loaded {
    seen: Contents,
    config: Arc<ServerConfig>,
    not_after: Option<i64>,
}

/// What the files hold.
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

    /// The pair that the files hold now or, if it is no good, the last that was.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        self.refreshed(|loaded| Arc::clone(&loaded.config))
    }

    /// When the certificate in use ends, in seconds since 1970.
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
                    // Half of a change, perhaps: the other half may come yet.
                    Err(error) => tracing::warn!("{error}; the last certificate stays in use"),
                }
                // Noted in any case, so that a bad pair is reported once.
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
            .map_err(|error| format!("{cert_name}: no PEM: {error}"))?;
        let Some(leaf) = chain.first() else {
            return Err(format!("{cert_name}: no certificate in PEM in it"));
        };
        let not_after = certificate::validity(leaf).map(|validity| validity.not_after);
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| format!("{key_name}: no private key in PEM in it: {error}"))?;
        let config = server_config(chain, key)
            .map_err(|error| format!("{cert_name} and {key_name} are no pair: {error}"))?;
        Ok((config, not_after))
    }
}

/// How connections are encrypted with a certificate and its key.
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
    /// Without the key.
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
    fn a_mistake_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        let load = || Pair::load(cert.clone(), key.clone()).unwrap_err();
        assert!(load().contains("tls.crt: No such file"), "{}", load());
        write(&cert, "");
        assert!(load().contains("tls.key: No such file"), "{}", load());
        write(&key, "");
        assert!(load().contains("tls.crt: no certificate"), "{}", load());
        let (good_cert, good_key) = made();
        write(&cert, &good_cert);
        assert!(load().contains("tls.key: no private key"), "{}", load());
        write(&key, &made().1);
        assert!(load().contains("are no pair"), "{}", load());
        write(&key, &good_key);
        assert!(Pair::load(cert.clone(), key.clone()).is_ok());
        write(&cert, &good_cert[..good_cert.len() / 2]);
        assert!(load().contains("tls.crt: no "), "{}", load());
    }

    #[test]
    fn the_last_good_pair_stays_in_use() {
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
