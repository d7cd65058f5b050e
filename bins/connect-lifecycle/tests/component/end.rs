//! How the sidecar shuts down: on a signal, or because Envoy exited.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use testkit::process::Signal;
use testkit::{Fault, Port, Route, ScriptedAgent, Times};

use crate::pod::{
    PROXY, PROXY_LEASE, Pod, SERVICE, SERVICE_LEASE, assert_nothing_left, await_alive,
};

const DRAIN: &str = "POST /drain_listeners?inboundonly&graceful&skip_exit";
const COUNT: &str = "GET /stats?usedonly";
const QUIT: &str = "POST /quitquitquit";

/// Deregister first, then drain, then stop Envoy. Reported in
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

    // It polls for as long as there are connections.
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
    // Both happen at the same time.
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

/// Termination always took the whole grace period. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/268>.
#[test]
fn an_idle_pod_exits_after_one_check() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    let mut asked: Vec<_> = pod.envoy.asked().into_iter().map(|asked| asked.what).collect();
    // The heartbeat also checks.
    asked.retain(|what| !what.contains("connected_state") && what != "GET /certs");
    assert_eq!(asked.len(), 3, "{asked:?}");
}

#[test]
fn the_hook_followed_by_sigterm_shuts_it_down_as_well() {
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
fn connections_that_stay_open_are_closed_at_the_drain_timeout() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.envoy.has_connections(1);
    let mut sidecar = pod.run_with(&["--drain-timeout", "300ms"]);
    await_alive(&agent);
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    sidecar.await_log("drain timeout reached after 300ms: closing open connections");
    pod.envoy.await_asked(QUIT);
}

/// A native sidecar gets SIGTERM only when the application has ended. If that took the whole
/// grace period, the kubelet kills the sidecar two seconds later.
#[test]
fn a_sidecar_whose_hook_began_before_the_whole_budget_exits_at_once() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.envoy.has_connections(1);
    let mut sidecar = pod.run_with(&["--drain-timeout", "10m"]);
    await_alive(&agent);
    pod.deregister(&[]).code(0);
    pod.was_buried(Duration::from_secs(11 * 60));
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    sidecar.await_log("closing open connections");
    pod.envoy.await_asked(QUIT);
}

#[test]
fn a_second_sigterm_closes_connections() {
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
fn an_envoy_that_cannot_drain_its_listeners_still_keeps_its_connections() {
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
    sidecar.await_log("cannot drain Envoy's listeners");
}

/// Envoy exited before the application, which still serves clients with stale endpoints and
/// may still send requests to its upstreams. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/536>.
#[test]
fn an_idle_envoy_keeps_running_while_the_application_listens() {
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

/// Nothing shows whether an application without a port is still working; it may be idle
/// right now and open its next upstream connection in a moment.
#[test]
fn a_pod_without_a_port_that_is_idle_for_a_moment_keeps_running() {
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
fn the_sidecar_exits_at_the_drain_timeout_even_if_the_application_does_not() {
    let agent = ScriptedAgent::start();
    let port = Port::keep();
    let pod = Pod::with_application(&agent, &port);
    let _listener = port.listen();
    let mut sidecar = pod.run_with(&["--drain-timeout", "300ms"]);
    await_alive(&agent);
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    sidecar.await_log("drain timeout reached after 300ms: closing open connections");
}

/// Prometheus keeps its connections open.
#[test]
fn connections_to_envoys_metrics_do_not_delay_the_exit() {
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

/// An error does not mean that there are no connections.
#[test]
fn counting_connections_is_retried_until_envoy_answers() {
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
    sidecar.await_log("cannot count open connections, still waiting: Envoy answers /stats");
    pod.envoy.refuses_to_count(false);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_eq!(sidecar.log().matches("cannot count").count(), 1, "{}", sidecar.log());
    pod.envoy.await_asked(QUIT);
}

#[test]
fn an_envoy_that_never_reports_connections_is_stopped_at_the_drain_timeout() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.envoy.refuses_to_count(true);
    let mut sidecar = pod.run_with(&["--drain-timeout", "300ms"]);
    await_alive(&agent);
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    sidecar.await_log("drain timeout reached after 300ms: closing open connections");
    pod.envoy.await_asked(QUIT);
}

/// An agent that is gone must not keep the pod running. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/540> and
/// <https://github.com/hashicorp/consul-k8s/issues/714>.
#[test]
fn an_agent_that_is_down_or_hangs_does_not_keep_the_sidecar_from_exiting() {
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
fn sigterm_during_a_registration_finishes_it_and_then_deregisters() {
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
fn a_registration_that_hangs_delays_the_exit_only_to_the_deadline() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    agent.wipe();
    agent.fault(Route::Register.of(PROXY), Fault::Hang, Times::Always);
    let mut sidecar = pod.run_with(&["--deregister-timeout", "3s"]);
    agent.await_request(Route::Register.of(PROXY));
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_nothing_left(&agent);
}

/// A crash of Envoy must be visible. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/536>.
#[test]
fn an_envoy_that_crashes_sets_the_exit_code_and_gets_no_more_clients() {
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
    // The container restarts in a moment.
    assert!(!pod.is_buried());
    assert_eq!(agent.services().len(), 2);
}

/// A Job tells Envoy to exit, which is not a failure. Reported in
/// <https://github.com/hashicorp/consul/issues/6676> and
/// <https://github.com/hashicorp/consul-k8s/issues/1791>.
#[test]
fn the_sidecar_shuts_down_gracefully_when_envoy_was_told_to_exit() {
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
fn both_checks_become_critical_on_a_crash_even_if_one_update_fails() {
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
fn an_envoy_killed_by_a_signal_gives_the_exit_code_of_a_shell() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let mut sidecar = pod.run_command(&[], &["/bin/sh", "-c", "kill -9 $$"]);
    assert_eq!(sidecar.end(), Some(128 + 9), "{}", sidecar.log());
}

#[test]
fn an_envoy_whose_admin_interface_is_gone_is_stopped_by_sigterm() {
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
fn a_missing_envoy_is_reported() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let mut sidecar = pod.run_command(&[], &["/nonexistent/envoy", "--config-path", "x"]);
    assert_eq!(sidecar.end(), Some(64));
    sidecar.await_log("cannot start `/nonexistent/envoy`");
    sidecar.await_log("hint: check the image");
    assert!(agent.requests().is_empty());
}

/// The agent restarts while the pod shuts down.
#[test]
fn deregistration_is_retried_during_the_drain_until_it_is_confirmed() {
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
