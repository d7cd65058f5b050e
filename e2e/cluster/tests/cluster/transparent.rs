//! Transparent pods under a kubelet: the order of their containers, their probes, and
//! what PodSecurity has against them.

use cluster::client::{Cluster, Namespace, text};
use serde_json::{Value, json};

use crate::support::{
    annotate, in_container_mode, job_of, restarts, server, sharing, shell, shell_server,
};

/// A namespace whose label makes its pods transparent.
fn labelled<'c>(cluster: &'c Cluster, name: &str) -> Namespace<'c> {
    let namespace = cluster.namespace(name).unwrap();
    let label = "consul.hashicorp.com/transparent-proxy=true";
    namespace.kubectl(&["label", "namespace", &namespace.name, label]).unwrap();
    namespace
}

/// The cluster IP of a Service for a server, made before it.
fn service(namespace: &Namespace<'_>, name: &str) -> String {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    namespace.apply(&service.to_string()).unwrap();
    namespace.kubectl(&["get", "service", name, "-o=jsonpath={.spec.clusterIP}"]).unwrap()
}

/// A server with probes, which is known by the address of its Service.
fn probed(name: &str, address: &str) -> Value {
    let mut pod = shell_server(name, "hello");
    annotate(&mut pod, &[("transparent-proxy-virtual-address", address)]);
    let container = &mut pod["spec"]["containers"][0];
    let get = json!({"httpGet": {"path": "/index.html", "port": 8080}, "periodSeconds": 1});
    container["readinessProbe"] = get.clone();
    container["livenessProbe"] = get;
    pod
}

/// A client without upstreams.
fn caller(name: &str) -> Value {
    let mut pod = server(name, "");
    let container = &mut pod["spec"]["containers"][0];
    for (key, value) in [("image", json!("tutum/curl")), ("command", json!(["sleep", "1000000"]))] {
        container[key] = value;
    }
    let container = container.as_object_mut().unwrap();
    container.remove("args");
    container.remove("ports");
    pod
}

fn await_hello(namespace: &Namespace<'_>, pod: &str, url: &str) {
    let line = format!("curl --silent --show-error --fail --max-time 3 {url}");
    let mut seen = String::new();
    harness::until(&format!("hello of {url}"), || {
        seen = shell(namespace, pod, pod, &line).unwrap_or_else(|error| error.to_string());
        seen.trim() == "hello"
    })
    .unwrap_or_else(|error| {
        let describe = namespace.kubectl(&["describe", "pods"]).unwrap_or_default();
        panic!("{error}: {seen}\n{describe}")
    });
}

/// The virtual address that Consul allots.
fn consuls(cluster: &Cluster, service: &str) -> String {
    let path = format!("/v1/catalog/service/{service}-sidecar-proxy");
    let found = cluster.consul(&path).unwrap();
    text(&found[0]["ServiceTaggedAddresses"]["consul-virtual"]["Address"]).to_owned()
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    let all = pod["spec"][list].as_array().into_iter().flatten();
    all.map(|container| text(&container["name"]).to_owned()).collect()
}

