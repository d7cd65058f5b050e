//! A node: a network namespace with a bridge for pods, a Consul client agent at the node's
//! address, and a Consul server at another address.
//!
//! - [`consul`]: Consul servers and client agents
//! - [`acl`]: an agent with ACLs, and an auth method for its pods
//! - [`asked`]: counts the requests that an agent received

pub mod acl;
pub mod asked;
pub mod consul;

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use reqwest::{Certificate, Client, Method};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::parts::Parts;
use crate::process::{Process, run, tail};
use crate::runtime::image::{self, Image};
use crate::{Result, admission, answer_to, until};
use consul::{Agent, Release};

/// A node. Its network namespace is that of the thread that created it: the node, and
/// everything that runs on it, ends with that thread.
#[derive(Debug)]
pub struct Node {
    parts: Parts,
    runtime: Runtime,
    client: Client,
    release: Release,
    /// Before the directory, so that it stops before its data is removed.
    server: RefCell<Option<Process>>,
    folder: TempDir,
    pods: Cell<u8>,
    programs: Cell<u32>,
}

/// The node's injector.
#[derive(Debug)]
pub struct Injector {
    process: Process,
    client: Client,
}

const IP: &str = "10.99.0.1";
const SERVER: &str = "10.99.0.2";
const NAME: &str = "node-1";
const BRIDGE: &str = "pods";
/// The node's hardware address. A bridge without one of its own takes the lowest of its ports,
/// and takes another when a pod joins or leaves: then the other pods cannot reach the node for
/// eight seconds, until they have looked for its address again.
const HARDWARE: &str = "02:00:00:00:00:01";

/// The port of [`Node::start_relay`].
pub const RELAY: u16 = 8602;

// === impl Node ===

