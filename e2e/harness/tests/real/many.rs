//! Many sidecars on one node: their agent loses its data, or nothing happens.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::kubelet::Pod;
use harness::node::Node;
use harness::node::asked;
use harness::parts::Parts;
use harness::process::{Process, tail};
use harness::until_within;
use serde_json::json;

/// Number of sidecars; `E2E_SIDECARS` overrides it.
const SIDECARS: usize = 500;

/// Timeout for work of many pods.
const PATIENCE: Duration = Duration::from_secs(300);

/// A program instead of Envoy, which does nothing and ends with its parent.
const ENVOY: [&str; 5] = ["setpriv", "--pdeathsig", "KILL", "sleep", "infinity"];

/// Each sidecar uses its own address to reach the agent, and so its own source address: the
/// agent limits the number of connections per address.
#[test]
fn many_sidecars_restore_their_registrations_when_the_agent_lost_them() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let sidecars = std::env::var_os("E2E_SIDECARS")
        .map_or(SIDECARS, |number| number.to_string_lossy().parse().unwrap());
    let node = Node::new(parts).unwrap();
    let folder = node.folder("sidecars").unwrap();
    let addresses: Vec<_> = (0..sidecars)
        .map(|number| format!("10.98.{}.{}", number / 250, number % 250 + 1))
        .collect();
    node.add_addresses(&addresses).unwrap();

    let mut settings = asked::settings();
    settings["client_addr"] = "0.0.0.0".into();
    // The server runs on this machine, too, and leaves the port to the agent.
    node.start_server_with(&json!({"ports": {"http": -1}})).unwrap();
    let agent = node.start_agent_with(&settings).unwrap();
    let sidecars: Vec<_> =
        addresses.iter().map(|address| started(&node, address, &folder.join(address))).collect();
    await_lease(&node, sidecars.len());
    // One round of each sidecar: its blocking query and three updates of checks.
    let before = cpu(&sidecars);
    let began = Instant::now();
    let round = asked::in_all(&node).unwrap() + 4 * u32::try_from(sidecars.len()).unwrap();
    let is_over = || asked::in_all(&node).is_ok_and(|requests| requests >= round);
    until_within(PATIENCE, "a round of renewals", is_over).unwrap();
    let (used, window) = (cpu(&sidecars) - before, began.elapsed());
    let memory: Vec<_> = sidecars.iter().map(memory).collect();
    let of = |name: &str| {
        let all = memory.iter().map(|memory| memory[name]);
        format!(
            "{name} {} kB at most, {} kB on average",
            all.clone().max().unwrap(),
            all.sum::<u64>() / memory.len() as u64
        )
    };
    println!("{} sidecars at rest: {}; {}", sidecars.len(), of("Rss"), of("Pss"));
    println!("CPU of all: {used} ticks (10 ms) in {window:?}");

    drop(agent);
    node.wipe_agent().unwrap();
    let _agent = node.spawn_agent(&settings).unwrap();
    until_within(PATIENCE, "the agent to answer", || node.get("/v1/status/leader").is_ok())
        .unwrap();
    let answers = Instant::now();
    await_lease(&node, sidecars.len());
    println!("all registered {:?} after the agent's first answer", answers.elapsed());
    println!("requests meanwhile: {:?}", asked::by_kind(&node).unwrap());
    // A sidecar whose answer was late logs this a little later, or that all was restored.
    let says_so = |sidecar: &Process| {
        let log = sidecar.output();
        log.contains("registered again") || log.contains("registration restored")
    };
    until_within(PATIENCE, "all sidecars to say so", || sidecars.iter().all(says_so)).unwrap();
    for sidecar in &sidecars {
        let log = sidecar.output();
        // With a blank before it, because a timestamp may contain 429.
        assert!(!log.contains(" 429"), "{log}");
    }
}

/// With another one, the other pods could not reach their agent for eight seconds.
#[test]
fn pods_that_join_do_not_change_their_nodes_hardware_address() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let before = node.hardware_address().unwrap();
    let pod = |number| json!({"metadata": {"name": format!("pod-{number}")}});
    let pods: Vec<_> = (0..16).map(|number| Pod::create(&node, &pod(number)).unwrap()).collect();
    assert_eq!(node.hardware_address().unwrap(), before);
    drop(pods);
    assert_eq!(node.hardware_address().unwrap(), before);
}

/// Number of idle sidecars; `E2E_QUIET_SIDECARS` overrides it.
const QUIET_SIDECARS: usize = 20;

/// How many seconds the sidecars are idle; `E2E_QUIET_SECONDS` overrides it. Longer than the
/// time between two full syncs of the agent, at which it adds fields of its own.
const QUIET: usize = 180;

