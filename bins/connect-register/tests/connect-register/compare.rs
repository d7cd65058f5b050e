//! Definition files of every kind, registered by Consul's own CLI and by us:
//! what the agent has afterwards is the same, and so is what is refused.

use definition::Format;
use serde_json::{Value, json};

use crate::program::run;
use crate::real_agent::{RealAgent, assert_same};

/// Within `service { name = "a" ... }`: taken by both, with the same result.
const TAKEN_IN_SERVICE: &[&str] = &[
    "",
    "id = \"a b/c\" port = 80",
    "port = 0x50",
    "port = 0120",
    "port = 8e1",
    "port = 80.0",
    "port = [80]",
    "port = 0",
    "port = 80 tags = [\"x\"]",
    "port = 80, tags = [\"x\"],",
    "\"port\" = 80",
    "PORT = 80",
    "/* x */ port /* y */ = 80 # z\n // w\n",
    "port\n=\n80",
    "tags = [\"x\",]",
    "tags = [,\"x\",,\"y\"]",
    "tags = []",
    "tags = [[\"x\"]]",
    "tags = [\"a\"] tags = [\"b\"]",
    "tags = [<<E\nx\nE\n, \"y\"]",
    "tags = [\"\"]",
    "address = \"10.1.2.3\" port = 80",
    "address = \"host.example\"",
    "meta { a = \"b\" _c = \"d\" E-f = \"\" }",
    "meta = { a = \"b\", c = \"d\" }",
    "meta = {}",
    "meta { \"a\" = \"${b}\" c = \"${d(\"x\")}\" }",
    "meta { a = \"x\\ny\\t\\\"\\\\\" b = \"\\u00e9\\x41\\101\\U0001F600\" c = \"\\a\\b\\f\\v\\r\" }",
    "meta { a = \"${\nb}\" }",
    "meta { a = <<E\n  x\n  y \"q\" ${z}\\n\nE\n }",
    "meta { a = <<-E\n    x\n      y\n    E\n }",
    "meta { a = <<-E\n    x\n  y\n    E\n }",
    "meta { a = <<-E\n\n   x\n  E\n }",
    "meta { a = <<E\n  x\n  E\n }",
    "meta { a = <<E\r\nx\r\nE\r\n }",
    "weights { passing = 2 }",
    "weights = { passing = 3, warning = 0 }",
    "weights {}",
    "enable_tag_override = true",
    "connect {}",
    "port = 1 connect { native = true }",
    "port = 1 connect = [{ native = true }]",
    "port = 1 connect { sidecar_service {} }",
    "port = 1 connect = { sidecar_service = {} }",
    "connect \"sidecar_service\" { port = 20000 }",
    "port = 1 tags = [\"t\"] meta { a = \"b\" } connect { sidecar_service { name = \"s\" port = 20000 \
     address = \"10.0.0.1\" tags = [\"u\"] weights { passing = 4 } } }",
    "connect { sidecar_service { tagged_addresses { lan { address = \"10.0.0.2\" port = 2 } } } }",
    "connect { sidecar_service { check { ttl = \"1h\" } } }",
    "connect { sidecar_service { proxy { local_service_port = 9 local_service_address = \"::1\" \
     config { a = 1 b = 2.5 c = -5 d = 010 e = 1e3 f { g = true h { i = \"x\" } } j = [1, \"x\", [2]] } } } }",
    "connect { sidecar_service { proxy { config { a { b = 1 } a { b = 2 } \"l m\" = \"n\" o \"p\" { q = 1 } } } } }",
    "connect { sidecar_service { proxy { upstreams { destination_name = \"b\" local_bind_port = 1 } \
     upstreams { destination_name = \"c\" local_bind_port = 2 datacenter = \"dc2\" local_bind_address = \
     \"127.0.0.2\" mesh_gateway { mode = \"local\" } config { connect_timeout_ms = 5 } } } } }",
    "connect { sidecar_service { proxy { upstreams = [{ destination_type = \"prepared_query\", \
     destination_name = \"q\", local_bind_port = 1 }] } } }",
    "connect { sidecar_service { proxy { expose { checks = true paths { path = \"/h\" listener_port = 1 \
     local_path_port = 2 protocol = \"http2\" } paths { path = \"/i\" listener_port = 3 local_path_port = 4 } } } } }",
    "connect { sidecar_service { proxy { mesh_gateway { mode = \"remote\" } } } }",
    "kind = \"connect-proxy\" port = 1 proxy { destination_service_name = \"w\" destination_service_id = \"w-1\" \
     config { x = \"y\" } upstreams { destination_name = \"b\" local_bind_port = 2 destination_namespace = \"n\" } }",
    "kind = \"mesh-gateway\" port = 443 meta { consul-wan-federation = \"1\" } tagged_addresses { lan { \
     address = \"10.0.0.1\" port = 1 } wan = { address = \"192.0.2.1\", port = 2 } }",
    "kind = \"terminating-gateway\" port = 1",
    "kind = \"ingress-gateway\"",
    "tagged_addresses \"lan\" { address = \"10.0.0.1\" port = 3 }",
    "tagged_addresses { \"lan\" { address = \"10.0.0.1\" } }",
    "check { ttl = \"1h\" }",
    "check = { ttl = \"90m\" status = \"warning\" notes = \"n\" name = \"m\" id = \"i\" }",
    "check = [{ ttl = \"1h\" }]",
    "checks { ttl = \"1h\" } checks { ttl = \"2h\" }",
    "checks = [{ ttl = \"1h\" }] checks { ttl = \"2h\" } check { ttl = \"3h\" }",
    "checks = { ttl = \"1h\" }",
    "checks = []",
    "check { tcp = \"127.0.0.1:1\" interval = \"1.5h\" timeout = \"1m30s\" }",
    "check { http = \"http://127.0.0.1:1/\" interval = \"1h\" method = \"POST\" body = \"b\" \
     header { X = [\"a\"] Y = [\"b\", \"c\"] } tls_skip_verify = true }",
    "check { grpc = \"127.0.0.1:1/x\" interval = \"1h\" grpc_use_tls = true }",
    "check { alias_service = \"a\" }",
    "check { ttl = \"1h\" success_before_passing = 2 failures_before_critical = 3 }",
    "check { ttl = \"1h\" DeregisterCriticalServiceAfter = \"2h\" } ",
    "check { HTTP = \"http://127.0.0.1:1/\" Interval = \"1h\" TLSSkipVerify = true }",
    "check { ttl = \"1h\" service_id = \"a\" }",
    "check { ttl = \"1h\" token = \"t\" }",
    "check { udp = \"127.0.0.1:1\" interval = \"1h\" }",
    "check { h2ping = \"127.0.0.1:1\" interval = \"1h\" }",
    "check { h2ping = \"127.0.0.1:1\" h2ping_use_tls = true interval = \"1h\" tls_skip_verify = true }",
    "check { http = \"https://127.0.0.1:1\" interval = \"1h\" tls_server_name = \"s\" }",
    "check { tcp = \"127.0.0.1:1\" interval = \"1h\" failures_before_warning = 1 failures_before_critical = 2 }",
    "check { ttl = \"1h\" deregister_critical_service_after = \"90m\" }",
    "socket_path = \"/run/a.sock\"",
    "socket_path = \"/run/a.sock\" connect { sidecar_service { proxy { local_service_socket_path = \"/run/a.sock\" } } }",
    "port = 1 connect { sidecar_service { connect {} kind = \"connect-proxy\" } }",
    "port = 1 connect { sidecar_service { socket_path = \"/run/s.sock\" } }",
    "port = 1 connect { sidecar_service { proxy { mode = \"transparent\" } } }",
    "port = 1 connect { sidecar_service { proxy { mode = \"direct\" } } }",
    "port = 1 connect { sidecar_service { proxy { mode = \"transparent\" transparent_proxy { \
     outbound_listener_port = 15002 dialed_directly = true } } } }",
    "port = 1 connect { sidecar_service { proxy { transparent_proxy = { dialed_directly = true } } } }",
    "kind = \"connect-proxy\" port = 1 proxy { destination_service_name = \"w\" mode = \"transparent\" \
     transparent_proxy { outbound_listener_port = 15002 } }",
    "connect { sidecar_service { proxy { upstreams { destination_name = \"b\" \
     local_bind_socket_path = \"/run/b.sock\" local_bind_socket_mode = \"0600\" } } } }",
    "connect { sidecar_service { proxy { upstreams { destination_name = \"b\" local_bind_port = 1 \
     destination_peer = \"east\" } } } }",
    "connect { sidecar_service { proxy { upstreams { destination_name = \"b\" local_bind_port = 1 \
     config { protocol = \"http\" limits { max_connections = 7 } passive_health_check { interval = \"1s\" } } } } } }",
    "connect { sidecar_service { proxy { expose { port = 9 checks = true } } } }",
];

