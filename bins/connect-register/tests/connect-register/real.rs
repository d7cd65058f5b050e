//! Against a real Consul agent, and beside Consul's own CLI.

use definition::Format;
use registration::pod::{Declaration, Identity, pair};
use registration::upstream::{Context, parse_list};
use serde_json::{Value, json};

use crate::program::run;
use crate::real_agent::{RealAgent, assert_same};

/// Definitions that Consul 1.8 reads, too.
fn definitions() -> Value {
    json!({"services": [
        {"name": "plain"},
        {
            "id": "web-1", "name": "web", "port": 8080, "address": "10.1.1.1",
            "tags": ["a", "b"], "meta": {"Version": "2", "x-y": ""},
            "tagged_addresses": {"lan": {"address": "10.1.1.2", "port": 81}},
            "weights": {"passing": 5}, "enable_tag_override": true,
            "check": {"name": "single", "tcp": "127.0.0.1:1", "interval": "1h", "timeout": "90s"},
            "checks": [
                {"id": "http", "name": "by http", "http": "http://127.0.0.1:1/health",
                    "interval": "90m", "method": "PUT", "header": {"X-A": ["b", "c"]},
                    "tls_skip_verify": true, "notes": "a note", "status": "passing",
                    "DeregisterCriticalServiceAfter": "2h"},
                {"id": "ttl", "TTL": "1h30m", "status": "warning", "success_before_passing": 2},
                {"id": "grpc", "grpc": "127.0.0.1:1/x", "grpc_use_tls": true, "interval": "1h"},
                {"id": "alias", "alias_service": "plain"},
            ],
            "connect": {"sidecar_service": {
                "port": 20000,
                "proxy": {
                    "upstreams": [
                        {"destination_name": "db", "local_bind_port": 5432, "datacenter": "dc1",
                            "mesh_gateway": {"mode": "local"}, "config": {"connect_timeout_ms": 5}},
                        {"destination_type": "prepared_query", "destination_name": "q",
                            "local_bind_address": "127.0.0.2", "local_bind_port": 1},
                    ],
                    "config": {"protocol": "http", "Nested": {"Key_A": 1.5, "list": ["x"]}},
                    "expose": {"checks": true, "paths": [{"path": "/h", "listener_port": 2,
                        "local_path_port": 3, "protocol": "http2"}]},
                    "mesh_gateway": {"mode": "remote"},
                },
            }},
        },
        {
            "kind": "connect-proxy", "id": "p/1", "name": "p", "port": 20001,
            "proxy": {"destination_service_name": "plain", "destination_service_id": "plain",
                "local_service_address": "127.0.0.1", "local_service_port": 1},
            "checks": [{"ttl": "1h"}],
        },
        {"kind": "mesh-gateway", "name": "gw", "port": 443},
        {"name": "native", "port": 1, "connect": {"native": true}},
    ]})
}

#[test]
fn registrations_are_those_of_consuls_cli() {
    let Some(agent) = RealAgent::start(&json!({})) else { return };
    let empty = agent.state();
    let file = agent.file("all.json", &definitions());

    let printed = agent.cli(&["services", "register", &file]);
    let by_cli = agent.state();
    assert_eq!(by_cli["services"].as_object().unwrap().len(), 6);
    agent.cli(&["services", "deregister", &file]);
    assert_same(&agent.state(), &empty, "");

    run(&agent.http, &["register", &file]).printed(&printed);
    assert_same(&agent.state(), &by_cli, "");
    // Once more: nothing changes.
    run(&agent.http, &["register", &file]).printed(&printed);
    assert_same(&agent.state(), &by_cli, "");

    run(&agent.http, &["deregister", &file]).printed(
        "Deregistered service: plain\nDeregistered service: web-1\nDeregistered service: p/1\n\
         Deregistered service: gw\nDeregistered service: native\n",
    );
    assert_same(&agent.state(), &empty, "");
    let ran = run(&agent.http, &["deregister", "--id", "p/1"]);
    ran.printed("");
    ran.said(&["service `p/1` is not registered"]);

    let flags = ["-name", "flags", "-port", "1", "-tag", "a", "-tag", "b", "-meta", "k=v"];
    let ours =
        flags.map(|flag| if flag.starts_with('-') { format!("-{flag}") } else { flag.to_owned() });
    let ours: Vec<&str> = ours.iter().map(String::as_str).collect();
    agent.cli(&[&["services", "register"], &flags[..]].concat());
    let by_cli = agent.state();
    agent.cli(&["services", "deregister", "-id", "flags"]);
    run(&agent.http, &[&["register"], &ours[..]].concat()).printed("Registered service: flags\n");
    assert_same(&agent.state(), &by_cli, "");
}

