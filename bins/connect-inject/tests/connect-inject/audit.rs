//! `connect-inject audit` against an API server and an agent on real sockets.

use std::convert::Infallible;
use std::io::Read as _;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64_simd::STANDARD;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{ECHO_SERVER, IMAGES, yaml};
use crate::inject::{command, run};

/// Answers a method, a path and a query with a status and a body.
type Answers = dyn Fn(&str, &str, &str) -> (u16, Value) + Send + Sync;

/// An HTTP server that answers with a given function and records the requests.
struct Server {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(answers: impl Fn(&str, &str, &str) -> (u16, Value) + Send + Sync + 'static) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let (answers, seen): (Arc<Answers>, _) = (Arc::new(answers), Arc::clone(&requests));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(serve(listener, answers, seen));
        });
        Self { address, requests }
    }

    fn asked(&self, beginning: &str) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|request| request.starts_with(beginning)).cloned().collect()
    }
}

async fn serve(
    listener: std::net::TcpListener,
    answers: Arc<Answers>,
    seen: Arc<Mutex<Vec<String>>>,
) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        let (answers, seen) = (Arc::clone(&answers), Arc::clone(&seen));
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                answer(Arc::clone(&answers), Arc::clone(&seen), request)
            });
            // The client may go at any time.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    answers: Arc<Answers>,
    seen: Arc<Mutex<Vec<String>>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
    let line = format!("{} {path} {}", parts.method, String::from_utf8_lossy(&body));
    seen.lock().unwrap().push(line.trim().to_owned());
    let (status, body) = answers(parts.method.as_str(), path, query);
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    Ok(response)
}

/// The state of a cluster and its Consul, which a test changes before it starts the servers.
#[derive(Clone)]
struct Cluster {
    pods: Vec<Value>,
    nodes: Vec<Value>,
    namespaces: Vec<Value>,
    webhooks: Vec<Value>,
    /// The injector's Services, and other objects that are read by name.
    services_of_kubernetes: Vec<Value>,
    endpointslices: Vec<Value>,
    /// Node, and the catalog's services and checks of that node.
    catalog: Vec<(Value, Vec<Value>, Vec<Value>)>,
    intentions: Vec<Value>,
    datacenters: Vec<&'static str>,
    services: Vec<String>,
    tokens: Vec<Value>,
    /// Pods that were created after the pods were listed.
    late: Vec<Value>,
    /// Paths that answer 403.
    forbidden: Vec<&'static str>,
}

const POLICY: [&str; 2] = ["--kubernetes-version=1.34", "--acl-auth-method=k8s"];

/// A manifest that asks for a sidecar, with the service account that its service requires.
fn asking() -> String {
    ECHO_SERVER.replace("spec:\n", "spec:\n  serviceAccountName: echo-server\n")
}

