//! Errors by cause, each with a hint: of a request to the agent, and of setting up the
//! client.

use std::error::Error as StdError;
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use rustls::pki_types::pem;

/// A failed request to the agent.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{request}: {cause}")]
pub struct Error {
    pub request: Request,
    pub cause: Cause,
}

/// A request as an error names it, without a token.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: &'static str,
    /// Scheme, host and port of the agent.
    pub agent: String,
    pub path: String,
    /// The Kubernetes node, if the request comes from a pod.
    pub node: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nothing listens at the address.
    Refused,
    /// The network has no route to it.
    NoRoute(String),
    /// The host name has no address.
    Unresolved(String),
    /// The unix socket does not exist.
    NoSocket,
    /// This user may not open the unix socket.
    NoPermission,
    /// The agent did not answer in time.
    Timeout,
    /// The connection broke.
    Broken(String),
    /// The TLS handshake failed: a wrong certificate, or a port without TLS.
    Tls(String),
    /// The port speaks TLS, and the request was plain text.
    PlainText,
    /// The agent's ACLs deny it (403).
    Denied(String),
    /// The agent does not have it (404).
    NotFound(String),
    /// The agent, or what it depends on, is temporarily unavailable (429, 5xx).
    Unavailable(u16, String),
    /// The agent rejects the request (any other status).
    Refusal(u16, String),
    /// The answer is not that of an agent.
    Garbage(String),
    /// The request can't be sent: a value does not fit into a URL or header.
    Unsendable(String),
}

