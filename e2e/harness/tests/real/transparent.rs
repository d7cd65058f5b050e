//! Transparent pods: which connections go through their sidecars and which bypass them, and
//! that each exclusion works. Each case has a counterexample.

use std::process::Command;

use harness::kubelet::Pod;
use harness::process::Process;
use harness::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::mesh::{Mesh, admin, client, server, started};

/// The cluster IP of the service: an address that no host has.
const CLUSTER_IP: &str = "10.96.0.10";

/// Address of a host outside of the mesh: in the node's network, but not the node's own
/// address, which is never redirected.
const OUTSIDE: &str = "10.99.0.2";

/// Annotations of a transparent pod.
fn transparent(more: &Value) -> Value {
    let mut annotations = json!({"transparent-proxy": "true"});
    json_patch::merge(&mut annotations, more);
    annotations
}

/// A transparent server of `api`, also with the cluster IP as virtual address.
fn transparent_server() -> Value {
    let address = format!("{CLUSTER_IP}:80");
    let annotations = transparent(&json!({"transparent-proxy-virtual-address": address}));
    server("api-1", &annotations, &Value::Null)
}

/// A transparent client without upstreams: container `web` of user 0, and `other` of
/// user 1000.
fn transparent_client(name: &str, more: &Value) -> Value {
    let mut annotations = transparent(&json!({"connect-service-upstreams": null}));
    json_patch::merge(&mut annotations, more);
    let mut pod = client(&annotations);
    pod["metadata"]["name"] = name.into();
    if more["connect-service-upstreams"].is_null() {
        let key = "consul.hashicorp.com/connect-service-upstreams";
        pod["metadata"]["annotations"].as_object_mut().unwrap().remove(key);
    }
    let mut other = pod["spec"]["containers"][0].clone();
    other["name"] = "other".into();
    other["securityContext"] = json!({"runAsUser": 1000, "runAsGroup": 1000});
    pod["spec"]["containers"].as_array_mut().unwrap().push(other);
    pod
}

/// Runs curl in a container. Returns the body, or curl's exit code.
fn curl_in(pod: &Pod<'_>, container: &str, url: &str) -> Result<String, i32> {
    let command = ["curl", "-sS", "-g", "--max-time", "3", url];
    let output = pod.exec(container, &command).unwrap();
    match output.status.code() {
        Some(0) => Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned()),
        code => Err(code.unwrap_or(-1)),
    }
}

fn curl(pod: &Pod<'_>, url: &str) -> Result<String, i32> {
    curl_in(pod, "web", url)
}

fn await_curl(pod: &Pod<'_>, url: &str, expected: &str) {
    let mut seen = Err(0);
    let waited = until(&format!("{expected} of {url}"), || {
        seen = curl(pod, url);
        seen.as_deref() == Ok(expected)
    });
    waited.unwrap_or_else(|error| {
        let log = pod.log("envoy-sidecar");
        panic!("{error}; last: {seen:?}\n{}", harness::process::tail(&log, 30))
    });
}

/// The virtual address that Consul assigns to a service.
fn virtual_address(mesh: &Mesh, service: &str) -> String {
    let mut address = String::new();
    until("a virtual address", || {
        let found = mesh.node.get(&format!("/v1/catalog/service/{service}-sidecar-proxy")).unwrap();
        let addresses = &found[0]["ServiceTaggedAddresses"]["consul-virtual"];
        addresses["Address"].as_str().unwrap_or_default().clone_into(&mut address);
        !address.is_empty()
    })
    .unwrap();
    address
}

fn outside(mesh: &Mesh, port: u16) -> Process {
    let program = mesh.node.parts().harness("http-echo");
    let args = ["-text=outside".to_owned(), format!("-listen={OUTSIDE}:{port}")];
    mesh.node.start(&program, &args).unwrap()
}

/// The sum of Envoy's statistics that match the filter.
fn counted(pod: &Pod<'_>, filter: &str) -> u64 {
    let stats = admin(pod, &format!("/stats?filter={filter}"));
    let counts = stats.lines().filter_map(|line| line.rsplit_once(": ")?.1.parse::<u64>().ok());
    counts.sum()
}

