//! A real Consul agent in its development mode, for one test.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use definition::Since;
use serde_json::{Map, Value, json};

use crate::program::Files;

/// A running agent; it ends with this.
pub(crate) struct RealAgent {
    consul: String,
    process: Child,
    pub(crate) http: String,
    pub(crate) grpc: u16,
    files: Files,
}

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

impl RealAgent {
    /// Starts an agent with this added to its configuration; none if there is no
    /// Consul here.
    pub(crate) fn start(configuration: &Value) -> Option<Self> {
        let consul = program_or_skip("CONSUL_BIN")?;
        // A port that was free may be taken a moment later, so more than once.
        (0..5)
            .find_map(|_| Self::try_start(&consul, configuration))
            .or_else(|| panic!("{consul} does not start"))
    }

    fn try_start(consul: &str, configuration: &Value) -> Option<Self> {
        let [http, grpc, lan, wan, server] = free_ports();
        let mut all = json!({
            "ports": {"dns": -1, "http": http, "grpc": grpc, "serf_lan": lan, "serf_wan": wan,
                "server": server},
            "log_level": "warn",
        });
        if knows_grpc_tls(consul) {
            // A port of its own from 1.14 on, open by default with -dev.
            all["ports"]["grpc_tls"] = json!(-1);
        }
        let files = Files::new();
        all["data_dir"] = json!(files.path("data"));
        let map = all.as_object_mut().expect("an object");
        map.extend(configuration.as_object().cloned().unwrap_or_default());
        let file = files.json("agent.json", &all);
        let process = Command::new(consul)
            .args(["agent", "-dev", "-node", "n1", "-bind", "127.0.0.1", "-client", "127.0.0.1"])
            .args(["-config-file", &file])
            .env_clear()
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("CONSUL_BIN is a program");
        let http = format!("127.0.0.1:{http}");
        let mut agent = Self { consul: consul.to_owned(), process, http, grpc, files };
        agent.is_ready().then_some(agent)
    }

