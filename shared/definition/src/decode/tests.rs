use proptest::prelude::*;
use secrecy::ExposeSecret;
use serde_json::{Value as Json, json};

use super::*;
use crate::{Definition, Format, parse};

fn read(file: &Json) -> Vec<Definition> {
    parse("f.json", Format::Json, &file.to_string()).unwrap()
}

fn sent(service: &Json) -> Json {
    let mut definitions = read(&json!({"service": service}));
    assert_eq!(definitions.len(), 1);
    serde_json::to_value(definitions.remove(0).service).unwrap()
}

/// Each problem as `path: message`. The lines keep the order of the file.
fn problems(file: &str) -> Vec<String> {
    let problems = parse("f.json", Format::Json, file).unwrap_err();
    assert!(problems.is_sorted_by_key(|problem| (problem.line, problem.column)));
    problems.iter().map(|problem| format!("{}: {}", problem.path, problem.message)).collect()
}

/// A proxy with every key, and what is sent for it.
fn whole_proxy() -> (Json, Json) {
    let proxy = json!({
        "destination_service_name": "web", "destination_service_id": "web-1",
        "local_service_address": "127.0.0.1", "local_service_port": 8080,
        "local_service_ports": [{"name": "http", "port": 8080, "default": true}],
        "local_service_socket_path": "/s", "mode": "direct",
        "transparent_proxy": {"outbound_listener_port": 15001, "dialed_directly": true},
        "envoy_extensions": [{"name": "builtin/lua", "required": true, "consul_version": ">= 1.15",
            "envoy_version": ">= 1.25", "arguments": {"ProxyType": "connect-proxy"}}],
        "access_logs": {"enabled": true, "disable_listener_logs": true, "type": "file",
            "path": "/l", "json_format": "{}"},
        "config": {"envoy_x": [1, 2.5, {"Y_z": true}]},
        "upstreams": [{
            "destination_type": "prepared_query", "destination_name": "db",
            "destination_namespace": "n", "destination_partition": "p", "destination_peer": "c",
            "destination_port": "grpc", "datacenter": "dc2", "local_bind_address": "127.0.0.2", "local_bind_port": 1234,
            "local_bind_socket_path": "/u", "local_bind_socket_mode": "0600",
            "config": {"connect_timeout_ms": 1000}, "mesh_gateway": {"mode": "local"},
        }],
        "mesh_gateway": {"mode": "remote"},
        "expose": {"checks": true, "paths": [{
            "path": "/health", "listener_port": 1, "local_path_port": 2, "protocol": "http2",
        }]},
    });
    let proxy_sent = json!({
        "DestinationServiceName": "web", "DestinationServiceID": "web-1",
        "LocalServiceAddress": "127.0.0.1", "LocalServicePort": 8080,
        "LocalServicePorts": [{"Name": "http", "Port": 8080, "Default": true}],
        "LocalServiceSocketPath": "/s", "Mode": "direct",
        "TransparentProxy": {"OutboundListenerPort": 15001, "DialedDirectly": true},
        "EnvoyExtensions": [{"Name": "builtin/lua", "Required": true, "ConsulVersion": ">= 1.15",
            "EnvoyVersion": ">= 1.25", "Arguments": {"ProxyType": "connect-proxy"}}],
        "AccessLogs": {"Enabled": true, "DisableListenerLogs": true, "Type": "file",
            "Path": "/l", "JSONFormat": "{}"},
        "Config": {"envoy_x": [1, 2.5, {"Y_z": true}]},
        "Upstreams": [{
            "DestinationType": "prepared_query", "DestinationName": "db",
            "DestinationNamespace": "n", "DestinationPartition": "p", "DestinationPeer": "c",
            "DestinationPort": "grpc", "Datacenter": "dc2", "LocalBindAddress": "127.0.0.2", "LocalBindPort": 1234,
            "LocalBindSocketPath": "/u", "LocalBindSocketMode": "0600",
            "Config": {"connect_timeout_ms": 1000}, "MeshGateway": {"Mode": "local"},
        }],
        "MeshGateway": {"Mode": "remote"},
        "Expose": {"Checks": true, "Paths": [{
            "Path": "/health", "ListenerPort": 1, "LocalPathPort": 2, "Protocol": "http2",
        }]},
    });
    (proxy, proxy_sent)
}