/// A running pod that `inject` injected.
fn pod(name: &str) -> Value {
    let (code, text, log) = run(command("inject").args(IMAGES).args(POLICY), &asking());
    assert_eq!(code, 0, "{log}");
    let mut pod = yaml(&text);
    let metadata = &mut pod["metadata"];
    metadata["name"] = name.into();
    metadata["namespace"] = "shop".into();
    metadata["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    metadata["annotations"]
        .as_object_mut()
        .unwrap()
        .remove("consul.hashicorp.com/connect-inject-undo");
    pod["spec"]["nodeName"] = "n1".into();
    pod["status"] = json!({"phase": "Running", "podIP": "10.1.0.7"});
    pod
}

/// The two registrations of a pod: service and sidecar.
fn pair(pod: &str) -> Vec<Value> {
    let id = format!("shop_{pod}_echo-server");
    let meta = json!({"pod-name": pod, "k8s-namespace": "shop"});
    vec![
        json!({"ID": id, "Service": "echo-server", "Address": "10.1.0.7", "Port": 8080, "Meta": meta}),
        json!({"ID": format!("{id}-sidecar-proxy"), "Kind": "connect-proxy", "Address": "10.1.0.7",
            "Service": "echo-server-sidecar-proxy", "Port": 20000, "Meta": meta,
            "Proxy": {"DestinationServiceName": "echo-server", "DestinationServiceID": id,
                "Upstreams": [{"DestinationType": "service", "DestinationName": "db", "LocalBindPort": 1}]}}),
    ]
}

fn login(pod: &str) -> Value {
    json!({"AccessorID": format!("accessor-{pod}"), "AuthMethod": "k8s",
        "Description": format!("token created via login: {{\"pod\":\"shop/{pod}\"}}"),
        "CreateTime": "2026-01-01T00:00:00Z"})
}

fn alive() -> Value {
    json!({"Node": "n1", "CheckID": "serfHealth", "Status": "passing"})
}

impl Cluster {
    /// A cluster without findings.
    fn healthy() -> Self {
        let selector = json!({"matchExpressions": [{"key": "kubernetes.io/metadata.name",
            "operator": "NotIn", "values": ["kube-system"]}]});
        Self {
            pods: vec![pod("web-0")],
            nodes: vec![json!({"metadata": {"name": "n1"}, "status": {
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "conditions": [{"type": "Ready", "status": "True"}],
                "nodeInfo": {"kubeletVersion": "v1.34.4"}}})],
            namespaces: ["shop", "kube-system"]
                .iter()
                .map(|name| {
                    json!({"metadata": {"name": name,
                        "labels": {"kubernetes.io/metadata.name": name}}})
                })
                .collect(),
            webhooks: vec![json!({
                "metadata": {"name": "mesh-connect-inject", "labels": {"app.kubernetes.io/name": "connect-inject"}},
                "webhooks": [{"name": "mesh-connect-inject.consul.hashicorp.com", "failurePolicy": "Fail",
                    "rules": [{"apiGroups": [""], "operations": ["CREATE"], "resources": ["pods"]}],
                    "namespaceSelector": selector,
                    "clientConfig": {"url": "https://inject.example/mutate"}}]})],
            services_of_kubernetes: Vec::new(),
            endpointslices: Vec::new(),
            catalog: vec![(
                json!({"Node": "n1", "Address": "10.0.0.1"}),
                pair("web-0"),
                vec![alive()],
            )],
            intentions: Vec::new(),
            datacenters: vec!["dc1"],
            services: vec!["echo-server".to_owned(), "db".to_owned()],
            tokens: vec![login("web-0")],
            late: Vec::new(),
            forbidden: Vec::new(),
        }
    }

    fn kubernetes(&self, path: &str, query: &str) -> (u16, Value) {
        let status = |code: u16, reason: &str| {
            (
                code,
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "code": code, "reason": reason, "message": format!("{path}: {reason}")}),
            )
        };
        if self.forbidden.contains(&path) {
            return status(403, "Forbidden");
        }
        let items = match path {
            "/version" => {
                return (
                    200,
                    json!({"major": "1", "minor": "34", "gitVersion": "v1.34.4",
                    "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "",
                    "compiler": "", "platform": ""}),
                );
            }
            "/api/v1/pods" | "/api/v1/namespaces/shop/pods" => &self.pods,
            "/api/v1/nodes" => &self.nodes,
            "/api/v1/namespaces" => &self.namespaces,
            "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations" => &self.webhooks,
            "/apis/discovery.k8s.io/v1/namespaces/consul/endpointslices" => &self.endpointslices,
            _ => {
                let name = path.rsplit('/').next().unwrap();
                let all = self.pods.iter().chain(&self.nodes).chain(&self.late);
                let all = all.chain(&self.services_of_kubernetes);
                let found = all.into_iter().find(|object| object["metadata"]["name"] == name);
                return found.map_or_else(|| status(404, "NotFound"), |found| (200, found.clone()));
            }
        };
        let parameter = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs
                .into_iter()
                .find(|(key, _)| *key == name)
                .and_then(|(_, value)| value.parse().ok())
        };
        let (begin, limit) =
            (parameter("continue").unwrap_or(0), parameter("limit").unwrap_or(500));
        let end = (begin + limit).min(items.len());
        let next = if end < items.len() { end.to_string() } else { String::new() };
        (200, json!({"kind": "List", "metadata": {"continue": next}, "items": items[begin..end]}))
    }

    fn consul(&self, method: &str, path: &str, query: &str) -> (u16, Value) {
        if method != "GET" {
            return (200, json!(true));
        }
        if self.forbidden.contains(&path) {
            return (403, json!("Permission denied"));
        }
        let of_node = |path: &str| {
            let name = path.rsplit('/').next().unwrap().to_owned();
            self.catalog.iter().find(move |(node, ..)| node["Node"] == name.as_str())
        };
        let answer = match path {
            "/v1/catalog/nodes" => self.catalog.iter().map(|(node, ..)| node.clone()).collect(),
            "/v1/catalog/datacenters" => self.datacenters.clone().into(),
            "/v1/catalog/services" => {
                self.services.iter().map(|name| (name.clone(), json!([]))).collect()
            }
            "/v1/agent/members" => {
                json!([{"Name": "n1", "Status": 1, "Tags": {"build": "1.14.11:abc"}}])
            }
            "/v1/agent/self" => json!({"xDS": {"SupportedProxies": {"envoy": ["1.40.0"]}}}),
            "/v1/connect/intentions" => self.intentions.clone().into(),
            "/v1/connect/intentions/check" => json!({"Allowed": true}),
            "/v1/acl/auth-method/k8s" => {
                json!({"Name": "k8s", "Type": "kubernetes", "MaxTokenTTL": "1h0m0s"})
            }
            "/v1/acl/tokens" if query == "authmethod=k8s" => self.tokens.clone().into(),
            "/v1/acl/binding-rules" => {
                json!([{"ID": "r", "Selector": "serviceaccount.name!=default-not"}])
            }
            path if path.starts_with("/v1/catalog/node-services/") => {
                json!({"Services": of_node(path).map(|(_, services, _)| services)})
            }
            path if path.starts_with("/v1/health/node/") => {
                json!(of_node(path).map(|(.., checks)| checks))
            }
            path if path.starts_with("/v1/config/") => json!([]),
            path if path.starts_with("/v1/agent/service/") => {
                let services = self.catalog.iter().flat_map(|(_, services, _)| services);
                let id = path.rsplit('/').next().unwrap();
                match services.into_iter().find(|service| service["ID"] == id) {
                    Some(service) => service.clone(),
                    None => return (404, json!("unknown service ID")),
                }
            }
            path if path.starts_with("/v1/acl/token/") => {
                let id = path.rsplit('/').next().unwrap();
                match self.tokens.iter().find(|token| token["AccessorID"] == id) {
                    Some(token) => token.clone(),
                    None => return (404, json!("ACL not found")),
                }
            }
            path => return (404, json!(format!("nobody asks for {path}"))),
        };
        (200, answer)
    }
}

