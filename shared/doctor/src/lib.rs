//! Diagnostics: whether a Consul agent can serve sidecars. Each check has a verdict and says
//! what to do.
//!
//! [`examine`] sends requests, which change nothing; the `judge` functions only evaluate the
//! answers. If the ACL token does not permit a check, the others run all the same.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bootstrap::GrpcAddress;
use certificate::{Validity, rfc3339};
use consul::agent::Leader;
use consul::answer::{AgentSelf, Roots};
use consul::envoy_version::{limits_of, misfit, release};
use consul::error::{Cause, Error};
use consul::grpc::{Cas, Choice, Served, Source, choose};
use consul::tls::NameCheck;
use consul::{Address, Agent, TlsFiles};

use crate::finding::{curl, reason_of, word};
use crate::handshake::{Trouble, greet};

pub use federation::{examine_datacenter, examine_peer};
pub use finding::{Finding, Reason, Verdict};
pub use proxy::examine_envoy;
pub use service::{
    Registered, examine_service, judge_node_checks, judge_service, judge_upstream, unknown_checks,
};
pub use transparent::examine_transparent;

mod federation;
mod finding;
mod handshake;
mod proxy;
mod service;
mod transparent;

#[derive(Clone, Copy, Debug)]
pub struct Patient<'a> {
    pub agent: &'a Agent,
    /// The xDS address that Envoy is given; `None` to use the port that the agent reports.
    pub grpc: Option<&'a GrpcAddress>,
    pub grpc_tls: &'a TlsFiles,
    /// Which CA certificates are configured.
    pub cas: Cas,
    /// Version or image of the Envoy that will run.
    pub envoy: Option<&'a str>,
    /// Auth method for logging in.
    pub auth_method: Option<&'a str>,
}

/// Time limit of a request. Diagnostics must stay quick when the agent hangs.
const PATIENCE: Duration = Duration::from_secs(3);

/// Remaining lifetime, in seconds, below which a certificate should have been renewed.
const SOON: i64 = 24 * 60 * 60;

const NEEDS_AGENT_READ: &str =
    "an ACL token with `agent:read` on the node shows it; sidecars work without";

/// Checks an agent. If it can't be reached, that is the only finding.
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

fn judge_agent(address: &Address, leader: &Result<Leader, Error>) -> Finding {
    let what = "agent";
    match leader {
        Ok(Leader { address: leader, .. }) if leader.is_empty() => Finding::new(
            what,
            Verdict::Warning,
            Reason::NoLeader,
            format!("{address} answers, but its servers have no leader"),
        )
        .hint("registrations take seconds or fail until they have one: check the servers")
        .next("consul operator raft list-peers -stale"),
        Ok(Leader { address: leader, .. }) => {
            Finding::ok(what, format!("{address} answers; its servers' leader is {leader}"))
        }
        Err(error) => {
            let (verdict, reason) = if error.is_no_answer() {
                (Verdict::Wrong, Reason::NoAgent)
            } else {
                (Verdict::Warning, Reason::AgentError)
            };
            Finding::new(what, verdict, reason, format!("{address}: {}", error.cause))
                .hint(error.hint())
                .next(look_at(address))
        }
    }
}

/// The next command for an agent that does not answer: on the agent's machine, whether it
/// runs; on any other, whether it is reachable.
fn look_at(address: &Address) -> String {
    match address {
        Address::Unix(_) => "systemctl status consul".to_owned(),
        Address::Url(url) if is_here(url.host_str().unwrap_or_default()) => {
            "systemctl status consul".to_owned()
        }
        Address::Url(_) => curl("--verbose", &address.to_string(), "/v1/status/leader"),
    }
}