#[test]
fn every_key_is_sent() {
    let (proxy, proxy_sent) = whole_proxy();
    let check = json!({
        "id": "c", "name": "n", "notes": "o", "status": "passing",
        "interval": "10s", "timeout": "1.5s", "tcp": "t:1", "tcp_use_tls": true, "udp": "u:1",
        "http": "http://h", "method": "PUT", "header": {"x": ["1", "2"]}, "body": "b",
        "disable_redirects": true, "grpc": "g:1/s", "grpc_use_tls": true, "h2ping": "p:1",
        "h2ping_use_tls": false, "tls_skip_verify": true, "tls_server_name": "s",
        "args": ["/bin/true", "-x"], "docker_container_id": "d", "shell": "/bin/sh",
        "os_service": "w", "alias_service": "a", "alias_node": "m",
        "success_before_passing": 1, "failures_before_warning": 2,
        "failures_before_critical": 3, "output_max_size": 4096,
        "deregister_critical_service_after": "10m",
    });
    let check_sent = json!({
        "CheckID": "c", "Name": "n", "Notes": "o", "Status": "passing",
        "Interval": "10s", "Timeout": "1.5s", "TCP": "t:1", "TCPUseTLS": true, "UDP": "u:1",
        "HTTP": "http://h", "Method": "PUT", "Header": {"x": ["1", "2"]}, "Body": "b",
        "DisableRedirects": true, "GRPC": "g:1/s", "GRPCUseTLS": true, "H2PING": "p:1",
        "H2PingUseTLS": false, "TLSSkipVerify": true, "TLSServerName": "s",
        "Args": ["/bin/true", "-x"], "DockerContainerID": "d", "Shell": "/bin/sh",
        "OSService": "w", "AliasService": "a", "AliasNode": "m",
        "SuccessBeforePassing": 1, "FailuresBeforeWarning": 2,
        "FailuresBeforeCritical": 3, "OutputMaxSize": 4096,
        "DeregisterCriticalServiceAfter": "10m0s",
    });
    let service = json!({
        "kind": "connect-proxy", "id": "i", "name": "n", "tags": ["a", "b"],
        "address": "10.0.0.1", "tagged_addresses": {"wan": {"address": "192.0.2.1", "port": 80}},
        "port": 8080, "socket_path": "/s", "meta": {"Key": "v"},
        "weights": {"passing": 10, "warning": 0}, "enable_tag_override": true,
        "proxy": proxy, "checks": [check],
        "connect": {"native": false, "sidecar_service": {
            "kind": "connect-proxy", "name": "s", "tags": ["t"], "address": "10.0.0.2",
            "port": 20000, "meta": {"m": "1"}, "weights": {"warning": 3},
            "enable_tag_override": true, "proxy": {"local_service_port": 1},
            "tagged_addresses": {"wan": {"address": "192.0.2.2"}}, "locality": {"zone": "z"},
            "socket_path": "/t", "namespace": "ns", "partition": "p", "connect": {},
            "checks": [{"ttl": "1s"}], "check": {"alias_service": "n"},
        }},
        "locality": {"region": "r", "zone": "z"}, "namespace": "ns", "partition": "p",
    });
    for format in [Format::Hcl, Format::Json] {
        let services = read(&json!({"service": service}));
        let services: Vec<Service> = services.into_iter().map(|read| read.service).collect();
        let printed = crate::print(&services, format);
        let again = parse("f", format, &printed).unwrap();
        assert!(again.iter().map(|read| &read.service).eq(&services), "{printed}");
    }
    assert_eq!(
        sent(&service),
        json!({
            "Kind": "connect-proxy", "ID": "i", "Name": "n", "Tags": ["a", "b"],
            "Address": "10.0.0.1",
            "TaggedAddresses": {"wan": {"Address": "192.0.2.1", "Port": 80}},
            "Port": 8080, "SocketPath": "/s", "Meta": {"Key": "v"},
            "Weights": {"Passing": 10, "Warning": 0}, "EnableTagOverride": true,
            "Proxy": proxy_sent, "Checks": [check_sent],
            "Connect": {"SidecarService": {
                "Name": "s", "Tags": ["t"], "Address": "10.0.0.2", "Port": 20000,
                "Meta": {"m": "1"}, "Weights": {"Passing": 1, "Warning": 3},
                "EnableTagOverride": true, "Proxy": {"LocalServicePort": 1},
                "TaggedAddresses": {"wan": {"Address": "192.0.2.2"}}, "Locality": {"Zone": "z"},
                "SocketPath": "/t", "Namespace": "ns", "Partition": "p",
                "Checks": [{"TTL": "1s"}, {"AliasService": "n"}],
            }},
            "Locality": {"Region": "r", "Zone": "z"}, "Namespace": "ns", "Partition": "p",
        })
    );
}

