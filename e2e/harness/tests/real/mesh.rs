//! Fixture of most tests: a node with its agent and injector, servers of the service `api`
//! that answer with their own names, and their client `web`.

use std::collections::BTreeMap;

use harness::kubelet::Pod;
use harness::load::Load;
use harness::node::{Injector, Node};
use harness::parts::Parts;
use harness::process::Process;
use harness::tutorial::injected_pod;
use serde_json::{Value, json};

/// Port of the service on the client's loopback.
pub(crate) const UPSTREAM: u16 = 1234;

/// How often to repeat a check that could also pass by chance.
pub(crate) const ROUNDS: usize = 20;

pub(crate) struct Mesh {
    /// Before the node, so that it stops before its data is removed.
    pub(crate) agent: Option<Process>,
    pub(crate) injector: Injector,
    pub(crate) node: Node,
}

impl Mesh {
    pub(crate) fn find_or_skip() -> Option<Self> {
        Parts::find_or_skip().map(|parts| Self::start(parts, &json!({})))
    }

    /// With additional settings of the node's agent.
    pub(crate) fn start(parts: Parts, further: &Value) -> Self {
        Self::start_with_injector(parts, further, &[])
    }

    /// With additional settings of the node's agent, and flags of its injector.
    pub(crate) fn start_with_injector(parts: Parts, further: &Value, flags: &[&str]) -> Self {
        let node = Node::new(parts).unwrap();
        let agent = Some(node.start_agent_with(further).unwrap());
        let injector = node.start_injector_with(flags).unwrap();
        Self { agent, injector, node }
    }

    /// Writes a config entry.
    pub(crate) fn configure(&self, entry: &Value) {
        self.node.put("/v1/config", Some(entry)).unwrap();
    }

    /// Sets the protocol of the service.
    pub(crate) fn speak(&self, protocol: &str) {
        self.configure(&json!({"Kind": "service-defaults", "Name": "api", "Protocol": protocol}));
    }

    /// Writes an intention from the client to the service.
    pub(crate) fn intend(&self, source: &Value) {
        let mut source = source.clone();
        source["Name"] = "web".into();
        let intentions = json!({"Kind": "service-intentions", "Name": "api", "Sources": [source]});
        self.configure(&intentions);
    }

    pub(crate) fn server(&self, name: &str) -> Pod<'_> {
        started(&self.node, &self.injector, &server(name, &json!({}), &Value::Null))
    }

    pub(crate) fn client(&self) -> Pod<'_> {
        started(&self.node, &self.injector, &client(&json!({})))
    }
}

/// A server that answers with its own name.
pub(crate) fn server(name: &str, annotations: &Value, lifecycle: &Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "annotations": annotated("api", annotations)},
        "spec": {
            // Long enough that it ends no test.
            "terminationGracePeriodSeconds": 300,
            "containers": [{
                "name": "api", "image": "hashicorp/http-echo:latest",
                "args": [format!("-text={name}"), "-listen=:8080"],
                "ports": [{"containerPort": 8080}],
            }],
        },
    });
    if !lifecycle.is_null() {
        pod["spec"]["containers"][0]["lifecycle"] = lifecycle.clone();
    }
    pod
}

/// A client of the servers.
pub(crate) fn client(annotations: &Value) -> Value {
    let mut all = json!({"connect-service-upstreams": format!("api:{UPSTREAM}")});
    json_patch::merge(&mut all, annotations);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "annotations": annotated("web", &all)},
        "spec": {"containers": [{
            "name": "web", "image": "tutum/curl:latest", "command": ["sleep", "infinity"],
        }]},
    })
}

fn annotated(service: &str, annotations: &Value) -> Value {
    let given = annotations.as_object().into_iter().flatten();
    let all = given
        .map(|(key, value)| (key.as_str(), value.clone()))
        .chain([("connect-inject", "true".into()), ("connect-service", service.into())])
        .map(|(key, value)| (format!("consul.hashicorp.com/{key}"), value));
    json!(all.collect::<BTreeMap<String, Value>>())
}

pub(crate) fn started<'n>(node: &'n Node, injector: &Injector, pod: &Value) -> Pod<'n> {
    let mut pod = Pod::create(node, &injected_pod(node, injector, pod).unwrap()).unwrap();
    pod.start().unwrap();
    pod
}

/// Waits until the service and its proxy have that many healthy instances.
pub(crate) fn await_instances(node: &Node, count: usize) {
    for service in ["api", "api-sidecar-proxy"] {
        harness::until(&format!("{count} healthy instances of {service}"), || {
            let found = node.get(&format!("/v1/health/service/{service}?passing"));
            found.is_ok_and(|found| found.as_array().is_some_and(|list| list.len() == count))
        })
        .unwrap();
    }
}

/// Waits until a client's Envoy has these servers as endpoints.
pub(crate) fn await_heard(client: &Pod<'_>, servers: &[&str]) {
    Load::start(client, UPSTREAM, 1).await_answers(servers).unwrap();
}

/// A response of Envoy's admin interface.
pub(crate) fn admin(pod: &Pod<'_>, path: &str) -> String {
    let url = format!("http://127.0.0.1:19000{path}");
    let output = pod.exec("envoy-sidecar", &["curl", "-s", &url]).unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The HTTP status that the client gets for a path, "000" if there is no response.
pub(crate) fn status(client: &Pod<'_>, path: &str, further: &[&str]) -> String {
    let url = format!("http://127.0.0.1:{UPSTREAM}{path}");
    let mut command = vec!["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", &url];
    command.extend(further);
    let output = client.exec("web", &command).unwrap();
    String::from_utf8(output.stdout).unwrap()
}
