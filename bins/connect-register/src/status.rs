//! The subcommand `status`: shows registered services, and diagnoses agent and sidecars.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use consul::Agent;
use consul::answer::{AgentCheck, AgentService};
use consul::grpc::Cas;
use doctor::{Finding, Patient, Reason, Registered, Verdict};
use flags::Report;
use registration::Upstream;
use registration::service::Kind;
use registration::upstream::DestinationType;
use runtime::deadline::{Cut, Deadline, race};
use runtime::{Exit, Failure, Signals};
use serde_json::{Value, json};

use crate::agent::cut_short;
use crate::args::StatusArgs;
use crate::catalog;
use crate::output::{self, Rows};

/// Shows what is registered with the agent. Does not retry requests: diagnostics must stay
/// quick when the agent is unreachable.
pub(crate) async fn run(args: StatusArgs, mut signals: Signals) -> Result<(), Failure> {
    let StatusArgs { ids, output, grpc_addr, envoy_version, admin_bind, timeout, agent } = args;
    let agent = agent.agent(None)?;
    let deadline = Deadline::after(timeout);
    let looked = match race(deadline, &mut signals, look(&agent, &ids)).await {
        Ok(found) => found,
        Err(cut @ Cut::Signal(_)) => return Err(cut_short(cut, &agent, deadline)),
        Err(cut) => Err(cut_short(cut, &agent, deadline)),
    };
    // The diagnostics run even if the agent did not answer: they say why.
    let tls = &agent.config().tls;
    let patient = Patient {
        agent: &agent,
        grpc: grpc_addr.as_ref(),
        grpc_tls: tls,
        cas: Cas { grpc: false, http: tls.has_ca() },
        envoy: envoy_version.as_deref(),
        auth_method: None,
    };
    let examined = async {
        let mut findings = doctor::examine(patient).await;
        if let Ok(looked) = &looked {
            findings.extend(examine(&agent, looked).await);
            findings.extend(doctor::examine_transparent(&agent, &looked.services).await);
        }
        let services = looked.as_ref().ok().map(|looked| &looked.services);
        for admin in admin_bind {
            findings.push(doctor::examine_envoy(admin, services).await);
        }
        findings
    };
    let examined = race(Deadline::after(EXAMINATION), &mut signals, examined).await;
    let findings = examined.map_err(|cut| cut_short(cut, &agent, deadline))?;
    show(output, looked.as_ref().ok(), &findings)?;
    let Looked { unknown, .. } = looked?;
    if unknown.is_empty() {
        return Ok(());
    }
    for id in &unknown {
        catalog::say_where_else(&agent, id, None).await;
    }
    Err(not_registered(&agent, &unknown, &findings))
}

/// Prints the services, unless the agent did not answer, and the findings.
fn show(output: Rows, looked: Option<&Looked<'_>>, findings: &[Finding]) -> Result<(), Failure> {
    match (output, looked) {
        (Rows::Json, looked) => {
            let services =
                looked.map(|looked| looked.rows.iter().map(Row::to_json).collect::<Vec<Value>>());
            output::print_json(&json!({"services": services, "diagnosis": findings}))
        }
        (Rows::Table, Some(looked)) => {
            let lines = table(&looked.rows).into_iter().chain([String::new()]);
            output::print(lines.chain(findings_table(findings)))
        }
        (Rows::Table, None) => output::print(findings_table(findings)),
    }
}

fn not_registered(agent: &Agent, unknown: &[&str], findings: &[Finding]) -> Failure {
    let address = &agent.config().address;
    let ids: Vec<String> = unknown.iter().map(|id| format!("`{id}`")).collect();
    let failure = Failure::new(
        Exit::Failure,
        format_args!("not registered with the Consul agent at {address}: {}", ids.join(", ")),
    );
    let reasons = [Reason::TokenMissing, Reason::TokenUnknown];
    let lacks_token =
        findings.iter().filter_map(|found| found.reason).any(|it| reasons.contains(&it));
    failure.hint(if lacks_token {
        "ACLs are on: services that the token may not read are not shown; give --token-file (CONSUL_HTTP_TOKEN_FILE)"
    } else {
        "an ID is not a service name: status without IDs shows all services of the agent"
    })
}

