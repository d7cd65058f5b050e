//! Containers that the kernel kills because they exceed their memory limit.

use std::time::Duration;

use cluster::client::{Cluster, Namespace};
use harness::{until, until_within};
use serde_json::{Value, json};

use crate::support::{
    annotate, await_answer, await_restarts, changes, client, in_container_mode, restarts, sharing,
    shell, shell_server, status,
};

/// Envoy's admin interface buffers a request until it is complete, limited only by the
/// container's memory.
const FILL_ENVOY: &str = "{ printf 'POST / HTTP/1.1\\r\\nHost: envoy\\r\\n\
                          Content-Length: 1000000000\\r\\n\\r\\n'; cat /dev/zero; } \
                          | nc 127.0.0.1 19000";

/// A server whose sidecar has little more memory than it needs.
fn narrow_server(service: &str) -> Value {
    let mut pod = shell_server(service, "hello");
    annotate(&mut pod, &[("sidecar-proxy-memory-limit", "64Mi")]);
    pod
}

/// Starts a server and a client, and waits until the client gets an answer.
fn start(cluster: &Cluster, namespace: &Namespace<'_>, server: &Value) {
    let service = server["metadata"]["name"].as_str().unwrap();
    namespace.apply(&server.to_string()).unwrap();
    namespace.apply(&client(service).to_string()).unwrap();
    for pod in [service.to_owned(), format!("{service}-client")] {
        namespace.await_condition(&format!("pod/{pod}"), "Ready").unwrap();
    }
    cluster.await_instances(service, 1).unwrap();
    await_answer(namespace, &format!("{service}-client"), "hello").unwrap();
}

/// The last terminated state of a container.
fn last_end(namespace: &Namespace<'_>, pod: &str, container: &str) -> Value {
    status(namespace, pod, container).unwrap()["lastState"]["terminated"]["reason"].take()
}

#[test]
fn a_sidecar_out_of_memory_restarts_and_is_reachable_again() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("envoy-memory").unwrap();
    start(cluster, &namespace, &narrow_server("narrow"));
    let proxy = "narrow-sidecar-proxy";
    let before = changes(cluster, proxy).unwrap();

    // The container ends when the kernel kills Envoy, whatever exit code that gives.
    let _ = shell(&namespace, "narrow", "narrow", FILL_ENVOY);
    assert_eq!(await_restarts(&namespace, "narrow", "envoy-sidecar", 1).unwrap(), 1);
    assert_eq!(last_end(&namespace, "narrow", "envoy-sidecar"), "OOMKilled");
    until("the TTL check to fail and pass again", || {
        changes(cluster, proxy).is_ok_and(|now| now > before)
    })
    .unwrap();
    cluster.await_instances("narrow", 1).unwrap();
    await_answer(&namespace, "narrow-client", "hello").unwrap();
    assert_eq!(restarts(&namespace, "narrow", "narrow").unwrap(), 0);
}

/// The application keeps running without a sidecar: when the TTL check expires, Consul sends
/// no traffic there, and the agent deregisters the service a minute later.
#[test]
fn a_sidecar_out_of_memory_that_is_not_restarted_is_deregistered() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("single").unwrap();
    // A native sidecar restarts whatever the pod's restartPolicy is.
    let mut pod = in_container_mode(narrow_server("single"));
    pod["spec"]["restartPolicy"] = json!("Never");
    start(cluster, &namespace, &pod);

    let _ = shell(&namespace, "single", "single", FILL_ENVOY);
    until("the end of the sidecar", || {
        status(&namespace, "single", "envoy-sidecar")
            .is_ok_and(|status| status["state"]["terminated"]["reason"] == "OOMKilled")
    })
    .unwrap();
    for service in ["single", "single-sidecar-proxy"] {
        until(&format!("no traffic for {service}"), || {
            cluster.passing(service).is_ok_and(|passing| passing.is_empty())
        })
        .unwrap();
        // A minute in critical state, and up to half a minute until the agent notices.
        until_within(Duration::from_secs(180), &format!("nothing left of {service}"), || {
            cluster.is_unknown(service).unwrap_or_default()
        })
        .unwrap();
    }
    assert_eq!(namespace.pod("single").unwrap()["status"]["phase"], "Running");
}

#[test]
fn an_application_out_of_memory_restarts_behind_the_same_sidecar() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("memory").unwrap();
    let mut pod = shell_server("greedy", "hello");
    let container = &mut pod["spec"]["containers"][0];
    container["resources"] = json!({"limits": {"memory": "32Mi"}});
    // Process 1 allocates the memory, so the container ends with it.
    container["command"][2] = json!(
        "echo \"$0\" > /tmp/index.html; httpd -p 8080 -h /tmp; \
         until [ -e /tmp/greedy ]; do sleep 0.1; done; exec dd if=/dev/zero of=/dev/null bs=200M"
    );
    start(cluster, &namespace, &pod);

    shell(&namespace, "greedy", "greedy", "touch /tmp/greedy").unwrap();
    assert_eq!(await_restarts(&namespace, "greedy", "greedy", 1).unwrap(), 1);
    assert_eq!(last_end(&namespace, "greedy", "greedy"), "OOMKilled");
    cluster.await_instances("greedy", 1).unwrap();
    await_answer(&namespace, "greedy-client", "hello").unwrap();
    assert_eq!(restarts(&namespace, "greedy", "envoy-sidecar").unwrap(), 0);
}
