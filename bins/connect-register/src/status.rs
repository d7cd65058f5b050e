//! `status`: what is registered, and the doctor.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use consul::Agent;
use consul::answer::{AgentCheck, AgentService};
use consul::grpc::Cas;
use doctor::{Finding, Patient, examine, examine_peer, judge_service};
use registration::Upstream;
use registration::service::Kind;
use registration::upstream::DestinationType;
use runtime::deadline::{Cut, Deadline, race};
use runtime::{Exit, Failure, Signals};
use serde_json::{Value, json};

use crate::agent::{ask, cut_short};
use crate::args::StatusArgs;
use crate::catalog;
use crate::output::{self, Rows};

/// Shows what is registered with the agent.
pub(crate) async fn run(args: StatusArgs, mut signals: Signals) -> Result<(), Failure> {
    let StatusArgs { ids, output, grpc_addr, envoy_version, reach } = args;
    let agent = reach.agent.agent(None)?;
    let deadline = Deadline::after(reach.timeout);
    let looked = match race(deadline, &mut signals, look(&agent, &ids, deadline)).await {
        Ok(found) => found,
        Err(cut @ Cut::Signal(_)) => return Err(cut_short(cut, &agent, deadline)),
        Err(cut) => Err(cut_short(cut, &agent, deadline)),
    };
    // An agent that can't be asked needs the doctor most.
    let tls = &agent.config().tls;
    let patient = Patient {
        agent: &agent,
        grpc: grpc_addr.as_ref(),
        grpc_tls: tls,
        cas: Cas { grpc: false, http: tls.has_ca() },
        envoy: envoy_version.as_deref(),
        auth_method: None,
    };
    let examined = race(Deadline::after(EXAMINATION), &mut signals, examine(patient)).await;
    let mut findings = examined.map_err(|cut| cut_short(cut, &agent, deadline))?;
    let rows = looked.as_ref().map(|(rows, _)| rows.as_slice()).unwrap_or_default();
    findings.extend(rows.iter().map(|row| judge_service(&row.service.id, &row.checks)));
    let upstreams = rows.iter().flat_map(|row| &row.upstreams);
    let peers: BTreeSet<&str> =
        upstreams.map(|row| row.upstream.destination_peer.as_str()).collect();
    for peer in peers.into_iter().filter(|peer| !peer.is_empty()) {
        findings.extend(examine_peer(&agent, peer).await);
    }
    match output {
        Rows::Json => {
            let services: Vec<Value> = rows.iter().map(Row::to_json).collect();
            let services = looked.is_ok().then_some(services);
            output::print_json(&json!({"services": services, "diagnosis": findings}))?;
        }
        Rows::Table if looked.is_ok() => {
            let lines = table(rows).into_iter().chain([String::new()]);
            output::print(lines.chain(findings_table(&findings)))?;
        }
        Rows::Table => output::print(findings_table(&findings))?,
    }
    let (_, unknown) = looked?;
    if unknown.is_empty() {
        return Ok(());
    }
    let address = &agent.config().address;
    let ids: Vec<String> = unknown.iter().map(|id| format!("`{id}`")).collect();
    Err(Failure::new(
        Exit::Failure,
        format_args!("not registered with the Consul agent at {address}: {}", ids.join(", ")),
    )
    .hint("an id is not a name: status without ids shows all that the agent has"))
}

/// How long the doctor may take: some questions, each with a patience of its own.
const EXAMINATION: Duration = Duration::from_secs(20);

/// A service, and what belongs to it.
struct Row {
    service: AgentService,
    checks: Vec<AgentCheck>,
    /// The id of its sidecar.
    sidecar: Option<String>,
    upstreams: Vec<UpstreamRow>,
}

struct UpstreamRow {
    upstream: Upstream,
    /// None: the catalog does not tell.
    healthy: Option<usize>,
}

/// The rows, and those of the ids that the agent does not have.
async fn look<'i>(
    agent: &Agent,
    ids: &'i [String],
    deadline: Deadline,
) -> Result<(Vec<Row>, Vec<&'i str>), Failure> {
    let services = ask(agent, deadline, || agent.services()).await?;
    let checks = ask(agent, deadline, || agent.checks()).await?;
    let mut rows = Vec::new();
    for (id, service) in &services {
        if !ids.is_empty() && !ids.contains(id) {
            continue;
        }
        let of_it = checks.values().filter(|check| check.service_id == *id);
        let sidecar = sidecar_of(service, &services);
        let mut upstreams = Vec::new();
        for upstream in service.proxy.iter().flat_map(|proxy| &proxy.upstreams) {
            let healthy = healthy(agent, upstream).await;
            upstreams.push(UpstreamRow { upstream: upstream.clone(), healthy });
        }
        rows.push(Row {
            checks: of_it.cloned().collect(),
            sidecar,
            upstreams,
            service: service.clone(),
        });
    }
    let unknown = ids.iter().filter(|id| !services.contains_key(*id));
    let unknown: Vec<&str> = unknown.map(String::as_str).collect();
    for id in &unknown {
        catalog::say_where_else(agent, id, None).await;
    }
    Ok((rows, unknown))
}

fn sidecar_of(service: &AgentService, services: &BTreeMap<String, AgentService>) -> Option<String> {
    let is_its = |other: &&AgentService| {
        let proxy = other.proxy.as_ref();
        other.kind == Kind::ConnectProxy
            && proxy.is_some_and(|proxy| proxy.destination_service_id == service.id)
    };
    services.values().find(is_its).map(|sidecar| sidecar.id.clone())
}

/// How many healthy instances there are; it is additional, so that a catalog
/// that can't be asked hides nothing else.
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
        // A kind is a word.
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

    /// The worst first, which counts.
    fn checks(&self) -> String {
        let counted = ["critical", "warning", "passing"].map(|status| {
            let count = self.checks.iter().filter(|check| check.status == status).count();
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
        let checks = self.checks.iter().map(|AgentCheck { check_id, name, status, .. }| {
            json!({"id": check_id, "name": name, "status": status})
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
            "checks": checks.collect::<Vec<_>>(),
            "sidecar": self.sidecar,
            "upstreams": upstreams.collect::<Vec<_>>(),
        })
    }
}

/// The rows, in columns.
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

/// What was found, a line each, with what to do below it.
fn findings_table(findings: &[Finding]) -> Vec<String> {
    let width = findings.iter().map(|finding| finding.what.chars().count()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for Finding { what, verdict, detail, hint } in findings {
        lines.push(format!("{what:<width$}  {:<7}  {detail}", verdict.word()));
        lines.extend(hint.iter().map(|hint| format!("{:<width$}  {:<7}  hint: {hint}", "", "")));
    }
    lines
}
