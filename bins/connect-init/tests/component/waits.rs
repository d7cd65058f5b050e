//! An agent that is not there yet, or can't at the moment.

use std::time::Duration;

use testkit::fault::At;
use testkit::{Fault, Route, ScriptedAgent, Times};

use crate::pod::{PROXY, Pod, SERVICE, assert_nothing_left, assert_registered};

const NO_LEADER: Fault = Fault::Status(500, "No cluster leader");
const TOO_MANY: Fault = Fault::Status(429, "Your IP is issuing too many concurrent connections");

/// Each step that the agent is asked for.
fn steps() -> [At; 5] {
    [
        Route::Register.of(SERVICE),
        Route::Register.of(PROXY),
        Route::Service.of(PROXY),
        Route::Config.into(),
        Route::AgentSelf.into(),
    ]
}

/// Reported in <https://github.com/hashicorp/consul/issues/11792>.
#[test]
fn an_agent_that_comes_late_is_waited_for() {
    let agent = ScriptedAgent::absent();
    let pod = Pod::of(&agent);
    let mut init = pod.start();
    init.await_log("connection refused; trying again");
    agent.listen_again();
    assert_eq!(init.end(), Some(0), "{}", init.log());
    assert_registered(&agent);
}

/// A bare "connection refused" to an IP. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/918>.
#[test]
fn an_agent_that_never_comes_is_reported_by_what_where_why_and_what_next() {
    let agent = ScriptedAgent::absent();
    let pod = Pod::of(&agent).with("--timeout", "1s");
    let outcome = pod.run().code(69).says(&[
        "cannot register service `shop_web-0_web`",
        "gave up after 1s",
        &agent.address(),
        "Consul agent of node n1",
        "connection refused",
        "hint: no Consul agent listens at",
    ]);
    let reported = pod.termination_log();
    assert!(reported.contains(&agent.address()) && reported.contains("hint:"), "{reported}");
    assert!(outcome.stderr().contains(reported.trim()), "{reported}");
    assert!(!pod.files().contains_key("registration.json"));
}

/// Three tries of two seconds are not always enough. Reported in
/// <https://github.com/hashicorp/nomad/issues/9307>.
#[test]
fn trouble_that_passes_is_waited_out_at_each_step() {
    for fault in [
        NO_LEADER,
        TOO_MANY,
        Fault::Status(503, ""),
        Fault::Reset,
        Fault::LostAnswer,
        Fault::ResetMidAnswer,
        Fault::Truncated,
        Fault::Slow(Duration::from_millis(100)),
    ] {
        let agent = ScriptedAgent::start();
        for step in steps() {
            agent.fault(step, fault.clone(), Times::N(1));
        }
        let outcome = Pod::of(&agent).without("--grpc-addr").run().code(0);
        assert_registered(&agent);
        for step in steps() {
            let asked = agent.asked(step.clone()).len();
            let tries = if matches!(fault, Fault::Slow(_)) { 1 } else { 2 };
            assert!(asked >= tries, "{fault:?} at {step:?}: {asked}\n{}", outcome.stderr());
        }
    }
}

/// Reported in <https://github.com/hashicorp/consul-k8s/issues/750>.
#[test]
fn an_agent_that_limits_connections_is_named_as_the_cause() {
    let agent = ScriptedAgent::start();
    agent.fault(Route::Register, TOO_MANY, Times::Always);
    Pod::of(&agent).with("--timeout", "1s").run().code(75).says(&[
        "429 Your IP is issuing too many",
        "hint:",
        "http_max_conns_per_client",
    ]);
}

#[test]
fn an_agent_without_a_leader_is_named_as_the_cause() {
    let agent = ScriptedAgent::start();
    agent.fault(Route::Register, NO_LEADER, Times::Always);
    Pod::of(&agent).with("--timeout", "1s").run().code(75).says(&[
        "500 No cluster leader",
        "on node n1",
        "servers with a leader",
    ]);
}

/// A name in --grpc-addr may not resolve yet, as one in --http-addr.
#[test]
fn a_grpc_host_without_an_address_is_waited_for_and_nothing_is_registered() {
    let agent = ScriptedAgent::start();
    // The C library rejects such a name without asking a nameserver.
    let pod = Pod::of(&agent).with("--grpc-addr", "bad..name:8502").with("--timeout", "3s");
    pod.run().code(69).says(&["host `bad..name` has no address", "trying again", "--grpc-addr"]);
    assert!(agent.asked(Route::Register).is_empty());
}