/// Both servers, and a kubeconfig.
struct Running {
    kubernetes: Server,
    consul: Server,
    folder: TempDir,
}

impl Running {
    fn start(cluster: Cluster) -> Self {
        let cluster = Arc::new(cluster);
        let consul = Server::start({
            let cluster = Arc::clone(&cluster);
            move |method, path, query| cluster.consul(method, path, query)
        });
        Self::with(Server::start(move |_, path, query| cluster.kubernetes(path, query)), consul)
    }

    fn with(kubernetes: Server, consul: Server) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", kubernetes.address)}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
        });
        let file = folder.path().join("kubeconfig");
        runtime::file::write_whole(&file, 0o600, kubeconfig.to_string().as_bytes()).unwrap();
        Self { kubernetes, consul, folder }
    }

    fn audit(&self, flags: &[&str]) -> Output {
        self.command(flags).output().unwrap()
    }

    fn command(&self, flags: &[&str]) -> Command {
        // Not assert_cmd, because one test measures the process while it runs.
        let mut audit = Command::new(env!("CARGO_BIN_EXE_connect-inject"));
        audit.arg("audit").arg("--kubeconfig").arg(self.folder.path().join("kubeconfig"));
        audit.args(IMAGES).args(POLICY).args(flags);
        let agent = format!("--http-addr={}", self.consul.address);
        for default in ["--settle=0s", &agent] {
            let name = default.split('=').next().unwrap();
            if !flags.iter().any(|flag| flag.starts_with(name)) {
                audit.arg(default);
            }
        }
        audit
    }

    /// Code and object of each finding.
    fn findings(&self, flags: &[&str]) -> Vec<(String, String)> {
        let output = self.audit(&[&["--output=json"], flags].concat());
        let log = String::from_utf8_lossy(&output.stderr);
        let report: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {log}"));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let findings: Vec<_> = report["findings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|finding| (text(&finding["code"]), text(&finding["name"])))
            .collect();
        assert_eq!(output.status.code(), Some(i32::from(!findings.is_empty())), "{log}");
        findings
    }
}

