//! `connect-register status` with real agents: peers, datacenters, and an Envoy without a
//! certificate. Failed requests don't make it fail.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use harness::node::Node;
use harness::node::consul::Agent;
use harness::process::{Process, run, tail};
use harness::{until, until_within};
use reqwest::Method;
use serde_json::{Value, json};

use crate::gateways::{AGENT, Elsewhere, ask, peer};
use crate::mesh::Mesh;

/// How long servers take to consider a peer's stream lost: 2 minutes, and some time to
/// notice.
const LOST: Duration = Duration::from_secs(200);

fn connect_register(node: &Node, args: &[&str]) -> String {
    run(&node.parts().bins.join("connect-register").to_string_lossy(), args).unwrap()
}

/// Registers a service with the agent at that address; its sidecar has these upstreams.
fn register(node: &Node, agent: &str, name: &str, upstreams: &[Value]) {
    let sidecar = json!({"sidecar_service": {"proxy": {"upstreams": upstreams}}});
    let service = json!({"service": {"name": name, "port": 9000, "connect": sidecar}});
    let file = node.folder(name).unwrap().join("service.json");
    File::create(&file).unwrap().write_all(service.to_string().as_bytes()).unwrap();
    let http = format!("--http-addr=http://{agent}:8500");
    connect_register(node, &["register", &http, &file.to_string_lossy()]);
}

/// Starts the Envoy of a service's sidecar, which may wait for its configuration.
fn start_envoy(node: &Node, agent: &str, name: &str, admin: &str) -> Process {
    let flags = [
        format!("--http-addr=http://{agent}:8500"),
        format!("--grpc-addr={agent}:8502"),
        format!("--admin-bind={admin}"),
        format!("--sidecar-for={name}"),
        // Only servers have it.
        "--no-central-config".to_owned(),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let document = connect_register(node, &[&["bootstrap"], flags.as_slice()].concat());
    let bootstrap = node.folder(name).unwrap().join("bootstrap.json");
    File::create(&bootstrap).unwrap().write_all(document.as_bytes()).unwrap();
    let args = ["--config-path", &bootstrap.to_string_lossy(), "--disable-hot-restart"];
    node.start(&node.parts().envoy, &args.map(str::to_owned)).unwrap()
}

/// The findings about that agent. Panics unless the exit code is 0.
fn status(node: &Node, agent: &str, further: &[&str]) -> Vec<Value> {
    let http = format!("--http-addr=http://{agent}:8500");
    let printed = connect_register(node, &[&["status", "--output=json", &http], further].concat());
    let printed: Value = serde_json::from_str(&printed).unwrap();
    printed["diagnosis"].as_array().unwrap().clone()
}

/// Verdict and reason of a finding. Unless the verdict is `ok`, asserts that it has a cause
/// and a next command.
fn verdict<'f>(findings: &'f [Value], what: &str, id: &str) -> [&'f str; 2] {
    let found = findings.iter().find(|found| found["what"] == what && found["id"] == id);
    let found = found.unwrap_or_else(|| panic!("no {what} {id}: {findings:#?}"));
    if found["verdict"] != "ok" {
        assert!(found["hint"].is_string() && found["next"].is_string(), "{found}");
    }
    ["verdict", "reason"].map(|key| found[key].as_str().unwrap_or_default())
}

#[test]
fn peers_have_a_verdict_a_cause_and_a_next_command() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let node = &mesh.node;
    let _elsewhere = Elsewhere::start(node, "dc3", &json!({"ports": {"grpc_tls": 8503}}));
    peer(node);
    let pending = json!({"PeerName": "pending"});
    ask(node, Method::POST, "/v1/peering/token", Some(&pending)).unwrap();
    let upstreams = ["here", "pending", "nobody"].into_iter().zip(9001..);
    let upstreams: Vec<_> = upstreams
        .map(|(peer, port)| json!({"destination_name": "web", "destination_peer": peer, "local_bind_port": port}))
        .collect();
    register(node, AGENT, "asker", &upstreams);
    let here = || verdict(&status(node, AGENT, &[]), "peer", "here").map(str::to_owned);
    until("the peer", || here() == ["ok", ""]).unwrap();
    let findings = status(node, AGENT, &[]);
    assert_eq!(verdict(&findings, "peer", "pending"), ["warning", "peer-pending"]);
    assert_eq!(verdict(&findings, "peer", "nobody"), ["wrong", "no-peer"]);

    node.kill_server();
    let mut seen = here();
    until_within(LOST, "the peer to be lost", || {
        seen = here();
        seen == ["wrong", "peer-failing"]
    })
    .unwrap_or_else(|error| panic!("{error}: {seen:?}"));
}

