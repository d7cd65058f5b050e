//! What would be done is told, and nothing is done.

use std::io::Write;

use definition::Format;
use serde_json::{Value, json};
use testkit::{Fault, Port, Request, Route, ScriptedAgent, Times};

use crate::pod::{PROXY, Pod, SERVICE};

/// What a dry run of the pod prints. It leaves no file, and only reads.
#[track_caller]
fn told(agent: &ScriptedAgent, pod: Pod) -> (Value, String) {
    let pod = pod.switch("--dry-run");
    let (files, services) = (pod.files(), agent.services());
    agent.forget_requests();
    let outcome = pod.run().code(0);
    assert_eq!(pod.files(), files);
    assert_eq!(agent.services(), services);
    let changing: Vec<_> =
        agent.requests().into_iter().filter(|request| request.method != "GET").collect();
    assert!(changing.is_empty(), "{changing:?}");
    (serde_json::from_str(&outcome.stdout()).unwrap(), outcome.stderr())
}

/// What was found of something.
#[track_caller]
fn finding<'a>(told: &'a Value, what: &str) -> &'a Value {
    let findings = told["diagnosis"].as_array().unwrap();
    findings.iter().find(|finding| subject(finding) == what).unwrap_or_else(|| {
        panic!("nothing on {what}: {findings:#?}");
    })
}

/// What was looked at, and which one.
fn subject(finding: &Value) -> String {
    let words = [&finding["what"], &finding["id"]].map(|word| word.as_str().unwrap_or_default());
    words.join(" ").trim_end().to_owned()
}

fn verdicts(told: &Value) -> Vec<(String, &str)> {
    let findings = told["diagnosis"].as_array().unwrap().iter();
    findings.map(|found| (subject(found), found["verdict"].as_str().unwrap())).collect()
}

/// A request as a dry run tells of it, with what is secret replaced.
fn as_told(request: &Request) -> Value {
    let Request { method, path, query, .. } = request;
    let mark = if query.is_empty() { "" } else { "?" };
    let mut told = json!({"method": method, "path": format!("{path}{mark}{query}")});
    let mut body = request.json();
    if body["BearerToken"].is_string() {
        body["BearerToken"] = "<bearer token>".into();
    }
    if !body.is_null() {
        told["body"] = body;
    }
    told
}

/// What is told is held against what a run does.
#[track_caller]
fn assert_true(agent: &ScriptedAgent, pod: impl Fn() -> Pod) {
    let first = pod();
    let folder = first.shared("").display().to_string();
    let (told, _) = told(agent, first);
    agent.forget_requests();
    let pod = pod();
    pod.run().code(0);
    let asked: Vec<Value> = agent.requests().iter().map(as_told).collect();
    assert_eq!(told["requests"], Value::from(asked));
    let of_folder = |path: &str| path.rsplit('/').next().unwrap().to_owned();
    let listed = told["files"].as_array().unwrap().iter().map(|file| {
        let mode = u32::from_str_radix(file["mode"].as_str().unwrap(), 8).unwrap();
        (of_folder(file["path"].as_str().unwrap()), mode)
    });
    assert_eq!(listed.collect::<std::collections::BTreeMap<_, _>>(), pod.files());
    for told in told["services"].as_array().unwrap() {
        let services = agent.services();
        for key in ["service", "proxy"] {
            assert_eq!(services[told[key]["ID"].as_str().unwrap()], told[key]);
        }
        let name = match told["service"]["Name"].as_str().unwrap() {
            "web" => "envoy-bootstrap.json".to_owned(),
            further => format!("envoy-bootstrap-{further}.json"),
        };
        let written = std::fs::read_to_string(pod.shared(&name)).unwrap();
        let written =
            agent.tokens().iter().fold(written, |text, token| text.replace(token, "<ACL token>"));
        let written = written.replace(&pod.shared("").display().to_string(), &folder);
        assert_eq!(told["bootstrap"], serde_json::from_str::<Value>(&written).unwrap());
    }
}

#[test]
fn what_is_told_is_what_a_run_does() {
    let agent = ScriptedAgent::start();
    assert_true(&agent, || Pod::of(&agent).and("--upstream", "db:1234"));
    assert_true(&agent, || Pod::of(&agent).without("--grpc-addr").with("--namespace", "team a"));
    assert_true(&agent, || {
        Pod::of(&agent)
            .switch("--no-central-config")
            .with("--envoy-version", "1.14.5")
            .with_env("CONSUL_HTTP_AUTH", "ann:s3cret")
    });
}

