//! A fake Kubernetes API server on a real socket, with what the injector uses: Secrets and
//! MutatingWebhookConfigurations with their resource versions, watches, and faults on
//! demand.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::harness::PATIENCE;

/// Name of the webhook configuration.
pub(crate) const WEBHOOKS: &str = "connect-inject";

pub(crate) struct Kubernetes {
    model: Arc<Mutex<Model>>,
    changes: watch::Sender<u64>,
    folder: TempDir,
}

/// The state of the API server.
#[derive(Default)]
struct Model {
    version: u64,
    secret: Option<Value>,
    /// A Secret that someone else creates just before the injector does.
    faster: Option<Value>,
    webhooks: Option<Value>,
    /// Answers every request with this status.
    fault: Option<u16>,
    /// Received requests: method and path.
    requests: Vec<String>,
    minor: u32,
}

impl Kubernetes {
    pub(crate) fn start() -> Self {
        let model = Arc::new(Mutex::new(Model { minor: 31, ..Model::default() }));
        let (changes, _) = watch::channel(0);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        // On a thread of its own, because a test may block while it waits for a log line.
        std::thread::spawn({
            let (model, changes) = (Arc::clone(&model), changes.clone());
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(serve(listener, model, changes));
            }
        });
        let server = Self { model, changes, folder: tempfile::tempdir().unwrap() };
        server.write_kubeconfig(&format!("http://{address}"));
        server.set_webhooks(&["a.example.com", "b.example.com"]);
        server
    }

    #[expect(clippy::disallowed_methods, reason = "no process reads it yet")]
    fn write_kubeconfig(&self, server: &str) {
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
        });
        std::fs::write(self.kubeconfig(), kubeconfig.to_string()).unwrap();
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    fn with<T>(&self, change: impl FnOnce(&mut Model) -> T) -> T {
        let (result, version) = {
            let mut model = self.model.lock().unwrap();
            model.version += 1;
            (change(&mut model), model.version)
        };
        self.changes.send_replace(version);
        result
    }

    /// Sets a webhook configuration without a caBundle, as a chart does.
    pub(crate) fn set_webhooks(&self, names: &[&str]) {
        let webhooks: Vec<_> = names
            .iter()
            .map(|name| {
                json!({"name": name, "sideEffects": "None", "admissionReviewVersions": ["v1"],
                    "clientConfig": {"service": {"name": "s", "namespace": "n"}}})
            })
            .collect();
        self.with(|model| {
            let version = model.version.to_string();
            model.webhooks = Some(json!({
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "MutatingWebhookConfiguration",
                "metadata": {"name": WEBHOOKS, "resourceVersion": version, "labels": {"of": "users"}},
                "webhooks": webhooks,
            }));
        });
    }

    pub(crate) fn remove_webhooks(&self) {
        self.with(|model| model.webhooks = None);
    }

    pub(crate) fn webhooks(&self) -> Value {
        self.model.lock().unwrap().webhooks.clone().unwrap()
    }

    /// The caBundle of all webhooks, if it is the same.
    pub(crate) fn bundle(&self) -> Option<String> {
        let webhooks = self.model.lock().unwrap().webhooks.clone()?;
        let mut bundles = webhooks["webhooks"]
            .as_array()?
            .iter()
            .map(|webhook| decoded(&webhook["clientConfig"]["caBundle"]));
        let first = bundles.next()??;
        bundles.all(|bundle| bundle.as_ref() == Some(&first)).then_some(first)
    }

    /// A value of the Secret.
    pub(crate) fn secret(&self, key: &str) -> Option<String> {
        decoded(&self.model.lock().unwrap().secret.as_ref()?["data"][key])
    }

    pub(crate) fn whole_secret(&self) -> Option<Value> {
        self.model.lock().unwrap().secret.clone()
    }

    /// Overwrites the Secret, as someone else.
    pub(crate) fn set_secret(&self, data: Option<&[(&str, &str)]>) {
        self.with(|model| {
            let version = model.version.to_string();
            model.secret = data.map(|data| {
                let data: serde_json::Map<String, Value> = data
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), encoded(value.as_bytes()).into()))
                    .collect();
                json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
                    "metadata": {"name": format!("{WEBHOOKS}-tls"), "namespace": "shop",
                        "resourceVersion": version}, "data": data})
            });
        });
    }

    pub(crate) fn fail(&self, status: Option<u16>) {
        self.with(|model| model.fault = status);
    }

    /// Creates the Secret, as someone else, just before the injector does.
    pub(crate) fn overtake(&self, secret: Value) {
        self.with(|model| model.faster = Some(secret));
    }

    /// Upgrades to Kubernetes 1.`minor`.
    pub(crate) fn upgrade(&self, minor: u32) {
        self.with(|model| model.minor = minor);
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.model.lock().unwrap().requests.clone()
    }

    /// Waits until a condition holds; checked after each change.
    pub(crate) async fn until<T>(
        &self,
        what: &str,
        mut wanted: impl FnMut(&Self) -> Option<T>,
    ) -> T {
        let mut changes = self.changes.subscribe();
        tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(found) = wanted(self) {
                    return found;
                }
                changes.changed().await.unwrap();
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{what}: {:#?}", self.requests()))
    }
}

