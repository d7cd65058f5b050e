//! The doctor: whether an agent can serve sidecars, question by question, each
//! with a verdict and what to do.
//!
//! [`examine`] asks; the judging functions look at answers only. Nothing is
//! changed anywhere, and a question that the ACL token may not ask hides no
//! other.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bootstrap::GrpcAddress;
use certificate::{Validity, rfc3339};
use consul::agent::Leader;
use consul::answer::{AgentCheck, AgentSelf, Roots};
use consul::envoy_version::{limits_of, misfit, release};
use consul::error::{Cause, Error};
use consul::grpc::{Cas, Choice, Served, Source, choose};
use consul::tls::NameCheck;
use consul::{Address, Agent, TlsFiles};
use serde::Serialize;

use crate::handshake::{Trouble, greet};

mod handshake;

/// What to think of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, or may, but not as it should.
    Warning,
    /// It can't work.
    Wrong,
    /// It could not be asked.
    Unknown,
}

/// What was found, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub what: String,
    /// What to think of it.
    pub verdict: Verdict,
    /// What was seen.
    pub detail: String,
    /// What to do next, unless all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Who is examined, and for what.
#[derive(Clone, Copy, Debug)]
pub struct Patient<'a> {
    /// The agent to diagnose.
    pub agent: &'a Agent,
    /// Where Envoy is told to find xDS; none: where the agent says.
    pub grpc: Option<&'a GrpcAddress>,
    /// The TLS files for gRPC.
    pub grpc_tls: &'a TlsFiles,
    /// Which CA certificates are given for it.
    pub cas: Cas,
    /// The Envoy that is going to run: its version or its image.
    pub envoy: Option<&'a str>,
    /// The auth method by which a token is going to be had.
    pub auth_method: Option<&'a str>,
}

/// How long an answer may take. A doctor does not wait for a patient.
const PATIENCE: Duration = Duration::from_secs(3);

/// A certificate is renewed long before that is left of it.
const SOON: i64 = 24 * 60 * 60;

const NEEDS_AGENT_READ: &str =
    "an ACL token with `agent:read` on the node shows it; sidecars work without";

/// Examines an agent. If it can't be reached, that is the only finding.
pub async fn examine(patient: Patient<'_>) -> Vec<Finding> {
    let Patient { envoy, auth_method, .. } = patient;
    let agent = &patient.agent.within(PATIENCE);
    let address = &agent.config().address;
    let leader = agent.leader().await;
    let mut findings = vec![judge_agent(address, &leader), judge_tls(address, &leader, now())];
    if leader.as_ref().is_err_and(Error::is_no_answer) {
        return findings;
    }
    let has_token = agent.token().is_some();
    findings.push(judge_token(has_token, auth_method, &agent.knows_token().await));
    let about = agent.agent_self().await;
    findings.push(judge_node(agent.config().node.as_deref(), &about));
    findings.push(judge_version(&about));
    findings.push(judge_connect(&agent.connect_roots().await));
    findings.push(examine_grpc(patient, &about).await);
    findings.push(judge_envoy(envoy, &about));
    findings
}

/// The registered state of a service, as the agent answers. That it is not
/// registered is no mistake by itself.
pub async fn examine_service(agent: &Agent, id: &str) -> Finding {
    let agent = &agent.within(PATIENCE);
    let what = format!("service {id}");
    let unknown = |error: Error| {
        Finding::new(&what, Verdict::Unknown, error.cause.to_string()).hint(error.hint())
    };
    match agent.service(id, None).await {
        Err(error) => return unknown(error),
        Ok(None) => return Finding::new(&what, Verdict::Ok, "not registered yet"),
        Ok(Some(_)) => {}
    }
    match agent.checks().await {
        Err(error) => unknown(error),
        Ok(checks) => {
            let checks: Vec<AgentCheck> =
                checks.into_values().filter(|check| check.service_id == id).collect();
            judge_service(id, &checks)
        }
    }
}

/// Whether a peer that an upstream names exists; none if it does, or if the agent
/// does not tell.
pub async fn examine_peer(agent: &Agent, peer: &str) -> Option<Finding> {
    match agent.within(PATIENCE).has_peer(peer).await {
        Ok(false) => Some(
            Finding::new(
                &format!("peer {peer}"),
                Verdict::Warning,
                "an upstream names it, but the servers have no such peer",
            )
            .hint("compare `consul peering list`"),
        ),
        Ok(true) | Err(_) => None,
    }
}

