//! The audit of a large cluster: 10,000 pods with a sidecar on 100 nodes, and as many
//! services and sidecars in Consul's catalog. API server and agent are one server here
//! that makes its answers from templates, so that the audit is measured and not they.
//! The floor is curl, which reads the same answers and judges nothing.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use serde_json::{Value, json};

use super::kubeconfig;
use super::start::text;
use crate::command::{Steps, Taken};
use crate::figure::{Budget, Figure, Row};
use crate::{Found, Plan};
use harness::Result;
use harness::process::{run as output_of, write};
use harness::tutorial::ECHO_SERVER;

const NODES: usize = 100;
const PODS_OF_NODE: usize = 100;
const PODS: usize = NODES * PODS_OF_NODE;

/// How many pods the audit asks for at once.
const PAGE: usize = 200;

/// In a template, the names of a pod and of its node.
const POD: &str = "POD-NAME";
const NODE: &str = "NODE-NAME";

/// The injector's policy: without it, sidecars are not compared.
const POLICY: [&str; 3] =
    ["--init-image=connect-init:1", "--envoy-image=envoy:v1.40.0", "--kubernetes-version=1.34"];

/// Runs at most: each takes as long as hundreds of other commands.
const RUNS: usize = 5;

/// # Errors
/// The audit fails, or finds something.
pub(super) fn run(plan: &Plan) -> Result<Found> {
    let program = text(&plan.parts.bins.join("connect-inject"));
    let folder = tempfile::tempdir()?;
    let manifest = folder.path().join("pod.yaml");
    write(&manifest, ECHO_SERVER)?;
    let manifest = text(&manifest);
    let inject = [&["inject", "--filename", &manifest], POLICY.as_slice()].concat();
    let cluster = Cluster::of(serde_saphyr::from_str(&output_of(&program, &inject)?)?);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    // It ends with this process.
    std::thread::spawn(move || serve(&listener, &Arc::new(cluster)));

    let server = format!("http://{address}");
    let file = folder.path().join("kubeconfig");
    write(&file, &kubeconfig(&json!({"server": server})))?;
    let kubeconfig = format!("--kubeconfig={}", text(&file));
    let agent = format!("--http-addr={server}");
    let audit = [program.as_str(), "audit", "--settle=0s", &kubeconfig, &agent];
    let pages = [
        format!("{server}/api/v1/pods?limit={PAGE}&continue=[0-{}:{PAGE}]", PODS - PAGE),
        format!("{server}/v1/catalog/node-services/n[0-{}]", NODES - 1),
        format!("{server}/v1/health/node/n[0-{}]", NODES - 1),
    ];
    let curl = ["curl", "--silent", "--fail", &pages[0], &pages[1], &pages[2]];
    let ways = [
        Steps::default().then(&[&audit, POLICY.as_slice()].concat()),
        Steps::default().then(&curl),
    ];
    let mut taken = [(); 2].map(|()| Taken::default());
    for _ in 0..plan.runs.min(RUNS) {
        for (steps, taken) in ways.iter().zip(&mut taken) {
            taken.add(plan, steps)?;
        }
    }
    let [ours, floor] = &taken;
    let row = |what: &str, unit, figure: fn(&Taken) -> Option<Figure>| -> Result<Row> {
        let name = format!("audit of {PODS} pods: {what}");
        Ok(Row::new(name, unit, figure(ours).ok_or("no run")?).floor(figure(floor)))
    };
    let mut memory = row("memory", "MiB", Taken::peak)?;
    memory.floor = None;
    Ok(Found {
        rows: vec![
            row("wall", "ms", Taken::wall)?,
            row("processor", "ms", Taken::cpu)?,
            // As a component test has it, of a binary that is not optimized.
            memory.budget(Budget::AtMost(128.0)),
        ],
        ..Found::default()
    })
}

/// What the server answers from.
struct Cluster {
    /// A pod that was injected and runs.
    pod: String,
    /// Its service and its sidecar.
    pair: String,
}

// === impl Cluster ===