/// Whole files: taken by both, with the same result.
const TAKEN: &[&str] = &[
    "services { name = \"a\" } services { name = \"b\" }",
    "services = [{ name = \"a\" }, { name = \"b\" }]",
    "services = { name = \"a\" }",
    "service = { name = \"a\" }",
    "service = [{ name = \"a\" }]",
    "services { name = \"a\" }, service { name = \"b\" }",
    "\"service\" { \"name\" = \"a\" }",
    "SERVICE { Name = \"a\" }",
    "service\n{ name\n= \"a\" }",
    "# c\nservice { # d\r\n name = \"a\" # e\n} // f\n/* g */",
    "{\"service\": {\"name\": \"a\"}}",
    "{\"service\": {\"name\": [\"a\"], \"tags\": null, \"port\": 8e1, \"meta\": {\"a\": null}, \
     \"connect\": [{\"sidecar_service\": {\"proxy\": {\"config\": {\"x\": {\"y\": [1, 2]}}}}}]}}",
    "{\"service\": {\"name\": \"a\", \"port\": 1, \"checks\": [{\"udp\": \"127.0.0.1:1\", \"interval\": \"1h\"}], \
     \"connect\": {\"sidecar_service\": {\"proxy\": {\"mode\": \"transparent\", \"transparent_proxy\": \
     {\"dialed_directly\": true}, \"upstreams\": [{\"destination_name\": \"b\", \"local_bind_port\": 2, \
     \"destination_peer\": \"east\"}]}}}}}",
    " \n{\"services\": [{\"name\": \"a\", \"check\": {\"ttl\": \"1h\"}}, {\"name\": \"b\"}]}",
];

