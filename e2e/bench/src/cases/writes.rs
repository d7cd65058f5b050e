//! Cost of a hundred pods on one node for the servers: entries of the Raft log, each of which
//! every server writes to its disk. Measured while nothing happens, when an operator writes
//! `proxy-defaults`, and when the node's agent is replaced by one without data, as in a
//! rollout of the agents.
//!
//! The floor is an agent without pods: servers and agents write by themselves, too, for
//! example network coordinates.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use harness::node::Node;
use harness::process::Process;
use harness::{Result, until, until_within};
use serde_json::{Value, json};

use super::start::text;
use crate::figure::{Budget, Figure, Row};
use crate::{Found, Plan};

const PODS: u8 = 100;

/// Timeout for a hundred pods on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// How long an agent may take to write: it checks each listener every 10 s, and writes the
/// first result.
const REST: Duration = Duration::from_secs(15);

const HOUR: f64 = 3600.0;

/// Entries of the Raft log.
struct Writes {
    /// Until all pods had begun.
    begun: u64,
    /// An hour, while nothing happened.
    quiet: f64,
    /// After a write of `proxy-defaults`.
    configured: u64,
    /// After the agent was replaced.
    replaced: u64,
}

/// # Errors
/// A program fails.
pub(super) fn run(plan: &Plan) -> Result<Found> {
    let quiet = Duration::from_secs(if plan.full { 3600 } else { 120 });
    // At the same time, because an hour is long. Each is on its own node, with its own server.
    let (pods, floor) = std::thread::scope(|scope| {
        let floor = scope.spawn(|| {
            let node = Node::new(plan.parts.clone())?;
            let _agent = start_consul(&node)?;
            writes_an_hour(&node, quiet)
        });
        (with_pods(plan, quiet), floor.join())
    });
    let Writes { begun, quiet, configured, replaced } = pods?;
    let floor = floor.map_err(|_| "the floor panicked")??;

    let span = if plan.full { "measured" } else { "scaled from two minutes" };
    let exact = |count: u64| Figure::exact(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
    // For each pod, the agent merges the proxy again and writes it.
    let merged = u64::from(PODS);
    Ok(Found {
        rows: vec![
            Row::new(format!("{PODS} pods: writes when all of them begin"), "", exact(begun)),
            Row::new(
                format!("{PODS} quiet pods: writes an hour, {span}"),
                "",
                Figure::exact(quiet),
            )
            .floor(Figure::exact(floor)),
            Row::new(
                format!("{PODS} pods: writes when proxy-defaults changes"),
                "",
                exact(configured),
            )
            .floor(exact(merged)),
            Row::new(
                format!("{PODS} pods: writes when their agent is replaced"),
                "",
                exact(replaced),
            )
            .budget(Budget::AtMost(exact(begun).median * 2.0)),
        ],
        ..Found::default()
    })
}

fn with_pods(plan: &Plan, quiet: Duration) -> Result<Writes> {
    let node = Node::new(plan.parts.clone())?;
    let folder = tempfile::Builder::new().prefix("connect-bench-").tempdir_in("/dev/shm")?;
    let addresses: Vec<String> = (1..=PODS).map(|pod| format!("10.98.0.{pod}")).collect();
    node.add_addresses(&addresses)?;
    let agent = start_consul(&node)?;

    // Listeners in place of applications and Envoys, so that checks pass.
    let sockets = addresses.iter().map(|address| format!("{address}:20000"));
    for socket in sockets.chain(["127.0.0.1:8080".to_owned()]) {
        let listener = TcpListener::bind(&socket)?;
        std::thread::spawn(move || listener.incoming().for_each(drop));
    }
    let before = index(&node)?;
    let pods = addresses.iter().map(|address| start(plan, &node, address, folder.path()));
    let pods = pods.collect::<Result<Vec<Process>>>()?;
    let begun = rest(&node, &agent)? - before;
    let quiet = writes_an_hour(&node, quiet)?;

    let before = index(&node)?;
    let config =
        json!({"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}});
    node.put("/v1/config", Some(&config))?;
    let configured = rest(&node, &agent)? - before;

    let before = index(&node)?;
    drop(agent);
    node.wipe_agent()?;
    let agent = node.start_agent_with(&settings())?;
    let replaced = rest(&node, &agent)? - before;
    drop(pods);
    Ok(Writes { begun, quiet, configured, replaced })
}

/// Starts a server and an agent.
fn start_consul(node: &Node) -> Result<Process> {
    // The server runs on this machine, too, and leaves the port to the agent.
    node.start_server_with(&json!({"ports": {"http": -1}}))?;
    node.start_agent_with(&settings())
}

/// The agent's settings.
fn settings() -> Value {
    json!({
        "client_addr": "0.0.0.0",
        // By default the agent writes a check's first output, "Success", up to 7.5 minutes after
        // its status. The number of writes is the same.
        // https://developer.hashicorp.com/consul/docs/agent/config/config-files#check_update_interval
        "check_update_interval": "0s",
        // Here all pods have one address; on a node, each pod has its own.
        "limits": {"http_max_conns_per_client": 200 + u32::from(PODS) * 4},
    })
}

/// Writes per hour while nothing happens, measured for `span`.
fn writes_an_hour(node: &Node, span: Duration) -> Result<f64> {
    let (before, began) = (index(node)?, Instant::now());
    // There is no event for "nothing happened", so wait.
    std::thread::sleep(span);
    let writes = u32::try_from(index(node)? - before)?;
    Ok(f64::from(writes) * HOUR / began.elapsed().as_secs_f64())
}

/// Waits until all TTL checks pass and the agent has written everything. Returns the index.
fn rest(node: &Node, agent: &Process) -> Result<u64> {
    until_within(PATIENCE, "all leases", || leases(node) == usize::from(PODS) * 2)?;
    let synced = || agent.output().matches(" agent: Synced ").count();
    let mut before = synced();
    until_within(PATIENCE, "the agent to be at rest", || {
        std::thread::sleep(REST);
        let earlier = std::mem::replace(&mut before, synced());
        earlier == before
    })?;
    index(node)
}

fn leases(node: &Node) -> usize {
    let checks = node.get("/v1/agent/checks").unwrap_or_default();
    let passing =
        |(id, check): &(&String, &Value)| id.ends_with("-lease") && check["Status"] == "passing";
    checks.as_object().map_or(0, |checks| checks.iter().filter(passing).count())
}

/// Number of the servers' writes.
fn index(node: &Node) -> Result<u64> {
    let path = "/v1/operator/autopilot/health";
    // A server that has just started is not healthy yet.
    until("a healthy server", || node.get(path).is_ok())?;
    let health = node.get(path)?;
    let index = health["Servers"][0]["LastIndex"].as_u64();
    index.ok_or_else(|| "autopilot does not tell the last index".into())
}

/// A pod without Envoy: registered by `connect-init`, maintained by `connect-lifecycle`.
fn start(plan: &Plan, node: &Node, address: &str, folder: &Path) -> Result<Process> {
    let dir: PathBuf = folder.join(address);
    std::fs::create_dir(&dir)?;
    let args = [
        "--service=web:8080".to_owned(),
        format!("--pod-name={}", address.replace('.', "-")),
        format!("--pod-ip={address}"),
        format!("--http-addr=http://{address}:8500"),
        format!("--grpc-addr={address}:8502"),
        // A small file in place of the helper, which nobody runs from there.
        "--helper=/bin/true".to_owned(),
        format!("--dir={}", text(&dir)),
    ];
    let mut init = node.start(&plan.parts.bins.join("connect-init"), &args)?;
    let status = init.wait()?;
    if !status.success() {
        return Err(format!("connect-init: {status}: {}", init.output()).into());
    }
    let args = ["run", "--dir", &text(&dir), "--", "sleep", "infinity"].map(str::to_owned);
    node.start(&plan.parts.bins.join("connect-lifecycle"), &args)
}
