//! The registration, kept true while the pod lives.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use testkit::{Fault, Port, Route, ScriptedAgent, Times};

use crate::pod::{
    APPLICATION, DESTINATION, LISTENER, PROXY, PROXY_LEASE, Pod, SERVICE, SERVICE_LEASE,
    await_alive,
};

/// Dead pods stay registered and healthy. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/2491>.
#[test]
fn both_leases_are_renewed_again_and_again() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20));
    let pod = Pod::of(&agent);
    let _sidecar = pod.run();
    for lease in [SERVICE_LEASE, PROXY_LEASE] {
        agent.await_that("five renewals", |state| {
            let renewals = state.requests.iter().filter(|request| {
                request.id().as_deref() == Some(lease) && request.json()["Status"] == "passing"
            });
            renewals.count() >= 5
        });
    }
    assert!(agent.asked(Route::Register).is_empty());
}

/// One connection, and asleep between renewals. Reported in
/// <https://github.com/hashicorp/consul-helm/issues/515> and
/// <https://github.com/hashicorp/consul-k8s/issues/750>.
#[test]
fn one_connection_and_one_request_that_waits() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let _sidecar = pod.run();
    let waiting = agent.until("a request that waits for a change", |state| {
        state.requests.iter().find(|request| request.query_value("hash").is_some()).cloned()
    });
    assert_eq!(waiting.id().as_deref(), Some(PROXY));
    assert_eq!(waiting.query_value("wait").as_deref(), Some("10000ms"));
    let requests = agent.requests();
    // Both entries, three reports, and the one that waits.
    assert_eq!(requests.len(), 6, "{requests:#?}");
    assert!(requests.iter().all(|request| request.connection == 1));
}

/// Behind a hostPort the agent's pod was replaced.
#[test]
fn a_connection_that_goes_silent_is_given_up_for_another() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let _sidecar = pod.run();
    let waiting = agent.until("a request that waits for a change", |state| {
        state.requests.iter().find(|request| request.query_value("hash").is_some()).cloned()
    });
    agent.silence();
    agent.wipe();
    let registered = agent.await_request(Route::Register);
    assert_ne!(registered.connection, waiting.connection);
    await_alive(&agent);
}

/// An application on localhost, which the agent can't see. Reported in
/// <https://github.com/hashicorp/consul/issues/5396>.
#[test]
fn the_application_is_passing_while_it_listens_on_loopback() {
    let agent = ScriptedAgent::start();
    let port = Port::keep();
    let pod = Pod::with_application(&agent, &port);
    let listener = port.listen();
    let _sidecar = pod.run();
    agent.await_that("the application to be passing", |state| {
        state.model.is("passing", APPLICATION)
    });
    // The first report is of what was seen.
    assert_eq!(agent.asked(Route::Update.of(APPLICATION))[0].json()["Status"], "passing");
    drop(listener);
    agent.await_that("the application to be critical", |state| {
        state.model.is("critical", APPLICATION)
    });
    let output = agent.check(APPLICATION).unwrap().output;
    assert_eq!(output, format!("nothing in the pod listens on port {}", port.address().port()));
    await_alive(&agent);
}

/// The node's agent restarts, and all its registrations vanish. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/161>.
#[test]
fn a_wiped_agent_gets_the_registration_again() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let registered = registered(&agent.services());
    let _sidecar = pod.run();
    await_alive(&agent);
    for _ in 0..3 {
        agent.wipe();
        await_alive(&agent);
        assert_eq!(self::registered(&agent.services()), registered);
    }
}

/// What the agent has lost needs no more than it takes to tell it. Reported in
/// <https://github.com/hashicorp/consul-helm/issues/515>.
#[test]
fn what_is_restored_is_restored_in_two_requests() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let sidecar = pod.run();
    await_sleep(&agent);
    agent.forget_requests();
    agent.wipe();
    sidecar.await_log("registered again");
    await_sleep(&agent);
    await_alive(&agent);
    assert_eq!(agent.asked(Route::Register).len(), 2);
    assert!(agent.asked(Route::Update).is_empty());
}

/// Its requests come one after the other: one that waits is the last before it
/// sleeps.
fn await_sleep(agent: &ScriptedAgent) {
    agent.await_that("a request that waits", |state| {
        state.requests.iter().any(|request| request.query_value("hash").is_some())
    });
}

