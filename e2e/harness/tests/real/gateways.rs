//! Gateways that `connect-register` registers and bootstraps: ingress,
//! terminating and mesh, the last between two data centers and two peers.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use harness::kubelet::Pod;
use harness::node::Node;
use harness::node::consul::Agent;
use harness::process::{Process, run};
use harness::tutorial::injected_pod;
use harness::until;
use reqwest::Method;
use serde_json::{Value, json};

use crate::bare::{API, Bare, await_xds};
use crate::mesh::{Mesh, UPSTREAM, await_heard, client};

/// Registers a gateway with the agent at that address, and starts its Envoy.
fn gateway(node: &Node, agent: &str, name: &str, kind: &str, port: u16, admin: u16) -> Process {
    let folder = node.folder(name).unwrap();
    let file = folder.join("gateway.json");
    let service = json!({"service": {
        "name": name, "kind": kind, "address": agent, "port": port,
    }});
    serde_json::to_writer(File::create(&file).unwrap(), &service).unwrap();
    let bin = node.parts().bins.join("connect-register").to_string_lossy().into_owned();
    let (http, grpc) =
        (format!("--http-addr=http://{agent}:8500"), format!("--grpc-addr={agent}:8502"));
    run(&bin, &["register", &http, &file.to_string_lossy()]).unwrap();
    let id = format!("--proxy-id={name}");
    let admin_bind = format!("--admin-bind=127.0.0.1:{admin}");
    let document = run(&bin, &["bootstrap", &http, &grpc, &id, &admin_bind]).unwrap();
    let bootstrap = folder.join("bootstrap.json");
    File::create(&bootstrap).unwrap().write_all(document.as_bytes()).unwrap();
    let args = ["--config-path", &bootstrap.to_string_lossy(), "--disable-hot-restart"];
    let envoy = node.start(&node.parts().envoy, &args.map(str::to_owned)).unwrap();
    await_xds(admin, &envoy);
    envoy
}

#[test]
fn an_ingress_gateway_lets_requests_into_the_mesh() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    mesh.speak("http");
    mesh.configure(&json!({"Kind": "ingress-gateway", "Name": "ingress", "Listeners": [
        {"Port": 18080, "Protocol": "http", "Services": [{"Name": "api", "Hosts": ["*"]}]},
    ]}));
    let _server = mesh.server("api-1");
    let ip = mesh.node.ip();
    let _gateway = gateway(&mesh.node, ip, "ingress", "ingress-gateway", 8543, 19100);
    let mut seen = String::new();
    until("an answer through the gateway", || {
        seen = run("curl", &["-sS", &format!("http://{ip}:18080/")])
            .unwrap_or_else(|error| error.to_string());
        seen == "api-1\n"
    })
    .unwrap_or_else(|error| panic!("{error}: {seen}"));
}

#[test]
fn a_terminating_gateway_lets_requests_out_of_the_mesh() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let ip = mesh.node.ip();
    let outside = ["-text=outside".to_owned(), format!("-listen={ip}:18081")];
    let _outside = mesh.node.start(&mesh.node.parts().harness("http-echo"), &outside).unwrap();
    // A service outside of the mesh, with the name of the client's upstream.
    let entry = json!({"Node": "outside", "Address": ip, "NodeMeta": {"external-node": "true"},
        "Service": {"Service": "api", "Port": 18081}});
    mesh.node.put("/v1/catalog/register", Some(&entry)).unwrap();
    mesh.configure(&json!({
        "Kind": "terminating-gateway", "Name": "terminating", "Services": [{"Name": "api"}],
    }));
    let _gateway = gateway(&mesh.node, ip, "terminating", "terminating-gateway", 8543, 19100);
    await_heard(&mesh.client(), &["outside"]);
}

// === a second Consul, with a service of its own ===

const SERVER: &str = "10.99.0.3";
pub(crate) const AGENT: &str = "10.99.0.4";

/// A data center on the same machine: server, client agent, mesh gateway, and
/// the service `api` with its sidecar.
pub(crate) struct Elsewhere {
    _sidecar: Process,
    _application: Process,
    _gateway: Process,
    _agent: Process,
    _server: Process,
}

