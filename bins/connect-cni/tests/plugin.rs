//! The plugin, run as container runtimes do: with environment variables and stdin. Tests
//! that load rules require root; each has a network namespace of its own.

#![expect(clippy::unwrap_used, reason = "fixtures are tests, too: the panic is the report")]

use std::sync::mpsc::channel;

use assert_cmd::Command;
use redirect::{Plan, Transaction};
use serde_json::{Value, json};

const ANNOTATION: &str = "consul.hashicorp.com/transparent-proxy-redirect";

/// A network namespace, and a thread that runs jobs in it.
struct Network {
    path: String,
    jobs: std::sync::mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl Network {
    fn new() -> Option<Self> {
        let is_root = nix::unistd::Uid::effective().is_root();
        testkit::or_skip(
            is_root.then_some(()).ok_or_else(|| "a network namespace requires root".to_owned()),
        )?;
        let (jobs, todo) = channel::<Box<dyn FnOnce() + Send>>();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let thread = nix::unistd::gettid();
            let path = format!("/proc/{}/task/{thread}/ns/net", std::process::id());
            tell.send(path).unwrap();
            for job in todo {
                job();
            }
        });
        Some(Self { path: told.recv().unwrap(), jobs })
    }

    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        self.jobs.send(Box::new(move || drop(tell.send(job())))).unwrap();
        told.recv().unwrap()
    }

    /// Whether these rules are loaded.
    fn has(&self, plan: &Plan) -> Result<(), netfilter::Error> {
        let transaction = Transaction::from(plan);
        self.run(move || netfilter::Netlink::open()?.verify(&transaction))
    }
}

fn plan() -> Plan {
    let text = r#"{
        "inbound": 20000, "outbound": 15001, "excludeUids": [5995], "excludeInboundPorts": [20200],
        "excludeOutboundCidrs": ["10.1.0.0/16"], "services": {"9090": 20001},
        "dns": "127.0.0.1:8653"
    }"#;
    serde_json::from_str(text).unwrap()
}

/// The plan that is loaded: with the node's address.
fn loaded() -> Plan {
    let mut plan = plan();
    plan.exclude_outbound_cidrs.insert(0, "10.0.0.1".parse().unwrap());
    plan
}

/// The configuration that a runtime passes.
fn config(annotations: &Value) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "pods", "type": "connect-cni",
        "capabilities": {"io.kubernetes.cri.pod-annotations": true},
        "nodeAddresses": ["10.0.0.1"],
        "runtimeConfig": {"io.kubernetes.cri.pod-annotations": annotations},
        "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.7/24"}], "mtu": 1.50},
    })
}

fn transparent() -> Value {
    config(&json!({ANNOTATION: serde_json::to_string(&plan()).unwrap(), "other": "x"}))
}