/// The state of a registered service, by its checks.
pub fn judge_service(id: &str, checks: &[AgentCheck]) -> Finding {
    let what = format!("service {id}");
    let worst = checks.iter().filter(|check| check.status != "passing");
    // The first of the worst: what fails first explains the others.
    let Some(worst) = worst.min_by_key(|check| check.status != "critical") else {
        let count = checks.len();
        return Finding::new(&what, Verdict::Ok, format!("registered, {count} checks passing"));
    };
    let AgentCheck { name, status, output, .. } = worst;
    let output = output.lines().next().unwrap_or_default();
    let said = if output.is_empty() { String::new() } else { format!(": {output}") };
    let hint = match name.as_str() {
        "Pod Lease" => {
            "connect-lifecycle renews it for as long as it runs in the pod: see the log of the sidecar container"
        }
        "Application Listening" => {
            "nothing listens on the service's port in the pod: see the application's log, and the port in the registration"
        }
        "Proxy Public Listener" => {
            "Envoy does not listen: see its log, whether xDS (gRPC) is reached from the pod, and whether Envoy rejected the listener (`listener_manager.lds.update_rejected` at its admin listener)"
        }
        "Destination Alias" => {
            "the service that the proxy stands for is not passing: see its checks"
        }
        _ => "no traffic is sent to it until the check passes",
    };
    Finding::new(&what, Verdict::Warning, format!("registered; `{name}` is {status}{said}"))
        .hint(hint)
}

fn judge_agent(address: &Address, leader: &Result<Leader, Error>) -> Finding {
    let what = "agent";
    match leader {
        Ok(Leader { address: leader, .. }) if leader.is_empty() => Finding::new(
            what,
            Verdict::Warning,
            format!("{address} answers, but its servers have no leader"),
        )
        .hint("registrations take seconds or fail until they have one: check the servers"),
        Ok(Leader { address: leader, .. }) => Finding::new(
            what,
            Verdict::Ok,
            format!("{address} answers; its servers' leader is {leader}"),
        ),
        Err(error) => {
            let verdict = if error.is_no_answer() { Verdict::Wrong } else { Verdict::Warning };
            Finding::new(what, verdict, format!("{address}: {}", error.cause)).hint(error.hint())
        }
    }
}

fn judge_tls(address: &Address, leader: &Result<Leader, Error>, now: i64) -> Finding {
    let what = "TLS";
    match (address, leader) {
        (_, Err(error @ Error { cause: Cause::Tls(words), .. })) => {
            Finding::new(what, Verdict::Wrong, words).hint(error.hint())
        }
        (Address::Url(url), _) if url.scheme() != "https" => {
            Finding::new(what, Verdict::Ok, "not used: the address is http://")
        }
        (Address::Unix(_), _) => {
            Finding::new(what, Verdict::Ok, "not used: the address is a socket")
        }
        (_, Ok(Leader { certificate: Some(Validity { not_after, .. }), .. }))
            if not_after - now < SOON =>
        {
            Finding::new(
                what,
                Verdict::Warning,
                format!("the agent's certificate is good, but ends {}", rfc3339(*not_after)),
            )
            .hint("renew it: connections fail from then on")
        }
        (_, Ok(Leader { certificate: Some(Validity { not_after, .. }), .. })) => Finding::new(
            what,
            Verdict::Ok,
            format!("the agent's certificate is by the given CA, and ends {}", rfc3339(*not_after)),
        ),
        (_, Ok(_)) => Finding::new(what, Verdict::Ok, "the agent's certificate is by the given CA"),
        (_, Err(error)) => Finding::new(what, Verdict::Unknown, error.cause.to_string()),
    }
}

