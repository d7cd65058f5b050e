//! The end of the sidecar: asked for, or Envoy's own.

use std::net::SocketAddr;

use serde_json::json;
use testkit::process::Signal;
use testkit::{Fault, Port, Route, ScriptedAgent, Times};

use crate::pod::{
    PROXY, PROXY_LEASE, Pod, SERVICE, SERVICE_LEASE, assert_nothing_left, await_alive,
};

const DRAIN: &str = "POST /drain_listeners?inboundonly&graceful&skip_exit";
const COUNT: &str = "GET /stats?usedonly";
const QUIT: &str = "POST /quitquitquit";

/// Deregister early, drain late, quit last. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/4463> and
/// <https://github.com/hashicorp/consul-k8s/issues/536>.
#[test]
fn sigterm_deregisters_then_drains_and_quits_when_no_connection_is_left() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.envoy.has_connections(2);
    let mut sidecar = pod.run();
    await_alive(&agent);
    sidecar.signal(Signal::SIGTERM);

    // It asks again and again for as long as there are connections.
    pod.envoy.await_asked(COUNT);
    pod.envoy.has_connections(1);
    let asked = pod.envoy.asked().len();
    testkit::process::await_that("another count", || pod.envoy.asked().len() > asked + 1);
    assert!(sidecar.is_running());
    assert!(pod.envoy.asked().iter().all(|asked| !asked.what.starts_with(QUIT)));
    pod.envoy.has_connections(0);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());

    assert!(pod.is_buried());
    assert_nothing_left(&agent);
    // Side by side.
    let deregistered = [
        agent.await_request(Route::Deregister.of(PROXY)).at,
        agent.await_request(Route::Deregister.of(SERVICE)).at,
        pod.envoy.await_asked(QUIT).at,
    ];
    let drained = [
        pod.envoy.await_asked(DRAIN).at,
        pod.envoy.await_asked(COUNT).at,
        pod.envoy.await_asked(QUIT).at,
    ];
    assert!(deregistered.is_sorted() && drained.is_sorted(), "{deregistered:?} {drained:?}");
}

/// Termination always takes the whole grace period. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/268>.
#[test]
fn an_idle_pod_ends_after_one_look() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    let mut asked: Vec<_> = pod.envoy.asked().into_iter().map(|asked| asked.what).collect();
    // The heartbeat looks, too.
    asked.retain(|what| !what.contains("connected_state"));
    assert_eq!(asked.len(), 3, "{asked:?}");
}

#[test]
fn the_hook_and_then_sigterm_end_it_as_well() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    pod.deregister(&[]).code(0);
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert!(agent.asked(Route::Register).is_empty());
    assert_nothing_left(&agent);
}

#[test]
fn connections_that_never_end_are_cut_at_the_budget() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.envoy.has_connections(1);
    let mut sidecar = pod.run_with(&["--drain-timeout", "300ms"]);
    await_alive(&agent);
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    sidecar.await_log("not all is over after 300ms: open connections are cut");
    pod.envoy.await_asked(QUIT);
}

#[test]
fn a_second_sigterm_cuts_connections() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.envoy.has_connections(1);
    let mut sidecar = pod.run_with(&["--drain-timeout", "10m"]);
    await_alive(&agent);
    sidecar.signal(Signal::SIGTERM);
    pod.envoy.await_asked(COUNT);
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    pod.envoy.await_asked(QUIT);
}

#[test]
fn an_envoy_that_does_not_know_how_to_drain_still_keeps_its_connections() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.envoy.refuses_drain();
    pod.envoy.has_connections(1);
    let mut sidecar = pod.run();
    await_alive(&agent);
    sidecar.signal(Signal::SIGTERM);
    pod.envoy.await_asked(COUNT);
    assert!(sidecar.is_running());
    pod.envoy.has_connections(0);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    sidecar.await_log("cannot tell clients to go elsewhere");
}

