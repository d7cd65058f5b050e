//! `register`, against a scripted agent.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::program::{Files, command, ran, run, run_with_stdin, start};
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
fn flags_register_a_service() {
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
fn services_are_registered_in_the_order_of_the_arguments() {
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

/// Answers as an agent of this version that refuses nothing.
fn of_version(version: &'static str) -> ScriptedAgent {
    ScriptedAgent::start(move |request, _| {
        if request.line == "GET /v1/agent/self" {
            ok(&json!({"Config": {"Version": version}}))
        } else {
            willing(request)
        }
    })
}

#[test]
fn a_key_that_the_agent_does_not_know_is_reported_before_anything_is_sent() {
    let files = Files::new();
    let file = files.add(
        "f.hcl",
        "services { name = \"a\" }\nservices {\n  name = \"b\"\n  check {\n    tcp = \"h:1\"\n    \
         interval = \"1s\"\n    tcp_use_tls = true\n  }\n}",
    );
    let agent = of_version("1.14.11");
    let ran = run(&agent.address(), &["register", &file]);
    ran.failed(
        78,
        &[
            "f.hcl:7:5: services[1].check.tcp_use_tls: requires Consul 1.17 or newer",
            "is Consul 1.14.11, which cannot take 1 key",
            "hint: remove what is listed above, or upgrade the agent",
        ],
    );
    assert_eq!(registered(&agent), [Value::Null; 0]);
    let agent = of_version("1.17.0");
    run(&agent.address(), &["register", &file])
        .printed("Registered service: a\nRegistered service: b\n");
    // An agent that does not tell its version decides itself.
    let agent = ScriptedAgent::start(|request, _| match request.line.as_str() {
        "GET /v1/agent/self" => Answer::Status(403, "Permission denied".to_owned()),
        _ => willing(request),
    });
    run(&agent.address(), &["register", &file])
        .printed("Registered service: a\nRegistered service: b\n");
}

#[test]
fn the_version_is_not_requested_if_every_agent_knows_all_keys() {
    let agent = ScriptedAgent::start(|request, _| willing(request));
    let files = Files::new();
    let file = files.json("f.json", &services(&["a"]));
    run(&agent.address(), &["register", &file]).printed("Registered service: a\n");
    assert_eq!(agent.lines(), ["GET /v1/agent/service/a", REGISTER]);
}

#[test]
fn a_key_without_effect_causes_a_warning() {
    let agent = ScriptedAgent::start(|request, _| willing(request));
    let files = Files::new();
    let check = json!({"ttl": "1s", "service_id": "other"});
    let file = files.json("f.json", &json!({"service": {"name": "a", "check": check}}));
    let ran = run(&agent.address(), &["register", &file]);
    ran.printed("Registered service: a\n");
    ran.said(&["WARN", "service.check.service_id: has no effect"]);
}

/// Consul 1.8 redirects the look at an id that is a URL, and a token may see no
/// services.
#[test]
fn a_service_is_registered_although_the_agent_does_not_show_it() {
    let agent = ScriptedAgent::start(|request, _| match request.line.as_str() {
        line if line.starts_with("GET /v1/agent/service/") => {
            Answer::Status(301, "Moved".to_owned())
        }
        "GET /v1/agent/services" => Answer::Status(403, "Permission denied".to_owned()),
        REGISTER if request.body["Name"] == "b" => Answer::Status(400, "no".to_owned()),
        _ => done(),
    });
    let files = Files::new();
    let a = json!({"name": "a", "id": "http://127.0.0.1:21000/api"});
    let file = files.json("f.json", &json!({"service": a}));
    run(&agent.address(), &["register", &file]).printed("Registered service: a\n");
    let both = files.json("g.json", &json!({"services": [a, {"name": "b"}]}));
    // It may have been there before, so it is not deregistered.
    let ran = run(&agent.address(), &["register", &both]);
    ran.failed(78, &["stays: the agent did not say whether it existed before"]);
    assert!(!agent.lines().iter().any(|line| line.contains("deregister")), "{:?}", agent.lines());
}

#[test]
fn all_errors_in_the_files_are_reported_and_nothing_is_sent() {
    let agent = ScriptedAgent::start(|request, _| willing(request));
    let files = Files::new();
    let good = files.json("good.json", &services(&["good"]));
    let wrong = files.add(
        "wrong.json",
        "{\"service\": {\"name\": \"a\",\n \"port\": \"80\", \"checks\": [{\"intervall\": \"10s\"}]}}",
    );
    let broken = files.add("broken.json", "{\"service\": }");
    let hcl = files.add("web.hcl", "service {\n  name = \"a\"\n  port = 80s\n}");
    let yaml = files.add("web.yaml", "service: {}");
    let missing = files.path("missing.json").to_str().unwrap().to_owned();
    let ran = run(
        &agent.address(),
        &["register", &good, &wrong, &broken, &hcl, &yaml, &missing, "-", "-"],
    );
    ran.failed(
        64,
        &[
            &format!("{wrong}:2:10: service.port: expected a whole number from 0 to 65535, found the text \"80\""),
            &format!("{wrong}:2:28: service.checks[0].intervall: unknown key; did you mean `interval`?"),
            &format!("{broken}:1:13: not JSON: expected value"),
            &format!("{hcl}:3:10: expected a number"),
            "\n    3 |   port = 80s\n      |          ^\n",
            &format!("{yaml}: the name tells no format"),
            &format!("{missing}: cannot be read: No such file"),
            "standard input (-) can be read once only",
            "7 errors in the definition files: nothing was sent; hint:",
        ],
    );
    assert!(agent.requests().is_empty());
}

#[test]
fn files_without_a_service_are_an_error() {
    let files = Files::new();
    let ran = run(NOBODY, &["register", &files.add("f.json", "{}")]);
    ran.failed(64, &["f.json defines no service", "no service is defined: nothing was sent"]);
}

#[test]
fn invalid_flags_are_a_usage_error() {
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
        (&["register", "--name", "x", "--kind", "mesh-gateway"], "port: missing: this gateway"),
        (&["register", "--name", "x", "--meta", "consul-a=b"], "meta.consul-a: keys that begin"),
        (&["register", "--name", "x", "--address", "0.0.0.0"], "address: expected an address"),
        (&["register", "--name", "x", "--http-addr", "ftp://x"], "agent address"),
        (&["register", "--name", "x", "--timeout", "20"], "invalid duration"),
    ] {
        run(NOBODY, args).failed(64, &[said]);
    }
}

#[test]
fn after_a_refusal_the_services_that_this_run_added_are_deregistered() {
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
            "service `b` was deregistered",
            "service `old` existed before: it stays",
            "service `a` was deregistered",
        ],
    );
    let after_refusal: Vec<String> = agent.lines().split_off(8);
    assert_eq!(
        after_refusal,
        ["PUT /v1/agent/service/deregister/b", "PUT /v1/agent/service/deregister/a"]
    );
}

