//! Where an agent listens for HTTP.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

/// An agent's HTTP address, as `CONSUL_HTTP_ADDR` gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `http://` or `https://`, host, port and perhaps a path that stands
    /// before every request's own.
    Url(Url),
    /// A unix socket.
    Unix(PathBuf),
}

/// A text that is no agent address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "agent address `{text}`: {problem}; expected host:port, http://host:port, https://host:port or unix:///path"
)]
pub struct InvalidAddress {
    text: String,
    problem: String,
}

/// Consul's HTTP port.
const HTTP_PORT: u16 = 8500;
/// Consul's HTTPS port, by convention.
const HTTPS_PORT: u16 = 8501;

// === impl Address ===

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid =
            |problem: &str| InvalidAddress { text: text.to_owned(), problem: problem.to_owned() };
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let default_port = match scheme {
            "http" => HTTP_PORT,
            "https" => HTTPS_PORT,
            "unix" if rest.starts_with('/') => return Ok(Self::Unix(rest.into())),
            "unix" => return Err(invalid("the path of the socket is not absolute")),
            _ => return Err(invalid("the scheme is unknown")),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.is_empty() {
            return Err(invalid("there is no host"));
        }
        if authority.contains('@') {
            return Err(invalid("credentials do not belong into the address"));
        }
        let (host, port) = split_port(authority)
            .ok_or_else(|| invalid("the port is not a number from 1 to 65535"))?;
        // The URL parser would take `$(HOST_IP)`, which a kubelet did not expand.
        if !host.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%')) {
            return Err(invalid("the host is neither a name nor an IP address"));
        }
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let url = format!(
            "{scheme}://{host}:{}{}",
            port.unwrap_or(default_port),
            path.trim_end_matches('/')
        );
        let url = Url::parse(&url).map_err(|error| invalid(&error.to_string()))?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(invalid("neither a query nor a fragment belongs into it"));
        }
        Ok(Self::Url(url))
    }
}

/// Splits `host:port`. An IPv6 address may lack its brackets, because in a pod
/// the address is made by the kubelet from a template such as
/// `http://$(HOST_IP):8500`: then what follows the last colon is the port.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, after) = bracketed.split_once(']')?;
        return match after.strip_prefix(':') {
            Some(port) => Some((host, Some(parse_port(port)?))),
            None if after.is_empty() => Some((host, None)),
            None => None,
        };
    }
    match authority.rsplit_once(':') {
        Some((host, port)) => Some((host, Some(parse_port(port)?))),
        None => Some((authority, None)),
    }
}

fn parse_port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Url's own form leaves out a scheme's usual port, such as http's 80.
            Self::Url(url) => write!(
                f,
                "{}://{}:{}{}",
                url.scheme(),
                url.host_str().unwrap_or_default(),
                url.port_or_known_default().unwrap_or_default(),
                url.path().trim_end_matches('/')
            ),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_consul_reads() {
        for (text, shown) in [
            ("127.0.0.1:8500", "http://127.0.0.1:8500"),
            ("localhost", "http://localhost:8500"),
            ("http://10.0.0.1:80", "http://10.0.0.1:80"),
            ("https://consul.example:8501/", "https://consul.example:8501"),
            ("https://consul.example", "https://consul.example:8501"),
            ("http://h:1/prefix/", "http://h:1/prefix"),
            ("unix:///run/consul.sock", "unix:///run/consul.sock"),
            ("[::1]:8500", "http://[::1]:8500"),
            ("http://[fd00::1]", "http://[fd00::1]:8500"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(shown.parse(), Ok(address), "{shown} is read back");
        }
    }

    /// Pain 52: the kubelet puts an IPv6 host address into the template as it is.
    #[test]
    fn an_ipv6_address_may_lack_its_brackets() {
        let address: Address = "http://fd00::1:8500".parse().unwrap();
        assert_eq!(address.to_string(), "http://[fd00::1]:8500");
    }

    #[test]
    fn refuses_what_is_no_address() {
        for text in [
            "",
            "http://",
            "ftp://h:1",
            "unix://relative",
            "h:0",
            "h:65536",
            "h:http",
            ":8500x",
            "http://h:",
            "http://a b:1",
            "http://u:p@h:1",
            "http://h:1?x",
            "[::1",
            "[::1]8500",
            "http://$(HOST_IP):8500",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("expected host:port"), "{error}");
        }
    }
}