#[test]
fn a_peering_that_the_other_side_ended_is_told() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let node = &mesh.node;
    let _elsewhere = Elsewhere::start(node, "dc3", &json!({"ports": {"grpc_tls": 8503}}));
    peer(node);
    let upstream =
        json!({"destination_name": "web", "destination_peer": "here", "local_bind_port": 9001});
    register(node, AGENT, "asker", &[upstream]);
    let here = || verdict(&status(node, AGENT, &[]), "peer", "here").map(str::to_owned);
    until("the peer", || here() == ["ok", ""]).unwrap();
    node.as_holder(None, Method::DELETE, "/v1/peering/dc3", None).unwrap();
    let mut seen = here();
    until("the peering to be ended", || {
        seen = here();
        seen == ["wrong", "peer-ended"]
    })
    .unwrap_or_else(|error| panic!("{error}: {seen:?}"));
    let findings = status(node, AGENT, &[]);
    let told = findings.iter().find(|found| found["what"] == "peer").unwrap();
    println!("{told:#}");
    assert!(told["detail"].as_str().unwrap().contains("the other side"), "{told}");
}

#[test]
fn datacenters_and_a_missing_leaf_have_a_verdict_a_cause_and_a_next_command() {
    let Some(mut mesh) = Mesh::find_or_skip() else { return };
    let (node, ip) = (&mesh.node, mesh.node.ip());
    let joined = json!({"retry_join_wan": [node.server_ip()], "primary_datacenter": "dc1"});
    let elsewhere = Elsewhere::start(node, "dc2", &joined);
    let upstreams = ["dc2", "dc9"].into_iter().zip(9001..);
    let upstreams: Vec<_> = upstreams
        .map(|(datacenter, port)| json!({"destination_name": "api", "datacenter": datacenter, "local_bind_port": port}))
        .collect();
    register(node, ip, "asker", &upstreams);
    let known = || verdict(&status(node, ip, &[]), "datacenter", "dc2").map(str::to_owned);
    until("the other datacenter", || known() == ["ok", ""]).unwrap();
    let findings = status(node, ip, &[]);
    assert_eq!(verdict(&findings, "datacenter", "dc9"), ["wrong", "no-datacenter"]);
    drop(elsewhere);

    // Without servers, an agent that restarts gets no certificate, and many requests fail.
    register(node, ip, "late", &[]);
    node.kill_server();
    drop(mesh.agent.take());
    let again = Agent::client(node.name(), ip, node.server_ip());
    let folder = node.folder("agent").unwrap();
    let _agent = again.start(&node.parts().consul, node.release(), &folder).unwrap();
    until("the agent's services", || node.get("/v1/agent/service/late").is_ok()).unwrap();
    let admin = "127.0.0.1:19000";
    let envoy = start_envoy(node, ip, "late", admin);
    let sidecar = || {
        let findings = status(node, ip, &["--admin-bind", admin]);
        verdict(&findings, "sidecar", admin).map(str::to_owned)
    };
    let mut seen = sidecar();
    until("an Envoy without a certificate", || {
        seen = sidecar();
        seen == ["wrong", "no-leaf"]
    })
    .unwrap_or_else(|error| panic!("{error}: {seen:?}\n{}", tail(&envoy.output(), 20)));
    let findings = status(node, ip, &["--admin-bind", admin]);
    let unknown = findings.iter().filter(|found| found["verdict"] == "unknown");
    assert!(unknown.count() > 0, "{findings:#?}");
}
