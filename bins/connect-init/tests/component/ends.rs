//! Ended by a signal, and run again.

use scripted_agent::process::Signal;
use scripted_agent::{Route, ScriptedAgent};

use crate::pod::{PROXY, Pod, SERVICE, assert_nothing_left, assert_registered};

#[test]
fn sigterm_ends_the_wait_for_an_agent() {
    let agent = ScriptedAgent::absent();
    let pod = Pod::of(&agent);
    let mut init = pod.start();
    init.await_log("trying again");
    init.signal(Signal::SIGTERM);
    assert_eq!(init.end(), Some(1), "{}", init.log());
    init.await_log("ended by SIGTERM");
    assert!(!init.log().contains("is left on the agent"), "{}", init.log());
}

#[test]
fn sigterm_leaves_nothing_registered_at_any_step() {
    for step in [
        Route::Register.of(SERVICE),
        Route::Register.of(PROXY),
        Route::Service.of(PROXY),
        Route::Config.into(),
    ] {
        let agent = ScriptedAgent::start();
        let pod = Pod::of(&agent);
        let held = agent.hold(step.clone());
        let mut init = pod.start();
        held.await_one();
        init.signal(Signal::SIGTERM);
        agent.await_request(Route::Deregister.of(PROXY));
        held.release();
        assert_eq!(init.end(), Some(1), "{step:?}: {}", init.log());
        assert_nothing_left(&agent);
        assert!(!pod.files().contains_key("registration.json"), "{step:?}");
    }
}

#[test]
fn sigkill_at_any_step_and_another_run_end_in_one_service_and_one_proxy() {
    for step in [
        Route::Register.of(SERVICE),
        Route::Register.of(PROXY),
        Route::Service.of(PROXY),
        Route::Config.into(),
    ] {
        let agent = ScriptedAgent::start();
        let pod = Pod::of(&agent);
        let held = agent.hold(step.clone());
        let mut init = pod.start();
        held.await_one();
        init.signal(Signal::SIGKILL);
        assert_eq!(init.end(), None);
        held.release();
        assert!(!pod.files().contains_key("registration.json"), "{step:?}");

        pod.run().code(0);
        assert_registered(&agent);
        let files = pod.files();
        assert_eq!(
            files.keys().collect::<Vec<_>>(),
            ["connect-lifecycle", "envoy-bootstrap.json", "lock", "registration.json"],
            "{step:?}"
        );
    }
}

#[test]
fn sigkill_while_an_agent_is_waited_for_and_another_run() {
    let agent = ScriptedAgent::absent();
    let pod = Pod::of(&agent);
    let mut init = pod.start();
    init.await_log("trying again");
    init.signal(Signal::SIGKILL);
    assert_eq!(init.end(), None);
    agent.listen_again();
    pod.run().code(0);
    assert_registered(&agent);
}
