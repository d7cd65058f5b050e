//! Envoys that are fed by `e2e::xds` form a mesh, and follow the agent.
//!
//! Each test has a network of its own: two loopback addresses are two pods.

use std::ffi::OsString;
use std::future::{Future, pending};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::listener::v3::{Listener, filter::ConfigType};
use envoy_types::pb::envoy::config::rbac::v3::rbac::Action;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use nix::sched::{CloneFlags, unshare};
use prost::{Message, Name};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tonic::Code;
use tonic::transport::Identity;

const AGENT: &str = "http://127.0.0.1:8500";
const XDS: &str = "127.0.0.1:8502";
/// How long anything may take: more than any of it needs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const WEB: &str = "127.0.0.2";
const API: &str = "127.0.0.3";

#[test]
fn a_mesh_follows_the_agent() {
    let Some(parts) = Parts::find() else { return eprintln!("{SKIPPED}") };
    isolated(async {
        let agent = parts.agent(json!({})).await;
        let (stop, xds) = serve().await;
        let mesh = Mesh::start(&parts, &agent).await;

        // Only who has a certificate may come in.
        let refused = without_certificate(API).await.1;
        assert!(refused.is_err(), "answered: {refused:?}");

        // An intention cuts new connections, and its removal lets them through.
        let deny = json!({"SourceName": "web", "DestinationName": "api", "Action": "deny"});
        let intention = agent.post("connect/intentions", deny).await["ID"].clone();
        until("the intention cuts", async || get(UPSTREAM).await.is_err()).await;
        let stats = get_path((API, 19000), "/stats?filter=connect_authz.rbac.denied").await;
        assert!(!stats.as_ref().unwrap().contains("denied: 0"), "by the intention: {stats:?}");
        let id = intention.as_str().unwrap();
        agent.delete(&format!("connect/intentions/{id}")).await;
        until("it answers again", answers).await;

        // Endpoints come and go.
        let there = async |address: &str| {
            let clusters = get_path((WEB, 19000), "/clusters").await.unwrap();
            clusters.contains(&format!("::{address}:20000::"))
        };
        agent.register(proxy("api-2", "api", "127.0.0.4", &[])).await;
        until("the second endpoint comes", async || there("127.0.0.4").await).await;
        agent.deregister("api-2-sidecar-proxy").await;
        until("the second endpoint goes", async || !there("127.0.0.4").await).await;
        agent.deregister("api-1-sidecar-proxy").await;
        until("the last endpoint goes", async || !there(API).await).await;
        assert!(get(UPSTREAM).await.is_err());
        mesh.register_api(&agent).await;
        until("it answers after a new registration", answers).await;

        // Upstreams come and go with the proxy's registration.
        let query = json!({"Name": "find-api", "Service": {"Service": "api"}});
        agent.post("query", query).await;
        agent.register(proxy("web-1", "web", WEB, &[BY_NAME, BY_QUERY])).await;
        until("the second upstream answers", async || get((WEB, 5001)).await.is_ok()).await;
        agent.register(proxy("web-1", "web", WEB, &[BY_QUERY])).await;
        until("the first is gone", async || TcpStream::connect(UPSTREAM).await.is_err()).await;
        assert!(get((WEB, 5001)).await.is_ok());

        // The server ends although streams are open, and Envoy goes on without it.
        stop.send(()).unwrap();
        let ended = tokio::time::timeout(PATIENCE, xds).await.expect("the server must end");
        ended.unwrap().unwrap();
        assert!(get((WEB, 5001)).await.is_ok());
    });
}

#[test]
fn a_new_root_reaches_envoy_while_it_works() {
    let Some(parts) = Parts::find() else { return eprintln!("{SKIPPED}") };
    isolated(async {
        let agent = parts.agent(json!({})).await;
        let _xds = serve().await;
        let _mesh = Mesh::start(&parts, &agent).await;
        let leaf = async || {
            let leaf = agent.get("agent/connect/ca/leaf/api").await;
            CertificateDer::from_pem_slice(leaf["CertPEM"].as_str().unwrap().as_bytes()).unwrap()
        };
        let before = leaf().await;
        assert_eq!(without_certificate(API).await.0, before);

        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let rotate = json!({"Provider": "consul", "Config": {"PrivateKey": key, "RootCert": ""}});
        agent.put("connect/ca/configuration", rotate).await;
        until("the root changes", async || {
            let roots = agent.get("agent/connect/ca/roots").await;
            roots["Roots"].as_array().is_some_and(|roots| roots.len() == 2)
        })
        .await;
        until("Envoy has the new certificate", async || {
            assert!(answers().await, "no connection may fail meanwhile");
            let now = leaf().await;
            now != before && without_certificate(API).await.0 == now
        })
        .await;
        until("it answers", answers).await;
    });
}

