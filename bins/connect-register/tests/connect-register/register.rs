//! `register`, against a scripted agent.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::program::{Files, ran, run, run_with_stdin, start};
use crate::scripted_agent::{Answer, NOBODY, ScriptedAgent, done, ok, unknown, willing};

const REGISTER: &str = "PUT /v1/agent/service/register";

/// What was registered, in order.
fn registered(agent: &ScriptedAgent) -> Vec<Value> {
    let requests = agent.requests().into_iter().filter(|request| request.line == REGISTER);
    requests.map(|request| request.body).collect()
}

/// An agent that answers the registration of a service of this name otherwise.
fn unless(name: &'static str, answer: fn(usize) -> Answer) -> ScriptedAgent {
    ScriptedAgent::start(move |request, before| {
        if request.line == REGISTER && request.body["Name"] == name {
            answer(before)
        } else {
            willing(request)
        }
    })
}

fn services(names: &[&str]) -> Value {
    let services: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
    json!({"services": services})
}

#[test]
fn a_service_from_flags() {
    let agent = ScriptedAgent::start(|request, _| willing(request));
    let ran = run(
        &agent.address(),
        &[
            "register",
            "--name",
            "web",
            "--id",
            "web/1",
            "--address",
            "10.0.0.1",
            "--port",
            "80",
            "--tag",
            "a",
            "--tag",
            "b,c",
            "--meta",
            "v=1=2",
            "--kind",
            "ingress-gateway",
        ],
    );
    ran.printed("Registered service: web\n");
    assert_eq!(agent.lines(), ["GET /v1/agent/service/web%2F1", REGISTER]);
    assert_eq!(
        registered(&agent),
        [json!({"Kind": "ingress-gateway", "ID": "web/1", "Name": "web", "Address": "10.0.0.1",
            "Port": 80, "Tags": ["a", "b,c"], "Meta": {"v": "1=2"}})]
    );
}

#[test]
fn services_from_files_and_stdin_in_their_order() {
    let agent = ScriptedAgent::start(|request, _| willing(request));
    let files = Files::new();
    let first = files.json("first.json", &services(&["a", "b"]));
    let second = files.json("second.json", &json!({"service": {"name": "c", "port": 1}}));
    let ran = run_with_stdin(
        &agent.address(),
        &["register", &first, "-", &second],
        r#"{"service": {"name": "stdin"}}"#,
    );
    ran.printed(
        "Registered service: a\nRegistered service: b\nRegistered service: stdin\nRegistered service: c\n",
    );
    let expected = [
        json!({"Name": "a"}),
        json!({"Name": "b"}),
        json!({"Name": "stdin"}),
        json!({"Name": "c", "Port": 1}),
    ];
    assert_eq!(registered(&agent), expected);
}

#[test]
fn a_token_of_a_definition_is_sent_for_that_service_only() {
    let agent = ScriptedAgent::start(|request, _| willing(request));
    let files = Files::new();
    let file =
        files.json("f.json", &json!({"services": [{"name": "a", "token": "of-a"}, {"name": "b"}]}));
    run(&agent.address(), &["register", &file, "--token", "of-all"])
        .printed("Registered service: a\nRegistered service: b\n");
    let tokens: Vec<_> = agent.requests().into_iter().map(|r| r.token.unwrap()).collect();
    assert_eq!(tokens, ["of-a", "of-a", "of-all", "of-all"]);
    assert_eq!(registered(&agent), [json!({"Name": "a"}), json!({"Name": "b"})]);
}

#[test]
fn all_mistakes_are_reported_and_nothing_is_sent() {
    let agent = ScriptedAgent::start(|request, _| willing(request));
    let files = Files::new();
    let good = files.json("good.json", &services(&["good"]));
    let wrong = files.add(
        "wrong.json",
        "{\"service\": {\"name\": \"a\",\n \"port\": \"80\", \"checks\": [{\"intervall\": \"10s\"}]}}",
    );
    let broken = files.add("broken.json", "{\"service\": }");
    let hcl = files.add("web.hcl", "service { name = \"a\" }");
    let yaml = files.add("web.yaml", "service: {}");
    let missing = files.path("missing.json").to_str().unwrap().to_owned();
    let ran = run(
        &agent.address(),
        &["register", &good, &wrong, &broken, &hcl, &yaml, &missing, &files.folder(), "-", "-"],
    );
    ran.failed(
        64,
        &[
            &format!("{wrong}:2:10: service.port: expected a whole number from 0 to 65535, found the text \"80\""),
            &format!("{wrong}:2:41: service.checks[0].intervall: unknown key; did you mean `interval`?"),
            &format!("{broken}:1:13: not JSON: expected value"),
            &format!("{hcl}: HCL is not read yet: expected a .json file"),
            &format!("{yaml}: the name tells no format"),
            &format!("{missing}: cannot be read: No such file"),
            &format!("{}: a folder", files.folder()),
            "stdin:1:1: not JSON",
            "standard input (-) can be read once only",
            "9 mistakes in the definition files: nothing was sent; hint:",
        ],
    );
    assert!(agent.requests().is_empty());
}

#[test]
fn files_without_a_service_are_a_mistake() {
    let files = Files::new();
    let ran = run(NOBODY, &["register", &files.add("f.json", "{}")]);
    ran.failed(64, &["f.json defines no service", "no service is defined: nothing was sent"]);
}

