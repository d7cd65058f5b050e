//! A Job's pod completes, and leaves nothing behind (pain 11, 12).

use harness::document::{ECHO_SERVER, HELLO, injected, injected_pod, started};
use harness::kubelet::Pod;
use harness::node::Node;
use harness::parts::Parts;
use serde_json::{Value, json};

/// The command that runs another while the proxy does.
const WAIT: [&str; 4] = ["/consul/connect-inject/connect-lifecycle", "wait", "--quit", "--"];

#[test]
fn the_pod_of_a_job_completes_and_leaves_nothing_behind() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let _agent = node.start_agent().unwrap();
    let injector = node.start_injector().unwrap();
    let _server = started(&node, &injected(&node, &injector, ECHO_SERVER).unwrap()).unwrap();

    // The proxy is there from the first request on; a failure is passed on.
    for (name, script, code) in [
        ("good", "exec curl -sS http://127.0.0.1:1234/", 0),
        ("bad", "curl -sS http://127.0.0.1:1234/; exit 7", 7),
    ] {
        let pod = injected_pod(&node, &injector, &job(name, script)).unwrap();
        let mut pod = Pod::create(&node, &pod).unwrap();
        pod.start().unwrap();
        let logs = ["job", "envoy-sidecar"].map(|container| pod.log_file(container));
        let processes = pod.processes();
        let ended = pod.complete().unwrap();
        let [log, sidecar] = logs.map(|file| std::fs::read_to_string(file).unwrap());
        assert!(log.contains(HELLO), "{log}");
        assert_eq!(ended["job"], format!("exit status: {code}"), "{log}");
        assert_eq!(ended["envoy-sidecar"], "exit status: 0", "{sidecar}");
        assert!(!sidecar.contains("ERROR"), "{sidecar}");
        assert!(!processes.is_empty());

        let there = node.get("/v1/agent/services").unwrap();
        let left: Vec<_> =
            there.as_object().unwrap().keys().filter(|id| id.contains(name)).collect();
        assert_eq!(left, Vec::<&String>::new());
        for service in ["job", "job-sidecar-proxy"] {
            harness::until(&format!("{service} to be gone from the catalog"), || {
                node.get(&format!("/v1/catalog/service/{service}"))
                    .is_ok_and(|instances| instances == json!([]))
            })
            .unwrap();
        }
    }
}

/// A pod of a Job: its container is of another user than the sidecar, and has
/// nothing of the pod's files but the helper.
fn job(name: &str, script: &str) -> Value {
    let annotations = json!({
        "consul.hashicorp.com/connect-inject": "true",
        "consul.hashicorp.com/connect-service": "job",
        "consul.hashicorp.com/connect-service-upstreams": "echo-server:1234",
        "consul.hashicorp.com/connect-inject-mount-volume": "job",
    });
    let command: Vec<&str> = WAIT.into_iter().chain(["sh", "-c", script]).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "job", "image": "tutum/curl:latest", "command": command,
                "securityContext": {"runAsUser": 10001, "runAsGroup": 10001},
            }],
        },
    })
}