/// Release 1.8's CLI loses `args`, and the agent then misses the check's kind.
#[test]
fn a_script_check_is_registered_or_its_refusal_leaves_nothing_behind() {
    let Some(agent) = RealAgent::start(&json!({})) else { return };
    let script = json!({"args": ["/bin/true"], "interval": "1h", "output_max_size": 100});
    let file = agent.file(
        "f.json",
        &json!({"services": [{"name": "a", "connect": {"sidecar_service": {}}},
            {"name": "b", "check": script}]}),
    );
    let empty = agent.state();
    run(&agent.http, &["register", &file]).failed(
        78,
        &["registering service `b`", "Scripts are disabled on this agent", "`a` was deregistered"],
    );
    assert_same(&agent.state(), &empty, "");

    let Some(agent) = RealAgent::start(&json!({"enable_script_checks": true})) else { return };
    run(&agent.http, &["register", &file])
        .printed("Registered service: a\nRegistered service: b\n");
    assert_eq!(agent.state()["checks"]["service:b"]["Type"], "script");
}

#[test]
fn the_token_of_a_definition_is_used() {
    let token = "6d3b1b0e-0b0f-4f5c-9c0a-2d7c6c1f0a11";
    let Some(agent) = RealAgent::start(&json!({"acl": {"enabled": true, "default_policy": "deny",
        "tokens": {"master": token}}}))
    else {
        return;
    };
    // Before that, the agent would remember that it does not know the token.
    agent.wait_until("/v1/acl/token/self", token, |answer| answer["SecretID"] == token);
    let with = agent.file("with.json", &json!({"service": {"name": "a", "token": token}}));
    let without = agent.file("without.json", &json!({"service": {"name": "a"}}));

    let ran = run(&agent.http, &["register", &without]);
    ran.failed(77, &["registering service `a`", "403 Permission denied"]);
    let ran = run(&agent.http, &["register", &with]);
    ran.printed("Registered service: a\n");
    assert!(!ran.stderr.contains(token));
    let ran = run(&agent.http, &["deregister", &without]);
    ran.failed(77, &["deregistering service `a`", "403 Permission denied"]);
    run(&agent.http, &["deregister", &with]).printed("Deregistered service: a\n");
    // With ACLs on, release 1.8 answers 500 for it.
    let ran = run(&agent.http, &["deregister", &with]);
    ran.printed("");
    ran.said(&["service `a` is not registered"]);
}

#[test]
fn sidecars_and_other_proxies_have_a_bootstrap() {
    let Some(agent) = RealAgent::start(&json!({})) else { return };
    let file = agent.file("all.json", &definitions());
    run(&agent.http, &["register", &file]);
    let document = run(&agent.http, &["bootstrap", "--sidecar-for", "web-1"]).json();
    assert_eq!(document["node"]["id"], "web-1-sidecar-proxy");
    assert_eq!(document["node"]["cluster"], "web");
    assert!(document.to_string().contains(&format!("\"port_value\":{}", agent.grpc)));
    let by_cli = agent.cli(&["connect", "envoy", "-bootstrap", "-sidecar-for", "web-1"]);
    let by_cli: Value = serde_json::from_str(&by_cli).unwrap();
    assert_eq!(document["node"]["id"], by_cli["node"]["id"]);
    assert_eq!(document["node"]["cluster"], by_cli["node"]["cluster"]);
    assert_eq!(document["admin"]["address"], by_cli["admin"]["address"]);

    let document = run(&agent.http, &["bootstrap", "--proxy-id", "p/1"]).json();
    assert_eq!(document["node"]["cluster"], "plain");
    run(&agent.http, &["bootstrap", "--proxy-id", "nope"]).failed(1, &["no service `nope`"]);
    run(&agent.http, &["bootstrap", "--proxy-id", "web-1"]).failed(64, &["is not a Connect proxy"]);
}

