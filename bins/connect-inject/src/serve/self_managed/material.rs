//! What the replicas' Secret holds, and what is due to be done about it. Pure,
//! but for the keys that are made.
//!
//! A certificate is only ever replaced by one that every API server trusts: a
//! new CA is published first, the certificate is signed by it when the API
//! servers have had time to see it, and the old CA is forgotten when no replica
//! shows a certificate of it any more.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use k8s_openapi::ByteString;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::issue;
use crate::serve::tls::server_config;
use certificate::{Validity, validity};

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// How long before it is made a certificate begins: clocks differ.
pub(super) const BACKDATED: i64 = HOUR;
/// How long a CA is valid.
pub(super) const AUTHORITY_LIFE: i64 = 730 * DAY;
/// How long before its end the next one is made.
const AUTHORITY_DUE: i64 = 60 * DAY;
/// How long a certificate is valid, within its CA's time.
pub(super) const LEAF_LIFE: i64 = 30 * DAY;
/// How long before its end the next one is made: an API server that can't be
/// reached for that long is no API server any more.
const LEAF_DUE: i64 = 10 * DAY;
/// When it is made whatever else is going on.
const LEAF_URGENT: i64 = DAY;
/// How long a new CA is published before a certificate is signed by it.
const SETTLED: i64 = 10 * MINUTE;
/// How long a certificate of the new CA is in use before the old one is
/// forgotten: every replica has seen it by then.
const OVERLAP: i64 = DAY;
/// More CAs than there are in any overlap.
const MOST_AUTHORITIES: usize = 4;

/// The keys of the Secret's data. The last two are those of the type
/// `kubernetes.io/tls`.
const AUTHORITIES: &str = "ca.crt";
const AUTHORITY_KEY: &str = "ca.key";
const LEAF: &str = "tls.crt";
const LEAF_KEY: &str = "tls.key";

/// What the Secret holds, as far as it is any good.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Material {
    /// The CAs to be trusted, the newest first.
    pub(super) authorities: Vec<Authority>,
    /// The key of the newest.
    pub(super) authority_key: Option<Key>,
    /// The certificate of the webhook.
    pub(super) leaf: Option<Leaf>,
}

/// A CA.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Authority {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) validity: Validity,
}

/// The certificate of the webhook.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Leaf {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: Key,
    pub(super) validity: Validity,
}

/// A private key in PEM, which is never shown.
#[derive(Clone, PartialEq)]
pub(super) struct Key(pub(super) String);

/// What is due to be done, one thing after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Make a CA.
    Authority,
    /// Make a certificate.
    Leaf,
    /// Forget all CAs but the newest.
    Forget,
}

// === impl Material ===

impl Material {
    /// Reads the Secret's data. What is no good in it is as if it were not there.
    pub(super) fn read(data: &BTreeMap<String, ByteString>) -> Self {
        let value = |key| data.get(key).map(|value| value.0.as_slice()).unwrap_or_default();
        let key = |key| String::from_utf8(value(key).to_vec()).ok().map(Key);
        let authorities: Vec<_> = CertificateDer::pem_slice_iter(value(AUTHORITIES))
            .map_while(Result::ok)
            .filter_map(Authority::new)
            .take(MOST_AUTHORITIES)
            .collect();
        let authority_key = key(AUTHORITY_KEY)
            .filter(|key| authorities.first().is_some_and(|newest| key.is_of(&newest.certificate)));
        let leaf = CertificateDer::from_pem_slice(value(LEAF))
            .ok()
            .zip(key(LEAF_KEY))
            .and_then(|(certificate, key)| Leaf::new(certificate, key));
        Self { authorities, authority_key, leaf }
    }

    /// Whether there is no CA in it, and so nothing that anybody trusts.
    pub(super) fn is_emptied(&self) -> bool {
        self.authorities.is_empty()
    }