impl Elsewhere {
    pub(crate) fn start(node: &Node, datacenter: &str, server: &Value) -> Self {
        for address in [SERVER, AGENT] {
            run("ip", &["addr", "add", &format!("{address}/24"), "dev", "pods"]).unwrap();
        }
        let start = |agent: Agent| {
            let agent = Agent { datacenter: datacenter.to_owned(), ..agent };
            let folder: PathBuf = node.folder(&format!("{datacenter}-{}", agent.name)).unwrap();
            agent.start(&node.parts().consul, node.release(), &folder).unwrap()
        };
        let server = start(Agent { further: server.clone(), ..Agent::server(SERVER) });
        let agent = start(Agent::client("node-2", AGENT, SERVER));
        until("the other Connect CA", || {
            ask(node, Method::GET, "/v1/connect/ca/roots", None)
                .is_ok_and(|roots| roots["ActiveRootID"].is_string())
        })
        .unwrap_or_else(|error| panic!("{error}\n{}\n{}", server.output(), agent.output()));
        let gateway = gateway(node, AGENT, "mesh-gateway", "mesh-gateway", 8543, 19101);
        let args = ["-text=elsewhere".to_owned(), "-listen=127.0.0.1:8080".to_owned()];
        let application = node.start(&node.parts().harness("http-echo"), &args).unwrap();
        let bare = Bare {
            node,
            service: API,
            ip: AGENT,
            flags: vec![
                format!("--http-addr=http://{AGENT}:8500"),
                format!("--grpc-addr={AGENT}:8502"),
            ],
        };
        let (code, log) = bare.init(&[]);
        assert_eq!(code, Some(0), "{log}");
        let sidecar = bare.run();
        await_xds(19000, &sidecar);
        Self {
            _sidecar: sidecar,
            _application: application,
            _gateway: gateway,
            _agent: agent,
            _server: server,
        }
    }
}

/// Sends a request to the agent of the second Consul.
pub(crate) fn ask(
    node: &Node,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> harness::Result<Value> {
    node.request(method, &format!("http://{AGENT}:8500{path}"), body)
}

/// Makes dc3 a peer of the node's datacenter, which dc3 calls `here`.
pub(crate) fn peer(node: &Node) {
    let token =
        ask(node, Method::POST, "/v1/peering/token", Some(&json!({"PeerName": "here"}))).unwrap();
    let establish = json!({"PeerName": "dc3", "PeeringToken": token["PeeringToken"]});
    // The servers may not have their certificates yet.
    until("the peering", || {
        node.as_holder(None, Method::POST, "/v1/peering/establish", Some(&establish)).is_ok()
    })
    .unwrap();
}

fn reaches_elsewhere(mesh: &Mesh, upstream: &str) {
    let pod = client(&json!({"connect-service-upstreams": upstream}));
    let pod = injected_pod(&mesh.node, &mesh.injector, &pod).unwrap();
    let mut pod = Pod::create(&mesh.node, &pod).unwrap();
    pod.start().unwrap();
    await_heard(&pod, &["elsewhere"]);
}

#[test]
fn a_service_of_another_datacenter_is_reached_through_mesh_gateways() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let (ip, server) = (mesh.node.ip(), mesh.node.server_ip());
    let _elsewhere = Elsewhere::start(
        &mesh.node,
        "dc2",
        &json!({"retry_join_wan": [server], "primary_datacenter": "dc1"}),
    );
    let _gateway = gateway(&mesh.node, ip, "mesh-gateway", "mesh-gateway", 8543, 19100);
    until("the other data center", || {
        mesh.node
            .get("/v1/health/connect/api?dc=dc2&passing")
            .is_ok_and(|found| found.as_array().is_some_and(|all| all.len() == 1))
    })
    .unwrap();
    reaches_elsewhere(&mesh, &format!("api.svc.dc2.dc:{UPSTREAM}?mesh_gateway_mode=local"));
}

#[test]
fn a_service_of_a_peer_is_reached_through_its_mesh_gateway() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let node = &mesh.node;
    let peering = json!({"ports": {"grpc_tls": 8503}});
    let _elsewhere = Elsewhere::start(node, "dc3", &peering);
    let exported = json!({"Kind": "exported-services", "Name": "default", "Services": [
        {"Name": "api", "Consumers": [{"Peer": "here"}]},
    ]});
    ask(node, Method::PUT, "/v1/config", Some(&exported)).unwrap();
    peer(node);
    until("the peer's service", || {
        node.get("/v1/health/connect/api?peer=dc3&passing")
            .is_ok_and(|found| found.as_array().is_some_and(|all| all.len() == 1))
    })
    .unwrap();
    reaches_elsewhere(&mesh, &format!("api.svc.dc3.peer:{UPSTREAM}"));
}
