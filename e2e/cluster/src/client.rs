//! A user's access to a cluster: kubectl, the API, and Consul on the node. Everything goes
//! through the API server, so that the cluster can be anywhere.

use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use reqwest::{Client, Method};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::mesh::{INJECT, NAMESPACE};
use harness::process::Process;
use harness::{Result, answer_to, parts, until};

const UNSET: &str = "KUBECONFIG is not set: run it by scripts/cluster run";

const WEBHOOKS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

/// The cluster of `KUBECONFIG`.
#[derive(Debug)]
pub struct Cluster {
    runtime: Runtime,
    client: Client,
    /// The address of `kubectl proxy`, which authenticates.
    api: String,
    _proxy: Process,
    _folder: TempDir,
}

/// A new namespace, deleted on drop.
#[derive(Debug)]
pub struct Namespace<'c> {
    cluster: &'c Cluster,
    pub name: String,
}

// === impl Cluster ===

impl Cluster {
    /// # Errors
    /// `KUBECONFIG` is not set, or the cluster can't be reached or lacks the mesh; with a hint.
    pub fn find() -> Result<Self> {
        let Some(files) = std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty()) else {
            return Err(UNSET.into());
        };
        if !std::env::split_paths(&files).any(|file| file.is_file()) {
            return Err(format!(
                "KUBECONFIG names {}, which does not exist\n\
                 hint: without KUBECONFIG, scripts/cluster starts a new cluster",
                files.display()
            )
            .into());
        }
        let cluster = Self::reach()?;
        cluster.check()?;
        Ok(cluster)
    }

    /// Checks that pods of tests and demo can run on the cluster.
    fn check(&self) -> Result<()> {
        self.get("/version").map_err(|error| {
            format!(
                "the cluster of KUBECONFIG does not answer: {}\n\
                 hint: check it with `kubectl version`; without KUBECONFIG, scripts/cluster \
                 starts a new cluster",
                error.to_string().trim_end()
            )
        })?;
        self.agent().map_err(|error| {
            format!(
                "there is no Consul client agent on the cluster of KUBECONFIG: {error}\n\
                 hint: install Consul's chart with client.enabled and client.grpc"
            )
        })?;
        self.consul("/v1/agent/self").map_err(|error| {
            format!(
                "Consul's client agent does not answer: {}\n\
                 hint: the tests send requests to the agent's pod: HTTP on port 8500, without a token",
                error.to_string().trim_end()
            )
        })?;
        self.get(&format!("{WEBHOOKS}/{INJECT}")).map_err(|error| {
            format!(
                "there is no injector on the cluster of KUBECONFIG: {}\n\
                 hint: helm install consul bins/connect-inject/chart --namespace {NAMESPACE}",
                error.to_string().trim_end()
            )
        })?;
        Ok(())
    }

    /// Starts `kubectl proxy`, which forwards requests to the API.
    fn reach() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("proxy.log");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let kubectl = std::env::split_paths(&path)
            .map(|folder| folder.join("kubectl"))
            .find(|file| file.is_file())
            .unwrap_or_else(|| PathBuf::from("kubectl"));
        let (sender, proxy) = std::sync::mpsc::channel();
        // A process ends with the thread that started it, and this one may be
        // that of the first test.
        std::thread::spawn(move || {
            let args = ["proxy", "--port=0"];
            let started = Process::start("kubectl proxy", log, &kubectl, &args, &[]);
            let _ = sender.send(started);
            loop {
                std::thread::park();
            }
        });
        let mut proxy = proxy.recv()??;
        proxy.await_output("Starting to serve on ")?;
        let said = proxy.output();
        let address = said.trim().rsplit(' ').next().unwrap_or_default();
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self {
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?,
            client: Client::builder()
                .tls_certs_only([])
                .no_proxy()
                .timeout(Duration::from_secs(30))
                .build()?,
            api: format!("http://{address}"),
            _proxy: proxy,
            _folder: folder,
        })
    }

    /// For tests: the cluster that all of them share, or `None` with a message on stderr if
    /// `KUBECONFIG` is not set. If `CI` is set, that is a failure.
    ///
    /// # Panics
    /// The cluster can't be used; or, in CI, `KUBECONFIG` is not set.
    pub fn find_or_skip() -> Option<&'static Self> {
        static SHARED: OnceLock<std::result::Result<Cluster, String>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| Self::find().map_err(|error| error.to_string()));
        match shared {
            Ok(cluster) => Some(cluster),
            Err(missing) if missing == UNSET => parts::or_skip(Err(missing.clone())),
            Err(error) => panic!("{error}"),
        }
    }

    /// Sends a GET request to the API.
    ///
    /// # Errors
    /// There is no response, or its status is not a success.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.request(Method::GET, path, None)
    }

    /// Sends a request to the API.
    ///
    /// # Errors
    /// There is no response, or its status is not a success.
    pub fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut request = self.client.request(method, format!("{}{path}", self.api));
        if let Some(body) = body {
            request = request.json(body);
        }
        answer_to(&self.runtime, request, path)
    }

    /// Watches objects until `see` returns true; it gets each event with the time of its
    /// arrival. Calls `opened` when the watch has started, so that no later event is missed.
    ///
    /// # Errors
    /// The API does not answer or ends the watch, or `see` did not return true within
    /// `patience`.
    pub fn watch(
        &self,
        path: &str,
        patience: Duration,
        opened: impl FnOnce(),
        mut see: impl FnMut(&Value, SystemTime) -> bool,
    ) -> Result<()> {
        let separator = if path.contains('?') { '&' } else { '?' };
        // resourceVersion=0 accepts any state. Otherwise the API server first waits until its
        // cache is as new as etcd, and fails after three seconds if etcd does not report its
        // progress.
        let url = format!("{}{path}{separator}watch=true&resourceVersion=0", self.api);
        self.runtime.block_on(async {
            let answer = self.client.get(url).timeout(patience).send().await?;
            let mut answer = answer.error_for_status()?;
            opened();
            let mut rest = Vec::new();
            while let Some(piece) = answer.chunk().await? {
                let at = SystemTime::now();
                rest.extend_from_slice(&piece);
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    let event: Value = serde_json::from_slice(&line)?;
                    if event["type"] == "ERROR" {
                        return Err(format!("the watch of {path}: {}", event["object"]).into());
                    }
                    if see(&event, at) {
                        return Ok(());
                    }
                }
            }
            Err(format!("the watch of {path} ended").into())
        })
    }

    /// Whether the cluster's Kubernetes is 1.`minor` or newer.
    ///
    /// # Errors
    /// There is no response, or it has no version.
    pub fn is_at_least(&self, minor: u32) -> Result<bool> {
        let version = self.get("/version")?;
        let has: u32 = text(&version["minor"]).trim_end_matches('+').parse()?;
        Ok(has >= minor)
    }

    /// Sends a GET request to the node's Consul agent, in whichever pod it runs now.
    ///
    /// # Errors
    /// There is no agent, or it does not answer.
    pub fn consul(&self, path: &str) -> Result<Value> {
        self.consul_request(Method::GET, path, None)
    }

    /// Sends a request to the node's Consul agent.
    ///
    /// # Errors
    /// There is no agent, or it does not answer.
    pub fn consul_request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value> {
        let agent = self.agent()?;
        let (namespace, name) =
            (text(&agent["metadata"]["namespace"]), text(&agent["metadata"]["name"]));
        let path = format!("/api/v1/namespaces/{namespace}/pods/http:{name}:8500/proxy{path}");
        self.request(method, &path, body)
    }

    /// The pod of the node's Consul agent, found by the labels of Consul's chart.
    ///
    /// # Errors
    /// No such pod is running.
    pub fn agent(&self) -> Result<Value> {
        let pods = self.get("/api/v1/pods?labelSelector=app%3Dconsul,component%3Dclient")?;
        let mut pods = pods["items"].as_array().cloned().unwrap_or_default();
        pods.retain(|pod| {
            pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] == "Running"
        });
        pods.pop().ok_or_else(|| "no pod has the labels app=consul, component=client".into())
    }

    /// Runs kubectl, and returns its output.
    ///
    /// # Errors
    /// It can't be started, or its exit code is not 0; with its output.
    pub fn kubectl(&self, args: &[impl AsRef<OsStr>], input: &str) -> Result<String> {
        let output = self.try_kubectl(args, input)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            return Ok(format!("{errors}{}", String::from_utf8_lossy(&output.stdout)));
        }
        let args: Vec<_> =
            args.iter().map(|arg| arg.as_ref().to_string_lossy().into_owned()).collect();
        Err(format!("kubectl {}: {}\n{errors}", args.join(" "), output.status).into())
    }

    /// Runs kubectl, and returns its output even if it fails.
    ///
    /// # Errors
    /// It can't be started.
    pub fn try_kubectl(&self, args: &[impl AsRef<OsStr>], input: &str) -> Result<Output> {
        let mut child = Command::new("kubectl")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot start kubectl: {error}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // kubectl may exit without reading its stdin.
            let _ = stdin.write_all(input.as_bytes());
        }
        Ok(child.wait_with_output()?)
    }

    /// Creates a namespace for a test, and waits until pods can be created in it.
    ///
    /// # Errors
    /// It can't be created.
    pub fn namespace(&self, purpose: &str) -> Result<Namespace<'_>> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{purpose}-{}-{number}", std::process::id());
        let body = serde_json::json!({"metadata": {"name": name}});
        self.request(Method::POST, "/api/v1/namespaces", Some(&body))?;
        let namespace = Namespace { cluster: self, name };
        until("the namespace's service account", || {
            let account = format!("/api/v1/namespaces/{}/serviceaccounts/default", namespace.name);
            self.get(&account).is_ok()
        })?;
        Ok(namespace)
    }

    /// The instances of a service whose checks all pass.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn passing(&self, service: &str) -> Result<Vec<Value>> {
        let found = self.consul(&format!("/v1/health/service/{service}?passing"))?;
        list(&found)
    }

    /// Whether the catalog has no instance of a service, healthy or not.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn is_unknown(&self, service: &str) -> Result<bool> {
        let found = self.consul(&format!("/v1/health/service/{service}"))?;
        Ok(found.as_array().is_some_and(Vec::is_empty))
    }

    /// Waits until a service and its proxy have exactly `count` instances, all healthy.
    ///
    /// # Errors
    /// They don't have; with all checks.
    pub fn await_instances(&self, service: &str, count: usize) -> Result<()> {
        let services = [service.to_owned(), format!("{service}-sidecar-proxy")];
        until(&format!("{count} healthy instances of {service}"), || {
            services.iter().all(|service| {
                let all = self.consul(&format!("/v1/health/service/{service}"));
                let all = all.is_ok_and(|all| all.as_array().map(Vec::len) == Some(count));
                all && self.passing(service).is_ok_and(|passing| passing.len() == count)
            })
        })
        .map_err(|error| {
            let state =
                services.map(|service| self.consul(&format!("/v1/health/service/{service}")));
            format!("{error}\n{state:#?}").into()
        })
    }
}

