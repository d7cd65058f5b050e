//! The pod's start: registers, writes Envoy's bootstrap, and copies the helper into the
//! directory. The peer is Consul's CLI, which does the same with a definition file and copies
//! itself, as in injectors that use it: the CLI of the agent's release, and in rows of their
//! own that of 1.8, which such injectors were made for. The floor is curl with the same requests.
//!
//! The directory is in memory, like the pod's volume.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command::{Steps, Taken};
use crate::figure::{Budget, Figure, Row};
use crate::{Found, Plan};
use harness::Result;
use harness::node::Node;
use harness::node::acl::{Acls, METHOD};
use harness::process::run as output_of;

/// How the pod connects to the agent.
#[derive(Clone, Copy, Debug)]
struct Way {
    https: bool,
    login: bool,
}

/// Settings for the three ways of starting a pod.
pub(crate) struct Bench<'p> {
    plan: &'p Plan,
    url: String,
    /// The CA file, if the agent uses TLS.
    ca: Option<PathBuf>,
    /// The bearer token's file, if there is a login.
    bearer: Option<PathBuf>,
    /// An in-memory directory.
    folder: TempDir,
}

pub(crate) const POD_IP: &str = "10.99.0.77";
pub(crate) const SERVICE: &str = "shop_pod-0_web";
pub(crate) const PROXY: &str = "shop_pod-0_web-sidecar-proxy";

/// A request's path, and the file with its body.
type Request<'r> = (&'r str, Option<&'r str>);

const REGISTER: &str = "/v1/agent/service/register?replace-existing-checks=true";
const PROXY_DEFAULTS: &str = "/v1/config/proxy-defaults/global";

/// The least that registers a pod and finds out what the bootstrap needs.
const REQUESTS: [Request<'static>; 4] = [
    (REGISTER, Some("service.json")),
    (REGISTER, Some("proxy.json")),
    ("/v1/agent/service/shop_pod-0_web-sidecar-proxy", None),
    (PROXY_DEFAULTS, None),
];

/// # Errors
/// A program fails.
pub(super) fn run(plan: &Plan) -> Result<Found> {
    let mut rows = Vec::new();
    for way in [
        Way { https: false, login: false },
        Way { https: true, login: false },
        Way { https: false, login: true },
        Way { https: true, login: true },
    ] {
        // Each on a new node.
        let found = std::thread::scope(|scope| scope.spawn(|| measure(plan, way)).join());
        rows.extend(found.map_err(|_| "the case panicked")??);
    }
    Ok(Found { rows, ..Found::default() })
}

fn measure(plan: &Plan, way: Way) -> Result<Vec<Row>> {
    let node = Node::new(plan.parts.clone())?;
    let mut bench = Bench::new(plan, &node)?;
    let further = if way.https { bench.with_tls(&node)? } else { json!({}) };
    let _agent = if way.login {
        let (acls, agent) = Acls::start_with(&node, &further)?;
        acls.have_method()?;
        acls.bind("${value.account}")?;
        bench.with_login(&acls.bearer_token("web", 3600)?)?;
        agent
    } else {
        node.start_agent_with(&further)?
    };
    bench.describe()?;
    let (mut ours, mut peer, mut floor) = (Taken::default(), Taken::default(), Taken::default());
    let (mut old_peer, old_consul) = (Taken::default(), plan.consul_1_8.as_deref());
    let mut agents_own = Vec::new();
    for round in 0..=plan.runs {
        // New directories, created before the measurement starts.
        let mut measured = vec![
            (&mut ours, bench.init()?),
            (&mut peer, bench.cli(&plan.parts.consul, "cli")?),
            (&mut floor, bench.curl()),
        ];
        if let Some(consul) = old_consul {
            measured.push((&mut old_peer, bench.cli(consul, "cli-1.8")?));
        }
        if round == 0 {
            // The first run is not counted: it reads files from disk.
            for (_, steps) in measured {
                Taken::default().add(plan, &steps)?;
            }
            continue;
        }
        for (taken, steps) in measured {
            taken.add(plan, &steps)?;
        }
        if !way.login {
            agents_own.push(bench.agents_own()?);
        }
    }
    let how = match (way.https, way.login) {
        (false, false) => "HTTP",
        (true, false) => "HTTPS",
        (false, true) => "HTTP, login",
        (true, true) => "HTTPS, login",
    };
    let row = |what: &str, unit, figure: fn(&Taken) -> Option<Figure>| -> Result<Row> {
        let ours = figure(&ours).ok_or("nothing was run")?;
        let row = Row::new(format!("pod's start, {how}: {what}"), unit, ours);
        Ok(row.peer(figure(&peer)).floor(figure(&floor)))
    };
    let wall = ours.wall().ok_or("nothing was run")?;
    let beside =
        |what: &str| Row::new(format!("pod's start, {how}: wall, beside {what}"), "ms", wall);
    let beside_old = old_peer.wall().map(|old| beside("the CLI of Consul 1.8").peer(old));
    let beside_own = Figure::of(agents_own)
        .map(|own| beside("the agent's own time").floor(own).budget(Budget::TimesFloor(2.0)));
    Ok([
        row("wall", "ms", Taken::wall)?
            .budget(Budget::TimesLessThanPeer(20.0))
            .budget(Budget::BelowFloor),
        row("processor", "ms", Taken::cpu)?,
        row("peak memory", "MiB", Taken::peak)?.budget(Budget::TimesLessThanPeer(8.0)),
    ]
    .into_iter()
    .chain(beside_old)
    .chain(beside_own)
    .collect())
}

