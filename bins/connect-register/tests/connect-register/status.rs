//! `status`, `completions` and `man`.

use std::io::Write;
use std::net::TcpListener;

use serde_json::json;

use crate::program::{Files, command, ran, run};
use crate::real_agent::RealAgent;
use crate::scripted_agent::{Answer, NOBODY, ScriptedAgent, ok, unknown};

/// An agent with `web`, its sidecar, which reaches `db`, and `plain`.
fn agent(can: bool) -> ScriptedAgent {
    ScriptedAgent::start(move |request, _| match request.line.as_str() {
        "GET /v1/agent/services" => ok(&json!({
            "web-1": {"ID": "web-1", "Service": "web", "Address": "10.0.0.1", "Port": 80},
            "web-1-p": {"ID": "web-1-p", "Service": "web-p", "Kind": "connect-proxy",
                "Address": "::1", "Port": 20000,
                "Proxy": {"DestinationServiceName": "web", "DestinationServiceID": "web-1",
                    "Upstreams": [{"DestinationType": "service", "DestinationName": "db",
                        "LocalBindPort": 5432, "Datacenter": "dc2"},
                        {"DestinationName": "pay", "DestinationPeer": "east",
                        "LocalBindPort": 5433}]}},
            "plain": {"ID": "plain", "Service": "plain"},
        })),
        "GET /v1/agent/checks" => ok(&json!({
            "c1": {"CheckID": "c1", "Name": "one", "Status": "passing", "ServiceID": "web-1"},
            "c2": {"CheckID": "c2", "Name": "two", "Status": "critical", "ServiceID": "web-1",
                "Output": "it is broken\nfor long"},
            "n": {"CheckID": "n", "Name": "of the node", "Status": "passing", "ServiceID": ""},
        })),
        "GET /v1/status/leader" => ok(&json!("10.0.0.9:8300")),
        "GET /v1/agent/connect/ca/roots" => ok(&json!({"ActiveRootID": "r"})),
        _ if !can => Answer::Status(403, "Permission denied".to_owned()),
        "GET /v1/health/connect/db" => {
            assert_eq!(request.query, "?passing=true&dc=dc2");
            ok(&json!([{"Service": {"ID": "db-1"}}, {"Service": {"ID": "db-2"}}]))
        }
        // Diagnostics change nothing: this would make the agent sign certificates.
        line if line.contains("/connect/ca/leaf/") => panic!("{line}"),
        "GET /v1/health/connect/pay" => {
            assert_eq!(request.query, "?passing=true&peer=east");
            ok(&json!([{"Service": {"ID": "pay-1"}}]))
        }
        "GET /v1/catalog/datacenters" => ok(&json!(["dc1", "dc2"])),
        "GET /v1/peering/east" => Answer::Status(404, "Peering not found for \"east\"".to_owned()),
        "GET /v1/acl/token/self" => Answer::Status(401, "ACL support disabled".to_owned()),
        "GET /v1/agent/self" => ok(&json!({
            "Config": {"NodeName": "n1", "Datacenter": "dc1", "Version": "1.17.2"},
            "xDS": {"SupportedProxies": {"envoy": ["1.27.2"]}},
        })),
        "GET /v1/catalog/service/nope" => ok(&json!([{"Node": "n9", "ServiceID": "nope"}])),
        _ => unknown(),
    })
}

/// An address that speaks HTTP/2, as the agent's gRPC port would.
fn xds() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // An empty SETTINGS frame.
            let _ = stream.and_then(|mut stream| stream.write_all(b"\0\0\0\x04\0\0\0\0\0"));
        }
    });
    address
}

