//! A running injector, its certificates, and requests to it.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::{Certificate, Client};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Timeout for anything, long enough for a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The tutorial's pods, unchanged.
pub(crate) const ECHO_SERVER: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: echo-server
  annotations:
    "consul.hashicorp.com/connect-inject": "true"
spec:
  containers:
    - name: echo-server
      image: hashicorp/http-echo:latest
      args:
        - -text="hello world"
        - -listen=:8080
      ports:
        - containerPort: 8080
          name: http
"#;
pub(crate) const ECHO_CLIENT: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: echo-client
  annotations:
    "consul.hashicorp.com/connect-inject": "true"
    "consul.hashicorp.com/connect-service-upstreams": "echo-server:1234"
spec:
  containers:
    - name: echo-client
      image: tutum/curl:latest
      # Just spin & wait forever, we'll use `kubectl exec` to demo
      command: [ "/bin/sh", "-c", "--" ]
      args: [ "while true; do sleep 30; done;" ]
"#;

/// Flags that every command requires.
pub(crate) const IMAGES: [&str; 4] = ["--init-image", "connect-init:1", "--envoy-image", "envoy:1"];

pub(crate) fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

/// A self-signed certificate for 127.0.0.1.
pub(crate) struct Certified {
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Certified {
    pub(crate) fn new() -> Self {
        Self::ending(2100)
    }

    /// A certificate that expires on the first day of a year.
    pub(crate) fn ending(year: i32) -> Self {
        let mut params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 2);
        let key = rcgen::KeyPair::generate().unwrap();
        Self { cert: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
    }
}

/// A Secret's volume as the kubelet lays it out: the files are links through `..data`,
/// which is swapped when the Secret changes.
pub(crate) struct SecretVolume {
    folder: TempDir,
    generation: u32,
}

impl SecretVolume {
    pub(crate) fn new(pair: &Certified) -> Self {
        let mut volume = Self { folder: tempfile::tempdir().unwrap(), generation: 0 };
        for file in ["tls.crt", "tls.key"] {
            let target = Path::new("..data").join(file);
            std::os::unix::fs::symlink(target, volume.path(file)).unwrap();
        }
        volume.swap(&pair.cert, &pair.key);
        volume
    }

