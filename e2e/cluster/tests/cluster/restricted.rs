//! A namespace that admits no pod but those that PodSecurity's level `restricted`
//! allows.

use cluster::client::{Namespace, text};
use harness::pod_security::violations;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    annotate, await_answer, client, one_shot_client, server, sharing, shell, shell_server,
};

/// A pod whose own containers keep to the rules.
pub(crate) fn careful(mut pod: Value) -> Value {
    pod["spec"]["securityContext"] = json!({
        "runAsNonRoot": true,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "fsGroup": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    for container in pod["spec"]["containers"].as_array_mut().into_iter().flatten() {
        container["securityContext"] =
            json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    }
    pod
}

/// Pods in all the shapes that injection gives them.
fn shapes() -> Vec<Value> {
    let plain = server("plain", "hello");
    let upstreams = client("plain");
    let mut several = server("first", "first");
    let mut second = several["spec"]["containers"][0].clone();
    second["name"] = json!("second");
    second["args"] = json!(["-text=second", "-listen=:9090"]);
    second["ports"] = json!([{"containerPort": 9090}]);
    several["spec"]["containers"].as_array_mut().unwrap().push(second);
    annotate(
        &mut several,
        &[("connect-service", "first,second"), ("connect-service-port", "8080,9090")],
    );
    let mut metrics = server("measured", "requests 1");
    annotate(&mut metrics, &[("enable-metrics", "true"), ("enable-metrics-merging", "true")]);
    let mut probed = shell_server("probed", "hello");
    annotate(
        &mut probed,
        &[
            ("use-proxy-health-check", "true"),
            ("sidecar-proxy-liveness-failure-seconds", "60"),
            ("sidecar-proxy-startup-failure-seconds", "60"),
            ("sidecar-proxy-memory-limit", "128Mi"),
        ],
    );
    let mut job = one_shot_client("plain");
    job["metadata"]["name"] = json!("job");
    annotate(&mut job, &[("connect-service", "job")]);
    [plain, upstreams, several, metrics, probed, job].map(careful).into()
}

#[test]
fn a_restricted_namespace_takes_every_injected_pod() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("restricted").unwrap();
    let enforce = "pod-security.kubernetes.io/enforce=restricted";
    namespace.kubectl(&["label", "namespace", &namespace.name, enforce]).unwrap();
    // It is enforced: the pod's own container does not comply.
    let error = namespace.apply(&server("careless", "hello").to_string()).unwrap_err().to_string();
    assert!(error.contains("violates PodSecurity"), "{error}");

    let path = format!("/api/v1/namespaces/{}/pods?dryRun=All", namespace.name);
    for pod in shapes() {
        let name = text(&pod["metadata"]["name"]);
        if name == "job" {
            // It asks another one, once.
            for pod in ["pod/plain", "pod/plain-client"] {
                namespace.await_condition(pod, "Ready").unwrap();
            }
            await_answer(&namespace, "plain-client", "hello").unwrap();
        }
        let shown = cluster.request(Method::POST, &path, Some(&pod)).unwrap();
        let all = [&shown["spec"]["initContainers"], &shown["spec"]["containers"]];
        let count = all.map(|list| list.as_array().map_or(0, Vec::len)).iter().sum::<usize>();
        let own = pod["spec"]["containers"].as_array().map_or(0, Vec::len);
        assert!(count >= own + 2, "{name}: {shown:#}");
        // Our own reading of the rules agrees with the cluster's.
        assert_eq!(violations(&shown["spec"], None), Vec::<String>::new(), "{name}");
        namespace.apply(&pod.to_string()).unwrap();
    }

    // They run, too.
    for service in ["plain", "plain-client", "first", "second", "measured", "probed"] {
        cluster.await_instances(service, 1).unwrap();
    }
    one_scrape_gives_both_metrics(&namespace);
    harness::until("the end of the job's pod", || {
        namespace.pod("job").is_ok_and(|pod| pod["status"]["phase"] == "Succeeded")
    })
    .unwrap();
}

/// From another pod, as Prometheus does: Envoy's metrics and the application's, which
/// answers whatever it is asked with its only one.
fn one_scrape_gives_both_metrics(namespace: &Namespace<'_>) {
    let measured = namespace.pod("measured").unwrap();
    let url = format!("http://{}:20200/metrics", text(&measured["status"]["podIP"]));
    let lines = [
        "requests 1",
        "# TYPE envoy_server_live gauge",
        "connect_merged_envoy_metrics_success 1",
        "consul_merged_service_metrics_success 1",
    ];
    let mut page = String::new();
    harness::until("both halves of the page", || {
        page = shell(namespace, "probed", "probed", &format!("wget -q -O - {url}"))
            .unwrap_or_else(|error| error.to_string());
        lines.iter().all(|line| page.lines().any(|there| there == *line))
    })
    .unwrap_or_else(|error| panic!("{error}: {lines:#?}\n{page}"));
}
