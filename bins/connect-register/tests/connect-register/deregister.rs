//! `deregister`, against a scripted agent.

use serde_json::json;

use crate::program::{Files, run};
use crate::scripted_agent::{Answer, NOBODY, ScriptedAgent, done, ok, unknown};

/// An agent that has every service, except as the test says for an id.
fn agent_where(answer: fn(id: &str, before: usize) -> Option<Answer>) -> ScriptedAgent {
    ScriptedAgent::start(move |request, before| {
        match request.line.strip_prefix("PUT /v1/agent/service/deregister/") {
            Some(id) => answer(id, before).unwrap_or_else(done),
            None if request.line.ends_with("/unknown") => unknown(),
            None => ok(&json!({"ID": "x", "Service": "x"})),
        }
    })
}

#[test]
fn by_id_and_by_file() {
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
fn an_unknown_service_is_said_and_no_failure() {
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
fn each_is_tried_even_if_another_failed() {
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
fn an_agent_that_is_not_there() {
    let address = NOBODY;
    run(address, &["deregister", "--id", "a", "--id", "b", "--timeout", "300ms"])
        .failed(69, &["connection refused", "2 services are not deregistered: `a`, `b`"]);
    let agent = ScriptedAgent::start(|_, _| Answer::Hang);
    run(&agent.address(), &["deregister", "--id", "a", "--timeout", "300ms"])
        .failed(75, &["deregistering service `a`", "did not answer within 300ms"]);
}

#[test]
fn flags_that_make_no_sense() {
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