#[test]
fn a_stream_has_the_rights_of_its_token() {
    let Some(parts) = Parts::find() else { return eprintln!("{SKIPPED}") };
    isolated(async {
        let root = "11111111-2222-3333-4444-555555555555";
        let acl = json!({"enabled": true, "default_policy": "deny", "tokens": {"master": root}});
        let agent = parts.agent(json!({"acl": acl})).await.with_token(root);
        let _xds = serve().await;
        let token = json!({"ServiceIdentities": [{"ServiceName": "web"}]});
        let token = agent.put("acl/token", token).await["SecretID"].as_str().unwrap().to_owned();
        let agent = agent.with_token(&token);
        agent.register(service("web-1", "web", WEB)).await;
        agent.register(proxy("web-1", "web", WEB, &[BY_NAME])).await;

        // A sidecar's token is enough, and nobody is allowed in by default.
        let public = listeners("web-1-sidecar-proxy", &token).await.unwrap();
        let public = public.resources.iter().find(|it| it.name.starts_with("public")).unwrap();
        assert_eq!(public.name, format!("public_listener:{WEB}:20000"));
        let public = Listener::decode(&*public.resource.as_ref().unwrap().value).unwrap();
        let rules = match &public.filter_chains[0].filters[0].config_type {
            Some(ConfigType::TypedConfig(any)) => Rbac::decode(&*any.value).unwrap().rules.unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!((rules.action(), rules.policies.len()), (Action::Allow, 0));

        let refused = listeners("web-1-sidecar-proxy", "00000000-0000-0000-0000-000000000000");
        let refused = refused.await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        let refused = listeners("web-1-sidecar-proxy", "").await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        for (id, why) in [("no-such-proxy", "unknown service ID"), ("web-1", "kind")] {
            let refused = listeners(id, &token).await.unwrap_err();
            assert_eq!(refused.code(), Code::NotFound, "{refused}");
            assert!(refused.message().contains(why), "{refused}");
        }
    });
}

#[test]
fn tls_is_spoken_if_asked_for() {
    isolated(async {
        let own = rcgen::generate_simple_self_signed(["test".to_owned()]).unwrap();
        let identity = Identity::from_pem(own.cert.pem(), own.signing_key.serialize_pem());
        let listener = TcpListener::bind(XDS).await.unwrap();
        tokio::spawn(e2e::xds::serve_tls(listener, AGENT.into(), identity, pending()));
        let stream = tls(("127.0.0.1", 8502), &["h2"]).await;
        let connection = stream.get_ref().1;
        assert_eq!(connection.alpn_protocol(), Some(&b"h2"[..]));
        assert_eq!(connection.peer_certificates().unwrap()[0], *own.cert.der());
    });
}

// === the parts ===

const SKIPPED: &str = "skipped: CONSUL_BIN and ENVOY_BIN must name Consul 1.8 and Envoy 1.40";

struct Parts {
    consul: PathBuf,
    envoy: PathBuf,
    dir: tempfile::TempDir,
}

impl Parts {
    /// None if they aren't there and needn't be.
    fn find() -> Option<Self> {
        let part = |name| std::env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
        let found = part("CONSUL_BIN").zip(part("ENVOY_BIN"));
        assert!(found.is_some() || std::env::var_os("CI").is_none(), "{SKIPPED}");
        let (consul, envoy) = found?;
        Some(Self { consul, envoy, dir: tempfile::tempdir().expect("a temporary folder") })
    }

    fn write(&self, name: &str, content: &Value) -> PathBuf {
        let path = self.dir.path().join(name);
        let file = std::fs::File::create(&path).expect("a file in our folder");
        serde_json::to_writer(file, content).expect("a file in our folder");
        path
    }

    /// A Consul agent with `extra` configuration, ready to be used.
    async fn agent(&self, extra: Value) -> Agent {
        let mut config = json!({
            "ports": {"grpc": -1}, "connect": {"enabled": true}, "disable_update_check": true,
        });
        config
            .as_object_mut()
            .expect("an object")
            .extend(extra.as_object().expect("an object").clone());
        let config = self.write("agent.json", &config);
        let mut command = vec![self.consul.clone().into_os_string()];
        command.extend(
            ["agent", "-dev", "-node", "n1", "-bind", "127.0.0.1", "-client", "127.0.0.1"]
                .map(OsString::from),
        );
        command.extend(["-config-file".into(), config.into()]);
        let process = Arc::new(Child::spawn(&command, self.dir.path(), "consul"));
        let client = reqwest::Client::builder().tls_certs_only([]).no_proxy();
        let client = client.build().expect("a client needs nothing");
        let agent = Agent { client, token: String::new(), _process: process };
        until("the agent is up", async || {
            let roots = agent.request("GET", "agent/connect/ca/roots", None).await;
            roots.is_ok_and(|it| it["Roots"].is_array())
        })
        .await;
        agent
    }

    /// An Envoy that is fed by our server.
    fn envoy(&self, proxy: &str, address: &str) -> Child {
        let endpoint = |address: &str, port: u16| json!({"socket_address": {"address": address, "port_value": port}});
        let ads = json!({"ads": {}, "resource_api_version": "V3"});
        let bootstrap = json!({
            "admin": {"address": endpoint(address, 19000)},
            "node": {"id": proxy, "cluster": proxy},
            "static_resources": {"clusters": [{
                "name": "agent", "type": "STATIC", "connect_timeout": "1s",
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": {"http2_protocol_options": {}},
                    },
                },
                "load_assignment": {"cluster_name": "agent", "endpoints": [{"lb_endpoints": [
                    {"endpoint": {"address": endpoint("127.0.0.1", 8502)}},
                ]}]},
            }]},
            "dynamic_resources": {"lds_config": ads, "cds_config": ads, "ads_config": {
                "api_type": "DELTA_GRPC", "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "agent"}}],
            }},
        });
        let config = self.write(&format!("{proxy}.json"), &bootstrap);
        let command = [
            self.envoy.clone().into(),
            "--config-path".into(),
            config.into(),
            // Hot restart shares memory with every other Envoy of the machine.
            "--disable-hot-restart".into(),
            "--concurrency".into(),
            "1".into(),
        ];
        Child::spawn(&command, self.dir.path(), proxy)
    }
}