/// Why a client of the agent can't be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("cannot read {}: {source}", path.display())]
    Read { flag: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot read the token file {}: {source}", path.display())]
    Token { path: PathBuf, source: io::Error },
    /// A file of the client certificate or key is not PEM.
    #[error("cannot read {} as PEM: {source}", path.display())]
    Pem { flag: &'static str, path: PathBuf, source: pem::Error },
    /// A source of CA certificates contains none.
    #[error("{place} holds no CA certificate{}", in_brackets(problem.as_deref()))]
    NoCa {
        flag: &'static str,
        /// A file, directory or variable.
        place: String,
        /// The parts of it that could not be read.
        problem: Option<String>,
    },
    /// None of the CA certificates can be used.
    #[error("the CA certificates are unusable: {0}")]
    UnusableCas(String),
    /// Client certificate and key do not match.
    #[error("{} and {} do not belong together: {source}", cert.display(), key.display())]
    KeyPair { cert: PathBuf, key: PathBuf, source: rustls::Error },
    /// The required name of the agent's certificate is not a valid name.
    #[error("`{0}` is neither a host name nor an IP address")]
    ServerName(String),
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("cannot set up HTTP: {0}")]
    Http(#[from] reqwest::Error),
}

/// Maximum number of characters quoted from an agent's answer.
const LONGEST_QUOTE: usize = 500;

const REGISTER: &str = "/v1/agent/service/register";

/// Go's HTTP server answers this to plain text on a TLS port.
const WANTS_TLS: &str = "Client sent an HTTP request to an HTTPS server";

/// An agent answers this, with 500, to a check that its operating system lacks.
const NOT_IMPLEMENTED: &str = "not implemented";

/// The agent's error for an unknown ACL token or auth method.
pub(crate) const NO_SUCH_TOKEN: &str = "ACL not found";

// === impl Error ===

impl Error {
    /// Whether a retry may help.
    pub fn is_transient(&self) -> bool {
        match &self.cause {
            Cause::Refused
            | Cause::NoRoute(_)
            | Cause::Unresolved(_)
            | Cause::NoSocket
            | Cause::Timeout
            | Cause::Broken(_)
            | Cause::Unavailable(..)
            | Cause::Garbage(_) => true,
            Cause::NoPermission
            | Cause::Tls(_)
            | Cause::PlainText
            | Cause::Denied(_)
            | Cause::NotFound(_)
            | Cause::Refusal(..)
            | Cause::Unsendable(_) => false,
        }
    }

    /// Whether the agent says that it does not have the service. Any other 404 does not
    /// count, such as that of a wrong path prefix in the address.
    ///
    /// Releases before 1.15 answer a deregistration with 500 if ACLs are on.
    pub fn is_unknown_service(&self) -> bool {
        self.says_unknown(&["unknown service"])
    }

    /// Whether the agent says that it does not have the check. Releases before 1.14 say
    /// so with 500.
    pub fn is_unknown_check(&self) -> bool {
        self.says_unknown(&["unknown check", "checkid "])
    }

    fn says_unknown(&self, beginnings: &[&str]) -> bool {
        let (Cause::NotFound(words) | Cause::Unavailable(500, words)) = &self.cause else {
            return false;
        };
        let words = words.to_ascii_lowercase();
        beginnings.iter().any(|beginning| words.starts_with(beginning))
    }

    pub fn is_no_answer(&self) -> bool {
        match &self.cause {
            Cause::Refused
            | Cause::NoRoute(_)
            | Cause::Unresolved(_)
            | Cause::NoSocket
            | Cause::NoPermission
            | Cause::Timeout
            | Cause::Broken(_)
            | Cause::Tls(_)
            | Cause::PlainText
            | Cause::Garbage(_) => true,
            Cause::Denied(_)
            | Cause::NotFound(_)
            | Cause::Unavailable(..)
            | Cause::Refusal(..)
            | Cause::Unsendable(_) => false,
        }
    }

    /// Whether the agent may have received the request. Without a connection it has
    /// not.
    pub fn may_have_arrived(&self) -> bool {
        match &self.cause {
            Cause::Refused
            | Cause::NoRoute(_)
            | Cause::Unresolved(_)
            | Cause::NoSocket
            | Cause::NoPermission
            | Cause::Tls(_)
            | Cause::PlainText
            | Cause::Unsendable(_) => false,
            Cause::Timeout
            | Cause::Broken(_)
            | Cause::Denied(_)
            | Cause::NotFound(_)
            | Cause::Unavailable(..)
            | Cause::Refusal(..)
            | Cause::Garbage(_) => true,
        }
    }

    /// What to do next, for the reader of the log.
    pub fn hint(&self) -> String {
        let Request { agent, node, .. } = &self.request;
        let place =
            node.as_ref().map_or_else(|| "there".to_owned(), |node| format!("on node {node}"));
        match &self.cause {
            Cause::Refused if self.request.is_from_pod() => format!(
                "no Consul agent listens at {agent}: check that the client agent runs {place} and that its HTTP port is open to pods (client_addr, hostPort)"
            ),
            Cause::Refused => format!(
                "no Consul agent listens at {agent}: start it, check its client_addr and ports.http, or name another address with --http-addr (CONSUL_HTTP_ADDR)"
            ),
            Cause::NoSocket if self.request.is_from_pod() => format!(
                "no Consul agent has made {agent}: check that the agent runs {place} and that the socket is mounted"
            ),
            Cause::NoSocket => format!(
                "no Consul agent has made {agent}: start it, with this socket as addresses.http in its configuration"
            ),
            Cause::NoPermission => format!(
                "this user may not open {agent}: set `unix_sockets` (user, group, mode) in the agent's configuration"
            ),
            Cause::NoRoute(_) | Cause::Timeout => format!(
                "check that the client agent runs {place}, and that no network policy or firewall is between here and {agent}"
            ),
            Cause::Unresolved(_) => {
                "check the host name in --http-addr (CONSUL_HTTP_ADDR)".to_owned()
            }
            Cause::Broken(_) if self.request.path == REGISTER => format!(
                "the agent closed the connection: check its log {place}. If only registrations end like this, the agent lost its node id and the servers still have the old one under its name: deregister that node (curl --request PUT --data '{{\"Node\":\"{}\"}}' SERVER/v1/catalog/deregister)",
                node.as_deref().unwrap_or("NODE")
            ),
            Cause::Broken(_) => format!(
                "the agent closed the connection: check its log {place}, and that {agent} has the right scheme (http or https)"
            ),
            Cause::Tls(words) => hint_for_tls(words, agent),
            Cause::PlainText => {
                format!("write {}", agent.replacen("http://", "https://", 1))
            }
            Cause::Denied(words) => hint_for_denied(words, self.request.is_from_pod()),
            Cause::NotFound(_) if self.is_unknown_service() || self.is_unknown_check() => {
                format!("check that {agent} is the agent with which it was registered")
            }
            Cause::NotFound(_) => format!(
                "check the address {agent}: a path in it must be that of a proxy in front of the agent"
            ),
            Cause::Unavailable(429, _) => {
                "the agent limits requests or connections (limits.http_max_conns_per_client): raise it, or try again later".to_owned()
            }
            Cause::Unavailable(..) => format!(
                "the agent answers but cannot work: check its log {place}, and that it has joined servers with a leader"
            ),
            Cause::Refusal(status, words) => hint_for_refusal(*status, words, agent),
            Cause::Garbage(_) => format!(
                "what listens at {agent} does not answer as a Consul agent does: check the address"
            ),
            Cause::Unsendable(_) => "choose another".to_owned(),
        }
    }
}

// === impl Request ===

impl Request {
    /// Whether the request comes from a pod: only pods are given a node name. Outside
    /// Kubernetes, advice about pods would mislead.
    fn is_from_pod(&self) -> bool {
        self.node.is_some()
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, agent, path, node } = self;
        match node {
            Some(node) => write!(f, "{method} {path} at {agent} (Consul agent of node {node})"),
            None => write!(f, "{method} {path} at {agent} (Consul agent)"),
        }
    }
}

