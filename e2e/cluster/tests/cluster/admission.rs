//! What users see of an admission: warnings, denials, dry runs.

use serde_json::{Value, json};

use crate::support::{server, set_of, sharing};

const UPSTREAMS: &str = "consul.hashicorp.com/connect-service-upstreams";

/// A pod with a misspelt annotation is admitted, and kubectl prints the nearest name.
#[test]
fn kubectl_prints_the_warnings() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("warnings").unwrap();
    let mut pod = server("warned", "hello");
    pod["metadata"]["annotations"]["consul.hashicorp.com/connect-servce"] = json!("web");
    let said = namespace.apply(&pod.to_string()).unwrap();
    assert!(said.contains("Warning: "), "{said}");
    assert!(said.contains("`consul.hashicorp.com/connect-service`"), "{said}");
    assert!(said.contains("pod/warned created"), "{said}");
}

/// The reason is where the user looks: in kubectl's error for a pod, and in the events
/// of the ReplicaSet that could not create one.
#[test]
fn a_denial_tells_the_user_why() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("refusals").unwrap();
    let mut pod = server("refused", "hello");
    pod["metadata"]["annotations"][UPSTREAMS] = json!("db:99999");
    let error = namespace.apply(&pod.to_string()).unwrap_err().to_string();
    for part in ["denied the request", "invalid-upstreams", UPSTREAMS, "db:99999"] {
        assert!(error.contains(part), "no `{part}` in: {error}");
    }

    namespace.apply(&set_of("Deployment", &pod, 1).to_string()).unwrap();
    let mut events = String::new();
    harness::until("an event of the ReplicaSet", || {
        let reason = "--field-selector=reason=FailedCreate";
        events = namespace.kubectl(&["get", "events", reason, "--output=json"]).unwrap();
        events.contains(UPSTREAMS) && events.contains("column 4")
    })
    .unwrap_or_else(|error| panic!("{error}: {events}"));
    assert!(namespace.pods("app=refused").unwrap().is_empty());
}

/// A dry run returns the injected pod and creates nothing.
#[test]
fn a_dry_run_shows_the_pod_and_registers_nothing() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("dry").unwrap();
    let pod = server("dry", "hello").to_string();
    let output = namespace
        .try_kubectl(&["apply", "--filename=-", "--dry-run=server", "--output=json"], &pod)
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["spec"]["initContainers"][1]["name"], "envoy-sidecar", "{shown:#}");
    assert!(namespace.pods("app=dry").unwrap().is_empty());
    assert_eq!(cluster.consul("/v1/health/service/dry").unwrap(), json!([]));
}

/// Pods that don't ask for injection stay unchanged, including those of a Deployment that has
/// the annotation in the wrong place: the tutorial's common mistake.
#[test]
fn pods_that_do_not_ask_stay_unchanged() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("unasked").unwrap();
    let mut pod = server("unasked", "hello");
    let asked = pod["metadata"]["annotations"].take();
    let mut deployment = set_of("Deployment", &pod, 1);
    deployment["metadata"]["annotations"] = asked;
    namespace.apply(&deployment.to_string()).unwrap();
    namespace.await_rollout("deployment/unasked").unwrap();
    let pods = namespace.pods("app=unasked").unwrap();
    assert_eq!(pods.len(), 1);
    let containers = pods[0]["spec"]["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1, "{:#}", pods[0]["spec"]);
    assert!(pods[0]["spec"]["initContainers"].is_null());
    assert_eq!(cluster.consul("/v1/health/service/unasked").unwrap(), json!([]));
}