fn judge_token(has_token: bool, auth_method: Option<&str>, known: &Result<bool, Error>) -> Finding {
    let what = "token";
    let given = if has_token { "the ACL token" } else { "no ACL token" };
    match (known, auth_method) {
        (Err(Error { cause: Cause::Refusal(401, _), .. }), None) if has_token => {
            Finding::new(what, Verdict::Ok, "given, and not needed: ACLs are off on the agent")
        }
        (Err(Error { cause: Cause::Refusal(401, _), .. }), None) => {
            Finding::new(what, Verdict::Ok, "none, and none is needed: ACLs are off on the agent")
        }
        (Err(Error { cause: Cause::Refusal(401, _), .. }), Some(method)) => {
            Finding::new(what, Verdict::Wrong, format!("a login with auth method `{method}`, but ACLs are off on the agent"))
                .hint("leave --acl-auth-method away")
        }
        (Ok(true), _) if has_token => Finding::new(what, Verdict::Ok, "the servers know the ACL token"),
        (_, Some(method)) if !has_token => {
            Finding::new(what, Verdict::Unknown, format!("to be had by a login with auth method `{method}`, which is not made here"))
                .hint("what needs a token can't be asked until then")
        }
        (Ok(false), _) if has_token => {
            Finding::new(what, Verdict::Wrong, "the servers do not know the ACL token")
                .hint("it was deleted, or is of another datacenter; with a login, connect-init has another one made")
        }
        (Ok(_) | Err(Error { cause: Cause::Denied(_), .. }), _) if !has_token => {
            Finding::new(what, Verdict::Warning, "none, but ACLs are on at the agent")
                .hint("give --token-file (CONSUL_HTTP_TOKEN_FILE): registering needs service:write, unless the anonymous token has it")
        }
        (Err(error), _) => {
            Finding::new(what, Verdict::Unknown, format!("{given}: {}", error.cause)).hint(error.hint())
        }
        (Ok(_), _) => Finding::new(what, Verdict::Unknown, given),
    }
}

fn judge_node(expected: Option<&str>, about: &Result<AgentSelf, Error>) -> Finding {
    let what = "node";
    match (about, expected) {
        (Err(error), _) => Finding::not_told(what, error),
        (Ok(about), Some(node)) if about.config.node_name != node => {
            let name = &about.config.node_name;
            Finding::new(what, Verdict::Warning, format!("the agent is that of node {name}, the pod is on {node}"))
                .hint("fine if the agent only has another name for the node; else the pod speaks to another node's agent")
        }
        (Ok(about), _) => Finding::new(
            what,
            Verdict::Ok,
            format!("{} in datacenter {}", about.config.node_name, about.config.datacenter),
        ),
    }
}

fn judge_version(about: &Result<AgentSelf, Error>) -> Finding {
    let what = "version";
    match about {
        Err(error) => Finding::not_told(what, error),
        Ok(about) => {
            let version = &about.config.version;
            match limits_of(version) {
                Some(limits) => Finding::new(
                    what,
                    Verdict::Warning,
                    format!("Consul {version}, which {}", limits.words()),
                )
                .hint(limits.hint()),
                None => Finding::new(what, Verdict::Ok, format!("Consul {version}")),
            }
        }
    }
}

fn judge_connect(roots: &Result<Roots, Error>) -> Finding {
    let what = "Connect";
    match roots {
        Ok(roots) if !roots.active_root_id.is_empty() => {
            Finding::new(what, Verdict::Ok, "enabled, and its CA has a root")
        }
        Ok(_) => Finding::new(what, Verdict::Warning, "enabled, but its CA has no root yet")
            .hint("sidecars get no certificates until it has: check the servers' log"),
        Err(Error { cause: Cause::Unavailable(_, words), .. })
            if words.contains("Connect must be enabled") =>
        {
            Finding::new(what, Verdict::Wrong, "off")
                .hint("set `connect { enabled = true }` in the servers' configuration")
        }
        Err(error) => {
            Finding::new(what, Verdict::Unknown, error.cause.to_string()).hint(error.hint())
        }
    }
}

/// Checks the agent's xDS port by making the handshakes that Envoy would make.
async fn examine_grpc(patient: Patient<'_>, about: &Result<AgentSelf, Error>) -> Finding {
    let Patient { agent, grpc, grpc_tls, cas, .. } = patient;
    let http = &agent.config().address;
    let served = about.as_ref().map_or(Served::Unknown, |about| Served::of(about, http));
    let choice = match choose(grpc, http, served, cas) {
        Ok(choice) => choice,
        Err(error) => {
            return Finding::new(GRPC, Verdict::Wrong, error.to_string()).hint(error.hint());
        }
    };
    // As Envoy checks it: by the CA, and by no name.
    let files = TlsFiles { server_name: None, skip_verify: false, ..grpc_tls.clone() };
    let tls = choice.tls.then(|| files.client_config(NameCheck::Skipped)).transpose();
    let greeted = match tls {
        Err(failure) => return Finding::new(GRPC, Verdict::Wrong, failure.to_string()),
        Ok(tls) => tokio::time::timeout(PATIENCE, greet(&choice.address, tls)).await,
    };
    let greeted =
        greeted.unwrap_or_else(|_| Err(Trouble::Unreachable("no answer in time".to_owned())));
    judge_grpc(&choice, greeted, http)
}

