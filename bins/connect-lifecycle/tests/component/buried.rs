//! A pod that was deregistered is never registered again.

use testkit::process::await_that;
use testkit::{Fault, Port, Process, Route, ScriptedAgent, Times};

use crate::pod::{PROXY, PROXY_LEASE, Pod, SERVICE, assert_nothing_left, await_alive};

/// Waits until the sidecar has noticed the tombstone.
fn await_end_of_keeping(sidecar: &Process) {
    sidecar.await_log("the pod was deregistered: no longer maintaining it");
}

#[test]
fn a_deregistered_pod_is_not_registered_again() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let sidecar = pod.run();
    await_alive(&agent);
    pod.deregister(&[]).code(0);
    await_end_of_keeping(&sidecar);
    assert_nothing_left(&agent);
    assert!(agent.asked(Route::Register).is_empty());
}

#[test]
fn a_deregistered_pod_is_not_registered_again_when_the_agent_loses_its_state() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let sidecar = pod.run();
    await_alive(&agent);
    // The hook can't reach the agent, which then comes back empty.
    agent.stop_listening();
    pod.deregister(&["--timeout", "3s"]).code(69);
    agent.wipe();
    agent.listen_again();
    await_end_of_keeping(&sidecar);
    assert_nothing_left(&agent);
    assert!(agent.asked(Route::Register).is_empty());
}

#[test]
fn a_deregistered_pod_is_not_registered_again_when_its_entry_is_changed() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let sidecar = pod.run();
    await_alive(&agent);
    agent.fault(Route::Deregister, Fault::Status(403, "Permission denied"), Times::Always);
    pod.deregister(&[]).code(77);
    agent.remove(PROXY);
    await_end_of_keeping(&sidecar);
    assert!(agent.asked(Route::Register).is_empty());
}

/// An entry that could not be deregistered goes away when its TTL check expires, so there
/// must be no heartbeats.
#[test]
fn an_entry_that_could_not_be_deregistered_gets_no_heartbeats() {
    let agent = ScriptedAgent::start();
    let port = Port::keep();
    let pod = Pod::with_application(&agent, &port);
    let sidecar = pod.run();
    await_alive(&agent);
    agent.fault(Route::Deregister, Fault::Status(403, "Permission denied"), Times::Always);
    pod.deregister(&[]).code(77);
    agent.forget_requests();
    // Something to report, before the next heartbeat is due.
    let _listener = port.listen();
    await_end_of_keeping(&sidecar);
    assert!(agent.asked(Route::Update).is_empty(), "{:#?}", agent.requests());
    assert_eq!(agent.services().len(), 2);
}

#[test]
fn a_registration_in_progress_is_waited_for_and_deregistered() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    agent.wipe();
    let held = agent.hold(Route::Register.of(PROXY));
    let _sidecar = pod.run();
    held.await_one();
    let mut hook = pod.start_deregister();
    await_that("the tombstone", || pod.is_buried());
    held.release();
    assert_eq!(hook.end(), Some(0), "{}", hook.log());
    assert_nothing_left(&agent);
}

/// A registration that takes longer than the hook waits is rolled back by the process that
/// made it.
#[test]
fn a_registration_that_completes_after_the_hook_gave_up_is_rolled_back() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    agent.wipe();
    let held = agent.hold(Route::Register.of(PROXY));
    let sidecar = pod.run();
    held.await_one();
    pod.deregister(&["--timeout", "200ms"])
        .code(75)
        .says(&["another process of the pod was still registering"]);
    held.release();
    await_end_of_keeping(&sidecar);
    assert_nothing_left(&agent);
}

/// The service may have been registered before the proxy failed.
#[test]
fn a_registration_that_fails_after_the_hook_gave_up_is_rolled_back() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    agent.wipe();
    agent.fault(Route::Register.of(PROXY), Fault::Status(500, "No cluster leader"), Times::Always);
    let held = agent.hold(Route::Register.of(SERVICE));
    let sidecar = pod.run();
    held.await_one();
    pod.deregister(&["--timeout", "200ms"]).code(75);
    held.release();
    await_end_of_keeping(&sidecar);
    assert_nothing_left(&agent);
}

#[test]
fn a_container_that_restarts_registers_again() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.deregister(&[]).code(0);
    assert!(pod.is_buried());
    let _sidecar = pod.run();
    await_alive(&agent);
    assert!(!pod.is_buried());
    assert_eq!(agent.services().into_keys().collect::<Vec<_>>(), [SERVICE, PROXY]);
    assert_eq!(agent.check(PROXY_LEASE).unwrap().status, "passing");
}