#[test]
fn keys_are_read_as_the_http_api_spells_them_too() {
    let service = json!({"Name": "a", "EnableTagOverride": true, "TaggedAddresses":
        {"wan": {"Address": "192.0.2.1"}}, "Checks": [{"CheckID": "c", "AliasService": "b"},
        {"ScriptArgs": ["/bin/true"], "Interval": "1s", "TLSSkipVerify": true}],
        "Connect": {"SidecarService": {"Proxy": {"LocalServicePort": 1, "Upstreams":
            [{"DestinationName": "b", "LocalBindPort": 2}]}}}});
    assert_eq!(
        sent(&service),
        json!({"Name": "a", "EnableTagOverride": true, "TaggedAddresses":
            {"wan": {"Address": "192.0.2.1"}}, "Checks": [{"CheckID": "c", "AliasService": "b"},
            {"Args": ["/bin/true"], "Interval": "1s", "TLSSkipVerify": true}],
            "Connect": {"SidecarService": {"Proxy": {"LocalServicePort": 1, "Upstreams":
                [{"DestinationType": "service", "DestinationName": "b", "LocalBindPort": 2}]}}}})
    );
    assert_eq!(
        problems(
            r#"{"service": {"name": "a", "check": {"id": "x", "CheckID": "y", "ttl": "1s"}}}"#
        ),
        ["service.check.check_id: given twice: first as `id`"]
    );
}

#[test]
fn one_service_or_several() {
    let names = |file: &Json| -> Vec<String> {
        read(file).into_iter().map(|definition| definition.service.name).collect()
    };
    let (a, b) = (json!({"name": "a"}), json!({"name": "b"}));
    assert_eq!(names(&json!({"service": a})), ["a"]);
    assert_eq!(names(&json!({"service": [a]})), ["a"]);
    assert_eq!(names(&json!({"services": [a, b]})), ["a", "b"]);
    assert_eq!(names(&json!({"service": a, "services": [b]})), ["b", "a"]);
    for nothing in [json!({}), json!({"service": null}), json!({"services": []})] {
        assert!(names(&nothing).is_empty());
    }
}

#[test]
fn keys_are_read_in_any_case() {
    let service = json!({"Name": "a", "PORT": 1, "Check": {"Interval": "1s", "HTTP": "http://h",
        "TLSSkipVerify": true, "DeregisterCriticalServiceAfter": "1m"}, "Meta": {"CamelCase": "x"}});
    assert_eq!(
        sent(&service),
        json!({"Name": "a", "Port": 1, "Meta": {"CamelCase": "x"}, "Checks": [{"Interval": "1s",
            "HTTP": "http://h", "TLSSkipVerify": true, "DeregisterCriticalServiceAfter": "1m0s"}]})
    );
}

#[test]
fn null_is_as_good_as_no_key() {
    let service = json!({"name": "a", "port": null, "tags": null, "check": null, "connect":
        {"sidecar_service": null}, "weights": null, "meta": {"k": null}});
    assert_eq!(sent(&service), json!({"Name": "a", "Meta": {"k": ""}, "Connect": {}}));
}

#[test]
fn a_token_is_kept_apart_and_never_shown() {
    let mut definitions = read(&json!({"service": {"name": "a", "token": "s3cret"}}));
    let definition = definitions.remove(0);
    assert_eq!(definition.token.as_ref().unwrap().expose_secret(), "s3cret");
    assert!(!format!("{definition:?}").contains("s3cret"));
    assert!(read(&json!({"service": {"name": "a", "token": ""}}))[0].token.is_none());
    let with_sidecar = json!({"service": {"name": "a", "connect": {"sidecar_service":
        {"token": "s3cret"}}}});
    let definition = &read(&with_sidecar)[0];
    assert!(!format!("{definition:?}").contains("s3cret"));
    // The agent registers the sidecar with it; a file that we write leaves it out.
    let body = serde_json::to_value(&definition.service).unwrap();
    assert_eq!(body["Connect"]["SidecarService"]["Token"], "s3cret");
    assert!(!crate::print([&definition.service], Format::Hcl).contains("s3cret"));
    assert_eq!(
        problems(r#"{"service": {"name": "a", "token": ["s3cret", "s3cret"]}}"#),
        ["service.token: expected a text between quotes, found a list"]
    );
}

#[test]
fn an_unknown_key_has_its_path_and_its_nearest_spelling() {
    assert_eq!(
        problems(
            r#"{"service": {"name": "a", "checks": [{"intervall": "10s"}],
            "enable_tags_override": true, "proxy": {"upstreams": [{"wibble": 1}]},
            "wibble": 1}}"#
        ),
        [
            "service.checks[0].intervall: unknown key; did you mean `interval`?",
            "service.enable_tags_override: unknown key; did you mean `enable_tag_override`?",
            "service.proxy.upstreams[0].wibble: unknown key; accepted: destination_type, \
             destination_name, destination_namespace, destination_partition, destination_port, \
             destination_peer, datacenter, local_bind_address, local_bind_port, local_bind_socket_path, \
             local_bind_socket_mode, config, mesh_gateway",
            "service.wibble: unknown key; accepted: kind, id, name, tags, address, \
             tagged_addresses, port, ports, socket_path, meta, weights, enable_tag_override, proxy, \
             connect, checks, check, locality, namespace, partition, token",
        ]
    );
}