// === impl Bench ===

impl<'p> Bench<'p> {
    pub(crate) fn new(plan: &'p Plan, node: &Node) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("connect-bench-").tempdir_in("/dev/shm");
        let folder = folder.map_err(|error| format!("no folder in memory, /dev/shm: {error}"))?;
        let url = format!("http://{}:8500", node.ip());
        Ok(Self { plan, url, ca: None, bearer: None, folder })
    }

    /// Switches to TLS. Returns the agent's settings for it.
    pub(crate) fn with_tls(&mut self, node: &Node) -> Result<Value> {
        let (ca, cert, key) = (self.path("ca.pem"), self.path("agent.pem"), self.path("agent.key"));
        let ca_key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        // Another name than that of the certificate, which would look self-signed.
        params.distinguished_name.push(DnType::CommonName, "bench CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        write(&ca, &params.self_signed(&ca_key)?.pem())?;
        let issuer = Issuer::new(params, ca_key);
        let agent_key = KeyPair::generate()?;
        let names = vec![node.ip().to_owned(), "localhost".to_owned()];
        let agent = CertificateParams::new(names)?.signed_by(&agent_key, &issuer)?;
        write(&cert, &agent.pem())?;
        write(&key, &agent_key.serialize_pem())?;
        self.url = format!("https://{}:8501", node.ip());
        let settings = json!({
            "ports": {"https": 8501},
            "ca_file": ca, "cert_file": cert, "key_file": key,
            "verify_incoming": false,
        });
        self.ca = Some(ca);
        Ok(settings)
    }

    fn with_login(&mut self, bearer_token: &str) -> Result<()> {
        let file = self.path("bearer");
        write(&file, bearer_token)?;
        let login = json!({"AuthMethod": METHOD, "BearerToken": bearer_token});
        write(&self.path("login.json"), &login.to_string())?;
        self.bearer = Some(file);
        Ok(())
    }

    /// Registers once, and writes the registration to files for the peer and the floor.
    pub(crate) fn describe(&self) -> Result<()> {
        let mut args = self.init_command()?;
        let program = args.remove(0);
        output_of(&program, &args)?;
        let record = fs::read(self.last_folder().join("registration.json"))?;
        let record: Value = serde_json::from_slice(&record)?;
        for name in ["service", "proxy"] {
            write(&self.path(&format!("{name}.json")), &record[name].to_string())?;
        }
        args.extend(["--dry-run", "--output=json"].map(str::to_owned));
        write(&self.path("definition.json"), &output_of(&program, &args)?)
    }

    /// The command line of connect-init, with a new directory.
    pub(crate) fn init_command(&self) -> Result<Vec<String>> {
        let folder = self.new_folder("pod")?;
        Ok(self.init_args(&folder))
    }

    /// connect-init, with a new directory.
    pub(crate) fn init(&self) -> Result<Steps> {
        let args = self.init_command()?;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        Ok(Steps::default().then(&args))
    }

    /// The directory of connect-init.
    pub(crate) fn last_folder(&self) -> PathBuf {
        self.path("pod")
    }

    /// The registration for the peer, as a definition file.
    pub(crate) fn definition(&self) -> PathBuf {
        self.path("definition.json")
    }

    /// The agent's URL.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    fn init_args(&self, folder: &Path) -> Vec<String> {
        let bins = &self.plan.parts.bins;
        let mut args = vec![
            text(&bins.join("connect-init")),
            "--service=web:8080".to_owned(),
            "--upstream=db:5432".to_owned(),
            "--pod-name=pod-0".to_owned(),
            "--pod-namespace=shop".to_owned(),
            format!("--pod-ip={POD_IP}"),
            format!("--http-addr={}", self.url),
            "--grpc-addr=10.99.0.1:8502".to_owned(),
            format!("--dir={}", text(folder)),
        ];
        args.extend(self.ca.iter().map(|ca| format!("--ca-file={}", text(ca))));
        if let Some(bearer) = &self.bearer {
            args.push(format!("--acl-auth-method={METHOD}"));
            args.push(format!("--bearer-token-file={}", text(bearer)));
        }
        args
    }

