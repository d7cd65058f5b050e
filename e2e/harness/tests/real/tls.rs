//! How to reach an agent, in plain text and over TLS: Envoy connects if and only if
//! `connect-init` says so.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use harness::node::{Injector, Node};
use harness::parts::Parts;
use harness::process::Process;
use harness::tutorial::{ECHO_SERVER, await_registered, injected, started};
use harness::until;
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use crate::bare::{API, Bare, await_xds};

const HTTP: &str = "--http-addr=http://10.99.0.1:8500";
const HTTPS: &str = "--http-addr=https://10.99.0.1:8501";
const GRPC: &str = "--grpc-addr=http://10.99.0.1:8502";
const GRPC_TLS: &str = "--grpc-addr=https://10.99.0.1:8503";

/// A CA, and a certificate that serves both the agent and clients.
struct Files {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

impl Files {
    fn new(node: &Node) -> Self {
        let folder = node.folder("tls").unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.join(name);
            File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
            path
        };
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&ca_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let names = [node.ip(), node.server_ip(), "localhost", "server.dc1.consul"];
        let mut params = CertificateParams::new(names.map(str::to_owned)).unwrap();
        // Another name than the CA's, or BoringSSL considers it self-signed.
        params.distinguished_name.push(DnType::CommonName, "agent");
        let cert =
            params.signed_by(&key, &Issuer::new(CertificateParams::new([]).unwrap(), &ca_key));
        Self {
            ca: file("ca.pem", &ca.pem()),
            cert: file("agent.pem", &cert.unwrap().pem()),
            key: file("agent-key.pem", &key.serialize_pem()),
        }
    }

    fn agent(&self) -> Value {
        json!({"defaults": {
            "ca_file": self.ca, "cert_file": self.cert, "key_file": self.key,
        }})
    }

    fn ca_flag(&self) -> String {
        format!("--ca-file={}", self.ca.display())
    }

    fn client_flags(&self) -> [String; 2] {
        let (cert, key) = (self.cert.display(), self.key.display());
        [format!("--client-cert={cert}"), format!("--client-key={key}")]
    }
}

/// The expected outcome.
#[derive(Clone, Copy, Debug)]
enum Ends {
    /// Envoy is connected.
    Connected,
    /// The diagnosis says that Envoy can't connect, and it does not.
    Cut,
    /// `connect-init` exits with this code, and with this word in its log.
    Code(i32, &'static str),
}

/// Runs `connect-init` with these flags, and Envoy if it succeeds.
fn check(node: &Node, flags: &[String], ends: Ends) {
    let bare = Bare { node, service: API, ip: "10.99.0.1", flags: flags.to_vec() };
    let (verdict, found) = bare.init(&["--dry-run"]);
    let is_wrong = verdict != Some(0) || found.contains(" is wrong: ");
    let (code, log) = bare.init(&[]);
    match ends {
        Ends::Connected => {
            assert!(!is_wrong, "{flags:?}: {found}");
            assert_eq!(code, Some(0), "{flags:?}: {log}");
            let mut sidecar = bare.run();
            await_xds(19000, &sidecar);
            end(&mut sidecar);
        }
        Ends::Cut => {
            assert!(is_wrong, "{flags:?}: {found}");
            assert_eq!(code, Some(0), "{flags:?}: {log}");
            let mut sidecar = bare.run();
            sidecar.await_output("config stream to local_agent closed").unwrap();
            end(&mut sidecar);
        }
        Ends::Code(expected, word) => {
            assert!(is_wrong, "{flags:?}: {found}");
            assert_eq!(code, Some(expected), "{flags:?}: {log}");
            assert!(log.contains(word), "{flags:?}: {log}");
            let left = node.get("/v1/agent/services").unwrap();
            assert_eq!(left, json!({}), "{flags:?}: {log}");
        }
    }
}

fn end(sidecar: &mut Process) {
    sidecar.signal(Signal::SIGTERM).unwrap();
    assert_eq!(sidecar.wait().unwrap().code(), Some(0), "{}", sidecar.output());
}

#[test]
fn each_way_to_reach_the_agent_works_or_is_rejected_with_a_hint() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let files = Files::new(&node);
    let _agent = node
        .start_agent_with(&json!({
            "ports": {"https": 8501, "grpc_tls": 8503}, "tls": files.agent(),
        }))
        .unwrap();
    let no_ca = Ends::Code(64, "CA certificate");
    let untrusted = Ends::Code(69, "hint");
    for (http, grpc, has_ca, ends) in [
        (HTTP, GRPC, false, Ends::Connected),
        (HTTP, GRPC, true, Ends::Connected),
        (HTTP, GRPC_TLS, false, no_ca),
        (HTTP, GRPC_TLS, true, Ends::Connected),
        (HTTPS, GRPC, false, untrusted),
        (HTTPS, GRPC, true, Ends::Connected),
        (HTTPS, GRPC_TLS, false, no_ca),
        (HTTPS, GRPC_TLS, true, Ends::Connected),
    ] {
        let mut flags = vec![http.to_owned(), grpc.to_owned()];
        flags.extend(has_ca.then(|| files.ca_flag()));
        check(&node, &flags, ends);
    }
}