/// Within `service { name = "a" ... }`: refused by both; and what we say of it.
const REFUSED_IN_SERVICE: &[(&str, &str)] = &[
    ("port = 08", "octal"),
    ("port = +1", "expected a value"),
    ("port = 1_0", "expected a number"),
    ("port = 80; tags = []", "expected a key"),
    ("port: 80", "found ':'"),
    ("port = \"80\"", "service.port: expected a whole number"),
    ("port", "expected `=`"),
    ("port = abc", "did you mean"),
    ("port = null", "without a value"),
    ("port = 1e400", "64 bits"),
    ("port = 99999999999999999999", "64 bits"),
    ("port {}", "service.port"),
    ("= 1", "expected a key"),
    ("{ b = 1 }", "expected a key"),
    ("tags = [\"x\" \"y\"]", "expected `,` or `]`"),
    ("tags = \"x\"", "service.tags: expected a list"),
    ("tags = [1]", "service.tags[0]: expected a text"),
    ("tags = [\"x\"", "to close the `[`"),
    ("meta { a = 1 }", "service.meta.a: expected a text"),
    ("meta { a = \"b\" } meta { c = \"d\" }", "expected one block, found 2"),
    ("meta = []", "expected an object, found a list of 0"),
    ("meta \"a\" {}", "service.meta.a"),
    ("meta { a.b = \"x\" }", "the key has '.'"),
    ("meta { consul-x = \"c\" }", "Consul's own"),
    ("meta { \"\" = \"c\" }", "the key is empty"),
    ("meta { 1a = \"x\" }", "expected a number"),
    ("meta { -a = \"x\" }", "expected a key"),
    ("meta { a: \"b\" }", "found ':'"),
    ("meta { a = \"x }", "to end the text that begins here"),
    ("meta { a = \"\\q\" }", "expected one of \\a"),
    ("meta { a = \"${\" }", "to end the text"),
    ("meta { a = \"x\ny\" }", "on the same line"),
    ("meta { a = <<E\nx\n }", "nothing but the word"),
    ("meta { a = << E\nx\nE\n }", "a word of letters"),
    ("enable_tag_override = \"true\"", "expected true or false"),
    ("enable_tag_override = TRUE", "did you mean `true`"),
    ("bogus = 1", "service.bogus: unknown key"),
    ("weights { passing = 0 }", "service.weights.passing"),
    ("weights { passing = 2 warning = 70000 }", "service.weights.warning"),
    ("address = \"0.0.0.0\"", "service.address"),
    ("kind = \"connect-proxy\"", "service.port: missing"),
    ("kind = \"connect-proxy\" port = 1", "service.proxy.destination_service_name: missing"),
    ("kind = \"mesh-gateway\"", "service.port: missing"),
    ("check {}", "service.check.ttl: missing"),
    ("check { ttl = \"0s\" }", "more than 0"),
    ("check { ttl = \"1d\" }", "invalid duration `1d`"),
    ("check { tcp = \"a:1\" interval = 10 }", "service.check.interval: expected a duration"),
    ("check { tcp = \"a:1\" }", "service.check.interval: missing"),
    ("check { ttl = \"1s\" interval = \"1s\" }", "not both"),
    ("check { ttl = \"1s\" status = \"green\" }", "service.check.status: expected one of"),
    ("check { alias_service = \"x\" ttl = \"1s\" }", "takes over"),
    ("check { header { X = \"a\" } ttl = \"1s\" }", "service.check.header.X: expected a list"),
    ("check { ttl = \"1s\" } check { ttl = \"2s\" }", "expected one block, found 2"),
    ("checks = [{ ttl = \"1s\" } { ttl = \"2s\" }]", "expected `,` or `]`"),
    ("connect { sidecar_service { id = \"x\" } }", "the agent makes the id"),
    ("connect { sidecar_service { connect { sidecar_service {} } } }", "a sidecar has no sidecar"),
    ("connect { native = true }", "service.port: missing: a Connect-native service"),
    ("proxy { mesh_gateway { mode = \"bogus\" } }", "service.proxy.mesh_gateway.mode"),
    ("/* x", "expected `*/`"),
];