/// Consul's "AI Inference Gateway" page: Enterprise, from 2.1 on.
#[test]
fn the_ai_gateway_of_enterprise_is_refused_with_the_reason() {
    let found =
        problems(r#"{"service": {"name": "llm", "kind": "inference-gateway", "ai": {"x": 1}}}"#);
    assert_eq!(found.len(), 2, "{found:?}");
    for (problem, key) in found.iter().zip(["service.kind: ", "service.ai: "]) {
        assert!(problem.starts_with(key), "{problem}");
        assert!(problem.contains("Consul Enterprise 2.1") && problem.contains("services register"));
    }
}

#[test]
fn types_are_strict() {
    assert_eq!(
        problems(
            r#"{"service": {
            "name": 5, "port": "8080", "tags": "x", "enable_tag_override": 1, "meta": {"n": 1},
            "weights": {"passing": 0}, "kind": "conect-proxy", "proxy": {"mesh_gateway": {"mode": 1}},
            "checks": [
                {"interval": 10, "header": {"a": "b"}, "status": "green"},
                {"ttl": "bogus", "success_before_passing": 1.5}
            ],
            "connect": [{}, {}]
        }}"#
        ),
        [
            "service.name: expected a text between quotes, found the number 5",
            "service.port: expected a whole number from 0 to 65535, found the text \"8080\"",
            "service.tags: expected a list, found the text \"x\"",
            "service.enable_tag_override: expected true or false, found the number 1",
            "service.meta.n: expected a text between quotes, found the number 1",
            "service.weights.passing: expected a whole number from 1 to 65535, found the number 0",
            "service.kind: expected one of \"connect-proxy\", \"mesh-gateway\", \
             \"terminating-gateway\", \"ingress-gateway\", \"api-gateway\", \
             found the text \"conect-proxy\"; did you mean `connect-proxy`?",
            "service.proxy.mesh_gateway.mode: expected a text between quotes, found the number 1",
            "service.checks[0].interval: expected a duration between quotes, such as \"10s\", \
             found the number 10",
            "service.checks[0].header.a: expected a list, found the text \"b\"",
            "service.checks[0].status: expected one of \"passing\", \"warning\", \"critical\", \
             found the text \"green\"",
            "service.checks[1].ttl: invalid duration `bogus`: expected a number with a unit (ns, \
             us, ms, s, m or h), such as `90s`, `1m30s` or `1.5h`",
            "service.checks[1].success_before_passing: expected a whole number from 0 to \
             4294967295, found the number 1.5",
            "service.connect: expected an object, found a list of 2",
        ]
    );
    assert_eq!(sent(&json!({"name": "a", "port": 8e1})), json!({"Name": "a", "Port": 80}));
}

#[test]
fn what_is_given_twice_is_refused() {
    let text = r#"{"service": {"name": "a", "Name": "b", "meta": {"k": "1", "k": "2"}}}"#;
    let problems = parse("f.json", Format::Json, text).unwrap_err();
    let problems: Vec<_> = problems
        .iter()
        .map(|found| (found.line, found.column, found.path.as_str(), found.message.as_str()))
        .collect();
    assert_eq!(
        problems,
        [
            (1, 27, "service.Name", "given twice: first as `name`"),
            (1, 59, "service.meta.k", "given twice"),
        ]
    );
}