fn found(cluster: Cluster) -> Vec<(String, String)> {
    Running::start(cluster).findings(&[])
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(code, name)| ((*code).to_owned(), (*name).to_owned())).collect()
}

/// The cause was dropped; in a pod, the audit silently used the pod's service account.
#[test]
fn a_kubeconfig_that_cannot_be_read_is_named_with_the_cause() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken");
    runtime::file::write_whole(&broken, 0o600, "clusters: [".as_bytes()).unwrap();
    for file in [broken, folder.path().join("missing")] {
        let mut audit = Command::new(env!("CARGO_BIN_EXE_connect-inject"));
        audit.arg("audit").args(IMAGES).args(POLICY).env("KUBECONFIG", &file);
        let output = audit.output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{log}");
        assert!(log.contains("cannot read the kubeconfig"), "{log}");
        assert!(log.contains(file.to_str().unwrap()), "{log}");
    }
}

#[test]
fn a_healthy_cluster_has_no_findings_and_the_exit_code_is_0() {
    let running = Running::start(Cluster::healthy());
    assert_eq!(running.findings(&[]), []);
    let output = running.audit(&[]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("sidecars=1") && log.contains("registrations=2"), "{log}");
    // The audit only reads.
    for server in [&running.kubernetes, &running.consul] {
        assert_eq!(server.asked("").len(), server.asked("GET").len());
    }
}

#[test]
fn inconsistencies_are_found_and_listed_in_a_table() {
    let mut cluster = Cluster::healthy();
    let mut bare = yaml(&asking());
    bare["metadata"]["namespace"] = "shop".into();
    bare["metadata"]["name"] = "bare".into();
    bare["status"] = json!({"phase": "Running", "podIP": "10.1.0.8"});
    let mut lost = pod("lost");
    lost["status"]["podIP"] = "10.1.0.9".into();
    let mut old = pod("web-0");
    old["spec"]["initContainers"][0]["image"] = "connect-init:old".into();
    cluster.pods = vec![bare, lost, old];
    cluster.catalog[0].1.extend(pair("gone"));
    cluster.tokens.push(login("away"));
    cluster.services.pop();
    cluster
        .intentions
        .push(json!({"SourceName": "a", "DestinationName": "echo-server", "Action": "deny"}));
    assert_eq!(
        found(cluster.clone()),
        pairs(&[
            ("pod-without-sidecar", "bare"),
            ("registration-orphaned", "shop_gone_echo-server"),
            ("registration-orphaned", "shop_gone_echo-server-sidecar-proxy"),
            ("pod-unregistered", "lost"),
            ("upstream-unserved", "db"),
            ("token-orphaned", "accessor-away"),
            ("sidecar-outdated", "web-0"),
            ("intention-unmatched", "a -> echo-server"),
        ])
    );
    // Another datacenter may have the service that an intention names.
    let federated = Cluster { datacenters: vec!["dc1", "dc2"], ..cluster.clone() };
    let codes: Vec<String> = found(federated).into_iter().map(|(code, _)| code).collect();
    assert!(!codes.contains(&"intention-unmatched".to_owned()), "{codes:?}");
    let running = Running::start(cluster);
    let only = running.findings(&["--only=token-orphaned,pod-unregistered"]);
    assert_eq!(only, pairs(&[("pod-unregistered", "lost"), ("token-orphaned", "accessor-away")]));
    let elsewhere = running.findings(&["--node=n2", "--only=pod-unregistered"]);
    assert_eq!(elsewhere, []);
    let table = running.audit(&["--namespace=shop"]);
    let table = String::from_utf8(table.stdout).unwrap();
    let first: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().take(4).collect();
    assert_eq!(first, ["error", "pod-without-sidecar", "Pod", "shop/bare"], "{table}");
    assert!(table.contains("What to do:\n  pod-without-sidecar: restart it"), "{table}");
}