/// Whole files: refused by both; and what we say of it.
const REFUSED: &[(&str, &str)] = &[
    ("service { name = \"a\" } service { name = \"b\" }", "expected one block, found 2"),
    ("service = []", "found a list of 0"),
    ("service = [{ name = \"a\" }, { name = \"b\" }]", "found a list of 2"),
    ("service = \"x\"", "service: expected an object"),
    ("service \"a\" { port = 1 }", "service.a: unknown key"),
    ("service {}", "service.name: missing"),
    ("service {", "to close the `{` of line 1; found the end"),
    ("service { name = \"a\" }}", "no `{` is open"),
    ("service", "expected `=`"),
    ("\u{feff}service { name = \"a\" }", "byte order mark"),
    ("service {\0 name = \"a\" }", "expected a key"),
    ("{\"service\": {\"name\": \"a\"}", "not JSON"),
    (
        "{\"service\": {\"name\": \"a\", \"check\": {\"ttl\": 5}}}",
        "service.check.ttl: expected a duration",
    ),
    (
        "{\"service\": {\"name\": \"a\", \"checks\": {\"ttl\": \"1h\"}}}",
        "service.checks: expected a list",
    ),
    (
        "service { name = \"a\" connect { sidecar_service { proxy { upstreams { destination_name = \"b\" } } } } }",
        "local_bind_port: missing",
    ),
    ("{\"Name\": \"a\"}", "a service stands within `service`"),
];

