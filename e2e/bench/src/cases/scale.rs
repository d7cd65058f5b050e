//! Many pods on one node: all start at the same time, and all register again at the same time
//! when the agent restarts without data.
//!
//! Times are from the agent's log, and the number of requests from its metrics.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::start::text;
use crate::figure::{Budget, Figure, Row};
use crate::{Found, Plan, process};
use harness::node::Node;
use harness::node::asked;
use harness::process::Process;
use harness::{Result, until_within};

/// Timeout for hundreds of pods on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// Few enough that pods do not wait for each other.
const FEW: u16 = 10;

/// # Errors
/// A program fails.
pub(super) fn run(plan: &Plan) -> Result<Found> {
    let mut found = Found::default();
    let counts: &[u16] = if plan.full { &[FEW, 100, 500] } else { &[FEW, 100] };
    for count in counts {
        // Each on a new node.
        let rows = std::thread::scope(|scope| scope.spawn(|| measure(plan, *count)).join());
        found.rows.extend(rows.map_err(|_| "the case panicked")??);
    }
    Ok(found)
}

fn measure(plan: &Plan, count: u16) -> Result<Vec<Row>> {
    let node = Node::new(plan.parts.clone())?;
    // Here all pods have one address; on a node, each pod has its own.
    let mut settings = asked::settings();
    settings["limits"] = json!({"http_max_conns_per_client": 200 + u32::from(count) * 4});
    let agent = node.start_agent_with(&settings)?;
    let folder = tempfile::Builder::new().prefix("connect-bench-").tempdir_in("/dev/shm")?;
    let mut rows = Vec::new();
    let mut row = |what: &str, unit, value: f64| {
        rows.push(Row::new(format!("{count} pods: {what}"), unit, Figure::exact(value)));
        rows.len() - 1
    };

    let dirs: Vec<PathBuf> = (0..count).map(|pod| folder.path().join(pod.to_string())).collect();
    let (asked, before) = (asked::in_all(&node)?, process::cpu(agent.pid())?);
    let began = Instant::now();
    let mut inits = Vec::new();
    for (pod, dir) in dirs.iter().enumerate() {
        std::fs::create_dir(dir)?;
        let args = [
            "--service=web:8080".to_owned(),
            format!("--pod-name=pod-{pod}"),
            format!("--pod-ip=10.99.{}.{}", 100 + pod / 250, 1 + pod % 250),
            format!("--http-addr=http://{}:8500", node.ip()),
            "--grpc-addr=10.99.0.1:8502".to_owned(),
            format!("--dir={}", text(dir)),
        ];
        inits.push(node.start(&plan.parts.bins.join("connect-init"), &args)?);
    }
    let mut errors = 0.0;
    for init in &mut inits {
        let status = init.wait()?;
        errors += complaints(init) + if status.success() { 0.0 } else { 1.0 };
    }
    let took = began.elapsed();
    let used = process::cpu(agent.pid())?.saturating_sub(before);
    row("start at once", "ms", took.as_secs_f64() * 1000.0);
    row("start at once, requests", "", f64::from(asked::in_all(&node)? - asked));
    row("start at once, agent's processor", "ms", used.as_secs_f64() * 1000.0);
    let start_errors = row("start at once, errors", "", errors);

    let helper = plan.parts.bins.join("connect-lifecycle");
    let mut helpers = Vec::new();
    for dir in &dirs {
        let args = ["run", "--dir", &text(dir), "--", "sleep", "infinity"];
        helpers.push(node.start(&helper, &args.map(str::to_owned))?);
    }
    until_within(PATIENCE, "all leases", || leases(&node) == usize::from(count) * 2)?;
    drop(agent);
    node.wipe_agent()?;
    let agent = node.start_agent_with(&settings)?;
    until_within(PATIENCE, "all leases, after the agent's wipe", || {
        leases(&node) == usize::from(count) * 2
    })?;
    let used = process::cpu(agent.pid())?;
    let took = restored(&agent.output())?;
    let errors = helpers.iter().map(complaints).fold(0.0, |all, one| all + one);
    let again = row("registered again after a wipe", "ms", took);
    row("registered again, requests", "", f64::from(asked::in_all(&node)?));
    row("registered again, agent's processor since its start", "ms", used.as_secs_f64() * 1000.0);
    let again_errors = row("registered again, errors", "", errors);
    drop((helpers, agent));
    rows[again].floor = Some(Figure::exact(least(&node, &settings, &dirs)?));
    // The budget is for a single sidecar. With more pods, most of the time is the agent's,
    // which rescans its whole state on every change.
    if count == FEW {
        rows[again].budgets.push(Budget::AtMost(1000.0));
    }
    for errors in [start_errors, again_errors] {
        rows[errors].budgets.push(Budget::AtMost(0.0));
    }
    Ok(rows)
}

