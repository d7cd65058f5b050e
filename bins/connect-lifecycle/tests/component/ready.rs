//! Whether Envoy is ready: a probe, and the hold on the application's start.

use std::net::SocketAddr;

use testkit::ScriptedAgent;
use testkit::process::Signal;

use crate::pod::Pod;

#[test]
fn a_probe_tells_whether_envoy_is_ready() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.ready(&[]).code(0);
    pod.envoy.is_ready(false);
    pod.ready(&[]).code(1).says(&["503", "PRE_INITIALIZING", "hint:", "gRPC port"]);
    assert!(agent.requests().is_empty());
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
    let pod = Pod::of(&agent);
    pod.envoy.is_ready(false);
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
        "Envoy was not ready within 200ms",
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
