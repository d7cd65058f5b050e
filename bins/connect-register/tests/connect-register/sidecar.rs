//! `sidecar`, and the flags of Consul's CLI that `bootstrap` has not.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::program::{Files, command, ran, run};
use crate::scripted_agent::{Answer, NOBODY, ScriptedAgent, done, ok, unknown};

const WEB: &str =
    "service { name = \"web\" port = 8080 connect { sidecar_service { port = 20000 } } }";

/// An agent that has these services, and takes those with these names.
fn agent(services: Value, takes: &'static [&'static str]) -> ScriptedAgent {
    ScriptedAgent::start(move |request, _| match request.line.as_str() {
        "GET /v1/agent/self" => ok(&json!({
            "Config": {"NodeName": "n1", "Version": "1.14.11"},
            "xDS": {"Ports": {"Plaintext": 8502, "TLS": -1}},
        })),
        "GET /v1/agent/services" => ok(&services),
        "GET /v1/agent/service/web-sidecar-proxy" => ok(&json!({
            "ID": "web-sidecar-proxy", "Service": "web-sidecar-proxy", "Kind": "connect-proxy",
            "Port": 20000, "Proxy": {"DestinationServiceName": "web", "DestinationServiceID": "web"},
        })),
        "PUT /v1/agent/service/register" => {
            let name = request.body["Name"].as_str().unwrap_or_default();
            if takes.contains(&name) { done() } else { Answer::Status(400, "no".to_owned()) }
        }
        line if line.starts_with("PUT ") => done(),
        "GET /v1/config/proxy-defaults/global" => {
            Answer::Status(404, "Config entry not found for \"proxy-defaults\"".to_owned())
        }
        _ => unknown(),
    })
}

/// The ids that were registered, in order.
fn registered(agent: &ScriptedAgent) -> Vec<Value> {
    let requests = agent.requests().into_iter();
    let bodies = requests.filter(|request| request.line == "PUT /v1/agent/service/register");
    bodies.map(|request| request.body["ID"].clone()).collect()
}

#[test]
fn a_service_and_its_sidecar_are_registered_with_the_files_for_connect_lifecycle() {
    let agent = agent(json!({}), &["web", "web-sidecar-proxy"]);
    let files = Files::new();
    let (file, token) = (files.add("web.hcl", WEB), files.add("token", "s3cret\n"));
    let ran = ran(command(&["sidecar", "--dir", &files.folder(), &file])
        .env("CONSUL_HTTP_ADDR", agent.address())
        .env("CONSUL_HTTP_TOKEN_FILE", token)
        .env("CONNECT_ADMIN_BIND", "127.0.0.1:19007")
        .output()
        .unwrap());
    ran.printed("Registered service: web\nRegistered service: web-sidecar-proxy\n");
    assert!(!ran.stderr.contains("s3cret"), "{}", ran.stderr);
    assert_eq!(registered(&agent), ["web", "web-sidecar-proxy"]);
    let json = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(files.path(name)).unwrap()).unwrap()
    };
    let record = json("registration.json");
    assert_eq!(
        (&record["service"]["ID"], &record["admin"]),
        (&json!("web"), &json!("127.0.0.1:19007"))
    );
    assert_eq!(record["proxy"]["Checks"][2]["CheckID"], "web-sidecar-proxy-lease");
    assert!(!record.to_string().contains("s3cret"), "{record}");
    assert_eq!(json("envoy-bootstrap.json")["node"]["id"], "web-sidecar-proxy");
    for (name, text) in [("acl-token", Some("s3cret")), ("envoy-bootstrap.json", None)] {
        let path = files.path(name);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
        assert!(text.is_none_or(|text| fs::read_to_string(&path).unwrap().trim() == text));
    }
}

