//! A pod whose sidecar the test starts, stops and restarts.

use std::fs::File;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{Outcome, Port, Process, ScriptedAgent};

use crate::envoy::{self, FakeEnvoy};

/// Id of the pod's service, in the form of an earlier release: the sidecar takes the ids
/// from the record.
pub(crate) const SERVICE: &str = "web-0-web";
/// Id of its sidecar proxy.
pub(crate) const PROXY: &str = "web-0-web-sidecar-proxy";
pub(crate) const SERVICE_LEASE: &str = "web-0-web-lease";
pub(crate) const PROXY_LEASE: &str = "web-0-web-sidecar-proxy-lease";
/// Id of the application's check.
pub(crate) const APPLICATION: &str = "web-0-web-application";

/// Id of the public listener's check.
pub(crate) const LISTENER: &str = "web-0-web-sidecar-proxy-listener";
/// Id of the proxy's alias check, where there is one.
pub(crate) const DESTINATION: &str = "web-0-web-sidecar-proxy-destination";

/// An address on which nothing listens.
const NOWHERE: u16 = 1;

/// The pod `web-0` with the service `web`, after `connect-init`.
pub(crate) struct Pod {
    folder: TempDir,
    pub(crate) envoy: FakeEnvoy,
    service: Value,
    proxy: Value,
}

impl Pod {
    /// A pod registered with that agent, whose application does not listen.
    pub(crate) fn of(agent: &ScriptedAgent) -> Self {
        Self::with_ports(agent, NOWHERE, NOWHERE)
    }

    /// A pod whose application listens on that port, now or later.
    pub(crate) fn with_application(agent: &ScriptedAgent, port: &Port) -> Self {
        Self::with_ports(agent, port.address().port(), NOWHERE)
    }

    /// A pod with a service without a port, which only sends requests.
    pub(crate) fn without_a_port(agent: &ScriptedAgent) -> Self {
        Self::with_ports(agent, 0, NOWHERE)
    }

    /// A pod whose Envoy has its public listener on that port, now or later.
    pub(crate) fn with_public_listener(agent: &ScriptedAgent, port: &Port) -> Self {
        Self::with_ports(agent, NOWHERE, port.address().port())
    }

    /// A pod whose application and Envoy listen on those ports, now or later.
    pub(crate) fn with_both(agent: &ScriptedAgent, application: &Port, listener: &Port) -> Self {
        Self::with_ports(agent, application.address().port(), listener.address().port())
    }

    /// A pod with a service without a port, whose Envoy listens on that port later.
    pub(crate) fn of_client(agent: &ScriptedAgent, listener: &Port) -> Self {
        let mut pod = Self::with_public_listener(agent, listener);
        pod.service["Port"] = json!(0);
        pod.service["Checks"].as_array_mut().unwrap().truncate(1);
        pod.write("registration.json", &pod.record(agent, pod.envoy.admin()).to_string());
        agent.wipe();
        pod.register(agent);
        pod
    }

    /// A pod whose virtual address is that of a name.
    pub(crate) fn known_by(agent: &ScriptedAgent, name: &str, address: Option<[u8; 4]>) -> Self {
        let mut pod = Self::of(agent);
        if let Some(address) = address {
            let address = std::net::Ipv4Addr::from(address);
            pod.proxy["TaggedAddresses"] = json!({"virtual": {"Address": address, "Port": 80}});
        }
        let mut record = pod.record(agent, pod.envoy.admin());
        record["virtual_name"] = name.into();
        pod.write("registration.json", &record.to_string());
        agent.wipe();
        pod.register(agent);
        pod
    }

    /// As [`Self::with_application`], and the proxy has an alias check of its service.
    pub(crate) fn with_alias(agent: &ScriptedAgent, port: &Port) -> Self {
        let mut pod = Self::with_application(agent, port);
        let alias = json!({"CheckID": DESTINATION, "AliasService": SERVICE});
        pod.proxy["Checks"].as_array_mut().unwrap().push(alias);
        pod.write("registration.json", &pod.record(agent, pod.envoy.admin()).to_string());
        agent.wipe();
        pod.register(agent);
        pod
    }

    fn with_ports(agent: &ScriptedAgent, port: u16, listener: u16) -> Self {
        let lease = |id: &str| json!({"CheckID": id, "TTL": "30s", "DeregisterCriticalServiceAfter": "1m0s"});
        let service = json!({
            "ID": SERVICE, "Name": "web", "Address": "10.0.0.7", "Port": port,
            "Checks": [lease(SERVICE_LEASE), {"CheckID": APPLICATION, "TTL": "30s", "Status": "critical"}],
        });
        let proxy = json!({
            "Kind": "connect-proxy", "ID": PROXY, "Name": "web-sidecar-proxy",
            "Address": "127.0.0.1", "Port": listener,
            "Checks": [
                {"CheckID": LISTENER, "TCP": format!("127.0.0.1:{listener}"), "Interval": "10s"},
                lease(PROXY_LEASE),
            ],
            "Proxy": {
                "DestinationServiceName": "web", "DestinationServiceID": SERVICE,
                "LocalServiceAddress": "127.0.0.1", "LocalServicePort": port,
            },
        });
        let envoy = FakeEnvoy::start().on(listener);
        let pod = Self { folder: tempfile::tempdir().unwrap(), envoy, service, proxy };
        pod.write("registration.json", &pod.record(agent, pod.envoy.admin()).to_string());
        pod.register(agent);
        pod
    }