fn plugin(command: &str, network: &str, input: &str) -> (bool, String) {
    let mut plugin = Command::new(assert_cmd::cargo::cargo_bin!("connect-cni"));
    plugin.env("CNI_COMMAND", command).env("CNI_CONTAINERID", "c1").env("CNI_IFNAME", "eth0");
    plugin.env("CNI_PATH", "/opt/cni/bin").env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web");
    let output = plugin.env("CNI_NETNS", network).write_stdin(input).output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

fn succeed(command: &str, network: &str, config: &Value) -> String {
    let (is_done, said) = plugin(command, network, &config.to_string());
    assert!(is_done, "{command}: {said}");
    said
}

/// The error's code and text.
fn fail(command: &str, network: &str, input: &str) -> (u64, String) {
    let (is_done, said) = plugin(command, network, input);
    assert!(!is_done, "{command} {input}: {said}");
    let error: Value = serde_json::from_str(&said).unwrap();
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    assert!(!text("cniVersion").is_empty(), "{said}");
    assert!(text("msg").starts_with("connect-cni: "), "{said}");
    assert!(text("details").starts_with("hint: "), "{said}");
    (error["code"].as_u64().unwrap(), format!("{} {}", text("msg"), text("details")))
}

#[test]
fn a_transparent_pod_is_redirected() {
    let Some(network) = Network::new() else { return };
    let config = transparent();
    let said = succeed("ADD", &network.path, &config);
    assert_eq!(said, config["prevResult"].to_string());
    network.has(&loaded()).unwrap();
    assert_eq!(succeed("CHECK", &network.path, &config), "");
    // ADD twice has the same effect as once.
    succeed("ADD", &network.path, &config);
    network.has(&loaded()).unwrap();
    assert_eq!(succeed("DEL", &network.path, &config), "");
    assert_eq!(succeed("DEL", &network.path, &config), "");
}

#[test]
fn other_pods_are_left_alone() {
    let Some(network) = Network::new() else { return };
    let mut without_capability = config(&json!({}));
    without_capability.as_object_mut().unwrap().remove("runtimeConfig");
    let mut unlisted = config(&json!({"other": "x"}));
    unlisted["nodeAddresses"] = json!([]);
    for config in
        [config(&json!({"other": "x"})), config(&json!(null)), unlisted, without_capability]
    {
        let said = succeed("ADD", &network.path, &config);
        assert_eq!(said, config["prevResult"].to_string());
        succeed("CHECK", &network.path, &config);
    }
    let error = network.has(&loaded()).unwrap_err();
    assert!(matches!(error, netfilter::Error::Different(_)), "{error}");
}

#[test]
fn check_reports_changed_rules() {
    let Some(network) = Network::new() else { return };
    let config = transparent();
    let (code, said) = fail("CHECK", &network.path, &config.to_string());
    assert_eq!(code, 102, "{said}");
    succeed("ADD", &network.path, &config);
    let mut other = plan();
    other.exclude_uids.push(0);
    let other = Transaction::from(&other);
    network.run(move || netfilter::Netlink::open()?.load(&other)).unwrap();
    let (code, said) = fail("CHECK", &network.path, &config.to_string());
    assert_eq!(code, 102, "{said}");
    assert!(said.contains("something else changes the table connect_redirect"), "{said}");
}

/// More excluded users than a plan may have.
fn oversized() -> String {
    let mut plan = plan();
    plan.exclude_uids = (1..=4097).collect();
    serde_json::to_string(&plan).unwrap()
}

#[test]
fn invalid_input_fails_with_code_cause_and_hint() {
    let annotated = |value: &str| config(&json!({ANNOTATION: value})).to_string();
    let changed = |key: &str, value: Value| {
        let mut config = transparent();
        config[key] = value;
        config.to_string()
    };
    let path = "/proc/self/ns/net";
    for (input, code, problem) in [
        (String::new(), 6, "cannot read the configuration on stdin"),
        (changed("cniVersion", json!("0.2.0")), 1, "`0.2.0`, expected one of 0.3.0"),
        (changed("cniVersion", json!("2.0.0")), 1, "`2.0.0`"),
        (changed("cniVersion", json!(null)), 1, "cniVersion"),
        (changed("prevResult", json!(null)), 7, "behind that of another plugin"),
        (changed("nodeAddresses", json!([])), 7, "nodeAddresses"),
        (changed("nodeAddresses", json!(["node-1"])), 6, "IP address"),
        (config(&json!([])).to_string(), 6, "pod-annotations"),
        (annotated(""), 100, ANNOTATION),
        (annotated("{}"), 100, "inbound"),
        (annotated(r#"{"inbound":1,"outbound":2,"excludeUids":[1],"later":1}"#), 100, "later"),
        (annotated(r#"{"inbound":1,"outbound":1,"excludeUids":[1]}"#), 100, "port 1"),
        (annotated(&oversized()), 100, "at most 4096"),
        (annotated(r#"{"inbound":1,"outbound":2,"excludeUids":[]}"#), 100, "no user"),
        // Rules would cut off the node.
        (transparent().to_string(), 4, "the node's own network"),
    ] {
        let (is, said) = fail("ADD", path, &input);
        assert_eq!(is, code, "{input}: {said}");
        assert!(said.contains(problem), "{input}: {said}");
    }
    let (code, said) = fail("ADD", "/var/run/netns/gone", &transparent().to_string());
    assert!(code == 5 && said.contains("/var/run/netns/gone"), "{code} {said}");
    let (code, said) = fail("ADD", "", &transparent().to_string());
    assert!(code == 4 && said.contains("CNI_NETNS is not set"), "{code} {said}");
    let (code, said) = fail("JUMP", path, "{}");
    assert!(code == 4 && said.contains("JUMP"), "{code} {said}");
}

#[test]
fn a_file_that_is_not_a_network_is_rejected() {
    let is_root = nix::unistd::Uid::effective().is_root();
    let root = is_root.then_some(()).ok_or_else(|| "entering a network requires root".to_owned());
    if testkit::or_skip(root).is_none() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let (code, said) = fail("ADD", file.path().to_str().unwrap(), &transparent().to_string());
    assert!(code == 5 && said.contains("cannot enter"), "{code} {said}");
}

#[test]
fn del_and_gc_never_fail() {
    for command in ["DEL", "GC"] {
        for input in ["", "{", &transparent().to_string()] {
            assert_eq!(plugin(command, "", input), (true, String::new()));
        }
    }
}

#[test]
fn version_and_status_report_the_supported_versions() {
    let said = succeed("VERSION", "", &json!({"cniVersion": "1.0.0"}));
    let said: Value = serde_json::from_str(&said).unwrap();
    let versions = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    assert_eq!(said, json!({"cniVersion": "1.0.0", "supportedVersions": versions}));
    let mut config = transparent();
    let status = config.as_object_mut().unwrap();
    status.remove("prevResult");
    status.remove("runtimeConfig");
    assert_eq!(succeed("STATUS", "", &config), "");
    config["cniVersion"] = json!("0.3.0");
    assert_eq!(succeed("STATUS", "", &config), "");
    config["cniVersion"] = json!("0.1.0");
    assert_eq!(fail("STATUS", "", &config.to_string()).0, 1);
}
