//! A probe as a Pod's specification has it, read and written.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{Action, Page, Probe};

/// A container's port that has a name.
pub type Named<'a> = (&'a str, u16);

/// Why a probe can't be run from inside the pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRun {
    /// It runs a command in the application's container.
    #[error("it runs a command")]
    Exec,
    /// It asks another host.
    #[error("its host is `{0}`, not the pod")]
    Host(String),
    /// Its port is not one of the container's.
    #[error("its port `{0}` is neither a number from 1 to 65535 nor a port of the container")]
    Port(String),
    /// It is far larger than any that asks for health.
    #[error("it has more than {LARGEST} bytes")]
    Large,
    /// Kubernetes would refuse it.
    #[error("it is invalid: {0}")]
    Shape(String),
}

/// The most bytes that a probe may have.
const LARGEST: usize = 8 << 10;

/// What loopback is called.
const LOOPBACK: [&str; 4] = ["127.0.0.1", "localhost", "::1", "[::1]"];

/// The fields that are read. Others don't say how an application is asked.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    exec: Option<Value>,
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    grpc: Option<Grpc>,
    initial_delay_seconds: Option<u32>,
    period_seconds: Option<u32>,
    timeout_seconds: Option<u32>,
    success_threshold: Option<u32>,
    failure_threshold: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpGet {
    port: Value,
    host: Option<String>,
    scheme: Option<String>,
    path: Option<String>,
    http_headers: Option<Vec<Header>>,
}

#[derive(Deserialize)]
struct Header {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct TcpSocket {
    port: Value,
    host: Option<String>,
}

#[derive(Deserialize)]
struct Grpc {
    port: Value,
    service: Option<String>,
}

// === impl Probe ===

impl Probe {
    /// Reads a container's probe, whose port may be the name of one of the container's.
    ///
    /// # Errors
    /// It can't be run from inside the pod.
    pub fn of(probe: &Value, named: &[Named<'_>]) -> Result<Self, NotRun> {
        let written = Written::deserialize(probe);
        let written = written.map_err(|error| NotRun::Shape(shortened(error.to_string())))?;
        // Kubernetes' defaults: "Configure Probes" of its documentation.
        let or = |field: Option<u32>, default| field.filter(|n| *n > 0).unwrap_or(default);
        let seconds = |field, default| Duration::from_secs(or(field, default).into());
        let probe = Self {
            initial_delay: seconds(written.initial_delay_seconds, 0),
            period: seconds(written.period_seconds, 10),
            timeout: seconds(written.timeout_seconds, 1),
            success_threshold: or(written.success_threshold, 1),
            failure_threshold: or(written.failure_threshold, 3),
            action: written.action(named)?,
        };
        if probe.to_string().len() > LARGEST { Err(NotRun::Large) } else { Ok(probe) }
    }
}

impl FromStr for Probe {
    type Err = NotRun;