#[test]
fn after_a_signal_the_services_that_this_run_added_are_deregistered() {
    let agent = unless("b", |_| Answer::Hang);
    let files = Files::new();
    let file = files.json("f.json", &services(&["a", "b"]));
    let child = start(&agent.address(), &["register", &file]);
    // Until the one that hangs is under way.
    agent.wait_for(REGISTER, 2);
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    ran(child.wait_with_output().unwrap()).failed(1, &["ended by SIGTERM", "`a` was deregistered"]);
    // The one under way may have reached the agent.
    let taken_back = ["PUT /v1/agent/service/deregister/b", "PUT /v1/agent/service/deregister/a"];
    assert_eq!(agent.lines().split_off(4), taken_back);
}

#[test]
fn a_denial_is_reported_without_the_token() {
    let agent = unless("web", |_| {
        Answer::Status(403, "Permission denied: Missing service:write on web".to_owned())
    });
    let ran = run(&agent.address(), &["register", "--name", "web", "--token", "s3cret"]);
    ran.failed(77, &["403 Permission denied: Missing service:write on web", "hint: the ACL token"]);
    assert!(!ran.stderr.contains("s3cret"), "{}", ran.stderr);
}

#[test]
fn a_transient_failure_is_retried() {
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
fn a_lasting_failure_ends_at_the_deadline() {
    let register = |timeout| ["register", "--name", "web", "--timeout", timeout];
    let (short, answered) = (register("300ms"), register("3s"));
    let address = NOBODY;
    run(address, &short).failed(69, &["connection refused", address, "hint: no Consul agent"]);
    let agent = ScriptedAgent::start(|_, _| Answer::Status(500, "No cluster leader".to_owned()));
    run(&agent.address(), &answered).failed(75, &["500 No cluster leader"]);
    let agent = ScriptedAgent::start(|_, _| Answer::Hang);
    run(&agent.address(), &short).failed(75, &["did not answer within 300ms", "--timeout"]);
    let agent = ScriptedAgent::start(|_, _| ok(&json!("hello")));
    run(&agent.address(), &answered).failed(1, &["not an agent's answer"]);
}

#[test]
fn a_name_that_dns_cannot_serve_causes_a_warning() {
    let agent = ScriptedAgent::start(|request, _| willing(request));
    let ran = run(&agent.address(), &["register", "--name", "my web"]);
    ran.printed("Registered service: my web\n");
    ran.said(&["service name `my web` has ' ' at column 3", "DNS cannot serve it"]);
}

#[test]
fn a_rollback_uses_the_id_and_the_token_of_the_definition() {
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
    run(&agent.address(), &["register", &file]).failed(78, &["`a/1` was deregistered"]);
    let last = agent.requests().pop().unwrap();
    assert_eq!(
        (last.line.as_str(), last.token.as_deref()),
        ("PUT /v1/agent/service/deregister/a%2F1", Some("of-a"))
    );
}

#[test]
fn files_directories_and_stdin_may_be_hcl_or_json() {
    let agent = ScriptedAgent::start(|request, _| willing(request));
    let files = Files::new();
    std::fs::create_dir(files.path("inner.hcl")).unwrap();
    files.add("b.hcl", "service { name = \"b\" port = 80 connect { sidecar_service {} } }");
    files.add("a.json", "{\"services\": [{\"name\": \"a\"}, {\"name\": \"a2\"}]}");
    files.add("c.yaml", "nothing of ours");
    files.add("d.hcl", "{\"service\": {\"name\": \"d\"}}");
    for stdin in ["services { name = \"s\" }", "{\"service\": {\"name\": \"s\"}}"] {
        agent.forget();
        run_with_stdin(&agent.address(), &["register", &files.folder(), "-"], stdin).printed(
            "Registered service: a\nRegistered service: a2\nRegistered service: b\n\
             Registered service: d\nRegistered service: s\n",
        );
        assert_eq!(
            registered(&agent),
            [
                json!({"Name": "a"}),
                json!({"Name": "a2"}),
                json!({"Name": "b", "Port": 80, "Connect": {"SidecarService": {}}}),
                json!({"Name": "d"}),
                json!({"Name": "s"}),
            ]
        );
    }
    let empty = Files::new();
    run(NOBODY, &["register", &empty.folder()])
        .failed(64, &["has no .hcl or .json file", "no service is defined"]);
}

#[test]
fn services_that_would_replace_each_other_are_an_error() {
    let files = Files::new();
    files.add("a.hcl", "service { name = \"web\" connect { sidecar_service {} } }");
    files.add(
        "b.hcl",
        "services { name = \"x\"\n id = \"web\" }\nservices { name = \"web-sidecar-proxy\" }",
    );
    run(NOBODY, &["register", &files.folder()]).failed(
        64,
        &[
            "b.hcl:1: service id `web` (`x`) is taken: ",
            "a.hcl:1 has it for `web`; expected an id of its own",
            "b.hcl:3: service id `web-sidecar-proxy` (`web-sidecar-proxy`) is taken: ",
            "a.hcl:1 has it for sidecar of `web`",
            "2 errors",
        ],
    );
    // Not with Consul Enterprise's namespaces between them.
    let files = Files::new();
    files.add("a.hcl", "services { name = \"web\" } services { name = \"web\" namespace = \"n\" }");
    run(NOBODY, &["validate", &files.folder()]).printed("Valid: 2 services in 1 file\n");
}

#[test]
fn validate_needs_no_agent() {
    let files = Files::new();
    let good = files.add("good.hcl", "service { id = \"g-1\" name = \"g\" }");
    let bad = files.add("bad.hcl", "service {\n  name = \"b\"\n  token = s3cret\n}");
    run(NOBODY, &["validate", &good, &good]).failed(64, &["service id `g-1` (`g`) is taken"]);
    run(NOBODY, &["validate", &good]).printed("Valid: 1 service in 1 file\n");
    let ran = run(NOBODY, &["validate", "--output", "json", &good]);
    assert_eq!(ran.json(), json!({"services": [{"id": "g-1", "name": "g"}], "problems": []}));

    let ran = run(NOBODY, &["validate", &good, &bad]);
    ran.failed(64, &["bad.hcl:3:11: expected a value", "1 error in the definition files"]);
    assert!(!ran.stderr.contains("s3cret"), "{}", ran.stderr);
    let ran = run(NOBODY, &["validate", "--output", "json", &bad]);
    let problems: Value = serde_json::from_str(&ran.stdout).unwrap();
    let problem = &problems["problems"][0];
    assert_eq!((ran.code, &problem["line"], &problem["column"]), (64, &json!(3), &json!(11)));
    assert_eq!(problem["file"], json!(bad));
}

#[test]
fn keep_going_registers_the_others_and_deregisters_nothing() {
    let agent = unless("bad", |_| Answer::Status(400, "Invalid check".to_owned()));
    let files = Files::new();
    let file = files.json("f.json", &services(&["a", "bad", "b"]));
    let ran = run(&agent.address(), &["register", "--keep-going", &file]);
    assert_eq!(ran.code, 78, "{}", ran.stderr);
    assert_eq!(ran.stdout, "Registered service: a\nRegistered service: b\n");
    ran.said(&["registering service `bad`", "400 Invalid check"]);
    assert!(!agent.lines().iter().any(|line| line.contains("deregister")));

    let file = files.json("g.json", &services(&["bad", "a"]));
    let ran = run(&agent.address(), &["register", "--keep-going", "--output", "json", &file]);
    let printed: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        (ran.code, printed),
        (78, json!({"registered": [{"id": "a", "name": "a", "replaced": false}]}))
    );
}