/// Time limit of the diagnostics. Each of their requests has a timeout of its own.
const EXAMINATION: Duration = Duration::from_secs(30);

/// Timeout of each request to the agent.
const PATIENCE: Duration = Duration::from_secs(5);

/// Time limit of all upstream lookups together. The remaining upstreams are reported as
/// unknown.
const UPSTREAMS: Duration = Duration::from_secs(10);

/// The agent's services and checks.
struct Looked<'i> {
    services: BTreeMap<String, AgentService>,
    checks: Result<BTreeMap<String, AgentCheck>, consul::Error>,
    rows: Vec<Row>,
    /// Requested IDs that the agent does not have.
    unknown: Vec<&'i str>,
}

/// A service with its checks, sidecar and upstreams.
struct Row {
    service: AgentService,
    /// `None` if the agent did not list its checks.
    checks: Option<Vec<AgentCheck>>,
    /// ID of the service's sidecar.
    sidecar: Option<String>,
    upstreams: Vec<UpstreamRow>,
}

struct UpstreamRow {
    upstream: Upstream,
    /// Number of healthy instances; `None` if unknown.
    healthy: Option<usize>,
}

/// Reads the agent's services, or only those with the given IDs.
async fn look<'i>(agent: &Agent, ids: &'i [String]) -> Result<Looked<'i>, Failure> {
    let agent = &agent.within(PATIENCE);
    let services = agent.services().await.map_err(Report::failure)?;
    let checks = agent.checks().await;
    let mut rows = Vec::new();
    let upstreams_until = Deadline::after(UPSTREAMS);
    for (id, service) in &services {
        if !ids.is_empty() && !ids.contains(id) {
            continue;
        }
        let of_it = checks.as_ref().ok().map(|checks| {
            checks.values().filter(|check| check.service_id == *id).cloned().collect()
        });
        let mut upstreams = Vec::new();
        for upstream in service.proxy.iter().flat_map(|proxy| &proxy.upstreams) {
            let healthy = if upstreams_until.left().is_zero() {
                None
            } else {
                healthy(agent, upstream).await
            };
            upstreams.push(UpstreamRow { upstream: upstream.clone(), healthy });
        }
        rows.push(Row {
            checks: of_it,
            sidecar: sidecar_of(service, &services),
            upstreams,
            service: service.clone(),
        });
    }
    let unknown = ids.iter().filter(|id| !services.contains_key(*id));
    let unknown = unknown.map(String::as_str).collect();
    Ok(Looked { services, checks, rows, unknown })
}

/// Judges the services, the node's checks, and the upstreams with their datacenters and peers.
async fn examine(agent: &Agent, looked: &Looked<'_>) -> Vec<Finding> {
    let Looked { services, checks, rows, .. } = looked;
    let node = catalog::node(&agent.within(PATIENCE)).await;
    let mut findings = Vec::new();
    match checks {
        Ok(checks) => findings.extend(doctor::judge_node_checks(checks.values())),
        Err(error) => findings.push(doctor::unknown_checks(error)),
    }
    for Row { service, checks, upstreams, .. } in rows {
        if let Some(checks) = checks {
            let node = node.as_deref();
            let registered = Registered { service, checks, all: Some(services), node };
            findings.push(doctor::judge_service(registered));
        }
        findings.extend(upstreams.iter().filter_map(|UpstreamRow { upstream, healthy }| {
            doctor::judge_upstream(agent, &service.id, upstream, *healthy)
        }));
    }
    let upstreams = || rows.iter().flat_map(|row| &row.upstreams).map(|row| &row.upstream);
    let datacenters: BTreeSet<&str> = upstreams().map(|it| it.datacenter.as_str()).collect();
    for datacenter in datacenters.into_iter().filter(|name| !name.is_empty()) {
        findings.push(doctor::examine_datacenter(agent, datacenter).await);
    }
    let peers: BTreeSet<&str> = upstreams().map(|it| it.destination_peer.as_str()).collect();
    for peer in peers.into_iter().filter(|name| !name.is_empty()) {
        findings.push(doctor::examine_peer(agent, peer).await);
    }
    findings
}

