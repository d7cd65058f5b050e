//! Containers that the kubelet ends and starts again because their liveness
//! probe fails.

use std::time::Duration;

use serde_json::json;

use crate::support::{await_answer, changes, client, restarts, sharing, shell, shell_server};

#[test]
fn an_application_that_fails_its_probe_is_reached_again() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("liveness").unwrap();
    let mut pod = shell_server("lively", "hello");
    pod["spec"]["containers"][0]["livenessProbe"] = json!({
        "exec": {"command": ["test", "!", "-e", "/tmp/sick"]},
        "periodSeconds": 1,
        "failureThreshold": 1,
        "timeoutSeconds": 30,
    });
    namespace.apply(&pod.to_string()).unwrap();
    namespace.apply(&client("lively").to_string()).unwrap();
    for pod in ["pod/lively", "pod/lively-client"] {
        namespace.await_condition(pod, "Ready").unwrap();
    }
    cluster.await_instances("lively", 1).unwrap();
    await_answer(&namespace, "lively-client", "hello").unwrap();

    shell(&namespace, "lively", "lively", "touch /tmp/sick").unwrap();
    harness::until("a new application", || restarts(&namespace, "lively", "lively") == 1).unwrap();
    cluster.await_instances("lively", 1).unwrap();
    await_answer(&namespace, "lively-client", "hello").unwrap();
    assert_eq!(restarts(&namespace, "lively", "envoy-sidecar"), 0);
}

/// Envoy hangs, so that nothing but its probe tells.
#[test]
fn a_sidecar_that_hangs_is_replaced_and_reached_again() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("hanging").unwrap();
    let mut pod = shell_server("hanging", "hello");
    pod["metadata"]["annotations"]["consul.hashicorp.com/sidecar-proxy-liveness-failure-seconds"] =
        json!("10");
    pod["spec"]["shareProcessNamespace"] = json!(true);
    // How long the kubelet waits for a process that can't end.
    pod["spec"]["terminationGracePeriodSeconds"] = json!(10);
    namespace.apply(&pod.to_string()).unwrap();
    namespace.apply(&client("hanging").to_string()).unwrap();
    for pod in ["pod/hanging", "pod/hanging-client"] {
        namespace.await_condition(pod, "Ready").unwrap();
    }
    cluster.await_instances("hanging", 1).unwrap();
    await_answer(&namespace, "hanging-client", "hello").unwrap();
    let before = changes(cluster, "hanging-sidecar-proxy").unwrap();

    shell(&namespace, "hanging", "hanging", "kill -STOP $(pidof envoy)").unwrap();
    // Ten seconds for the probe, and as many for the end.
    harness::until_within(Duration::from_secs(120), "a new sidecar", || {
        restarts(&namespace, "hanging", "envoy-sidecar") == 1
    })
    .unwrap();
    harness::until("another registration", || {
        changes(cluster, "hanging-sidecar-proxy").is_ok_and(|now| now > before)
    })
    .unwrap();
    cluster.await_instances("hanging", 1).unwrap();
    await_answer(&namespace, "hanging-client", "hello").unwrap();
    assert_eq!(restarts(&namespace, "hanging", "hanging"), 0);
}