#[test]
fn the_table_shows_services_and_the_diagnosis() {
    let xds = xds();
    let agent = agent(true);
    let ran = run(
        &agent.address(),
        &["status", "--grpc-addr", &xds, "--envoy-version", "envoyproxy/envoy:v1.27.0"],
    );
    let http = agent.address();
    ran.printed(&format!(
        "SERVICE  ID       ADDRESS      KIND           CHECKS                 SIDECAR  UPSTREAMS\n\
         plain    plain    -            service        -                      -        -\n\
         web      web-1    10.0.0.1:80  service        1 critical, 1 passing  web-1-p  -\n\
         web-p    web-1-p  [::1]:20000  connect-proxy  -                      -        db:5432 (2 healthy), pay:5433 of peer east (1 healthy)\n\
         \n\
         agent           ok       http://{http} answers; its servers' leader is 10.0.0.9:8300\n\
         TLS             ok       not used: the address is http://\n\
         token           ok       none, and none is needed: ACLs are off on the agent\n\
         node            ok       n1 in datacenter dc1\n\
         version         ok       Consul 1.17.2\n\
         Connect         ok       enabled, and its CA has a root\n\
         gRPC            ok       http://{xds} (given) answers in plain text\n\
         Envoy           ok       the agent supports envoyproxy/envoy:v1.27.0\n\
         services        ok       2 of 3 are registered and healthy\n\
         service web-1   wrong    check `c2` (two) is critical: it is broken\n\
         {0:25}hint: a service with a critical check gets no traffic; with a warning, it still does\n\
         {0:25}next: connect-register status --output json web-1\n\
         datacenter dc2  ok       the servers know it\n\
         peer east       wrong    an upstream names it, but the servers have no such peer\n\
         {0:25}hint: correct the upstream's peer, or establish the peering\n\
         {0:25}next: consul peering list\n",
        ""
    ));
    assert_eq!(ran.stderr, "");
}

#[test]
fn output_json_shows_the_requested_services() {
    let agent = agent(true);
    let xds = xds();
    let args = ["status", "--output", "json", "--grpc-addr", &xds, "web-1-p"];
    let printed = run(&agent.address(), &args).json();
    assert_eq!(
        printed["services"],
        json!([{
            "id": "web-1-p", "name": "web-p", "kind": "connect-proxy", "address": "::1",
            "port": 20000, "checks": [], "sidecar": null,
            "upstreams": [
                {"name": "db", "datacenter": "dc2", "peer": "", "local_port": 5432, "healthy": 2},
                {"name": "pay", "datacenter": "", "peer": "east", "local_port": 5433, "healthy": 1},
            ],
        }])
    );
    let findings = printed["diagnosis"].as_array().unwrap();
    assert_eq!(
        findings[3],
        json!({"what": "node", "verdict": "ok", "detail": "n1 in datacenter dc1"})
    );
    let words = ["what", "id", "verdict"];
    let tail =
        findings[findings.len() - 3..].iter().map(|found| words.map(|key| found[key].clone()));
    assert_eq!(
        json!(tail.collect::<Vec<_>>()),
        json!([
            ["service", "web-1-p", "ok"],
            ["datacenter", "dc2", "ok"],
            ["peer", "east", "wrong"]
        ])
    );
    let ran = run(&agent.address(), &["status", "plain", "nope"]);
    assert_eq!((ran.code, ran.stdout.lines().next().is_some()), (1, true), "{}", ran.stderr);
    ran.said(&["not registered with", "`nope`", "registered on node n9, this agent is node n1"]);
}

#[test]
fn an_unreadable_entry_does_not_hide_the_others() {
    let agent = ScriptedAgent::start(|request, _| match request.line.as_str() {
        "GET /v1/agent/services" => ok(&json!({
            "web": {"ID": "web", "Service": "web", "Port": 80},
            "far": {"ID": "far", "Service": "far", "Port": 70000},
        })),
        "GET /v1/agent/checks" => ok(&json!({})),
        _ => unknown(),
    });
    let ran = run(&agent.address(), &["status"]);
    assert!(ran.code == 0 && ran.stdout.contains("\nweb      web  :80"), "{ran:?}");
    ran.said(&["the agent's entry is unreadable in part: Port:", "service=\"far\""]);
}