fn is_here(host: &str) -> bool {
    let ip = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

fn judge_tls(address: &Address, leader: &Result<Leader, Error>, now: i64) -> Finding {
    let what = "TLS";
    let look = match address {
        Address::Url(url) => show_certificate(
            url.host_str().unwrap_or_default(),
            url.port_or_known_default().unwrap_or_default(),
        ),
        Address::Unix(_) => String::new(),
    };
    match (address, leader) {
        (_, Err(error @ Error { cause: Cause::Tls(words), .. })) => {
            Finding::new(what, Verdict::Wrong, Reason::TlsFailed, words)
                .hint(error.hint())
                .next(look)
        }
        (Address::Url(url), _) if url.scheme() != "https" => {
            Finding::ok(what, "not used: the address is http://")
        }
        (Address::Unix(_), _) => Finding::ok(what, "not used: the address is a socket"),
        (_, Ok(Leader { certificate: Some(Validity { not_after, .. }), .. }))
            if not_after - now < SOON =>
        {
            Finding::new(
                what,
                Verdict::Warning,
                Reason::CertificateEnds,
                format!("the agent's certificate is valid, but expires {}", rfc3339(*not_after)),
            )
            .hint("renew it: connections fail from then on")
            .next(look)
        }
        (_, Ok(Leader { certificate: Some(Validity { not_after, .. }), .. })) => Finding::ok(
            what,
            format!(
                "the given CA signed the agent's certificate, which expires {}",
                rfc3339(*not_after)
            ),
        ),
        (_, Ok(_)) => Finding::ok(what, "the given CA signed the agent's certificate"),
        (_, Err(error)) => {
            Finding::new(what, Verdict::Unknown, reason_of(error), error.cause.to_string())
                .hint("resolve the finding about the agent first")
                .next(look_at(address))
        }
    }
}

/// The command that shows the certificate of a listener.
fn show_certificate(host: &str, port: u16) -> String {
    format!("openssl s_client -connect {}:{port} -showcerts </dev/null", word(host))
}

fn judge_token(has_token: bool, auth_method: Option<&str>, known: &Result<bool, Error>) -> Finding {
    let what = "token";
    let given = if has_token { "the ACL token" } else { "no ACL token" };
    match (known, auth_method) {
        (Err(Error { cause: Cause::Refusal(401, _), .. }), None) if has_token => {
            Finding::ok(what, "given, and not needed: ACLs are off on the agent")
        }
        (Err(Error { cause: Cause::Refusal(401, _), .. }), None) => {
            Finding::ok(what, "none, and none is needed: ACLs are off on the agent")
        }
        (Err(Error { cause: Cause::Refusal(401, _), .. }), Some(method)) => Finding::new(
            what,
            Verdict::Wrong,
            Reason::AclsOff,
            format!("auth method `{method}` is set for a login, but ACLs are off on the agent"),
        )
        .hint("omit --acl-auth-method, or enable ACLs")
        .next("consul acl auth-method list"),
        (Ok(true), _) if has_token => Finding::ok(what, "the servers know the ACL token"),
        (_, Some(method)) if !has_token => Finding::new(
            what,
            Verdict::Unknown,
            Reason::NotAsked,
            format!("this command does not log in with auth method `{method}`, so it has no token"),
        )
        .hint("checks that require a token are not possible without a login")
        .next(format!("consul acl auth-method read -name {}", word(method))),
        (Ok(false), _) if has_token => Finding::new(
            what,
            Verdict::Wrong,
            Reason::TokenUnknown,
            "the servers do not know the ACL token",
        )
        .hint("it has expired, was deleted, or belongs to another datacenter: use another one. With a login, connect-init gets one itself")
        .next("consul acl token read -self"),
        (Ok(_) | Err(Error { cause: Cause::Denied(_), .. }), _) if !has_token => Finding::new(
            what,
            Verdict::Warning,
            Reason::TokenMissing,
            "none, but ACLs are on at the agent",
        )
        .hint("registering requires service:write, unless the anonymous token has it; services that the anonymous token may not read are not shown")
        .next("export CONSUL_HTTP_TOKEN_FILE=FILE"),
        (Err(error), _) => {
            let detail = format!("{given}: {}", error.cause);
            Finding { detail, ..Finding::unknown(what, error) }
        }
        (Ok(_), _) => Finding::new(what, Verdict::Unknown, Reason::NotTold, given)
            .hint("the agent does not report whether it is needed")
            .next("consul acl token read -self"),
    }
}

fn judge_node(expected: Option<&str>, about: &Result<AgentSelf, Error>) -> Finding {
    let what = "node";
    match (about, expected) {
        (Err(error), _) => Finding::not_told(what, error),
        (Ok(about), Some(node)) if about.config.node_name != node => {
            let name = &about.config.node_name;
            Finding::new(
                what,
                Verdict::Warning,
                Reason::OtherNode,
                format!("the agent belongs to node {name}, but the pod is on {node}"),
            )
            .hint("harmless if the agent only has another name for the same node; otherwise, the pod uses the agent of another node")
            .next("consul members")
        }
        (Ok(about), _) => Finding::ok(
            what,
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
                    Reason::OldConsul,
                    format!("Consul {version}, which {}", limits.words()),
                )
                .hint(limits.hint())
                .next("consul members"),
                None => Finding::ok(what, format!("Consul {version}")),
            }
        }
    }
}

