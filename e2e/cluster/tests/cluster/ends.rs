//! Pods that end because they are to: scaled away, replaced, done.

use serde_json::Value;

use crate::support::{in_container_mode, job_of, one_shot_client, server, set_of, sharing};

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

/// The name is the same, and so is the registration's id; the address is not.
#[test]
fn a_pod_of_a_stateful_set_comes_back_under_its_name() {
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

/// In container mode, a Job's command starts when its proxy is ready, and the
/// sidecar ends after it: the Job is complete, and nothing of it is registered.
#[test]
fn a_job_completes_and_leaves_no_service_in_container_mode() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("job").unwrap();
    namespace.apply(&server("worked", "hello").to_string()).unwrap();
    namespace.await_condition("pod/worked", "Ready").unwrap();
    cluster.await_instances("worked", 1).unwrap();

    let job = job_of("work", &in_container_mode(one_shot_client("worked")));
    namespace.apply(&job.to_string()).unwrap();
    namespace.await_condition("job/work", "Complete").unwrap();
    let said = namespace.kubectl(&["logs", "job/work", "--container=worked-client"]).unwrap();
    assert!(said.contains("hello"), "{said}");
    cluster.await_instances("worked-client", 0).unwrap();
}