/// Accepted by the CLI, and rejected by us as an error.
const REFUSED_BY_US: &[(&str, &str)] = &[
    ("service { name = \"a\" port = 1 port = 2 }", "given twice"),
    ("node_name = \"x\" service { name = \"a\" }", "node_name: not accepted"),
    ("service { name = \"a\" port = 70000 }", "from 0 to 65535"),
    ("service { name = \"a\" port = -1 }", "from 0 to 65535"),
    ("service { name = \"a\" port = 1.5 }", "a whole number"),
    ("service { name = \"a\" port = } }", "expected a value"),
    ("service { name = \"a\" kind = \"bogus\" }", "service.kind: expected one of"),
    (
        "datacenter = \"dc1\" check { ttl = \"1h\" } service { name = \"a\" }",
        "settings of the agent belong in the agent's own configuration",
    ),
    (
        "service { name = \"a\" port = 1 connect { sidecar_service { port = 1 } } }",
        "port 1 is taken by the service itself",
    ),
    (
        "service { name = \"a\" port = 1 connect { sidecar_service { port = 2 proxy { upstreams { \
         destination_name = \"b\" local_bind_port = 2 } } } } }",
        "port 2 is taken by the proxy's public listener",
    ),
    (
        "service { name = \"a\" port = 1 connect { sidecar_service { proxy { upstreams { \
         destination_name = \"b\" local_bind_port = 2 local_bind_address = \"0.0.0.0\" } upstreams { \
         destination_name = \"c\" local_bind_port = 2 } } } } }",
        "port 2 is taken by upstream `b`",
    ),
    (
        "service { name = \"a\" port = 1 connect { sidecar_service { port = 2 proxy { expose { paths { \
         path = \"/\" listener_port = 2 local_path_port = 1 } } } } } }",
        "port 2 is taken by the proxy's public listener",
    ),
    ("service { name = \"a\" id = \"..\" }", "could never deregister"),
    (
        "service { name = \"a\" checks = [{ id = \"c\" ttl = \"1h\" }, { id = \"c\" ttl = \"1h\" }] }",
        "two checks",
    ),
    ("services { name = \"a\" } services { name = \"a\" }", "is taken"),
    // An HCL file in JSON: HCL 1 does not miss the last brace.
    ("  {\"service\": {\"name\": \"a\"}", "not JSON"),
];

/// The name under which a text is tried.
fn name(text: &str) -> &'static str {
    if text.trim_start().starts_with('{') { "f.json" } else { "f.hcl" }
}

fn within(inside: &str) -> String {
    format!("service {{ name = \"a\" {inside} }}\n")
}

#[test]
fn a_definition_that_both_accept_is_registered_alike() {
    let Some(agent) = RealAgent::start(&json!({})) else { return };
    let empty = agent.state();
    let inside = TAKEN_IN_SERVICE.iter().map(|inside| within(inside));
    for text in inside.chain(TAKEN.iter().map(|text| (*text).to_owned())) {
        let file = agent.write(name(&text), &text);
        let (taken, said) = agent.try_cli(&["services", "register", &file]);
        assert!(taken, "{text}: {said}");
        let by_cli = agent.state();
        assert!(agent.try_cli(&["services", "deregister", &file]).0, "{text}");
        assert_same(&agent.state(), &empty, &text);

        let ran = run(&agent.http, &["register", &file]);
        assert_eq!((ran.code, ran.stdout.as_str()), (0, said.as_str()), "{text}: {}", ran.stderr);
        assert_same(&agent.state(), &by_cli, &text);
        let ran = run(&agent.http, &["deregister", &file]);
        assert_eq!(ran.code, 0, "{text}: {}", ran.stderr);
        assert_same(&agent.state(), &empty, &text);

        // As we would write it, in the other format, for either of us.
        let format = Format::of(&file).unwrap();
        let read = definition::parse(&file, format, &text).unwrap();
        let (other, name) = match format {
            Format::Hcl => (Format::Json, "other.json"),
            Format::Json => (Format::Hcl, "other.hcl"),
        };
        let printed = definition::print(read.iter().map(|read| &read.service), other);
        let file = agent.write(name, &printed);
        let (taken, said) = agent.try_cli(&["services", "register", &file]);
        assert!(taken, "{printed}: {said}");
        assert_same(&agent.state(), &by_cli, &printed);
        assert_eq!(run(&agent.http, &["register", &file]).code, 0, "{printed}");
        assert_same(&agent.state(), &by_cli, &printed);
        assert_eq!(run(&agent.http, &["deregister", &file]).code, 0, "{printed}");
    }
}

