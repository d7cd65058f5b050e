//! Transparent pods under a kubelet: the order of their containers, their probes, and
//! what PodSecurity has against them.

use cluster::client::{Cluster, Namespace, text};
use cluster::images;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    Load, annotate, await_restarts, in_container_mode, job_of, ours, restarts, server, set_of,
    sharing, shell, shell_server,
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
    // Patience for a busy machine: what is slow is not restarted.
    container["livenessProbe"]["timeoutSeconds"] = json!(30);
    container["startupProbe"] =
        json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 60});
    pod
}

/// A client without upstreams.
pub(crate) fn caller(name: &str) -> Value {
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

pub(crate) fn await_hello(namespace: &Namespace<'_>, pod: &str, url: &str) {
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
pub(crate) fn consuls(cluster: &Cluster, service: &str) -> String {
    let path = format!("/v1/catalog/service/{service}-sidecar-proxy");
    let mut address = String::new();
    harness::until(&format!("the virtual address of {service}"), || {
        let found = cluster.consul(&path).unwrap_or_default();
        text(&found[0]["ServiceTaggedAddresses"]["consul-virtual"]["Address"])
            .clone_into(&mut address);
        !address.is_empty()
    })
    .unwrap();
    address
}

pub(crate) fn names(pod: &Value, list: &str) -> Vec<String> {
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
    await_hello(&namespace, "plain", &format!("http://{direct}:20300/index.html"));
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
    await_restarts(namespace, client, "envoy-sidecar", 1).unwrap();
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
fn a_tcp_probe_fails_where_the_application_does_not_listen() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = labelled(cluster, "transparent-probe");
    let mut pod = shell_server("mute", "hello");
    pod["spec"]["containers"][0]["livenessProbe"] =
        json!({"tcpSocket": {"port": 8081}, "periodSeconds": 1, "failureThreshold": 2});
    namespace.apply(&pod.to_string()).unwrap();
    namespace.await_condition("pod/mute", "Initialized").unwrap();
    await_restarts(&namespace, "mute", "mute", 1).unwrap_or_else(|error| {
        panic!("{error}: {:#}", namespace.pod("mute").unwrap_or_default()["status"])
    });
}

/// A nameserver that stands for the cluster DNS and answers with the names it was told.
struct Names<'n, 'c> {
    namespace: &'n Namespace<'c>,
    address: String,
}

impl<'n, 'c> Names<'n, 'c> {
    fn start(namespace: &'n Namespace<'c>) -> Self {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "nameserver"},
            "spec": {"containers": [{
                "name": "nameserver", "image": images::NAMESERVER,
                "imagePullPolicy": "IfNotPresent", "resources": {"requests": {"cpu": "10m"}},
            }]},
        });
        namespace.apply(&pod.to_string()).unwrap();
        namespace.await_condition("pod/nameserver", "Ready").unwrap();
        let pod = namespace.pod("nameserver").unwrap();
        Self { namespace, address: text(&pod["status"]["podIP"]).to_owned() }
    }

    /// Replaces the names it answers with; they are relative to the namespace.
    fn know(&self, names: &[(&str, &str)]) {
        let domain = format!("{}.svc.cluster.local", self.namespace.name);
        let lines = names.iter().map(|(name, address)| format!("{name}.{domain} {address}"));
        let lines = lines.collect::<Vec<_>>().join("\n");
        // Renamed, so that no query reads half of the file.
        let line = format!("echo '{lines}' > /tmp/new && mv /tmp/new /tmp/names");
        shell(self.namespace, "nameserver", "nameserver", &line).unwrap();
    }

    /// Configures a pod to query it, as the kubelet configures pods to query the cluster DNS.
    fn serve(&self, pod: &mut Value) {
        let namespace = &self.namespace.name;
        pod["spec"]["dnsPolicy"] = json!("None");
        pod["spec"]["dnsConfig"] = json!({
            "nameservers": [self.address],
            "searches":
                [format!("{namespace}.svc.cluster.local"), "svc.cluster.local", "cluster.local"],
            "options": [{"name": "ndots", "value": "5"}],
        });
    }
}

#[test]
fn names_of_consul_and_of_the_cluster_resolve_through_the_sidecar() {
    let Some((cluster, _shared)) = ours() else { return };
    let namespace = labelled(cluster, "transparent-names");
    let names = Names::start(&namespace);
    let first = service(&namespace, "named");
    names.know(&[("named", &first)]);
    let mut server = probed("named", "service:named");
    // Without links it asks DNS for the cluster IP, as a pod created before the Service does.
    server["spec"]["enableServiceLinks"] = json!(false);
    names.serve(&mut server);
    namespace.apply(&server.to_string()).unwrap();
    let mut native = caller("native");
    // The rules name Envoy's user by its number inside the user namespace.
    native["spec"]["hostUsers"] = json!(false);
    let beside = in_container_mode(caller("beside"));
    for mut client in [native, beside] {
        annotate(&mut client, &[("consul-dns", "true")]);
        names.serve(&mut client);
        namespace.apply(&client.to_string()).unwrap();
    }
    for pod in ["pod/named", "pod/native", "pod/beside"] {
        namespace.await_condition(pod, "Ready").unwrap();
    }
    cluster.await_instances("named", 1).unwrap();
    for client in ["native", "beside"] {
        await_hello(&namespace, client, "http://named.virtual.consul/");
        // The cluster's name resolves by the search list to the cluster IP.
        await_hello(&namespace, client, "http://named/");
        let missing = "curl --silent --max-time 5 http://missing.virtual.consul/";
        let error = shell(&namespace, client, client, missing).unwrap_err().to_string();
        let is_it = error.lines().any(|line| line.ends_with("exit code 6"));
        assert!(is_it, "not `Couldn't resolve host`: {error}");
    }

    // A Service created again has another address, and the pods stay.
    namespace.kubectl(&["delete", "service", "named"]).unwrap();
    let second = service(&namespace, "named");
    assert_ne!(first, second);
    names.know(&[("named", &second)]);
    harness::until("the new address", || {
        let proxies = cluster.consul("/v1/catalog/service/named-sidecar-proxy");
        proxies.is_ok_and(|found| {
            found[0]["ServiceTaggedAddresses"]["virtual"]["Address"] == second.as_str()
        })
    })
    .unwrap();
    for client in ["native", "beside"] {
        await_hello(&namespace, client, "http://named/");
    }
    assert_eq!(restarts(&namespace, "named", "envoy-sidecar").unwrap(), 0);
}