/// Starts a TLS server with a certificate for this host; returns its port and a caBundle that
/// trusts it.
fn showing(host: &str) -> (u16, String) {
    let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = Arc::new(config);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream.unwrap());
            // Completes the handshake and waits until the client closes the connection.
            let _ = stream.read(&mut [0]);
        }
    });
    (port, STANDARD.encode_to_string(made.cert.pem()))
}

/// Works without DNS, and reports once for all webhooks of a Service.
#[test]
fn a_webhooks_service_is_checked_at_its_endpoints() {
    let host = "mesh-connect-inject.consul.svc";
    let (port, ca_bundle) = showing(host);
    let (_, another) = showing(host);
    let cluster = |ca_bundle: &str, endpoints: Value| {
        let mut cluster = Cluster::healthy();
        let client = json!({"caBundle": ca_bundle,
            "service": {"namespace": "consul", "name": "mesh-connect-inject", "port": 443}});
        let webhooks = cluster.webhooks[0]["webhooks"].as_array_mut().unwrap();
        webhooks[0]["clientConfig"] = client;
        let mut advice = webhooks[0].clone();
        advice["name"] = "advice.mesh-connect-inject.consul.hashicorp.com".into();
        webhooks.push(advice);
        cluster.services_of_kubernetes = vec![json!({"metadata": {"name": "mesh-connect-inject"},
            // Nothing listens there.
            "spec": {"clusterIP": "127.0.0.1", "ports": [{"name": "webhook", "port": 443}]}})];
        let of = json!({"kubernetes.io/service-name": "mesh-connect-inject"});
        cluster.endpointslices = vec![json!({"metadata": {"labels": of}, "endpoints": endpoints,
                "ports": [{"name": "webhook", "port": port}]})];
        cluster
    };
    let at = |address: &str, ready: bool| json!({"addresses": [address], "conditions": {"ready": ready}});
    let here = json!([at("127.0.0.1", true)]);
    let away = json!([at("127.0.0.2", true)]);
    assert_eq!(found(cluster(&ca_bundle, here.clone())), []);
    for (ca_bundle, endpoints, code) in [
        (&ca_bundle, json!([at("127.0.0.1", false)]), "webhook-unreachable"),
        (&ca_bundle, json!([]), "webhook-unreachable"),
        (&ca_bundle, away, "webhook-unchecked"),
        // The audit is outside the cluster, where this may be another machine.
        (&another, here.clone(), "webhook-unchecked"),
    ] {
        let found = found(cluster(ca_bundle, endpoints.clone()));
        assert_eq!(found, pairs(&[(code, "mesh-connect-inject")]), "{endpoints}");
    }
    let mut gone = cluster(&ca_bundle, here.clone());
    gone.services_of_kubernetes.clear();
    assert_eq!(found(gone), pairs(&[("webhook-unreachable", "mesh-connect-inject")]));
    for (path, what) in [
        ("/api/v1/namespaces/consul/services/mesh-connect-inject", "services"),
        ("/apis/discovery.k8s.io/v1/namespaces/consul/endpointslices", "endpointslices"),
    ] {
        let mut cluster = cluster(&ca_bundle, here.clone());
        cluster.forbidden = vec![path];
        assert_eq!(found(cluster), pairs(&[("unreadable", what)]));
    }
}