#[test]
fn what_is_told_with_a_login_and_tls_is_what_a_run_does() {
    let agent = ScriptedAgent::start();
    agent.with_acls();
    assert_true(&agent, || {
        let pod =
            Pod::of(&agent).with("--acl-auth-method", "kubernetes").and("--service", "api:90");
        let bearer = pod.file("bearer", "e30.e30.c2ln");
        pod.with_path("--bearer-token-file", &bearer)
    });

    let agent = ScriptedAgent::start_mutual_tls("127.0.0.1");
    assert_true(&agent, || {
        let (cert, key) = agent.client_pem();
        let pod = Pod::of(&agent);
        let files = [pod.file("ca", agent.ca_pem()), pod.file("crt", cert), pod.file("key", key)];
        let [ca, cert, key] = files;
        pod.with_path("--ca-file", &ca)
            .with_path("--client-cert", &cert)
            .with_path("--client-key", &key)
    });
}

#[test]
fn no_secret_is_told() {
    const TOKEN: &str = "5f1d1dc0-secret-token";
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent).with_env("CONSUL_HTTP_AUTH", "ann:s3cret");
    let file = pod.file("token", TOKEN);
    let pod = pod.with_path("--token-file", &file).with("--log-level", "trace");
    let (told, log) = told(&agent, pod);
    let text = told.to_string();
    assert!(text.contains("<ACL token>"), "{text}");
    for secret in [TOKEN, "s3cret"] {
        assert!(!text.contains(secret) && !log.contains(secret), "{text}\n{log}");
    }
    assert!(agent.requests().iter().all(|request| request.token.as_deref() == Some(TOKEN)));
}

/// An agent of 1.8 is found out; all else is well.
#[test]
fn an_agent_that_is_well() {
    let agent = ScriptedAgent::start();
    let xds = Port::keep();
    let listener = xds.listen();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // What a gRPC server begins with: an empty SETTINGS frame of HTTP/2.
            let _ = stream.and_then(|mut stream| stream.write_all(b"\0\0\0\x04\0\0\0\0\0"));
        }
    });
    let pod = || {
        Pod::of(&agent)
            .with("--grpc-addr", xds.address().to_string())
            .with("--envoy-version", "1.14.5")
    };
    let (told, log) = told(&agent, pod());
    assert_eq!(
        verdicts(&told),
        [
            ("agent", "ok"),
            ("TLS", "ok"),
            ("token", "ok"),
            ("node", "ok"),
            ("version", "warning"),
            ("Connect", "ok"),
            ("gRPC", "ok"),
            ("Envoy", "ok"),
            ("service shop_web-0_web", "ok"),
            ("service shop_web-0_web-sidecar-proxy", "ok"),
        ]
        .map(|(what, verdict)| (what.to_owned(), verdict)),
        "{told:#}"
    );
    assert!(log.contains("version is warning: Consul 1.8.7, which serves xDS v2 only"), "{log}");
    assert_eq!(finding(&told, "service shop_web-0_web")["detail"], "not registered yet");

    // Registered, but nobody renews its TTL check yet.
    pod().run().code(0);
    let (told, _) = self::told(&agent, pod());
    for id in [SERVICE, PROXY] {
        let found = finding(&told, &format!("service {id}"));
        assert_eq!(
            (&found["verdict"], &found["reason"]),
            (&json!("wrong"), &json!("no-heartbeat"))
        );
        assert_eq!(found["check"], format!("{id}-lease"));
        let log = "kubectl --namespace shop logs web-0 --container envoy-sidecar";
        assert_eq!(found["next"], log, "{found}");
    }
    assert_eq!(told["services"][0]["assumed"], json!([]));
}

#[test]
fn an_agent_that_cannot_be_asked_is_said_so_and_what_is_assumed() {
    let agent = ScriptedAgent::absent();
    let (told, log) = told(&agent, Pod::of(&agent).without("--grpc-addr"));
    let expected = [("agent", "wrong"), ("TLS", "ok")];
    assert_eq!(verdicts(&told), expected.map(|(what, verdict)| (what.to_owned(), verdict)));
    let found = finding(&told, "agent");
    assert!(found["detail"].as_str().unwrap().contains("connection refused"), "{found}");
    assert!(found["hint"].as_str().unwrap().contains("on node n1"), "{found}");
    assert!(log.contains("agent is wrong") && log.contains("hint:"), "{log}");
    let assumed = told["services"][0]["assumed"].to_string();
    for words in ["central configuration", "xDS is served at http://127.0.0.1:8502", "access logs"]
    {
        assert!(assumed.contains(words), "{words}: {assumed}");
    }
    assert_eq!(told["services"][0]["bootstrap"]["node"]["id"], PROXY);
}

