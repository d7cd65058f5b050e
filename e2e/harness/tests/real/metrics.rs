//! One scrape of a pod gives Envoy's metrics and the application's.

use harness::document::injected_pod;
use harness::kubelet::Pod;
use harness::node::Node;
use harness::parts::Parts;
use serde_json::json;

#[test]
fn one_scrape_gives_envoys_metrics_and_the_applications() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let _agent = node.start_agent().unwrap();
    let injector = node.start_injector().unwrap();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "annotations": {
            "consul.hashicorp.com/connect-inject": "true",
            "consul.hashicorp.com/enable-metrics": "true",
            "consul.hashicorp.com/enable-metrics-merging": "true",
        }},
        "spec": {"containers": [{
            // It answers whatever it is asked with its only metric.
            "name": "web", "image": "hashicorp/http-echo:latest",
            "args": ["-text=own_metric 42", "-listen=127.0.0.1:8080"],
            "ports": [{"containerPort": 8080}],
        }]},
    });
    let mut pod = Pod::create(&node, &injected_pod(&node, &injector, &pod).unwrap()).unwrap();
    pod.start().unwrap();
    // From outside of the pod, as Prometheus does.
    let url = format!("http://{}:20200/metrics", pod.ip);
    let mut page = String::new();
    let waited = harness::until("both halves of the page", || {
        page =
            harness::process::run("curl", &["-sS", &url]).unwrap_or_else(|error| error.to_string());
        page.contains("\nown_metric 42\n")
    });
    waited.unwrap_or_else(|error| panic!("{error}\n{page}\n{}", pod.log("envoy-sidecar")));
    for line in [
        "# TYPE envoy_server_live gauge",
        "connect_merged_envoy_metrics_success 1",
        "consul_merged_service_metrics_success 1",
    ] {
        assert!(page.lines().any(|there| there == line), "no `{line}` in:\n{page}");
    }
}
