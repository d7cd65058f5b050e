//! Where an agent serves xDS, and whether over TLS. Pure.
//!
//! Source: Consul's "Agents Configuration Reference", `ports.grpc`, `ports.grpc_tls`,
//! and the release notes of 1.14, which split the one gRPC port in two. Up to 1.13 that
//! port speaks TLS if the agent has an HTTPS port.

use bootstrap::GrpcAddress;

use crate::address::Address;
use crate::answer::AgentSelf;

/// Port of xDS in plain text, if neither a flag nor the agent gives one.
pub const DEFAULT_PORT: u16 = 8502;

/// The gRPC ports that an agent reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    Unknown,
    Off,
    /// At least one of the two ports is open.
    On {
        plain: Option<u16>,
        tls: Option<u16>,
    },
}

/// Which CA certificates were given to verify an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cas {
    pub grpc: bool,
    /// For HTTP; they verify gRPC, too.
    pub http: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Always with its scheme.
    pub address: GrpcAddress,
    /// Whether it speaks TLS.
    pub tls: bool,
    pub source: Source,
    /// A sentence about what the user should correct.
    pub warning: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Given,
    Told,
    /// Consul's default.
    Assumed,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrpcError {
    #[error("gRPC is off on the agent: Envoy has nowhere to get its configuration from")]
    Off,
    /// Only TLS is served, and no CA certificate was given to verify it.
    #[error(
        "the agent serves xDS over TLS at {address}, but no CA certificate is given to check it against"
    )]
    NoCa { address: GrpcAddress, http: Address },
}

// === impl Served ===

impl Served {
    /// Reads the ports from the agent's answer about itself. `http` is the address that
    /// it was asked at.
    pub fn of(about: &AgentSelf, http: &Address) -> Self {
        let open = |port: i64| u16::try_from(port).ok().filter(|port| *port > 0);
        if let Some(ports) = about.xds.as_ref().and_then(|xds| xds.ports.as_ref()) {
            return match (open(ports.plaintext), open(ports.tls)) {
                (None, None) => Self::Off,
                (plain, tls) => Self::On { plain, tls },
            };
        }
        let has_https = about.debug.https_port.is_some_and(|port| port > 0);
        match about.debug.grpc_port {
            None | Some(0) => Self::Unknown,
            Some(port) => match open(port) {
                None => Self::Off,
                port if has_https || http.is_tls() => Self::On { plain: None, tls: port },
                port => Self::On { plain: port, tls: None },
            },
        }
    }
}

// === impl Choice ===

/// Chooses the address of xDS: that of a flag, else on the host of the agent's HTTP
/// address, over TLS if a CA was given for it.
///
/// # Errors
/// This agent can't serve Envoy.
pub fn choose(
    given: Option<&GrpcAddress>,
    http: &Address,
    served: Served,
    cas: Cas,
) -> Result<Choice, GrpcError> {
    let (address, tls, source, warning) = match given {
        // For a unix socket, only a CA of gRPC's own means TLS.
        Some(address @ GrpcAddress::Unix(_)) => (address.clone(), cas.grpc, Source::Given, None),
        Some(GrpcAddress::Tcp { tls, host, port }) => {
            let (tls, warning) = scheme(*tls, *port, served);
            (tcp(tls, host, *port), tls, Source::Given, warning)
        }
        None => {
            let host = http.host().unwrap_or("localhost");
            let (tls, port, source) = match served {
                Served::Off => return Err(GrpcError::Off),
                Served::Unknown => (false, DEFAULT_PORT, Source::Assumed),
                Served::On { plain, tls } => match (plain, tls) {
                    (_, Some(port)) if cas.grpc || cas.http => (true, port, Source::Told),
                    (Some(port), _) => (false, port, Source::Told),
                    (None, Some(port)) => (true, port, Source::Told),
                    (None, None) => return Err(GrpcError::Off),
                },
            };
            (tcp(tls, host, port), tls, source, None)
        }
    };
    if tls && !cas.grpc && !cas.http {
        return Err(GrpcError::NoCa { address, http: http.clone() });
    }
    Ok(Choice { address, tls, source, warning })
}