impl Cluster {
    fn of(mut pod: Value) -> Self {
        let metadata = &mut pod["metadata"];
        metadata["name"] = POD.into();
        metadata["namespace"] = "shop".into();
        metadata["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
        // About as much as the API server keeps of who wrote which field.
        metadata["managedFields"] = "x".repeat(4096).into();
        pod["spec"]["nodeName"] = NODE.into();
        pod["status"] = json!({"phase": "Running", "podIP": "10.1.0.7"});
        let id = format!("shop_{POD}_echo-server");
        let meta = json!({"pod-name": POD, "k8s-namespace": "shop"});
        let service = json!({"ID": id, "Service": "echo-server", "Address": "10.1.0.7",
            "Port": 8080, "Meta": meta});
        let proxy = json!({"ID": format!("{id}-sidecar-proxy"), "Kind": "connect-proxy",
            "Service": "echo-server-sidecar-proxy", "Address": "10.1.0.7", "Port": 20000,
            "Meta": meta,
            "Proxy": {"DestinationServiceName": "echo-server", "DestinationServiceID": id}});
        Self { pod: pod.to_string(), pair: format!("{service},{proxy}") }
    }

    /// Of the pods with these numbers, by a template of each.
    fn each(template: &str, pods: std::ops::Range<usize>) -> String {
        let each = pods.map(|pod| {
            let node = format!("n{}", pod / PODS_OF_NODE);
            template.replace(POD, &format!("web-{pod}")).replace(NODE, &node)
        });
        each.collect::<Vec<_>>().join(",")
    }

    /// None for a path that nobody asks for.
    fn answer(&self, path: &str, query: &str) -> Option<String> {
        let number = |text: &str| text.parse::<usize>().ok();
        if let Some(node) = path.strip_prefix("/v1/catalog/node-services/n") {
            let node = number(node)?;
            let pods = node * PODS_OF_NODE..(node + 1) * PODS_OF_NODE;
            return Some(format!(r#"{{"Services":[{}]}}"#, Self::each(&self.pair, pods)));
        }
        let nodes = |node: &dyn Fn(String) -> Value| -> Value {
            (0..NODES).map(|index| node(format!("n{index}"))).collect()
        };
        let list = |items: Value| json!({"kind": "List", "metadata": {}, "items": items});
        let answer = match path {
            "/api/v1/pods" => {
                let begin = query.split('&').find_map(|pair| pair.strip_prefix("continue="));
                let begin = begin.and_then(number).unwrap_or(0);
                let end = (begin + PAGE).min(PODS);
                let next = if end < PODS { end.to_string() } else { String::new() };
                let pods = Self::each(&self.pod, begin..end);
                return Some(format!(
                    r#"{{"kind":"PodList","metadata":{{"continue":"{next}"}},"items":[{pods}]}}"#
                ));
            }
            "/api/v1/nodes" => list(nodes(&|name| {
                json!({"metadata": {"name": name}, "status": {
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "nodeInfo": {"kubeletVersion": "v1.34.4"}}})
            })),
            "/api/v1/namespaces" => list(json!([{"metadata": {"name": "shop", "labels": {}}}])),
            "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations" => {
                let rules =
                    json!([{"apiGroups": [""], "operations": ["CREATE"], "resources": ["pods"]}]);
                list(json!([{"metadata": {"name": "c",
                    "labels": {"app.kubernetes.io/name": "connect-inject"}},
                    "webhooks": [{"name": "w", "failurePolicy": "Fail", "rules": rules,
                        "clientConfig": {"url": "https://inject.example/mutate"}}]}]))
            }
            "/v1/catalog/datacenters" => json!(["dc1"]),
            "/v1/catalog/nodes" => nodes(&|name| json!({"Node": name, "Address": "10.0.0.1"})),
            "/v1/catalog/services" => json!({"echo-server": [], "echo-server-sidecar-proxy": []}),
            "/v1/agent/members" => {
                nodes(&|name| json!({"Name": name, "Status": 1, "Tags": {"build": "1.14.11:abc"}}))
            }
            "/v1/agent/self" => json!({"xDS": {"SupportedProxies": {"envoy": ["1.40.0"]}}}),
            "/v1/connect/intentions" => json!([]),
            _ if path.starts_with("/v1/health/node/") => {
                json!([{"CheckID": "serfHealth", "Status": "passing"}])
            }
            _ if path.starts_with("/v1/config/") => json!([]),
            _ => return None,
        };
        Some(answer.to_string())
    }
}

fn serve(listener: &TcpListener, cluster: &Arc<Cluster>) {
    for stream in listener.incoming().flatten() {
        let cluster = Arc::clone(cluster);
        // A client closes its connection when it is done.
        std::thread::spawn(move || drop(converse(&stream, &cluster)));
    }
}

fn converse(mut stream: &TcpStream, cluster: &Cluster) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut lines = BufReader::new(stream).lines();
    while let Some(request) = lines.next() {
        let request = request?;
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        let target = request.split(' ').nth(1).unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (status, body) = match cluster.answer(path, query) {
            Some(body) => ("200 OK", body),
            None => ("404 Not Found", String::new()),
        };
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
    }
    Ok(())
}
