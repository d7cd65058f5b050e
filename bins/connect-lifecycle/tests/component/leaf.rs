//! Envoy's leaf certificate: a heartbeat warns if it is not renewed in time.

use std::time::Duration;

use testkit::{Port, ScriptedAgent};

use crate::pod::{PROXY_LEASE, Pod, SERVICE_LEASE, await_alive};

const BEGAN: &str = "2020-01-01T00:00:00Z";
const ENDED: &str = "2020-01-04T00:00:00Z";
const ENDS: &str = "9999-01-01T00:00:00Z";

/// The pod stays in service: Envoy goes on with connections that are open, and a renewed
/// certificate needs nothing but itself.
#[test]
fn a_leaf_certificate_that_is_not_renewed_is_a_warning_until_it_is() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20));
    let port = Port::keep();
    let _listener = port.listen();
    let pod = Pod::with_public_listener(&agent, &port);
    pod.envoy.has_leaves(&[[BEGAN, ENDED]]);
    let sidecar = pod.run();
    for lease in [SERVICE_LEASE, PROXY_LEASE] {
        agent.await_that("a heartbeat that warns", |state| state.model.is("warning", lease));
        let output = agent.check(lease).unwrap().output;
        assert!(output.contains(&format!("ended {ENDED}")), "{output}");
    }
    sidecar.await_log("every TLS handshake fails; hint:");
    pod.ready(&["--timeout=1m"]).code(0);

    // Until the old listeners are drained, Envoy has both.
    pod.envoy.has_leaves(&[[BEGAN, ENDED], [BEGAN, ENDS]]);
    await_alive(&agent);
    sidecar.await_log("Envoy's leaf certificate is renewed");
    assert_eq!(sidecar.log().matches("hint: see the agent's log at `leaf`").count(), 1);
}

/// Envoy lists all certificates of all its listeners and clusters: that has a price.
#[test]
fn a_leaf_certificate_that_is_good_for_long_is_asked_for_once() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20));
    let pod = Pod::of(&agent);
    pod.envoy.has_leaves(&[[BEGAN, ENDS]]);
    let _sidecar = pod.run();
    await_alive(&agent);
    pod.envoy.await_asked("GET /certs");
    let stats = || {
        let asked = pod.envoy.asked();
        asked.iter().filter(|asked| asked.what.contains("connected_state")).count()
    };
    let before = stats();
    agent.await_that("further heartbeats", |_| stats() > before + 3);
    let asked = pod.envoy.asked();
    assert_eq!(asked.iter().filter(|asked| asked.what == "GET /certs").count(), 1);
}
