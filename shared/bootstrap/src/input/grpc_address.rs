//! The address of the agent's gRPC port in users' notation.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use thiserror::Error;

/// Where the agent serves gRPC: `--grpc-addr`, `CONSUL_GRPC_ADDR`.
///
/// `http://host:port` is plain text, `https://host:port` is TLS, `host:port` leaves it
/// open, and `unix:///path` is a Unix domain socket. The host is a name or an IP
/// address. An IPv6 address may lack its brackets, because the kubelet makes the text
/// from a template such as `$(HOST_IP):8502`: then the port follows the last colon.
/// Host names have to be resolved before they enter a bootstrap.
///
/// ```
/// use bootstrap::GrpcAddress;
///
/// let address: GrpcAddress = "https://[fd00::1]:8503".parse()?;
/// assert_eq!(
///     address,
///     GrpcAddress::Tcp { tls: Some(true), host: "fd00::1".to_owned(), port: 8503 },
/// );
/// # Ok::<(), bootstrap::GrpcAddressError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrpcAddress {
    Tcp {
        /// Whether the scheme is `https://` or `http://`; `None` without a scheme.
        tls: Option<bool>,
        /// Name or IP address, without brackets.
        host: String,
        /// Port, not 0.
        port: u16,
    },
    /// Absolute path of a Unix domain socket.
    Unix(String),
}

/// A text that is no [`GrpcAddress`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "not a gRPC address: {value:?} {problem}; accepted: HOST:PORT, http://HOST:PORT, \
     https://HOST:PORT (TLS), unix:///PATH; hint: an IPv6 address stands in brackets, \
     for example [::1]:8502"
)]
pub struct GrpcAddressError {
    value: String,
    problem: &'static str,
}

impl FromStr for GrpcAddress {
    type Err = GrpcAddressError;

    fn from_str(text: &str) -> Result<Self, GrpcAddressError> {
        parse(text).map_err(|problem| GrpcAddressError { value: text.to_owned(), problem })
    }
}

impl fmt::Display for GrpcAddress {
    /// In a form that parses to the same address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{path}"),
            Self::Tcp { tls, host, port } => {
                let scheme = match tls {
                    Some(true) => "https://",
                    Some(false) => "http://",
                    None => "",
                };
                if host.contains(':') {
                    write!(f, "{scheme}[{host}]:{port}")
                } else {
                    write!(f, "{scheme}{host}:{port}")
                }
            }
        }
    }
}

fn parse(text: &str) -> Result<GrpcAddress, &'static str> {
    let (tls, server) = match text.split_once("://") {
        None => (None, text),
        Some(("http", server)) => (Some(false), server),
        Some(("https", server)) => (Some(true), server),
        Some(("unix", path)) if path.len() > 1 && path.starts_with('/') => {
            return Ok(GrpcAddress::Unix(path.to_owned()));
        }
        Some(("unix", _)) => return Err("has no absolute path"),
        Some(_) => return Err("has an unknown scheme"),
    };
    let (host, port) = server.rsplit_once(':').ok_or("has no port")?;
    let host = match host.strip_prefix('[') {
        Some(host) => {
            let host = host.strip_suffix(']').ok_or("has no closing bracket")?;
            // A link-local address may name its interface: fe80::1%eth0.
            let (ip, _zone) = host.split_once('%').unwrap_or((host, ""));
            if ip.parse::<Ipv6Addr>().is_err() {
                return Err("has no IPv6 address in the brackets");
            }
            host
        }
        None if host.is_empty() => return Err("has no host"),
        None if host.contains(':') && host.parse::<Ipv6Addr>().is_err() => {
            return Err("has more than one colon");
        }
        None => host,
    };
    if host.contains(|c: char| c.is_whitespace() || c.is_control() || "/?#@[]".contains(c)) {
        return Err("has a host that is neither a name nor an IP address");
    }
    // `u16` would accept a sign.
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse() {
        Ok(port) if port != 0 && digits => {
            Ok(GrpcAddress::Tcp { tls, host: host.to_owned(), port })
        }
        _ => Err("has a port that is not a number from 1 to 65535"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp(tls: impl Into<Option<bool>>, host: &str, port: u16) -> GrpcAddress {
        GrpcAddress::Tcp { tls: tls.into(), host: host.to_owned(), port }
    }

    #[test]
    fn accepted_forms() {
        for (text, expected) in [
            ("127.0.0.1:8502", tcp(None, "127.0.0.1", 8502)),
            ("localhost:8502", tcp(None, "localhost", 8502)),
            ("http://consul.example.com:80", tcp(false, "consul.example.com", 80)),
            ("https://10.0.0.1:8503", tcp(true, "10.0.0.1", 8503)),
            ("[::1]:8502", tcp(None, "::1", 8502)),
            ("fd00:200::1:8502", tcp(None, "fd00:200::1", 8502)),
            ("https://[fe80::1%eth0]:65535", tcp(true, "fe80::1%eth0", 65535)),
            ("unix:///run/consul/grpc.sock", GrpcAddress::Unix("/run/consul/grpc.sock".to_owned())),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn refused_forms() {
        for (text, problem) in [
            ("", "has no port"),
            ("localhost", "has no port"),
            (":8502", "has no host"),
            ("http://:8502", "has no host"),
            ("web:80:8502", "has more than one colon"),
            ("fd00:200::1", "has more than one colon"),
            ("[::1:8502", "has no closing bracket"),
            ("[web]:8502", "has no IPv6 address"),
            ("localhost:0", "has a port that is not"),
            ("localhost:+1", "has a port that is not"),
            ("localhost:65536", "has a port that is not"),
            ("localhost:8502/", "has a port that is not"),
            ("user@localhost:8502", "has a host that is neither"),
            ("a/b:8502", "has a host that is neither"),
            ("grpc://localhost:8502", "has an unknown scheme"),
            ("unix://grpc.sock", "has no absolute path"),
            ("unix:///", "has no absolute path"),
        ] {
            let error = text.parse::<GrpcAddress>().unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
        assert_eq!(
            "localhost".parse::<GrpcAddress>().unwrap_err().to_string(),
            "not a gRPC address: \"localhost\" has no port; accepted: HOST:PORT, \
             http://HOST:PORT, https://HOST:PORT (TLS), unix:///PATH; hint: an IPv6 address \
             stands in brackets, for example [::1]:8502"
        );
    }

    proptest! {
        #[test]
        fn what_is_shown_parses_to_the_same(text in "(https?://)?[a-z0-9.:\\[\\]]{1,12}:[0-9]{1,5}") {
            if let Ok(address) = text.parse::<GrpcAddress>() {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = text.parse::<GrpcAddress>();
        }
    }
}