fn encoded(value: &[u8]) -> String {
    base64_simd::STANDARD.encode_to_string(value)
}

fn decoded(value: &Value) -> Option<String> {
    let bytes = base64_simd::STANDARD.decode_to_vec(value.as_str()?).unwrap();
    Some(String::from_utf8(bytes).unwrap())
}

type Body = BoxBody<Bytes, Infallible>;

async fn serve(
    listener: std::net::TcpListener,
    model: Arc<Mutex<Model>>,
    changes: watch::Sender<u64>,
) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        let (model, changes) = (Arc::clone(&model), changes.clone());
        tokio::spawn(async move {
            let service =
                service_fn(move |request| answer(Arc::clone(&model), changes.clone(), request));
            // The client may close the connection at any time.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    model: Arc<Mutex<Model>>,
    changes: watch::Sender<u64>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let query = parts.uri.query().unwrap_or_default();
    if query.contains("watch=true") && model.lock().unwrap().fault.is_none() {
        model.lock().unwrap().requests.push(format!("WATCH {}", parts.uri.path()));
        assert!(query.contains("fieldSelector=metadata.name%3Dconnect-inject"), "{query}");
        return Ok(watched(model, changes.subscribe(), query));
    }
    let (status, answer, version) = {
        let mut model = model.lock().unwrap();
        model.requests.push(format!("{} {}", parts.method, parts.uri.path()));
        let before = model.version;
        let (status, answer) = match model.fault {
            Some(fault) => (fault, failure(fault, "out of order")),
            None => model.answer(&parts.method, parts.uri.path(), &body),
        };
        (status, answer, (model.version > before).then_some(model.version))
    };
    // A request counts as a change for `until`.
    changes.send_modify(|known| *known = version.unwrap_or(*known));
    let mut response = Response::new(Full::from(answer.to_string()).boxed());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    Ok(response)
}

/// Streams an event once the configuration has another resource version.
fn watched(
    model: Arc<Mutex<Model>>,
    mut changes: watch::Receiver<u64>,
    query: &str,
) -> Response<Body> {
    let seen = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion=")).unwrap();
    let seen = seen.to_owned();
    let (events, mut next) = tokio::sync::mpsc::channel::<Bytes>(1);
    tokio::spawn(async move {
        loop {
            let now = {
                let model = model.lock().unwrap();
                if model.fault.is_some() {
                    return;
                }
                model.webhooks.clone()
            };
            let event = match now {
                None => {
                    Some(json!({"type": "DELETED", "object": {"metadata": {"name": WEBHOOKS}}}))
                }
                Some(now) if now["metadata"]["resourceVersion"] != seen.as_str() => {
                    Some(json!({"type": "MODIFIED", "object": now}))
                }
                Some(_) => None,
            };
            if let Some(event) = event {
                let _ = events.send(format!("{event}\n").into()).await;
                return;
            }
            tokio::select! {
                result = changes.changed() => if result.is_err() { return },
                () = events.closed() => return,
            }
        }
    });
    let stream = futures_util::stream::poll_fn(move |context| {
        next.poll_recv(context).map(|event| event.map(|event| Ok(Frame::data(event))))
    });
    Response::new(BodyExt::boxed(StreamBody::new(stream)))
}

fn failure(code: u16, message: &str) -> Value {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        _ => "InternalError",
    };
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code,
        "reason": reason, "message": message, "metadata": {}})
}