#[test]
fn a_definition_that_the_cli_rejects_is_rejected_with_its_place() {
    let Some(agent) = RealAgent::start(&json!({})) else { return };
    let empty = agent.state();
    let inside = REFUSED_IN_SERVICE.iter().map(|(inside, words)| (within(inside), words));
    let files = REFUSED.iter().map(|(text, words)| ((*text).to_owned(), words));
    for (text, words) in inside.chain(files) {
        let file = agent.write(name(&text), &text);
        let (taken, by_cli) = agent.try_cli(&["services", "register", &file]);
        assert!(!taken, "{text}");
        let ran = run(&agent.http, &["register", &file]);
        ran.failed(64, &[words, "nothing was sent"]);
        // The place: the CLI tells none for most, and never the line itself.
        assert!(ran.stderr.contains(&format!("{file}:")), "{text}: {}", ran.stderr);
        assert!(ran.stderr.contains("| ") && ran.stderr.contains("^\n"), "{text}: {}", ran.stderr);
        assert!(ran.stderr.len() > by_cli.len(), "{text}: {by_cli} / {}", ran.stderr);
    }
    assert_same(&agent.state(), &empty, "");
}

#[test]
fn some_definitions_that_the_cli_accepts_are_rejected() {
    let Some(agent) = RealAgent::start(&json!({})) else { return };
    for (text, words) in REFUSED_BY_US {
        let file = agent.write("f.hcl", text);
        let (taken, said) = agent.try_cli(&["services", "register", &file]);
        assert!(taken, "{text}: {said}");
        run(&agent.http, &["register", &file]).failed(64, &[words, "nothing was sent"]);
    }
}

/// Within `service { name = "a" ... }`: taken by both, where the CLI loses what the
/// file says. Where that is in the agent's state, what it is by the CLI and by us,
/// and why.
const KEPT: &[(&str, &str, &str, &str, &str)] = &[
    (
        "check { http = \"http://127.0.0.1:1\" interval = \"1h\" disable_redirects = true }",
        "/kept_checks/service:a/ChkType/DisableRedirects",
        "false",
        "true",
        "the CLI's client library has no such field",
    ),
    (
        "check { h2ping = \"127.0.0.1:1\" h2ping_use_tls = false interval = \"1h\" }",
        "/kept_checks/service:a/ChkType/H2PingUseTLS",
        "true",
        "false",
        "the CLI's client library leaves out `false`, and the agent's default is `true`",
    ),
    (
        "check { ttl = \"1h\" output_max_size = 2048 }",
        "/kept_checks/service:a/ChkType/OutputMaxSize",
        "0",
        "2048",
        "the CLI's client library has no such field",
    ),
    (
        "kind = \"api-gateway\" port = 1",
        "/services/a/Kind",
        "null",
        "\"api-gateway\"",
        "the CLI makes an unknown kind an ordinary service; the agent of 1.14 knows this one",
    ),
    (
        "port = 1 connect { sidecar_service { token = \"t\" } }",
        "/kept_services/a-sidecar-proxy/Token",
        "\"\"",
        "\"t\"",
        "the CLI's client library has no such field",
    ),
    (
        "token = \"t\"",
        "/kept_services/a/Token",
        "\"\"",
        "\"t\"",
        "the CLI's client library has no such field",
    ),
    (
        "connect { sidecar_service { proxy { config { x = [1] } } } }",
        "/services/a-sidecar-proxy/Proxy/Config/x",
        "1",
        "[1]",
        "the CLI takes a list of one for its entry",
    ),
];

