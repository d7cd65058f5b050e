//! The preStop hook.

use serde_json::json;
use testkit::process::Signal;
use testkit::{Fault, Route, ScriptedAgent, Times};

use crate::pod::{PROXY, Pod, SERVICE, assert_nothing_left};

#[test]
fn the_proxy_is_deregistered_first_and_both_are_confirmed_to_be_gone() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.deregister(&[]).code(0);
    assert_nothing_left(&agent);
    let asked: Vec<_> =
        agent.requests().iter().map(|request| (request.method.clone(), request.id())).collect();
    let id = |id: &str| Some(id.to_owned());
    let (put, get) = ("PUT".to_owned(), "GET".to_owned());
    assert_eq!(
        asked,
        [
            (get.clone(), id(PROXY)),
            (put.clone(), id(PROXY)),
            (get.clone(), id(PROXY)),
            (get.clone(), id(SERVICE)),
            (put, id(SERVICE)),
            (get, id(SERVICE))
        ]
    );
}

#[test]
fn the_tombstone_is_written_before_any_request() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let held = agent.hold(Route::Any);
    let mut hook = pod.start_deregister();
    held.await_one();
    assert!(pod.is_buried());
    held.release();
    assert_eq!(hook.end(), Some(0));
}

#[test]
fn an_entry_that_the_agent_does_not_have_counts_as_deregistered() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    agent.wipe();
    pod.deregister(&[]).code(0);
    // It sends the request anyway, in case a registration arrives late.
    assert_eq!(agent.asked(Route::Deregister).len(), 2);
    assert!(agent.services().is_empty());
}

/// It would take another pod of this name out of service. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/690>.
#[test]
fn an_entry_that_now_belongs_to_another_pod_is_not_deregistered() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let other = json!({"ID": SERVICE, "Name": "web", "Address": "10.0.0.8"});
    agent.seed(other);
    pod.deregister(&[]).code(0).says(&["left alone", "10.0.0.8"]);
    assert!(agent.services().contains_key(SERVICE));
    assert!(!agent.services().contains_key(PROXY));
}

#[test]
fn deregistering_twice_succeeds() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.deregister(&[]).code(0);
    pod.deregister(&[]).code(0);
    assert_nothing_left(&agent);
}

/// The first failure aborted the rest. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/540>.
#[test]
fn each_entry_is_tried_even_if_the_other_fails() {
    for (stays, goes) in [(PROXY, SERVICE), (SERVICE, PROXY)] {
        let agent = ScriptedAgent::start();
        let pod = Pod::of(&agent);
        agent.fault(
            Route::Deregister.of(stays),
            Fault::Status(403, "Permission denied"),
            Times::Always,
        );
        let outcome = pod.deregister(&[]).code(77);
        outcome.says(&[
            &format!("{stays} is left on the agent"),
            "403 Permission denied",
            "hint: anything left behind becomes critical when its TTL check expires",
        ]);
        assert_eq!(agent.services().into_keys().collect::<Vec<_>>(), [stays]);
        assert!(!agent.services().contains_key(goes));
    }
}

#[test]
fn temporary_errors_are_retried() {
    for fault in [
        Fault::Status(500, "No cluster leader"),
        Fault::Status(429, ""),
        Fault::Reset,
        Fault::LostAnswer,
        Fault::ResetMidAnswer,
        Fault::Truncated,
    ] {
        let agent = ScriptedAgent::start();
        let pod = Pod::of(&agent);
        agent.fault(Route::Deregister, fault, Times::N(2));
        pod.deregister(&[]).code(0);
        assert_nothing_left(&agent);
    }
}

#[test]
fn it_gives_up_on_an_agent_that_is_down_at_the_deadline() {
    let agent = ScriptedAgent::absent();
    let pod = Pod::of(&agent);
    pod.deregister(&["--timeout", "3s"]).code(69).says(&[
        &format!("{PROXY} is left on the agent"),
        &format!("{SERVICE} is left on the agent"),
        "connection refused",
        "Consul agent of node n1",
        "hint:",
    ]);
    assert!(pod.is_buried());
}

#[test]
fn an_agent_that_hangs_on_one_entry_still_deregisters_the_other() {
    for (stays, goes) in [(PROXY, SERVICE), (SERVICE, PROXY)] {
        let agent = ScriptedAgent::start();
        let pod = Pod::of(&agent);
        agent.fault(Route::Deregister.of(stays), Fault::Hang, Times::Always);
        let outcome = pod.deregister(&["--timeout", "3s"]).code(75);
        outcome.says(&[&format!("{stays} is left on the agent"), "did not answer in time"]);
        assert!(!agent.services().contains_key(goes));
    }
}

/// The agent reports success although an ACL prevented the deregistration. Reported in
/// <https://github.com/hashicorp/consul/issues/17218>.
#[test]
fn a_reported_success_is_verified() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    agent.fault(Route::Deregister, Fault::Status(200, ""), Times::Always);
    pod.deregister(&["--timeout", "3s"])
        .code(75)
        .says(&["the agent said that it is gone, but it is still there", "service:write"]);
}

#[test]
fn sigterm_does_not_interrupt_the_hook() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let held = agent.hold(Route::Deregister.of(SERVICE));
    let mut hook = pod.start_deregister();
    held.await_one();
    hook.signal(Signal::SIGTERM);
    held.release();
    assert_eq!(hook.end(), Some(0), "{}", hook.log());
    assert_nothing_left(&agent);
}

#[test]
fn a_tombstone_that_cannot_be_written_is_logged_and_the_hook_continues() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.make_folder("deregistered");
    pod.deregister(&[]).code(73).says(&["cannot write", "deregistered"]);
    assert_nothing_left(&agent);
}

#[test]
fn a_missing_record_is_reported_with_a_hint() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.remove("registration.json");
    for command in ["deregister", "ready"] {
        let outcome = testkit::Outcome::of(pod.command(command, &[]));
        outcome.code(64).says(&["registration.json", "hint: connect-init writes it"]);
    }
    let mut sidecar = pod.run();
    assert_eq!(sidecar.end(), Some(64));
    sidecar.await_log("hint: connect-init writes it");
    assert!(agent.requests().is_empty());
}

/// An old preStop hook and a new agent. Reported in
/// <https://github.com/istio/istio/issues/16432>.
#[test]
fn a_record_of_another_release_is_used_or_rejected() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let record = pod.record(&agent, pod.envoy.admin());
    for (change, code, words) in [
        (json!({"version": 2}), 64, "has version 2"),
        (json!({"version": "x"}), 64, "is not a registration of this program"),
        (json!({"proxy": null}), 64, "is not a registration of this program"),
        (json!({"added": {"later": true}}), 0, "deregistered"),
    ] {
        let mut record = record.clone();
        record.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        pod.write("registration.json", &record.to_string());
        pod.deregister(&[]).code(code).says(&[words]);
    }
    assert_nothing_left(&agent);
}
