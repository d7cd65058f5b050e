//! Issues CAs and certificates.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::ServerName;

use super::pki::{Authority, Key, Leaf};
use crate::serve::clock::{DAY, HOUR};
use certificate::Validity;

/// A certificate is valid from this long before it is issued, because clocks differ.
pub(super) const BACKDATED: i64 = HOUR;
/// Lifetime of a CA.
pub(super) const AUTHORITY_LIFE: i64 = 730 * DAY;
/// Lifetime of a certificate, unless its CA expires earlier.
const LEAF_LIFE: i64 = 30 * DAY;

/// Issues a CA that is valid from now, and its key.
pub(super) fn authority(now: i64) -> Result<(Authority, Key), String> {
    let mut params = authority_params();
    during(&mut params, Validity { not_before: now - BACKDATED, not_after: now + AUTHORITY_LIFE });
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let certificate = params.self_signed(&key).map_err(|error| error.to_string())?;
    let authority = Authority::new(certificate.der().clone()).ok_or("cannot parse the new CA")?;
    Ok((authority, Key(key.serialize_pem())))
}

/// Issues a certificate that is valid from now until its CA expires at the latest.
pub(super) fn leaf(
    authority: &Authority,
    authority_key: &Key,
    hosts: &[ServerName<'static>],
    now: i64,
) -> Result<Leaf, String> {
    let names: Vec<String> = hosts.iter().map(|host| host.to_str().into_owned()).collect();
    let mut params = CertificateParams::new(names).map_err(|error| error.to_string())?;
    params.distinguished_name = name("connect-inject");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let not_after = authority.validity.not_after.min(now + LEAF_LIFE);
    during(&mut params, Validity { not_before: now - BACKDATED, not_after });
    let authority_key = KeyPair::from_pem(&authority_key.0).map_err(|error| error.to_string())?;
    let issuer = Issuer::new(authority_params(), authority_key);
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let certificate = params.signed_by(&key, &issuer).map_err(|error| error.to_string())?;
    Leaf::new(certificate.der().clone(), Key(key.serialize_pem()))
        .ok_or_else(|| "cannot parse the new certificate".to_owned())
}

/// Parameters that all our CAs share. A CA's certificate can be rebuilt from these and its
/// key.
fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name("connect-inject CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn during(params: &mut CertificateParams, validity: Validity) {
    let since_1970 = |seconds: i64| {
        date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    };
    params.not_before = since_1970(validity.not_before);
    params.not_after = since_1970(validity.not_after);
}