#[test]
fn what_is_missing_is_said() {
    assert_eq!(
        problems(r#"{"services": [{}, {"name": ""}, {"name": "p", "kind": "connect-proxy"}]}"#),
        [
            "services[0].name: missing: a service has a name",
            "services[1].name: missing: a service has a name",
            "services[2].port: missing: a connect-proxy has a port, from 1 to 65535",
            "services[2].proxy.destination_service_name: missing: a connect-proxy names the \
             service that it stands for",
        ]
    );
    // What the agent adds itself need not be there.
    sent(&json!({"name": "a", "connect": {"sidecar_service": {}}}));
    assert_eq!(
        problems(r#"{"service": {"name": "a", "connect": {"sidecar_service": {"id": "x"}}}}"#),
        ["service.connect.sidecar_service.id: not accepted: the agent makes the id of a \
          sidecar_service"]
    );
}

#[test]
fn other_documents_are_told_apart() {
    assert_eq!(
        problems(r#"{"Name": "web", "Port": 80}"#),
        [": a service stands within `service`: expected \
         {\"service\": {\"name\": ...}} or service { name = ... }"]
    );
    assert_eq!(problems("[]"), [": expected an object, found a list of 0"]);
    assert_eq!(
        problems(r#"{"servcies": [], "node_name": "x"}"#),
        [
            "servcies: unknown key; did you mean `services`?",
            "node_name: not accepted: a definition file has `service` or `services`; settings of \
             the agent belong in the agent's own configuration",
        ]
    );
    assert_eq!(
        problems(r#"{"check": {}, "service": {"name": "a"}}"#),
        ["check: not accepted beside a service: move a service's check into the service, and a \
          node's into the agent's configuration"]
    );
}

#[test]
fn what_could_not_work_is_refused_with_its_place() {
    let sidecar = |inside: &str| {
        format!("service {{\n name = \"w\" connect {{ sidecar_service {{\n{inside} }} }} }}")
    };
    let service = |inside: &str| format!("service {{\n name = \"w\"\n{inside} }}");
    let long = "x".repeat(600);
    let many = (0..65).map(|n| format!("k{n} = \"\"")).collect::<Vec<_>>().join(" ");
    for (text, column, path, words) in [
        (service("address = \"0.0.0.0\""), 11, "service.address", "at which others reach it"),
        (sidecar("id = \"x\""), 6, "service.connect.sidecar_service.id", "not accepted"),
        (service("meta { \"a b\" = \"\" }"), 8, "service.meta.a b", "the key has ' '"),
        (service("meta { \"\" = \"\" }"), 8, "service.meta.", "the key is empty"),
        (service("meta { consul-x = \"\" }"), 8, "service.meta.consul-x", "Consul's own"),
        (service(&format!("meta {{ a = \"{long}\" }}")), 8, "service.meta.a", "at most 512"),
        (service(&format!("meta {{ {many} }}")), 6, "service.meta", "at most 64 pairs, found 65"),
        (service("weights { passing = 0 }"), 21, "service.weights.passing", "from 1 to 65535"),
        (service("port = 65536"), 8, "service.port", "from 0 to 65535"),
        (service("kind = \"mesh-gateway\""), 9, "service.port", "missing"),
        (service("connect { native = true }"), 9, "service.port", "a Connect-native service has"),
        (
            service("check { tcp = \"a:1\" }"),
            7,
            "service.check.interval",
            "missing: a check with `tcp`",
        ),
        (service("check {}"), 7, "service.check.ttl", "missing: a check has one of ttl"),
        (service("check { ttl = \"0s\" }"), 15, "service.check.ttl", "more than 0"),
        (service("check { ttl = \"1s\" interval = \"1s\" }"), 15, "service.check.ttl", "not both"),
        (
            service("check { http = \"x\" interval = \"-1s\" }"),
            31,
            "service.check.interval",
            "more than 0",
        ),
        (
            service("check { alias_service = \"a\" ttl = \"1s\" }"),
            35,
            "service.check.ttl",
            "takes over",
        ),
        (
            service("check { id = \"c\" ttl = \"1s\" } checks { id = \"c\" ttl = \"1s\" }"),
            38,
            "service.checks",
            "two checks have the id \"c\"",
        ),
        (
            sidecar("proxy { upstreams { local_bind_port = 1 } }"),
            19,
            "service.connect.sidecar_service.proxy.upstreams[0].destination_name",
            "missing",
        ),
        (
            sidecar("proxy { upstreams { destination_name = \"a\" } }"),
            19,
            "service.connect.sidecar_service.proxy.upstreams[0].local_bind_port",
            "missing",
        ),
        (
            sidecar(
                "proxy { upstreams = [{ destination_name = \"a\" local_bind_port = 1 }, { destination_name = \"b\" local_bind_port = 1 }] }",
            ),
            113,
            "service.connect.sidecar_service.proxy.upstreams[1].local_bind_port",
            "port 1 is taken by upstream `a`: upstream `b` needs a port of its own",
        ),
        (
            sidecar(
                "proxy { expose { paths { path = \"/a\" listener_port = 1 } paths { path = \"/b\" listener_port = 1 } } }",
            ),
            94,
            "service.connect.sidecar_service.proxy.expose.paths[1].listener_port",
            "port 1 is taken by the exposed path `/a`: the exposed path `/b` needs a port of its own",
        ),
        (
            service("check { ttl = \"1s\" } check { ttl = \"1s\" }"),
            28,
            "service.check",
            "expected one block, found 2",
        ),
    ] {
        let problems = parse("f.hcl", Format::Hcl, &text).unwrap_err();
        let [problem] = problems.as_slice() else { panic!("{text}: {problems:?}") };
        assert!(problem.message.contains(words), "{problem}");
        // A missing key's place is the nearest thing that there is.
        assert_eq!((problem.path.as_str(), problem.column), (path, column), "{problem}");
    }
    // Consul itself asks for it.
    let federated =
        service("kind = \"mesh-gateway\" port = 1 meta { consul-wan-federation = \"1\" }");
    assert!(parse("f.hcl", Format::Hcl, &federated).is_ok());
}

/// A file with one of these was registered, and Envoy rejected the listener or did not
/// start.
#[test]
fn listeners_that_take_each_others_place_are_refused() {
    let sidecar = |inside: &str| {
        format!(
            "service {{ name = \"w\" port = 8080 connect {{ sidecar_service {{ {inside} }} }} }}"
        )
    };
    let upstreams =
        |inside: &str| sidecar(&format!("port = 20000 proxy {{ upstreams = [{inside}] }}"));
    let at = "service.connect.sidecar_service.";
    for (text, path, words) in [
        (
            sidecar("port = 8080"),
            "port",
            "taken by the service itself: the proxy's public listener",
        ),
        (
            upstreams("{ destination_name = \"a\" local_bind_port = 20000 }"),
            "proxy.upstreams[0].local_bind_port",
            "taken by the proxy's public listener: upstream `a`",
        ),
        (
            upstreams("{ destination_name = \"a\" local_bind_port = 8080 }"),
            "proxy.upstreams[0].local_bind_port",
            "taken by the service itself",
        ),
        (
            upstreams(
                "{ destination_name = \"a\" local_bind_port = 1 local_bind_address = \"0.0.0.0\" }, \
                 { destination_name = \"b\" local_bind_port = 1 }",
            ),
            "proxy.upstreams[1].local_bind_port",
            "taken by upstream `a`",
        ),
        (
            upstreams(
                "{ destination_name = \"a\" local_bind_socket_path = \"/s\" }, \
                 { destination_name = \"b\" local_bind_socket_path = \"/s\" }",
            ),
            "proxy.upstreams",
            "both listen on /s",
        ),
        (
            sidecar(
                "port = 2 proxy { local_service_port = 1 upstreams = [{ destination_name = \"a\" local_bind_port = 1 }] }",
            ),
            "proxy.upstreams[0].local_bind_port",
            "taken by the service itself",
        ),
        (
            sidecar("port = 2 proxy { expose { paths = [{ path = \"/h\" listener_port = 2 }] } }"),
            "proxy.expose.paths[0].listener_port",
            "taken by the proxy's public listener: the exposed path `/h`",
        ),
        (
            sidecar("port = 2 proxy { config { envoy_prometheus_bind_addr = \"0.0.0.0:8080\" } }"),
            "proxy.config.envoy_prometheus_bind_addr",
            "taken by the service itself",
        ),
        (
            sidecar("port = 2 proxy { config { bind_port = 8080 } }"),
            "proxy.config.bind_port",
            "taken by the service itself",
        ),
        (
            sidecar("port = 15001 proxy { mode = \"transparent\" }"),
            "proxy.mode",
            "taken by the proxy's public listener: the outbound listener",
        ),
        (
            sidecar(
                "proxy { mode = \"transparent\" transparent_proxy { outbound_listener_port = 8080 } }",
            ),
            "proxy.transparent_proxy.outbound_listener_port",
            "taken by the service itself",
        ),
    ] {
        let problems = parse("f.hcl", Format::Hcl, &text).unwrap_err();
        let [problem] = problems.as_slice() else { panic!("{text}: {problems:?}") };
        assert_eq!(problem.path, format!("{at}{path}"), "{problem}");
        assert!(problem.message.contains(words), "{problem}");
    }
    let proxy = "service { name = \"p\" kind = \"connect-proxy\" port = 1 proxy { destination_service_name = \"w\" \
                 upstreams = [{ destination_name = \"a\" local_bind_port = 1 }] } }";
    let problems = parse("f.hcl", Format::Hcl, proxy).unwrap_err();
    assert_eq!(problems[0].path, "service.proxy.upstreams[0].local_bind_port");
}

#[test]
fn one_port_on_two_addresses_is_accepted() {
    for text in [
        // The application on loopback, its sidecar on the address of the host.
        "service { name = \"w\" address = \"127.0.0.1\" port = 80 connect { sidecar_service { \
         address = \"10.0.0.1\" port = 80 } } }",
        "service { name = \"w\" port = 80 connect { sidecar_service { proxy { upstreams = [ \
         { destination_name = \"a\" local_bind_port = 1 }, \
         { destination_name = \"b\" local_bind_port = 1 local_bind_address = \"127.0.0.2\" }, \
         { destination_name = \"c\" local_bind_port = 1 local_bind_address = \"::1\" }, \
         { destination_name = \"d\" local_bind_socket_path = \"/d\" }, \
         { destination_name = \"e\" local_bind_socket_path = \"/e\" }] } } } }",
        // A database elsewhere, reached under its own port.
        "service { name = \"w\" kind = \"connect-proxy\" address = \"10.0.0.1\" port = 80 \
         proxy { destination_service_name = \"w\" local_service_address = \"10.0.0.9\" \
         local_service_port = 80 } }",
        // An application on a unix socket.
        "service { name = \"w\" socket_path = \"/s\" connect { sidecar_service { proxy { \
         local_service_socket_path = \"/s\" } } } }",
    ] {
        assert!(parse("f.hcl", Format::Hcl, text).is_ok(), "{text}");
    }
}

#[test]
fn an_id_that_is_a_step_in_a_path_is_refused() {
    for (service, path) in [
        (r#"{"name": "."}"#, "service.name"),
        (r#"{"name": "a", "id": ".."}"#, "service.id"),
        (r#"{"name": "a", "checks": [{"id": "..", "ttl": "1s"}]}"#, "service.checks"),
    ] {
        let problems = problems(&format!(r#"{{"service": {service}}}"#));
        let [problem] = problems.as_slice() else { panic!("{problems:?}") };
        assert!(problem.starts_with(&format!("{path}: not accepted: the agent could never")));
    }
    sent(&json!({"name": "a", "id": "http://127.0.0.1:21000/api"}));
}

#[test]
fn several_ports_have_names_and_one_default() {
    let ports = |ports: &str| format!(r#"{{"service": {{"name": "a", "ports": {ports}}}}}"#);
    let http = r#"{"name": "http", "port": 80, "default": true}"#;
    for (text, words) in [
        (
            ports(r#"[{"name": "http", "port": 80}]"#),
            "expected one port with `default = true`, found 0",
        ),
        (ports(&format!("[{http}, {http}]")), "two ports have the name"),
        (ports(r#"[{"name": "", "port": 80, "default": true}]"#), "each port has a name"),
        (ports(r#"[{"name": "a", "default": true}]"#), "has no number"),
        (
            format!(r#"{{"service": {{"name": "a", "port": 1, "ports": [{http}]}}}}"#),
            "beside `port`",
        ),
    ] {
        assert!(problems(&text).concat().contains(words), "{text}: {:?}", problems(&text));
    }
}

#[test]
fn access_logs_have_a_path_and_one_format() {
    for (logs, path) in [
        (json!({"type": "file"}), "path"),
        (json!({"json_format": "{}", "text_format": "x"}), "text_format"),
        (json!({"type": "syslog"}), "type"),
    ] {
        let file = json!({"service": {"name": "a", "connect": {"sidecar_service": {"proxy":
            {"access_logs": logs}}}}});
        let problems = problems(&file.to_string());
        let at = format!("service.connect.sidecar_service.proxy.access_logs.{path}: ");
        assert!(problems[0].starts_with(&at), "{problems:?}");
    }
}

#[test]
fn a_key_of_a_newer_release_says_so() {
    let text = "service { name = \"a\" partition = \"p\"\n\
                check { tcp = \"a:1\" interval = \"1s\" tcp_use_tls = true }\n\
                connect { sidecar_service { proxy { envoy_extensions = [{ name = \"e\" }]\n\
                upstreams = [{ destination_name = \"b\" local_bind_port = 1 destination_peer = \"c\" }] } } } }\n\
                services { name = \"old\" check { udp = \"\" ttl = \"1s\" } }";
    let definitions = parse("f.hcl", Format::Hcl, text).unwrap();
    let newer = |definition: &Definition| -> Vec<(Since, usize, String)> {
        let newer = definition.newer.iter();
        newer.map(|newer| (newer.since, newer.place.line, newer.place.path.clone())).collect()
    };
    // What is not sent needs no agent that knows it.
    assert_eq!(definitions[0].service.name, "old");
    assert_eq!(newer(&definitions[0]), []);
    let sidecar = "service.connect.sidecar_service.proxy.";
    assert_eq!(
        newer(&definitions[1]),
        [
            (Since::Release(1, 13), 4, format!("{sidecar}upstreams[0].destination_peer")),
            (Since::Release(1, 15), 3, format!("{sidecar}envoy_extensions")),
            (Since::Release(1, 17), 2, "service.check.tcp_use_tls".to_owned()),
            (Since::Enterprise, 1, "service.partition".to_owned()),
        ]
    );
    let message = &definitions[1].newer[2].place.message;
    assert_eq!(message, "requires Consul 1.17 or newer");
}

/// Keys that Consul's CLI takes, with or without effect. A file with all of them is a
/// registration, and what has no effect or needs a newer agent is a warning.
#[test]
fn a_key_that_consuls_cli_takes_is_accepted() {
    let file = json!({"services": [
        {"name": "a", "ports": [{"name": "http", "port": 80, "default": true}]},
        {"name": "b", "port": 81, "check": {"ttl": "1s", "service_id": "b", "token": "t"},
        "connect": {"sidecar_service": {
            "token": "t", "connect": {}, "partition": "p", "socket_path": "/s",
            "proxy": {
                "mode": "transparent", "transparent_proxy": {"outbound_listener_port": 15001},
                "envoy_extensions": [{"name": "builtin/lua"}],
                "access_logs": {"enabled": true}, "expose": {"port": 1},
            },
        }}},
    ]});
    let definitions = read(&file);
    let body = serde_json::to_value(&definitions[1].service).unwrap();
    let sidecar = &body["Connect"]["SidecarService"];
    for (pointer, value) in [
        ("/Partition", json!("p")),
        ("/SocketPath", json!("/s")),
        ("/Token", json!("t")),
        ("/Proxy/TransparentProxy/OutboundListenerPort", json!(15001)),
        ("/Proxy/EnvoyExtensions/0/Name", json!("builtin/lua")),
        ("/Proxy/AccessLogs/Enabled", json!(true)),
    ] {
        assert_eq!(sidecar.pointer(pointer), Some(&value), "{pointer}: {sidecar:#}");
    }
    let body = serde_json::to_value(&definitions[0].service).unwrap();
    assert_eq!(body["Ports"][0]["Port"], 80);
}

#[test]
fn what_has_no_effect_is_a_warning() {
    let file = json!({"services": [
        {"name": "a", "checks": [
            {"ttl": "1s", "service_id": "a"},
            {"ttl": "1s", "service_id": "b", "token": "s3cret"},
        ]},
        {"name": "c", "connect": {"sidecar_service": {"proxy": {"expose": {"port": 1}}}}},
    ]});
    let warnings: Vec<Vec<String>> = read(&file)
        .iter()
        .map(|read| read.warnings.iter().map(|at| format!("{}: {}", at.path, at.message)).collect())
        .collect();
    assert_eq!(
        warnings,
        [
            vec![
                "services[0].checks[1].token: has no effect: the agent uses the token of the \
                 check's service",
                "services[0].checks[1].service_id: has no effect: a check within a service belongs \
                 to that service",
            ],
            vec![
                "services[1].connect.sidecar_service.proxy.expose.port: has no effect: each path \
                 has a `listener_port` of its own",
            ],
        ]
    );
    assert!(!format!("{:?}", read(&file)).contains("s3cret"));
}

#[test]
fn a_list_of_one_is_as_good_as_its_value() {
    let text = r#"service = [{ name = ["a"] port = [80] tags = [["x"]] connect = [{ native = [true] }] }]"#;
    let definitions = parse("f.hcl", Format::Hcl, text).unwrap();
    assert_eq!(
        serde_json::to_value(&definitions[0].service).unwrap(),
        json!({"Name": "a", "Port": 80, "Tags": ["x"], "Connect": {"Native": true}})
    );
}

#[test]
fn of_very_many_problems_the_first_are_told() {
    let keys = (0..10_000).map(|n| format!("a{n} = 1")).collect::<Vec<_>>().join(" ");
    assert_eq!(parse("f.hcl", Format::Hcl, &keys).unwrap_err().len(), 50);
}

#[test]
fn a_definition_knows_its_place() {
    let text = "services { name = \"a\" }\n\nservices {\n name = \"b\" }\nservice { name = \"c\" }";
    let definitions = parse("f.hcl", Format::Hcl, text).unwrap();
    let places: Vec<_> =
        definitions.iter().map(|read| (&*read.service.name, read.place.line)).collect();
    assert_eq!(places, [("a", 1), ("b", 3), ("c", 5)]);
    assert_eq!(definitions[0].place.file, "f.hcl");
}

/// JSON in the shape of definitions: their keys, with any values.
fn document() -> impl Strategy<Value = Json> {
    let keys = [
        "service",
        "services",
        "name",
        "Name",
        "port",
        "kind",
        "check",
        "checks",
        "ttl",
        "proxy",
        "upstreams",
        "connect",
        "sidecar_service",
        "weights",
        "passing",
        "meta",
        "config",
        "header",
        "expose",
        "paths",
        "token",
        "other",
    ];
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        ".{0,6}".prop_map(Json::from),
        prop::sample::select(vec!["connect-proxy", "10s", "passing"]).prop_map(Json::from),
    ];
    leaf.prop_recursive(6, 48, 6, move |inner| {
        let key = prop::sample::select(keys.to_vec()).prop_map(str::to_owned);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            prop::collection::btree_map(key, inner, 0..6)
                .prop_map(|map| Json::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_document_panics(document in document()) {
        for file in [document.clone(), json!({"service": document}), json!({"services": [document]})] {
            if let Json::Object(entries) = &file {
                let _ = parse("f", Format::Hcl, &crate::hcl::print::print(entries));
            }
            if let Err(problems) = parse("f", Format::Json, &file.to_string()) {
                prop_assert!(!problems.is_empty());
                for problem in problems {
                    prop_assert!(problem.line == 1 && problem.column >= 1, "{}", problem);
                }
            }
        }
    }

    #[test]
    fn a_definition_without_problems_has_what_a_service_needs(service in document()) {
        if let Ok(definitions) = parse("f", Format::Json, &json!({"service": service}).to_string()) {
            for Definition { service, .. } in definitions {
                prop_assert!(!service.name.is_empty());
                prop_assert!(service.kind != Kind::ConnectProxy || service.port != 0 || !service.socket_path.is_empty());
            }
        }
    }
}
