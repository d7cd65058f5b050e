//! Describes what a run would do. The agent is only read from, and its absence is not a
//! failure.

use std::path::Path;

use consul::agent::segment;
use consul::answer::AgentService;
use consul::{Agent, token};
use doctor::{Finding, Patient, Verdict};
use flags::{BootstrapArgs, Report};
use handoff::Handoff;
use provision::Trust;
use registration::Service;
use registration::pod::Pair;
use runtime::Failure;
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::sidecar::Sidecar;

/// Placeholder for the ACL token.
const TOKEN: &str = "<ACL token>";
/// Placeholder for the bearer token.
const BEARER_TOKEN: &str = "<bearer token>";

/// Describes registrations, bootstraps, requests and files of a run, and diagnoses the
/// agent.
///
/// # Errors
/// A run would fail, too, before it asks the agent: a setting can't be honoured, or a
/// file can't be read.
pub(crate) async fn tell(
    sidecars: &[Sidecar],
    agent: &Agent,
    flags: &BootstrapArgs,
    common: &Handoff,
    trust: Trust,
) -> Result<Value, Failure> {
    for sidecar in sidecars {
        // The token of an earlier run works for the diagnosis.
        if sidecar.session.is_some()
            && let Ok(Some(token)) = token::read(&sidecar.handoff.token())
        {
            sidecar.agent.set_token(Some(token));
        }
    }
    let first = sidecars.first().map_or(agent, |sidecar| &sidecar.agent);
    let login = sidecars.first().and_then(|sidecar| sidecar.session.as_ref());
    let tls = &agent.config().tls;
    let mut findings = doctor::examine(Patient {
        agent: first,
        grpc: flags.grpc_addr.as_ref(),
        grpc_tls: &flags.grpc_tls(tls),
        cas: flags.cas(tls),
        envoy: flags.envoy_version.as_deref(),
        auth_method: login.map(|session| session.login().auth_method.as_str()),
    })
    .await;
    let answers = !findings
        .iter()
        .any(|finding| finding.verdict == Verdict::Wrong && finding.what == "agent");
    let (mut services, mut requests) = (Vec::new(), Vec::new());
    let mut files = common_files(agent, common, trust)?;
    for sidecar in sidecars {
        let Pair { service, proxy } = &sidecar.declared.pair;
        if answers {
            for each in [service, proxy] {
                findings.push(doctor::examine_service(&sidecar.agent, each.id()).await);
            }
        }
        services.push(rehearse(sidecar, common, answers).await?);
        requests.extend(requests_of(sidecar));
        files.extend(files_of(sidecar));
    }
    for found in &findings {
        let Finding { verdict, detail, hint, .. } = found;
        let hint = hint.as_deref().unwrap_or("none");
        if matches!(verdict, Verdict::Warning | Verdict::Wrong) {
            tracing::warn!("{} is {}: {detail}; hint: {hint}", found.subject(), verdict.word());
        }
    }
    let findings: Vec<Value> = findings.into_iter().map(as_told).collect();
    Ok(json!({
        "agent": agent.config().address.to_string(),
        "diagnosis": findings,
        "services": services,
        "requests": requests,
        "files": files,
    }))
}

/// In the form of `connect-register status`.
fn as_told(finding: Finding) -> Value {
    let Finding { what, id, verdict, reason, check, detail, hint, next } = finding;
    let reason = reason.map(|reason| reason.word().to_owned());
    let told = [
        ("what", Some(what.to_owned())),
        ("id", Some(id).filter(|id| !id.is_empty())),
        ("verdict", Some(verdict.word().to_owned())),
        ("reason", reason),
        ("check", Some(check).filter(|check| !check.is_empty())),
        ("detail", Some(detail)),
        ("hint", hint),
        ("next", next),
    ];
    let told = told.into_iter().filter_map(|(key, text)| Some((key.to_owned(), text?.into())));
    Value::Object(told.collect())
}

/// The registrations of service and proxy, and the bootstrap.
async fn rehearse(sidecar: &Sidecar, common: &Handoff, answers: bool) -> Result<Value, Failure> {
    let Sidecar { declared, agent, session, bootstrap, .. } = sidecar;
    let Pair { service, proxy } = &declared.pair;
    let mut expected = as_registered(proxy);
    let mut assumed = Vec::new();
    let there = if answers { agent.service(proxy.id(), None).await.ok().flatten() } else { None };
    match (there.and_then(|there| there.proxy), &mut expected.proxy) {
        _ if bootstrap.no_central_config => {}
        // A registration of an earlier run has the central configuration merged in.
        (Some(there), Some(expected)) => {
            let own = std::mem::replace(&mut expected.config, there.config);
            expected.config.extend(own);
        }
        _ => assumed.push(
            "the agent adds no central configuration (proxy-defaults, service-defaults): it tells only of a proxy that is registered".to_owned(),
        ),
    }
    let token = (session.is_some() || agent.token().is_some()).then(|| SecretString::from(TOKEN));
    let files = provision::copies(common, &agent.config().tls, Trust::Given);
    let rehearsal = bootstrap.rehearse(agent, &files, answers, &expected, token).await?;
    assumed.extend(rehearsal.assumed);
    Ok(json!({
        "service": as_sent(service),
        "proxy": as_sent(proxy),
        "admin": declared.admin.to_string(),
        "bootstrap": rehearsal.document,
        "assumed": assumed,
    }))
}

