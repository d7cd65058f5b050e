//! Continuous requests while pods start and end.

use serde_json::{Value, json};

use crate::helm::Release;
use crate::support::{
    Load, annotate, await_answer, client, deaf, in_container_mode, is_ready, ours, server, set_of,
    sharing, shell_server,
};

#[test]
fn no_request_fails_in_a_rollout() {
    roll("rolled", &shell_server("rolled", "one"));
}

#[test]
fn no_request_fails_in_a_rollout_in_container_mode() {
    roll("turned", &in_container_mode(shell_server("turned", "one")));
}

/// Rolls out a Deployment twice while clients send requests continuously. The application
/// keeps serving for some seconds before SIGTERM, because the injector adds a sleep action.
fn roll(name: &str, pod: &Value) {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace(name).unwrap();
    let (client_of, rollout) = (format!("{name}-client"), format!("deployment/{name}"));
    let mut deployment = set_of("Deployment", pod, 2);
    deployment["spec"]["strategy"] = json!({"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}});
    namespace.apply(&deployment.to_string()).unwrap();
    namespace.apply(&client(name).to_string()).unwrap();
    namespace.await_rollout(&rollout).unwrap();
    namespace.await_condition(&format!("pod/{client_of}"), "Ready").unwrap();
    let pods = namespace.pods(&format!("app={name}")).unwrap();
    let mut containers = pods[0]["spec"]["containers"].as_array().unwrap().iter();
    let application = containers.find(|container| container["name"] == name).unwrap();
    assert!(application["lifecycle"]["preStop"]["sleep"]["seconds"].is_u64(), "{application:#}");
    cluster.await_instances(name, 2).unwrap();
    await_answer(&namespace, &client_of, "one").unwrap();

    let load = Load::start(&namespace, &client_of);
    let rolled = ["two", "three"].iter().try_for_each(|text| {
        deployment["spec"]["template"]["spec"]["containers"][0]["args"][0] = json!(text);
        namespace.apply(&deployment.to_string())?;
        namespace.await_rollout(&rollout)?;
        // The old pods are gone, so that all their requests are counted.
        cluster.await_instances(name, 2)?;
        await_answer(&namespace, &client_of, text)
    });
    load.end();
    rolled.unwrap();
}

/// The only pod is replaced. Consul must send traffic to the new pod by the time that
/// Kubernetes stops the old one.
#[test]
fn no_request_fails_in_a_rollout_of_one_replica() {
    roll_one("single", &shell_server("single", "one"));
}

#[test]
fn no_request_fails_in_a_rollout_of_one_replica_in_container_mode() {
    roll_one("lonely", &in_container_mode(shell_server("lonely", "one")));
}

fn roll_one(name: &str, pod: &Value) {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace(name).unwrap();
    let (client_of, rollout) = (format!("{name}-client"), format!("deployment/{name}"));
    namespace.apply(&set_of("Deployment", pod, 1).to_string()).unwrap();
    namespace.apply(&client(name).to_string()).unwrap();
    namespace.await_rollout(&rollout).unwrap();
    namespace.await_condition(&format!("pod/{client_of}"), "Ready").unwrap();
    cluster.await_instances(name, 1).unwrap();
    await_answer(&namespace, &client_of, "one").unwrap();

    let load = Load::start(&namespace, &client_of);
    for _ in 0..rollouts() {
        namespace.kubectl(&["rollout", "restart", &rollout]).unwrap();
        namespace.await_rollout(&rollout).unwrap();
        cluster.await_instances(name, 1).unwrap();
    }
    load.end();
}

/// How often to roll out a single replica: three times by default, to keep tests short.
/// Before readiness depended on Consul, one of two rollouts lost requests.
#[expect(clippy::disallowed_methods, reason = "a test has no flags")]
fn rollouts() -> u32 {
    std::env::var("E2E_ROLLOUTS").map_or(3, |count| count.parse().unwrap())
}

/// gRPC is disabled on the agent. The new pod's Envoy gets no configuration and never becomes
/// ready, `kubectl describe` says what to check, and the old pod keeps serving.
#[test]
fn a_rollout_stops_if_the_agent_has_no_grpc() {
    let Some((cluster, _shared)) = ours() else { return };
    let home = cluster.namespace("a-deaf").unwrap();
    let namespace = cluster.namespace("deaf").unwrap();
    let release = Release::new(cluster, &home).unwrap();
    release.apply("install", &deaf()).unwrap();
    let mut pod = server("deaf", "hello");
    annotate(&mut pod, &[("sidecar-proxy-lifecycle-startup-grace-period-seconds", "5")]);
    namespace.apply(&set_of("Deployment", &pod, 1).to_string()).unwrap();
    namespace.await_rollout("deployment/deaf").unwrap();
    let passing = || cluster.passing("deaf-sidecar-proxy").unwrap();
    assert_eq!(passing().len(), 1, "a pod that is ready is in service");
    let old = namespace.pods("app=deaf").unwrap()[0]["metadata"]["name"].clone();

    release.adopt(&namespace).unwrap();
    namespace.kubectl(&["rollout", "restart", "deployment/deaf"]).unwrap();
    let mut described = String::new();
    harness::until_within(2 * harness::PATIENCE, "kubectl describe to name gRPC", || {
        let pods = namespace.pods("app=deaf").unwrap_or_default();
        let new = pods.iter().map(|pod| &pod["metadata"]["name"]).find(|name| **name != old);
        let new = new.and_then(Value::as_str).unwrap_or_default();
        described = namespace.kubectl(&["describe", "pod", new]).unwrap_or_default();
        described.contains("Readiness probe failed")
            && described.contains("check that gRPC is enabled")
    })
    .unwrap_or_else(|error| panic!("{error}: {described}"));
    let status = ["rollout", "status", "deployment/deaf", "--timeout=10s"];
    assert!(namespace.kubectl(&status).is_err(), "the rollout went through: {described}");
    let pods = namespace.pods("app=deaf").unwrap();
    assert_eq!(pods.len(), 2);
    for pod in pods {
        assert_eq!(is_ready(&pod), pod["metadata"]["name"] == old, "{:#}", pod["status"]);
    }
    assert_eq!(passing().len(), 1, "{:#?}", passing());
}
