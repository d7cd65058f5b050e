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
fn a_service_and_its_sidecar_are_left_for_connect_lifecycle() {
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

#[test]
fn a_port_of_another_sidecar_is_refused_before_anything_is_sent() {
    let other = json!({"api-p": {"ID": "api-p", "Service": "api-p", "Kind": "connect-proxy",
        "Port": 20000}});
    let agent = agent(other, &["web", "web-sidecar-proxy"]);
    let files = Files::new();
    let file = files.add("web.hcl", WEB);
    run(&agent.address(), &["sidecar", "--dir", &files.folder(), &file])
        .failed(64, &["port 20000 is that of `api-p`", "sidecar_service.port", "--admin-bind"]);
    assert_eq!(registered(&agent), Vec::<Value>::new());
}

#[test]
fn a_sidecar_that_is_refused_leaves_no_service_behind() {
    let agent = agent(json!({}), &["web"]);
    let files = Files::new();
    let file = files.add("web.hcl", WEB);
    let ran = run(&agent.address(), &["sidecar", "--dir", &files.folder(), &file]);
    ran.failed(78, &["the sidecar of service `web`", "400 no"]);
    assert!(agent.lines().contains(&"PUT /v1/agent/service/deregister/web".to_owned()));
    assert!(!files.path("registration.json").exists());
}

#[test]
fn a_file_without_a_sidecar_to_keep_is_refused() {
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
fn flags_of_consuls_cli_are_answered_with_what_to_write() {
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
