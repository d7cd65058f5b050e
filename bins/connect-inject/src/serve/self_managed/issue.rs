//! New CAs, and new certificates signed by them.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::ServerName;

use super::material::{AUTHORITY_LIFE, Authority, BACKDATED, Key, LEAF_LIFE, Leaf};
use certificate::Validity;

/// A CA that is made now, and its key.
pub(super) fn authority(now: i64) -> Result<(Authority, Key), String> {
    let mut params = authority_params();
    during(&mut params, Validity { not_before: now - BACKDATED, not_after: now + AUTHORITY_LIFE });
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let certificate = params.self_signed(&key).map_err(|error| error.to_string())?;
    let authority = Authority::new(certificate.der().clone()).ok_or("a CA that can't be read")?;
    Ok((authority, Key(key.serialize_pem())))
}

/// A certificate that is made now, within the time of the CA that signs it.
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
        .ok_or_else(|| "a certificate that can't be read".to_owned())
}

/// What all CAs of ours have in common, so that any of them can be told from
/// these and its key.
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