    /// The record, as `connect-init` of this release writes it.
    pub(crate) fn record(&self, agent: &ScriptedAgent, admin: SocketAddr) -> Value {
        json!({
            "version": 1,
            "service": self.service,
            "proxy": self.proxy,
            "agent": {"http_addr": agent.address(), "tls": {}, "node": "n1"},
            "admin": admin,
        })
    }

    /// Registers service and proxy, as `connect-init` does.
    pub(crate) fn register(&self, agent: &ScriptedAgent) {
        agent.seed(self.service.clone()).seed(self.proxy.clone());
    }

    /// Writes a file into the directory, before a program reads it.
    #[expect(clippy::disallowed_methods, reason = "no program reads the file meanwhile")]
    pub(crate) fn write(&self, name: &str, contents: &str) {
        std::fs::write(self.folder.path().join(name), contents).unwrap();
    }

    /// The path of a file in the directory.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    /// The contents of a file in the directory, if it exists.
    pub(crate) fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.folder.path().join(name)).ok()
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.folder.path().join(name)).unwrap();
    }

    pub(crate) fn make_folder(&self, name: &str) {
        std::fs::create_dir(self.folder.path().join(name)).unwrap();
    }

    /// Whether there is a tombstone.
    pub(crate) fn is_buried(&self) -> bool {
        self.folder.path().join("deregistered").exists()
    }

    /// Makes the tombstone that old.
    pub(crate) fn was_buried(&self, ago: Duration) {
        let tombstone = File::options().append(true).open(self.path("deregistered")).unwrap();
        tombstone.set_modified(SystemTime::now() - ago).unwrap();
    }

    /// Starts the sidecar.
    pub(crate) fn run(&self) -> Process {
        self.run_with(&[])
    }

    /// Starts the sidecar with more flags.
    pub(crate) fn run_with(&self, flags: &[&str]) -> Process {
        let mut sidecar = self.run_command(flags, &envoy::COMMAND);
        self.envoy.is(sidecar.take_stdin());
        sidecar
    }

    /// Starts the sidecar with another command instead of Envoy.
    pub(crate) fn run_command(&self, flags: &[&str], command: &[&str]) -> Process {
        Process::start(self.command("run", flags).arg("--").args(command))
    }

    /// Runs the preStop hook.
    pub(crate) fn deregister(&self, flags: &[&str]) -> Outcome {
        Outcome::of(self.command("deregister", flags))
    }

    /// Starts the preStop hook.
    pub(crate) fn start_deregister(&self) -> Process {
        Process::start(&mut self.command("deregister", &[]))
    }

    /// Runs `ready`.
    pub(crate) fn ready(&self, flags: &[&str]) -> Outcome {
        Outcome::of(self.command("ready", flags))
    }

    /// Starts `ready --wait`.
    pub(crate) fn start_ready(&self) -> Process {
        Process::start(&mut self.command("ready", &["--wait", "1m"]))
    }

    /// Starts `wait` with a command, as in a container without the hand-off files: it only
    /// knows Envoy's port.
    pub(crate) fn wait(&self, flags: &[&str], command: &[&str]) -> Process {
        let mut program = Command::new(env!("CARGO_BIN_EXE_connect-lifecycle"));
        program.env_clear().args(["wait", "--admin-bind", &self.envoy.admin().to_string()]);
        Process::start(program.args(flags).arg("--").args(command))
    }

    /// A command of the program.
    pub(crate) fn command(&self, command: &str, flags: &[&str]) -> Command {
        let mut program = Command::new(env!("CARGO_BIN_EXE_connect-lifecycle"));
        program.env_clear().arg(command).arg("--dir").arg(self.folder.path()).args(flags);
        program
    }
}

/// Waits until both TTL checks pass.
pub(crate) fn await_alive(agent: &ScriptedAgent) {
    agent.await_that("both TTL checks to be passing", |state| {
        state.model.is("passing", SERVICE_LEASE) && state.model.is("passing", PROXY_LEASE)
    });
}

/// Asserts that the agent has no services.
#[track_caller]
pub(crate) fn assert_nothing_left(agent: &ScriptedAgent) {
    let services = agent.services();
    assert!(services.is_empty(), "left on the agent: {:?}", services.keys());
}