fn sidecar_of(service: &AgentService, services: &BTreeMap<String, AgentService>) -> Option<String> {
    let is_its = |other: &&AgentService| {
        let proxy = other.proxy.as_ref();
        other.kind == Kind::ConnectProxy
            && proxy.is_some_and(|proxy| proxy.destination_service_id == service.id)
    };
    services.values().find(is_its).map(|sidecar| sidecar.id.clone())
}

/// The number of an upstream's healthy instances; `None`, with a warning, if the catalog can't
/// be read, so that everything else is shown all the same.
async fn healthy(agent: &Agent, upstream: &Upstream) -> Option<usize> {
    if upstream.destination_type != DestinationType::Service {
        return None;
    }
    let Upstream { destination_name, datacenter, destination_peer, .. } = upstream;
    let found = agent.healthy_connect(destination_name, datacenter, destination_peer).await;
    let found = found.inspect_err(|error| tracing::warn!("upstream {upstream}: {error}"));
    found.ok().map(|instances| instances.len())
}

// === impl Row ===

impl Row {
    fn kind(&self) -> String {
        // A kind serializes to a string.
        let kind = serde_json::to_value(self.service.kind).unwrap_or_default();
        kind.as_str().unwrap_or_default().to_owned()
    }

    fn address(&self) -> String {
        let AgentService { address, port, .. } = &self.service;
        match (address.as_str(), port) {
            ("", 0) => String::new(),
            (address, 0) => address.to_owned(),
            (address, port) if address.contains(':') => format!("[{address}]:{port}"),
            (address, port) => format!("{address}:{port}"),
        }
    }