/// A quarter of it is for the rollback.
const ENOUGH: &str = "6s";

/// No timeout at all. Reported in <https://github.com/hashicorp/consul-k8s/issues/714>.
#[test]
fn an_agent_that_hangs_is_given_up_at_the_deadline_and_nothing_is_left() {
    // Before it says what it is, nothing is registered that would be deregistered.
    let how = [true, true, true, true, false];
    at_once(steps().into_iter().zip(how), |(step, has_registered)| {
        let agent = ScriptedAgent::start();
        agent.fault(step.clone(), Fault::Hang, Times::Always);
        let pod = Pod::of(&agent).without("--grpc-addr").with("--timeout", ENOUGH);
        let mut init = pod.start();
        if has_registered {
            // Then it comes to its senses: what was deregistered is looked for.
            agent.await_request(Route::Deregister);
            agent.heal();
        }
        assert_eq!(init.end(), Some(75), "{step:?}: {}", init.log());
        let words = format!("within {ENOUGH}; hint: check the log of the node's Consul agent");
        init.await_log(&words);
        assert_nothing_left(&agent);
        assert!(!pod.files().contains_key("registration.json"), "{step:?}");
    });
}

/// What the agent took before it began to fail is deregistered, whatever the failure
/// that is reported in the end.
#[test]
fn an_agent_that_breaks_after_it_took_the_service_has_nothing_left_of_it() {
    let faults = [Fault::Reset, Fault::LostAnswer, Fault::ResetMidAnswer, Fault::Truncated];
    at_once(faults, |fault| {
        let agent = ScriptedAgent::start();
        agent.fault(Route::Register.of(PROXY), fault, Times::Always);
        Pod::of(&agent).with("--timeout", ENOUGH).run().code(69).says(&["its sidecar proxy"]);
        assert_nothing_left(&agent);
    });
}

/// Each takes its whole timeout.
fn at_once<T: Send>(cases: impl IntoIterator<Item = T>, test: impl Fn(T) + Sync) {
    let test = &test;
    std::thread::scope(|scope| {
        for case in cases {
            scope.spawn(move || test(case));
        }
    });
}

#[test]
fn an_agent_that_goes_away_and_comes_back_empty_gets_it_all_again() {
    let agent = ScriptedAgent::start();
    let held = agent.hold(Route::Register.of(PROXY));
    let pod = Pod::of(&agent);
    let mut init = pod.start();
    held.await_one();
    agent.stop_listening();
    agent.wipe();
    held.release();
    init.await_log("trying again");
    agent.listen_again();
    assert_eq!(init.end(), Some(0), "{}", init.log());
    assert_registered(&agent);
}

#[test]
fn what_is_no_agent_is_named_as_the_cause() {
    for fault in [Fault::Garbage, Fault::Huge] {
        let agent = ScriptedAgent::start();
        agent.fault(Route::Service, fault, Times::Always);
        let pod = Pod::of(&agent).with("--timeout", "5s");
        let mut init = pod.start();
        agent.await_request(Route::Deregister);
        agent.heal();
        assert_eq!(init.end(), Some(1), "{}", init.log());
        init.await_log("not an agent's answer");
        init.await_log("does not answer as a Consul agent does: check the address");
        assert_nothing_left(&agent);
    }
}

/// The kubelet starts it again, and meanwhile `kubectl describe pod` shows why the
/// first run failed.
#[test]
fn only_the_first_run_in_a_folder_ends_early() {
    let agent = ScriptedAgent::absent();
    let pod = Pod::of(&agent).with("--first-timeout", "1s");
    pod.run().code(69).says(&["gave up after 1s", "connection refused"]);
    assert!(pod.termination_log().contains("no Consul agent listens at"));
    let mut second = pod.start();
    second.await_log("connection refused; trying again");
    agent.listen_again();
    assert_eq!(second.end(), Some(0), "{}", second.log());
    let absent = ScriptedAgent::absent();
    let second = Pod::of(&absent).with("--first-timeout", "1m").with("--timeout", "1s");
    second.run().code(69).says(&["gave up after 1s"]);
}