fn judge_connect(roots: &Result<Roots, Error>) -> Finding {
    let what = "Connect";
    let look = "consul connect ca get-config";
    match roots {
        Ok(roots) if !roots.active_root_id.is_empty() => {
            Finding::ok(what, "enabled, and its CA has a root")
        }
        Ok(_) => Finding::new(
            what,
            Verdict::Warning,
            Reason::NoRoot,
            "enabled, but its CA has no root yet",
        )
        .hint("sidecars get no certificates until it has one: check the servers' log")
        .next(look),
        Err(Error { cause: Cause::Unavailable(_, words), .. })
            if words.contains("Connect must be enabled") =>
        {
            Finding::new(what, Verdict::Wrong, Reason::ConnectOff, "off")
                .hint("set `connect { enabled = true }` in the servers' configuration")
                .next(look)
        }
        Err(error) => Finding::unknown(what, error),
    }
}

/// Checks the agent's xDS port with the handshakes that Envoy would make.
async fn examine_grpc(patient: Patient<'_>, about: &Result<AgentSelf, Error>) -> Finding {
    let Patient { agent, grpc, grpc_tls, cas, .. } = patient;
    let http = &agent.config().address;
    let served = about.as_ref().map_or(Served::Unknown, |about| Served::of(about, http));
    let choice = match choose(grpc, http, served, cas) {
        Ok(choice) => choice,
        Err(error) => {
            return Finding::new(GRPC, Verdict::Wrong, Reason::NoGrpc, error.to_string())
                .hint(error.hint())
                .next(ports_of(http));
        }
    };
    // Like Envoy: verify the certificate against the CA, but don't compare names.
    let files = TlsFiles { server_name: None, skip_verify: false, ..grpc_tls.clone() };
    let tls = choice.tls.then(|| files.client_config(NameCheck::Skipped)).transpose();
    let greeted = match tls {
        Err(error) => {
            return Finding::new(GRPC, Verdict::Wrong, Reason::GrpcTls, error.to_string())
                .hint("correct the files of --grpc-ca-file, --ca-file, --client-cert and --client-key")
                .next(ports_of(http));
        }
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
        Source::Assumed => format!("{address} (assumed: the agent does not report its port)"),
    };
    // An assumed address may be right where Envoy runs.
    let wrong = match source {
        Source::Given => Verdict::Wrong,
        Source::Told | Source::Assumed => Verdict::Warning,
    };
    let trouble = match greeted {
        Ok(()) => {
            let how = if *tls { "over TLS" } else { "in plain text" };
            let detail = format!("{place} answers {how}");
            return match warning {
                Some(warning) => Finding::new(GRPC, Verdict::Warning, Reason::GrpcScheme, detail)
                    .hint(warning)
                    .next(ports_of(http)),
                None => Finding::ok(GRPC, detail),
            };
        }
        Err(trouble) => trouble,
    };
    let is_wrong = |reason, detail: String| Finding::new(GRPC, Verdict::Wrong, reason, detail);
    let closed = format!("{place} closed the connection");
    let found = match trouble {
        Trouble::Unreachable(problem) => {
            Finding::new(GRPC, wrong, Reason::GrpcUnreachable, format!("{place}: {problem}"))
                .hint("set `ports { grpc = 8502 }` in the agent's configuration and make this port reachable from here, or set --grpc-addr (CONSUL_GRPC_ADDR) to the address of xDS")
        }
        Trouble::Tls(words) => {
            is_wrong(Reason::GrpcTls, format!("{place}: TLS failed: {words}"))
                .hint(hint_for_tls(&words, http))
        }
        Trouble::WantsTls => {
            is_wrong(Reason::GrpcScheme, format!("{place} speaks TLS, not plain text"))
                .hint("write https:// in --grpc-addr (CONSUL_GRPC_ADDR), and give --grpc-ca-file")
        }
        Trouble::Closed if *tls => is_wrong(Reason::GrpcTls, closed).hint(VERIFY_INCOMING),
        Trouble::Closed => is_wrong(Reason::GrpcScheme, closed)
            .hint("if that port speaks TLS, write https:// in --grpc-addr (CONSUL_GRPC_ADDR), and give --grpc-ca-file"),
        Trouble::Strange => {
            is_wrong(Reason::GrpcOther, format!("{place} does not speak HTTP/2"))
                .hint("use the agent's gRPC port, which is not its HTTP port")
        }
    };
    found.next(match address {
        GrpcAddress::Tcp { host, port, .. } if *tls => show_certificate(host, *port),
        _ => ports_of(http),
    })
}

