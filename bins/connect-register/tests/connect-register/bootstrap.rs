//! `bootstrap`, against a scripted agent.

use serde_json::{Value, json};

use crate::program::{Files, Ran, command, ran, run};
use crate::scripted_agent::{Answer, NOBODY, ScriptedAgent, ok, unknown};

/// What an agent says of itself that serves gRPC there.
fn serves_grpc(port: i32) -> Value {
    json!({"Config": {"NodeName": "n1"}, "DebugConfig": {"GRPCPort": port}})
}

fn web() -> Value {
    json!({"ID": "web-1", "Service": "web", "Port": 8080})
}

fn sidecar() -> Value {
    json!({
        "Kind": "connect-proxy", "ID": "web-1-sidecar-proxy", "Service": "web-sidecar-proxy",
        "Port": 20000, "Datacenter": "dc1",
        "Proxy": {
            "DestinationServiceName": "web", "DestinationServiceID": "web-1",
            "Config": {"envoy_prometheus_bind_addr": "0.0.0.0:9102"},
        },
    })
}

/// An agent with `web` and its sidecar; `other` goes before.
fn agent(other: impl Fn(&str) -> Option<Answer> + Send + Sync + 'static) -> ScriptedAgent {
    ScriptedAgent::start(move |request, _| {
        other(&request.line).unwrap_or_else(|| match request.line.as_str() {
            "GET /v1/agent/services" => {
                ok(&json!({"web-1": web(), "web-1-sidecar-proxy": sidecar()}))
            }
            "GET /v1/agent/service/web-1" => ok(&web()),
            "GET /v1/agent/service/web-1-sidecar-proxy" => ok(&sidecar()),
            "GET /v1/agent/self" => ok(&serves_grpc(8502)),
            "GET /v1/config/proxy-defaults/global" => Answer::Status(
                404,
                "Config entry not found for \"proxy-defaults\" / \"global\"".to_owned(),
            ),
            _ => unknown(),
        })
    })
}

/// PEM as Envoy reads it.
const CA: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

const PROXY: [&str; 3] = ["bootstrap", "--proxy-id", "web-1-sidecar-proxy"];

fn bootstrap(agent: &ScriptedAgent, args: &[&str]) -> Ran {
    run(&agent.address(), &[&PROXY, args].concat())
}

/// The address of the agent's gRPC port in a bootstrap.
fn grpc(document: &Value) -> &Value {
    let cluster = &document["static_resources"]["clusters"][0];
    &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
}

fn listeners(document: &Value) -> usize {
    document["static_resources"]["listeners"].as_array().map_or(0, Vec::len)
}

#[test]
fn the_bootstrap_of_a_registered_proxy_is_printed_as_readable_json() {
    let agent = agent(|_| None);
    let ran = bootstrap(&agent, &["--token", "s3cret"]);
    let document = ran.json();
    assert_eq!(document["node"]["id"], "web-1-sidecar-proxy");
    assert_eq!(document["node"]["cluster"], "web");
    assert_eq!(
        document["admin"]["address"]["socket_address"],
        json!({"address": "127.0.0.1", "port_value": 19000})
    );
    assert_eq!(
        grpc(&document)["socket_address"],
        json!({"address": "127.0.0.1", "port_value": 8502})
    );
    assert_eq!(listeners(&document), 1, "the page for Prometheus");
    assert!(ran.stdout.contains("s3cret") && ran.stdout.ends_with("}\n"));
    assert!(ran.stdout.lines().count() > 100, "it is meant to be read");
    assert_eq!(ran.stderr, "");
    assert_eq!(
        agent.lines(),
        [
            "GET /v1/agent/self",
            "GET /v1/agent/service/web-1-sidecar-proxy",
            "GET /v1/config/proxy-defaults/global",
        ]
    );
}

#[test]
fn a_proxy_can_be_named_by_its_service() {
    let agent = agent(|_| None);
    let address = agent.address();
    let document = run(&address, &["bootstrap", "--sidecar-for", "web-1"]).json();
    assert_eq!(document, bootstrap(&agent, &[]).json());
    let by_environment = command(&["bootstrap", "--http-addr", &address])
        .env("CONNECT_SIDECAR_FOR", "web-1")
        .output();
    assert_eq!(document, ran(by_environment.unwrap()).json());
    run(&address, &["bootstrap", "--sidecar-for", "web"]).failed(
        1,
        &["no sidecar proxy is registered for service `web`", "there are sidecars for: web-1"],
    );
}

#[test]
fn an_id_that_is_unknown_or_no_proxy_is_an_error() {
    let agent = agent(|_| None);
    let address = agent.address();
    run(&address, &["bootstrap", "--proxy-id", "nope"]).failed(
        1,
        &[
            "no service `nope` is registered with the Consul agent at",
            &address,
            "hint: register the proxy",
        ],
    );
    run(&address, &["bootstrap", "--proxy-id", "web-1"])
        .failed(64, &["service `web-1` is not a Connect proxy", "sidecar proxy"]);
}