/// As `connect-init` registers them, and as `connect-init --dry-run --output`
/// writes them down.
#[test]
fn a_definition_file_can_describe_what_connect_init_registers() {
    let Some(agent) = RealAgent::start(&json!({})) else { return };
    let pod = Identity {
        name: "web-0".to_owned(),
        namespace: "shop".to_owned(),
        ip: [10, 0, 0, 7].into(),
    };
    let upstreams = "db:1234,cache:6379:dc2,prepared_query:geo:7000";
    let declared = Declaration {
        name: "web".to_owned(),
        port: Some(8080),
        tags: vec!["v1".to_owned()],
        meta: [("team".to_owned(), "a \"b\" ${c}".to_owned())].into(),
        upstreams: parse_list(upstreams, Context::default()).unwrap(),
        proxy_config: serde_json::from_value(json!({"envoy_stats_tags": ["a=1", "b=2"]})).unwrap(),
        ..Declaration::default()
    };
    let pair = pair(&pod, declared);
    let services = [&pair.service, &pair.proxy];
    for service in services {
        agent.put("/v1/agent/service/register", &serde_json::to_value(service).unwrap());
    }
    let by_init = agent.state();
    for (name, format) in [("pod.hcl", Format::Hcl), ("pod.json", Format::Json)] {
        let file = agent.write(name, &definition::print(services, format));
        run(&agent.http, &["deregister", &file]).printed(
            "Deregistered service: shop_web-0_web\nDeregistered service: shop_web-0_web-sidecar-proxy\n",
        );
        run(&agent.http, &["register", &file])
            .printed("Registered service: web\nRegistered service: web-sidecar-proxy\n");
        assert_same(&agent.state(), &by_init, "");
        run(&agent.http, &["deregister", &file]);
        agent.cli(&["services", "register", &file]);
        assert_same(&agent.state(), &by_init, "");
    }
}

#[test]
fn a_service_of_another_node_is_reported_with_its_node() {
    let Some(agent) = RealAgent::start(&json!({})) else { return };
    agent.put(
        "/v1/catalog/register",
        &json!({"Node": "n9", "Address": "192.0.2.9", "Service": {"ID": "web/9", "Service": "web"}}),
    );
    let file = agent.write("f.hcl", "service { id = \"web/9\" name = \"web\" }");
    let ran = run(&agent.http, &["deregister", &file]);
    ran.printed("");
    ran.said(&["service `web/9` is registered on node n9, this agent is node n1"]);
}

#[test]
fn existing_checks_stay_without_replace_checks() {
    let Some(agent) = RealAgent::start(&json!({})) else { return };
    let checks = || {
        let state = agent.state();
        state["checks"].as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    let old =
        agent.write("old.hcl", "service { name = \"a\" check { id = \"old\" ttl = \"1h\" } }");
    let new =
        agent.write("new.hcl", "service { name = \"a\" check { id = \"new\" ttl = \"1h\" } }");
    run(&agent.http, &["register", &old]).printed("Registered service: a\n");
    run(&agent.http, &["register", &new]).printed("Registered service: a\n");
    assert_eq!(checks(), ["new", "old"]);
    run(&agent.http, &["register", "--replace-checks", &new]).printed("Registered service: a\n");
    assert_eq!(checks(), ["new"]);
}