#[test]
fn a_denied_request_does_not_hide_the_other_findings() {
    let ran = run(&agent(false).address(), &["status"]);
    assert!(ran.code == 0 && ran.stdout.contains("db:5432 (? healthy)"), "{ran:?}");
    ran.said(&["upstream db", "403 Permission denied"]);
    for line in [
        "node            unknown  403 Permission denied",
        "Connect         ok ",
        "hint: an ACL token with `agent:read`",
    ] {
        assert!(ran.stdout.contains(line), "{line}: {}", ran.stdout);
    }
}

/// An Envoy that runs as this proxy.
fn envoy(node: &'static str, leaves: serde_json::Value) -> ScriptedAgent {
    ScriptedAgent::start(move |request, _| match request.line.as_str() {
        "GET /server_info" => ok(&json!({"state": "LIVE", "node": {"id": node}})),
        "GET /certs" => ok(&json!({"certificates": [{"cert_chain": leaves}]})),
        "GET /stats" => {
            let is_connected = request.query.contains("connected_state");
            let stats = if is_connected { "control_plane.connected_state: 1\n" } else { "" };
            Answer::Status(200, stats.to_owned())
        }
        _ => unknown(),
    })
}

#[test]
fn each_envoy_is_judged_by_its_admin_listener() {
    let agent = agent(true);
    let leaf = json!([{"expiration_time": "9999-01-01T00:00:00Z",
        "subject_alt_names": [{"uri": "spiffe://d/web"}]}]);
    let envoys = [envoy("web-1-p", leaf.clone()), envoy("web-1-p", json!([])), envoy("gone", leaf)];
    let admins = envoys.each_ref().map(ScriptedAgent::address);
    let list = format!("{},{},{},{NOBODY}", admins[0], admins[1], admins[2]);
    let printed = run(&agent.address(), &["status", "--output", "json", "--admin-bind", &list]);
    let printed = printed.json();
    let findings = printed["diagnosis"].as_array().unwrap().iter();
    let sidecars = findings.filter(|found| found["what"] == "sidecar");
    let sidecars: Vec<_> =
        sidecars.map(|found| json!([found["id"], found["verdict"], found["reason"]])).collect();
    assert_eq!(
        json!(sidecars),
        json!([
            [admins[0], "ok", null],
            [admins[1], "wrong", "no-leaf"],
            [admins[2], "wrong", "envoy-unregistered"],
            [NOBODY, "wrong", "envoy-down"],
        ])
    );
}

#[test]
fn unreadable_checks_are_a_finding_and_not_a_failure() {
    let agent = ScriptedAgent::start(|request, _| match request.line.as_str() {
        "GET /v1/agent/services" => ok(&json!({"web": {"ID": "web", "Service": "web"}})),
        "GET /v1/agent/checks" => Answer::Status(500, "No cluster leader".to_owned()),
        _ => unknown(),
    });
    let printed = run(&agent.address(), &["status", "--output", "json"]).json();
    assert_eq!(printed["services"][0]["checks"], json!(null));
    let findings = printed["diagnosis"].as_array().unwrap();
    let found = findings.iter().find(|found| found["what"] == "checks").unwrap();
    assert_eq!((&found["verdict"], &found["reason"]), (&json!("unknown"), &json!("not-told")));
    // It was asked once: whoever looks for a fault does not wait.
    let asked = agent.lines().into_iter().filter(|line| line == "GET /v1/agent/checks");
    assert_eq!(asked.count(), 1);
}

#[test]
fn an_unregistered_service_may_be_one_that_the_token_may_not_read() {
    let agent = ScriptedAgent::start(|request, _| match request.line.as_str() {
        "GET /v1/agent/services" | "GET /v1/agent/checks" => ok(&json!({})),
        "GET /v1/acl/token/self" => Answer::Status(403, "Permission denied".to_owned()),
        _ => unknown(),
    });
    let ran = run(&agent.address(), &["status", "web"]);
    assert_eq!(ran.code, 1);
    ran.said(&["`web`", "services that the token may not read are not shown"]);
}

