//! The registration is maintained while the pod lives.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use testkit::{Fault, Port, Route, ScriptedAgent, Times};

use crate::pod::{
    APPLICATION, DESTINATION, LISTENER, PROXY, PROXY_LEASE, Pod, SERVICE, SERVICE_LEASE,
    await_alive,
};

/// Dead pods stayed registered and healthy. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/2491>.
#[test]
fn both_ttl_checks_get_heartbeats() {
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

/// One connection, and no activity between heartbeats. Reported in
/// <https://github.com/hashicorp/consul-helm/issues/515> and
/// <https://github.com/hashicorp/consul-k8s/issues/750>.
#[test]
fn one_connection_and_one_blocking_query_are_enough() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let _sidecar = pod.run();
    let waiting = agent.until("a request that waits for a change", |state| {
        state.requests.iter().find(|request| request.query_value("hash").is_some()).cloned()
    });
    assert_eq!(waiting.id().as_deref(), Some(PROXY));
    assert_eq!(waiting.query_value("wait").as_deref(), Some("10000ms"));
    let requests = agent.requests();
    // Both entries, three updates of checks, and the blocking query.
    assert_eq!(requests.len(), 6, "{requests:#?}");
    assert!(requests.iter().all(|request| request.connection == 1));
}

/// Behind a hostPort, the agent's pod was replaced.
#[test]
fn a_connection_that_goes_silent_is_replaced() {
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

/// The agent can't reach an application on localhost. Reported in
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
    drop(listener);
    agent.await_that("the application to be critical", |state| {
        state.model.is("critical", APPLICATION)
    });
    let output = agent.check(APPLICATION).unwrap().output;
    assert_eq!(output, format!("nothing in the pod listens on port {}", port.address().port()));
    await_alive(&agent);
}

/// The node's agent restarts and loses all registrations. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/161>.
#[test]
fn an_agent_that_lost_its_state_gets_the_registration_again() {
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

/// Restoring a registration must not flood the agent. Reported in
/// <https://github.com/hashicorp/consul-helm/issues/515>.
#[test]
fn a_registration_is_restored_in_two_requests() {
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

/// Waits for the blocking query, which is the last request before the keeper sleeps.
fn await_sleep(agent: &ScriptedAgent) {
    agent.await_that("a request that waits", |state| {
        state.requests.iter().any(|request| request.query_value("hash").is_some())
    });
}

/// A check of an agent starts as critical, and its first run may be 10 s away. Until then
/// no client would connect.
#[test]
fn a_restored_registration_has_the_current_status_of_its_checks() {
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

/// An alias check that starts as critical may stay critical for a minute.
#[test]
fn the_alias_check_of_a_restored_proxy_has_the_status_of_its_service() {
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
    sidecar.await_log("registration restored");
}

#[test]
fn an_agent_that_starts_after_the_sidecar_gets_the_registration() {
    let agent = ScriptedAgent::absent();
    let pod = Pod::of(&agent);
    let sidecar = pod.run();
    sidecar.await_log("connection refused");
    agent.listen_again();
    await_alive(&agent);
}

#[test]
fn a_proxy_that_somebody_else_changed_is_registered_again() {
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
fn a_service_that_somebody_else_changed_is_registered_again_at_the_next_heartbeat() {
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

/// An agent that answers again may have other values than before.
#[test]
fn a_change_while_the_agent_was_away_is_undone() {
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

/// The registered services, without the initial status of their checks.
fn registered(services: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let mut services = services.clone();
    let checks = services.values_mut().filter_map(|service| service["Checks"].as_array_mut());
    for check in checks.flatten() {
        check.as_object_mut().unwrap().remove("Status");
    }
    services
}

/// Registers another service with that id, as somebody else might.
fn change(agent: &ScriptedAgent, id: &str) {
    let mut other = agent.services()[id].clone();
    other["Port"] = 20001.into();
    agent.seed(other);
}

#[test]
fn a_proxy_that_somebody_else_deregistered_is_registered_again() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let registered = registered(&agent.services());
    let _sidecar = pod.run();
    await_alive(&agent);
    agent.remove(PROXY);
    await_alive(&agent);
    assert_eq!(self::registered(&agent.services()), registered);
}

/// One entry is removed, and the other stays. Reported in
/// <https://github.com/hashicorp/consul/issues/9798>.
#[test]
fn a_service_that_somebody_else_deregistered_is_registered_again_at_the_next_heartbeat() {
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
fn the_sidecar_recovers_from_errors_of_the_agent() {
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
        sidecar.await_log("registration restored");
        assert_eq!(agent.services().len(), 2, "{fault:?}");
    }
}

/// A service without its proxy would attract clients. Reported in
/// <https://github.com/hashicorp/consul/issues/9798>.
#[test]
fn a_service_whose_proxy_is_rejected_is_deregistered() {
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
    agent.await_that("the service to be deregistered", |state| state.model.services().is_empty());
}

#[test]
fn a_change_of_central_configuration_causes_no_registration() {
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

/// The listener's check of an agent that restarts with its data starts as critical, and its
/// first run may be 10 s away.
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

/// Traffic starts when Envoy listens, not when the agent's check runs next.
#[test]
fn the_agent_is_told_as_soon_as_envoy_listens() {
    let agent = ScriptedAgent::start();
    let port = Port::keep();
    let pod = Pod::with_public_listener(&agent, &port);
    let _sidecar = pod.run();
    await_sleep(&agent);
    assert_eq!(agent.check(LISTENER).unwrap().status, "critical");
    let _listener = port.listen();
    agent.await_that("the listener to be passing", |state| state.model.is("passing", LISTENER));
}

/// To restart a check, it is deregistered and registered again: the second request may fail.
#[test]
fn a_listener_check_that_the_agent_lost_while_it_was_restarted_is_registered_again() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20));
    let port = Port::keep();
    let pod = Pod::with_public_listener(&agent, &port);
    let too_many = Fault::Status(429, "Your IP is issuing too many concurrent connections");
    agent.fault(Route::RegisterCheck, too_many, Times::N(1));
    // Consul 1.10 and 1.11 answer so with ACLs if they do not have the check.
    let unknown = Fault::Status(500, "Unknown check \"web-0-web-sidecar-proxy-listener\"");
    agent.fault(Route::DeregisterCheck, Fault::Slow(Duration::ZERO), Times::N(1));
    agent.fault(Route::DeregisterCheck, unknown, Times::Always);
    let _listener = port.listen();
    let _sidecar = pod.run();
    agent.await_that("the listener to be passing", |state| state.model.is("passing", LISTENER));
    assert_eq!(agent.asked(Route::RegisterCheck).len(), 2);
    assert!(agent.asked(Route::Register).is_empty());
}

/// Another pod of this name, in another namespace, on this node. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/690>.
#[test]
fn an_entry_that_becomes_another_pods_gets_no_heartbeats_and_is_not_replaced() {
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

/// Maintenance mode is a check, too. Reported in
/// <https://github.com/hashicorp/nomad/issues/4537>.
#[test]
fn registering_again_keeps_checks_that_others_added() {
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
