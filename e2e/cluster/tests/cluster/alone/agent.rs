//! The node's agents: Consul's loses its data, and the kubelet is killed.

use cluster::client::text;
use serde_json::json;

use crate::support::{
    Load, alone, await_answer, client, is_ours, restarts, server, set_of, shell, shell_server,
};

/// The agent's container restarts without data, and all pods register again. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/161>.
#[test]
fn pods_register_again_with_an_agent_that_lost_its_data() {
    let Some((cluster, _alone)) = alone() else { return };
    let namespace = cluster.namespace("wiped").unwrap();
    namespace.apply(&set_of("Deployment", &server("wiped", "hello"), 2).to_string()).unwrap();
    namespace.apply(&client("wiped").to_string()).unwrap();
    namespace.await_rollout("deployment/wiped").unwrap();
    namespace.await_condition("pod/wiped-client", "Ready").unwrap();
    cluster.await_instances("wiped", 2).unwrap();
    let ready_since = || -> Vec<_> {
        let pods = namespace.pods("app=wiped").unwrap();
        let conditions =
            pods.iter().flat_map(|pod| pod["status"]["conditions"].as_array().unwrap());
        conditions.filter(|each| each["type"] == "Ready").cloned().collect()
    };
    let ready = ready_since();
    await_answer(&namespace, "wiped-client", "hello").unwrap();

    let starts = || {
        let agent = cluster.agent()?;
        let statuses = agent["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let consul = statuses.iter().find(|status| status["name"] == "consul").cloned();
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(
            consul.and_then(|status| status["restartCount"].as_u64()).unwrap_or_default(),
        )
    };
    let before = starts().unwrap();
    let agent = cluster.agent().unwrap();
    let (home, name) = (&agent["metadata"]["namespace"], &agent["metadata"]["name"]);
    let (home, name) = (home.as_str().unwrap(), name.as_str().unwrap());
    // The agent's data is in the container's own layer, which is removed with it.
    let end = ["--namespace", home, "exec", name, "--container", "consul", "--", "kill", "1"];
    cluster.kubectl(&end, "").unwrap();
    harness::until("the agent's restart", || starts().is_ok_and(|now| now > before)).unwrap();
    // The servers still have what the agent before it registered: only the new one can tell.
    harness::until("all registrations on the new agent", || {
        let services = cluster.consul("/v1/agent/services").unwrap_or_default();
        let all = services.as_object().into_iter().flat_map(|all| all.values());
        all.filter(|each| text(&each["Service"]).starts_with("wiped")).count() == 6
    })
    .unwrap();

    cluster.await_instances("wiped", 2).unwrap();
    cluster.await_instances("wiped-client", 1).unwrap();
    await_answer(&namespace, "wiped-client", "hello").unwrap();
    assert_eq!(ready_since(), ready, "an agent that is away makes no ready pod unready");
    for pod in namespace.pods("app=wiped").unwrap() {
        let name = text(&pod["metadata"]["name"]);
        for container in ["wiped", "envoy-sidecar"] {
            assert_eq!(restarts(&namespace, name, container).unwrap(), 0, "{container} of {name}");
        }
    }
}

/// A privileged pod in the node's PID namespace.
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
    namespace.apply(&client("kept").to_string()).unwrap();
    namespace.apply(&powerful("powerful").to_string()).unwrap();
    for pod in ["pod/kept", "pod/kept-client", "pod/powerful"] {
        namespace.await_condition(pod, "Ready").unwrap();
    }
    for service in ["kept", "kept-client"] {
        cluster.await_instances(service, 1).unwrap();
    }
    await_answer(&namespace, "kept-client", "hello").unwrap();

    let load = Load::start(&namespace, "kept-client");
    let kubelet = || shell(&namespace, "powerful", "powerful", "pidof kubelet");
    let before = kubelet().unwrap();
    // The response may be lost with the kubelet.
    let _ = shell(&namespace, "powerful", "powerful", "kill -9 $(pidof kubelet)");
    harness::until("another kubelet", || {
        kubelet().is_ok_and(|now| !now.trim().is_empty() && now != before)
    })
    .unwrap();

    // It works again: it starts a pod.
    namespace.apply(&server("next", "next").to_string()).unwrap();
    namespace.await_condition("pod/next", "Ready").unwrap();
    cluster.await_instances("next", 1).unwrap();
    for service in ["kept", "kept-client"] {
        cluster.await_instances(service, 1).unwrap();
        for container in [service, "envoy-sidecar"] {
            assert_eq!(
                restarts(&namespace, service, container).unwrap(),
                0,
                "{container} of {service}"
            );
        }
    }
    load.end();
}