#[test]
fn results_are_written_to_a_configmap_for_the_injectors_metrics() {
    let mut cluster = orphaned();
    cluster.services_of_kubernetes = vec![json!({"metadata": {"name": "results"}})];
    let running = Running::start(cluster.clone());
    let flag = "--results-configmap=consul/results";
    assert_eq!(running.findings(&[flag]).len(), 3);
    let written = running.kubernetes.asked("PATCH /api/v1/namespaces/consul/configmaps/results ");
    assert_eq!(written.len(), 1);
    let patch: Value = serde_json::from_str(
        written[0].split_once(" {").map(|(_, patch)| format!("{{{patch}")).unwrap().as_str(),
    )
    .unwrap();
    let results: Value =
        serde_json::from_str(patch["data"]["results.json"].as_str().unwrap()).unwrap();
    let orphaned = json!({"code": "registration-orphaned", "severity": "error", "count": 2});
    let findings = results["findings"].as_array().unwrap();
    assert!(findings.contains(&orphaned), "{results}");
    assert!(
        findings.contains(&json!({"code": "webhook-missing", "severity": "error", "count": 0}))
    );
    // If the ConfigMap does not exist, the findings are printed before the error.
    cluster.services_of_kubernetes.clear();
    let output = Running::start(cluster).audit(&[flag]);
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("ConfigMap consul/results does not exist"), "{log}");
    assert!(!output.stdout.is_empty());
}

#[test]
fn an_unreadable_resource_is_a_finding_and_is_not_judged() {
    let mut cluster = Cluster::healthy();
    cluster.catalog[0].1.extend(pair("gone"));
    cluster.forbidden = vec!["/api/v1/nodes", "/v1/acl/tokens", "/v1/catalog/services"];
    let found = found(cluster.clone());
    let unreadable = ["ACL tokens", "service names", "nodes"].map(|what| ("unreadable", what));
    assert_eq!(found, pairs(&unreadable));
    cluster.forbidden = vec!["/api/v1/pods"];
    assert_eq!(self::found(cluster.clone()), pairs(&[("unreadable", "pods")]));
    cluster.forbidden = vec!["/v1/catalog/nodes"];
    assert_eq!(self::found(cluster), pairs(&[("unreadable", "nodes")]));
}

