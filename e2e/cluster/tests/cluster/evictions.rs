//! Pods that are evicted by `kubectl drain` or by the kubelet.

use std::time::Duration;

use cluster::client::{Cluster, Namespace};
use serde_json::{Value, json};

use crate::support::{Load, await_answer, client, set_of, sharing, shell, shell_server};

/// Starts a Deployment with one server, and a client, and waits until the client gets an
/// answer. Returns the server's pod.
fn start(cluster: &Cluster, namespace: &Namespace<'_>, server: &Value) -> Value {
    let service = server["metadata"]["name"].as_str().unwrap();
    let client_of = format!("{service}-client");
    namespace.apply(&set_of("Deployment", server, 1).to_string()).unwrap();
    namespace.apply(&client(service).to_string()).unwrap();
    namespace.await_rollout(&format!("deployment/{service}")).unwrap();
    namespace.await_condition(&format!("pod/{client_of}"), "Ready").unwrap();
    cluster.await_instances(service, 1).unwrap();
    await_answer(namespace, &client_of, "hello").unwrap();
    namespace.pods(&format!("app={service}")).unwrap().remove(0)
}

/// Waits until another pod is the service's only instance and answers.
fn await_successor(cluster: &Cluster, namespace: &Namespace<'_>, service: &str, old: &Value) {
    let pod = old["metadata"]["name"].as_str().unwrap();
    let id = format!("{}_{pod}_{service}", namespace.name);
    let found = harness::until("another instance", || {
        cluster
            .passing(service)
            .is_ok_and(|passing| passing.len() == 1 && passing[0]["Service"]["ID"] != id.as_str())
    });
    // If its pod was killed, the agent deregisters the old one a minute after its TTL check
    // expired, and takes up to half a minute for it.
    let alone = || {
        let all = cluster.consul(&format!("/v1/health/service/{service}")).unwrap_or_default();
        all.as_array().is_some_and(|all| all.len() == 1)
    };
    found
        .and_then(|()| harness::until_within(Duration::from_secs(180), "the only instance", alone))
        .and_then(|()| cluster.await_instances(service, 1))
        .and_then(|()| await_answer(namespace, &format!("{service}-client"), "hello"))
        .unwrap_or_else(|error| {
            panic!("{error}\n{:#?}", namespace.pods(&format!("app={service}")));
        });
}

/// `kubectl drain` evicts the pods of one Deployment: the PodDisruptionBudget allows the
/// second eviction only when the first pod is replaced, and no request fails.
#[test]
fn a_drain_under_a_budget_fails_no_request() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("drained").unwrap();
    let budget = json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "drained"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "drained"}}},
    });
    namespace.apply(&budget.to_string()).unwrap();
    let deployment = set_of("Deployment", &shell_server("drained", "hello"), 2);
    namespace.apply(&deployment.to_string()).unwrap();
    namespace.apply(&client("drained").to_string()).unwrap();
    namespace.await_rollout("deployment/drained").unwrap();
    namespace.await_condition("pod/drained-client", "Ready").unwrap();
    cluster.await_instances("drained", 2).unwrap();
    await_answer(&namespace, "drained-client", "hello").unwrap();
    let old = namespace.pods("app=drained").unwrap();
    let node = old[0]["spec"]["nodeName"].as_str().unwrap();

    let load = Load::start(&namespace, "drained-client");
    std::thread::scope(|scope| {
        // It is the only node, so it is uncordoned as soon as it is cordoned.
        scope.spawn(|| {
            let path = format!("/api/v1/nodes/{node}");
            let cordoned = harness::until("the cordon", || {
                cluster.get(&path).is_ok_and(|node| node["spec"]["unschedulable"] == true)
            });
            cluster.kubectl(&["uncordon", node], "").unwrap();
            cordoned.unwrap();
        });
        // The volume with the sidecar's files is an emptyDir, for which kubectl needs this flag.
        let drain = ["drain", node, "--pod-selector=app=drained", "--delete-emptydir-data"];
        cluster.kubectl(&drain, "").unwrap();
    });
    namespace.await_rollout("deployment/drained").unwrap();
    cluster.await_instances("drained", 2).unwrap();
    load.end();
    let names = |pods: &[Value]| -> Vec<Value> {
        pods.iter().map(|pod| pod["metadata"]["name"].clone()).collect()
    };
    let (old, new) = (names(&old), names(&namespace.pods("app=drained").unwrap()));
    assert!(new.iter().all(|name| !old.contains(name)), "{old:?}, {new:?}");
}

/// The kubelet gives such a pod no time for its hooks, and two seconds to exit.
#[test]
fn a_pod_evicted_by_the_kubelet_is_replaced() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("evicted").unwrap();
    let mut pod = shell_server("evicted", "hello");
    pod["spec"]["volumes"] = json!([{"name": "small", "emptyDir": {"sizeLimit": "1Mi"}}]);
    pod["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "small", "mountPath": "/small"}]);
    let old = start(cluster, &namespace, &pod);

    let name = old["metadata"]["name"].as_str().unwrap();
    let too_much = "dd if=/dev/zero of=/small/file bs=1M count=8";
    shell(&namespace, name, "evicted", too_much).unwrap();
    // The kubelet checks volumes once a minute by default.
    harness::until_within(Duration::from_secs(180), "the eviction", || {
        // A pod whose containers exit with 0 in their grace period has succeeded.
        namespace.pod(name).is_ok_and(|pod| {
            let status = &pod["status"];
            status["reason"] == "Evicted" || status["phase"] == "Succeeded"
        })
    })
    .unwrap();
    await_successor(cluster, &namespace, "evicted", &old);
}
