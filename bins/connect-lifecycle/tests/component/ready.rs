//! Whether Envoy is ready: a probe, and the hold on the application's start.

use std::net::SocketAddr;

use testkit::process::Signal;
use testkit::{Port, ScriptedAgent};

use crate::pod::{LISTENER, Pod, await_alive};

/// P45, P46, P50, I37: ready means that Consul would send traffic here.
#[test]
fn a_probe_tells_why_no_traffic_would_come_and_later_only_that_envoy_serves() {
    let agent = ScriptedAgent::start();
    let port = Port::keep();
    let pod = Pod::with_public_listener(&agent, &port);
    pod.ready(&[]).code(1).says(&["web-0-web-lease", "critical"]);
    let _sidecar = pod.run();
    await_alive(&agent);
    pod.ready(&[]).code(1).says(&["sidecar-proxy-listener", "critical"]);
    let _listener = port.listen();
    agent.await_that("the listener to be passing", |state| state.model.is("passing", LISTENER));
    pod.envoy.is_ready(false);
    pod.ready(&[]).code(1).says(&["503", "PRE_INITIALIZING", "hint:", "gRPC port"]);
    pod.envoy.is_ready(true);
    pod.envoy.has_rejected(1);
    pod.ready(&[]).code(1).says(&["rejected", "lds.update_rejected: 1"]);
    pod.envoy.has_rejected(0);
    pod.envoy.listens_on(2);
    pod.ready(&[]).code(1).says(&["no listener on port"]);
    pod.envoy.listens_on(port.address().port());
    pod.envoy.is_cut_off(true);
    pod.ready(&[]).code(1).says(&["no connection to the agent's gRPC port", "gRPC is on"]);
    pod.envoy.is_cut_off(false);
    pod.ready(&["--serving"]).code(1).says(&["web-0-web-application"]);
    pod.ready(&[]).code(0);
    // An agent that is away makes no ready pod unready.
    agent.stop_listening();
    pod.envoy.is_cut_off(true);
    pod.ready(&[]).code(0);
    // One that refuses Envoy's stream for long does.
    pod.write("cut-off", "the agent refuses the stream");
    pod.ready(&[]).code(1).says(&["the agent refuses the stream"]);
}

#[test]
fn an_envoy_that_is_not_there_is_not_ready() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    // Nothing listens on port 1.
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    pod.write("registration.json", &pod.record(&agent, nowhere).to_string());
    pod.ready(&[]).code(1).says(&["127.0.0.1:1", "Connection refused", "hint:"]);
}

/// Pain 14: the application starts before Envoy is ready.
#[test]
fn the_hold_lasts_until_envoy_is_ready() {
    let agent = ScriptedAgent::start();
    let port = Port::keep();
    let pod = Pod::with_public_listener(&agent, &port);
    pod.envoy.is_ready(false);
    let _sidecar = pod.run();
    await_alive(&agent);
    let _listener = port.listen();
    let mut hold = pod.start_ready();
    let looks = || pod.envoy.asked().len();
    testkit::process::await_that("several looks", || looks() > 2);
    assert!(hold.is_running());
    pod.envoy.is_ready(true);
    assert_eq!(hold.end(), Some(0), "{}", hold.log());
}

/// A postStart hook that fails would kill the container.
#[test]
fn the_hold_lets_go_in_the_end_with_a_warning() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.envoy.is_ready(false);
    pod.ready(&["--wait", "200ms"]).code(0).says(&[
        "WARN",
        "the sidecar was not ready within 200ms",
        "PRE_INITIALIZING",
    ]);
}

#[test]
fn sigterm_ends_the_hold() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.envoy.is_ready(false);
    let mut hold = pod.start_ready();
    pod.envoy.await_asked("GET /ready");
    hold.signal(Signal::SIGTERM);
    assert_eq!(hold.end(), Some(1), "{}", hold.log());
}