    /// Reads JSON.
    fn from_str(text: &str) -> Result<Self, NotRun> {
        let value = serde_json::from_str(text);
        Self::of(&value.map_err(|error| NotRun::Shape(shortened(error.to_string())))?, &[])
    }
}

impl fmt::Display for Probe {
    /// Writes JSON, with the port as a number and without what is as by default.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = Map::new();
        match &self.action {
            Action::Http(page) => fields.insert("httpGet".to_owned(), page.written()),
            Action::Tcp { port } => fields.insert("tcpSocket".to_owned(), json!({"port": port})),
            Action::Grpc { port, service } => {
                let mut grpc = json!({"port": port});
                if !service.is_empty() {
                    grpc["service"] = service.as_str().into();
                }
                fields.insert("grpc".to_owned(), grpc)
            }
        };
        for (name, value, default) in [
            ("initialDelaySeconds", self.initial_delay.as_secs(), 0),
            ("periodSeconds", self.period.as_secs(), 10),
            ("timeoutSeconds", self.timeout.as_secs(), 1),
            ("successThreshold", self.success_threshold.into(), 1),
            ("failureThreshold", self.failure_threshold.into(), 3),
        ] {
            if value != default {
                fields.insert(name.to_owned(), value.into());
            }
        }
        fmt::Display::fmt(&Value::Object(fields), f)
    }
}

// === impl Written ===

impl Written {
    fn action(self, named: &[Named<'_>]) -> Result<Action, NotRun> {
        let port = |port: &Value| resolve(port, named);
        match (self.http_get, self.tcp_socket, self.grpc) {
            (Some(http), _, _) => {
                is_here(http.host)?;
                let path = http.path.unwrap_or_default();
                let headers = http.http_headers.unwrap_or_default();
                Ok(Action::Http(Page {
                    port: port(&http.port)?,
                    tls: http.scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("HTTPS")),
                    path: if path.starts_with('/') { path } else { format!("/{path}") },
                    headers: headers
                        .into_iter()
                        .map(|Header { name, value }| (name, value))
                        .collect(),
                }))
            }
            (_, Some(tcp), _) => {
                is_here(tcp.host)?;
                Ok(Action::Tcp { port: port(&tcp.port)? })
            }
            (_, _, Some(grpc)) => Ok(Action::Grpc {
                port: port(&grpc.port)?,
                service: grpc.service.unwrap_or_default(),
            }),
            (None, None, None) if self.exec.is_some() => Err(NotRun::Exec),
            (None, None, None) => Err(NotRun::Shape("it has no action".to_owned())),
        }
    }
}

/// A user's text, as long as a message can hold.
fn shortened(text: String) -> String {
    const MOST: usize = 100;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn is_here(host: Option<String>) -> Result<(), NotRun> {
    match host {
        Some(host) if !host.is_empty() && !LOOPBACK.contains(&host.as_str()) => {
            Err(NotRun::Host(shortened(host)))
        }
        _ => Ok(()),
    }
}

/// A port as Kubernetes has it: a number, its text, or the name of a container's port.
fn resolve(port: &Value, named: &[Named<'_>]) -> Result<u16, NotRun> {
    let number = match port {
        Value::String(text) => {
            let by_name = named.iter().find(|(name, _)| name == text).map(|(_, port)| *port);
            by_name.or_else(|| text.parse().ok())
        }
        other => other.as_u64().and_then(|number| u16::try_from(number).ok()),
    };
    let text = || port.as_str().map_or_else(|| port.to_string(), str::to_owned);
    number.filter(|port| *port > 0).ok_or_else(|| NotRun::Port(shortened(text())))
}

// === impl Page ===

impl Page {
    fn written(&self) -> Value {
        let Self { port, tls, path, headers } = self;
        let mut page = json!({"path": path, "port": port});
        if *tls {
            page["scheme"] = "HTTPS".into();
        }
        if !headers.is_empty() {
            let headers = headers.iter().map(|(name, value)| json!({"name": name, "value": value}));
            page["httpHeaders"] = headers.collect();
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(probe: &Value) -> Result<Probe, NotRun> {
        Probe::of(probe, &[("http", 8080), ("admin", 9090)])
    }

    #[test]
    fn what_is_written_is_read_back() {
        for (probe, written) in [
            (json!({"httpGet": {"port": "http"}}), json!({"httpGet": {"path": "/", "port": 8080}})),
            (
                json!({"httpGet": {"path": "healthz?a=$(B)", "port": "admin", "scheme": "HTTPS", "host": "localhost",
                    "httpHeaders": [{"name": "Host", "value": "x"}]},
                    "initialDelaySeconds": 5, "periodSeconds": 1, "timeoutSeconds": 2,
                    "successThreshold": 4, "failureThreshold": 6, "terminationGracePeriodSeconds": 7}),
                json!({"httpGet": {"path": "/healthz?a=$(B)", "port": 9090, "scheme": "HTTPS",
                    "httpHeaders": [{"name": "Host", "value": "x"}]},
                    "initialDelaySeconds": 5, "periodSeconds": 1, "timeoutSeconds": 2,
                    "successThreshold": 4, "failureThreshold": 6}),
            ),
            (
                json!({"tcpSocket": {"port": 80, "host": ""}, "periodSeconds": 0, "failureThreshold": 3}),
                json!({"tcpSocket": {"port": 80}}),
            ),
            (json!({"grpc": {"port": 1, "service": null}}), json!({"grpc": {"port": 1}})),
            (
                json!({"grpc": {"port": 1, "service": "a.B"}, "exec": null}),
                json!({"grpc": {"port": 1, "service": "a.B"}}),
            ),
        ] {
            let probe = read(&probe).unwrap();
            assert_eq!(serde_json::from_str::<Value>(&probe.to_string()).unwrap(), written);
            assert_eq!(probe.to_string().parse(), Ok(probe));
        }
    }

    #[test]
    fn what_is_absent_is_as_kubernetes_has_it() {
        let probe = read(&json!({"tcpSocket": {"port": 80}})).unwrap();
        assert_eq!(
            (probe.initial_delay, probe.period, probe.timeout),
            (Duration::ZERO, Duration::from_secs(10), Duration::from_secs(1))
        );
        assert_eq!((probe.success_threshold, probe.failure_threshold), (1, 3));
    }

    #[test]
    fn what_cannot_be_run_says_why() {
        for (probe, why) in [
            (json!({"exec": {"command": ["true"]}}), "it runs a command"),
            (json!({"httpGet": {"port": 1, "host": "10.0.0.1"}}), "its host is `10.0.0.1`"),
            (json!({"tcpSocket": {"port": 1, "host": "db"}}), "its host is `db`"),
            (json!({"tcpSocket": {"port": "gone"}}), "its port `gone`"),
            (json!({"tcpSocket": {"port": 0}}), "its port `0`"),
            (json!({"grpc": {"port": 65536}}), "its port `65536`"),
            (json!({"httpGet": {"port": 1, "path": "x".repeat(9000)}}), "more than 8192 bytes"),
            (json!({}), "no action"),
            (json!([]), "invalid"),
            (json!({"tcpSocket": {"port": 1}, "periodSeconds": "5"}), "invalid"),
        ] {
            let found = read(&probe).unwrap_err().to_string();
            assert!(found.contains(why), "{probe}: {found}");
        }
    }
}