#[test]
fn a_service_is_reached_at_its_virtual_address_and_cluster_ip_over_mutual_tls() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let server = started(&mesh.node, &mesh.injector, &transparent_server());
    let client = started(&mesh.node, &mesh.injector, &transparent_client("web", &json!({})));
    let consuls = virtual_address(&mesh, "api");
    println!("Consul's virtual address of api is {consuls}");
    // Filter chains match addresses, not ports.
    for url in [
        format!("http://{consuls}/"),
        format!("http://{consuls}:8080/"),
        format!("http://{CLUSTER_IP}:80/"),
    ] {
        let before = counted(&server, "ssl.handshake$");
        await_curl(&client, &url, "api-1");
        assert!(counted(&server, "ssl.handshake$") > before, "{url}: not over TLS");
    }
    assert_eq!(curl_in(&client, "other", &format!("http://{CLUSTER_IP}/")).unwrap(), "api-1");

    // Plain text is rejected, from outside and from a pod of the mesh.
    let direct = format!("http://{}:8080/", server.ip);
    mesh.node.request(reqwest::Method::GET, &direct, None).unwrap_err();
    curl(&client, &direct).unwrap_err();

    mesh.intend(&json!({"Action": "deny"}));
    until("the deny", || curl(&client, &format!("http://{consuls}/")).is_err()).unwrap();
    mesh.intend(&json!({"Action": "allow"}));
    await_curl(&client, &format!("http://{consuls}/"), "api-1");

    // The registration is stable: nothing was registered again.
    let proxy = "/v1/agent/service/default_api-1_api-sidecar-proxy";
    let entry = mesh.node.get(proxy).unwrap();
    assert_eq!(entry["Proxy"]["Mode"], "transparent");
    assert_eq!(entry["TaggedAddresses"]["virtual"], json!({"Address": CLUSTER_IP, "Port": 80}));
    assert!(!server.log("envoy-sidecar").contains("registered again"));
}

#[test]
fn only_excluded_connections_bypass_the_sidecar() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let _outside = [7000, 7001].map(|port| outside(&mesh, port));
    let [redirected, excluded] = [7000, 7001].map(|port| format!("http://{OUTSIDE}:{port}/"));
    let by_port_and_user = json!({
        "transparent-proxy-exclude-outbound-ports": "7001",
        "transparent-proxy-exclude-uids": "1000",
    });
    let web = transparent_client("web", &by_port_and_user);
    let web = started(&mesh.node, &mesh.injector, &web);
    let by_cidr = json!({"transparent-proxy-exclude-outbound-cidrs": format!("{OUTSIDE}/32")});
    let second = started(&mesh.node, &mesh.injector, &transparent_client("web-2", &by_cidr));

    // Connections to hosts outside of the mesh are passed through by Envoy.
    let passed = || counted(&web, "original-destination.*upstream_cx_total$");
    let before = passed();
    await_curl(&web, &redirected, "outside");
    assert!(passed() > before, "it went past Envoy");
    let before = passed();
    assert_eq!(curl(&web, &excluded).unwrap(), "outside");
    assert_eq!(passed(), before, "it went through Envoy");

    mesh.configure(&json!({"Kind": "mesh", "TransparentProxy": {"MeshDestinationsOnly": true}}));
    until("MeshDestinationsOnly", || curl(&web, &redirected).is_err()).unwrap();
    assert_eq!(curl(&web, &excluded).unwrap(), "outside", "an excluded port");
    assert_eq!(curl_in(&web, "other", &redirected).unwrap(), "outside", "an excluded user");
    curl_in(&web, "web", &redirected).unwrap_err();
    assert_eq!(curl(&second, &redirected).unwrap(), "outside", "an excluded address");
    curl_in(&second, "other", &format!("http://{}:20000/", web.ip)).unwrap_err();
    // The node's agent is excluded by its address.
    assert!(curl(&web, "http://10.99.0.1:8500/v1/status/leader").is_ok());
}