/// Envoy exits before the application. Clients that have not heard yet are sent to it,
/// and it may still ask others. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/536>.
#[test]
fn an_idle_envoy_stays_while_the_application_listens() {
    let agent = ScriptedAgent::start();
    let port = Port::keep();
    let pod = Pod::with_application(&agent, &port);
    let listener = port.listen();
    let mut sidecar = pod.run();
    await_alive(&agent);
    sidecar.signal(Signal::SIGTERM);
    pod.envoy.await_asked(COUNT);
    let asked = pod.envoy.asked().len();
    testkit::process::await_that("further counts", || pod.envoy.asked().len() > asked + 2);
    assert!(sidecar.is_running());
    assert_nothing_left(&agent);
    drop(listener);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    sidecar.await_log("no connection is in flight");
}

/// Nothing tells whether an application without a port still works; it may be idle
/// right now and open its next upstream connection in a moment.
#[test]
fn a_pod_without_a_port_is_not_over_because_it_is_idle_for_a_moment() {
    let agent = ScriptedAgent::start();
    let pod = Pod::without_a_port(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    sidecar.signal(Signal::SIGTERM);
    pod.envoy.await_asked(COUNT);
    pod.envoy.has_connections(1);
    let asked = pod.envoy.asked().len();
    testkit::process::await_that("further counts", || pod.envoy.asked().len() > asked + 2);
    assert!(sidecar.is_running());
    assert!(pod.envoy.asked().iter().all(|asked| !asked.what.starts_with(QUIT)));
    pod.envoy.has_connections(0);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    sidecar.await_log("no connection is in flight");
}

#[test]
fn an_application_that_never_ends_is_left_at_the_budget() {
    let agent = ScriptedAgent::start();
    let port = Port::keep();
    let pod = Pod::with_application(&agent, &port);
    let _listener = port.listen();
    let mut sidecar = pod.run_with(&["--drain-timeout", "300ms"]);
    await_alive(&agent);
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    sidecar.await_log("not all is over after 300ms: open connections are cut");
}

/// Prometheus keeps its connections.
#[test]
fn who_reads_envoys_own_pages_does_not_keep_it() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let listener = |name: &str, port| {
        let address = json!({"socket_address": {"address": "0.0.0.0", "port_value": port}});
        json!({"name": name, "address": address})
    };
    let page = listener("envoy_prometheus_metrics_listener", 20000);
    let bootstrap = json!({"static_resources": {"listeners": [listener("x", 9102), page]}});
    pod.write("envoy-bootstrap.json", &bootstrap.to_string());
    pod.envoy.has_connections(1);
    let mut sidecar = pod.run_with(&["--drain-timeout", "10m"]);
    await_alive(&agent);
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
}

/// Connections that can't be counted are not connections that are gone.
#[test]
fn an_envoy_that_does_not_count_is_asked_until_it_does() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.envoy.refuses_to_count(true);
    let mut sidecar = pod.run_with(&["--drain-timeout", "10m"]);
    await_alive(&agent);
    sidecar.signal(Signal::SIGTERM);
    pod.envoy.await_asked(COUNT);
    let asked = pod.envoy.asked().len();
    testkit::process::await_that("further tries", || pod.envoy.asked().len() > asked + 2);
    assert!(sidecar.is_running());
    sidecar.await_log("cannot count connections, and waits: Envoy answers /stats");
    pod.envoy.refuses_to_count(false);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_eq!(sidecar.log().matches("cannot count").count(), 1, "{}", sidecar.log());
    pod.envoy.await_asked(QUIT);
}

#[test]
fn an_envoy_that_never_counts_is_ended_at_the_budget() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.envoy.refuses_to_count(true);
    let mut sidecar = pod.run_with(&["--drain-timeout", "300ms"]);
    await_alive(&agent);
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    sidecar.await_log("not all is over after 300ms: open connections are cut");
    pod.envoy.await_asked(QUIT);
}

/// An agent that is gone must not keep the pod. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/540> and
/// <https://github.com/hashicorp/consul-k8s/issues/714>.
#[test]
fn an_agent_that_is_down_or_hangs_does_not_keep_the_sidecar_from_ending() {
    for hangs in [false, true] {
        let agent = ScriptedAgent::start();
        let pod = Pod::of(&agent);
        let mut sidecar = pod.run_with(&["--deregister-timeout", "300ms"]);
        await_alive(&agent);
        if hangs {
            agent.fault(Route::Any, Fault::Hang, Times::Always);
        } else {
            agent.stop_listening();
        }
        sidecar.signal(Signal::SIGTERM);
        assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
        sidecar.await_log("web-0-web-sidecar-proxy is left on the agent");
        sidecar.await_log("web-0-web is left on the agent");
        pod.envoy.await_asked(QUIT);
        assert!(pod.is_buried());
    }
}

