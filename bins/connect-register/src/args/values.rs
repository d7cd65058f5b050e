//! Parses the values of flags.

use registration::service::{Kind, TaggedAddress};

/// `key=value`.
pub(super) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE, such as version=2".to_owned()),
    }
}

/// `name=address:port`.
pub(super) fn tagged_address(text: &str) -> Result<(String, TaggedAddress), String> {
    let form = || "expected NAME=ADDRESS:PORT, such as wan=198.51.100.7:8443".to_owned();
    let (name, address) = key_value(text).map_err(|_| form())?;
    let (address, port) = address.rsplit_once(':').ok_or_else(form)?;
    let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(form)?;
    let bare = address.strip_prefix('[').and_then(|address| address.strip_suffix(']'));
    let address = bare.unwrap_or(address).to_owned();
    if address.is_empty() { Err(form()) } else { Ok((name, TaggedAddress { address, port })) }
}

/// Parses a kind that flags can define.
pub(super) fn kind(text: &str) -> Result<Kind, String> {
    match text {
        "mesh-gateway" => Ok(Kind::MeshGateway),
        "terminating-gateway" => Ok(Kind::TerminatingGateway),
        "ingress-gateway" => Ok(Kind::IngressGateway),
        "api-gateway" => Ok(Kind::ApiGateway),
        "connect-proxy" => Err("a connect-proxy needs a destination, for which there is no flag: \
                                write a definition file with proxy.destination_service_name"
            .to_owned()),
        _ => Err("expected mesh-gateway, terminating-gateway, ingress-gateway or api-gateway; \
                  without --kind it is an ordinary service"
            .to_owned()),
    }
}

/// Parses a kind of gateway as `consul connect envoy -gateway` spells it.
pub(super) fn gateway(text: &str) -> Result<Kind, String> {
    match text.strip_suffix("-gateway").unwrap_or(text) {
        "mesh" => Ok(Kind::MeshGateway),
        "terminating" => Ok(Kind::TerminatingGateway),
        "ingress" => Ok(Kind::IngressGateway),
        "api" => Ok(Kind::ApiGateway),
        _ => Err("expected mesh, terminating, ingress or api".to_owned()),
    }
}

pub(super) fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it is empty".to_owned()) } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_is_a_key_and_a_value() {
        assert_eq!(key_value("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(key_value("a="), Ok(("a".to_owned(), String::new())));
        assert!(key_value("a").is_err() && key_value("=b").is_err());
    }

    #[test]
    fn a_tagged_address_is_a_name_an_address_and_a_port() {
        let of = |text| tagged_address(text).map(|(name, it)| (name, it.address, it.port));
        let expected = |name: &str, address: &str| (name.to_owned(), address.to_owned(), 8443);
        assert_eq!(of("wan=198.51.100.7:8443"), Ok(expected("wan", "198.51.100.7")));
        assert_eq!(of("lan_ipv6=[fd00::7]:8443"), Ok(expected("lan_ipv6", "fd00::7")));
        for text in ["wan", "wan=", "=a:1", "wan=a", "wan=a:0", "wan=:1"] {
            assert!(of(text).unwrap_err().starts_with("expected NAME=ADDRESS:PORT"), "{text}");
        }
    }

    #[test]
    fn a_proxy_takes_a_file() {
        assert_eq!(kind("mesh-gateway"), Ok(Kind::MeshGateway));
        assert!(kind("connect-proxy").unwrap_err().contains("proxy.destination_service_name"));
        assert!(kind("sidecar").is_err());
    }
}
