//! Processes that are killed, and pods that end without their hooks.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    await_restarts, changes, in_container_mode, server, sharing, shell, shell_server,
};

/// A server whose containers see each other's processes.
fn open_server(service: &str) -> Value {
    let mut pod = shell_server(service, "hello");
    pod["spec"]["shareProcessNamespace"] = json!(true);
    pod
}

#[test]
fn a_killed_sidecar_restarts_and_has_one_registration() {
    kill_sidecar("killed", &open_server("killed"));
}

#[test]
fn a_killed_sidecar_restarts_and_has_one_registration_in_container_mode() {
    kill_sidecar("ended", &in_container_mode(open_server("ended")));
}

/// Kills Envoy first, then connect-lifecycle. Each time the container restarts, and there is
/// one registration, which the new process keeps.
fn kill_sidecar(name: &str, pod: &Value) {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace(name).unwrap();
    namespace.apply(&pod.to_string()).unwrap();
    namespace.await_condition(&format!("pod/{name}"), "Ready").unwrap();
    cluster.await_instances(name, 1).unwrap();
    let proxy = format!("{name}-sidecar-proxy");
    for (count, victim) in [(1, "envoy"), (2, "connect-lifecycle")] {
        // A probe's process that ends in between is no matter.
        shell(&namespace, name, name, &format!("kill -9 $(pidof {victim}) || true")).unwrap();
        assert_eq!(await_restarts(&namespace, name, "envoy-sidecar", count).unwrap(), count);
        namespace.await_condition(&format!("pod/{name}"), "Ready").unwrap();
        // The dead process's last heartbeat does not count any more.
        let before = changes(cluster, &proxy).unwrap();
        let fail = format!("/v1/agent/check/fail/{}_{name}_{proxy}-lease", namespace.name);
        cluster.consul_request(Method::PUT, &fail, None).unwrap();
        harness::until("the servers to know it", || {
            changes(cluster, &proxy).is_ok_and(|now| now > before)
        })
        .unwrap();
        cluster.await_instances(name, 1).unwrap();
    }
}

/// All processes of a pod are killed at once and none restarts, as when its node fails. When
/// the TTL check expires, Consul sends no traffic there; a minute later, the agent
/// deregisters the service.
#[test]
fn a_pod_that_dies_at_once_gets_no_traffic_after_its_ttl_check_expires() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("dead").unwrap();
    // A native sidecar restarts whatever the pod's restartPolicy is.
    let mut pod = in_container_mode(open_server("dead"));
    pod["spec"]["restartPolicy"] = json!("Never");
    namespace.apply(&pod.to_string()).unwrap();
    namespace.await_condition("pod/dead", "Ready").unwrap();
    cluster.await_instances("dead", 1).unwrap();
    // All except the sandbox's own process, including the shell that runs this.
    let _ = shell(&namespace, "dead", "dead", "kill -9 -1");
    harness::until("the end of the pod", || {
        namespace.pod("dead").is_ok_and(|pod| pod["status"]["phase"] == "Failed")
    })
    .unwrap();
    for service in ["dead", "dead-sidecar-proxy"] {
        harness::until(&format!("no traffic for {service}"), || {
            cluster.passing(service).is_ok_and(|passing| passing.is_empty())
        })
        .unwrap();
        // The TTL check itself, and not only a check of the pod's ports.
        harness::until(&format!("the TTL check of {service} to expire"), || {
            let checks = cluster.consul(&format!("/v1/health/checks/{service}"));
            let checks = checks.ok().and_then(|checks| checks.as_array().cloned());
            checks.into_iter().flatten().any(|check| {
                let id = check["CheckID"].as_str().unwrap_or_default();
                id.ends_with("-lease") && check["Status"] == "critical"
            })
        })
        .unwrap();
    }
    // A minute in critical state, and up to half a minute until the agent notices.
    for service in ["dead", "dead-sidecar-proxy"] {
        harness::until_within(
            Duration::from_secs(180),
            &format!("nothing left of {service}"),
            || cluster.is_unknown(service).unwrap_or_default(),
        )
        .unwrap();
    }
}

/// A forced deletion gives a pod two seconds, and removes the object at once.
#[test]
fn a_pod_deleted_by_force_gets_no_traffic_after_its_ttl_check_expires() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("forced").unwrap();
    namespace.apply(&server("forced", "hello").to_string()).unwrap();
    namespace.await_condition("pod/forced", "Ready").unwrap();
    cluster.await_instances("forced", 1).unwrap();
    namespace.kubectl(&["delete", "pod/forced", "--force", "--grace-period=0"]).unwrap();
    for service in ["forced", "forced-sidecar-proxy"] {
        harness::until(&format!("no traffic for {service}"), || {
            cluster.passing(service).is_ok_and(|passing| passing.is_empty())
        })
        .unwrap();
    }
}