    /// Consul's CLI, with a new directory of that name, into which it copies itself.
    fn cli(&self, consul: &Path, name: &str) -> Result<Steps> {
        let (folder, consul) = (self.new_folder(name)?, text(consul));
        let mut agent = vec![format!("-http-addr={}", self.url)];
        agent.extend(self.ca.iter().map(|ca| format!("-ca-file={}", text(ca))));
        let run =
            |steps: Steps, words: &[&str], rest: &[&str], into: Option<&Path>, agent: &[String]| {
                let args: Vec<&str> = std::iter::once(consul.as_str())
                    .chain(words.iter().copied())
                    .chain(agent.iter().map(String::as_str))
                    .chain(rest.iter().copied())
                    .collect();
                steps.then_into(&args, into)
            };
        let mut steps = Steps::default();
        if let Some(bearer) = &self.bearer {
            let sink = text(&folder.join("acl-token"));
            let (method, bearer) =
                (format!("-method={METHOD}"), format!("-bearer-token-file={}", text(bearer)));
            let into = format!("-token-sink-file={sink}");
            steps = run(steps, &["login"], &[&method, &bearer, &into], None, &agent);
            agent.push(format!("-token-file={sink}"));
        }
        let definition = text(&self.definition());
        steps = run(steps, &["services", "register"], &[&definition], None, &agent);
        let proxy = format!("-proxy-id={PROXY}");
        let rest = [proxy.as_str(), "-grpc-addr=10.99.0.1:8502", "-bootstrap"];
        let bootstrap = folder.join("envoy-bootstrap.json");
        steps = run(steps, &["connect", "envoy"], &rest, Some(&bootstrap), &agent);
        Ok(steps.then(&["cp", &consul, &text(&folder.join("consul"))]))
    }

    /// The time that the agent takes for the requests of connect-init on a kept-alive
    /// connection, in milliseconds: by curl, from each request's start to its answer's end.
    fn agents_own(&self) -> Result<f64> {
        let service = format!("/v1/agent/service/{SERVICE}");
        let first = [("/v1/agent/self", None), (service.as_str(), None)];
        let requests: Vec<Request<'_>> = first.into_iter().chain(REQUESTS).collect();
        let args = self.transfers(&requests, &["-w", "%{time_pretransfer} %{time_total}\\n"]);
        let mut seconds = 0.0;
        for line in output_of(&args[0], &args[1..])?.lines() {
            let (before, whole) = line.split_once(' ').ok_or("curl printed no times")?;
            seconds += whole.parse::<f64>()? - before.parse::<f64>()?;
        }
        Ok(seconds * 1000.0)
    }

    /// A command line of curl, with one kept-alive connection.
    fn transfers(&self, requests: &[Request<'_>], further: &[&str]) -> Vec<String> {
        let mut args = vec!["curl".to_owned(), "--fail-early".to_owned()];
        for (index, (path, body)) in requests.iter().enumerate() {
            if index > 0 {
                args.push("--next".to_owned());
            }
            args.extend(["-sS", "-o", "/dev/null"].map(str::to_owned));
            args.extend(further.iter().map(|it| (*it).to_owned()));
            if *path != PROXY_DEFAULTS {
                // The answer is 404, because there are no proxy-defaults.
                args.push("-f".to_owned());
            }
            args.extend(self.ca.iter().flat_map(|ca| ["--cacert".to_owned(), text(ca)]));
            if self.bearer.is_some() {
                args.extend(["-H", "X-Consul-Token: $token"].map(str::to_owned));
            }
            if let Some(body) = body {
                let body = format!("@{}", text(&self.path(body)));
                args.extend(["-X".to_owned(), "PUT".to_owned(), "--data-binary".to_owned(), body]);
            }
            args.push(format!("{}{path}", self.url));
        }
        args
    }

    /// curl: one process with one kept-alive connection; with a login, in a shell that passes
    /// the token on.
    fn curl(&self) -> Steps {
        let args = self.transfers(&REQUESTS, &[]);
        if self.bearer.is_none() {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            return Steps::default().then(&args);
        }
        let quoted: Vec<String> = args.iter().map(|arg| format!("\"{arg}\"")).collect();
        let cacert = self.ca.as_deref().map(|ca| format!("--cacert {}", text(ca)));
        let script = format!(
            "token=$(curl -sS -f {} -X POST --data-binary @{} {}/v1/acl/login | sed -n 's/.*\"SecretID\": *\"\\([^\"]*\\)\".*/\\1/p') && {}",
            cacert.unwrap_or_default(),
            text(&self.path("login.json")),
            self.url,
            quoted.join(" "),
        );
        Steps::default().then(&["sh", "-c", &script])
    }

    /// A new, empty directory of that name.
    fn new_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.path(name);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => fs::create_dir(&folder)?,
        }
        Ok(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

pub(crate) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

pub(crate) fn write(file: &Path, text: &str) -> Result<()> {
    Ok(File::create(file)?.write_all(text.as_bytes())?)
}
