//! The result of a check: verdict, reason, and what to do.

use consul::error::{Cause, Error};
use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// Works, or may work, but not as it should.
    Warning,
    /// Can't work, or gets no traffic.
    Wrong,
    /// Could not be checked.
    Unknown,
}

/// The result of one check. Programs read the JSON, so field names, verdicts and reasons must
/// not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The subject, one of a fixed set of words.
    pub what: &'static str,
    /// Distinguishes several subjects of a kind: a service's ID, a peer's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    pub verdict: Verdict,
    /// Why the verdict is not `ok`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// ID of the agent's health check that decided the verdict; empty if none did.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub check: String,
    pub detail: String,
    /// Likely cause and what to do, unless the verdict is `ok`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The next command, quoted for a shell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Generates the enum and the list of all its variants, which a test compares with the README.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident => $word:literal,)*) => {
        /// Why a verdict is not `ok`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
        pub enum Reason {
            $($(#[$doc])* #[serde(rename = $word)] $name,)*
        }

        impl Reason {
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }
    };
}

reasons! {
    /// The token lacks the permission to read this.
    Denied => "denied",
    /// The agent did not answer this question in time.
    NotTold => "not-told",
    /// Not checked, because a flag is missing.
    NotAsked => "not-asked",

    /// No agent answers.
    NoAgent => "no-agent",
    /// The agent answers with an error.
    AgentError => "agent-error",
    /// The servers have no leader.
    NoLeader => "no-leader",
    /// TLS with the agent failed.
    TlsFailed => "tls-failed",
    /// The agent's certificate expires soon.
    CertificateEnds => "certificate-ends",
    /// The servers do not know the ACL token.
    TokenUnknown => "token-unknown",
    /// ACLs are on, and there is no token.
    TokenMissing => "token-missing",
    /// A login is configured, but ACLs are off.
    AclsOff => "acls-off",
    /// The agent belongs to another node.
    OtherNode => "other-node",
    /// The agent's release is too old for current Envoy releases.
    OldConsul => "old-consul",
    /// Connect is off.
    ConnectOff => "connect-off",
    /// Connect's CA has no root.
    NoRoot => "no-root",
    /// No address for xDS that Envoy could use.
    NoGrpc => "no-grpc",
    /// Nothing listens on the gRPC port.
    GrpcUnreachable => "grpc-unreachable",
    /// TLS with the gRPC port failed.
    GrpcTls => "grpc-tls-failed",
    /// The gRPC port is addressed with the wrong scheme.
    GrpcScheme => "grpc-scheme",
    /// The port does not speak gRPC.
    GrpcOther => "grpc-not-spoken",
    /// The agent does not support this Envoy.
    EnvoyUnsupported => "envoy-unsupported",

    /// An operator put the node or the service into maintenance mode.
    Maintenance => "maintenance",
    /// The TTL check of a registration is not renewed.
    NoHeartbeat => "no-heartbeat",
    /// The application does not listen.
    ApplicationDown => "application-down",
    /// Envoy does not listen.
    EnvoyAway => "envoy-away",
    /// The destination service of a proxy is not passing.
    DestinationDown => "destination-down",
    /// One of the user's own checks is not passing.
    CheckFailing => "check-failing",
    /// The destination service of a proxy is not registered.
    NoDestination => "no-destination",
    /// A service that needs a proxy has none.
    NoProxy => "no-proxy",
    /// No instance of an upstream is healthy.
    NoInstances => "no-instances",

    /// Two services claim the same virtual address.
    SharedAddress => "shared-address",
    /// An upstream listens on the virtual address of its service.
    UpstreamHidesAddress => "upstream-hides-address",
    /// Connections may bypass Envoy in plain text.
    PlainText => "plain-text",

    /// The servers do not know the datacenter.
    NoDatacenter => "no-datacenter",
    /// The servers have no such peer.
    NoPeer => "no-peer",
    /// The stream to the peer is broken.
    PeerFailing => "peer-failing",
    /// The peering was never completed.
    PeerPending => "peer-pending",
    /// The other side ended the peering.
    PeerEnded => "peer-ended",

    /// Nothing listens on Envoy's admin address.
    EnvoyDown => "envoy-down",
    /// Envoy waits for its first configuration.
    EnvoyStarting => "envoy-starting",
    /// Envoy is draining.
    EnvoyDraining => "envoy-draining",
    /// Envoy runs as a proxy that is not registered.
    EnvoyForeign => "envoy-unregistered",
    /// Envoy has no xDS stream to the agent.
    NoStream => "no-stream",
    /// Envoy has no certificate.
    NoLeaf => "no-leaf",
    /// Envoy's certificate has expired.
    LeafExpired => "leaf-expired",
    /// Envoy rejected its last configuration.
    Rejected => "rejected",
}