#[test]
fn an_excluded_inbound_port_and_an_exposed_path_are_open_and_nothing_else() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let mut pod = server("api-1", &transparent(&json!({})), &Value::Null);
    let container = &mut pod["spec"]["containers"][0];
    container["readinessProbe"] = json!({"httpGet": {"path": "/ready", "port": 8080}});
    let further = json!({
        "name": "admin", "image": "hashicorp/http-echo:latest",
        "args": ["-text=admin", "-listen=:9100"], "ports": [{"containerPort": 9100}],
    });
    pod["spec"]["containers"].as_array_mut().unwrap().push(further);
    pod["metadata"]["annotations"]["consul.hashicorp.com/connect-service-port"] = "8080".into();
    let key = "consul.hashicorp.com/transparent-proxy-exclude-inbound-ports";
    pod["metadata"]["annotations"][key] = "9100".into();
    let injected = harness::tutorial::injected_pod(&mesh.node, &mesh.injector, &pod).unwrap();
    let containers = injected["spec"]["containers"].as_array().unwrap();
    let api = containers.iter().find(|container| container["name"] == "api").unwrap();
    assert_eq!(api["readinessProbe"]["httpGet"]["port"], 20300);
    let server = started(&mesh.node, &mesh.injector, &pod);

    // From the node, like the kubelet's probes.
    let status = |port: u16, path: &str| {
        let url = format!("http://{}:{port}{path}", server.ip);
        let args = ["-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "3", &url];
        let network = format!("--net={}", mesh.node.network().display());
        let output = Command::new("nsenter").arg(network).arg("curl").args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    until("the exposed path", || status(20300, "/ready") == "200").unwrap();
    assert_eq!(status(20300, "/other"), "404");
    assert_eq!(status(8080, "/ready"), "000");
    assert_eq!(status(9100, "/"), "200");
}

/// Envoy accepts connections to any port, so a connection proves nothing; the sidecar runs
/// the probe.
#[test]
fn a_tcp_probe_succeeds_only_if_the_application_listens() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let mut pod = server("api-1", &transparent(&json!({})), &Value::Null);
    let container = &mut pod["spec"]["containers"][0];
    container["readinessProbe"] = json!({"tcpSocket": {"port": 8080}});
    container["livenessProbe"] = json!({"tcpSocket": {"port": 9999}});
    let server = started(&mesh.node, &mesh.injector, &pod);
    let curl = |args: &[&str]| {
        let network = format!("--net={}", mesh.node.network().display());
        let mut command = Command::new("nsenter");
        command.arg(network).args(["curl", "-s", "--max-time", "3"]).args(args);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let status = |page: &str| {
        let url = format!("http://{}:20700/api/{page}", server.ip);
        curl(&["-o", "/dev/null", "-w", "%{http_code}", &url]).1
    };
    until("the application", || status("readinessProbe") == "200").unwrap();
    assert_eq!(status("livenessProbe"), "503");
    // From outside, Envoy accepts connections to both ports.
    for port in [8080, 9999] {
        let url = format!("http://{}:{port}/", server.ip);
        assert_ne!(curl(&[&url]).0, Some(7), "port {port}: refused");
    }
}

/// A gRPC probe goes to an HTTP/2 listener.
#[test]
fn a_grpc_probe_reaches_the_application() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let mut pod = server("api-1", &transparent(&json!({})), &Value::Null);
    let container = &mut pod["spec"]["containers"][0];
    container["image"] = harness::runtime::image::APPLICATION.into();
    container["args"] = json!(["0.0.0.0:8080"]);
    container["livenessProbe"] = json!({"grpc": {"port": 8080}});
    let server = started(&mesh.node, &mesh.injector, &pod);
    let url = format!("http://{}:20400/grpc.health.v1.Health/Check", server.ip);
    let call = || {
        let network = format!("--net={}", mesh.node.network().display());
        let mut command = Command::new("nsenter");
        command.arg(network).args(["curl", "-s", "-i", "--max-time", "3"]);
        command.args(["--http2-prior-knowledge", "-X", "POST", "--data-binary", "abc"]);
        command.args(["-H", "content-type: application/grpc", "-H", "te: trailers", &url]);
        String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
    };
    let mut seen = String::new();
    until("the answer to a gRPC probe", || {
        seen = call();
        seen.starts_with("HTTP/2 200")
    })
    .unwrap_or_else(|error| panic!("{error}: {seen}"));
}