// === impl SetupError ===

impl SetupError {
    /// What to do next; `None` if there is nothing to add.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { flag, .. } | Self::Pem { flag, .. } => Some(format!("check {flag}")),
            Self::Token { .. } => Some("check --token-file (CONSUL_HTTP_TOKEN_FILE)".to_owned()),
            Self::NoCa { flag, .. } => Some(format!(
                "check {flag}: it takes PEM, with a line `-----BEGIN CERTIFICATE-----`"
            )),
            Self::UnusableCas(_) => {
                Some("check --ca-file, --ca-path and --ca-pem (CONSUL_CACERT_PEM)".to_owned())
            }
            Self::KeyPair { .. } => Some("check --client-cert and --client-key".to_owned()),
            Self::ServerName(_) => {
                Some("check --tls-server-name (CONSUL_TLS_SERVER_NAME)".to_owned())
            }
            Self::Tls(_) | Self::Http(_) => None,
        }
    }
}

fn in_brackets(problem: Option<&str>) -> String {
    problem.map(|problem| format!(" ({problem})")).unwrap_or_default()
}

// === impl Cause ===

impl Cause {
    /// The cause of an HTTP client error.
    pub(crate) fn of(error: &reqwest::Error) -> Self {
        let mut deepest = String::new();
        let mut link: Option<&(dyn StdError + 'static)> = Some(error);
        while let Some(current) = link {
            deepest = current.to_string();
            if let Some(tls) = current.downcast_ref::<rustls::Error>() {
                return Self::Tls(tls.to_string());
            }
            if let Some(io) = current.downcast_ref::<std::io::Error>() {
                match io.kind() {
                    ErrorKind::ConnectionRefused => return Self::Refused,
                    ErrorKind::NotFound if error.is_connect() => return Self::NoSocket,
                    ErrorKind::PermissionDenied if error.is_connect() => {
                        return Self::NoPermission;
                    }
                    ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
                    | ErrorKind::AddrNotAvailable => {
                        return Self::NoRoute(io.to_string());
                    }
                    ErrorKind::TimedOut => return Self::Timeout,
                    _ => {}
                }
            }
            link = behind(current);
        }
        if error.is_timeout() {
            Self::Timeout
        } else if error.is_connect() && deepest.contains("lookup address") {
            Self::Unresolved(deepest)
        } else {
            Self::Broken(deepest)
        }
    }

    /// The cause behind a status other than 200.
    pub(crate) fn of_status(status: u16, body: &str) -> Self {
        let words = quote(body);
        match status {
            400 if words.contains(WANTS_TLS) => Self::PlainText,
            403 => Self::Denied(words),
            404 => Self::NotFound(words),
            // These concern the request, not the agent's health.
            500 if words.starts_with("Scripts are disabled") || words == NOT_IMPLEMENTED => {
                Self::Refusal(status, words)
            }
            429 | 500..=599 => Self::Unavailable(status, words),
            _ => Self::Refusal(status, words),
        }
    }
}

/// The anonymous token's accessor, which is the same everywhere.
///
/// Source: "ACL Tokens" of Consul's documentation.
const ANONYMOUS: &str = "00000000-0000-0000-0000-000000000002";

/// What to do about a 403, depending on the agent's words.
fn hint_for_denied(words: &str, is_from_pod: bool) -> String {
    let has = |part: &str| words.contains(part);
    let network = if is_from_pod { "the pods' network" } else { "this host's address" };
    let hint = if has(NO_SUCH_TOKEN) {
        "the ACL token does not exist: it expired, was deleted, or belongs to another datacenter; give a valid one (--token-file, CONSUL_HTTP_TOKEN_FILE), or log in with --acl-auth-method"
    } else if has("Access is restricted") {
        return format!(
            "not a matter of ACLs: the agent takes writes from the networks in http_config.allow_write_http_from only; add {network} there"
        );
    } else if has("Endpoint is blocked") {
        "not a matter of ACLs: http_config.block_endpoints in the agent's configuration blocks this path"
    } else if has(ANONYMOUS) {
        "no ACL token was given, or its file is empty, and the anonymous token lacks a rule: give one (--token-file, CONSUL_HTTP_TOKEN_FILE) with service:write on the service's name and on its sidecar's"
    } else {
        "the ACL token lacks a rule: registering and deregistering a service need service:write on its name and on its sidecar's"
    };
    hint.to_owned()
}

/// What to do about a request that the agent rejects.
fn hint_for_refusal(status: u16, words: &str, agent: &str) -> String {
    if (300..=399).contains(&status) {
        format!("{agent} redirects: name the agent itself with --http-addr (CONSUL_HTTP_ADDR)")
    } else if words.contains(NOT_IMPLEMENTED) {
        "the agent's operating system or release has no such check: use another".to_owned()
    } else {
        "fix the field named in the agent's response".to_owned()
    }
}

/// What to do about a failed handshake, depending on rustls' words.
fn hint_for_tls(words: &str, agent: &str) -> String {
    let has = |part: &str| words.contains(part);
    if has("expired") {
        format!("renew the certificate of {agent}, and compare the clocks of both sides")
    } else if has("not valid for name") {
        "name one of these with --tls-server-name (CONSUL_TLS_SERVER_NAME), or have the address put into the agent's certificate (-additional-ipaddress)".to_owned()
    } else if has("InvalidContentType") {
        format!(
            "what listens at {agent} does not speak TLS: use its HTTPS port, or http:// for this one"
        )
    } else if has("CertificateRequired") || has("HandshakeFailure") || has("BadCertificate") {
        "the agent requires a certificate that its CA signed (verify_incoming): give --client-cert and --client-key, or check the ones given".to_owned()
    } else if has("UnknownIssuer") {
        "check --ca-file: it must hold the CA that has signed the agent's certificate".to_owned()
    } else {
        "check --ca-file, --tls-server-name, --client-cert and that the address is the agent's HTTPS port".to_owned()
    }
}

/// The source of an error. An I/O error hides the error that it wraps: its own source
/// is already that of the wrapped one.
fn behind<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

/// The agent's words as one printable line of limited length.
fn quote(body: &str) -> String {
    let words: Vec<&str> = body.split_whitespace().collect();
    let line: String = words.join(" ").chars().filter(|c| !c.is_control()).collect();
    match line.char_indices().nth(LONGEST_QUOTE) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("connection refused"),
            Self::NoRoute(detail) => write!(f, "no route: {detail}"),
            Self::Unresolved(detail) => write!(f, "no such host: {detail}"),
            Self::NoSocket => f.write_str("the unix socket does not exist"),
            Self::NoPermission => f.write_str("no permission to open the unix socket"),
            Self::Timeout => f.write_str("no answer in time"),
            Self::Broken(detail) => write!(f, "the connection broke: {detail}"),
            Self::Tls(detail) => write!(f, "TLS failed: {detail}"),
            Self::PlainText => f.write_str("this is a TLS port, addressed in plain text"),
            Self::Denied(words) => write!(f, "403 {words}"),
            Self::NotFound(words) => write!(f, "404 {words}"),
            Self::Unavailable(status, words) | Self::Refusal(status, words) => {
                write!(f, "{status} {words}")
            }
            Self::Garbage(detail) => write!(f, "not an agent's answer: {detail}"),
            Self::Unsendable(detail) => f.write_str(detail),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(cause: Cause) -> Error {
        let request = Request {
            method: "PUT",
            agent: "http://10.0.0.1:8500".to_owned(),
            path: "/v1/agent/service/register".to_owned(),
            node: Some("n1".to_owned()),
        };
        Error { request, cause }
    }

    /// A bare "connection refused". Reported in
    /// <https://github.com/hashicorp/consul-k8s/issues/918>.
    #[test]
    fn says_what_where_why_and_what_next() {
        let error = error(Cause::Refused);
        assert_eq!(
            error.to_string(),
            "PUT /v1/agent/service/register at http://10.0.0.1:8500 (Consul agent of node n1): connection refused"
        );
        assert_eq!(
            error.hint(),
            "no Consul agent listens at http://10.0.0.1:8500: check that the client agent runs on node n1 and \
             that its HTTP port is open to pods (client_addr, hostPort)"
        );
    }

    #[test]
    fn a_hint_speaks_of_pods_to_pods_only() {
        let restricted = || Cause::of_status(403, "Access is restricted");
        for cause in [Cause::Refused, Cause::NoSocket, restricted()] {
            let in_pod = error(cause.clone());
            let mut on_host = in_pod.clone();
            on_host.request.node = None;
            let speaks = |hint: &str| hint.contains("pod") || hint.contains("mounted");
            let (in_pod, on_host) = (in_pod.hint(), on_host.hint());
            assert!(speaks(&in_pod) && !speaks(&on_host), "{in_pod}\n{on_host}");
        }
    }

    #[test]
    fn a_status_says_whether_another_try_may_help() {
        for (status, body, is_transient) in [
            (400, "Missing service name", false),
            (403, "Permission denied", false),
            (404, "unknown service ID: x", false),
            (429, "Rate limit reached", true),
            (500, "No cluster leader", true),
            (500, "Scripts are disabled on this agent", false),
            (500, "not implemented", false),
            (500, "rpc error: code = Unimplemented: not implemented", true),
            (400, "Client sent an HTTP request to an HTTPS server.\n", false),
            (503, "", true),
        ] {
            let error = error(Cause::of_status(status, body));
            assert_eq!(error.is_transient(), is_transient, "{status} {body}");
        }
    }

    #[test]
    fn a_hint_fits_the_agents_words() {
        let hint = |status, body| error(Cause::of_status(status, body)).hint();
        for (status, body, advice) in [
            (403, "Permission denied: Missing service:write on web", "lacks a rule"),
            (
                403,
                "Permission denied: token with AccessorID '00000000-0000-0000-0000-000000000002' lacks permission 'service:write' on \"web\"",
                "no ACL token was given",
            ),
            (403, "ACL not found", "does not exist"),
            (403, "rpc error making call: ACL not found", "does not exist"),
            // Wordings of Consul 1.14.
            (403, "Access is restricted", "allow_write_http_from"),
            (403, "Endpoint is blocked by agent configuration", "block_endpoints"),
            (404, "unknown service ID: x", "with which it was registered"),
            (404, "Invalid URL path: not a recognized HTTP API endpoint", "a path in it"),
            (404, "404 page not found", "a path in it"),
            (400, "Client sent an HTTP request to an HTTPS server.", "write https://10.0.0.1:8500"),
            (307, "", "redirects"),
        ] {
            let hint = hint(status, body);
            assert!(hint.contains(advice), "{status} {body}: {hint}");
        }
    }

    /// An agent whose node id is new under an old name answers each registration
    /// with an empty reply.
    #[test]
    fn a_registration_without_a_reply_names_the_node_conflict() {
        let broken = Cause::Broken("connection closed before message completed".to_owned());
        let hint = error(broken.clone()).hint();
        assert!(hint.contains("node id") && hint.contains(r#"{"Node":"n1"}"#), "{hint}");
        let mut other = error(broken);
        other.request.path = "/v1/agent/self".to_owned();
        assert!(!other.hint().contains("node id"));
    }

    #[test]
    fn a_port_addressed_in_plain_text_got_nothing() {
        assert!(!error(Cause::PlainText).may_have_arrived());
    }

    #[test]
    fn only_the_agents_own_words_say_that_it_has_no_such_thing() {
        let told = |status, body| error(Cause::of_status(status, body));
        assert!(told(404, "unknown service ID: nope").is_unknown_service());
        assert!(told(404, "Unknown service ID \"nope\". Ensure that").is_unknown_service());
        assert!(told(500, "Unknown service {\"nope\" {}}").is_unknown_service());
        assert!(told(404, "Unknown check ID \"nope\". Ensure that").is_unknown_check());
        assert!(told(500, "CheckID \"nope\" does not have associated TTL").is_unknown_check());
        for body in
            ["", "404 page not found", "Invalid URL path: not a recognized HTTP API endpoint"]
        {
            let error = told(404, body);
            assert!(!error.is_unknown_service() && !error.is_unknown_check(), "{body}");
        }
    }

    #[test]
    fn a_long_answer_is_cut_and_kept_on_one_line() {
        let Cause::Refusal(_, words) =
            Cause::of_status(400, &format!("a\nb\u{7}{}", "x".repeat(9000)))
        else {
            panic!("400 is a refusal");
        };
        assert!(words.starts_with("a bx") && words.len() < 600, "{words}");
    }
}