fn conflict() -> (u16, Value) {
    (409, failure(409, "the object has been modified"))
}

fn found(object: Option<&Value>) -> (u16, Value) {
    object.map_or_else(missing, |object| (200, object.clone()))
}

fn missing() -> (u16, Value) {
    (404, failure(404, "not found"))
}

impl Model {
    fn answer(&mut self, method: &Method, path: &str, body: &Value) -> (u16, Value) {
        const SECRETS: &str = "/api/v1/namespaces/shop/secrets";
        const CONFIGURATION: &str =
            "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/connect-inject";
        match (method.as_str(), path) {
            ("GET", "/version") => (200, self.version_info()),
            ("GET", CONFIGURATION) => found(self.webhooks.as_ref()),
            ("PATCH", CONFIGURATION) => self.patch_webhooks(body),
            ("POST", SECRETS) => self.create_secret(body),
            ("GET", path) if path == format!("{SECRETS}/{WEBHOOKS}-tls") => {
                found(self.secret.as_ref())
            }
            ("PUT", path) if path == format!("{SECRETS}/{WEBHOOKS}-tls") => {
                self.replace_secret(body)
            }
            _ => (404, failure(404, &format!("unexpected request: {method} {path}"))),
        }
    }

    fn version_info(&self) -> Value {
        json!({"major": "1", "minor": format!("{}+", self.minor), "gitVersion": "v1",
            "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "",
            "platform": ""})
    }

    /// A strategic merge patch merges list entries by name.
    fn patch_webhooks(&mut self, body: &Value) -> (u16, Value) {
        let Some(configuration) = &mut self.webhooks else { return missing() };
        if body["metadata"]["resourceVersion"] != configuration["metadata"]["resourceVersion"] {
            return conflict();
        }
        for entry in body["webhooks"].as_array().unwrap() {
            let webhook = configuration["webhooks"].as_array_mut().unwrap();
            let webhook = webhook.iter_mut().find(|w| w["name"] == entry["name"]).unwrap();
            webhook["clientConfig"]["caBundle"] = entry["clientConfig"]["caBundle"].clone();
        }
        self.version += 1;
        configuration["metadata"]["resourceVersion"] = self.version.to_string().into();
        (200, configuration.clone())
    }

    fn create_secret(&mut self, body: &Value) -> (u16, Value) {
        if let Some(faster) = self.faster.take() {
            self.secret = Some(faster);
        }
        if self.secret.is_some() {
            return conflict();
        }
        let secret = self.next_version_of(body);
        self.secret = Some(secret.clone());
        (201, secret)
    }

    fn replace_secret(&mut self, body: &Value) -> (u16, Value) {
        let Some(secret) = &self.secret else { return missing() };
        if body["metadata"]["resourceVersion"] != secret["metadata"]["resourceVersion"] {
            return conflict();
        }
        let secret = self.next_version_of(body);
        self.secret = Some(secret.clone());
        (200, secret)
    }

    fn next_version_of(&mut self, object: &Value) -> Value {
        self.version += 1;
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        object
    }
}