#[test]
fn a_pod_whose_envoy_is_stopped_has_no_connections() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let _outside = outside(&mesh, 7000);
    let url = format!("http://{OUTSIDE}:7000/");
    let web = started(&mesh.node, &mesh.injector, &transparent_client("web", &json!({})));
    await_curl(&web, &url, "outside");
    let is_envoy = |pid: &i32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim() == "envoy"
    };
    let envoy = web.processes().into_iter().find(is_envoy).unwrap();
    kill(Pid::from_raw(envoy), Signal::SIGSTOP).unwrap();
    // The kernel accepts the connection, and nothing answers.
    assert_eq!(curl(&web, &url), Err(28));
    kill(Pid::from_raw(envoy), Signal::SIGCONT).unwrap();
    await_curl(&web, &url, "outside");
    // The rules belong to the network namespace and survive a restart of the container.
    kill(Pid::from_raw(envoy), Signal::SIGKILL).unwrap();
    until("Envoy to be gone", || !web.processes().contains(&envoy)).unwrap();
    // Its threads may still hold the listener for a moment.
    until("a refused connection", || {
        let answer = curl(&web, &url);
        assert!(answer.is_err(), "past it: {answer:?}");
        answer == Err(7)
    })
    .unwrap();
}

#[test]
fn ipv6_is_closed_unless_it_is_excluded() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let ip = |network: &std::path::Path, line: &str| {
        let network = format!("--net={}", network.display());
        let words = line.split(' ');
        let output = Command::new("nsenter").arg(network).arg("ip").args(words).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    };
    ip(&mesh.node.network(), "addr add fd00:99::2/64 dev pods nodad");
    let program = mesh.node.parts().harness("http-echo");
    let args = ["-text=outside".to_owned(), "-listen=[fd00:99::2]:7000".to_owned()];
    let _outside = mesh.node.start(&program, &args).unwrap();
    let url = "http://[fd00:99::2]:7000/";
    let closed = started(&mesh.node, &mesh.injector, &transparent_client("web", &json!({})));
    ip(&closed.network(), "addr add fd00:99::11/64 dev eth0 nodad");
    curl(&closed, url).unwrap_err();
    let open = json!({"transparent-proxy-exclude-outbound-cidrs": "::/0"});
    let open = started(&mesh.node, &mesh.injector, &transparent_client("web-2", &open));
    ip(&open.network(), "addr add fd00:99::12/64 dev eth0 nodad");
    await_curl(&open, url, "outside");
    // Inbound: the public listener has an IPv4 address.
    let args = [
        format!("--net={}", closed.network().display()),
        program.display().to_string(),
        "-text=inside".to_owned(),
        "-listen=[::]:9999".to_owned(),
    ];
    let _inside = mesh.node.start("nsenter".as_ref(), &args).unwrap();
    await_curl(&closed, "http://[::1]:9999/", "inside");
    for host in [&closed.ip, "[fd00:99::11]"] {
        curl(&open, &format!("http://{host}:9999/")).unwrap_err();
    }
}

#[test]
fn an_explicit_upstream_works_in_a_transparent_pod() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let _server = started(&mesh.node, &mesh.injector, &transparent_server());
    let upstream = json!({"connect-service-upstreams": "api:1234"});
    let web = started(&mesh.node, &mesh.injector, &transparent_client("web", &upstream));
    await_curl(&web, "http://127.0.0.1:1234/", "api-1");
    // Only the upstream reaches the service, which has no virtual address here.
    curl(&web, &format!("http://{CLUSTER_IP}/")).unwrap_err();
}

/// In native mode, the user's init containers start after Envoy and can use the mesh.
#[test]
fn an_init_container_after_a_native_sidecar_can_use_the_mesh() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let _server = started(&mesh.node, &mesh.injector, &transparent_server());
    let native = json!({"sidecar-mode": "native"});
    let mut pod = transparent_client("web", &native);
    let retrying = "for i in 1 2 3 4 5 6 7 8 9 10; do \
                    curl -sS --max-time 3 http://10.96.0.10/ && exit 0; sleep 1; done; exit 1";
    pod["spec"]["initContainers"] = json!([{
        "name": "migrate", "image": "tutum/curl:latest", "command": ["sh", "-c", retrying],
    }]);
    let web = started(&mesh.node, &mesh.injector, &pod);
    assert!(web.log("migrate").contains("api-1"), "{}", web.log("migrate"));
    assert_eq!(curl(&web, "http://10.96.0.10/").unwrap(), "api-1");
}

