//! `deregister`, against a scripted agent.

use std::collections::HashSet;
use std::sync::Mutex;

use serde_json::{Value, json};

use crate::program::{Files, run};
use crate::scripted_agent::{Answer, NOBODY, ScriptedAgent, done, ok, unknown};

/// An agent that has every service until it is deregistered, except as the test
/// says for an id.
fn agent_where(answer: fn(id: &str, before: usize) -> Option<Answer>) -> ScriptedAgent {
    let gone = Mutex::new(HashSet::from(["unknown".to_owned()]));
    ScriptedAgent::start(move |request, before| {
        let id = request.line.rsplit('/').next().unwrap().to_owned();
        if request.line.starts_with("PUT /v1/agent/service/deregister/") {
            return answer(&id, before).unwrap_or_else(|| {
                gone.lock().unwrap().insert(id);
                done()
            });
        }
        if gone.lock().unwrap().contains(&id) || !request.line.contains("/agent/service/") {
            return unknown();
        }
        ok(&json!({"ID": id, "Service": id}))
    })
}

#[test]
fn services_are_deregistered_by_id_and_by_file() {
    let agent = agent_where(|_, _| None);
    run(&agent.address(), &["deregister", "--id", "a b", "--id", "c/d"])
        .printed("Deregistered service: a b\nDeregistered service: c/d\n");
    let files = Files::new();
    let file = files.json(
        "f.json",
        &json!({"services": [{"id": "i", "name": "n"}, {"name": "only", "token": "t"}]}),
    );
    run(&agent.address(), &["deregister", &file])
        .printed("Deregistered service: i\nDeregistered service: only\n");
    let deregistered = agent.requests().into_iter().filter(|r| r.line.starts_with("PUT"));
    let deregistered: Vec<_> =
        deregistered.map(|r| (r.line.rsplit_once('/').unwrap().1.to_owned(), r.token)).collect();
    let expected = [
        ("a%20b".to_owned(), None),
        ("c%2Fd".to_owned(), None),
        ("i".to_owned(), None),
        ("only".to_owned(), Some("t".to_owned())),
    ];
    assert_eq!(deregistered, expected);
}

#[test]
fn an_unknown_service_is_reported_but_not_a_failure() {
    // As old agents without ACLs, old ones with ACLs, and new ones say it.
    for answer in [
        (|_, _| None) as fn(&str, usize) -> _,
        |id, _| {
            (id == "unknown")
                .then(|| Answer::Status(500, "Unknown service {\"unknown\" {}}".to_owned()))
        },
        |id, _| (id == "unknown").then(|| Answer::Status(404, "Unknown service ID".to_owned())),
    ] {
        let agent = agent_where(answer);
        let ran = run(&agent.address(), &["deregister", "--id", "unknown", "--id", "a"]);
        ran.printed("Deregistered service: a\n");
        ran.said(&["service `unknown` is not registered with the agent at"]);
    }
}

#[test]
fn a_service_that_is_registered_again_at_once_is_an_error() {
    let agent = ScriptedAgent::start(|request, _| match request.line.as_str() {
        line if line.starts_with("GET /v1/agent/service/") => ok(&json!({"ID": "a"})),
        _ => done(),
    });
    run(&agent.address(), &["deregister", "--id", "a"])
        .failed(1, &["service `a` was deregistered, and is registered again"]);
}

#[test]
fn a_service_of_another_node_is_reported_with_its_node() {
    let other = |node: &'static str| {
        ScriptedAgent::start(move |request, _| match request.line.as_str() {
            "GET /v1/agent/self" => ok(&json!({"Config": {"NodeName": "n2"}})),
            "GET /v1/catalog/service/web" => ok(&json!([{"Node": node, "ServiceID": "web-1"}])),
            "GET /v1/health/state/any" => {
                assert!(request.query.contains("ServiceID%20%3D%3D%20%22web-1%22"), "{request:?}");
                ok(&json!([{"Node": node, "ServiceID": "web-1"}]))
            }
            line if line.starts_with("GET") => unknown(),
            _ => done(),
        })
    };
    let files = Files::new();
    let file = files.json("f.json", &json!({"service": {"id": "web-1", "name": "web"}}));
    for args in [&["deregister", &file][..], &["deregister", "--id", "web-1"]] {
        let ran = run(&other("n1").address(), args);
        ran.printed("");
        ran.said(&["service `web-1` is registered on node n1, this agent is node n2; hint:"]);
    }
    let ran = run(&other("n2").address(), &["deregister", &file]);
    ran.said(&["`web-1` is still in the catalog for node n2"]);
}

