//! Whether the sidecar is ready: the readiness probe, and the postStart hook that delays the
//! application's start.

use std::net::SocketAddr;
use std::time::Instant;

use testkit::process::Signal;
use testkit::{Fault, PATIENCE, Port, Process, Route, ScriptedAgent, Times};

use crate::pod::{APPLICATION, LISTENER, Pod, await_alive};

/// Waits until a probe, which checks once, fails and gives this reason. One probe may fail for
/// another reason: the agent has less than a second to answer it.
fn await_reason(pod: &Pod, flags: &[&str], words: &[&str]) {
    let waiting = Instant::now();
    loop {
        let stderr = pod.ready(flags).code(1).stderr();
        if words.iter().all(|words| stderr.contains(words)) {
            return;
        }
        assert!(waiting.elapsed() < PATIENCE, "{words:?} is not in:\n{stderr}");
    }
}

/// Ready means that Consul would send traffic here.
#[test]
fn a_probe_reports_why_no_traffic_would_come_and_later_checks_only_envoy() {
    let agent = ScriptedAgent::start();
    let port = Port::keep();
    let pod = Pod::with_public_listener(&agent, &port);
    await_reason(&pod, &[], &["web-0-web-lease", "critical"]);
    let _sidecar = pod.run();
    await_alive(&agent);
    await_reason(&pod, &[], &["sidecar-proxy-listener", "critical"]);
    let _listener = port.listen();
    agent.await_that("the listener to be passing", |state| state.model.is("passing", LISTENER));
    pod.envoy.is_ready(false);
    pod.ready(&[]).code(1).says(&["503", "PRE_INITIALIZING", "hint:", "gRPC port"]);
    pod.envoy.is_ready(true);
    pod.envoy.has_rejected(1);
    pod.ready(&[]).code(1).says(&["rejected", "lds.update_rejected; hint"]);
    pod.envoy.has_rejected(0);
    pod.envoy.listens_on(2);
    pod.ready(&[]).code(1).says(&["no listener on port"]);
    pod.envoy.listens_on(port.address().port());
    pod.envoy.is_cut_off(true);
    pod.ready(&[]).code(1).says(&["no connection to the agent's gRPC port", "gRPC is enabled"]);
    pod.envoy.is_cut_off(false);
    await_reason(&pod, &["--serving"], &["web-0-web-application"]);
    pod.ready(&["--timeout=1m"]).code(0);
    // A ready pod stays ready while the agent is away.
    agent.stop_listening();
    pod.envoy.is_cut_off(true);
    pod.ready(&[]).code(0);
    // It becomes unready when the agent refuses Envoy's stream for long.
    pod.write("cut-off", "the agent refuses the stream");
    pod.ready(&[]).code(1).says(&["the agent refuses the stream"]);
}

#[test]
fn a_pod_without_envoy_is_not_ready() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    // Nothing listens on port 1.
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    pod.write("registration.json", &pod.record(&agent, nowhere).to_string());
    pod.ready(&[]).code(1).says(&["127.0.0.1:1", "Connection refused", "hint:"]);
}

/// The kubelet merges events with the same message.
#[test]
fn a_probe_that_fails_for_the_same_reason_prints_the_same() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.envoy.is_ready(false);
    let probe = |flags: &[&str]| pod.ready(flags).code(1).stderr();
    let first = probe(&[]);
    assert!(first.starts_with("Envoy is not ready: ") && first.lines().count() == 1, "{first}");
    assert_eq!(probe(&["--timeout=50ms"]), first);
    pod.envoy.is_ready(true);
    let rejected = |times| {
        pod.envoy.has_rejected(times);
        probe(&[])
    };
    assert_eq!(rejected(1), rejected(2));
    // The message of a timeout must not contain how long it took.
    pod.envoy.has_rejected(0);
    agent.fault(Route::Any, Fault::Hang, Times::Always);
    assert_eq!(probe(&[]), probe(&["--timeout=50ms"]));
}