/// Compares the agent's states, and what differs with what is expected to.
#[test]
fn values_that_the_cli_changes_are_registered_as_written() {
    let Some(agent) = RealAgent::start(&json!({})) else { return };
    for (inside, pointer, by_cli, by_us, reason) in KEPT {
        let file = agent.write("f.hcl", &within(inside));
        let value = |state: &Value| state.pointer(pointer).cloned().unwrap_or(Value::Null);
        agent.cli(&["services", "register", &file]);
        let cli = agent.state();
        assert_eq!(value(&cli).to_string(), *by_cli, "{inside}: {reason}");
        agent.cli(&["services", "deregister", &file]);
        run(&agent.http, &["register", &file]).printed("Registered service: a\n");
        assert_eq!(value(&agent.state()).to_string(), *by_us, "{inside}: {reason}");
        run(&agent.http, &["deregister", &file]).printed("Deregistered service: a\n");
    }
}

/// Within `service { name = "a" ... }`: spelt as in the HTTP API. The CLI refuses
/// it; we register the same as with the keys of files.
const SPELT_AS_IN_THE_API: &[(&str, &str)] = &[
    ("EnableTagOverride = true", "enable_tag_override = true"),
    (
        "TaggedAddresses { lan { Address = \"10.0.0.1\" Port = 1 } }",
        "tagged_addresses { lan { address = \"10.0.0.1\" port = 1 } }",
    ),
    (
        "Checks = [{ CheckID = \"c\" TTL = \"1h\" SuccessBeforePassing = 2 }]",
        "checks = [{ id = \"c\" ttl = \"1h\" success_before_passing = 2 }]",
    ),
    (
        "Connect { SidecarService { Proxy { LocalServicePort = 3 Upstreams { DestinationName = \"b\" \
         LocalBindPort = 2 MeshGateway { Mode = \"local\" } } } } }",
        "connect { sidecar_service { proxy { local_service_port = 3 upstreams { destination_name = \"b\" \
         local_bind_port = 2 mesh_gateway { mode = \"local\" } } } } }",
    ),
];

#[test]
fn keys_may_be_spelt_as_in_the_http_api() {
    let Some(agent) = RealAgent::start(&json!({})) else { return };
    for (api, of_files) in SPELT_AS_IN_THE_API {
        let file = agent.write("f.hcl", &within(of_files));
        agent.cli(&["services", "register", &file]);
        let by_cli = agent.state();
        agent.cli(&["services", "deregister", &file]);
        let file = agent.write("f.hcl", &within(api));
        let (taken, said) = agent.try_cli(&["services", "register", &file]);
        assert!(!taken && said.contains("invalid config key"), "{said}");
        run(&agent.http, &["register", &file]).printed("Registered service: a\n");
        assert_same(&agent.state(), &by_cli, api);
        run(&agent.http, &["deregister", &file]).printed("Deregistered service: a\n");
    }
}