    /// What the Secret is to hold.
    pub(super) fn data(&self) -> BTreeMap<String, ByteString> {
        let key = |key: Option<&Key>| key.map(|key| key.0.clone()).unwrap_or_default();
        let leaf = self.leaf.as_ref();
        [
            (AUTHORITIES, self.bundle()),
            (AUTHORITY_KEY, key(self.authority_key.as_ref())),
            (LEAF, leaf.map(|leaf| pem(&leaf.certificate)).unwrap_or_default()),
            (LEAF_KEY, key(leaf.map(|leaf| &leaf.key))),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), ByteString(value.into_bytes())))
        .collect()
    }

    /// The CAs as a `caBundle` has them.
    pub(super) fn bundle(&self) -> String {
        self.authorities.iter().map(|authority| pem(&authority.certificate)).collect()
    }

    /// What is due for the certificate of these hosts, at a time in seconds
    /// since 1970; none: all is well.
    pub(super) fn due(&self, hosts: &[ServerName<'static>], now: i64) -> Option<Due> {
        let Some(newest) = self.authorities.first().filter(|_| self.authority_key.is_some()) else {
            return Some(Due::Authority);
        };
        if newest.validity.not_after - now < AUTHORITY_DUE {
            return Some(Due::Authority);
        }
        let made = newest.validity.not_before + BACKDATED;
        let settled = self.authorities.len() == 1 || now - made >= SETTLED;
        let Some((leaf, signed_by)) = self.leaf.as_ref().and_then(|leaf| {
            let is_signed_by = |authority: &Authority| leaf.is_good(authority, hosts, now);
            Some((leaf, self.authorities.iter().position(is_signed_by)?))
        }) else {
            return Some(Due::Leaf);
        };
        let left = leaf.validity.not_after - now;
        if left < LEAF_URGENT || settled && (left < LEAF_DUE || signed_by > 0) {
            return Some(Due::Leaf);
        }
        let age = now - (leaf.validity.not_before + BACKDATED);
        let forget = self.authorities.len() > 1 && signed_by == 0 && age >= OVERLAP;
        forget.then_some(Due::Forget)
    }

    /// Does what is due.
    ///
    /// # Errors
    /// A sentence: no key can be made, or no certificate for such a host.
    pub(super) fn renewed(
        mut self,
        due: Due,
        hosts: &[ServerName<'static>],
        now: i64,
    ) -> Result<Self, String> {
        match due {
            Due::Authority => {
                let (authority, key) = issue::authority(now)?;
                self.authorities.insert(0, authority);
                self.authorities.truncate(MOST_AUTHORITIES);
                self.authority_key = Some(key);
            }
            Due::Leaf => {
                let newest = self.authorities.first().zip(self.authority_key.as_ref());
                let (authority, key) = newest.ok_or("there is no CA to sign with")?;
                let leaf = issue::leaf(authority, key, hosts, now)?;
                if leaf.is_good(authority, hosts, now) {
                    self.leaf = Some(leaf);
                } else {
                    // It is none of ours: another release's, or another's.
                    self.authority_key = None;
                }
            }
            Due::Forget => self.authorities.truncate(1),
        }
        Ok(self)
    }
}

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

    /// Whether a client that trusts the CA takes it for each of the hosts.
    fn is_good(&self, authority: &Authority, hosts: &[ServerName<'static>], now: i64) -> bool {
        let Ok(leaf) = webpki::EndEntityCert::try_from(&self.certificate) else { return false };
        let Ok(anchor) = webpki::anchor_from_trusted_cert(&authority.certificate) else {
            return false;
        };
        let Ok(now_unsigned) = u64::try_from(now) else { return false };
        let time = UnixTime::since_unix_epoch(Duration::from_secs(now_unsigned));
        // A client does not look at the times of what it trusts.
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
    /// Whether it is the key of a certificate.
    fn is_of(&self, certificate: &CertificateDer<'static>) -> bool {
        PrivateKeyDer::from_pem_slice(self.0.as_bytes())
            .is_ok_and(|key| server_config(vec![certificate.clone()], key).is_ok())
    }
}

impl fmt::Debug for Key {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// A certificate in PEM.
///
/// Source: RFC 7468.
fn pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for (index, character) in text.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            pem.push('\n');
        }
        pem.push(character);
    }
    pem + "\n-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn hosts() -> Vec<ServerName<'static>> {
        ["inject.shop.svc", "10.1.2.3"].map(|host| ServerName::try_from(host).unwrap()).to_vec()
    }

    /// Does all that is due, and says what it was.
    fn kept(mut material: Material, now: i64) -> (Material, Vec<Due>) {
        let mut done = Vec::new();
        while let Some(due) = material.due(&hosts(), now) {
            material = material.renewed(due, &hosts(), now).unwrap();
            done.push(due);
            assert!(done.len() < 5, "{done:?}");
        }
        (material, done)
    }

    fn is_trusted(material: &Material, bundle: &[Authority], now: i64) -> bool {
        let leaf = material.leaf.as_ref().unwrap();
        bundle.iter().any(|authority| leaf.is_good(authority, &hosts(), now))
    }

    #[test]
    fn from_nothing_to_a_certificate() {
        let (material, done) = kept(Material::default(), NOW);
        assert_eq!(done, [Due::Authority, Due::Leaf]);
        assert!(is_trusted(&material, &material.authorities, NOW));
        assert_eq!(Material::read(&material.data()), material, "as it was written");
        assert_eq!(material.bundle().matches("BEGIN CERTIFICATE").count(), 1);
        assert_eq!(kept(material.clone(), NOW + 19 * DAY).1, []);
        assert_eq!(kept(material, NOW + 21 * DAY).1, [Due::Leaf]);
    }

    #[test]
    fn other_hosts_take_another_certificate() {
        let (material, _) = kept(Material::default(), NOW);
        let more = [hosts(), vec![ServerName::try_from("other.svc").unwrap()]].concat();
        assert_eq!(material.due(&more, NOW), Some(Due::Leaf));
        assert_eq!(material.due(&hosts()[..1], NOW), None);
    }

    /// A CA is followed by another without a moment in which the certificate is
    /// not trusted.
    #[test]
    fn a_ca_is_rotated_with_overlap() {
        let (mut material, _) = kept(Material::default(), NOW);
        let end = NOW + AUTHORITY_LIFE;
        material.leaf = Some(
            issue::leaf(
                &material.authorities[0],
                material.authority_key.as_ref().unwrap(),
                &hosts(),
                end - 61 * DAY,
            )
            .unwrap(),
        );
        assert_eq!(kept(material.clone(), end - 60 * DAY - 1).1, []);
        let published = end - 59 * DAY;
        let (material, done) = kept(material, published);
        assert_eq!(done, [Due::Authority]);
        assert!(is_trusted(&material, &material.authorities[1..], published), "of the old CA");
        assert_eq!(kept(material.clone(), published + SETTLED - 1).1, []);
        let (material, done) = kept(material, published + SETTLED);
        assert_eq!(done, [Due::Leaf]);
        assert!(is_trusted(&material, &material.authorities[..1], published + SETTLED));
        assert_eq!(material.authorities.len(), 2);
        let (material, done) = kept(material, published + SETTLED + OVERLAP);
        assert_eq!(done, [Due::Forget]);
        assert_eq!(material.authorities.len(), 1);
    }

    /// Whatever somebody wrote into the Secret.
    #[test]
    fn what_is_no_good_is_made_anew() {
        let (material, _) = kept(Material::default(), NOW);
        let (other, _) = kept(Material::default(), NOW);
        let with = |key: &str, value: &ByteString| {
            let mut data = material.data();
            data.insert(key.to_owned(), value.clone());
            Material::read(&data)
        };
        let garbage = ByteString(b"\xff-----BEGIN CERTIFICATE-----\nAA".to_vec());
        for (key, value, done) in [
            (AUTHORITIES, &garbage, vec![Due::Authority, Due::Leaf]),
            (AUTHORITIES, &other.data()[AUTHORITIES], vec![Due::Authority, Due::Leaf]),
            (AUTHORITY_KEY, &garbage, vec![Due::Authority]),
            (AUTHORITY_KEY, &other.data()[AUTHORITY_KEY], vec![Due::Authority]),
            (LEAF, &garbage, vec![Due::Leaf]),
            (LEAF, &other.data()[LEAF], vec![Due::Leaf]),
            (LEAF_KEY, &garbage, vec![Due::Leaf]),
            (LEAF_KEY, &other.data()[LEAF_KEY], vec![Due::Leaf]),
        ] {
            let (mended, found) = kept(with(key, value), NOW);
            assert_eq!(found, done, "{key}");
            assert!(is_trusted(&mended, &mended.authorities, NOW));
        }
        // A pair that signs, but is none of ours: of another name.
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "another's");
        let certificate = params.self_signed(&key).unwrap();
        let mut data = material.data();
        data.insert(AUTHORITIES.to_owned(), ByteString(certificate.pem().into_bytes()));
        data.insert(AUTHORITY_KEY.to_owned(), ByteString(key.serialize_pem().into_bytes()));
        let (mended, done) = kept(Material::read(&data), NOW);
        assert_eq!(done, [Due::Leaf, Due::Authority, Due::Leaf]);
        assert!(is_trusted(&mended, &mended.authorities, NOW));
    }

    #[test]
    fn no_key_is_ever_shown() {
        let (material, _) = kept(Material::default(), NOW);
        assert!(!format!("{material:?}").contains("PRIVATE"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        /// Years of passes at odd times, with API servers that are ten minutes
        /// behind and a replica that is a pass behind: what is shown is always
        /// trusted.
        #[test]
        fn what_is_shown_is_always_trusted(pauses in prop::collection::vec(prop_oneof![
            1 => 1..SETTLED, 4 => HOUR..4 * DAY,
        ], 500..600)) {
            let mut now = NOW;
            let (mut material, _) = kept(Material::default(), now);
            let mut earlier = vec![(now, material.clone())];
            for pause in pauses {
                now += pause;
                material = kept(material, now).0;
                earlier.push((now, material.clone()));
                // As it was some time ago, or as it was first.
                let seen = |ago: i64| {
                    &earlier.iter().rev().find(|(at, _)| *at <= now - ago).unwrap_or(&earlier[0]).1
                };
                let (behind, replica) = (seen(SETTLED), seen(2 * MINUTE));
                prop_assert!(is_trusted(&material, &behind.authorities, now), "a new certificate");
                prop_assert!(is_trusted(replica, &material.authorities, now), "an old certificate");
            }
        }

        #[test]
        fn no_secret_panics(values in prop::collection::vec(any::<Vec<u8>>(), 4)) {
            let keys = [AUTHORITIES, AUTHORITY_KEY, LEAF, LEAF_KEY].map(str::to_owned);
            let data = keys.into_iter().zip(values.into_iter().map(ByteString)).collect();
            let (material, _) = kept(Material::read(&data), NOW);
            prop_assert!(is_trusted(&material, &material.authorities, NOW));
        }
    }
}
