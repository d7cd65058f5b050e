//! Processes that are killed, and pods that go without their hooks.

use e2e::cluster::client::Namespace;
use serde_json::{Value, json};

use crate::support::{server, sharing, shell};

/// A server whose containers see each other's processes.
fn open_server(service: &str) -> Value {
    let mut pod = server(service, "hello");
    pod["spec"]["shareProcessNamespace"] = json!(true);
    pod
}

fn sidecar_restarts(namespace: &Namespace<'_>, pod: &str) -> u64 {
    let pod = namespace.pod(pod).unwrap();
    let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    let sidecar = statuses.iter().find(|status| status["name"] == "envoy-sidecar");
    sidecar.and_then(|status| status["restartCount"].as_u64()).unwrap_or_default()
}

/// As the kernel kills for want of memory: Envoy first, then the helper around
/// it. Each time the container comes back, and there is one registration.
#[test]
fn a_killed_sidecar_comes_back_as_one_registration() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("killed").unwrap();
    namespace.apply(&open_server("killed").to_string()).unwrap();
    namespace.await_condition("pod/killed", "Ready").unwrap();
    cluster.await_instances("killed", 1).unwrap();
    for (count, victim) in [(1, "envoy"), (2, "connect-lifecycle")] {
        shell(&namespace, "killed", "killed", &format!("kill -9 $(pidof {victim})")).unwrap();
        e2e::until(&format!("a new sidecar after the end of {victim}"), || {
            sidecar_restarts(&namespace, "killed") == count
        })
        .unwrap();
        namespace.await_condition("pod/killed", "Ready").unwrap();
        cluster.await_instances("killed", 1).unwrap();
    }
}

/// Everything in a pod is killed at once and nothing starts again, as when its
/// node fails: when the lease is over, nobody is sent there.
#[test]
fn a_pod_that_dies_at_once_is_not_sent_traffic_past_its_lease() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("dead").unwrap();
    let mut pod = open_server("dead");
    pod["spec"]["restartPolicy"] = json!("Never");
    namespace.apply(&pod.to_string()).unwrap();
    namespace.await_condition("pod/dead", "Ready").unwrap();
    cluster.await_instances("dead", 1).unwrap();
    // All but the sandbox's own process; the shell of this line among them.
    let _ = shell(&namespace, "dead", "dead", "kill -9 -1");
    e2e::until("the end of the pod", || {
        namespace.pod("dead").is_ok_and(|pod| pod["status"]["phase"] == "Failed")
    })
    .unwrap();
    for service in ["dead", "dead-sidecar-proxy"] {
        e2e::until(&format!("the end of the lease of {service}"), || {
            cluster.passing(service).is_ok_and(|passing| passing.is_empty())
        })
        .unwrap();
    }
}

/// A forced deletion gives a pod two seconds, and takes the object at once.
#[test]
fn a_pod_deleted_by_force_is_not_sent_traffic_past_its_lease() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("forced").unwrap();
    namespace.apply(&server("forced", "hello").to_string()).unwrap();
    namespace.await_condition("pod/forced", "Ready").unwrap();
    cluster.await_instances("forced", 1).unwrap();
    namespace.kubectl(&["delete", "pod/forced", "--force", "--grace-period=0"]).unwrap();
    for service in ["forced", "forced-sidecar-proxy"] {
        e2e::until(&format!("the end of {service}"), || {
            cluster.passing(service).is_ok_and(|passing| passing.is_empty())
        })
        .unwrap();
    }
}