#[test]
fn an_agent_that_hangs_or_is_none_is_not_waited_for() {
    for fault in [Fault::Hang, Fault::Garbage, Fault::Reset] {
        let agent = ScriptedAgent::start();
        agent.fault(Route::Any, fault.clone(), Times::Always);
        let (told, _) = told(&agent, Pod::of(&agent));
        assert_eq!(finding(&told, "agent")["verdict"], "wrong", "{fault:?}");
        // It was asked once, and that was enough (once more after a reset).
        assert!(agent.requests().len() <= 2, "{:?}", agent.requests());
    }
}

#[test]
fn what_a_token_may_not_see_is_unknown_and_says_which_rule_shows_it() {
    let agent = ScriptedAgent::start();
    agent.fault(Route::AgentSelf, Fault::Status(403, "Permission denied"), Times::Always);
    let (told, _) = told(&agent, Pod::of(&agent));
    for what in ["node", "version", "Envoy"] {
        let found = finding(&told, what);
        assert_eq!(found["verdict"], "unknown", "{found}");
        assert!(found["hint"].as_str().unwrap().contains("agent:read"), "{found}");
    }
    assert_eq!(finding(&told, "Connect")["verdict"], "ok");
}

#[test]
fn what_is_wrong_with_an_agent_is_found() {
    let agent = ScriptedAgent::start();
    agent
        .fault(Route::Leader, Fault::Status(500, "No known Consul servers"), Times::Always)
        .fault(
            Route::Roots,
            Fault::Status(500, "Connect must be enabled in order to use this endpoint"),
            Times::Always,
        )
        .about(json!({
            "Config": {"NodeName": "other", "Datacenter": "dc1", "Version": "1.17.2"},
            "DebugConfig": {"GRPCPort": -1},
            "xDS": {"SupportedProxies": {"envoy": ["1.27.2", "1.26.6"]}},
        }));
    let pod =
        Pod::of(&agent).without("--grpc-addr").with("--envoy-version", "envoyproxy/envoy:v1.40.0");
    let (told, _) = told(&agent, pod);
    for (what, verdict, words, hint) in [
        ("agent", "warning", "500 No known Consul servers", "servers with a leader"),
        ("node", "warning", "node other", "the agent of another node"),
        ("Connect", "wrong", "off", "connect { enabled = true }"),
        ("gRPC", "wrong", "off on the agent", "ports { grpc = 8502 }"),
        ("Envoy", "warning", "Envoy 1.40 is not supported", "newer Consul agent"),
    ] {
        let found = finding(&told, what);
        assert_eq!(found["verdict"], verdict, "{found}");
        assert!(found["detail"].as_str().unwrap().contains(words), "{found}");
        assert!(found["hint"].as_str().unwrap().contains(hint), "{found}");
    }
    assert_eq!(finding(&told, "version")["verdict"], "ok");
}

#[test]
fn tls_that_is_wrong_is_found_and_a_good_certificates_end_is_told() {
    let agent = ScriptedAgent::start_expired_tls("127.0.0.1");
    let pod = Pod::of(&agent);
    let ca = pod.file("ca", agent.ca_pem());
    let (told, _) = told(&agent, pod.with_path("--ca-file", &ca));
    let found = finding(&told, "TLS");
    assert_eq!(found["verdict"], "wrong", "{found}");
    assert!(found["hint"].as_str().unwrap().starts_with("renew"), "{found}");

    let agent = ScriptedAgent::start_tls("127.0.0.1");
    let pod = Pod::of(&agent);
    let ca = pod.file("ca", agent.ca_pem());
    let (told, _) = self::told(&agent, pod.with_path("--ca-file", &ca));
    let found = finding(&told, "TLS");
    // The end of certificates that name none, by rcgen's documentation.
    assert!(found["detail"].as_str().unwrap().contains("expires 4096-01-01T00:00:00Z"), "{found}");
}

#[test]
fn a_grpc_port_that_is_closed_is_found() {
    let agent = ScriptedAgent::start();
    let xds = Port::keep();
    let (told, _) = told(&agent, Pod::of(&agent).with("--grpc-addr", xds.address().to_string()));
    let found = finding(&told, "gRPC");
    assert_eq!(found["verdict"], "wrong", "{found}");
    assert!(found["detail"].as_str().unwrap().contains("Connection refused"), "{found}");
}