/// Our server; sending to it, or dropping it, ends it.
async fn serve() -> (oneshot::Sender<()>, tokio::task::JoinHandle<Result<(), e2e::xds::Error>>) {
    let listener = TcpListener::bind(XDS).await.expect("nobody else is in our network");
    let (stop, stopped) = oneshot::channel();
    let shutdown = async { drop(stopped.await) };
    (stop, tokio::spawn(e2e::xds::serve(listener, AGENT.into(), shutdown)))
}

/// A process that dies with the test, even if the test is killed.
struct Child(std::process::Child);

impl Child {
    fn spawn(command: &[OsString], dir: &Path, log: &str) -> Self {
        let log = std::fs::File::create(dir.join(log).with_extension("log")).expect("our folder");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .args(command)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file has copies"))
            .stderr(log)
            .spawn();
        Self(child.expect("setpriv is there"))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// === the agent ===

#[derive(Clone)]
struct Agent {
    client: reqwest::Client,
    token: String,
    _process: Arc<Child>,
}

impl Agent {
    fn with_token(&self, token: &str) -> Self {
        Self { token: token.into(), ..self.clone() }
    }

    async fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, String> {
        let method = method.parse().expect("a method");
        let mut request = self.client.request(method, format!("{AGENT}/v1/{path}"));
        request = request.header("X-Consul-Token", &self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.map_err(|error| error.to_string())?;
        let status = response.status();
        let text = response.text().await.map_err(|error| error.to_string())?;
        let answer = serde_json::from_str(&text).unwrap_or(Value::Null);
        if status.is_success() { Ok(answer) } else { Err(format!("{path}: {status} {text}")) }
    }

    async fn get(&self, path: &str) -> Value {
        self.request("GET", path, None).await.expect("the agent answers")
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.request("POST", path, Some(body)).await.expect("the agent accepts")
    }

    async fn delete(&self, path: &str) {
        self.request("DELETE", path, None).await.expect("the agent accepts");
    }

    /// Tried for a while: a fresh agent has no leader, and no ACLs without one.
    async fn put(&self, path: &str, body: Value) -> Value {
        let start = Instant::now();
        loop {
            match self.request("PUT", path, Some(body.clone())).await {
                Ok(answer) => return answer,
                Err(error) => {
                    let hopeless = error.contains(": 400 ") || start.elapsed() > PATIENCE;
                    assert!(!hopeless, "{error}");
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn register(&self, body: Value) {
        self.put("agent/service/register", body).await;
    }

    async fn deregister(&self, id: &str) {
        self.put(&format!("agent/service/deregister/{id}"), json!(null)).await;
    }
}

fn service(id: &str, name: &str, address: &str) -> Value {
    json!({"ID": id, "Name": name, "Address": address, "Port": 9001})
}

/// An upstream: type, name, port on web's address.
type Upstream = (&'static str, &'static str, u16);

const BY_NAME: Upstream = ("service", "api", 5000);
const BY_QUERY: Upstream = ("prepared_query", "find-api", 5001);

fn proxy(id: &str, name: &str, address: &str, upstreams: &[Upstream]) -> Value {
    let upstream = |(kind, name, port): &Upstream| {
        json!({
            "DestinationType": kind, "DestinationName": name,
            "LocalBindAddress": address, "LocalBindPort": port,
        })
    };
    json!({
        "ID": format!("{id}-sidecar-proxy"), "Name": format!("{name}-sidecar-proxy"),
        "Kind": "connect-proxy", "Address": address, "Port": 20000,
        "Proxy": {
            "DestinationServiceName": name, "DestinationServiceID": id,
            "LocalServiceAddress": address, "LocalServicePort": 9001,
            "Upstreams": upstreams.iter().map(upstream).collect::<Vec<_>>(),
        },
    })
}

// === the mesh ===

/// Where web reaches api.
const UPSTREAM: (&str, u16) = (WEB, 5000);

/// web with api as upstream, both with an Envoy.
struct Mesh {
    _envoys: [Child; 2],
}

impl Mesh {
    /// Started, and seen to answer.
    async fn start(parts: &Parts, agent: &Agent) -> Self {
        tokio::spawn(echo(TcpListener::bind((API, 9001)).await.expect("a free port")));
        let envoys = [
            parts.envoy("web-1-sidecar-proxy", WEB),
            // This one comes before its registration, is told so, and tries again.
            parts.envoy("api-1-sidecar-proxy", API),
        ];
        let mesh = Self { _envoys: envoys };
        agent.register(service("web-1", "web", WEB)).await;
        agent.register(proxy("web-1", "web", WEB, &[BY_NAME])).await;
        mesh.register_api(agent).await;
        until("api answers through both Envoys", answers).await;
        mesh
    }

    async fn register_api(&self, agent: &Agent) {
        agent.register(service("api-1", "api", API)).await;
        agent.register(proxy("api-1", "api", API, &[])).await;
    }
}

async fn answers() -> bool {
    get(UPSTREAM).await.is_ok_and(|answer| answer.ends_with("echo GET /hello"))
}

/// Answers each request with its method and path.
async fn echo(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut request = vec![0; 1024];
            let length = stream.read(&mut request).await?;
            let request = String::from_utf8_lossy(&request[..length]);
            let line = request.split(" HTTP/").next().unwrap_or_default();
            let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\necho {line}");
            stream.write_all(answer.as_bytes()).await
        });
    }
}

async fn get(address: (&str, u16)) -> std::io::Result<String> {
    get_path(address, "/hello").await
}

/// An answer, or why there is none; no answer at all is an error as well.
async fn get_path(address: (&str, u16), path: &str) -> std::io::Result<String> {
    let stream = TcpStream::connect(address).await?;
    exchange(stream, path).await
}

async fn exchange(
    mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin,
    path: &str,
) -> std::io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await??;
    if answer.is_empty() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer)
}

/// The certificate that a public listener shows, and what it answers to somebody
/// who has none.
async fn without_certificate(address: &str) -> (CertificateDer<'static>, std::io::Result<String>) {
    let stream = tls((address, 20000), &[]).await;
    let certificates = stream.get_ref().1.peer_certificates().expect("after the handshake");
    (certificates[0].clone().into_owned(), exchange(stream, "/").await)
}

/// TLS without a certificate of our own. In TLS 1.3 a server that wants one
/// refuses only after the handshake.
async fn tls(
    address: (&str, u16),
    protocols: &[&str],
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut config = rustls::ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(address).await.expect("somebody listens");
    let name = ServerName::try_from("test").expect("a name");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.expect("TLS is spoken")
}

#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = rustls::crypto::ring::default_provider();
        provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The first response to somebody who asks for all listeners of `node`.
async fn listeners(node: &str, token: &str) -> Result<DeltaDiscoveryResponse, tonic::Status> {
    let client = AggregatedDiscoveryServiceClient::connect(format!("http://{XDS}")).await;
    let ask = DeltaDiscoveryRequest {
        node: Some(Node { id: node.into(), ..Node::default() }),
        type_url: Listener::type_url(),
        ..DeltaDiscoveryRequest::default()
    };
    // The stream of requests stays open: its end would end the conversation.
    let (requests, stream) = tokio::sync::mpsc::channel(1);
    requests.send(ask).await.expect("room for one");
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let mut request = tonic::Request::new(stream);
    request.metadata_mut().insert("x-consul-token", token.parse().expect("a token"));
    let mut client = client.expect("the server is there");
    let mut responses = client.delta_aggregated_resources(request).await?.into_inner();
    Ok(responses.message().await?.expect("a response"))
}

// === the frame ===

/// Runs `test` in a network of its own. What it starts from here is in it too.
fn isolated(test: impl Future<Output = ()>) {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network of our own needs root");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip is there");
    assert!(up.success());
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Shown only if the test fails.
    let _ = tracing_subscriber::fmt().with_test_writer().with_ansi(false).try_init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(test);
}

/// Waits until `condition` holds.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