/// How long an agent needs for the same registrations from one client, one after the other, in
/// milliseconds.
fn least(node: &Node, settings: &Value, dirs: &[PathBuf]) -> Result<f64> {
    let records = dirs.iter().map(|dir| {
        let record = std::fs::read(dir.join("registration.json"))?;
        Ok(serde_json::from_slice(&record)?)
    });
    let records = records.collect::<Result<Vec<Value>>>()?;
    node.wipe_agent()?;
    let _agent = node.start_agent_with(settings)?;
    let began = Instant::now();
    for half in records.iter().flat_map(|record| [&record["service"], &record["proxy"]]) {
        node.put("/v1/agent/service/register?replace-existing-checks=true", Some(half))?;
    }
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}

/// Number of passing TTL checks.
fn leases(node: &Node) -> usize {
    let checks = node.get("/v1/agent/checks").unwrap_or_default();
    let passing = |check: &&Value| {
        check["Status"] == "passing"
            && check["CheckID"].as_str().is_some_and(|id| id.ends_with("-lease"))
    };
    checks.as_object().map_or(0, |checks| checks.values().filter(passing).count())
}

/// Warnings and errors in a program's log, except those that must come: the agent is away, and
/// neither Envoy nor an application runs, which takes ten seconds to be told.
fn complaints(program: &Process) -> f64 {
    const EXPECTED: [&str; 6] = [
        "connection refused",
        "connection reset",
        "connection closed",
        "connection was",
        "envoy could not connect",
        "nothing in the pod has listened",
    ];
    let output = program.output();
    let complains = |line: &&str| {
        let lower = line.to_lowercase();
        (line.contains("WARN") || line.contains("ERROR"))
            && !EXPECTED.iter().any(|words| lower.contains(words))
    };
    count(output.lines().filter(complains))
}

fn count<'a>(lines: impl Iterator<Item = &'a str>) -> f64 {
    lines.fold(0.0, |count, _| count + 1.0)
}

/// Time from the agent's latest start to the last registration in the catalog, in milliseconds.
/// All agents of a node write to one log.
fn restored(log: &str) -> Result<f64> {
    let began = log.lines().rfind(|line| line.contains("Starting server: "));
    let last = log.lines().rfind(|line| line.contains("Synced service"));
    let (began, last) = (began.and_then(time_of), last.and_then(time_of));
    let (began, last) = began.zip(last).ok_or("the agent's log does not tell its times")?;
    // After midnight, add a day.
    Ok((last - began).rem_euclid(86_400_000.0))
}

/// The time of day of a log line, in milliseconds:
/// `    2026-11-22T17:44:49.123Z [INFO]  agent: ...`.
pub(super) fn time_of(line: &str) -> Option<f64> {
    let time = line.split_whitespace().next()?.split_once('T')?.1;
    let mut parts = time.get(..12)?.split(':').map(str::parse::<f64>);
    let (hours, minutes, seconds) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
    Some(((hours * 60.0 + minutes) * 60.0 + seconds) * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_from_an_agents_log() {
        let log = "    2026-11-22T23:59:57.000Z [INFO]  agent: Starting server: address=1.2.3.4:8500 network=tcp protocol=http\n\
            2026-11-22T23:59:59.900Z [INFO]  agent: Starting server: address=1.2.3.4:8500 network=tcp protocol=http\n\
            2026-11-23T00:00:00.150Z [INFO]  agent: Synced service: service=web\n\
            2026-11-23T00:00:00.950Z [INFO]  agent: Synced check: check=web-lease\n";
        assert!((restored(log).unwrap() - 250.0).abs() < 1e-6);
        assert!(restored("").is_err());
    }
}