const GRPC: &str = "gRPC";

fn judge_grpc(choice: &Choice, greeted: Result<(), Trouble>, http: &Address) -> Finding {
    let Choice { address, tls, source, warning } = choice;
    let place = match source {
        Source::Given => format!("{address} (given)"),
        Source::Told => format!("{address} (the agent's port)"),
        Source::Assumed => format!("{address} (assumed: the agent does not tell its port)"),
    };
    // What nobody said may be right where Envoy runs.
    let wrong = match source {
        Source::Given => Verdict::Wrong,
        Source::Told | Source::Assumed => Verdict::Warning,
    };
    match greeted {
        Ok(()) => {
            let how = if *tls { "over TLS" } else { "in plain text" };
            match warning {
                Some(warning) => {
                    Finding::new(GRPC, Verdict::Warning, format!("{place} is spoken {how}"))
                        .hint(warning)
                }
                None => Finding::new(GRPC, Verdict::Ok, format!("{place} is spoken {how}")),
            }
        }
        Err(Trouble::Unreachable(problem)) => {
            Finding::new(GRPC, wrong, format!("{place}: {problem}"))
                .hint("set `ports { grpc = 8502 }` in the agent's configuration and open the port to pods, or name where xDS is served with --grpc-addr (CONSUL_GRPC_ADDR)")
        }
        Err(Trouble::Tls(words)) => {
            Finding::new(GRPC, Verdict::Wrong, format!("{place}: TLS failed: {words}"))
                .hint(hint_for_tls(&words, http))
        }
        Err(Trouble::WantsTls) => {
            Finding::new(GRPC, Verdict::Wrong, format!("{place} speaks TLS, not plain text"))
                .hint("write https:// in --grpc-addr (CONSUL_GRPC_ADDR), and give --grpc-ca-file")
        }
        Err(Trouble::Closed) if *tls => {
            Finding::new(GRPC, Verdict::Wrong, format!("{place} closed the connection"))
                .hint(VERIFY_INCOMING)
        }
        Err(Trouble::Closed) => {
            Finding::new(GRPC, Verdict::Wrong, format!("{place} closed the connection"))
                .hint("if that port speaks TLS, write https:// in --grpc-addr (CONSUL_GRPC_ADDR), and give --grpc-ca-file")
        }
        Err(Trouble::Strange) => {
            Finding::new(GRPC, Verdict::Wrong, format!("{place} does not speak HTTP/2"))
                .hint("name the agent's gRPC port, which is not its HTTP port")
        }
    }
}

const VERIFY_INCOMING: &str = "the agent requires a client certificate for gRPC: set `tls { grpc { verify_incoming = false } }` in its configuration (from Consul 1.14 on, `tls.defaults.verify_incoming` covers gRPC, too), or give --client-cert and --client-key";

/// What to do about a failed handshake with the gRPC port, by rustls' words.
fn hint_for_tls(words: &str, http: &Address) -> String {
    let has = |part: &str| words.contains(part);
    if has("CertificateRequired") || has("BadCertificate") || has("HandshakeFailure") {
        VERIFY_INCOMING.to_owned()
    } else if has("UnknownIssuer") {
        format!(
            "--grpc-ca-file must hold the CA that signed this certificate. If the agent made it by itself (-dev, auto_encrypt), that is Connect's CA: {http}/v1/connect/ca/roots?pem=true"
        )
    } else if has("InvalidContentType") {
        "that port speaks plain text: write http:// in --grpc-addr (CONSUL_GRPC_ADDR)".to_owned()
    } else {
        "check --grpc-ca-file, and that the address is the agent's gRPC port".to_owned()
    }
}

