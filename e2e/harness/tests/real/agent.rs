//! The node's agent starts late or loses its data: the pods stay in the mesh.

use std::time::Instant;

use harness::kubelet::Pod;
use harness::node::Node;
use harness::parts::Parts;
use harness::tutorial::{
    ECHO_CLIENT, ECHO_SERVER, HELLO, await_answer, await_passing, injected, started,
};
use harness::until;
use serde_json::{Value, json};

/// A node's agent restarts and loses all registrations. The tests on Kubernetes cover this
/// with the current Consul. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/161>.
#[test]
fn pods_register_again_with_an_agent_of_the_oldest_consul_that_lost_its_data() {
    let Some(parts) = Parts::with_oldest_consul_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let agent = node.start_agent().unwrap();
    let injector = node.start_injector().unwrap();
    let _server = started(&node, &injected(&node, &injector, ECHO_SERVER).unwrap()).unwrap();
    let client = started(&node, &injected(&node, &injector, ECHO_CLIENT).unwrap()).unwrap();
    await_answer(&client, HELLO).unwrap();

    drop(agent);
    node.wipe_agent().unwrap();
    let wiped = Instant::now();
    let agent = node.spawn_agent(&json!({})).unwrap();
    until("the agent to answer", || node.get("/v1/agent/self").is_ok()).unwrap();
    let answers = Instant::now();
    println!("the agent answers {:?} after its end", answers - wiped);
    await_milestones(&node, answers).unwrap_or_else(|error| panic!("{error}\n{}", agent.output()));
    await_answer(&client, HELLO).unwrap();
}

/// Waits for everything that follows the first answer of an agent without data, and prints
/// when each was first seen.
///
/// The agent's own check of a proxy's public listener first runs at a random time within its
/// interval of 10 s, and is critical until then. The sidecars report the listener earlier.
fn await_milestones(node: &Node, answers: Instant) -> harness::Result<()> {
    let there = |id: String| node.get(&format!("/v1/agent/service/{id}")).is_ok();
    let check = |id: String| -> Option<Value> {
        Some(node.get("/v1/agent/checks").ok()?.as_object()?.get(&id)?.clone())
    };
    let passes = |id: String| check(id).is_some_and(|check| check["Status"] == "passing");
    let each = |is_so: &dyn Fn(String) -> bool, suffixes: &[&str]| {
        SERVICES.iter().all(|service| {
            suffixes.iter().all(|suffix| is_so(format!("default_{service}_{service}{suffix}")))
        })
    };
    let mut ahead: Vec<Milestone<'_>> = vec![
        ("a leader", Box::new(|| node.get("/v1/status/leader").is_ok_and(|at| at != ""))),
        ("both halves of both pods", Box::new(|| each(&there, &["", "-sidecar-proxy"]))),
        ("leases", Box::new(|| each(&passes, &["-lease", "-sidecar-proxy-lease"]))),
        (
            "applications",
            Box::new(|| passes("default_echo-server_echo-server-application".to_owned())),
        ),
        ("public listeners", Box::new(|| each(&passes, &["-sidecar-proxy-listener"]))),
        (
            "all in the catalog",
            Box::new(|| {
                ["", "-sidecar-proxy"].iter().all(|suffix| {
                    SERVICES.iter().all(|service| {
                        let found =
                            node.get(&format!("/v1/health/service/{service}{suffix}?passing"));
                        found.is_ok_and(|found| found.as_array().is_some_and(|all| all.len() == 1))
                    })
                })
            }),
        ),
    ];
    until("all that follows", || {
        ahead.retain(|(what, is_there)| {
            let is_ahead = !is_there();
            if !is_ahead {
                println!("{:?} after its first answer: {what}", answers.elapsed());
            }
            is_ahead
        });
        ahead.is_empty()
    })
}

/// An event to wait for, and how to recognize it.
type Milestone<'a> = (&'a str, Box<dyn Fn() -> bool + 'a>);

const SERVICES: [&str; 2] = ["echo-server", "echo-client"];

/// The init container failed at once if the agent was not running yet. Reported in
/// <https://github.com/hashicorp/consul/issues/11792>.
#[test]
fn connect_init_waits_for_an_agent_that_starts_late() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let injector = node.start_injector().unwrap();
    let manifest = injected(&node, &injector, ECHO_SERVER).unwrap();
    let mut pod = Pod::create(&node, &manifest).unwrap();
    let mut agent = None;
    pod.start_with(|pod| {
        harness::until("the init container to wait", || {
            pod.log("consul-connect-inject-init").contains("connection refused")
        })?;
        agent = Some(node.start_agent()?);
        Ok(())
    })
    .unwrap();
    await_passing(&node, "echo-server").unwrap();
}