/// `connect-lifecycle` writes new roots to that directory, and a later run trusts them.
#[test]
fn with_auto_encrypt_connect_lifecycle_follows_the_roots_of_connects_ca() {
    let agent = agent(json!({}), &["web", "web-sidecar-proxy"]);
    let files = Files::new();
    let file = files.add("web.hcl", WEB);
    let pem = || testkit::ScriptedAgent::start_tls("localhost").ca_pem().to_owned();
    let (given, learned) = (pem(), pem());
    let ca = files.add("ca.pem", &given);
    let dir = files.folder();
    let run = |flags: &[&str]| {
        let args = [&["sidecar", "--dir", &dir, "--ca-file", &ca], flags, &[&file]].concat();
        let ran = run(&agent.address(), &args);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let record = fs::read(files.path("registration.json")).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        record["agent"]["tls"]["ca_path"].as_str().map(str::to_owned)
    };
    let roots = files.path("connect-roots");
    assert_eq!(run(&[]), None);
    assert!(!roots.exists());
    assert_eq!(run(&["--auto-encrypt"]).as_deref(), roots.to_str());
    let written = || fs::read_to_string(roots.join("roots.pem")).unwrap();
    assert_eq!(written().trim(), given.trim());
    files.add("connect-roots/roots.pem", &learned);
    assert_eq!(run(&["--auto-encrypt"]).as_deref(), roots.to_str());
    assert!(written().contains(learned.trim()), "{}", written());
}

#[test]
fn auto_encrypt_without_the_roots_is_refused() {
    let files = Files::new();
    let file = files.add("web.hcl", WEB);
    let args = ["sidecar", "--auto-encrypt", "--dir", &files.folder(), &file];
    run(NOBODY, &args)
        .failed(64, &["--auto-encrypt", "--ca-file", "/v1/connect/ca/roots?pem=true"]);
}

#[test]
fn a_port_of_another_sidecar_is_rejected_before_anything_is_sent() {
    let other = json!({"api-p": {"ID": "api-p", "Service": "api-p", "Kind": "connect-proxy",
        "Port": 20000}});
    let agent = agent(other, &["web", "web-sidecar-proxy"]);
    let files = Files::new();
    let file = files.add("web.hcl", WEB);
    run(&agent.address(), &["sidecar", "--dir", &files.folder(), &file])
        .failed(64, &["port 20000 is in use by `api-p`", "sidecar_service.port", "--admin-bind"]);
    assert_eq!(registered(&agent), Vec::<Value>::new());
}

#[test]
fn a_service_whose_sidecar_is_refused_is_deregistered() {
    let agent = agent(json!({}), &["web"]);
    let files = Files::new();
    let file = files.add("web.hcl", WEB);
    let ran = run(&agent.address(), &["sidecar", "--dir", &files.folder(), &file]);
    ran.failed(78, &["the sidecar of service `web`", "400 no"]);
    assert!(agent.lines().contains(&"PUT /v1/agent/service/deregister/web".to_owned()));
    assert!(!files.path("registration.json").exists());
}

#[test]
fn a_file_without_exactly_one_service_and_sidecar_port_is_rejected() {
    let files = Files::new();
    for (text, problem) in [
        ("service { name = \"web\" }", "it has no sidecar"),
        ("service { name = \"web\" connect { sidecar_service {} } }", "expected a port"),
        ("services { name = \"a\" }\nservices { name = \"b\" }", "defines 2 services"),
    ] {
        let file = files.add("f.hcl", text);
        run(NOBODY, &["sidecar", "--dir", &files.folder(), &file]).failed(64, &[problem]);
    }
}

#[test]
fn a_flag_of_consuls_cli_is_an_error_that_names_its_replacement() {
    let args =
        ["bootstrap", "-gateway", "mesh", "-register", "--wan-address", "a:1", "-node-name=n"];
    run(NOBODY, &args).failed(
        64,
        &[
            "hint: for -register write: connect-register register --name NAME",
            "hint: for -wan-address write: connect-register register --tagged-address wan=",
            "hint: for -node-name write: --http-addr",
            "hint: flags begin with two dashes: --gateway",
        ],
    );
    run(NOBODY, &["register", "-name", "web"]).failed(64, &["two dashes: --name"]);
    // Not the help that `-h` asks for, and success.
    run(NOBODY, &["register", "-http-addr=localhost:8500", "web.hcl"])
        .failed(64, &["unexpected argument '-http-addr=", "two dashes: --http-addr"]);
    run(NOBODY, &["-Version"]).failed(64, &["unexpected argument '-Version'"]);
}