/// The reason of a finding for a failed request.
pub(crate) fn reason_of(error: &Error) -> Reason {
    match error.cause {
        Cause::Denied(_) => Reason::Denied,
        _ if error.is_no_answer() => Reason::NoAgent,
        _ => Reason::NotTold,
    }
}

// === impl Finding ===

impl Finding {
    pub(crate) fn ok(what: &'static str, detail: impl Into<String>) -> Self {
        Self {
            what,
            id: String::new(),
            verdict: Verdict::Ok,
            reason: None,
            check: String::new(),
            detail: detail.into(),
            hint: None,
            next: None,
        }
    }

    pub(crate) fn new(
        what: &'static str,
        verdict: Verdict,
        reason: Reason,
        detail: impl Into<String>,
    ) -> Self {
        Self { verdict, reason: Some(reason), ..Self::ok(what, detail) }
    }

    pub(crate) fn of(mut self, id: &str) -> Self {
        id.clone_into(&mut self.id);
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn next(mut self, command: impl Into<String>) -> Self {
        self.next = Some(command.into());
        self
    }

    /// A finding for a failed request.
    pub(crate) fn unknown(what: &'static str, error: &Error) -> Self {
        let hint = match &error.cause {
            Cause::Denied(words) if words.starts_with("Permission denied") => {
                format!("the ACL token lacks the permission that {} requires", error.request.path)
            }
            _ => error.hint(),
        };
        Self::new(what, Verdict::Unknown, reason_of(error), error.cause.to_string())
            .hint(hint)
            .next(ask_for_token(error))
    }

    /// The subject, with its ID if there are several.
    pub fn subject(&self) -> String {
        if self.id.is_empty() { self.what.to_owned() } else { format!("{} {}", self.what, self.id) }
    }
}

/// The command that shows what a token permits, or why a request fails.
fn ask_for_token(error: &Error) -> String {
    match error.cause {
        Cause::Denied(_) => "consul acl token read -self".to_owned(),
        _ => curl("--verbose", &error.request.agent, &error.request.path),
    }
}

// === impl Verdict ===

impl Verdict {
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Wrong => "wrong",
            Self::Unknown => "unknown",
        }
    }
}

/// The command that requests a path of the agent at this URL, which may be `unix://PATH`.
pub(crate) fn curl(flag: &str, agent: &str, path: &str) -> String {
    match agent.strip_prefix("unix://") {
        Some(socket) => {
            let url = format!("http://localhost{path}");
            format!("curl {flag} --unix-socket {} {}", word(socket), word(&url))
        }
        None => format!("curl {flag} {}", word(&format!("{agent}{path}"))),
    }
}

/// Quotes a word for a shell if necessary.
pub(crate) fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_reaches_the_agent_by_url_or_socket() {
        let shown = |agent| curl("--silent", agent, "/v1/agent/self?a&b");
        assert_eq!(shown("http://a:8500"), "curl --silent 'http://a:8500/v1/agent/self?a&b'");
        assert_eq!(
            shown("unix:///run/consul.sock"),
            "curl --silent --unix-socket /run/consul.sock 'http://localhost/v1/agent/self?a&b'"
        );
    }

    #[test]
    fn a_word_of_a_command_is_quoted_if_a_shell_would_change_it() {
        assert_eq!(word("web-1"), "web-1");
        assert_eq!(word("w b/1"), "'w b/1'");
        assert_eq!(word("$(x)'y"), r"'$(x)'\''y'");
        assert_eq!(word(""), "''");
    }

    #[test]
    fn a_reason_is_serialized_as_its_word() {
        for reason in Reason::ALL {
            let written = serde_json::to_value(reason).unwrap();
            assert_eq!(written, reason.word());
        }
    }
}