/// Each of several services is reachable through its own sidecar only.
#[test]
fn a_pod_of_two_services_is_redirected_by_port() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let two = json!({"connect-service": "api,api-admin", "connect-service-port": "8080,9090"});
    let mut pod = server("api-1", &json!({}), &Value::Null);
    for (key, value) in transparent(&two).as_object().unwrap() {
        pod["metadata"]["annotations"][format!("consul.hashicorp.com/{key}")] = value.clone();
    }
    let further = json!({
        "name": "admin", "image": "hashicorp/http-echo:latest",
        "args": ["-text=admin", "-listen=:9090"],
    });
    pod["spec"]["containers"].as_array_mut().unwrap().push(further);
    let server = started(&mesh.node, &mesh.injector, &pod);
    let web = started(&mesh.node, &mesh.injector, &transparent_client("web", &json!({})));
    for (service, text) in [("api", "api-1"), ("api-admin", "admin")] {
        await_curl(&web, &format!("http://{}/", virtual_address(&mesh, service)), text);
    }
    for port in [8080, 9090] {
        let direct = format!("http://{}:{port}/", server.ip);
        mesh.node.request(reqwest::Method::GET, &direct, None).unwrap_err();
    }
}

/// Uses the C library's resolver and the pod's nameserver, like most applications.
#[test]
fn a_service_is_reached_by_its_name() {
    let Some(parts) = harness::parts::Parts::find_or_skip() else { return };
    let mesh = Mesh::start(parts, &json!({"ports": {"dns": 8600}}));
    let _server = started(&mesh.node, &mesh.injector, &transparent_server());
    let dns = json!({"consul-dns": "true"});
    let web = started(&mesh.node, &mesh.injector, &transparent_client("web", &dns));
    await_curl(&web, "http://api.virtual.consul/", "api-1");
    assert_eq!(curl_in(&web, "other", "http://api.virtual.consul/").unwrap(), "api-1");
    // Not without DNS redirection.
    let without = transparent_client("web-2", &json!({}));
    let without = started(&mesh.node, &mesh.injector, &without);
    assert_eq!(curl(&without, "http://api.virtual.consul/"), Err(6), "no such name");
}

#[test]
fn status_reports_a_shared_virtual_address_and_plain_text() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let _server = started(&mesh.node, &mesh.injector, &transparent_server());
    let upstream = json!({"connect-service-upstreams": "api:1234"});
    let _web = started(&mesh.node, &mesh.injector, &transparent_client("web", &upstream));
    let told = || {
        let program = mesh.node.parts().bins.join("connect-register");
        let address = format!("--http-addr=http://{}:8500", mesh.node.ip());
        let args = ["status", "--output=json", &address];
        let told = harness::process::run(&program.to_string_lossy(), &args).unwrap();
        let told: Value = serde_json::from_str(&told).unwrap();
        let findings = told["diagnosis"].as_array().unwrap().clone();
        let found = findings.iter().filter(|found| found["what"] == "transparent proxy");
        let mut reasons: Vec<String> =
            found.map(|found| found["reason"].as_str().unwrap_or_default().to_owned()).collect();
        reasons.sort_unstable();
        reasons
    };
    assert_eq!(told(), ["plain-text", "upstream-hides-address"]);
    // Another node's service claims the same address.
    let claim = json!({
        "Node": "elsewhere", "Address": "10.99.0.99",
        "Service": {
            "Kind": "connect-proxy", "Service": "other-sidecar-proxy", "Port": 20000,
            "Proxy": {"DestinationServiceName": "other"},
            "TaggedAddresses": {"virtual": {"Address": CLUSTER_IP, "Port": 80}},
        },
    });
    mesh.node.put("/v1/catalog/register", Some(&claim)).unwrap();
    mesh.configure(&json!({"Kind": "mesh", "TransparentProxy": {"MeshDestinationsOnly": true}}));
    until("the shared address", || told() == ["shared-address", "upstream-hides-address"]).unwrap();
}