#[test]
fn flags_that_make_no_sense() {
    let files = Files::new();
    let file = files.json("f.json", &services(&["a"]));
    for (args, said) in [
        (&["register"][..], "required"),
        (&["register", "--id", "x"], "--name"),
        (&["register", &file, "--name", "x"], "cannot be used with"),
        (&["register", &file, "--tag", "x"], "cannot be used with"),
        (&["register", "--name", "x", "--port", "0"], "0 is not in 1..=65535"),
        (&["register", "--name", "x", "--port", "http"], "invalid digit"),
        (&["register", "--name", ""], "it is empty"),
        (&["register", "--name", "x", "--meta", "x"], "KEY=VALUE"),
        (&["register", "--name", "x", "--kind", "connect-proxy"], "proxy.destination_service_name"),
        (&["register", "--name", "x", "--kind", "sidecar"], "terminating-gateway"),
        (&["register", "--name", "x", "--http-addr", "ftp://x"], "agent address"),
        (&["register", "--name", "x", "--timeout", "20"], "invalid duration"),
    ] {
        run(NOBODY, args).failed(64, &[said]);
    }
}

#[test]
fn what_this_run_has_added_is_taken_back() {
    let agent = ScriptedAgent::start(|request, _| match request.line.as_str() {
        // `old` was there before.
        "GET /v1/agent/service/old" => ok(&json!({"ID": "old", "Service": "old"})),
        REGISTER if request.body["Name"] == "bad" => {
            Answer::Status(400, "Invalid check: TTL must be > 0 for TTL checks".to_owned())
        }
        _ => willing(request),
    });
    let files = Files::new();
    let file = files.json("f.json", &services(&["a", "old", "b", "bad", "never"]));
    run(&agent.address(), &["register", &file]).failed(
        78,
        &[
            "registering service `bad`",
            "400 Invalid check: TTL must be > 0 for TTL checks",
            "service `b` is taken back",
            "service `old` was there before: it stays",
            "service `a` is taken back",
        ],
    );
    let after_refusal: Vec<String> = agent.lines().split_off(8);
    assert_eq!(
        after_refusal,
        ["PUT /v1/agent/service/deregister/b", "PUT /v1/agent/service/deregister/a"]
    );
}

#[test]
fn a_signal_takes_back_as_well() {
    let agent = unless("b", |_| Answer::Hang);
    let files = Files::new();
    let file = files.json("f.json", &services(&["a", "b"]));
    let child = start(&agent.address(), &["register", &file]);
    // Until the one that hangs is under way.
    agent.wait_for(REGISTER, 2);
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    ran(child.wait_with_output().unwrap()).failed(1, &["ended by SIGTERM", "`a` is taken back"]);
    // The one under way may have reached the agent.
    let taken_back = ["PUT /v1/agent/service/deregister/b", "PUT /v1/agent/service/deregister/a"];
    assert_eq!(agent.lines().split_off(4), taken_back);
}

#[test]
fn denied_is_told_without_the_token() {
    let agent = unless("web", |_| {
        Answer::Status(403, "Permission denied: Missing service:write on web".to_owned())
    });
    let ran = run(&agent.address(), &["register", "--name", "web", "--token", "s3cret"]);
    ran.failed(77, &["403 Permission denied: Missing service:write on web", "hint: the ACL token"]);
    assert!(!ran.stderr.contains("s3cret"), "{}", ran.stderr);
}

#[test]
fn trouble_that_passes_is_waited_out() {
    let agent = unless("web", |before| match before {
        0 => Answer::Status(500, "No cluster leader".to_owned()),
        1 => Answer::Close,
        2 => Answer::Garbage,
        3 => Answer::Status(429, "Too many requests".to_owned()),
        _ => done(),
    });
    let ran = run(&agent.address(), &["register", "--name", "web"]);
    ran.printed("Registered service: web\n");
    ran.said(&["500 No cluster leader; trying again", "429 Too many requests; trying again"]);
    assert_eq!(registered(&agent).len(), 5);
}

#[test]
fn trouble_that_stays_ends_at_the_deadline() {
    let register = ["register", "--name", "web", "--timeout", "300ms"];
    let began = Instant::now();
    let address = NOBODY;
    run(address, &register).failed(69, &["connection refused", address, "hint: no Consul agent"]);
    let agent = ScriptedAgent::start(|_, _| Answer::Status(500, "No cluster leader".to_owned()));
    run(&agent.address(), &register).failed(75, &["500 No cluster leader"]);
    let agent = ScriptedAgent::start(|_, _| Answer::Hang);
    run(&agent.address(), &register).failed(75, &["did not answer within 300ms", "--timeout"]);
    let agent = ScriptedAgent::start(|_, _| ok(&json!("hello")));
    run(&agent.address(), &register).failed(1, &["not an agent's answer"]);
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_name_that_dns_cannot_serve_is_a_warning() {
    let agent = ScriptedAgent::start(|request, _| willing(request));
    let ran = run(&agent.address(), &["register", "--name", "my web"]);
    ran.printed("Registered service: my web\n");
    ran.said(&["service name `my web` has ' ' at column 3", "DNS can't serve it"]);
}

#[test]
fn taking_back_uses_the_id_and_the_token_of_the_definition() {
    let agent = ScriptedAgent::start(|request, _| match request.body["Name"].as_str() {
        Some("b") => Answer::Status(400, "no".to_owned()),
        _ if request.line.starts_with("GET") => unknown(),
        _ => done(),
    });
    let files = Files::new();
    let file = files.json(
        "f.json",
        &json!({"services": [{"id": "a/1", "name": "a", "token": "of-a"}, {"name": "b"}]}),
    );
    run(&agent.address(), &["register", &file]).failed(78, &["`a/1` is taken back"]);
    let last = agent.requests().pop().unwrap();
    assert_eq!(
        (last.line.as_str(), last.token.as_deref()),
        ("PUT /v1/agent/service/deregister/a%2F1", Some("of-a"))
    );
}