/// A transient inconsistency causes no finding.
#[test]
fn a_second_look_confirms_findings_that_may_be_transient() {
    let mut lost = Cluster::healthy();
    lost.pods.push(pod("late"));
    lost.catalog[0].1.extend(pair("ending"));
    let healthy = Cluster::healthy();
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let consul = Server::start({
        let (lost, healthy, asked) = (lost.clone(), healthy.clone(), Arc::clone(&asked));
        move |method, path, query| {
            let first = asked.load(std::sync::atomic::Ordering::SeqCst) < 2;
            (if first { &lost } else { &healthy }).consul(method, path, query)
        }
    });
    // Each look lists the pods once, before it reads Consul.
    let kubernetes = Server::start(move |_, path, query| {
        if path == "/api/v1/pods" {
            asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
        let first = asked.load(std::sync::atomic::Ordering::SeqCst) < 2;
        (if first { &lost } else { &healthy }).kubernetes(path, query)
    });
    let running = Running::with(kubernetes, consul);
    assert_eq!(running.findings(&["--settle=1ms"]), []);
    assert_eq!(running.kubernetes.asked("GET /api/v1/pods").len(), 2);
}

#[test]
fn an_unreachable_agent_and_invalid_flags_have_exit_codes_of_their_own() {
    let running = Running::start(Cluster::healthy());
    let output = running.audit(&["--http-addr=127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(69));
    let mut nowhere = Running::start(Cluster::healthy());
    nowhere.folder = tempfile::tempdir().unwrap();
    assert_eq!(nowhere.audit(&[]).status.code(), Some(64));
    let output = running.audit(&["--only=pod-without-sidecars"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("pod-without-sidecar"));
}

#[test]
fn the_printed_permissions_only_read() {
    let output = command("audit").arg("--print-rbac").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    let role: Value = yaml(&text);
    assert_eq!(role["kind"], "ClusterRole");
    for rule in role["rules"].as_array().unwrap() {
        assert_eq!(rule["verbs"], json!(["get", "list"]));
        assert!(!rule["resources"].as_array().unwrap().contains(&"secrets".into()));
    }
}

/// Maximum resident memory of a process until it ends, in KiB.
fn most_resident(status: &str) -> usize {
    let mut most = 0;
    while let Ok(text) = std::fs::read_to_string(status)
        && let Some(line) = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))
    {
        most = line.trim().trim_end_matches(" kB").parse().unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    most
}

/// 10,000 pods in pages, with their services and sidecars on 100 nodes.
#[test]
fn a_large_cluster_takes_little_memory() {
    const NODES: usize = 100;
    const PODS: usize = 100;
    let name = |index: usize| format!("web-{}-{}", index / PODS, index % PODS);
    let mut small = Cluster::healthy();
    let mut template = small.pods.remove(0);
    template["metadata"]["managedFields"] = "x".repeat(4096).into();
    small.tokens.clear();
    small.catalog.clear();
    small.nodes = (0..NODES)
        .map(|node| json!({"metadata": {"name": format!("n{node}")}, "status": {}}))
        .collect();
    // Pages are generated on request, to keep the test's own memory small.
    let kubernetes = Server::start({
        let small = small.clone();
        move |_, path, query| {
            if path != "/api/v1/pods" {
                return small.kubernetes(path, query);
            }
            let mut page = small.clone();
            let begin = query.split("continue=").nth(1).unwrap_or("0");
            let begin: usize = begin.split('&').next().unwrap().parse().unwrap();
            page.pods = (begin..begin + 200)
                .map(|index| {
                    let mut pod = template.clone();
                    pod["metadata"]["name"] = name(index).into();
                    pod["spec"]["nodeName"] = format!("n{}", index / PODS).into();
                    pod
                })
                .collect();
            let (status, mut body) = page.kubernetes(path, "");
            if begin + 200 < NODES * PODS {
                body["metadata"]["continue"] = (begin + 200).to_string().into();
            }
            (status, body)
        }
    });
    let consul = Server::start(move |method, path, query| {
        if path == "/v1/catalog/nodes" {
            let node = |node| json!({"Node": format!("n{node}"), "Address": "10.0.0.1"});
            return (200, (0..NODES).map(node).collect());
        }
        let Some(node) = path.strip_prefix("/v1/catalog/node-services/n") else {
            if path.starts_with("/v1/health/node/") {
                return (200, json!([alive()]));
            }
            return small.consul(method, path, query);
        };
        let node: usize = node.parse().unwrap();
        let services = (node * PODS..(node + 1) * PODS).flat_map(|index| pair(&name(index)));
        (200, json!({"Services": services.collect::<Vec<_>>()}))
    });
    let running = Running::with(kubernetes, consul);
    let mut audit = running.command(&["--only=registration-orphaned,pod-unregistered"]);
    let child = audit.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let watch = std::thread::spawn(move || most_resident(&status));
    let output = child.wait_with_output().unwrap();
    let peak = watch.join().unwrap() / 1024;
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("pods=10000 sidecars=10000 registrations=20000 findings=0"), "{log}");
    assert_eq!(running.kubernetes.asked("GET /api/v1/pods").len(), NODES * PODS / 200);
    println!("at most {peak} MiB resident");
    assert!((1..128).contains(&peak), "{peak} MiB");
}

/// A cluster with the registrations of a pod that is gone, and the token of another such pod.
fn orphaned() -> Cluster {
    let mut cluster = Cluster::healthy();
    cluster.catalog[0].1.extend(pair("gone"));
    cluster.tokens.push(login("away"));
    cluster
}

/// Reports only what repair can remove. Here the agent's address differs from that in the
/// pods, which is a finding of its own.
const ORPHANED: &str = "--only=registration-orphaned,token-orphaned";

/// The exit code, the changes in Consul, and the log.
fn repaired(running: &Running, flags: &[&str]) -> (Option<i32>, Vec<String>, String) {
    let output = running.audit(&[&["--repair"], flags].concat());
    let mut changes = running.consul.asked("PUT");
    changes.extend(running.consul.asked("DELETE"));
    (output.status.code(), changes, String::from_utf8(output.stderr).unwrap())
}

#[test]
fn repair_deregisters_at_the_agent_of_the_registrations_node() {
    let running = Running::start(orphaned());
    let agent = format!("--consul-http-addr-template=http://{}", running.consul.address);
    let (code, changes, log) = repaired(&running, &["--yes", &agent, ORPHANED]);
    assert_eq!(
        changes,
        [
            "PUT /v1/agent/service/deregister/shop_gone_echo-server-sidecar-proxy",
            "PUT /v1/agent/service/deregister/shop_gone_echo-server",
            "DELETE /v1/acl/token/accessor-away",
        ]
    );
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("would remove registration shop_gone_echo-server of node n1"), "{log}");
    assert!(log.contains("at the agent of n1"), "{log}");
}

#[test]
fn repair_uses_the_catalog_if_the_agent_cannot_be_reached_and_says_so() {
    let running = Running::start(orphaned());
    let agent = "--consul-http-addr-template=http://127.0.0.1:1";
    let (code, changes, log) = repaired(&running, &["--yes", agent, ORPHANED]);
    assert_eq!(changes.len(), 3, "{log}");
    let body = r#"{"Node":"n1","ServiceID":"shop_gone_echo-server"}"#;
    assert_eq!(changes[1], format!("PUT /v1/catalog/deregister {body}"));
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("if the agent of n1 still has it, the agent registers it"), "{log}");
}

