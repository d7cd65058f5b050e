//! Pods that are evicted: asked to go by the API, as `kubectl drain` does it, or
//! made to by the kubelet.

use std::time::Duration;

use cluster::client::{Cluster, Namespace};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{await_answer, client, set_of, sharing, shell, shell_server};

/// Starts a Deployment of one server and a client of it, and sees that they
/// talk. Returns the server's pod.
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

/// Waits until another pod is the service's only instance, and answers.
fn await_successor(cluster: &Cluster, namespace: &Namespace<'_>, service: &str, old: &Value) {
    let id = format!("{}-{service}", old["metadata"]["name"].as_str().unwrap());
    let found = harness::until("another instance", || {
        cluster
            .passing(service)
            .is_ok_and(|passing| passing.len() == 1 && passing[0]["Service"]["ID"] != id.as_str())
    });
    let found = found.and_then(|()| cluster.await_instances(service, 1));
    found
        .and_then(|()| await_answer(namespace, &format!("{service}-client"), "hello"))
        .unwrap_or_else(|error| {
            panic!("{error}\n{:#?}", namespace.pods(&format!("app={service}")));
        });
}

#[test]
fn a_pod_evicted_by_the_api_leaves_its_place_to_another() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("drained").unwrap();
    let old = start(cluster, &namespace, &shell_server("drained", "hello"));

    // `policy/v1` is known from 1.22 on, and nothing else from 1.25 on.
    let resources = cluster.get("/api/v1").unwrap()["resources"].take();
    let resource =
        resources.as_array().unwrap().iter().find(|each| each["name"] == "pods/eviction");
    let version = resource.unwrap()["version"].as_str().unwrap();
    let eviction = json!({
        "apiVersion": format!("policy/{version}"),
        "kind": "Eviction",
        "metadata": {"name": old["metadata"]["name"]},
    });
    let name = old["metadata"]["name"].as_str().unwrap();
    let path = format!("/api/v1/namespaces/{}/pods/{name}/eviction", namespace.name);
    cluster.request(Method::POST, &path, Some(&eviction)).unwrap();
    await_successor(cluster, &namespace, "drained", &old);
}

/// The kubelet gives such a pod no time for its hooks, and two seconds to end.
#[test]
fn a_pod_evicted_by_the_kubelet_leaves_its_place_to_another() {
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
    // The kubelet looks at volumes once a minute, unless it is told otherwise.
    harness::until_within(Duration::from_secs(180), "the eviction", || {
        // A pod whose containers end with 0 in their grace has succeeded.
        namespace.pod(name).is_ok_and(|pod| {
            let status = &pod["status"];
            status["reason"] == "Evicted" || status["phase"] == "Succeeded"
        })
    })
    .unwrap();
    await_successor(cluster, &namespace, "evicted", &old);
}