#[test]
fn an_agent_that_cannot_be_reached_is_a_finding() {
    let ran = run(NOBODY, &["status", "--timeout", "200ms"]);
    let printed = &ran.stdout;
    assert!(printed.starts_with("agent  wrong "), "{printed}");
    assert!(printed.contains("connection refused\n") && printed.contains("hint: "), "{printed}");
    assert_eq!(ran.code, 69);
    ran.said(&["connection refused"]);
    let ran = run(NOBODY, &["status", "--timeout", "200ms", "--output", "json"]);
    let printed: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(printed["services"], json!(null));
    assert_eq!(printed["diagnosis"][0]["verdict"], "wrong");
}

#[test]
fn an_agent_without_grpc_or_connect_has_findings() {
    let agent = ScriptedAgent::start(|request, _| match request.line.as_str() {
        "GET /v1/agent/services" | "GET /v1/agent/checks" => ok(&json!({})),
        "GET /v1/status/leader" => ok(&json!("")),
        "GET /v1/agent/self" => ok(&json!({
            "Config": {"NodeName": "n1", "Version": "1.8.7"}, "DebugConfig": {"GRPCPort": -1},
        })),
        "GET /v1/agent/connect/ca/roots" => {
            Answer::Status(500, "Connect must be enabled in order to use this endpoint".to_owned())
        }
        _ => unknown(),
    });
    let printed = run(&agent.address(), &["status"]).stdout;
    for line in [
        "agent    warning  ",
        "have no leader",
        "version  warning  Consul 1.8.7, which serves xDS v2 only",
        "Connect  wrong    off",
        "gRPC     wrong    gRPC is off on the agent",
    ] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
}

#[test]
fn a_real_agent_has_no_faults_and_its_services_are_shown() {
    let Some(agent) = RealAgent::start(&json!({})) else { return };
    let files = Files::new();
    let file = files.add(
        "f.hcl",
        "services {\n name = \"web\" id = \"w b/1\" port = 80 check { ttl = \"1h\" }\n connect { \
         sidecar_service { checks = [{ ttl = \"1h\" status = \"passing\" }] proxy { upstreams { \
         destination_name = \"web\" local_bind_port = 1 } } } } }",
    );
    run(&agent.http, &["register", "--wait", &file]).printed("Registered service: web\n");
    let ran = run(&agent.http, &["status", "--output", "json"]);
    assert_eq!(ran.stderr, "");
    let printed = ran.json();
    for what in ["agent", "node", "Connect"] {
        let findings = printed["diagnosis"].as_array().unwrap();
        let found = findings.iter().find(|finding| finding["what"] == what).unwrap();
        assert_eq!(found["verdict"], "ok", "{found}");
    }
    let [web, proxy] = printed["services"].as_array().unwrap().as_slice() else { panic!() };
    assert_eq!(
        (&web["id"], &web["sidecar"], &web["checks"][0]["status"]),
        (&json!("w b/1"), &json!("w b/1-sidecar-proxy"), &json!("critical"))
    );
    assert_eq!(proxy["upstreams"][0]["healthy"], 1);
    run(&agent.http, &["deregister", "--wait", &file]).printed("Deregistered service: w b/1\n");
    let ran = run(&agent.http, &["status", "w b/1"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
}

#[test]
fn completions_and_manual_pages_are_printed() {
    for (shell, words) in [("bash", "--sidecar-for"), ("zsh", "#compdef"), ("fish", "validate")] {
        let ran = ran(command(&["completions", shell]).output().unwrap());
        assert!(ran.code == 0 && ran.stdout.contains(words), "{shell}: {}", ran.stderr);
    }
    let page = ran(command(&["man"]).output().unwrap());
    assert!(page.code == 0 && page.stdout.contains(".TH connect-register 1"), "{page:?}");
    let page = ran(command(&["man", "register"]).output().unwrap());
    assert!(page.code == 0 && page.stdout.contains("keep\\-going"), "{page:?}");
    ran(command(&["man", "nope"]).output().unwrap())
        .failed(64, &["no subcommand `nope`", "deregister"]);
}
