//! Where an agent listens for HTTP.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use runtime::command::without_credentials;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

/// An agent's HTTP address, as `CONSUL_HTTP_ADDR` gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `http://` or `https://`, host, port and an optional path prefix.
    Url(Url),
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

const HTTP_PORT: u16 = 8500;
/// Consul's HTTPS port, by convention.
const HTTPS_PORT: u16 = 8501;

// === impl Address ===

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = |problem: &str| InvalidAddress {
            text: without_credentials(text),
            problem: problem.to_owned(),
        };
        let scheme_is_given = text.contains("://");
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
            return Err(invalid(
                "user and password go into --http-auth (CONSUL_HTTP_AUTH), not into the address",
            ));
        }
        let (host, port) = split_port(authority)
            .ok_or_else(|| invalid("the port is not a number from 1 to 65535"))?;
        // The URL parser would accept `$(HOST_IP)`, which the kubelet did not expand.
        if !host.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%')) {
            return Err(invalid("the host is neither a name nor an IP address"));
        }
        // As in Consul's CLI, `:8500` is this machine. With a scheme it is a template
        // whose variable was empty, such as `http://$(HOST_IP):8500`.
        let host = match host {
            "" if scheme_is_given => return Err(invalid("there is no host")),
            "" => "localhost",
            host => host,
        };
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

impl Address {
    /// The same address over TLS, as `CONSUL_HTTP_SSL=true` demands.
    #[must_use]
    pub fn over_tls(self) -> Self {
        match self {
            Self::Url(url) if url.scheme() == "http" => {
                // The port is written out because the schemes' defaults differ.
                let text = Self::Url(url.clone()).to_string().replacen("http", "https", 1);
                Self::Url(Url::parse(&text).unwrap_or(url))
            }
            other => other,
        }
    }

    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Url(url) if url.scheme() == "https")
    }

    /// The host name, or the IP address without brackets; `None` for a unix socket.
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Url(url) => url.host_str().map(|host| {
                host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
            }),
            Self::Unix(_) => None,
        }
    }
}

/// Splits `host:port`. An IPv6 address may lack its brackets, because the kubelet makes
/// the address from a template such as `http://$(HOST_IP):8500`: then the port follows
/// the last colon.
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
            // `Url` drops a scheme's default port, such as 80 for http.
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
            (":8500", "http://localhost:8500"),
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

    /// The kubelet puts an IPv6 host address into the template as it is. Reported in
    /// <https://github.com/hashicorp/consul/issues/10291>.
    #[test]
    fn an_ipv6_address_may_lack_its_brackets() {
        let address: Address = "http://fd00::1:8500".parse().unwrap();
        assert_eq!(address.to_string(), "http://[fd00::1]:8500");
    }

    #[test]
    fn tls_may_be_demanded_of_an_address() {
        for (text, shown) in [
            ("127.0.0.1:8500", "https://127.0.0.1:8500"),
            ("http://h:80/prefix", "https://h:80/prefix"),
            ("https://h:8501", "https://h:8501"),
            ("[::1]:8500", "https://[::1]:8500"),
            ("unix:///run/consul.sock", "unix:///run/consul.sock"),
        ] {
            let address = text.parse::<Address>().unwrap().over_tls();
            assert_eq!(address.to_string(), shown);
            assert_eq!(address.is_tls(), shown.starts_with("https"));
        }
    }

    #[test]
    fn a_host_has_no_brackets() {
        for (text, host) in
            [("h:1", Some("h")), ("http://[fd00::1]:1", Some("fd00::1")), ("unix:///s", None)]
        {
            assert_eq!(text.parse::<Address>().unwrap().host(), host);
        }
    }

    #[test]
    fn an_error_repeats_no_password() {
        for text in
            ["http://me:s3cret@h:1", "me:s3cret@h:1", "ftp://me:s3c@ret@h", "https://s3cret@"]
        {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(!error.contains("s3c") && error.contains("***@"), "{error}");
        }
    }

    #[test]
    fn refuses_what_is_no_address() {
        for text in [
            "",
            "http://",
            "http://:8500",
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
