//! `connect-cni` on a node with containerd: transparent pods in a namespace at PodSecurity
//! level restricted.

use cluster::client::{Cluster, Namespace, text};
use cluster::node::{CNI_BIN_DIR, CNI_NET_DIR};
use reqwest::Method;
use serde_json::{Value, json};

use crate::helm::Release;
use crate::restricted::careful;
use crate::support::{
    annotate, await_restarts, in_container_mode, ours, shell, shell_server, status,
};
use crate::transparent::{await_hello, caller, consuls, names};

const REDIRECT: &str = "consul-connect-inject-redirect";

/// A pod with a shell that sees the node's CNI directories.
struct Node<'n, 'c> {
    home: &'n Namespace<'c>,
}

impl<'n, 'c> Node<'n, 'c> {
    fn new(home: &'n Namespace<'c>) -> Self {
        let folder = |name: &str, path: &str| json!({"name": name, "hostPath": {"path": path}});
        let mount = |name: &str| json!({"name": name, "mountPath": format!("/host/{name}")});
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node"},
            "spec": {
                "volumes": [folder("net", CNI_NET_DIR), folder("bin", CNI_BIN_DIR)],
                "containers": [{
                    "name": "node", "image": "busybox", "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "1000000"], "volumeMounts": [mount("net"), mount("bin")],
                }],
            },
        });
        home.apply(&pod.to_string()).unwrap();
        home.await_condition("pod/node", "Ready").unwrap();
        Self { home }
    }

    fn run(&self, line: &str) -> String {
        shell(self.home, "node", "node", line).unwrap()
    }

    fn configuration(&self) -> String {
        self.run("cat /host/net/10-pods.conflist")
    }

    fn await_entry(&self) {
        let mut seen = String::new();
        harness::until("the plugin's entry", || {
            seen = self.configuration();
            seen.contains("connect-cni")
        })
        .unwrap_or_else(|error| panic!("{error}: {seen}"));
    }
}

/// Runs a server and a client that comply with `restricted`, and has one call the other.
fn server_and_client(namespace: &Namespace<'_>, cluster: &Cluster, mode: fn(Value) -> Value) {
    for pod in [shell_server("told", "hello"), caller("asks")] {
        namespace.apply(&mode(careful(pod)).to_string()).unwrap();
    }
    for pod in ["pod/told", "pod/asks"] {
        namespace.await_condition(pod, "Ready").unwrap_or_else(|error| {
            panic!("{error}\n{}", namespace.kubectl(&["describe", "pods"]).unwrap_or_default())
        });
    }
    cluster.await_instances("told", 1).unwrap();
    let told = namespace.pod("told").unwrap();
    assert_eq!(names(&told, "initContainers")[0], REDIRECT);
    assert!(!told["spec"].to_string().contains("NET_ADMIN"), "{told:#}");
    let address = consuls(cluster, "told");
    await_hello(namespace, "asks", &format!("http://{address}/"));
    // By mutual TLS; a direct connection arrives at Envoy, too, and is rejected.
    let count = "wget -q -O - 'http://127.0.0.1:19000/stats?filter=ssl.handshake$'";
    let handshakes = shell(namespace, "told", "told", count).unwrap();
    assert!(handshakes.lines().any(|line| !line.ends_with(": 0")), "{handshakes}");
    let direct = text(&told["status"]["podIP"]);
    let line = format!("curl --silent --fail --max-time 3 http://{direct}:8080/");
    shell(namespace, "asks", "asks", &line).unwrap_err();
    for pod in ["told", "asks"] {
        namespace.kubectl(&["delete", "pod", pod, "--wait"]).unwrap();
    }
}

