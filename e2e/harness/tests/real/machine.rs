//! A machine without Kubernetes: a small supervisor runs the units of `examples/systemd` in
//! place of systemd, from boot to power loss.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use harness::node::Node;
use harness::node::acl::Acls;
use harness::parts::Parts;
use harness::process::{Process, tail};
use harness::until;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/systemd");

/// Directories of the machine, each a directory of the test.
const BINARIES: &str = "/usr/local/bin/";
const CONFIGURATION: &str = "/etc/connect/";

/// A unit, parsed as systemd does.
///
/// Source: systemd.unit(5), systemd.exec(5), systemd.service(5).
struct Unit {
    environment: Vec<(String, String)>,
    environment_files: Vec<String>,
    credentials: Vec<(String, String)>,
    runtime_directory: String,
    runtime_directory_mode: u32,
    start_pre: Vec<Vec<String>>,
    start: Vec<String>,
}

/// The machine, and the service manager on it.
struct Machine<'n> {
    node: &'n Node,
    root: PathBuf,
}

/// An instance of the unit.
struct Instance<'m> {
    machine: &'m Machine<'m>,
    name: &'static str,
    unit: Unit,
    main: Option<Process>,
    starts: u32,
}

// === impl Unit ===

impl Unit {
    /// Reads a unit, with its specifiers replaced.
    fn read(text: &str, specifiers: &[(char, String)]) -> Self {
        let mut unit = Self {
            environment: Vec::new(),
            environment_files: Vec::new(),
            credentials: Vec::new(),
            runtime_directory: String::new(),
            runtime_directory_mode: 0o755,
            start_pre: Vec::new(),
            start: Vec::new(),
        };
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        for (key, value) in lines.filter_map(|line| line.split_once('=')) {
            let value = replaced(value, specifiers);
            let pair = |by: char| {
                let (name, value) = value.split_once(by).unwrap();
                (name.to_owned(), value.to_owned())
            };
            let words = || value.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            match key {
                "Environment" => unit.environment.push(pair('=')),
                "EnvironmentFile" => unit.environment_files.push(value.clone()),
                "LoadCredential" => unit.credentials.push(pair(':')),
                "RuntimeDirectory" => unit.runtime_directory.clone_from(&value),
                "RuntimeDirectoryMode" => {
                    unit.runtime_directory_mode = u32::from_str_radix(&value, 8).unwrap();
                }
                "ExecStartPre" => unit.start_pre.push(words()),
                "ExecStart" => unit.start = words(),
                // An ignored command would make this test cover less than the unit.
                _ => assert!(!key.starts_with("Exec"), "{key} is not run"),
            }
        }
        unit
    }
}

fn replaced(text: &str, specifiers: &[(char, String)]) -> String {
    let mut parts = text.split('%');
    let mut replaced = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let specifier = part.chars().next().unwrap();
        let value = specifiers.iter().find(|(known, _)| *known == specifier);
        let (_, value) = value.unwrap_or_else(|| panic!("%{specifier} is not known here"));
        replaced.push_str(value);
        replaced.push_str(&part[specifier.len_utf8()..]);
    }
    replaced
}

// === impl Machine ===

impl<'n> Machine<'n> {
    fn new(node: &'n Node) -> Self {
        let root = node.folder("machine").unwrap();
        for folder in ["bin", "etc", "run", "credentials"] {
            fs::create_dir(root.join(folder)).unwrap();
        }
        let bins = &node.parts().bins;
        for name in ["connect-register", "connect-lifecycle"] {
            std::os::unix::fs::symlink(bins.join(name), root.join("bin").join(name)).unwrap();
        }
        // systemd does this with a cgroup: Envoy ends with its parent.
        let envoy = node.parts().envoy.display();
        let script = format!("#!/bin/sh\nexec setpriv --pdeathsig=KILL {envoy} \"$@\"\n");
        let path = root.join("bin/envoy");
        write(&path, &script);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        // As in the README, except for the agent's address.
        for name in ["web", "api"] {
            for kind in ["hcl", "env"] {
                let text = fs::read_to_string(format!("{EXAMPLES}/{name}.{kind}")).unwrap();
                let agent = format!("{}:8500", node.ip());
                let text = text.replace("127.0.0.1:8500", &agent);
                write(&root.join(format!("etc/{name}.{kind}")), &text);
            }
        }
        Self { node, root }
    }