// === impl Namespace ===

impl Namespace<'_> {
    /// Runs kubectl in this namespace.
    ///
    /// # Errors
    /// Its exit code is not 0; with its output.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.cluster.kubectl(&self.with(args), "")
    }

    /// Runs kubectl in this namespace, and returns its output even if it fails.
    ///
    /// # Errors
    /// It can't be started.
    pub fn try_kubectl(&self, args: &[&str], input: &str) -> Result<Output> {
        self.cluster.try_kubectl(&self.with(args), input)
    }

    /// Applies a manifest, and returns kubectl's output.
    ///
    /// # Errors
    /// The API server rejects it.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        self.cluster.kubectl(&self.with(&["apply", "--filename=-"]), manifest)
    }

    /// A pod's object.
    ///
    /// # Errors
    /// The pod does not exist.
    pub fn pod(&self, name: &str) -> Result<Value> {
        self.cluster.get(&format!("/api/v1/namespaces/{}/pods/{name}", self.name))
    }

    /// The pods that match a label selector, such as `app=web`.
    ///
    /// # Errors
    /// The API does not answer.
    pub fn pods(&self, selector: &str) -> Result<Vec<Value>> {
        let selector = selector.replace('=', "%3D");
        let path = format!("/api/v1/namespaces/{}/pods?labelSelector={selector}", self.name);
        list(&self.cluster.get(&path)?["items"])
    }

    /// Waits until an object's condition is true, such as `Ready` of `pod/web`.
    ///
    /// # Errors
    /// It is not true in time; with the pods of the namespace.
    pub fn await_condition(&self, what: &str, condition: &str) -> Result<()> {
        let condition = format!("--for=condition={condition}");
        self.described(self.kubectl(&["wait", what, &condition, "--timeout=90s"]))
    }

    /// Waits until a rollout is done.
    ///
    /// # Errors
    /// It is not done in time; with the pods of the namespace.
    pub fn await_rollout(&self, what: &str) -> Result<()> {
        self.described(self.kubectl(&["rollout", "status", what, "--timeout=120s"]))
    }

    fn described(&self, result: Result<String>) -> Result<()> {
        result.map(drop).map_err(|error| {
            let pods = self.kubectl(&["describe", "pods"]).unwrap_or_default();
            format!("{error}\n{pods}").into()
        })
    }

    fn with<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        ["--namespace", &self.name].into_iter().chain(args.iter().copied()).collect()
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // Don't wait for the grace period of its pods.
        let path = format!("/api/v1/namespaces/{}", self.name);
        let _ = self.cluster.request(Method::DELETE, &path, None);
    }
}

/// An answer's list. Without this check, any other answer would be an empty one.
fn list(value: &Value) -> Result<Vec<Value>> {
    value.as_array().cloned().ok_or_else(|| format!("expected a list: {value}").into())
}

/// A field's text, or the empty string.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