#[test]
fn wait_ends_when_the_catalog_lacks_the_service() {
    let agent = ScriptedAgent::start(|request, before| match request.line.as_str() {
        "GET /v1/agent/self" => ok(&json!({"Config": {"NodeName": "n1"}})),
        "GET /v1/agent/service/a" if before == 0 => ok(&json!({"ID": "a"})),
        "GET /v1/catalog/service/a" if before < 2 => ok(&json!([
            {"Node": "n1", "ServiceID": "a"}, {"Node": "n2", "ServiceID": "a"}])),
        "GET /v1/catalog/service/a" => ok(&json!([{"Node": "n2", "ServiceID": "a"}])),
        line if line.starts_with("GET") => unknown(),
        _ => done(),
    });
    let files = Files::new();
    let file = files.json("f.json", &json!({"service": {"name": "a"}}));
    run(&agent.address(), &["deregister", "--wait", &file]).printed("Deregistered service: a\n");
    let looks = agent.lines().iter().filter(|line| line.contains("catalog")).count();
    assert_eq!(looks, 3);
}

#[test]
fn output_json_lists_deregistered_and_unknown_services() {
    let agent = agent_where(|_, _| None);
    let ids = ["--id", "a", "--id", "unknown"];
    let ran = run(&agent.address(), &[&["deregister", "--output", "json"], &ids[..]].concat());
    let printed: Value = ran.json();
    assert_eq!(printed, json!({"deregistered": ["a"], "unknown": ["unknown"]}));
}

#[test]
fn each_service_is_tried_even_if_another_one_failed() {
    let agent = agent_where(|id, before| match (id, before) {
        ("denied", _) => Some(Answer::Status(403, "Permission denied".to_owned())),
        ("later", 0) => Some(Answer::Status(500, "No cluster leader".to_owned())),
        ("broken", _) => Some(Answer::Status(500, "out of order".to_owned())),
        _ => None,
    });
    let ids = ["denied", "broken", "later", "good"].map(|id| ["--id", id]).concat();
    let ran = run(&agent.address(), &[&["deregister", "--timeout", "1s"], &ids[..]].concat());
    assert_eq!(ran.code, 77, "the first failure's: {}", ran.stderr);
    assert_eq!(ran.stdout, "Deregistered service: later\nDeregistered service: good\n");
    ran.said(&[
        "deregistering service `denied`: PUT /v1/agent/service/deregister/denied",
        "deregistering service `broken`: PUT",
        "500 out of order",
        "2 services are not deregistered: `denied`, `broken`",
    ]);
    let denials = agent.lines().iter().filter(|line| line.ends_with("deregister/denied")).count();
    assert_eq!(denials, 1, "a denial is final");
}

#[test]
fn an_agent_that_does_not_answer_is_an_error() {
    let address = NOBODY;
    run(address, &["deregister", "--id", "a", "--id", "b", "--timeout", "300ms"])
        .failed(69, &["connection refused", "2 services are not deregistered: `a`, `b`"]);
    let agent = ScriptedAgent::start(|_, _| Answer::Hang);
    run(&agent.address(), &["deregister", "--id", "a", "--timeout", "300ms"])
        .failed(75, &["deregistering service `a`", "did not answer within 300ms"]);
}

#[test]
fn invalid_arguments_are_a_usage_error() {
    let files = Files::new();
    let file = files.json("f.json", &json!({"service": {"name": "a"}}));
    for args in [
        &["deregister"][..],
        &["deregister", "--id", ""],
        &["deregister", &file, "--id", "a"],
        &["deregister", "web"],
        &["deregister", &files.add("wrong.json", "[]")],
    ] {
        run(NOBODY, args).failed(64, &[]);
    }
}