#[test]
fn repair_keeps_what_may_be_in_use() {
    // A pod that is created in the meantime.
    let mut starts = orphaned();
    starts.late = vec![pod("gone"), pod("away")];
    // A node whose kubelet is unreachable.
    let mut away = orphaned();
    away.nodes[0]["status"]["conditions"][0]["status"] = "Unknown".into();
    // Something renews the TTL check.
    let mut renewed = orphaned();
    renewed.tokens.pop();
    for id in ["shop_gone_echo-server", "shop_gone_echo-server-sidecar-proxy"] {
        let lease = json!({"CheckID": format!("{id}-lease"), "Status": "passing"});
        renewed.catalog[0].2.push(lease);
    }
    for (cluster, why) in [
        (starts, "its pod exists"),
        (away, "the kubelet of n1 is unreachable"),
        (renewed, "its TTL check has not expired"),
    ] {
        let running = Running::start(cluster);
        let (code, changes, log) = repaired(&running, &["--yes"]);
        assert_eq!((code, changes), (Some(1), Vec::new()), "{log}");
        assert!(log.contains(why), "{log}");
    }
    // A registration by hand does not even cause a finding.
    let mut by_hand = orphaned();
    by_hand.tokens.pop();
    for service in &mut by_hand.catalog[0].1[2..] {
        service["ID"] = format!("mine-{}", service["ID"].as_str().unwrap()).into();
    }
    let running = Running::start(by_hand);
    let (code, changes, log) = repaired(&running, &["--yes"]);
    assert_eq!((code, changes), (Some(0), Vec::new()), "{log}");
}

#[test]
fn repair_asks_first() {
    let running = Running::start(orphaned());
    let (code, changes, log) = repaired(&running, &[]);
    assert_eq!((code, changes), (Some(64), Vec::new()), "{log}");
    assert!(log.contains("add --yes"), "{log}");
}