#[test]
fn tokens_are_looked_at() {
    let agent = ScriptedAgent::start();
    agent.with_acls();
    let found = |pod: Pod| {
        let (told, _) = told(&agent, pod);
        let found = finding(&told, "token");
        (found["verdict"].as_str().unwrap().to_owned(), found["detail"].to_string())
    };
    let (verdict, detail) = found(Pod::of(&agent));
    assert!(verdict == "warning" && detail.contains("ACLs are on"), "{detail}");
    let (verdict, detail) = found(Pod::of(&agent).with_env("CONSUL_HTTP_TOKEN", "nope"));
    assert!(verdict == "wrong" && detail.contains("do not know"), "{detail}");
    let (verdict, detail) = found(Pod::of(&agent).with("--acl-auth-method", "kubernetes"));
    assert!(verdict == "unknown" && detail.contains("`kubernetes`"), "{detail}");

    let without = ScriptedAgent::start();
    let (told, _) = told(&without, Pod::of(&without).with("--acl-auth-method", "kubernetes"));
    assert_eq!(finding(&told, "token")["verdict"], "wrong");
}

#[test]
fn what_a_run_would_refuse_is_refused() {
    let agent = ScriptedAgent::start();
    Pod::of(&agent)
        .with("--proxy-config", r#"{"envoy_prometheus_bind_addr": "9102"}"#)
        .switch("--dry-run")
        .run()
        .code(64)
        .says(&["envoy_prometheus_bind_addr"]);
}

#[test]
fn a_dry_run_can_be_a_definition_file() {
    let agent = ScriptedAgent::absent();
    let (sent, _) = told(&agent, Pod::of(&agent));
    for (flag, format) in [("--output=hcl", Format::Hcl), ("--output=json", Format::Json)] {
        let text = Pod::of(&agent).switch("--dry-run").switch(flag).run().code(0).stdout();
        let read = definition::parse("file", format, &text).unwrap();
        let read: Vec<_> =
            read.iter().map(|read| serde_json::to_value(&read.service).unwrap()).collect();
        let sent = &sent["services"][0];
        assert_eq!(read, [sent["service"].clone(), sent["proxy"].clone()], "{text}");
    }
    Pod::of(&agent).switch("--output=hcl").run().code(64);
}

/// It is warned of, and no more.
#[test]
fn an_envoy_that_the_agent_does_not_support_is_warned_of() {
    let agent = ScriptedAgent::start();
    let log = |envoy: &str| Pod::of(&agent).with("--envoy-version", envoy).run().code(0).stderr();
    let warned = log("envoyproxy/envoy:v1.40.0");
    assert!(
        warned.contains("Envoy 1.40 is not supported by the Consul agent, which supports 1.14"),
        "{warned}"
    );
    for envoy in ["1.14.2", "envoyproxy/envoy:latest", ""] {
        assert!(!log(envoy).contains("supports"), "{envoy}");
    }
    agent.fault(Route::AgentSelf, Fault::Status(403, "Permission denied"), Times::Always);
    assert!(!log("1.40.0").contains("supports"));
}

/// Envoy's requests would be the anonymous token's.
#[test]
fn a_bootstrap_without_a_token_is_warned_of_while_acls_are_on() {
    let agent = ScriptedAgent::start();
    agent.about(json!({"DebugConfig": {"ACLsEnabled": true}, "xDS": {"Ports": {"Plaintext": 1}}}));
    let warned = Pod::of(&agent).run().code(0).stderr();
    assert!(warned.contains("ACLs are on and no ACL token is given"), "{warned}");
    let told = Pod::of(&agent).with_env("CONSUL_HTTP_TOKEN", "t").run().code(0).stderr();
    assert!(!told.contains("WARN"), "{told}");
    agent.fault(Route::AgentSelf, Fault::Status(403, "Permission denied"), Times::Always);
    let denied = Pod::of(&agent).run().code(0).stderr();
    assert!(denied.contains("ACLs are on and no ACL token is given"), "{denied}");
}

#[test]
fn an_agent_whose_http_listeners_envoy_rejects_is_warned_of() {
    let agent = ScriptedAgent::start();
    for (version, is_warned) in [("1.10.12", true), ("1.11.11", true), ("1.12.9", false)] {
        agent.about(json!({"Config": {"Version": version}, "DebugConfig": {"GRPCPort": 8502}}));
        let log = Pod::of(&agent).run().code(0).stderr();
        assert_eq!(log.contains("for TCP services only"), is_warned, "{version}: {log}");
    }
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let agent = ScriptedAgent::start();
    Pod::of(&agent).switch("--dry-run").run_unread().code(0);
}