#[test]
fn a_gateway_has_a_bootstrap() {
    let agent = agent(|line| {
        let gateway = json!({"Kind": "mesh-gateway", "ID": "gw-1", "Service": "gw", "Port": 1,
            "Proxy": {"MeshGateway": {}}});
        line.ends_with("/gw-1").then(|| ok(&gateway))
    });
    let document = run(&agent.address(), &["bootstrap", "--proxy-id", "gw-1"]).json();
    assert_eq!(document["node"]["id"], "gw-1");
}

/// As `consul connect envoy -gateway ingress` does.
#[test]
fn an_ingress_gateway_has_a_ready_listener() {
    let agent = agent(|line| {
        let gateway =
            |kind: &str| json!({"Kind": kind, "ID": kind, "Service": kind, "Port": 1, "Proxy": {}});
        match line {
            "GET /v1/agent/services" => Some(ok(&json!({
                "ingress-gateway": gateway("ingress-gateway"),
                "mesh-gateway": gateway("mesh-gateway"),
            }))),
            "GET /v1/agent/service/ingress-gateway" => Some(ok(&gateway("ingress-gateway"))),
            "GET /v1/agent/service/mesh-gateway" => Some(ok(&gateway("mesh-gateway"))),
            _ => None,
        }
    });
    let bootstrap = |args: &[&str]| run(&agent.address(), &[&["bootstrap"], args].concat()).json();
    let ready = |document: &Value| {
        let listener = &document["static_resources"]["listeners"][0];
        assert_eq!(listener["name"], "envoy_ready_listener", "{document:#}");
        listener["address"]["socket_address"].clone()
    };
    let document = bootstrap(&["--gateway", "ingress"]);
    assert_eq!(ready(&document), json!({"address": "127.0.0.1", "port_value": 8443}));
    let given = ["--envoy-ready-bind-address", "0.0.0.0", "--envoy-ready-bind-port", "20300"];
    let document = bootstrap(&[&["--gateway", "ingress"], &given[..]].concat());
    assert_eq!(ready(&document), json!({"address": "0.0.0.0", "port_value": 20300}));
    assert_eq!(listeners(&bootstrap(&["--gateway", "mesh"])), 0);
}

#[test]
fn the_grpc_address_is_that_of_the_flag_or_the_one_that_the_agent_reports() {
    let ports = |document: &Value| grpc(document)["socket_address"]["port_value"].clone();
    let newer = agent(|line| {
        let newer = json!({"xDS": {"Ports": {"Plaintext": 18502, "TLS": -1}}});
        (line == "GET /v1/agent/self").then(|| ok(&newer))
    });
    assert_eq!(ports(&bootstrap(&newer, &[]).json()), 18502);

    let given = bootstrap(&newer, &["--grpc-addr", "localhost:1234"]).json();
    assert_eq!(grpc(&given)["socket_address"], json!({"address": "127.0.0.1", "port_value": 1234}));
    let unix = bootstrap(&newer, &["--grpc-addr", "unix:///run/grpc.sock"]).json();
    assert_eq!(grpc(&unix)["pipe"], json!({"path": "/run/grpc.sock"}));

    let silent = agent(|line| {
        (line == "GET /v1/agent/self").then(|| Answer::Status(403, "Permission denied".to_owned()))
    });
    let ran = bootstrap(&silent, &[]);
    assert_eq!(ports(&ran.json()), 8502);
    ran.said(&["the agent does not report its gRPC port"]);

    let off = agent(|line| (line == "GET /v1/agent/self").then(|| ok(&serves_grpc(-1))));
    bootstrap(&off, &[]).failed(64, &["gRPC is off on the agent"]);
    bootstrap(&off, &["--grpc-addr", "h"]).failed(64, &["not a gRPC address"]);
    // A name that does not resolve yet is waited for.
    bootstrap(&off, &["--grpc-addr", "bad..name:1", "--timeout", "300ms"])
        .failed(69, &["host `bad..name` has no address", "--grpc-addr", "trying again"]);
}