/// Fields that Consul adds to an entry itself, or merges into it from central configuration,
/// are no reason to register again. Idle sidecars cause no writes, and a change of central
/// configuration only causes the agent's own writes, one for each proxy.
#[test]
fn no_pod_registers_again_while_nothing_is_lost() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let number = |variable: &str, default: usize| {
        let given = std::env::var_os(variable);
        given.map_or(default, |number| number.to_string_lossy().parse().unwrap())
    };
    let sidecars = number("E2E_QUIET_SIDECARS", QUIET_SIDECARS);
    let quiet = Duration::from_secs(number("E2E_QUIET_SECONDS", QUIET) as u64);
    let node = Node::new(parts).unwrap();
    let folder = node.folder("sidecars").unwrap();
    let addresses: Vec<_> = (0..sidecars).map(|number| format!("10.98.0.{}", number + 1)).collect();
    node.add_addresses(&addresses).unwrap();
    let mut settings = asked::settings();
    settings["client_addr"] = "0.0.0.0".into();
    // Without coordinates and late updates of outputs, which the agent writes by itself.
    settings["disable_coordinates"] = true.into();
    settings["check_update_interval"] = "0s".into();
    node.start_server_with(&json!({"disable_coordinates": true, "ports": {"http": -1}})).unwrap();
    let agent = node.start_agent_with(&settings).unwrap();
    // Applications and public listeners, so that no check changes its output.
    let sockets = addresses.iter().map(|address| format!("{address}:20000"));
    for socket in sockets.chain(["127.0.0.1:8080".to_owned()]) {
        let listener = TcpListener::bind(&socket).unwrap();
        std::thread::spawn(move || listener.incoming().for_each(drop));
    }
    let all: Vec<_> =
        addresses.iter().map(|address| started(&node, address, &folder.join(address))).collect();
    await_lease(&node, sidecars);

    // The agent sends all writes that the sidecars cause, and logs them.
    let synced = || agent.output().matches(" agent: Synced ").count();
    let mut before = synced();
    until_within(PATIENCE, "the agent to be at rest", || {
        std::thread::sleep(REST);
        let earlier = std::mem::replace(&mut before, synced());
        earlier == before
    })
    .unwrap();
    let count = |kind: &str| asked::by_kind(&node).unwrap().get(kind).copied().unwrap_or_default();
    let registrations = || count("PUT_v1_agent_service_register");
    let (registered, index) = (registrations(), raft_index(&node));
    assert_ne!(registered, 0, "registrations are not counted");
    // There is no event for "nothing happened", so wait.
    std::thread::sleep(quiet);
    let tail = || tail(&agent.output(), 2 * sidecars);
    assert_eq!(registrations(), registered, "{}", all[0].output());
    assert_eq!(synced(), before, "{}", tail());
    let own = raft_index(&node) - index;

    // The agent merges the entry into each of its proxies and writes them to the catalog,
    // whoever registered them.
    let index = raft_index(&node);
    let looks = count("GET_v1_agent_service");
    let config = json!({"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "tcp"}});
    node.put("/v1/config", Some(&config)).unwrap();
    // All sidecars notice it: the agent has merged it into their entries.
    let told = looks + u32::try_from(sidecars).unwrap();
    until_within(PATIENCE, "all to look again", || count("GET_v1_agent_service") >= told).unwrap();
    until_within(PATIENCE, "the agent to write", || synced() >= before + sidecars).unwrap();
    std::thread::sleep(REST);
    println!(
        "{sidecars} sidecars, {quiet:?}: {own} writes of the server's own; one of proxy-defaults: {} in all, {} by the agent",
        raft_index(&node) - index,
        synced() - before,
    );
    assert_eq!(registrations(), registered, "{}", all[0].output());
    assert_eq!(synced(), before + sidecars, "one for each proxy: {}", tail());
}

/// How long an agent may take to write: longer than the 10 s between two checks of a
/// listener, the first of which is written.
const REST: Duration = Duration::from_secs(15);

/// Number of the servers' writes.
fn raft_index(node: &Node) -> u64 {
    let leader = node.get("/v1/operator/autopilot/health").unwrap();
    leader["Servers"][0]["LastIndex"].as_u64().unwrap()
}

/// A sidecar without Envoy: registered by `connect-init`, maintained by `connect-lifecycle`.
fn started(node: &Node, address: &str, folder: &Path) -> Process {
    fs::create_dir(folder).unwrap();
    let bins = &node.parts().bins;
    let name = address.replace('.', "-");
    let agent = format!("http://{address}:8500");
    let dir = folder.to_string_lossy().into_owned();
    let grpc = format!("{address}:8502");
    let env = [
        ("POD_NAME", name.as_str()),
        ("POD_IP", address),
        ("CONSUL_HTTP_ADDR", &agent),
        ("CONSUL_GRPC_ADDR", &grpc),
    ];
    // A small file in place of the helper, which nobody runs from there.
    let args = ["--service", "web:8080", "--dir", &dir, "--helper", "/bin/true"];
    let init = bins.join("connect-init");
    let mut init =
        Process::start("connect-init", folder.join("init.log"), &init, &args, &env).unwrap();
    let status = init.wait().unwrap();
    assert!(status.success(), "{status}: {}", init.output());
    let args: Vec<_> = ["run", "--dir", &dir, "--"].into_iter().chain(ENVOY).collect();
    let helper = bins.join("connect-lifecycle");
    Process::start(&name, folder.join("run.log"), &helper, &args, &[]).unwrap()
}

/// Waits until the TTL checks of that many services and proxies pass.
fn await_lease(node: &Node, sidecars: usize) {
    let mut seen = 0;
    let waited = until_within(PATIENCE, "all leases", || {
        let Ok(checks) = node.get("/v1/agent/checks") else { return false };
        let checks = checks.as_object().into_iter().flatten();
        seen = checks
            .filter(|(id, check)| id.ends_with("-lease") && check["Status"] == "passing")
            .count();
        seen == 2 * sidecars
    });
    waited.unwrap_or_else(|error| panic!("{error}: {seen} of {}", 2 * sidecars));
}

/// CPU time of the sidecars, in the kernel's ticks.
fn cpu(sidecars: &[Process]) -> u64 {
    let of = |sidecar: &Process| -> Option<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", sidecar.pid())).ok()?;
        // utime and stime, after the name, which may contain blanks.
        let fields = stat.rsplit_once(") ")?.1;
        fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().ok()).sum()
    };
    sidecars.iter().map(|sidecar| of(sidecar).unwrap()).sum()
}

/// Memory of a sidecar, in kilobytes.
fn memory(sidecar: &Process) -> BTreeMap<&'static str, u64> {
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", sidecar.pid())).unwrap();
    let value = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok()).unwrap()
    };
    ["Rss", "Pss"].map(|name| (name, value(name))).into()
}