#[test]
fn existing_checks_stay_without_replace_checks() {
    let agent = ScriptedAgent::start(|request, _| willing(request));
    for args in [&["register", "--name", "a"][..], &["register", "--name", "a", "--replace-checks"]]
    {
        run(&agent.address(), args).printed("Registered service: a\n");
    }
    let requests = agent.requests().into_iter().filter(|request| request.line == REGISTER);
    let queries: Vec<String> = requests.map(|request| request.query).collect();
    assert_eq!(queries, ["", "?replace-existing-checks=true"]);
}

#[test]
fn wait_ends_when_the_catalog_shows_the_service() {
    let agent = |shows_from: usize| {
        ScriptedAgent::start(move |request, before| match request.line.as_str() {
            "GET /v1/agent/self" => ok(&json!({"Config": {"NodeName": "n1"}})),
            "GET /v1/catalog/service/a" if before < shows_from => {
                ok(&json!([{"Node": "n2", "ServiceID": "a"}, {"Node": "n1", "ServiceID": "b"}]))
            }
            "GET /v1/catalog/service/a" => ok(&json!([{"Node": "n1", "ServiceID": "a"}])),
            _ => willing(request),
        })
    };
    let patient = agent(2);
    run(&patient.address(), &["register", "--wait", "--name", "a"])
        .printed("Registered service: a\n");
    assert_eq!(patient.lines().iter().filter(|line| line.contains("catalog")).count(), 3);

    let never = agent(usize::MAX);
    let register = ["register", "--wait", "--name", "a", "--timeout", "3s"];
    let ran = run(&never.address(), &register);
    // It is registered all the same.
    assert_eq!((ran.code, ran.stdout.as_str()), (75, "Registered service: a\n"), "{}", ran.stderr);
    ran.said(&["service `a` is registered, but the catalog does not show it after 3s"]);
    assert!(!never.lines().iter().any(|line| line.contains("deregister")));

    // An answered poll is reported, even if the deadline cuts a later one short.
    let hangs = ScriptedAgent::start(|request, before| match request.line.as_str() {
        "GET /v1/agent/self" => ok(&json!({"Config": {"NodeName": "n1"}})),
        "GET /v1/catalog/service/a" if before == 0 => ok(&json!([])),
        "GET /v1/catalog/service/a" => Answer::Hang,
        _ => willing(request),
    });
    let ran = run(&hangs.address(), &register);
    assert_eq!((ran.code, ran.stdout.as_str()), (75, "Registered service: a\n"), "{}", ran.stderr);
    ran.said(&["service `a` is registered, but the catalog does not show it after 3s"]);
}

/// Older agents redirect from the path of such an id.
#[test]
fn an_id_that_is_a_url_is_registered_although_the_agent_redirects() {
    let agent = ScriptedAgent::start(|request, _| match request.line.as_str() {
        line if line.starts_with("GET /v1/agent/service/") => {
            Answer::Status(301, "Moved Permanently".to_owned())
        }
        "GET /v1/agent/services" => ok(&json!({})),
        _ => willing(request),
    });
    run(&agent.address(), &["register", "--name", "x", "--id", "http://127.0.0.1:21000/api"])
        .printed("Registered service: x\n");
}

#[test]
fn a_closed_stdout_is_not_a_failure() {
    let agent = ScriptedAgent::start(|request, _| willing(request));
    let mut command = command(&["register", "--name", "web"]);
    command.env("CONSUL_HTTP_ADDR", agent.address());
    testkit::Outcome::unread(command).code(0);
    assert_eq!(registered(&agent).len(), 1);
}
