//! A pod with several services.

use serde_json::json;

use crate::support::{await_answer, client, server, sharing};

/// Each service has its own sidecar and registration; a client reaches the service that it
/// names; all are deregistered with the pod.
#[test]
fn each_service_of_a_pod_is_reachable_by_its_name() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("several").unwrap();
    let mut pod = server("front", "front");
    let mut back = pod["spec"]["containers"][0].clone();
    back["name"] = json!("back");
    back["args"] = json!(["-text=back", "-listen=:9090"]);
    back["ports"] = json!([{"containerPort": 9090}]);
    pod["spec"]["containers"].as_array_mut().unwrap().push(back);
    let annotations = &mut pod["metadata"]["annotations"];
    annotations["consul.hashicorp.com/connect-service"] = json!("front,back");
    annotations["consul.hashicorp.com/connect-service-port"] = json!("8080,9090");
    namespace.apply(&pod.to_string()).unwrap();
    for service in ["front", "back"] {
        namespace.apply(&client(service).to_string()).unwrap();
    }
    namespace.await_condition("pod/front", "Ready").unwrap();
    for service in ["front", "back"] {
        cluster.await_instances(service, 1).unwrap();
        let client = format!("{service}-client");
        namespace.await_condition(&format!("pod/{client}"), "Ready").unwrap();
        await_answer(&namespace, &client, service).unwrap();
    }
    namespace.kubectl(&["delete", "pod/front", "--wait=false"]).unwrap();
    for service in ["front", "back"] {
        cluster.await_instances(service, 0).unwrap();
    }
}
