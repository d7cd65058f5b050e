//! Faults of Consul while pods send requests to each other, over new connections and over a
//! kept one: no request fails.

use std::collections::BTreeSet;

use harness::kubelet::Pod;
use harness::load::Load;
use harness::node::Node;
use harness::process::Process;
use harness::until;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::mesh::{Mesh, ROUNDS, UPSTREAM, admin, await_heard, await_instances, status};

/// The pods and their load during a fault.
struct Used<'n> {
    node: &'n Node,
    server: Pod<'n>,
    client: Pod<'n>,
    new: Load,
    kept: Load,
}

impl Used<'_> {
    fn go_on(&self) {
        for load in [&self.new, &self.kept] {
            for _ in 0..ROUNDS {
                load.await_answers(&["api-1"]).unwrap();
            }
        }
    }
}

/// A fault: gets the pods and their agent, and returns the agent that runs in the end.
type Fault = fn(&Used<'_>, Process) -> Process;

/// Injects a fault while a service of that protocol is used. No request may fail.
fn while_used(protocol: &str, fault: Fault) {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let (failures, _) = failures_while_used(mesh, protocol, fault);
    assert_eq!(failures, Vec::<String>::new());
}

/// Injects a fault, and returns the requests that failed meanwhile and the log of the
/// client's Envoy. No update may be rejected, and all checks must pass in the end.
fn failures_while_used(mut mesh: Mesh, protocol: &str, fault: Fault) -> (Vec<String>, String) {
    let agent = mesh.agent.take().unwrap();
    mesh.speak(protocol);
    let (server, client) = (mesh.server("api-1"), mesh.client());
    await_heard(&client, &["api-1"]);
    let (new, kept) = (Load::start(&client, UPSTREAM, 2), Load::start_kept(&client, UPSTREAM));
    let mut used = Used { node: &mesh.node, server, client, new, kept };
    used.go_on();
    let _agent = fault(&used, agent);
    used.go_on();
    await_instances(&mesh.node, 1);
    used.go_on();
    used.server.await_xds().unwrap();
    used.client.await_xds().unwrap();
    let log = used.client.log("envoy-sidecar");
    let loads = [used.new, used.kept].into_iter();
    (loads.flat_map(|load| load.stop().failures).collect(), log)
}

/// An agent that restarts sends the client's Envoy what it knows so far, and gets the rest
/// from the servers a moment later.
///
/// - It reports the server's public listener as critical until its first check. The
///   service has no healthy instance, and Envoy answers 503.
/// - An agent sends a proxy's listeners without waiting for the discovery chains of its
///   upstreams. If the servers answer late, as on a busy machine, it removes the upstream's
///   listener from Envoy and adds it again with the chain: meanwhile connections are
///   refused. Both are in Envoy's log.
///
/// Only a change of Consul could avoid this.
#[test]
fn pods_serve_again_after_their_killed_agent_came_back_with_its_data() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let (failures, log) = failures_while_used(mesh, "http", |used, agent| {
        drop(agent);
        used.go_on();
        used.node.start_agent().unwrap()
    });
    let was_removed = was_removed(&log);
    println!("{} failures, and the upstream's listener was removed: {was_removed}", failures.len());
    for failure in &failures {
        let is_known =
            failure.contains("503") || was_removed && failure.contains("Connection refused");
        assert!(is_known, "{failure}; of {failures:#?}\n{log}");
    }
}

/// Whether the agent removed the upstream's listener for a while, by the log of the client's
/// Envoy.
fn was_removed(log: &str) -> bool {
    log.contains(&format!("lds: remove listener 'api:127.0.0.1:{UPSTREAM}'"))
}

fn reload(used: &Used<'_>, agent: Process) -> Process {
    used.node.put("/v1/agent/reload", None).unwrap();
    agent
}

#[test]
fn nothing_is_lost_while_the_agent_reloads() {
    while_used("http", reload);
}

#[test]
fn nothing_of_a_tcp_service_is_lost_while_the_agent_reloads() {
    while_used("tcp", reload);
}

fn rename(used: &Used<'_>, agent: Process) -> Process {
    drop(agent);
    let agent = used.node.start_agent_with(&json!({"node_name": "renamed"})).unwrap();
    until("the service on the renamed node", || {
        let found = used.node.get("/v1/health/service/api?passing").unwrap_or_default();
        found.as_array().is_some_and(|all| all.len() == 1) && found[0]["Node"]["Node"] == "renamed"
    })
    .unwrap();
    agent
}