/// The command that shows the agent's gRPC ports.
fn ports_of(http: &Address) -> String {
    format!("{} | jq .xDS", curl("--silent", &http.to_string(), "/v1/agent/self"))
}

const VERIFY_INCOMING: &str = "the agent requires a client certificate for gRPC: set `tls { grpc { verify_incoming = false } }` in its configuration (from Consul 1.14 on, `tls.defaults.verify_incoming` covers gRPC, too), or give --client-cert and --client-key";

/// What to do about a failed handshake with the gRPC port, depending on rustls' words.
fn hint_for_tls(words: &str, http: &Address) -> String {
    let has = |part: &str| words.contains(part);
    if has("CertificateRequired") || has("BadCertificate") || has("HandshakeFailure") {
        VERIFY_INCOMING.to_owned()
    } else if has("UnknownIssuer") {
        format!(
            "--grpc-ca-file must hold the CA that signed this certificate. If the agent created the certificate itself (-dev, auto_encrypt), that is Connect's CA: {http}/v1/connect/ca/roots?pem=true"
        )
    } else if has("InvalidContentType") {
        "that port speaks plain text: write http:// in --grpc-addr (CONSUL_GRPC_ADDR)".to_owned()
    } else {
        "check --grpc-ca-file, and that the address is the agent's gRPC port".to_owned()
    }
}

fn judge_envoy(envoy: Option<&str>, about: &Result<AgentSelf, Error>) -> Finding {
    let what = "Envoy";
    let look = "envoy --version";
    let about = match about {
        Err(error) => return Finding::not_told(what, error),
        Ok(about) => about,
    };
    let supported = about.supported_envoys();
    if supported.is_empty() {
        let detail = "the agent does not report which releases it supports";
        return Finding::new(what, Verdict::Unknown, Reason::NotTold, detail)
            .hint("see Consul's page on Envoy's supported versions")
            .next(look);
    }
    let supported = supported.join(", ");
    match envoy {
        None => Finding::new(
            what,
            Verdict::Unknown,
            Reason::NotAsked,
            format!("the agent supports {supported}"),
        )
        .hint("set --envoy-version to the release of your Envoy, to compare it")
        .next(look),
        Some(envoy) => match (release(envoy), misfit(envoy, about.supported_envoys())) {
            (None, _) => Finding::new(
                what,
                Verdict::Unknown,
                Reason::NotAsked,
                format!("`{envoy}` does not contain a release; the agent supports {supported}"),
            )
            .hint("give a version, or an image with one in its tag")
            .next(look),
            (_, Some(words)) => {
                Finding::new(what, Verdict::Warning, Reason::EnvoyUnsupported, words)
                    .hint("use one of these releases of Envoy, or a newer Consul agent")
                    .next(look)
            }
            (_, None) => Finding::ok(what, format!("the agent supports {envoy}")),
        },
    }
}

fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

// === impl Finding ===

impl Finding {
    /// A finding for a question that the agent did not answer.
    fn not_told(what: &'static str, error: &Error) -> Self {
        let found = Self::unknown(what, error);
        if matches!(error.cause, Cause::Denied(_)) { found.hint(NEEDS_AGENT_READ) } else { found }
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

    #[test]
    fn a_certificate_is_judged_by_its_remaining_lifetime() {
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
    fn a_token_is_judged_by_the_servers_answer_and_its_origin() {
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
            let is_complete = [found.hint.is_some(), found.next.is_some(), found.reason.is_some()];
            assert_eq!(is_complete, [verdict != Verdict::Ok; 3], "{found:?}");
        }
    }

    #[test]
    fn an_agent_too_old_for_current_envoys_causes_a_warning() {
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
    fn the_grpc_port_is_judged_by_the_handshake() {
        let http = "http://h:8500".parse().unwrap();
        let judge = |given: Option<&str>, served, greeted| {
            let given = given.map(|given| given.parse().unwrap());
            let cas = Cas { grpc: true, http: false };
            judge_grpc(&choose(given.as_ref(), &http, served, cas).unwrap(), greeted, &http)
        };
        let both = Served::On { plain: Some(8502), tls: Some(8503) };
        let told = judge(None, both, Ok(()));
        assert_eq!(told.detail, "https://h:8503 (the agent's port) answers over TLS");
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
            // An assumed address may be right where Envoy runs.
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
            assert!(found.next.is_some() && found.reason.is_some(), "{found:?}");
        }
    }
}