#[test]
fn no_request_fails_in_a_rollout_of_a_transparent_service() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = labelled(cluster, "transparent-rollout");
    let pod = probed("flowing", "none");
    let mut deployment = set_of("Deployment", &pod, 2);
    deployment["spec"]["strategy"] = json!({"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}});
    namespace.apply(&deployment.to_string()).unwrap();
    namespace.apply(&caller("flowing-client").to_string()).unwrap();
    namespace.await_rollout("deployment/flowing").unwrap();
    namespace.await_condition("pod/flowing-client", "Ready").unwrap();
    cluster.await_instances("flowing", 2).unwrap();
    let url = format!("http://{}/", consuls(cluster, "flowing"));
    await_hello(&namespace, "flowing-client", &url);
    let load = Load::start_at(&namespace, "flowing-client", &url);
    for _ in 0..2 {
        namespace.kubectl(&["rollout", "restart", "deployment/flowing"]).unwrap();
        namespace.await_rollout("deployment/flowing").unwrap();
        cluster.await_instances("flowing", 2).unwrap();
    }
    load.end();
}

/// Databases call each other by name or address. Their Service is headless, so no
/// virtual address stands for any of them.
#[test]
fn pods_of_a_statefulset_call_each_other_where_that_is_allowed() {
    let Some((cluster, _shared)) = ours() else { return };
    let namespace = labelled(cluster, "transparent-set");
    let names = Names::start(&namespace);
    let headless = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "store"},
        "spec": {"clusterIP": "None", "selector": {"app": "store"}, "ports": [{"port": 8080}]},
    });
    namespace.apply(&headless.to_string()).unwrap();
    let mut pod = probed("store", "service:store");
    names.serve(&mut pod);
    pod["metadata"]["annotations"]["consul.hashicorp.com/transparent-proxy-exclude-inbound-ports"] =
        json!("9090");
    let container = &mut pod["spec"]["containers"][0];
    // This image has both curl and httpd. One httpd serves the service's port, the other
    // the port by which the pods call each other.
    container["image"] = json!("tutum/curl");
    let line = "echo \"$0\" > /tmp/index.html; trap 'exit 0' TERM; \
                httpd -p 9090 -h /tmp; httpd -f -p 8080 -h /tmp & wait";
    container["command"] = json!(["sh", "-c", line]);
    let mut set = set_of("StatefulSet", &pod, 2);
    set["spec"]["podManagementPolicy"] = json!("Parallel");
    namespace.apply(&set.to_string()).unwrap();
    namespace.await_rollout("statefulset/store").unwrap();
    cluster.await_instances("store", 2).unwrap();
    let address = |pod: &str| text(&namespace.pod(pod).unwrap()["status"]["podIP"]).to_owned();
    let addresses = ["store-0", "store-1"].map(address);
    names.know(&[("store-0.store", &addresses[0]), ("store-1.store", &addresses[1])]);

    let get = |pod: &str, container: &str, url: &str| {
        let line = format!("curl --silent --fail --max-time 3 {url}");
        shell(&namespace, pod, container, &line).map(|answer| answer.trim().to_owned())
    };
    let by_store = |url: &str| get("store-0", "store", url);
    // A pod reaches itself, and the other by the excluded port.
    for url in ["http://store-0.store:8080/", "http://store-1.store:9090/"] {
        harness::until(url, || by_store(url).is_ok_and(|answer| answer == "hello")).unwrap();
    }
    // No service is its own upstream: neither by its virtual address nor by a pod's.
    by_store(&format!("http://{}/", consuls(cluster, "store"))).unwrap_err();
    by_store("http://store-1.store:8080/").unwrap_err();

    // Another service calls each pod by its address once DialedDirectly allows it.
    let mut outside = caller("outside");
    names.serve(&mut outside);
    namespace.apply(&outside.to_string()).unwrap();
    namespace.await_condition("pod/outside", "Ready").unwrap();
    get("outside", "outside", "http://store-1.store:8080/").unwrap_err();
    let dialed = json!({
        "Kind": "service-defaults", "Name": "store",
        "TransparentProxy": {"DialedDirectly": true},
    });
    cluster.consul_request(Method::PUT, "/v1/config", Some(&dialed)).unwrap();
    let _configured = Configured { cluster, path: "/v1/config/service-defaults/store" };
    await_hello(&namespace, "outside", "http://store-1.store:8080/");
    by_store("http://store-1.store:8080/").unwrap_err();
}

/// A configuration entry, which belongs to no namespace.
struct Configured<'c> {
    cluster: &'c Cluster,
    path: &'static str,
}

impl Drop for Configured<'_> {
    fn drop(&mut self) {
        let _ = self.cluster.consul_request(Method::DELETE, self.path, None);
    }
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
    // The annotation wins over the namespace's label.
    let mut pod = server("direct", "hello");
    annotate(&mut pod, &[("transparent-proxy", "false")]);
    namespace.apply(&pod.to_string()).unwrap();
    namespace.await_condition("pod/direct", "Ready").unwrap();
}