    /// The number of checks of each status, the worst status first.
    fn checks(&self) -> String {
        let Some(checks) = &self.checks else { return "?".to_owned() };
        let counted = ["critical", "warning", "passing"].map(|status| {
            let count = checks.iter().filter(|check| check.status == status).count();
            (count > 0).then(|| format!("{count} {status}"))
        });
        counted.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    fn upstreams(&self) -> String {
        let upstreams = self.upstreams.iter().map(|UpstreamRow { upstream, healthy }| {
            let healthy = healthy.map_or_else(|| "?".to_owned(), |count| count.to_string());
            let Upstream { destination_name, destination_peer, local_bind_port, .. } = upstream;
            let of = match destination_peer.as_str() {
                "" => String::new(),
                peer => format!(" of peer {peer}"),
            };
            format!("{destination_name}:{local_bind_port}{of} ({healthy} healthy)")
        });
        upstreams.collect::<Vec<_>>().join(", ")
    }

    fn to_json(&self) -> Value {
        let checks = self.checks.as_ref().map(|checks| {
            let checks = checks.iter().map(|check| {
                let AgentCheck { check_id, name, status, kind, output, .. } = check;
                json!({"id": check_id, "name": name, "type": kind, "status": status, "output": output})
            });
            checks.collect::<Vec<_>>()
        });
        let upstreams = self.upstreams.iter().map(|UpstreamRow { upstream, healthy }| {
            json!({
                "name": upstream.destination_name,
                "datacenter": upstream.datacenter,
                "peer": upstream.destination_peer,
                "local_port": upstream.local_bind_port,
                "healthy": healthy,
            })
        });
        let AgentService { id, service, address, port, .. } = &self.service;
        json!({
            "id": id,
            "name": service,
            "kind": self.kind(),
            "address": address,
            "port": port,
            "checks": checks,
            "sidecar": self.sidecar,
            "upstreams": upstreams.collect::<Vec<_>>(),
        })
    }
}

/// Formats the services as a table with aligned columns.
fn table(rows: &[Row]) -> Vec<String> {
    let head =
        ["SERVICE", "ID", "ADDRESS", "KIND", "CHECKS", "SIDECAR", "UPSTREAMS"].map(str::to_owned);
    let mut lines = vec![head];
    for row in rows {
        let kind = row.kind();
        lines.push([
            row.service.service.clone(),
            row.service.id.clone(),
            row.address(),
            if kind.is_empty() { "service".to_owned() } else { kind },
            row.checks(),
            row.sidecar.clone().unwrap_or_default(),
            row.upstreams(),
        ]);
    }
    let width = |column: usize| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..7).map(width).collect();
    let shown = lines.iter().map(|line| {
        let cells = line.iter().zip(&widths).map(|(cell, width)| {
            let cell = if cell.is_empty() { "-" } else { cell };
            format!("{cell:<width$}")
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    shown.collect()
}

/// Formats the findings: a line for each, with hint and next command below. All healthy
/// services share one line.
fn findings_table(findings: &[Finding]) -> Vec<String> {
    let is_well = |found: &&Finding| found.what == "service" && found.verdict == Verdict::Ok;
    let well = findings.iter().filter(is_well).count();
    let subjects = findings.iter().filter(|found| !is_well(found)).map(Finding::subject);
    let services = (well > 0).then(|| "services".to_owned());
    let width = subjects.chain(services).map(|what| what.chars().count());
    let width = width.filter(|width| *width <= WIDEST).max().unwrap_or(0);
    let line =
        |what: &str, verdict: &str, detail: &str| format!("{what:<width$}  {verdict:<7}  {detail}");
    let mut lines = Vec::new();
    let mut is_well_told = false;
    for found in findings {
        if is_well(&found) {
            if !is_well_told {
                let of = findings.iter().filter(|found| found.what == "service").count();
                let detail = format!("{well} of {of} are registered and healthy");
                lines.push(line("services", Verdict::Ok.word(), &detail));
            }
            is_well_told = true;
            continue;
        }
        lines.push(line(&found.subject(), found.verdict.word(), &found.detail));
        for (what, text) in [("hint", &found.hint), ("next", &found.next)] {
            lines.extend(text.iter().map(|text| line("", "", &format!("{what}: {text}"))));
        }
    }
    lines
}

/// Subjects longer than this, because of long IDs, do not widen the column.
const WIDEST: usize = 40;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use registration::Proxy;

    use super::*;

    const README: &str = include_str!("../README.md");

    /// The fields that a row of the README's reference lists.
    fn documented(row: &str) -> BTreeSet<String> {
        let start = README.find(&format!("\n| `{row}` | ")).expect("the README has that row");
        let text = README[start..].lines().nth(1).unwrap_or_default();
        let fields = text.split('`').skip(3).step_by(2);
        fields.filter(|field| *field != "null").map(str::to_owned).collect()
    }

    fn keys(value: &Value) -> BTreeSet<String> {
        value.as_object().expect("an object").keys().cloned().collect()
    }

    #[test]
    fn the_readme_has_every_field_of_the_json() {
        let upstream = UpstreamRow { upstream: Upstream::default(), healthy: None };
        let proxy = Some(Proxy::default());
        let row = Row {
            service: AgentService { proxy, ..AgentService::default() },
            checks: Some(vec![AgentCheck::default()]),
            sidecar: None,
            upstreams: vec![upstream],
        };
        let row = row.to_json();
        assert_eq!(keys(&row), documented("services"));
        assert_eq!(keys(&row["checks"][0]), documented("services[].checks"));
        assert_eq!(keys(&row["upstreams"][0]), documented("services[].upstreams"));
        let found = Finding {
            what: "service",
            id: "web".to_owned(),
            verdict: Verdict::Wrong,
            reason: Some(Reason::NoProxy),
            check: "c".to_owned(),
            detail: "d".to_owned(),
            hint: Some("h".to_owned()),
            next: Some("n".to_owned()),
        };
        for field in keys(&serde_json::to_value(found).unwrap()) {
            assert!(README.contains(&format!("\n| `{field}` | ")), "the README lacks {field}");
        }
    }

    #[test]
    fn the_readme_has_every_reason() {
        for reason in Reason::ALL {
            assert!(README.contains(&format!("`{}`", reason.word())), "{reason:?}");
        }
    }
}