/// The application started before Envoy was ready. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/1397>.
#[test]
fn the_post_start_hook_blocks_until_envoy_is_ready() {
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

/// A failed postStart hook kills the container.
#[test]
fn the_post_start_hook_succeeds_after_its_timeout_with_a_warning() {
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
fn sigterm_interrupts_the_post_start_hook() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.envoy.is_ready(false);
    let mut hold = pod.start_ready();
    pod.envoy.await_asked("GET /ready");
    hold.signal(Signal::SIGTERM);
    assert_eq!(hold.end(), Some(1), "{}", hold.log());
}

/// A readiness probe fails until Consul would send traffic, even after the postStart hook
/// has succeeded.
#[test]
fn a_readiness_probe_waits_for_the_application_and_for_the_servers() {
    let agent = ScriptedAgent::start();
    let (application, listener) = (Port::keep(), Port::keep());
    let pod = Pod::with_both(&agent, &application, &listener);
    let _sidecar = pod.run();
    await_alive(&agent);
    let _listener = listener.listen();
    agent.await_that("the listener to be passing", |state| state.model.is("passing", LISTENER));
    pod.ready(&["--timeout=1m"]).code(0);
    // A wrong port.
    let port = application.address().port();
    let words = [
        "check `web-0-web-application` is critical",
        &format!("nothing in the pod listens on port {port}"),
        "hint:",
        "connect-service-port",
    ];
    await_reason(&pod, &["--serving"], &words);
    agent.fault(Route::Health, Fault::Status(500, "No cluster leader"), Times::Always);
    let _application = application.listen();
    agent.await_that("the application", |state| state.model.is("passing", APPLICATION));
    await_reason(&pod, &["--serving"], &["cannot ask the servers", "No cluster leader"]);
    agent.heal();
    agent.fault(Route::Health, Fault::Status(200, "[]"), Times::Always);
    // A probe with a timeout waits, and passes as soon as it can.
    await_reason(&pod, &["--serving", "--timeout=300ms"], &["do not list the sidecar"]);
    agent.forget_requests();
    let mut probe = Process::start(&mut pod.command("ready", &["--serving", "--timeout=1m"]));
    agent.await_request(Route::Health);
    agent.heal();
    assert_eq!(probe.end(), Some(0), "{}", probe.log());
    // It stays ready while the agent is away.
    agent.stop_listening();
    pod.envoy.is_cut_off(true);
    pod.ready(&["--serving"]).code(0);
}

/// The servers listed it before the restart, and the node's agent keeps them up to date.
#[test]
fn a_container_that_restarts_is_ready_without_servers() {
    let agent = ScriptedAgent::start();
    let (application, listener) = (Port::keep(), Port::keep());
    let pod = Pod::with_both(&agent, &application, &listener);
    let (_application, _listener) = (application.listen(), listener.listen());
    let serving = ["--serving", "--timeout=1m"];
    let mut sidecar = pod.run();
    pod.ready(&serving).code(0);
    sidecar.signal(Signal::SIGKILL);
    sidecar.end();
    agent.fault(Route::Health, Fault::Status(500, "No cluster leader"), Times::Always);
    agent.wipe();
    pod.register(&agent);
    let _sidecar = pod.run();
    agent.await_that("what the sidecar reports", |state| state.model.is("passing", APPLICATION));
    pod.ready(&serving).code(0);
}

/// With a token that may register but not read nodes, the agent's own answer is enough.
#[test]
fn a_token_that_may_not_read_the_catalog_is_enough() {
    for fault in [Fault::Hidden, Fault::Status(403, "Permission denied: lacks service:read")] {
        let agent = ScriptedAgent::start();
        let (application, listener) = (Port::keep(), Port::keep());
        let pod = Pod::with_both(&agent, &application, &listener);
        let (_application, _listener) = (application.listen(), listener.listen());
        agent.fault(Route::Health, fault, Times::Always);
        let _sidecar = pod.run();
        pod.ready(&["--serving", "--timeout=1m"]).code(0);
    }
}

/// A service without a port gets no traffic.
#[test]
fn a_service_without_a_port_is_ready_without_application_and_servers() {
    let agent = ScriptedAgent::start();
    let listener = Port::keep();
    let pod = Pod::of_client(&agent, &listener);
    agent.fault(Route::Health, Fault::Status(500, "No cluster leader"), Times::Always);
    let _sidecar = pod.run();
    pod.ready(&["--serving", "--timeout=1m"]).code(0);
}

#[test]
fn sigterm_interrupts_a_probe() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.envoy.is_ready(false);
    let mut probe = Process::start(&mut pod.command("ready", &["--serving", "--timeout=1m"]));
    pod.envoy.await_asked("GET /ready");
    probe.signal(Signal::SIGTERM);
    assert_eq!(probe.end(), Some(1), "{}", probe.log());
}