/// Since 1.14, `tls.defaults.verify_incoming` covers gRPC, too.
#[test]
fn an_agent_that_requires_a_client_certificate_gets_it_over_https_and_grpc() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let files = Files::new(&node);
    let mut tls = files.agent();
    tls["defaults"]["verify_incoming"] = true.into();
    let listens = json!({"https": 8501, "grpc_tls": 8503});
    for (grpc, ends) in
        [(json!({"verify_incoming": false}), Ends::Connected), (json!({}), Ends::Cut)]
    {
        tls["grpc"] = grpc;
        let _agent = node.start_agent_with(&json!({"ports": listens, "tls": tls})).unwrap();
        let flags = |http: &str| vec![http.to_owned(), GRPC_TLS.to_owned(), files.ca_flag()];
        check(&node, &flags(HTTPS), Ends::Code(69, "--client-cert"));
        check(&node, &flags(HTTP), ends);
        for http in [HTTP, HTTPS] {
            let flags = [flags(http), files.client_flags().to_vec()].concat();
            check(&node, &flags, Ends::Connected);
        }
    }
}

#[test]
fn the_grpc_port_is_read_from_the_agent() {
    learn_the_grpc_port(Parts::find_or_skip());
}

#[test]
fn the_grpc_port_is_read_from_an_agent_of_the_oldest_consul() {
    learn_the_grpc_port(Parts::with_oldest_consul_or_skip());
}

/// Without `--grpc-addr`, and with other ports than Consul's defaults. Up to 1.13, the only
/// gRPC port speaks TLS if there is HTTPS.
fn learn_the_grpc_port(parts: Option<Parts>) {
    let Some(parts) = parts else { return };
    let node = Node::new(parts).unwrap();
    let files = Files::new(&node);
    let agent = node.start_agent_with(&json!({"ports": {"grpc": 9502}})).unwrap();
    check(&node, &[HTTP.to_owned()], Ends::Connected);
    check(&node, &[HTTP.to_owned(), files.ca_flag()], Ends::Connected);
    drop(agent);
    let listens = if node.release().has_grpc_tls() {
        json!({"https": 8501, "grpc": -1, "grpc_tls": 9503})
    } else {
        json!({"https": 8501, "grpc": 9503})
    };
    let _agent = node.start_agent_with(&json!({"ports": listens, "tls": files.agent()})).unwrap();
    check(&node, &[HTTP.to_owned()], Ends::Code(64, "CA certificate"));
    for http in [HTTP, HTTPS] {
        check(&node, &[http.to_owned(), files.ca_flag()], Ends::Connected);
    }
}

/// The agent gets its certificate from the servers, signed by Connect's CA.
#[test]
fn an_agent_with_an_automatic_certificate_is_trusted_by_the_connect_ca() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let files = Files::new(&node);
    let server = json!({"auto_encrypt": {"allow_tls": true}, "tls": files.agent()});
    node.start_server_with(&server).unwrap();
    let _agent = node
        .start_agent_with(&json!({
            "ports": {"grpc_tls": 8503},
            "auto_encrypt": {"tls": true, "ip_san": [node.ip()]},
            "tls": {
                "defaults": {"ca_file": files.ca, "verify_outgoing": true},
                "grpc": {"use_auto_cert": true},
            },
        }))
        .unwrap();
    let roots = node.get("/v1/connect/ca/roots?pem=true").unwrap();
    let root = node.folder("tls").unwrap().join("root.pem");
    File::create(&root).unwrap().write_all(roots.as_str().unwrap().as_bytes()).unwrap();
    let flags = [
        "--http-addr=http://10.99.0.1:8500".to_owned(),
        "--grpc-addr=https://10.99.0.1:8503".to_owned(),
        format!("--grpc-ca-file={}", root.display()),
    ];
    check(&node, &flags, Ends::Connected);
}