#[test]
fn connect_cni_redirects_transparent_pods_in_a_restricted_namespace() {
    let Some((cluster, _shared)) = ours() else { return };
    let home = cluster.namespace("cni").unwrap();
    let namespace = cluster.namespace("cni-restricted").unwrap();
    let enforce = "pod-security.kubernetes.io/enforce=restricted";
    let transparent = "consul.hashicorp.com/transparent-proxy=true";
    namespace.kubectl(&["label", "namespace", &namespace.name, enforce, transparent]).unwrap();
    let node = Node::new(&home);
    let before = node.configuration();
    let binaries = node.run("ls /host/bin");
    let release = Release::new(cluster, &home).unwrap();
    release.adopt(&namespace).unwrap();
    let values = |log: &str| {
        json!({"cni": {
            "enabled": true, "logLevel": log, "cniBinDir": CNI_BIN_DIR, "cniNetDir": CNI_NET_DIR,
            "resources": {"requests": {"cpu": "1m"}},
        }})
    };
    release.apply("install", &values("info")).unwrap();
    node.await_entry();

    server_and_client(&namespace, cluster, |pod| pod);
    server_and_client(&namespace, cluster, in_container_mode);

    // The network's own installer writes its configuration again.
    node.run(&format!("printf %s '{}' > /host/net/10-pods.conflist", before.trim_end()));
    node.await_entry();
    server_and_client(&namespace, cluster, |pod| pod);

    // In a rollout of the DaemonSet, the old pod leaves the plugin to the new one.
    let old = node.configuration();
    node.run("(while sleep 0.02; do grep -q connect-cni /host/net/10-pods.conflist && test -x /host/bin/connect-cni || echo missing; done) >/tmp/gaps 2>&1 &");
    release.apply("upgrade", &values("debug")).unwrap();
    harness::until("the new pod's entry", || node.configuration() != old).unwrap();
    rolled_out(&home);
    assert_eq!(node.run("cat /tmp/gaps"), "");
    server_and_client(&namespace, cluster, |pod| pod);

    // On a node without the plugin, the pod does not run.
    let mut untouched = careful(shell_server("untouched", "hello"));
    untouched["metadata"]["labels"]["app"] = json!("untouched");
    release.apply("upgrade", &json!({"cni": {"enabled": false}, "transparentProxy": {}})).unwrap();
    harness::until("the end of the entry", || node.configuration() == before).unwrap();
    harness::until("the end of the binary", || node.run("ls /host/bin") == binaries).unwrap();
    assert_eq!(node.run("ls /host/net").trim(), "10-pods.conflist");
    annotate(&mut untouched, &[("transparent-proxy-by", "cni")]);
    namespace.apply(&untouched.to_string()).unwrap();
    await_restarts(&namespace, "untouched", REDIRECT, 1).unwrap();
    let state = status(&namespace, "untouched", REDIRECT).unwrap();
    let ended = &state["lastState"]["terminated"];
    let said = text(&ended["message"]);
    assert!(said.contains("connect-cni was not in the node's CNI configuration"), "{state:#}");
    let untouched = namespace.pod("untouched").unwrap();
    let own = &untouched["status"]["containerStatuses"][0];
    assert_eq!((&own["started"], &own["restartCount"]), (&json!(false), &json!(0)), "{own:#}");

    an_invalid_annotation_is_an_event(cluster, &release, &namespace, &node, &values("info"));
}

/// Waits until the DaemonSet's old pod is gone.
fn rolled_out(home: &Namespace<'_>) {
    home.kubectl(&["rollout", "status", "daemonset", "--timeout=120s"]).unwrap();
    let mut seen = String::new();
    harness::until("one pod of the DaemonSet", || {
        let selector = "--selector=app.kubernetes.io/component=cni";
        seen = home.kubectl(&["get", "pods", selector, "--output=name"]).unwrap_or_default();
        seen.lines().count() == 1
    })
    .unwrap_or_else(|error| panic!("{error}: {seen}"));
}

fn an_invalid_annotation_is_an_event(
    cluster: &Cluster,
    release: &Release<'_>,
    namespace: &Namespace<'_>,
    node: &Node<'_, '_>,
    values: &Value,
) {
    release.apply("upgrade", values).unwrap();
    node.await_entry();
    let mut pod = careful(shell_server("forged", "hello"));
    pod["metadata"]["annotations"] = json!({
        "consul.hashicorp.com/connect-inject": "false",
        "consul.hashicorp.com/transparent-proxy-redirect": "{\"inbound\": 1}",
    });
    namespace.apply(&pod.to_string()).unwrap();
    let path = format!("/api/v1/namespaces/{}/events", namespace.name);
    let mut seen = String::new();
    harness::until("an event that names the annotation", || {
        seen = cluster.request(Method::GET, &path, None).unwrap_or_default().to_string();
        seen.contains("transparent-proxy-redirect`: missing field `outbound`")
    })
    .unwrap_or_else(|error| panic!("{error}: {seen}"));
}