#[test]
fn sigterm_during_a_registration_brings_it_to_its_end_and_takes_it_back() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    agent.wipe();
    let held = agent.hold(Route::Register.of(PROXY));
    let mut sidecar = pod.run();
    held.await_one();
    sidecar.signal(Signal::SIGTERM);
    testkit::process::await_that("the tombstone", || pod.is_buried());
    held.release();
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_nothing_left(&agent);
}

#[test]
fn sigterm_during_a_registration_that_never_ends_is_bounded() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    agent.wipe();
    agent.fault(Route::Register.of(PROXY), Fault::Hang, Times::Always);
    let mut sidecar = pod.run_with(&["--deregister-timeout", "600ms"]);
    agent.await_request(Route::Register.of(PROXY));
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_nothing_left(&agent);
}

/// An Envoy that ended is not hidden. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/536>.
#[test]
fn an_envoy_that_dies_gives_its_exit_code_and_gets_no_more_clients() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    pod.envoy.dies(7);
    assert_eq!(sidecar.end(), Some(7), "{}", sidecar.log());
    for lease in [PROXY_LEASE, SERVICE_LEASE] {
        let check = agent.check(lease).unwrap();
        assert_eq!(check.status, "critical");
        assert!(check.output.contains("exit status: 7"), "{}", check.output);
    }
    // The container starts again in a moment.
    assert!(!pod.is_buried());
    assert_eq!(agent.services().len(), 2);
}

/// A Job asks Envoy to end, and that is no failure. Reported in
/// <https://github.com/hashicorp/consul/issues/6676> and
/// <https://github.com/hashicorp/consul-k8s/issues/1791>.
#[test]
fn an_envoy_that_was_asked_to_end_ends_the_sidecar_well() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    pod.envoy.dies(0);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert!(pod.is_buried());
    assert_nothing_left(&agent);
    assert!(!sidecar.log().contains("ERROR"), "{}", sidecar.log());
}

#[test]
fn each_half_is_told_that_envoy_died_even_if_the_other_cannot_be() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    agent.fault(
        Route::Update.of(PROXY_LEASE),
        Fault::Status(500, "No cluster leader"),
        Times::Always,
    );
    pod.envoy.dies(1);
    assert_eq!(sidecar.end(), Some(1), "{}", sidecar.log());
    assert_eq!(agent.check(SERVICE_LEASE).unwrap().status, "critical");
}

#[test]
fn an_envoy_that_a_signal_killed_gives_the_code_that_shells_give() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let mut sidecar = pod.run_command(&[], &["/bin/sh", "-c", "kill -9 $$"]);
    assert_eq!(sidecar.end(), Some(128 + 9), "{}", sidecar.log());
}

#[test]
fn an_envoy_whose_admin_interface_is_gone_is_ended_by_sigterm() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    // Nothing listens on port 1.
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    pod.write("registration.json", &pod.record(&agent, nowhere).to_string());
    let mut sidecar = pod.run_with(&["--drain-timeout", "300ms"]);
    await_alive(&agent);
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    sidecar.await_log("sent SIGTERM");
    assert_nothing_left(&agent);
}

#[test]
fn an_envoy_that_is_not_there_is_reported() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let mut sidecar = pod.run_command(&[], &["/nonexistent/envoy", "--config-path", "x"]);
    assert_eq!(sidecar.end(), Some(64));
    sidecar.await_log("cannot start `/nonexistent/envoy`");
    sidecar.await_log("hint: check the image");
    assert!(agent.requests().is_empty());
}

/// An agent that restarts while the pod ends.
#[test]
fn deregistration_goes_on_beside_the_drain_until_it_is_confirmed() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.envoy.has_connections(1);
    let mut sidecar = pod.run_with(&["--drain-timeout", "10m"]);
    await_alive(&agent);
    agent.stop_listening();
    sidecar.signal(Signal::SIGTERM);
    pod.envoy.await_asked(COUNT);
    agent.listen_again();
    agent.await_that("nothing to be left", |state| state.model.services().is_empty());
    assert!(sidecar.is_running());
    pod.envoy.has_connections(0);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
}