    fn instance(&self, name: &'static str) -> Instance<'_> {
        let specifiers = [
            ('i', name.to_owned()),
            ('t', self.path("run")),
            ('d', self.path(&format!("credentials/{name}"))),
            ('H', self.node.name().to_owned()),
            ('%', "%".to_owned()),
        ];
        let text = fs::read_to_string(format!("{EXAMPLES}/connect-sidecar@.service")).unwrap();
        Instance {
            machine: self,
            name,
            unit: Unit::read(&text, &specifiers),
            main: None,
            starts: 0,
        }
    }

    fn path(&self, path: &str) -> String {
        self.root.join(path).to_string_lossy().into_owned()
    }

    /// The directory of the test for a path in the unit.
    fn here(&self, word: &str) -> String {
        let word = word.replace(BINARIES, &format!("{}/", self.path("bin")));
        word.replace(CONFIGURATION, &format!("{}/", self.path("etc")))
    }

    /// The application behind `web`.
    fn application(&self) -> Process {
        let args = ["-text=hello", "-listen=127.0.0.1:8080"].map(str::to_owned);
        self.node.start(&self.node.parts().harness("http-echo"), &args).unwrap()
    }

    /// Whether a request through both sidecars succeeds.
    fn answers(&self) -> bool {
        let answer = self.node.request(Method::GET, "http://127.0.0.1:9090/", None);
        answer.is_ok_and(|text| text.to_string().contains("hello"))
    }
}

fn write(path: &Path, text: &str) {
    use std::io::Write as _;
    fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
}

// === impl Instance ===

impl Instance<'_> {
    /// Starts it as systemd does: again until its commands succeed.
    fn start(&mut self) {
        self.make_folders();
        for command in self.unit.start_pre.clone() {
            let mut output = String::new();
            until(&format!("{command:?}"), || {
                let mut process = self.spawn(&command);
                let ended = process.wait();
                output = process.output();
                ended.is_ok_and(|status| status.success())
            })
            .unwrap_or_else(|error| panic!("{error}\n{output}"));
        }
        self.start_main();
    }

    fn start_main(&mut self) {
        let command = self.unit.start.clone();
        self.main = Some(self.spawn(&command));
    }

    fn spawn(&mut self, command: &[String]) -> Process {
        self.starts += 1;
        let Self { machine, name, starts, .. } = &*self;
        let words: Vec<String> = command.iter().map(|word| machine.here(word)).collect();
        let environment = self.environment();
        let environment: Vec<(&str, &str)> =
            environment.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let log = machine.root.join(format!("{name}-{starts}.log"));
        Process::start(name, log, Path::new(&words[0]), &words[1..], &environment).unwrap()
    }

    fn make_folders(&self) {
        let Self { machine, unit, name, .. } = self;
        let folder = machine.root.join("run").join(&unit.runtime_directory);
        fs::create_dir_all(&folder).unwrap();
        let mode = fs::Permissions::from_mode(unit.runtime_directory_mode);
        fs::set_permissions(&folder, mode).unwrap();
        let folder = machine.root.join("credentials").join(name);
        fs::create_dir_all(&folder).unwrap();
        for (name, file) in &unit.credentials {
            let copy = folder.join(name);
            fs::copy(machine.here(file), &copy).unwrap();
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o400)).unwrap();
        }
    }

    /// Variables of an environment file override the unit's.
    fn environment(&self) -> BTreeMap<String, String> {
        let mut environment: BTreeMap<_, _> = self.unit.environment.iter().cloned().collect();
        let credentials = self.machine.path(&format!("credentials/{}", self.name));
        environment.insert("CREDENTIALS_DIRECTORY".to_owned(), credentials);
        for file in &self.unit.environment_files {
            let text = fs::read_to_string(self.machine.here(file)).unwrap();
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            let pairs = lines.filter_map(|line| line.split_once('='));
            environment.extend(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())));
        }
        environment
    }

    /// Like `systemctl stop`: SIGTERM to the main process, then its directories are removed.
    fn stop(&mut self) {
        let mut main = self.main.take().unwrap();
        main.signal(Signal::SIGTERM).unwrap();
        let status = main.wait().unwrap_or_else(|error| panic!("{error}\n{}", main.output()));
        assert!(status.success(), "{status}\n{}", main.output());
        self.forget();
    }

    /// Like a power loss: SIGKILL, and `/run` is empty.
    fn kill(&mut self) {
        drop(self.main.take());
        self.forget();
    }

    fn forget(&self) {
        let run = self.machine.root.join("run").join(&self.unit.runtime_directory);
        fs::remove_dir_all(run).unwrap();
        fs::remove_dir_all(self.machine.root.join("credentials").join(self.name)).unwrap();
    }

    fn log(&self) -> String {
        self.main.as_ref().map(|main| tail(&main.output(), 20)).unwrap_or_default()
    }
}

/// The service's own token, as in the README.
fn token(acls: &Acls<'_>, machine: &Machine<'_>, service: &str) -> String {
    let body = json!({"ServiceIdentities": [{"ServiceName": service}]});
    let made = acls.ask(Method::PUT, "/v1/acl/token", Some(&body)).unwrap();
    let secret = made["SecretID"].as_str().unwrap().to_owned();
    write(&machine.root.join(format!("etc/{service}.token")), &secret);
    secret
}

/// The status of a check, if the agent has it.
fn status(acls: &Acls<'_>, check: &str) -> Option<String> {
    let checks = acls.ask(Method::GET, "/v1/agent/checks", None).ok()?;
    checks[check]["Status"].as_str().map(str::to_owned)
}

