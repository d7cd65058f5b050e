//! Ended by a signal, and run again.

use std::collections::BTreeSet;

use testkit::fault::At;
use testkit::process::Signal;
use testkit::{Route, ScriptedAgent};

use crate::pod::{HELPER, PROXY, Pod, SERVICE, assert_nothing_left, assert_registered};

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
fn sigterm_leaves_nothing_at_any_step() {
    for (step, taken_back) in steps() {
        let agent = ScriptedAgent::start();
        agent.with_acls();
        let pod = pod(&agent);
        let held = agent.hold(step.clone());
        let mut init = pod.start();
        held.await_one();
        init.signal(Signal::SIGTERM);
        // It has turned back when it asks for that.
        agent.await_request(taken_back);
        held.release();
        assert_eq!(init.end(), Some(1), "{step:?}: {}", init.log());
        assert!(pod.termination_log().contains("ended by SIGTERM"), "{step:?}");
        assert_nothing_left(&agent);
        assert!(agent.tokens().is_empty(), "{step:?}: {}", init.log());
        let files: Vec<_> = pod.files().into_keys().collect();
        let lock = if files.len() == 1 { &[][..] } else { &["lock"] };
        assert_eq!(files, [&["connect-lifecycle"][..], lock].concat(), "{step:?}");
    }
}

#[test]
fn sigkill_at_any_step_and_another_run_end_in_one_service_one_proxy_one_token() {
    for (step, _) in steps() {
        let agent = ScriptedAgent::start();
        agent.with_acls();
        let pod = pod(&agent);
        killed_at(step.clone(), &agent, &pod);
        assert!(!pod.files().contains_key("registration.json"), "{step:?}");

        pod.run().code(0);
        assert_registered(&agent);
        assert_eq!(agent.tokens(), BTreeSet::from([pod.token()]), "{step:?}");
        assert_whole(&pod);
    }
}

/// Nobody can take back a token that nobody was told: of a login whose answer
/// is on its way, the auth method's `MaxTokenTTL` takes care.
#[test]
fn sigkill_while_the_login_is_answered_costs_one_token_at_most() {
    let agent = ScriptedAgent::start();
    agent.with_acls();
    let pod = pod(&agent);
    killed_at(Route::Login.into(), &agent, &pod);
    pod.run().code(0);
    assert_registered(&agent);
    assert!(agent.tokens().contains(&pod.token()) && agent.tokens().len() <= 2);
    assert_whole(&pod);
}

#[test]
fn sigkill_between_two_services_and_another_run() {
    for id in ["shop_web-0_api", "shop_web-0_api-sidecar-proxy"] {
        let agent = ScriptedAgent::start();
        agent.with_acls();
        let pod = pod(&agent).and("--service", "api:9090");
        killed_at(Route::Register.of(id), &agent, &pod);
        pod.run().code(0);
        assert_eq!(agent.services().len(), 4);
        assert_eq!(agent.tokens().len(), 2);
        for name in ["registration.json", "registration-api.json"] {
            assert_eq!(pod.json(name)["version"], 1, "{name}");
        }
    }
}

/// A process that is killed while it writes leaves its temporary file.
#[test]
fn what_a_killed_run_left_half_written_is_taken_away() {
    let agent = ScriptedAgent::start();
    agent.with_acls();
    let pod = pod(&agent);
    std::fs::File::create(pod.shared(".whole-Ab3dE6.tmp")).unwrap();
    pod.run().code(0);
    assert_whole(&pod);
}

/// A pod with a login, which asks the agent for everything that can be asked.
fn pod(agent: &ScriptedAgent) -> Pod {
    let pod = Pod::of(agent).without("--grpc-addr").with("--acl-auth-method", "kubernetes");
    let bearer = pod.file("bearer", "e30.e30.c2ln");
    pod.with_path("--bearer-token-file", &bearer)
}

/// Each step after the login, and what is asked first to take it back.
fn steps() -> [(At, At); 6] {
    [
        (Route::TokenSelf.into(), Route::Logout.into()),
        (Route::AgentSelf.into(), Route::Logout.into()),
        (Route::Register.of(SERVICE), Route::Deregister.of(PROXY)),
        (Route::Register.of(PROXY), Route::Deregister.of(PROXY)),
        // The proxy is looked at by the request that hangs: the service goes first.
        (Route::Service.of(PROXY), Route::Deregister.of(SERVICE)),
        (Route::Config.into(), Route::Deregister.of(PROXY)),
    ]
}

/// Kills a run while the agent works on that step.
fn killed_at(step: At, agent: &ScriptedAgent, pod: &Pod) {
    let held = agent.hold(step);
    let mut init = pod.start();
    held.await_one();
    init.signal(Signal::SIGKILL);
    assert_eq!(init.end(), None);
    held.release();
}

/// Every file is there and whole, and no temporary one.
#[track_caller]
fn assert_whole(pod: &Pod) {
    assert_eq!(
        pod.files().keys().collect::<Vec<_>>(),
        ["acl-token", "connect-lifecycle", "envoy-bootstrap.json", "lock", "registration.json"]
    );
    assert_eq!(pod.json("registration.json")["version"], 1);
    assert_eq!(pod.json("envoy-bootstrap.json")["node"]["id"], PROXY);
    assert_eq!(std::fs::read_to_string(pod.shared("connect-lifecycle")).unwrap(), HELPER);
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
