//! Destinations of metrics: Envoy `config.metrics.v3.StatsSink` for `envoy_statsd_url`
//! and `envoy_dogstatsd_url`.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use crate::Error;
use crate::document::cluster;
use crate::input::config::{Config, DOGSTATSD_URL, STATSD_URL};

/// The only variable that is replaced inside an address.
const HOST_IP: &str = "HOST_IP";

/// The sinks of both keys; `env` looks up environment variables.
pub(crate) fn statsd(
    config: &Config,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<Value>, Error> {
    [
        (STATSD_URL, &config.statsd_url, "statsd", "StatsdSink"),
        (DOGSTATSD_URL, &config.dogstatsd_url, "dog_statsd", "DogStatsdSink"),
    ]
    .into_iter()
    .filter_map(|(key, url, name, message)| Some((key, url.as_ref()?, name, message)))
    .map(|(key, url, name, message)| {
        let url = expand(key, url, env)?;
        Ok(json!({
            "name": format!("envoy.stat_sinks.{name}"),
            "typed_config": {
                "@type": format!("type.googleapis.com/envoy.config.metrics.v3.{message}"),
                "address": address(key, &url)?,
            },
        }))
    })
    .collect()
}

/// Replaces any variable if it is the whole value, otherwise only `HOST_IP`.
fn expand(
    key: &'static str,
    url: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<String, Error> {
    let lookup = |name: &str| {
        env(name)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| Error::UnsetVariable { key, name: name.to_owned() })
    };
    if let Some((name, "")) = variable(url) {
        return lookup(name);
    }

    let mut expanded = String::new();
    let mut rest = url;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        match variable(&rest[at..]) {
            Some((HOST_IP, after)) => {
                expanded.push_str(&lookup(HOST_IP)?);
                rest = after;
            }
            _ => {
                return Err(Error::SinkUrl {
                    key,
                    value: url.to_owned(),
                    hint: "inside an address only $HOST_IP and ${HOST_IP} are replaced",
                });
            }
        }
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// The variable at the start of the text (`$NAME` or `${NAME}`), and the rest.
fn variable(text: &str) -> Option<(&str, &str)> {
    let text = text.strip_prefix('$')?;
    let in_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (name, rest) = match text.strip_prefix('{') {
        Some(text) => text.split_once('}')?,
        None => text.split_at(text.find(|c| !in_name(c)).unwrap_or(text.len())),
    };
    (!name.is_empty() && name.chars().all(in_name)).then_some((name, rest))
}

fn address(key: &'static str, url: &str) -> Result<Value, Error> {
    let refuse = |hint| Error::SinkUrl { key, value: url.to_owned(), hint };
    if let Some(path) = url.strip_prefix("unix://") {
        return if path.starts_with('/') && path.len() > 1 {
            Ok(cluster::pipe(path))
        } else {
            Err(refuse("the path must be absolute: three slashes after unix:"))
        };
    }
    let Some(server) = url.strip_prefix("udp://") else {
        return Err(refuse("begin with udp:// or unix://"));
    };
    let server = server.strip_suffix('/').unwrap_or(server);
    let (host, port) =
        server.rsplit_once(':').ok_or_else(|| refuse("add the port, usually :8125"))?;
    // An IPv6 address may lack brackets: `udp://$HOST_IP:8125`.
    let ip: IpAddr = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
        .parse()
        .map_err(|_| refuse("write the IP address: Envoy does not resolve host names here"))?;
    match port.parse() {
        Ok(port) if port != 0 => Ok(cluster::address(SocketAddr::new(ip, port))),
        _ => Err(refuse("a port is a number from 1 to 65535")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "HOST_IP" => Some("10.0.0.7".to_owned()),
            "HOST_IP6" => Some("fd00::7".to_owned()),
            "STATSD" => Some("udp://10.0.0.8:9125".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    fn parse(url: &str) -> Result<Value, Error> {
        address(STATSD_URL, &expand(STATSD_URL, url, &env)?)
    }

    #[test]
    fn addresses() {
        let udp =
            |ip: &str, port: u16| json!({"socket_address": {"address": ip, "port_value": port}});
        for (url, expected) in [
            ("udp://127.0.0.1:8125", udp("127.0.0.1", 8125)),
            ("udp://127.0.0.1:8125/", udp("127.0.0.1", 8125)),
            ("udp://[::1]:8125", udp("::1", 8125)),
            ("udp://fd00::1:8125", udp("fd00::1", 8125)),
            ("$STATSD", udp("10.0.0.8", 9125)),
            ("${STATSD}", udp("10.0.0.8", 9125)),
            ("udp://$HOST_IP:9125", udp("10.0.0.7", 9125)),
            ("udp://${HOST_IP}:9125", udp("10.0.0.7", 9125)),
            ("unix:///var/run/statsd.sock", json!({"pipe": {"path": "/var/run/statsd.sock"}})),
        ] {
            assert_eq!(parse(url).unwrap(), expected, "{url}");
        }
    }

    #[test]
    fn refused_addresses_say_why() {
        for (url, hint) in [
            ("http://127.0.0.1:8125", "begin with udp://"),
            ("127.0.0.1:8125", "begin with udp://"),
            ("$HOST_IP:8125", "begin with udp://"),
            ("udp://127.0.0.1", "add the port"),
            ("udp://127.0.0.1:0", "from 1 to 65535"),
            ("udp://127.0.0.1:x", "from 1 to 65535"),
            ("udp://statsd:8125", "write the IP address"),
            ("udp://$HOST_IP6:8125", "only $HOST_IP"),
            ("udp://$:8125", "only $HOST_IP"),
            ("udp://${HOST_IP:8125", "only $HOST_IP"),
            ("unix://statsd.sock", "three slashes"),
        ] {
            let error = parse(url).unwrap_err().to_string();
            let (_, after) = error.split_once("hint: ").unwrap();
            assert!(after.contains(hint), "{url}: {error}");
        }
    }

    #[test]
    fn unset_variables_are_named() {
        for url in ["$NOWHERE", "$EMPTY"] {
            let name = &url[1..];
            assert_eq!(
                parse(url).unwrap_err().to_string(),
                format!(
                    "proxy config envoy_statsd_url refers to an environment variable that is \
                     not set: ${name}; hint: set {name} where the bootstrap is written, or write \
                     the address itself"
                )
            );
        }
    }
}