/// Up to 1.13, the only gRPC port speaks TLS if there is HTTPS.
#[test]
fn the_grpc_port_of_the_oldest_consul_uses_tls_if_it_has_https() {
    let Some(parts) = Parts::with_oldest_consul_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let files = Files::new(&node);
    let _agent =
        node.start_agent_with(&json!({"ports": {"https": 8501}, "tls": files.agent()})).unwrap();
    let flags = [
        "--http-addr=https://10.99.0.1:8501".to_owned(),
        "--grpc-addr=https://10.99.0.1:8502".to_owned(),
        files.ca_flag(),
    ];
    check(&node, &flags, Ends::Connected);
}

/// With auto_encrypt, an agent presents a certificate signed by Connect's CA, whose roots
/// nobody has copied to pods. The injector reads the roots from a server, which it trusts by
/// the servers' CA.
#[test]
fn pods_trust_an_agent_whose_certificate_connects_ca_signed() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let files = Files::new(&node);
    start_server_with_auto_encrypt(&node, &files);
    let _agent = start_agent_with_auto_encrypt(&node, &files);
    // The servers' CA has not signed the agent's certificate.
    let flags = [HTTPS.to_owned(), GRPC_TLS.to_owned(), files.ca_flag()];
    check(&node, &flags, Ends::Code(69, "hint"));

    let injector = injector_of_auto_encrypt(&node, &files);
    let pod = injected(&node, &injector, ECHO_SERVER).unwrap();
    let _pod = started(&node, &pod).unwrap();
}

/// A pod starts with the current roots. Connect's CA cross-signs each new root with the one
/// before, and the pod reads it from the agent before the next rotation.
#[test]
fn a_pod_still_trusts_its_agent_after_connects_ca_was_rotated() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let files = Files::new(&node);
    start_server_with_auto_encrypt(&node, &files);
    let agent = start_agent_with_auto_encrypt(&node, &files);
    let injector = injector_of_auto_encrypt(&node, &files);
    let pod = injected(&node, &injector, ECHO_SERVER).unwrap();
    let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
    let mut pod = started(&node, &pod).unwrap();

    // Twice: the pod's first root has not signed the last one.
    let mut agent = agent;
    let root =
        pod.root("envoy-sidecar").unwrap().join("consul/connect-inject/connect-roots/roots.pem");
    for _ in 0..2 {
        let known = std::fs::read_to_string(&root).unwrap();
        agent = rotate(&node, &files, agent);
        let flag = format!("--ca-file={}", active_root(&node).display());
        check(&node, &[HTTPS.to_owned(), GRPC_TLS.to_owned(), flag], Ends::Connected);

        // The agent lost the registration: only a pod that trusts the agent can restore it.
        await_registered(&node, &name)
            .unwrap_or_else(|error| panic!("{error}\n{}", pod.log("envoy-sidecar")));
        pod.await_xds().unwrap();
        until("the new root", || std::fs::read_to_string(&root).is_ok_and(|now| now != known))
            .unwrap_or_else(|error| panic!("{error}\n{}", pod.log("envoy-sidecar")));
    }
}