/// An agent takes what it does not know for critical until its first look, which
/// may be 10 s away: so long no client would come.
#[test]
fn what_is_restored_is_as_healthy_as_it_is() {
    let agent = ScriptedAgent::start();
    let port = Port::keep();
    let pod = Pod::with_public_listener(&agent, &port);
    let sidecar = pod.run();
    await_alive(&agent);
    agent.wipe();
    agent.await_request(Route::Register.of(PROXY));
    await_alive(&agent);
    assert_eq!(agent.check(LISTENER).unwrap().status, "critical");
    let listener = port.listen();
    agent.wipe();
    agent.await_that("the listener to be passing", |state| state.model.is("passing", LISTENER));
    drop((listener, sidecar));
}

/// An alias that begins as critical may stay so for a minute.
#[test]
fn the_alias_of_a_restored_proxy_is_as_healthy_as_its_service() {
    let agent = ScriptedAgent::start();
    let port = Port::keep();
    let pod = Pod::with_alias(&agent, &port);
    let listener = port.listen();
    let _sidecar = pod.run();
    agent.await_that("the application to be passing", |state| {
        state.model.is("passing", APPLICATION)
    });
    assert_eq!(agent.check(DESTINATION).unwrap().status, "critical");
    agent.wipe();
    agent.await_that("the alias to be passing", |state| state.model.is("passing", DESTINATION));
    drop(listener);
}

#[test]
fn an_agent_that_restarts_empty_gets_the_registration_again() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let registered = registered(&agent.services());
    let sidecar = pod.run();
    await_alive(&agent);
    agent.stop_listening();
    agent.wipe();
    sidecar.await_log("connection refused");
    agent.listen_again();
    await_alive(&agent);
    assert_eq!(self::registered(&agent.services()), registered);
    sidecar.await_log("the registration is true again");
}

#[test]
fn an_agent_that_comes_after_the_sidecar_gets_the_registration() {
    let agent = ScriptedAgent::absent();
    let pod = Pod::of(&agent);
    let sidecar = pod.run();
    sidecar.await_log("connection refused");
    agent.listen_again();
    await_alive(&agent);
}

#[test]
fn an_entry_that_somebody_else_changed_is_made_right_again() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let registered = registered(&agent.services());
    let _sidecar = pod.run();
    await_alive(&agent);
    change(&agent, PROXY);
    agent.await_that("what was registered", |state| {
        self::registered(state.model.services()) == registered
    });
    await_alive(&agent);
}

#[test]
fn a_service_that_somebody_else_changed_is_made_right_with_the_next_renewal() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20));
    let pod = Pod::of(&agent);
    let registered = registered(&agent.services());
    let _sidecar = pod.run();
    await_alive(&agent);
    change(&agent, SERVICE);
    agent.await_that("what was registered", |state| {
        self::registered(state.model.services()) == registered
    });
    await_alive(&agent);
}

/// What an agent has when it answers again is not taken as right.
#[test]
fn what_somebody_else_changed_while_the_agent_was_away_is_made_right_again() {
    for half in [SERVICE, PROXY] {
        let agent = ScriptedAgent::start();
        let pod = Pod::of(&agent);
        let registered = registered(&agent.services());
        let sidecar = pod.run();
        await_alive(&agent);
        agent.stop_listening();
        change(&agent, half);
        sidecar.await_log("connection refused");
        agent.listen_again();
        agent.await_that("what was registered", |state| {
            self::registered(state.model.services()) == registered
        });
        await_alive(&agent);
    }
}

/// What is registered, but for what its checks start as.
fn registered(services: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let mut services = services.clone();
    let checks = services.values_mut().filter_map(|service| service["Checks"].as_array_mut());
    for check in checks.flatten() {
        check.as_object_mut().unwrap().remove("Status");
    }
    services
}

/// Does what somebody else may do: registers another service by that id.
fn change(agent: &ScriptedAgent, id: &str) {
    let mut other = agent.services()[id].clone();
    other["Port"] = 20001.into();
    agent.seed(other);
}

#[test]
fn a_proxy_that_somebody_else_deregistered_comes_back() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let registered = registered(&agent.services());
    let _sidecar = pod.run();
    await_alive(&agent);
    agent.remove(PROXY);
    await_alive(&agent);
    assert_eq!(self::registered(&agent.services()), registered);
}

/// One half goes, and the other stays. Reported in
/// <https://github.com/hashicorp/consul/issues/9798>.
#[test]
fn a_service_that_somebody_else_deregistered_comes_back_with_the_next_renewal() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20));
    let pod = Pod::of(&agent);
    let registered = registered(&agent.services());
    let _sidecar = pod.run();
    await_alive(&agent);
    agent.remove(SERVICE);
    await_alive(&agent);
    assert_eq!(self::registered(&agent.services()), registered);
}