fn judge_envoy(envoy: Option<&str>, about: &Result<AgentSelf, Error>) -> Finding {
    let what = "Envoy";
    let about = match about {
        Err(error) => return Finding::not_told(what, error),
        Ok(about) => about,
    };
    let supported = about.supported_envoys();
    if supported.is_empty() {
        return Finding::new(
            what,
            Verdict::Unknown,
            "the agent does not tell which releases it supports",
        );
    }
    match envoy {
        None => Finding::new(
            what,
            Verdict::Unknown,
            format!("the agent supports {}", supported.join(", ")),
        )
        .hint("name the Envoy that runs with --envoy-version to have it compared"),
        Some(envoy) => match (release(envoy), misfit(envoy, supported)) {
            (None, _) => Finding::new(
                what,
                Verdict::Unknown,
                format!(
                    "`{envoy}` does not tell its release; the agent supports {}",
                    supported.join(", ")
                ),
            ),
            (_, Some(words)) => Finding::new(what, Verdict::Warning, words)
                .hint("use an Envoy of one of these, or a newer Consul agent"),
            (_, None) => {
                Finding::new(what, Verdict::Ok, format!("{envoy} is one that the agent supports"))
            }
        },
    }
}

fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

// === impl Finding ===

impl Finding {
    fn new(what: &str, verdict: Verdict, detail: impl Into<String>) -> Self {
        Self { what: what.to_owned(), verdict, detail: detail.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What the agent did not say of itself.
    fn not_told(what: &str, error: &Error) -> Self {
        let hint = match error.cause {
            Cause::Denied(_) => NEEDS_AGENT_READ.to_owned(),
            _ => error.hint(),
        };
        Self::new(what, Verdict::Unknown, error.cause.to_string()).hint(hint)
    }
}

// === impl Verdict ===

impl Verdict {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Wrong => "wrong",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use consul::error::Request;

    const DAY: i64 = 24 * 60 * 60;

    fn failed<T>(cause: Cause) -> Result<T, Error> {
        let request = Request {
            method: "GET",
            agent: "https://h:8501".to_owned(),
            path: "/".to_owned(),
            node: None,
        };
        Err(Error { request, cause })
    }

    fn check(name: &str, status: &str) -> AgentCheck {
        AgentCheck { name: name.to_owned(), status: status.to_owned(), ..AgentCheck::default() }
    }

    #[test]
    fn a_certificate_is_judged_by_what_is_left_of_it() {
        let address: Address = "https://h:8501".parse().unwrap();
        let verdict = |left: i64| {
            let certificate = Some(Validity { not_before: 0, not_after: 1_000_000 + left });
            let leader = Ok(Leader { address: "l".to_owned(), certificate });
            judge_tls(&address, &leader, 1_000_000).verdict
        };
        assert_eq!(verdict(2 * DAY), Verdict::Ok);
        assert_eq!(verdict(DAY / 2), Verdict::Warning);
        let refused = judge_tls(&address, &failed(Cause::Refused), 0);
        assert_eq!(refused.verdict, Verdict::Unknown);
        let plain = judge_tls(&"h:8500".parse().unwrap(), &failed(Cause::Refused), 0);
        assert_eq!(plain.verdict, Verdict::Ok);
    }

    #[test]
    fn an_agent_that_answers_is_not_wrong_even_if_it_has_no_leader() {
        let address: Address = "h:8500".parse().unwrap();
        let verdict = |leader| judge_agent(&address, &leader).verdict;
        let leader = |text: &str| Ok(Leader { address: text.to_owned(), certificate: None });
        assert_eq!(verdict(leader("l")), Verdict::Ok);
        assert_eq!(verdict(leader("")), Verdict::Warning);
        assert_eq!(verdict(failed(Cause::Unavailable(500, String::new()))), Verdict::Warning);
        assert_eq!(verdict(failed(Cause::Timeout)), Verdict::Wrong);
        assert_eq!(verdict(failed(Cause::Garbage(String::new()))), Verdict::Wrong);
    }

    #[test]
    fn a_token_is_judged_by_what_servers_say_and_how_it_is_had() {
        let off = || failed(Cause::Refusal(401, "ACL support disabled".to_owned()));
        let denied = || failed(Cause::Denied("Permission denied".to_owned()));
        for (has, method, known, verdict) in [
            (false, None, off(), Verdict::Ok),
            (true, None, off(), Verdict::Ok),
            (false, Some("k"), off(), Verdict::Wrong),
            (true, None, Ok(true), Verdict::Ok),
            (true, Some("k"), Ok(true), Verdict::Ok),
            (true, None, Ok(false), Verdict::Wrong),
            (true, Some("k"), Ok(false), Verdict::Wrong),
            (false, None, Ok(false), Verdict::Warning),
            (false, None, Ok(true), Verdict::Warning),
            (false, None, denied(), Verdict::Warning),
            (false, Some("k"), Ok(false), Verdict::Unknown),
            (false, Some("k"), denied(), Verdict::Unknown),
            (true, None, failed(Cause::Timeout), Verdict::Unknown),
        ] {
            let found = judge_token(has, method, &known);
            assert_eq!(found.verdict, verdict, "{has} {method:?} {known:?}: {found:?}");
            assert_eq!(found.hint.is_none(), verdict == Verdict::Ok, "{found:?}");
        }
    }

    #[test]
    fn an_agent_that_todays_envoys_reject_is_warned_of() {
        let verdict = |version: &str| {
            let mut about = AgentSelf::default();
            about.config.version = version.to_owned();
            judge_version(&Ok(about)).verdict
        };
        assert_eq!(verdict("1.8.7"), Verdict::Warning);
        assert_eq!(verdict("1.9.17+ent"), Verdict::Warning);
        assert_eq!(verdict("1.11.11"), Verdict::Warning);
        for version in ["1.12.9", "1.21.4", "2.0.0", "what"] {
            assert_eq!(verdict(version), Verdict::Ok, "{version}");
        }
        assert_eq!(judge_version(&failed(Cause::Denied(String::new()))).verdict, Verdict::Unknown);
    }

    #[test]
    fn the_worst_check_is_named_first() {
        let found = judge_service("s", &[check("a", "passing"), check("b", "passing")]);
        assert_eq!(
            (found.verdict, found.detail.as_str()),
            (Verdict::Ok, "registered, 2 checks passing")
        );
        let found = judge_service("s", &[check("w", "warning"), check("Pod Lease", "critical")]);
        assert_eq!(found.detail, "registered; `Pod Lease` is critical");
        assert!(found.hint.unwrap().contains("connect-lifecycle"));
        let found = judge_service("s", &[check("w", "warning")]);
        assert_eq!(
            (found.verdict, found.detail.as_str()),
            (Verdict::Warning, "registered; `w` is warning")
        );
    }

    #[test]
    fn grpc_is_judged_by_the_handshake() {
        let http = "http://h:8500".parse().unwrap();
        let judge = |given: Option<&str>, served, greeted| {
            let given = given.map(|given| given.parse().unwrap());
            let cas = Cas { grpc: true, http: false };
            judge_grpc(&choose(given.as_ref(), &http, served, cas).unwrap(), greeted, &http)
        };
        let both = Served::On { plain: Some(8502), tls: Some(8503) };
        let told = judge(None, both, Ok(()));
        assert_eq!(told.detail, "https://h:8503 (the agent's port) is spoken over TLS");
        assert_eq!(told.verdict, Verdict::Ok);
        let other = judge(Some("http://h:8503"), both, Ok(()));
        assert_eq!(other.verdict, Verdict::Warning);
        assert!(other.hint.unwrap().contains("write https://"));
        for (given, trouble, verdict, hint) in [
            (
                Some("h:1"),
                Trouble::Unreachable("refused".to_owned()),
                Verdict::Wrong,
                "--grpc-addr",
            ),
            // What nobody said may be right where Envoy runs.
            (None, Trouble::Unreachable("refused".to_owned()), Verdict::Warning, "--grpc-addr"),
            (
                Some("https://h:1"),
                Trouble::Tls("received fatal alert: CertificateRequired".to_owned()),
                Verdict::Wrong,
                "tls { grpc { verify_incoming = false } }",
            ),
            (Some("https://h:1"), Trouble::Closed, Verdict::Wrong, "--client-cert"),
            (
                Some("https://h:1"),
                Trouble::Tls("invalid peer certificate: UnknownIssuer".to_owned()),
                Verdict::Wrong,
                "http://h:8500/v1/connect/ca/roots?pem=true",
            ),
            (
                Some("https://h:1"),
                Trouble::Tls("received corrupt message of type InvalidContentType".to_owned()),
                Verdict::Wrong,
                "write http://",
            ),
            (Some("h:1"), Trouble::WantsTls, Verdict::Wrong, "write https://"),
            (Some("h:1"), Trouble::Closed, Verdict::Wrong, "write https://"),
            (Some("h:1"), Trouble::Strange, Verdict::Wrong, "not its HTTP port"),
        ] {
            let found = judge(given, Served::Unknown, Err(trouble.clone()));
            assert_eq!(found.verdict, verdict, "{trouble:?}");
            assert!(found.hint.as_ref().unwrap().contains(hint), "{trouble:?}: {found:?}");
        }
    }
}