fn tcp(tls: bool, host: &str, port: u16) -> GrpcAddress {
    GrpcAddress::Tcp { tls: Some(tls), host: host.to_owned(), port }
}

/// Whether a given port speaks TLS, and a warning if its scheme is wrong.
fn scheme(given: Option<bool>, port: u16, served: Served) -> (bool, Option<String>) {
    let Served::On { plain, tls } = served else { return (given.unwrap_or(false), None) };
    let is_plain = plain == Some(port);
    let is_tls = tls == Some(port) && !is_plain;
    match given {
        Some(false) if is_tls => {
            (true, Some(format!("gRPC port {port} of the agent speaks TLS: write https://")))
        }
        Some(true) if is_plain => {
            (true, Some(format!("gRPC port {port} of the agent speaks plain text: write http://")))
        }
        Some(tls) => (tls, None),
        // Outside of the agent's container, the port may have another number.
        None => (is_tls || (!is_plain && plain.is_none()), None),
    }
}

// === impl GrpcError ===

impl GrpcError {
    pub fn hint(&self) -> String {
        match self {
            Self::Off => "set `ports { grpc = 8502 }` in the agent's configuration".to_owned(),
            Self::NoCa { http, .. } => {
                let roots = match http {
                    Address::Url(url) => {
                        let insecure = if url.scheme() == "https" { "--insecure " } else { "" };
                        format!("curl {insecure}{http}")
                    }
                    Address::Unix(socket) => {
                        format!("curl --unix-socket {} http://localhost", socket.display())
                    }
                };
                format!(
                    "give the CA with --grpc-ca-file (CONSUL_GRPC_CACERT). If the agent made its certificate by itself (-dev, auto_encrypt), that is Connect's CA: {roots}/v1/connect/ca/roots?pem=true > root.pem"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_CA: Cas = Cas { grpc: false, http: false };
    const GRPC_CA: Cas = Cas { grpc: true, http: false };
    const HTTP_CA: Cas = Cas { grpc: false, http: true };

    fn served(http: &str, json: &str) -> Served {
        Served::of(&serde_json::from_str(json).unwrap(), &http.parse().unwrap())
    }

    fn on(plain: impl Into<Option<u16>>, tls: impl Into<Option<u16>>) -> Served {
        Served::On { plain: plain.into(), tls: tls.into() }
    }

    fn chosen(given: &str, http: &str, served: Served, cas: Cas) -> String {
        let given = (!given.is_empty()).then(|| given.parse().unwrap());
        match choose(given.as_ref(), &http.parse().unwrap(), served, cas) {
            Ok(choice) => choice.address.to_string(),
            Err(error) => format!("{error}; {}", error.hint()),
        }
    }

    #[test]
    fn the_grpc_ports_of_old_and_new_agents() {
        let http = "http://h:8500";
        let both = r#"{"xDS":{"Ports":{"Plaintext":8502,"TLS":8503}}}"#;
        assert_eq!(served(http, both), on(8502, 8503));
        assert_eq!(
            served(http, r#"{"xDS":{"Ports":{"Plaintext":8502,"TLS":-1}}}"#),
            on(8502, None)
        );
        assert_eq!(
            served(http, r#"{"xDS":{"Ports":{"Plaintext":-1,"TLS":8503}}}"#),
            on(None, 8503)
        );
        // The newer field decides.
        let off = r#"{"xDS":{"Ports":{"Plaintext":-1,"TLS":-1}},"DebugConfig":{"GRPCPort":8502}}"#;
        assert_eq!(served(http, off), Served::Off);
        assert_eq!(served(http, r#"{"DebugConfig":{"GRPCPort":8502}}"#), on(8502, None));
        assert_eq!(served(http, r#"{"DebugConfig":{"GRPCPort":-1}}"#), Served::Off);
        assert_eq!(served(http, "{}"), Served::Unknown);
        // Up to 1.13, an agent with HTTPS serves xDS over TLS.
        let https = r#"{"DebugConfig":{"GRPCPort":8502,"HTTPSPort":8501}}"#;
        assert_eq!(served(http, https), on(None, 8502));
        assert_eq!(
            served("https://h:8501", r#"{"DebugConfig":{"GRPCPort":8502}}"#),
            on(None, 8502)
        );
    }

    /// It is on the host of the HTTP address, which in a pod is not `localhost`.
    #[test]
    fn an_agent_with_both_ports_is_taken_over_tls_if_a_ca_is_given() {
        let http = "http://10.0.0.7:8500";
        assert_eq!(chosen("", http, on(8502, 8503), NO_CA), "http://10.0.0.7:8502");
        assert_eq!(chosen("", http, on(8502, 8503), GRPC_CA), "https://10.0.0.7:8503");
        assert_eq!(chosen("", http, on(8502, 8503), HTTP_CA), "https://10.0.0.7:8503");
        assert_eq!(chosen("", http, on(8502, None), GRPC_CA), "http://10.0.0.7:8502");
        assert_eq!(chosen("", http, on(None, 8503), GRPC_CA), "https://10.0.0.7:8503");
        assert_eq!(chosen("", http, Served::Unknown, GRPC_CA), "http://10.0.0.7:8502");
        // Envoy reaches the agent at the same host.
        assert_eq!(chosen("", "unix:///s", Served::Unknown, NO_CA), "http://localhost:8502");
        assert_eq!(
            chosen("", "http://[fd00::1]:1", on(8502, None), NO_CA),
            "http://[fd00::1]:8502"
        );
    }

    #[test]
    fn an_agent_that_can_not_feed_envoy_is_refused_with_the_way_out() {
        let failure = chosen("", "http://h:8500", on(None, 8503), NO_CA);
        for words in
            ["https://h:8503", "--grpc-ca-file", "http://h:8500/v1/connect/ca/roots?pem=true"]
        {
            assert!(failure.contains(words), "{failure}");
        }
        for given in ["https://h:1", "h:8503", "http://h:8503"] {
            let failure = chosen(given, "http://h:8500", on(8502, 8503), NO_CA);
            assert!(failure.contains("--grpc-ca-file"), "{given}: {failure}");
        }
        assert!(chosen("", "http://h:1", Served::Off, NO_CA).contains("gRPC is off"));
        // The given port may belong to a proxy before the agent.
        assert_eq!(chosen("h:1", "http://h:1", Served::Off, NO_CA), "http://h:1");
    }

    #[test]
    fn a_given_address_without_a_scheme_has_that_of_its_port() {
        for (given, served, address, warning) in [
            ("h:8502", on(8502, 8503), "http://h:8502", None),
            ("h:8503", on(8502, 8503), "https://h:8503", None),
            ("h:1", on(8502, 8503), "http://h:1", None),
            ("h:1", on(None, 8503), "https://h:1", None),
            ("h:1", Served::Unknown, "http://h:1", None),
            ("http://h:8503", on(None, 8503), "https://h:8503", Some("write https://")),
            ("https://h:8502", on(8502, 8503), "https://h:8502", Some("write http://")),
            ("http://h:1", on(None, 8503), "http://h:1", None),
        ] {
            let given: GrpcAddress = given.parse().unwrap();
            let choice =
                choose(Some(&given), &"http://h:8500".parse().unwrap(), served, GRPC_CA).unwrap();
            assert_eq!(choice.address.to_string(), address, "{given}");
            let said = choice.warning.unwrap_or_default();
            assert!(said.contains(warning.unwrap_or_default()), "{said}");
            assert_eq!(said.is_empty(), warning.is_none(), "{said}");
        }
    }

    #[test]
    fn a_socket_speaks_tls_if_a_ca_is_given_for_grpc() {
        let given: GrpcAddress = "unix:///grpc.sock".parse().unwrap();
        let http: Address = "http://h:1".parse().unwrap();
        let tls = |cas| choose(Some(&given), &http, Served::Unknown, cas).unwrap().tls;
        assert_eq!((tls(GRPC_CA), tls(HTTP_CA), tls(NO_CA)), (true, false, false));
    }
}