    #[expect(clippy::disallowed_methods, reason = "the kubelet's folder is swapped whole")]
    pub(crate) fn swap(&mut self, cert: &str, key: &str) {
        let old = format!("..{}", self.generation);
        self.generation += 1;
        let new = format!("..{}", self.generation);
        std::fs::create_dir(self.path(&new)).unwrap();
        std::fs::write(self.path(&new).join("tls.crt"), cert).unwrap();
        std::fs::write(self.path(&new).join("tls.key"), key).unwrap();
        std::os::unix::fs::symlink(&new, self.path("..data_tmp")).unwrap();
        std::fs::rename(self.path("..data_tmp"), self.path("..data")).unwrap();
        if self.path(&old).exists() {
            std::fs::remove_dir_all(self.path(&old)).unwrap();
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// A running `connect-inject serve`; killed when dropped.
pub(crate) struct Injector {
    child: Child,
    log: Receiver<Value>,
    seen: VecDeque<Value>,
    pub(crate) address: String,
    pub(crate) admin: String,
    /// The files of its certificate; `None` with `--tls-auto`.
    secret: Option<SecretVolume>,
    /// The certificate that clients trust.
    pub(crate) pair: Certified,
}

impl Injector {
    pub(crate) fn start(flags: &[&str]) -> Self {
        Self::start_showing(Certified::new(), flags)
    }

    pub(crate) fn start_showing(pair: Certified, flags: &[&str]) -> Self {
        Self::start_program(assert_cmd::cargo::cargo_bin!("connect-inject"), pair, flags)
    }

    pub(crate) fn start_program(program: &Path, pair: Certified, flags: &[&str]) -> Self {
        let secret = SecretVolume::new(&pair);
        let (cert, key) = (secret.path("tls.crt"), secret.path("tls.key"));
        let tls = [
            "--tls-cert-file".as_ref(),
            cert.as_os_str(),
            "--tls-key-file".as_ref(),
            key.as_os_str(),
        ];
        let mut injector = Self::launch_program(program, &tls, flags, pair);
        injector.secret = Some(secret);
        injector
    }

    /// Starts it with these TLS flags.
    pub(crate) fn launch(tls: &[&OsStr], flags: &[&str], pair: Certified) -> Self {
        Self::launch_program(assert_cmd::cargo::cargo_bin!("connect-inject"), tls, flags, pair)
    }

    fn launch_program(program: &Path, tls: &[&OsStr], flags: &[&str], pair: Certified) -> Self {
        let mut child = Command::new(program)
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .args(["--log-format", "json"])
            .args(tls)
            .args(IMAGES)
            .args(flags)
            .envs(variables_of_the_image())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (lines, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        let mut injector = Self {
            child,
            log,
            seen: VecDeque::new(),
            address: String::new(),
            admin: String::new(),
            secret: None,
            pair,
        };
        let address = |line: Value| line["address"].as_str().unwrap().to_owned();
        injector.address = address(injector.await_log("over HTTPS"));
        injector.admin = address(injector.await_log("over HTTP"));
        injector
    }

    /// Replaces the files of its certificate.
    pub(crate) fn swap(&mut self, cert: &str, key: &str) {
        self.secret.as_mut().unwrap().swap(cert, key);
    }

    /// Waits for a log line whose message contains `part`.
    pub(crate) fn await_log(&mut self, part: &str) -> Value {
        loop {
            let line = self.log.recv_timeout(PATIENCE).unwrap_or_else(|error| {
                panic!("no line with `{part}` ({error}): {:?}", self.seen);
            });
            self.seen.push_back(line.clone());
            if line["message"].as_str().is_some_and(|message| message.contains(part)) {
                return line;
            }
        }
    }

    /// The log up to a line whose message contains `part`.
    pub(crate) fn log_until(&mut self, part: &str) -> Vec<Value> {
        self.await_log(part);
        self.seen.iter().cloned().collect()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Waits until it ends, and with it its log.
    pub(crate) fn await_exit(&mut self) -> ExitStatus {
        while let Ok(line) = self.log.recv_timeout(PATIENCE) {
            self.seen.push_back(line);
        }
        self.child.wait().unwrap()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its maximum resident memory in bytes, and how much of it is mapped from its own
    /// file: a test binary has much more of that than a release binary.
    pub(crate) fn most_resident(&self) -> (usize, usize) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").trim().parse::<usize>().unwrap() << 10
        };
        (bytes("VmHWM:"), bytes("RssFile:"))
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    pub(crate) fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    pub(crate) async fn review(&self, review: &Value) -> Value {
        let response =
            client(&self.pair).post(self.url("/mutate")).json(review).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/json");
        response.json().await.unwrap()
    }

    /// Asserts that it answers a valid review.
    pub(crate) async fn is_well(&self) {
        let answer = self.review(&review("v1", "well", &yaml(ECHO_SERVER))).await;
        assert_eq!(answer["response"]["auditAnnotations"]["reason"], "requested");
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn variables_of_the_image() -> impl Iterator<Item = (&'static str, &'static str)> {
    let image = include_str!("../../../../Dockerfile.init");
    image.lines().filter_map(|line| line.strip_prefix("ENV ")?.split_once('='))
}

/// A client that trusts only that certificate. Each call returns a new client, because a
/// connection that is kept would hide a change of certificate.
pub(crate) fn client(pair: &Certified) -> Client {
    install_provider();
    let certificate = Certificate::from_pem(pair.cert.as_bytes()).unwrap();
    Client::builder().no_proxy().timeout(PATIENCE).tls_certs_only([certificate]).build().unwrap()
}

/// Looks again and again until a look succeeds. Panics with what the last one saw.
pub(crate) async fn until<T, S: std::fmt::Debug>(mut look: impl AsyncFnMut() -> Result<T, S>) -> T {
    let mut seen = None;
    let looks = async {
        loop {
            match look().await {
                Ok(found) => return found,
                Err(other) => seen = Some(other),
            }
            // Leave processor time to the injector.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, looks).await;
    found.unwrap_or_else(|_| panic!("waited in vain; seen: {seen:?}"))
}

pub(crate) fn install_provider() {
    // Another test may have installed one first.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A review for the creation of a pod, as an API server posts it.
pub(crate) fn review(version: &str, uid: &str, pod: &Value) -> Value {
    json!({
        "apiVersion": format!("admission.k8s.io/{version}"),
        "kind": "AdmissionReview",
        "request": {
            "uid": uid,
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
            "requestResource": {"group": "", "version": "v1", "resource": "pods"},
            "name": pod["metadata"]["name"],
            "namespace": "default",
            "operation": "CREATE",
            "userInfo": {"username": "system:admin", "groups": ["system:masters"]},
            "object": pod,
            "oldObject": null,
            "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    })
}

/// Applies the patch of a response to the pod.
pub(crate) fn patched(pod: &Value, answer: &Value) -> Value {
    let patch = answer["response"]["patch"].as_str().unwrap();
    let patch = base64_simd::STANDARD.decode_to_vec(patch).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}
