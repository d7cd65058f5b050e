//! Pods that end normally: scaled down, replaced, or completed.

use cluster::client::text;
use serde_json::{Value, json};

use crate::support::{
    ASK, in_container_mode, job_of, one_shot_client, server, set_of, sharing, terminated,
};

#[test]
fn scaling_to_zero_leaves_no_service_in_container_mode() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("scaled").unwrap();
    let pod = in_container_mode(server("scaled", "hello"));
    namespace.apply(&set_of("Deployment", &pod, 2).to_string()).unwrap();
    namespace.await_rollout("deployment/scaled").unwrap();
    cluster.await_instances("scaled", 2).unwrap();
    namespace.kubectl(&["scale", "deployment/scaled", "--replicas=0"]).unwrap();
    cluster.await_instances("scaled", 0).unwrap();
}

/// The name and the registration's id stay the same; the address changes.
#[test]
fn a_replaced_pod_of_a_stateful_set_registers_under_its_old_name() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("stateful").unwrap();
    namespace.apply(&set_of("StatefulSet", &server("stateful", "hello"), 1).to_string()).unwrap();
    namespace.await_rollout("statefulset/stateful").unwrap();
    cluster.await_instances("stateful", 1).unwrap();
    let first = namespace.pod("stateful-0").unwrap();

    namespace.kubectl(&["delete", "pod/stateful-0"]).unwrap();
    let mut second = Value::Null;
    harness::until("the pod that takes its place", || {
        second = namespace.pod("stateful-0").unwrap_or_default();
        second["metadata"]["uid"].is_string()
            && second["metadata"]["uid"] != first["metadata"]["uid"]
            && second["status"]["podIP"].is_string()
    })
    .unwrap();
    namespace.await_condition("pod/stateful-0", "Ready").unwrap();
    cluster.await_instances("stateful", 1).unwrap();
    let instance = &cluster.passing("stateful").unwrap()[0]["Service"];
    assert_eq!(instance["ID"], format!("{}_stateful-0_stateful", namespace.name));
    assert_eq!(instance["Address"], second["status"]["podIP"], "{instance:#}");
}

/// In container mode, a Job's command starts when Envoy is ready, and the sidecar exits after
/// it, even if the command failed. The command runs as another user than the sidecar: of the
/// sidecar's files, it can only use connect-lifecycle.
#[test]
fn jobs_complete_with_their_commands_and_leave_no_service_in_container_mode() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("job").unwrap();
    namespace.apply(&server("worked", "hello").to_string()).unwrap();
    namespace.await_condition("pod/worked", "Ready").unwrap();
    cluster.await_instances("worked", 1).unwrap();

    for (name, line, condition, code) in
        [("work", ASK.to_owned(), "Complete", 0), ("fail", format!("{ASK}; exit 7"), "Failed", 7)]
    {
        let mut pod = in_container_mode(one_shot_client("worked"));
        let container = &mut pod["spec"]["containers"][0];
        *container["command"].as_array_mut().unwrap().last_mut().unwrap() = json!(line);
        container["securityContext"] = json!({"runAsUser": 10001, "runAsGroup": 10001});
        namespace.apply(&job_of(name, &pod).to_string()).unwrap();
        namespace.await_condition(&format!("job/{name}"), condition).unwrap();
        let pods = namespace.pods(&format!("batch.kubernetes.io/job-name={name}")).unwrap();
        let pod = text(&pods[0]["metadata"]["name"]);
        let ended = |container| {
            let code = terminated(&namespace, pod, container).unwrap()["exitCode"].clone();
            (code, namespace.kubectl(&["logs", pod, "--container", container]).unwrap())
        };
        let (command, sidecar) = (ended("worked-client"), ended("envoy-sidecar"));
        assert_eq!(command.0, code, "{}", command.1);
        assert!(command.1.contains("hello"), "{}", command.1);
        assert_eq!(sidecar.0, 0, "{}", sidecar.1);
        assert!(!sidecar.1.contains("ERROR"), "{}", sidecar.1);
        cluster.await_instances("worked-client", 0).unwrap();
    }
}
