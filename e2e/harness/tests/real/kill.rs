//! A pod that is lost without a word: its registration goes by itself.

use std::time::{Duration, Instant};

use harness::document::{ECHO_SERVER, injected, started};
use harness::node::Node;
use harness::parts::Parts;
use harness::until_within;
use serde_json::{Value, json};

/// More than the lease (30 s), the agent's shortest time until it removes what
/// is critical (1 m) and the pauses between its looks (30 s) make together.
const PATIENCE: Duration = Duration::from_secs(300);

/// Pain 1, 2: dead pods stay registered and healthy, or one half of them does.
///
/// It takes two to three minutes of real time: the agent's own times can't be
/// made shorter. Nothing is computed meanwhile, and other tests run beside it.
#[test]
fn a_pod_that_is_killed_is_critical_and_then_gone() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let _agent = node.start_agent().unwrap();
    let injector = node.start_injector().unwrap();
    let pod = started(&node, &injected(&node, &injector, ECHO_SERVER).unwrap()).unwrap();
    let services = ["echo-server", "echo-server-sidecar-proxy"];

    pod.kill();
    let killed = Instant::now();
    let await_none = |what: &str, path: &dyn Fn(&str) -> String| {
        for service in services {
            until_within(PATIENCE, &format!("{service}: {what}"), || {
                node.get(&path(service)).is_ok_and(|found| found == json!([]))
            })
            .unwrap();
            println!("{service}: {what} after {:?}", killed.elapsed());
        }
    };
    await_none("no healthy instance", &|service| format!("/v1/health/service/{service}?passing"));
    // The lease, and not only a check of what the pod listens on.
    for service in services {
        until_within(PATIENCE, &format!("the lease of {service} to run out"), || {
            let checks = node.get("/v1/agent/checks").unwrap_or_default();
            checks[format!("default_echo-server_{service}-lease")]["Status"] == "critical"
        })
        .unwrap();
        println!("{service}: lease critical after {:?}", killed.elapsed());
    }
    await_none("gone from the catalog", &|service| format!("/v1/catalog/service/{service}"));
    let left = node.get("/v1/agent/services").unwrap();
    assert_eq!(left, Value::Object(serde_json::Map::new()));
}