/// The request body. It takes the way through text: converting directly would make the
/// compiler generate all serialization code once more.
fn as_sent(service: &Service) -> Value {
    let text = serde_json::to_vec(service).expect("a registration is JSON");
    serde_json::from_slice(&text).expect("it was written as JSON")
}

/// The agent's answer for it.
fn as_registered(proxy: &Service) -> AgentService {
    AgentService {
        kind: proxy.kind,
        id: proxy.id().to_owned(),
        service: proxy.name.clone(),
        proxy: proxy.proxy.clone(),
        ..AgentService::default()
    }
}

/// The requests of a run, in order.
fn requests_of(sidecar: &Sidecar) -> Vec<Value> {
    let Sidecar { declared, handoff, agent, session, bootstrap, .. } = sidecar;
    let Pair { service, proxy } = &declared.pair;
    let request = |method: &str, path: &str, query: &[(&str, &str)], body: Option<Value>| {
        let config = agent.config();
        let tenancy = [("ns", &config.namespace), ("partition", &config.partition)];
        let tenancy = tenancy.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?)));
        let query = tenancy.chain(query.iter().copied());
        let query: Vec<String> =
            query.map(|(key, value)| format!("{key}={}", segment(value))).collect();
        let mark = if query.is_empty() { "" } else { "?" };
        let mut request =
            json!({"method": method, "path": format!("{path}{mark}{}", query.join("&"))});
        if let Some(body) = body {
            request["body"] = body;
        }
        request
    };
    let mut requests = Vec::new();
    if let Some(session) = session {
        let login = session.login();
        if !handoff.token().exists() {
            let body = json!({
                "AuthMethod": login.auth_method, "BearerToken": BEARER_TOKEN, "Meta": login.meta,
            });
            requests.push(request("POST", "/v1/acl/login", &[], Some(body)));
        }
        requests.push(request("GET", "/v1/acl/token/self", &[("stale", "true")], None));
    }
    if bootstrap.needs_the_agent() {
        requests.push(request("GET", "/v1/agent/self", &[], None));
    }
    let path = format!("/v1/agent/service/{}", segment(service.id()));
    requests.push(request("GET", &path, &[], None));
    for service in [service, proxy] {
        let body = Some(as_sent(service));
        requests.push(request("PUT", "/v1/agent/service/register", &[], body));
    }
    let path = format!("/v1/agent/service/{}", segment(proxy.id()));
    requests.push(request("GET", &path, &[], None));
    if !bootstrap.no_central_config {
        requests.push(request("GET", "/v1/config/proxy-defaults/global", &[], None));
    }
    requests
}

fn files_of(sidecar: &Sidecar) -> Vec<Value> {
    let Sidecar { handoff, agent, session, .. } = sidecar;
    let mut files = Vec::new();
    if session.is_some() || agent.token().is_some() {
        files.push(file(&handoff.token(), 0o600, "the ACL token"));
    }
    files.push(file(&handoff.lock_file(), 0o640, "empty: who holds it registers or deregisters"));
    files.push(file(&handoff.bootstrap(), 0o600, "what Envoy starts from"));
    files.push(file(&handoff.record(), 0o640, "service, proxy and agent, for connect-lifecycle"));
    files
}

/// The files that all services share.
fn common_files(agent: &Agent, handoff: &Handoff, trust: Trust) -> Result<Vec<Value>, Failure> {
    let config = agent.config();
    let mut files = vec![file(&handoff.helper(), 0o555, "connect-lifecycle")];
    if config.http_auth.is_some() {
        files.push(file(&handoff.http_auth(), 0o600, "user and password for the agent"));
    }
    if !config.tls.ca_pem().map_err(Report::failure)?.is_empty() {
        files.push(file(&handoff.ca(), 0o640, "the agent's CA certificates"));
        if trust == Trust::Roots {
            files.push(file(&handoff.roots(), 0o755, "the roots of Connect's CA, kept up with"));
        }
    }
    if config.tls.client_cert.is_some() {
        files.push(file(&handoff.client_cert(), 0o640, "the certificate shown to the agent"));
        files.push(file(&handoff.client_key(), 0o600, "its key"));
    }
    Ok(files)
}

fn file(path: &Path, mode: u32, contents: &str) -> Value {
    json!({"path": path.display().to_string(), "mode": format!("{mode:04o}"), "contents": contents})
}