/// The same without Kubernetes.
#[test]
fn a_sidecar_on_a_machine_still_trusts_its_agent_after_connects_ca_was_rotated() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let files = Files::new(&node);
    start_server_with_auto_encrypt(&node, &files);
    let mut agent = start_agent_with_auto_encrypt(&node, &files);
    let folder = node.folder("machine").unwrap();
    let definition = folder.join("web.hcl");
    let text =
        "service { name = \"web\" port = 8080 connect { sidecar_service { port = 20000 } } }";
    File::create(&definition).unwrap().write_all(text.as_bytes()).unwrap();
    let bins = &node.parts().bins;
    let dir = format!("--dir={}", folder.display());
    let flags = [
        "sidecar".to_owned(),
        "--auto-encrypt".to_owned(),
        dir.clone(),
        format!("--ca-file={}", active_root(&node).display()),
        HTTPS.to_owned(),
        GRPC_TLS.to_owned(),
        definition.display().to_string(),
    ];
    let mut register = node.start(&bins.join("connect-register"), &flags).unwrap();
    assert_eq!(register.wait().unwrap().code(), Some(0), "{}", register.output());
    // Ends with its parent, even if that is killed.
    let envoy = ["--", "setpriv", "--pdeathsig=KILL", "sleep", "infinity"];
    let flags = ["run", &dir].into_iter().chain(envoy).map(str::to_owned);
    let flags: Vec<_> = flags.collect();
    let sidecar = node.start(&bins.join("connect-lifecycle"), &flags).unwrap();
    for _ in 0..2 {
        let root = folder.join("connect-roots/roots.pem");
        let known = std::fs::read_to_string(&root).unwrap();
        agent = rotate(&node, &files, agent);
        // The agent lost the registration: only a sidecar that trusts the agent can restore it.
        until("the registration", || {
            let services = node.get("/v1/agent/services");
            services.is_ok_and(|services| services.get("web-sidecar-proxy").is_some())
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", sidecar.output()));
        until("the new root", || std::fs::read_to_string(&root).is_ok_and(|now| now != known))
            .unwrap();
    }
    drop(agent);
}

/// Rotates Connect's CA, and starts the agent again without its data.
fn rotate(node: &Node, files: &Files, agent: Process) -> Process {
    let active = || node.get("/v1/connect/ca/roots").unwrap()["ActiveRootID"].clone();
    let before = active();
    let key = KeyPair::generate().unwrap().serialize_pem();
    let rotated = json!({"Provider": "consul", "Config": {"PrivateKey": key}});
    node.put("/v1/connect/ca/configuration", Some(&rotated)).unwrap();
    until("another root", || active() != before).unwrap();
    // An agent that starts asks for a certificate at once.
    drop(agent);
    node.wipe_agent().unwrap();
    start_agent_with_auto_encrypt(node, files)
}

/// Writes the active root of Connect's CA to a file.
fn active_root(node: &Node) -> PathBuf {
    let roots = node.get("/v1/connect/ca/roots").unwrap();
    let is_active = |root: &&Value| root["Active"] == true;
    let root = roots["Roots"].as_array().unwrap().iter().find(is_active).unwrap();
    let path = node.folder("tls").unwrap().join("active.pem");
    let pem = root["RootCert"].as_str().unwrap();
    File::create(&path).unwrap().write_all(pem.as_bytes()).unwrap();
    path
}

/// Starts a server that issues the agents' certificates.
fn start_server_with_auto_encrypt(node: &Node, files: &Files) {
    let mut server = files.agent();
    server["defaults"]["verify_incoming"] = false.into();
    node.start_server_with(&json!({
        "ports": {"https": 8501}, "tls": server, "auto_encrypt": {"allow_tls": true},
    }))
    .unwrap();
}

/// Starts an agent that gets its certificate from the server.
fn start_agent_with_auto_encrypt(node: &Node, files: &Files) -> Process {
    node.start_agent_with(&json!({
        "ports": {"https": 8501, "grpc_tls": 8503},
        "auto_encrypt": {"tls": true, "ip_san": [node.ip()]},
        "tls": {
            "defaults": {"ca_file": files.ca, "verify_outgoing": true},
            "grpc": {"use_auto_cert": true},
        },
    }))
    .unwrap()
}

fn injector_of_auto_encrypt(node: &Node, files: &Files) -> Injector {
    let ca = files.ca.display();
    let server = format!("--http-addr=https://{}:8501", node.server_ip());
    node.start_injector_with(&[
        "--enable-auto-encrypt",
        &server,
        &format!("--ca-file={ca}"),
        "--tls-server-name=server.dc1.consul",
        &format!("--consul-ca-cert={ca}"),
        "--consul-grpc-addr-template=https://$(HOST_IP):8503",
    ])
    .unwrap()
}
