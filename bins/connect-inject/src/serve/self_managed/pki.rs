//! A CA, a certificate and a private key.

use std::fmt;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::serve::tls::server_config;
use certificate::{Validity, validity};

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Authority {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) validity: Validity,
}

/// The webhook's certificate.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Leaf {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: Key,
    pub(super) validity: Validity,
}

/// A private key in PEM. Never logged.
#[derive(Clone, PartialEq)]
pub(super) struct Key(pub(super) String);

// === impl Authority ===

impl Authority {
    pub(super) fn new(certificate: CertificateDer<'static>) -> Option<Self> {
        let validity = validity(&certificate)?;
        Some(Self { certificate, validity })
    }
}

// === impl Leaf ===

impl Leaf {
    pub(super) fn new(certificate: CertificateDer<'static>, key: Key) -> Option<Self> {
        let validity = validity(&certificate)?;
        key.is_of(&certificate).then_some(Self { certificate, key, validity })
    }

    /// Whether a client that trusts the CA accepts the certificate for every host.
    pub(super) fn is_good(
        &self,
        authority: &Authority,
        hosts: &[ServerName<'static>],
        now: i64,
    ) -> bool {
        let Ok(leaf) = webpki::EndEntityCert::try_from(&self.certificate) else { return false };
        let Ok(anchor) = webpki::anchor_from_trusted_cert(&authority.certificate) else {
            return false;
        };
        let Ok(now_unsigned) = u64::try_from(now) else { return false };
        let time = UnixTime::since_unix_epoch(Duration::from_secs(now_unsigned));
        // Clients do not check the validity of the CAs that they trust.
        authority.validity.not_after > now
            && leaf
                .verify_for_usage(
                    webpki::ALL_VERIFICATION_ALGS,
                    &[anchor],
                    &[],
                    time,
                    webpki::KeyUsage::server_auth(),
                    None,
                    None,
                )
                .is_ok()
            && hosts.iter().all(|host| leaf.verify_is_valid_for_subject_name(host).is_ok())
    }
}

// === impl Key ===

impl Key {
    /// Whether it is the private key of a certificate.
    pub(super) fn is_of(&self, certificate: &CertificateDer<'static>) -> bool {
        PrivateKeyDer::from_pem_slice(self.0.as_bytes())
            .is_ok_and(|key| server_config(vec![certificate.clone()], key).is_ok())
    }
}

impl fmt::Debug for Key {
    /// Hides the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// Encodes a certificate in PEM.
///
/// Source: RFC 7468.
pub(super) fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = base64_simd::STANDARD.encode_to_string(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for (index, character) in text.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            pem.push('\n');
        }
        pem.push(character);
    }
    pem + "\n-----END CERTIFICATE-----\n"
}