/// To be renamed, the agent restarts: see above for what it may do on a busy machine.
#[test]
fn nothing_is_lost_while_the_node_is_renamed() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let (failures, log) = failures_while_used(mesh, "http", rename);
    let was_removed = was_removed(&log);
    for failure in &failures {
        let is_known = failure.contains("503") || failure.contains("Connection refused");
        assert!(was_removed && is_known, "{failure}; of {failures:#?}\n{log}");
    }
}

fn lose_server(used: &Used<'_>, agent: Process) -> Process {
    used.node.kill_server();
    until("the agent to miss its server", || used.node.get("/v1/status/leader").is_err()).unwrap();
    used.go_on();
    used.node.start_server_with(&json!({})).unwrap();
    until("a leader", || used.node.get("/v1/status/leader").is_ok_and(|leader| leader != ""))
        .unwrap();
    agent
}

#[test]
fn nothing_is_lost_while_the_only_server_is_away() {
    while_used("http", lose_server);
}

#[test]
fn nothing_of_a_tcp_service_is_lost_while_the_only_server_is_away() {
    while_used("tcp", lose_server);
}

/// The serial numbers of Envoy's leaf certificates; draining listeners keep the old ones.
fn leafs(pod: &Pod<'_>) -> BTreeSet<String> {
    let certs: Value = serde_json::from_str(&admin(pod, "/certs")).unwrap();
    let certs = certs["certificates"].as_array().unwrap();
    certs.iter().map(|cert| cert["cert_chain"][0]["serial_number"].to_string()).collect()
}

/// By Envoy's own list of its certificates: a heartbeat warns if they are not renewed.
#[test]
fn a_sidecar_knows_until_when_its_leaf_certificate_is_good() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let server = mesh.server("api-1");
    let mut seen = String::new();
    until("the end of the leaf certificate in the log", || {
        let certs: Value = serde_json::from_str(&admin(&server, "/certs")).unwrap_or_default();
        let end = certs["certificates"][0]["cert_chain"][0]["expiration_time"].clone();
        seen = server.log("envoy-sidecar");
        let mut lines = seen.lines().filter(|line| line.contains("Envoy has a leaf certificate"));
        end.as_str().is_some_and(|end| lines.any(|line| line.contains(end)))
    })
    .unwrap_or_else(|error| panic!("{error}: {seen}"));
}

fn rotate_ca(used: &Used<'_>, agent: Process) -> Process {
    let roots = || used.node.get("/v1/connect/ca/roots").unwrap()["ActiveRootID"].clone();
    let pods = [&used.server, &used.client];
    let (root, before) = (roots(), pods.map(leafs));
    let rsa = json!({"Provider": "consul", "Config": {
        "PrivateKeyType": "rsa", "PrivateKeyBits": 2048,
    }});
    used.node.put("/v1/connect/ca/configuration", Some(&rsa)).unwrap();
    until("another root", || roots() != root).unwrap();
    until("new leaf certificates", || {
        pods.iter().zip(&before).all(|(pod, before)| !leafs(pod).is_subset(before))
    })
    .unwrap();
    agent
}

#[test]
fn nothing_is_lost_while_the_ca_rotates() {
    while_used("http", rotate_ca);
}

/// A client agent leaves its cluster on SIGTERM, and its pods are gone from the catalog until
/// it is back.
#[test]
fn pods_serve_again_after_their_agent_left_and_came_back() {
    let Some(mut mesh) = Mesh::find_or_skip() else { return };
    let mut agent = mesh.agent.take().unwrap();
    let (mut server, mut client) = (mesh.server("api-1"), mesh.client());
    await_heard(&client, &["api-1"]);
    agent.signal(Signal::SIGTERM).unwrap();
    agent.wait().unwrap();
    let _agent = mesh.node.start_agent().unwrap();
    await_instances(&mesh.node, 1);
    await_heard(&client, &["api-1"]);
    server.await_xds().unwrap();
    client.await_xds().unwrap();
}

#[test]
fn maintenance_takes_a_nodes_pods_out_of_service_until_it_ends() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    mesh.speak("http");
    let (_server, client) = (mesh.server("api-1"), mesh.client());
    await_heard(&client, &["api-1"]);
    let maintain = |on: bool| {
        mesh.node.put(&format!("/v1/agent/maintenance?enable={on}"), None).unwrap();
    };
    maintain(true);
    until("503", || status(&client, "/", &[]) == "503").unwrap();
    maintain(false);
    until("200", || status(&client, "/", &[]) == "200").unwrap();
}