impl Node {
    /// Creates a network namespace for this thread, with a bridge.
    ///
    /// # Errors
    /// It can't be created: this requires root and iproute2.
    pub fn new(parts: Parts) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|errno| format!("cannot make a network namespace: {errno}"))?;
        ip("link set lo up")?;
        ip(&format!("link add {BRIDGE} address {HARDWARE} type bridge"))?;
        for address in [IP, SERVER] {
            ip(&format!("addr add {address}/24 dev {BRIDGE}"))?;
        }
        ip(&format!("link set {BRIDGE} up"))?;
        // After the network namespace, so that its threads are in it.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let folder = tempfile::Builder::new().prefix("connect-e2e-").tempdir()?;
        Ok(Self {
            release: Release::of(&parts.consul)?,
            server: RefCell::new(None),
            parts,
            runtime,
            client: client(&[])?,
            folder,
            pods: Cell::new(0),
            programs: Cell::new(0),
        })
    }

    /// The node's network namespace, as a file.
    pub fn network(&self) -> PathBuf {
        // That of the thread that created the node, not that of the process.
        let (process, thread) = (std::process::id(), nix::unistd::gettid());
        PathBuf::from(format!("/proc/{process}/task/{thread}/ns/net"))
    }

    /// The node's address, which is the pods' `status.hostIP`.
    pub fn ip(&self) -> &'static str {
        IP
    }

    /// The hardware address at which pods reach the node now.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn hardware_address(&self) -> Result<String> {
        let link = run("ip", &["-brief", "link", "show", BRIDGE])?;
        Ok(link.split_whitespace().nth(2).unwrap_or_default().to_owned())
    }

    /// The Consul server's address.
    pub fn server_ip(&self) -> &'static str {
        SERVER
    }

    /// The release of Consul.
    pub fn release(&self) -> Release {
        self.release
    }

    pub fn name(&self) -> &'static str {
        NAME
    }

    /// The programs that run on the node.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// A directory of the node with that name, created if it does not exist. Every user can
    /// enter it, like the kubelet's.
    ///
    /// # Errors
    /// It can't be created.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(self.folder.path(), fs::Permissions::from_mode(0o755))?;
        let folder = self.folder.path().join(name);
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// The image of that name.
    ///
    /// # Errors
    /// There is no stand-in for it.
    pub fn image(&self, name: &str) -> Result<Image> {
        image::find(name, &self.parts, &self.folder("init-image")?)
    }

    /// Starts a Consul server, unless it runs, and the node's client agent, and waits until
    /// the agent's Connect CA works.
    ///
    /// # Errors
    /// One of them exits or does not become ready; with its output.
    pub fn start_agent(&self) -> Result<Process> {
        self.start_agent_with(&serde_json::json!({}))
    }

    /// Like [`Self::start_agent`], with additional settings of the client agent.
    ///
    /// # Errors
    /// As [`Self::start_agent`].
    pub fn start_agent_with(&self, further: &Value) -> Result<Process> {
        let agent = self.spawn_agent(further)?;
        let up = until("the agent's Connect CA", || {
            self.get("/v1/connect/ca/roots").is_ok_and(|roots| roots["ActiveRootID"].is_string())
        });
        up.map_err(|error| {
            let server = self.server.borrow();
            let server = server.as_ref().map(Process::output).unwrap_or_default();
            format!("{error}\n{}\nserver:\n{}", tail(&agent.output(), 20), tail(&server, 20))
        })?;
        Ok(agent)
    }

    /// Starts an agent like [`Self::start_agent_with`], with its old data, but does not wait.
    ///
    /// # Errors
    /// It can't be started.
    pub fn spawn_agent(&self, further: &Value) -> Result<Process> {
        if self.server.borrow().is_none() {
            self.start_server_with(&serde_json::json!({}))?;
        }
        let mut agent = Agent::client(NAME, IP, SERVER);
        agent.further = further.clone();
        agent.start(&self.parts.consul, self.release, &self.folder("agent")?)
    }

    /// Removes all data of the node's agent except its node id. The agent must not be running.
    ///
    /// # Errors
    /// A file can't be removed.
    pub fn wipe_agent(&self) -> Result<()> {
        consul::wipe(&self.folder("agent")?)
    }

    /// Starts the Consul server with additional settings and its old data.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start_server_with(&self, further: &Value) -> Result<()> {
        let mut server = Agent::server(SERVER);
        server.further = further.clone();
        let process = server.start(&self.parts.consul, self.release, &self.folder("server")?)?;
        self.server.replace(Some(process));
        Ok(())
    }

    /// Kills the Consul server, and leaves its data.
    pub fn kill_server(&self) {
        self.server.replace(None);
    }

    /// Starts a relay in front of the agent's gRPC port, on port [`RELAY`]. Stopped with
    /// SIGSTOP, it holds back all updates for Envoys.
    ///
    /// # Errors
    /// It exits or does not become ready; with its output.
    pub fn start_relay(&self) -> Result<Process> {
        let args = [format!("{IP}:{RELAY}"), format!("{IP}:8502")];
        let mut relay = self.start(&self.parts.harness("relay"), &args)?;
        relay.await_output("relays")?;
        Ok(relay)
    }

    /// Starts the injector with HTTPS and a new certificate.
    ///
    /// # Errors
    /// It exits or does not become ready; with its output.
    pub fn start_injector(&self) -> Result<Injector> {
        self.start_injector_with(&[])
    }

    /// Like [`Self::start_injector`], with additional flags.
    ///
    /// # Errors
    /// As [`Self::start_injector`].
    pub fn start_injector_with(&self, flags: &[&str]) -> Result<Injector> {
        let folder = self.folder("injector")?;
        let made = rcgen::generate_simple_self_signed([IP.to_owned()])?;
        let (cert, key) = (folder.join("tls.crt"), folder.join("tls.key"));
        fs::File::create(&cert).and_then(|mut file| file.write_all(made.cert.pem().as_bytes()))?;
        fs::File::create(&key)
            .and_then(|mut file| file.write_all(made.signing_key.serialize_pem().as_bytes()))?;
        let flag = |name: &str, value: &str| format!("--{name}={value}");
        let path = |file: &Path| file.to_string_lossy().into_owned();
        let mut args = vec![
            "serve".to_owned(),
            flag("listen", &format!("{IP}:8443")),
            flag("admin-listen", &format!("{IP}:9445")),
            flag("init-image", image::INIT),
            flag("envoy-image", image::ENVOY),
            flag("tls-cert-file", &path(&cert)),
            flag("tls-key-file", &path(&key)),
        ];
        args.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let mut process = Process::start(
            "connect-inject",
            folder.join("log"),
            &self.parts.bins.join("connect-inject"),
            &args,
            &[],
        )?;
        let ready = until("the injector's /readyz", || {
            !matches!(process.ended(), Ok(None))
                || self.request(Method::GET, &format!("http://{IP}:9445/readyz"), None).is_ok()
        });
        if !matches!(process.ended(), Ok(None)) {
            return Err(format!("the injector ended early:\n{}", process.output()).into());
        }
        ready?;
        Ok(Injector {
            process,
            client: client(&[Certificate::from_pem(made.cert.pem().as_bytes())?])?,
        })
    }

    /// The pod as the API server would store it, after a review by the injector.
    ///
    /// # Errors
    /// The pod was denied, or the injector did not answer.
    pub fn admit(&self, injector: &Injector, pod: &Value, namespace: &str) -> Result<Value> {
        let uid = format!("review-of-{}", pod["metadata"]["name"].as_str().unwrap_or_default());
        let review = admission::review(pod, namespace, &uid);
        let request =
            injector.client.post(format!("https://{IP}:8443/mutate?timeout=5s")).json(&review);
        let answer: Value = self.runtime.block_on(async { request.send().await?.json().await })?;
        admission::admitted(pod, &answer, &uid)
    }

    /// Sends a GET request to the agent.
    ///
    /// # Errors
    /// There is no response, or its status is not a success.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.request(Method::GET, &format!("http://{IP}:8500{path}"), None)
    }

    /// Sends a PUT request to the agent.
    ///
    /// # Errors
    /// There is no response, or its status is not a success.
    pub fn put(&self, path: &str, body: Option<&Value>) -> Result<Value> {
        self.request(Method::PUT, &format!("http://{IP}:8500{path}"), body)
    }

    /// Sends a request to the agent with an ACL token, or without one.
    ///
    /// # Errors
    /// There is no response, or its status is not a success.
    pub fn as_holder(
        &self,
        token: Option<&str>,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value> {
        self.send(token, method, &format!("http://{IP}:8500{path}"), body)
    }

    /// Starts a program in the node's network.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(&self, program: &Path, args: &[String]) -> Result<Process> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let number = self.programs.get() + 1;
        self.programs.set(number);
        let log = self.folder("programs")?.join(format!("{number}-{name}.log"));
        Process::start(&name, log, program, args, &[])
    }

    /// Runs Consul's own command line against the agent.
    ///
    /// # Errors
    /// It fails; with its output.
    pub fn consul(&self, args: &[&str]) -> Result<String> {
        let address = format!("-http-addr=http://{IP}:8500");
        let (command, rest) = args.split_at(args.len().min(2));
        let args: Vec<&str> =
            command.iter().copied().chain([address.as_str()]).chain(rest.iter().copied()).collect();
        run(&self.parts.consul.to_string_lossy(), &args)
    }

    /// Sends a request in the node's network namespace.
    ///
    /// # Errors
    /// There is no response, or its status is not a success.
    pub fn request(&self, method: Method, url: &str, body: Option<&Value>) -> Result<Value> {
        self.send(None, method, url, body)
    }

    fn send(
        &self,
        token: Option<&str>,
        method: Method,
        url: &str,
        body: Option<&Value>,
    ) -> Result<Value> {
        let mut request = self.client.request(method, url);
        if let Some(token) = token {
            request = request.header("X-Consul-Token", token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        answer_to(&self.runtime, request, url)
    }

    /// Adds addresses to the node, for pods that are processes of it.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn add_addresses(&self, addresses: &[String]) -> Result<()> {
        let batch = self.folder("addresses")?.join("batch");
        let commands = addresses.iter().map(|address| format!("addr add {address}/32 dev lo\n"));
        fs::File::create(&batch)?.write_all(commands.collect::<String>().as_bytes())?;
        ip(&format!("-batch {}", batch.display()))
    }

    /// Gives a pod's sandbox an address on the bridge.
    pub(crate) fn attach(&self, sandbox: &Child) -> Result<String> {
        let number = self.pods.get() + 1;
        self.pods.set(number);
        let (link, pid, address) =
            (format!("pod{number}"), sandbox.id(), format!("10.99.0.{}", 10 + number));
        ip(&format!("link add {link} type veth peer name eth0 netns {pid}"))?;
        ip(&format!("link set {link} master {BRIDGE} up"))?;
        for command in [
            "link set lo up".to_owned(),
            format!("addr add {address}/24 dev eth0"),
            "link set eth0 up".to_owned(),
            format!("route add default via {IP}"),
        ] {
            let pid = pid.to_string();
            let args: Vec<&str> =
                ["--target", &pid, "--net", "ip"].into_iter().chain(command.split(' ')).collect();
            run("nsenter", &args)?;
        }
        Ok(address)
    }
}

// === impl Injector ===

impl Injector {
    pub fn log(&self) -> String {
        self.process.output()
    }

    pub fn pid(&self) -> i32 {
        self.process.pid()
    }
}

fn ip(command: &str) -> Result<()> {
    let args: Vec<&str> = command.split(' ').collect();
    run("ip", &args).map(drop)
}

/// A client that trusts only these certificates.
fn client(certificates: &[Certificate]) -> Result<Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder()
        .tls_certs_only(certificates.iter().cloned())
        .no_proxy()
        .timeout(Duration::from_secs(20))
        .build()?;
    Ok(client)
}