#[test]
fn trouble_of_the_agent_passes() {
    for fault in [
        Fault::Status(500, "No cluster leader"),
        Fault::Status(429, "Your IP is issuing too many concurrent connections"),
        Fault::Reset,
        Fault::ResetMidAnswer,
        Fault::Truncated,
        Fault::Garbage,
        Fault::Huge,
    ] {
        let agent = ScriptedAgent::start();
        let pod = Pod::of(&agent);
        agent.wipe();
        for route in [Route::Service, Route::Register, Route::Update] {
            agent.fault(route, fault.clone(), Times::N(1));
        }
        let sidecar = pod.run();
        await_alive(&agent);
        sidecar.await_log("the registration is true again");
        assert_eq!(agent.services().len(), 2, "{fault:?}");
    }
}

/// Half a registration sends clients to a service without a proxy. Reported in
/// <https://github.com/hashicorp/consul/issues/9798>.
#[test]
fn a_service_whose_proxy_is_refused_is_taken_back() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    agent.wipe();
    agent.fault(
        Route::Register.of(PROXY),
        Fault::Status(403, "Permission denied: Missing service:write on web-sidecar-proxy"),
        Times::Always,
    );
    let sidecar = pod.run();
    sidecar.await_log("its sidecar proxy");
    sidecar.await_log("Missing service:write on web-sidecar-proxy");
    agent.await_that("the service to be taken back", |state| state.model.services().is_empty());
}

#[test]
fn central_configuration_that_changes_does_no_harm() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let _sidecar = pod.run();
    await_sleep(&agent);
    agent.forget_requests();
    agent.proxy_config("protocol", "http");
    // With the new content hash.
    await_sleep(&agent);
    assert!(agent.asked(Route::Register).is_empty());
    agent.forget_requests();
    agent.wipe();
    await_alive(&agent);
    assert_eq!(agent.asked(Route::Register.of(PROXY)).len(), 1);
}

/// An agent that restarts with its data takes the listener for closed until its first
/// look, which may be 10 s away.
#[test]
fn an_agent_that_restarts_is_told_at_once_that_envoy_listens() {
    let agent = ScriptedAgent::start();
    let port = Port::keep();
    let pod = Pod::with_public_listener(&agent, &port);
    let _listener = port.listen();
    let sidecar = pod.run();
    let is_passing = || {
        agent.await_that("the listener to be passing", |state| state.model.is("passing", LISTENER));
    };
    is_passing();
    assert!(agent.asked(Route::Register).is_empty());
    agent.stop_listening();
    agent.restart();
    sidecar.await_log("connection refused");
    agent.listen_again();
    is_passing();
    assert!(agent.asked(Route::Register).is_empty());
}

/// The first traffic comes when Envoy listens, not when the agent looks next.
#[test]
fn the_agent_is_told_when_envoy_begins_to_listen() {
    let agent = ScriptedAgent::start();
    let port = Port::keep();
    let pod = Pod::with_public_listener(&agent, &port);
    let _sidecar = pod.run();
    await_sleep(&agent);
    assert_eq!(agent.check(LISTENER).unwrap().status, "critical");
    let _listener = port.listen();
    agent.await_that("the listener to be passing", |state| state.model.is("passing", LISTENER));
}

/// Another pod of this name, in another namespace, on this node. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/690>.
#[test]
fn an_entry_that_becomes_another_pods_is_neither_renewed_nor_replaced() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let sidecar = pod.run();
    await_sleep(&agent);
    agent.forget_requests();
    for id in [SERVICE, PROXY] {
        agent.seed(serde_json::json!({"ID": id, "Name": "web", "Address": "10.0.0.8"}));
    }
    sidecar.await_log("belongs to a service at 10.0.0.8");
    assert!(agent.asked(Route::Register).is_empty() && agent.asked(Route::Update).is_empty());
}

/// nomad#4537: an operator's maintenance is a check, too.
#[test]
fn what_is_registered_again_keeps_the_checks_of_others() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let _sidecar = pod.run();
    await_sleep(&agent);
    agent.forget_requests();
    let mut changed = agent.services()[PROXY].clone();
    changed["Tags"] = serde_json::json!(["other"]);
    agent.seed(changed);
    let register = agent.await_request(Route::Register.of(PROXY));
    assert_eq!(register.query_value("replace-existing-checks"), None);
}
