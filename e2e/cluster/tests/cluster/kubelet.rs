//! The node's kubelet is killed, and started again by the node.

use serde_json::json;

use crate::support::{
    Load, alone, await_answer, client, is_ours, restarts, server, shell, shell_server,
};

/// A pod whose container may do anything to the node's processes.
fn powerful(name: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "hostPID": true,
            "containers": [{
                "name": name,
                "image": "busybox",
                "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "1000000"],
                "securityContext": {"privileged": true},
            }],
            "terminationGracePeriodSeconds": 1,
        },
    })
}

#[test]
fn a_kubelet_that_is_killed_and_restarted_disturbs_no_pod() {
    let Some((cluster, _alone)) = alone() else { return };
    if !is_ours(cluster) {
        return;
    }
    let namespace = cluster.namespace("kubelet").unwrap();
    namespace.apply(&shell_server("kept", "hello").to_string()).unwrap();
    cluster.await_instances("kept", 1).unwrap();
    namespace.apply(&client("kept").to_string()).unwrap();
    namespace.apply(&powerful("powerful").to_string()).unwrap();
    for pod in ["pod/kept", "pod/kept-client", "pod/powerful"] {
        namespace.await_condition(pod, "Ready").unwrap();
    }
    cluster.await_instances("kept-client", 1).unwrap();
    await_answer(&namespace, "kept-client", "hello").unwrap();

    let load = Load::start(&namespace, "kept-client");
    let kubelet = || shell(&namespace, "powerful", "powerful", "pidof kubelet");
    let before = kubelet().unwrap();
    // The answer may be lost with the kubelet.
    let _ = shell(&namespace, "powerful", "powerful", "kill -9 $(pidof kubelet)");
    harness::until("another kubelet", || {
        kubelet().is_ok_and(|now| !now.trim().is_empty() && now != before)
    })
    .unwrap();

    // It works: it starts a pod.
    namespace.apply(&server("next", "next").to_string()).unwrap();
    namespace.await_condition("pod/next", "Ready").unwrap();
    cluster.await_instances("next", 1).unwrap();
    for service in ["kept", "kept-client"] {
        cluster.await_instances(service, 1).unwrap();
        for container in [service, "envoy-sidecar"] {
            assert_eq!(restarts(&namespace, service, container), 0, "{container} of {service}");
        }
    }
    load.end();
}