#[test]
fn transparent_pods_reach_each_other_by_address_in_both_modes() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = labelled(cluster, "transparent");
    let address = service(&namespace, "seen");
    namespace.apply(&probed("seen", &format!("{address}:80")).to_string()).unwrap();
    let native = caller("native");
    let mut beside = in_container_mode(caller("beside"));
    // Before ours it has the pod's network as it is.
    beside["spec"]["initContainers"] = json!([{"name": "early", "image": "busybox", "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", "ip route | grep -q default"]}]);
    for pod in [&native, &beside] {
        let said = namespace.apply(&pod.to_string()).unwrap();
        assert!(said.contains("PodSecurity level"), "no warning: {said}");
    }
    for pod in ["pod/seen", "pod/native", "pod/beside"] {
        namespace.await_condition(pod, "Ready").unwrap();
    }
    cluster.await_instances("seen", 1).unwrap();

    let (init, redirect) = ("consul-connect-inject-init", "consul-connect-inject-redirect");
    let pod = namespace.pod("native").unwrap();
    assert_eq!(names(&pod, "initContainers"), [init, redirect, "envoy-sidecar"]);
    let pod = namespace.pod("beside").unwrap();
    assert_eq!(names(&pod, "initContainers"), ["early", init, redirect]);
    let seen = namespace.pod("seen").unwrap();
    let own = seen["spec"]["containers"].as_array().unwrap();
    assert_eq!(own[0]["readinessProbe"]["httpGet"]["port"], 20300);

    let virtual_address = consuls(cluster, "seen");
    for client in ["native", "beside"] {
        await_hello(&namespace, client, &format!("http://{virtual_address}/"));
        await_hello(&namespace, client, &format!("http://{address}/"));
    }
    let count = "wget -q -O - 'http://127.0.0.1:19000/stats?filter=ssl.handshake$'";
    let handshakes = shell(&namespace, "seen", "seen", count).unwrap();
    assert!(handshakes.lines().any(|line| !line.ends_with(": 0")), "{handshakes}");

    // A pod that is not in the mesh doesn't get in.
    let mut plain = caller("plain");
    annotate(&mut plain, &[("connect-inject", "false")]);
    namespace.apply(&plain.to_string()).unwrap();
    namespace.await_condition("pod/plain", "Ready").unwrap();
    let direct = text(&seen["status"]["podIP"]).to_owned();
    for url in [format!("http://{direct}:8080/"), format!("http://{address}/")] {
        let line = format!("curl --silent --fail --max-time 3 {url}");
        shell(&namespace, "plain", "plain", &line).unwrap_err();
    }
    // The probes' path, and no other, on its own listener.
    let open = format!("curl --silent --fail --max-time 3 http://{direct}:20300");
    assert!(shell(&namespace, "plain", "plain", &format!("{open}/index.html")).is_ok());
    shell(&namespace, "plain", "plain", &format!("{open}/")).unwrap_err();

    an_envoy_that_starts_again_is_used_again(&namespace, "native", &address);
    an_envoy_that_starts_again_is_used_again(&namespace, "beside", &address);
}

/// The rules are the network's.
fn an_envoy_that_starts_again_is_used_again(
    namespace: &Namespace<'_>,
    client: &str,
    address: &str,
) {
    let quit = "curl --silent --request POST http://127.0.0.1:19000/quitquitquit";
    shell(namespace, client, client, quit).unwrap();
    harness::until("a new Envoy", || restarts(namespace, client, "envoy-sidecar") > 0).unwrap();
    await_hello(namespace, client, &format!("http://{address}/"));
}

#[test]
fn a_transparent_job_completes_and_its_init_container_has_the_mesh() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = labelled(cluster, "transparent-job");
    let address = service(&namespace, "answers");
    // By the kubelet's variables.
    namespace.apply(&probed("answers", "service:answers").to_string()).unwrap();
    // By DNS, where there is one: here there is none, and the pod starts without.
    let mut without = probed("unlinked", "service:unlinked");
    without["spec"]["enableServiceLinks"] = json!(false);
    namespace.apply(&without.to_string()).unwrap();
    namespace.await_condition("pod/answers", "Ready").unwrap();
    cluster.await_instances("answers", 1).unwrap();
    let ask = format!(
        "for i in 1 2 3 4 5 6 7 8 9 10; do \
         curl --silent --fail --max-time 3 http://{address}/ && exit 0; sleep 1; done; exit 1"
    );
    let mut pod = caller("once");
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", ask]);
    let mut behind = pod["spec"]["containers"][0].clone();
    behind["name"] = json!("behind");
    pod["spec"]["initContainers"] = json!([behind]);
    namespace.apply(&job_of("once", &pod).to_string()).unwrap();
    namespace.await_condition("job/once", "Complete").unwrap();
    namespace.await_condition("pod/unlinked", "Ready").unwrap();
    let init = ["logs", "unlinked", "--container=consul-connect-inject-init"];
    let said = namespace.kubectl(&init).unwrap();
    assert!(said.contains("Service `unlinked` gives no virtual address"), "{said}");
}

#[test]
fn podsecurity_refuses_a_transparent_pod_and_the_warning_says_what_to_do() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = labelled(cluster, "transparent-baseline");
    let enforce = "pod-security.kubernetes.io/enforce=baseline";
    namespace.kubectl(&["label", "namespace", &namespace.name, enforce]).unwrap();
    let error = namespace.apply(&server("refused", "hello").to_string()).unwrap_err().to_string();
    for part in ["violates PodSecurity \"baseline", "NET_ADMIN", "use a namespace of PodSecurity"] {
        assert!(error.contains(part), "no `{part}` in: {error}");
    }
    // What the warning says: the annotation wins over the namespace's label.
    let mut pod = server("direct", "hello");
    annotate(&mut pod, &[("transparent-proxy", "false")]);
    namespace.apply(&pod.to_string()).unwrap();
    namespace.await_condition("pod/direct", "Ready").unwrap();
}