#[test]
fn tls_to_the_grpc_port_requires_a_ca() {
    let only_tls = agent(|line| {
        let tls = json!({"xDS": {"Ports": {"Plaintext": -1, "TLS": 8503}}});
        (line == "GET /v1/agent/self").then(|| ok(&tls))
    });
    bootstrap(&only_tls, &[])
        .failed(64, &["no CA certificate", "--grpc-ca-file", "/v1/connect/ca/roots?pem=true"]);
    let agent = agent(|line| {
        let both = json!({"xDS": {"Ports": {"Plaintext": 8502, "TLS": 8503}}});
        (line == "GET /v1/agent/self").then(|| ok(&both))
    });
    let plain = bootstrap(&agent, &[]);
    plain.said(&["its TLS port 8503 needs --grpc-ca-file"]);
    assert_eq!(grpc(&plain.json())["socket_address"]["port_value"], 8502);

    let files = Files::new();
    let ca = files.add("ca.pem", &format!("# the CA\n{CA}"));
    let cas = |document: &Value| {
        let cluster = &document["static_resources"]["clusters"][0];
        let tls = &cluster["transport_socket"]["typed_config"]["common_tls_context"];
        tls["validation_context"]["trusted_ca"]["inline_string"].clone()
    };
    let document = bootstrap(&agent, &["--grpc-ca-file", &ca]).json();
    assert_eq!(cas(&document), CA);
    assert_eq!(grpc(&document)["socket_address"]["port_value"], 8503);
    let document = bootstrap(&agent, &["--grpc-ca-path", &files.folder()]).json();
    assert_eq!(cas(&document), CA);
    // Without TLS it is not shown, and it is not read either.
    let plain = ["--grpc-addr", "http://127.0.0.1:8502", "--grpc-ca-file", "/nonexistent"];
    assert_eq!(cas(&bootstrap(&agent, &plain).json()), Value::Null);
    let missing = ["--grpc-ca-file", "/nonexistent"];
    bootstrap(&agent, &missing).failed(64, &["cannot read /nonexistent"]);
}

#[test]
fn flags_change_the_bootstrap() {
    let agent = agent(|_| None);
    let document = bootstrap(
        &agent,
        &[
            "--admin-bind",
            "[::1]:19001",
            "--admin-access-log-path",
            "/dev/stdout",
            "--envoy-ready-bind-address",
            "0.0.0.0",
            "--envoy-ready-bind-port",
            "20300",
            "--prometheus-scrape-path",
            "/prom",
            "--prometheus-backend-port",
            "20100",
            "--omit-deprecated-tags",
        ],
    );
    let document = document.json();
    assert_eq!(
        document["admin"]["address"]["socket_address"],
        json!({"address": "::1", "port_value": 19001})
    );
    assert_eq!(document["admin"]["access_log"][0]["typed_config"]["path"], "/dev/stdout");
    assert_eq!(listeners(&document), 2, "Prometheus and ready");
    let text = document.to_string();
    assert!(text.contains("\"/prom\"") && text.contains("20100"), "{text}");
    assert!(!text.contains("\"consul.service\""), "{text}");

    let document = bootstrap(&agent, &["--no-central-config"]).json();
    assert_eq!(listeners(&document), 0);
    for (args, said) in [
        (&["--prometheus-cert-file", "x"][..], "TLS for Prometheus is missing"),
        (&["--envoy-ready-bind-port", "1"], "--envoy-ready-bind-address"),
        (&["--prometheus-scrape-path", "metrics"], "not a path"),
        (&["--admin-bind", "19000"], "expected host:port"),
    ] {
        bootstrap(&agent, args).failed(64, &[said]);
    }
    run(NOBODY, &["bootstrap"]).failed(64, &["--proxy-id"]);
    run(NOBODY, &["bootstrap", "--proxy-id", "a", "--sidecar-for", "b"])
        .failed(64, &["cannot be used with"]);
}

#[test]
fn access_logs_are_those_of_proxy_defaults() {
    let with = |access_logs: Value| {
        agent(move |line| {
            let entry = json!({"Kind": "proxy-defaults", "AccessLogs": access_logs});
            (line == "GET /v1/config/proxy-defaults/global").then(|| ok(&entry))
        })
    };
    let log = |agent: &ScriptedAgent| {
        let document = bootstrap(agent, &[]).json();
        document["admin"]["access_log"][0]["typed_config"]["@type"].as_str().unwrap().to_owned()
    };
    assert!(log(&with(json!({"Enabled": true, "Type": "stderr"}))).ends_with("StderrAccessLog"));
    assert!(log(&with(Value::Null)).ends_with("FileAccessLog"));

    let denied = agent(|line| {
        (line == "GET /v1/config/proxy-defaults/global")
            .then(|| Answer::Status(403, "Permission denied".to_owned()))
    });
    bootstrap(&denied, &[]).said(&["403 Permission denied"]);
    assert!(log(&denied).ends_with("FileAccessLog"));
}

#[test]
fn an_agent_that_does_not_answer_is_an_error() {
    let address = NOBODY;
    run(address, &["bootstrap", "--proxy-id", "x", "--timeout", "200ms"])
        .failed(69, &["connection refused", address]);
    let agent = ScriptedAgent::start(|_, _| Answer::Hang);
    run(&agent.address(), &["bootstrap", "--sidecar-for", "x", "--timeout", "200ms"])
        .failed(75, &["did not answer within 200ms"]);
}