/// Within `service { name = "a" ... }`: keys of releases after 1.14, or of Consul
/// Enterprise. The CLI of 1.14 calls them invalid.
const NEWER: &[(&str, &str)] = &[
    ("namespace = \"n\"", "service.namespace: requires Consul Enterprise"),
    ("partition = \"p\"", "service.partition: requires Consul Enterprise"),
    ("locality { region = \"r\" }", "service.locality: requires Consul 1.16"),
    ("ports = [{ name = \"h\" port = 1 default = true }]", "service.ports: requires Consul 1.22"),
    (
        "check { tcp = \"127.0.0.1:1\" interval = \"1h\" tcp_use_tls = true }",
        "service.check.tcp_use_tls: requires Consul 1.17",
    ),
    (
        "connect { sidecar_service { proxy { envoy_extensions = [{ name = \"builtin/lua\" }] } } }",
        "proxy.envoy_extensions: requires Consul 1.15",
    ),
    (
        "connect { sidecar_service { proxy { access_logs { enabled = true } } } }",
        "proxy.access_logs: requires Consul 1.15",
    ),
    (
        "connect { sidecar_service { proxy { local_service_ports = [{ name = \"h\" port = 1 default = true }] } } }",
        "proxy.local_service_ports: requires Consul 2.0",
    ),
    (
        "connect { sidecar_service { proxy { upstreams { destination_name = \"b\" local_bind_port = 1 \
         destination_port = \"h\" } } } }",
        "destination_port: requires Consul 2.0",
    ),
];

/// The agent itself, asked with curl, refuses each of them: what we say is true.
#[test]
fn keys_that_this_agent_does_not_know_are_reported_before_anything_is_sent() {
    let Some(agent) = RealAgent::start(&json!({})) else { return };
    let empty = agent.state();
    for (inside, words) in NEWER {
        let text = within(inside);
        let file = agent.write("f.hcl", &text);
        let (taken, said) = agent.try_cli(&["services", "register", &file]);
        assert!(!taken && said.contains("invalid config key"), "{inside}: {said}");
        run(&agent.http, &["register", &file]).failed(78, &[words, "nothing was sent"]);
        let read = definition::parse("f", Format::Hcl, &text).unwrap();
        let body = serde_json::to_value(&read[0].service).unwrap();
        let said = agent.try_put("/v1/agent/service/register", &body);
        assert!(said.contains("unknown field"), "{inside}: {said}");
    }
    assert_same(&agent.state(), &empty, "");
}

/// Once only: the agent takes a minute for the next change of such a service.
#[test]
fn an_alias_check_may_name_a_node() {
    let Some(agent) = RealAgent::start(&json!({})) else { return };
    let aliases = "services { name = \"a\" check { alias_node = \"n1\" } } \
                   services { name = \"b\" check { alias_node = \"n1\" alias_service = \"a\" } }";
    let file = agent.write("f.hcl", aliases);
    let ran = run(&agent.http, &["register", &file]);
    ran.printed("Registered service: a\nRegistered service: b\n");
    ran.said(&["the agent takes up to a minute"]);
    let kept = &agent.state()["kept_checks"];
    assert_eq!(kept["service:a"]["ChkType"]["AliasNode"], "n1");
    assert_eq!(kept["service:b"]["ChkType"]["AliasNode"], "n1");
    assert_eq!(kept["service:b"]["ChkType"]["AliasService"], "a");
}

#[test]
fn script_checks_and_lists_that_the_cli_loses_are_registered() {
    let Some(agent) = RealAgent::start(&json!({"enable_script_checks": true})) else { return };
    let config = "envoy_stats_tags = [\"a=1\"] x = [{ y = 1 }]";
    let text = within(&format!(
        "check {{ args = [\"/bin/true\"] interval = \"1h\" output_max_size = 100 }} \
         connect {{ sidecar_service {{ proxy {{ config {{ {config} }} }} }} }}"
    ));
    let file = agent.write("f.hcl", &text);
    let (taken, said) = agent.try_cli(&["services", "register", &file]);
    assert!(!taken && said.contains("TTL must be > 0"), "{said}");
    run(&agent.http, &["register", &file]).printed("Registered service: a\n");
    let state = agent.state();
    assert_eq!(state["checks"]["service:a"]["Type"], "script");
    let kept: Value = json!({"envoy_stats_tags": ["a=1"], "x": [{"y": 1}]});
    assert_eq!(state["services"]["a-sidecar-proxy"]["Proxy"]["Config"], kept);
}
