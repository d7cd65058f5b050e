//! Contents of the Secret that the replicas share, and the next step of their rotation.
//! Pure, except that it generates keys.
//!
//! A certificate is replaced only by one that every API server trusts. A new CA is
//! published first; the certificate is signed by it once the API servers have had time to
//! see it; the old CA is removed when no replica serves a certificate of it any more.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};

use super::issue::{self, BACKDATED};
use super::pki::{Authority, Key, Leaf, pem};
use crate::serve::clock::{DAY, MINUTE};

/// A new CA is issued this long before the old one expires.
const AUTHORITY_DUE: i64 = 60 * DAY;
/// A new certificate is issued this long before the old one expires. An API server that
/// can't be reached for as long does not count.
const LEAF_DUE: i64 = 10 * DAY;
/// Less than this before its expiry, a certificate is replaced even while a new CA settles.
const LEAF_URGENT: i64 = DAY;
/// How long a new CA is published before it signs a certificate.
const SETTLED: i64 = 10 * MINUTE;
/// How long a certificate of the new CA is in use before the old CA is removed: all
/// replicas have loaded it by then.
const OVERLAP: i64 = DAY;
/// More CAs than any overlap has.
const MOST_AUTHORITIES: usize = 4;

/// Keys of the Secret's data. `tls.crt` and `tls.key` are those of the type
/// `kubernetes.io/tls`.
const AUTHORITIES: &str = "ca.crt";
const AUTHORITY_KEY: &str = "ca.key";
const LEAF: &str = "tls.crt";
const LEAF_KEY: &str = "tls.key";

/// The valid contents of the Secret.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Material {
    /// Trusted CAs, newest first.
    pub(super) authorities: Vec<Authority>,
    /// Key of the newest CA.
    pub(super) authority_key: Option<Key>,
    pub(super) leaf: Option<Leaf>,
}

/// The next step of the rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Issue a new CA.
    Authority,
    /// Issue a new certificate.
    Leaf,
    /// Remove all CAs except the newest.
    Forget,
}

// === impl Material ===

impl Material {
    /// Reads the Secret's data; invalid contents count as absent.
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

    /// Whether it has no CA, so that nobody can trust it.
    pub(super) fn is_emptied(&self) -> bool {
        self.authorities.is_empty()
    }

    /// The Secret's data.
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

    /// The CAs in PEM, for a webhook's `caBundle`.
    pub(super) fn bundle(&self) -> String {
        self.authorities.iter().map(|authority| pem(&authority.certificate)).collect()
    }

    /// The step that is due at `now` (seconds since 1970) for a certificate with these
    /// hosts, if any.
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

    /// Performs a step.
    ///
    /// # Errors
    /// A sentence: a key can't be generated, or a certificate can't have one of the hosts.
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
                    // The CA has other parameters than ours: it is from another release, or
                    // foreign.
                    self.authority_key = None;
                }
            }
            Due::Forget => self.authorities.truncate(1),
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::issue::AUTHORITY_LIFE;
    use super::*;
    use crate::serve::clock::HOUR;

    const NOW: i64 = 1_800_000_000;

    fn hosts() -> Vec<ServerName<'static>> {
        ["inject.shop.svc", "10.1.2.3"].map(|host| ServerName::try_from(host).unwrap()).to_vec()
    }

    /// Performs all steps that are due, and returns them.
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
    fn other_hosts_require_another_certificate() {
        let (material, _) = kept(Material::default(), NOW);
        let more = [hosts(), vec![ServerName::try_from("other.svc").unwrap()]].concat();
        assert_eq!(material.due(&more, NOW), Some(Due::Leaf));
        assert_eq!(material.due(&hosts()[..1], NOW), None);
    }

    /// The certificate is trusted at every moment of the rotation.
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

    /// Others can write to the Secret, too.
    #[test]
    fn invalid_contents_are_replaced() {
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
        // A valid pair with another subject than ours.
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
    fn debug_output_has_no_key() {
        let (material, _) = kept(Material::default(), NOW);
        assert!(!format!("{material:?}").contains("PRIVATE"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        /// Simulates years of rotation at irregular intervals. API servers see a CA bundle
        /// ten minutes late, and a replica serves the certificate of two minutes ago: the
        /// served certificate is always trusted.
        #[test]
        fn the_served_certificate_is_always_trusted(pauses in prop::collection::vec(prop_oneof![
            1 => 1..SETTLED, 4 => HOUR..4 * DAY,
        ], 500..600)) {
            let mut now = NOW;
            let (mut material, _) = kept(Material::default(), now);
            let mut earlier = vec![(now, material.clone())];
            for pause in pauses {
                now += pause;
                material = kept(material, now).0;
                earlier.push((now, material.clone()));
                // The state of `ago` seconds ago, or the first state.
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