    /// Waits for the agent to be its own leader; false if it ends instead.
    fn is_ready(&mut self) -> bool {
        let began = Instant::now();
        loop {
            if self.process.try_wait().unwrap().is_some() {
                return false;
            }
            if self.get("/v1/status/leader", "").is_some_and(|leader| leader != json!("")) {
                return true;
            }
            assert!(began.elapsed() < PATIENCE, "the agent has no leader");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks until the answer is as wanted.
    pub(crate) fn wait_until(&self, path: &str, token: &str, wanted: impl Fn(&Value) -> bool) {
        let began = Instant::now();
        while !self.get(path, token).is_some_and(|answer| wanted(&answer)) {
            assert!(began.elapsed() < PATIENCE, "{path} is not as wanted");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the agent answers, if it is JSON and 200.
    pub(crate) fn get(&self, path: &str, token: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(&self.http).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nX-Consul-Token: {token}\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.contains(" 200 ").then(|| serde_json::from_str(body).ok()).flatten()
    }

    /// Sends JSON to the agent.
    pub(crate) fn put(&self, path: &str, body: &Value) {
        let answer = self.try_put(path, body);
        assert!(answer.contains(" 200 "), "{answer}");
    }

    /// Sends JSON to the agent and returns the whole answer.
    pub(crate) fn try_put(&self, path: &str, body: &Value) -> String {
        let body = body.to_string();
        let mut stream = TcpStream::connect(&self.http).unwrap();
        let length = body.len();
        write!(stream, "PUT {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// What the agent answers and what it keeps on its disk: services and checks,
    /// without what changes from one moment to the next. The disk has more: every
    /// key of a check, and tokens.
    pub(crate) fn state(&self) -> Value {
        let mut services = self.get("/v1/agent/services", "").unwrap();
        let mut checks = self.get("/v1/agent/checks", "").unwrap();
        for check in checks.as_object_mut().unwrap().values_mut() {
            forget_result(check);
        }
        let mut kept_services = self.kept("services", "/Service/ID", &services);
        services.as_object_mut().unwrap().values_mut().for_each(forget_virtual);
        kept_services.values_mut().for_each(|kept| forget_virtual(&mut kept["Service"]));
        let mut kept_checks = self.kept("checks", "/Check/CheckID", &checks);
        for kept in kept_checks.values_mut() {
            forget_result(&mut kept["Check"]);
        }
        json!({
            "services": services, "checks": checks,
            "kept_services": kept_services, "kept_checks": kept_checks,
        })
    }

    /// What the agent keeps in a directory of its data, by id: of the entries that it
    /// has, since it removes files a moment later.
    fn kept(&self, folder: &str, id: &str, entries: &Value) -> Map<String, Value> {
        // There is no directory before the first file.
        let files = std::fs::read_dir(self.files.path("data").join(folder));
        let texts =
            files.into_iter().flatten().filter_map(|file| std::fs::read(file.ok()?.path()).ok());
        let kept = texts.filter_map(|text| {
            let kept: Value = serde_json::from_slice(&text).ok()?;
            let id = kept.pointer(id)?.as_str()?.to_owned();
            entries.get(&id).is_some().then_some((id, kept))
        });
        kept.collect()
    }

    /// Runs Consul's own CLI and returns what it printed.
    pub(crate) fn cli(&self, args: &[&str]) -> String {
        let (succeeded, said) = self.try_cli(args);
        assert!(succeeded, "consul {args:?}: {said}");
        said
    }

    /// Runs Consul's own CLI: whether it succeeded, and what it printed or said.
    pub(crate) fn try_cli(&self, args: &[&str]) -> (bool, String) {
        let output = Command::new(&self.consul)
            .args(args)
            .env_clear()
            .env("CONSUL_HTTP_ADDR", &self.http)
            .output()
            .unwrap();
        let succeeded = output.status.success();
        let said = if succeeded { output.stdout } else { output.stderr };
        (succeeded, String::from_utf8_lossy(&said).into_owned())
    }

    /// Consul's own program.
    pub(crate) fn consul(&self) -> &str {
        &self.consul
    }

    /// A file in a directory of its own; returns the directory.
    pub(crate) fn write_in(&self, folder: &str, name: &str, text: &str) -> String {
        let path = self.files.path(folder);
        std::fs::create_dir_all(&path).unwrap();
        self.files.add(&format!("{folder}/{name}"), text);
        path.to_str().unwrap().to_owned()
    }

    /// A definition file of any format.
    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        self.files.add(name, text)
    }

    /// A definition file.
    pub(crate) fn file(&self, name: &str, value: &Value) -> String {
        self.files.json(name, value)
    }
}

impl Drop for RealAgent {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Asserts that two states are the same; otherwise says what differs.
#[track_caller]
pub(crate) fn assert_same(left: &Value, right: &Value, context: &str) {
    let mut found = Vec::new();
    differences(left, right, "", &mut found);
    assert!(found.is_empty(), "{context}\n{}", found.join("\n"));
}

fn differences(left: &Value, right: &Value, path: &str, found: &mut Vec<String>) {
    match (left, right) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let path = format!("{path}/{key}");
                differences(&left[key.as_str()], &right[key.as_str()], &path, found);
            }
        }
        _ if left == right => {}
        _ => found.push(format!("{path}: {left} / {right}")),
    }
}

/// Takes away the address that the agent adds once its servers gave one.
fn forget_virtual(service: &mut Value) {
    if let Some(addresses) = service["TaggedAddresses"].as_object_mut() {
        addresses.remove("consul-virtual");
        if addresses.is_empty() {
            service.as_object_mut().unwrap().remove("TaggedAddresses");
        }
    }
}

/// Takes away what the check's next run may change.
fn forget_result(check: &mut Value) {
    let check = check.as_object_mut().unwrap();
    check.remove("Output");
    // The agent writes it down late.
    check.remove("ExposedPort");
    // The others wait for hours, or for a report.
    if check["Type"] == "alias" || check["Interval"] == "10s" {
        check.remove("Status");
    }
}

/// Whether this Consul has a port for gRPC over TLS: 1.14 and newer.
fn knows_grpc_tls(consul: &str) -> bool {
    let output = Command::new(consul).arg("version").env_clear().output();
    let said = output.expect("CONSUL_BIN is a program").stdout;
    let said = String::from_utf8_lossy(&said);
    let version = said.trim().strip_prefix("Consul v").unwrap_or_default();
    Since::Release(1, 14).is_known_to(version.lines().next().unwrap_or_default())
}

pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    // All at once, so that they differ.
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// The program that a variable of `scripts/test` names.
pub(crate) fn program_or_skip(variable: &str) -> Option<String> {
    let program = testkit::or_skip(testkit::part(variable))?;
    Some(program.to_str().expect("a path in UTF-8").to_owned())
}