/// Boot, restart and data loss of the agent, crash of the application, stop, and power loss;
/// two services on one machine, with ACLs.
#[test]
fn the_services_of_a_machine_stay_in_the_mesh_from_boot_to_power_loss() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let (acls, agent) = Acls::start(&node).unwrap();
    let machine = Machine::new(&node);
    let secrets = ["web", "api"].map(|service| token(&acls, &machine, service));
    let intention = json!({"Kind": "service-intentions", "Name": "web",
        "Sources": [{"Name": "api", "Action": "allow"}]});
    acls.ask(Method::PUT, "/v1/config", Some(&intention)).unwrap();
    let (mut web, mut api) = (machine.instance("web"), machine.instance("api"));
    let in_mesh = |what: &str, web: &Instance<'_>, api: &Instance<'_>| {
        until(&format!("an answer through the mesh {what}"), || machine.answers())
            .unwrap_or_else(|error| panic!("{error}\nweb:\n{}\napi:\n{}", web.log(), api.log()));
    };
    let passes = |check: &str| {
        until(&format!("{check} to pass"), || status(&acls, check).as_deref() == Some("passing"))
            .unwrap();
    };

    let application = machine.application();
    web.start();
    api.start();
    in_mesh("after the start", &web, &api);
    passes("web-application");
    let hidden = format!("/proc/{}/cmdline", web.main.as_ref().unwrap().pid());
    let hidden = String::from_utf8_lossy(&fs::read(hidden).unwrap()).into_owned();
    assert!(!secrets.iter().any(|secret| hidden.contains(secret)));

    // The agent restarts, and then loses its data.
    drop(agent);
    let agent = acls.start_agent().unwrap();
    in_mesh("after the agent's restart", &web, &api);
    drop(agent);
    node.wipe_agent().unwrap();
    let agent = acls.start_agent().unwrap();
    passes("web-lease");
    passes("web-sidecar-proxy-listener");
    in_mesh("after the agent's loss", &web, &api);

    // The application crashes and restarts.
    drop(application);
    until("the application's check to be critical", || {
        status(&acls, "web-application").as_deref() == Some("critical")
    })
    .unwrap();
    assert!(!machine.answers());
    let application = machine.application();
    passes("web-application");
    in_mesh("after the application's death", &web, &api);

    // One service is stopped, and the other stays.
    api.stop();
    let ids = |acls: &Acls<'_>| {
        let mut ids = acls.services().unwrap();
        ids.sort();
        ids
    };
    assert_eq!(ids(&acls), ["web", "web-sidecar-proxy"]);
    api.start();
    in_mesh("after a stop and a start", &web, &api);

    // Power loss; afterwards the units start before the agent.
    drop(application);
    web.kill();
    api.kill();
    drop(agent);
    let _application = machine.application();
    web.make_folders();
    let command = web.unit.start_pre[0].clone();
    let mut waits = web.spawn(&command);
    waits.await_output("connection refused").unwrap();
    let _agent = acls.start_agent().unwrap();
    assert!(waits.wait().unwrap().success(), "{}", waits.output());
    web.start_main();
    api.start();
    in_mesh("after a power cut", &web, &api);

    web.stop();
    api.stop();
    assert_eq!(ids(&acls), Vec::<String>::new());
}

/// A port of another sidecar is rejected before anything is registered.
#[test]
fn two_sidecars_of_a_machine_do_not_share_a_port() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let _agent = node.start_agent().unwrap();
    let folder = node.folder("two").unwrap();
    let run_sidecar = |name: &str| {
        let file = folder.join(format!("{name}.hcl"));
        let text = format!(
            "service {{ name = \"{name}\" connect {{ sidecar_service {{ port = 20000 }} }} }}"
        );
        write(&file, &text);
        let dir = folder.join(name);
        fs::create_dir(&dir).unwrap();
        let args = ["sidecar", "--http-addr", &format!("{}:8500", node.ip()), "--dir"];
        let mut args: Vec<String> = args.iter().map(|&word| word.to_owned()).collect();
        args.extend([&dir, &file].map(|path| path.to_string_lossy().into_owned()));
        let program = node.parts().bins.join("connect-register");
        let mut process = node.start(&program, &args).unwrap();
        (process.wait().unwrap().code(), process.output())
    };
    let (code, output) = run_sidecar("one");
    assert_eq!(code, Some(0), "{output}");
    let (code, output) = run_sidecar("two");
    assert_eq!(code, Some(64), "{output}");
    assert!(output.contains("port 20000 is in use by `one-sidecar-proxy`"), "{output}");
    let services: Value = node.get("/v1/agent/services").unwrap();
    let ids: Vec<_> = services.as_object().unwrap().keys().collect();
    assert_eq!(ids, ["one", "one-sidecar-proxy"]);
}
