//! A pod whose xDS stream the agent refuses for long is cut off, and says so.

use std::time::Duration;

use testkit::{Fault, Port, Route, ScriptedAgent, Times};

use crate::pod::{PROXY_LEASE, Pod, SERVICE_LEASE, await_alive};

const WHY: &str = "Envoy gets no configuration from the agent, which answers other requests";

/// A new deny intention would not reach such a pod.
#[test]
fn a_pod_whose_stream_is_refused_is_unready_and_reports_why() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20));
    let port = Port::keep();
    let _listener = port.listen();
    let pod = Pod::with_public_listener(&agent, &port);
    pod.write("termination-log", "");
    let message = || pod.read("termination-log").unwrap();
    let file = pod.path("termination-log");
    let mut sidecar = pod.run_with(&["--cut-off-after", "100ms", "--termination-log", &file]);
    await_alive(&agent);
    pod.ready(&["--wait", "1m"]).code(0);

    pod.envoy.is_cut_off(true);
    for lease in [SERVICE_LEASE, PROXY_LEASE] {
        agent.await_that("a critical TTL check", |state| state.model.is("critical", lease));
        let output = agent.check(lease).unwrap().output;
        assert!(output.contains(WHY), "{output}");
    }
    sidecar.await_log(WHY);
    pod.ready(&[]).code(1).says(&[WHY, "hint:"]);
    assert!(message().contains(WHY), "{}", message());
    assert!(message().contains("hint:"), "{}", message());
    assert!(sidecar.is_running());

    pod.envoy.is_cut_off(false);
    await_alive(&agent);
    sidecar.await_log("Envoy gets its configuration again");
    pod.ready(&["--timeout=1m"]).code(0);
    assert_eq!(message(), "");
}

/// Somebody deleted the policy of its token, but not the token. The agent refuses Envoy's
/// stream as well as the heartbeats.
#[test]
fn a_pod_whose_token_lost_its_rights_is_cut_off() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20));
    let pod = Pod::of(&agent);
    let sidecar = pod.run_with(&["--cut-off-after", "1ms"]);
    await_alive(&agent);
    agent.fault(Route::Service, Fault::Status(403, "Permission denied"), Times::Always);
    pod.envoy.is_cut_off(true);
    sidecar.await_log(WHY);
    pod.ready(&[]).code(1).says(&[WHY]);
}

/// An agent whose servers are away can't check Envoy's token.
#[test]
fn a_pod_whose_stream_is_refused_while_the_servers_are_away_stays_ready() {
    let no_leader = Fault::Status(500, "No cluster leader");
    for away in [no_leader.clone(), Fault::Reset, Fault::Status(200, "")] {
        let agent = ScriptedAgent::start();
        agent.longest_wait(Duration::from_millis(20));
        let pod = Pod::of(&agent);
        let sidecar = pod.run_with(&["--cut-off-after", "1ms"]);
        await_alive(&agent);
        agent.fault(Route::TokenSelf, no_leader.clone(), Times::Always);
        agent.fault(Route::Leader, away, Times::Always);
        pod.envoy.is_cut_off(true);
        agent.await_that("further heartbeats", |state| {
            let asked = state.requests.iter().filter(|asked| asked.path == "/v1/status/leader");
            asked.count() > 4
        });
        await_alive(&agent);
        assert!(!sidecar.log().contains(WHY), "{}", sidecar.log());

        agent.heal();
        agent.await_that("a critical TTL check", |state| state.model.is("critical", PROXY_LEASE));
        sidecar.await_log(WHY);
    }
}
