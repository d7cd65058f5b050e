//! The ACL token: logout when the pod ends, and another login when the token is gone.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;
use testkit::process::Signal;
use testkit::{Fault, Route, ScriptedAgent, Times};

use crate::pod::{PROXY, PROXY_LEASE, Pod, SERVICE, assert_nothing_left, await_alive};

const NOT_FOUND: Fault = Fault::Status(403, "ACL not found");

/// A pod that has logged in: it has the token `token-0`.
fn pod(agent: &ScriptedAgent) -> Pod {
    agent.with_acls().have_token("token-0");
    let pod = Pod::of(agent);
    let mut record = pod.record(agent, pod.envoy.admin());
    record["agent"]["token_file"] = pod.path("acl-token").into();
    record["login"] = json!({
        "auth_method": "kubernetes",
        "bearer_token_file": pod.path("bearer"),
        "meta": {"pod": "shop/web-0"},
    });
    pod.write("registration.json", &record.to_string());
    pod.write("acl-token", "token-0");
    pod.write("bearer", "the-bearer-token");
    pod.write("envoy-bootstrap.json", &bootstrap("token-0"));
    pod
}

/// Gives the pod a token instead of a login, optionally in that file of its directory.
fn has_static_token(pod: &Pod, file: Option<&str>) {
    let mut record: serde_json::Value =
        serde_json::from_str(&pod.read("registration.json").unwrap()).unwrap();
    record["login"] = serde_json::Value::Null;
    if let Some(file) = file {
        record["agent"]["token_source"] = pod.path(file).into();
    }
    pod.write("registration.json", &record.to_string());
}

fn bootstrap(token: &str) -> String {
    json!({"initial_metadata": [{"key": "x-consul-token", "value": token}]}).to_string()
}

#[track_caller]
fn assert_has_token(pod: &Pod, token: &str) {
    assert_eq!(pod.read("acl-token").as_deref(), Some(token));
    let document: serde_json::Value =
        serde_json::from_str(&pod.read("envoy-bootstrap.json").unwrap()).unwrap();
    assert_eq!(document.to_string(), bootstrap(token));
}

fn tokens(tokens: &[&str]) -> BTreeSet<String> {
    tokens.iter().map(|token| (*token).to_owned()).collect()
}

#[test]
fn the_pod_logs_out_when_envoy_has_exited_and_the_agent_has_confirmed_both_deregistrations() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_eq!(agent.tokens(), tokens(&[]), "{}", sidecar.log());
    assert_eq!(pod.read("acl-token"), None);
    assert_nothing_left(&agent);
    let logout = agent.await_request(Route::Logout).at;
    // Envoy needs the token until it exits.
    assert!(logout > pod.envoy.await_asked("POST /quitquitquit").at);
    for id in [SERVICE, PROXY] {
        assert!(logout > agent.asked(Route::Service.of(id)).pop().unwrap().at, "{id}");
    }
}

/// Without the token, the agent can neither deregister a dead pod nor tell the servers that
/// its TTL check has expired: the pod would stay in the catalog, passing.
#[test]
fn a_token_that_the_agent_needs_for_what_is_left_is_not_logged_out() {
    for fault in [
        Fault::Hang,
        Fault::Status(500, "No cluster leader"),
        Fault::Status(403, "Permission denied"),
        // The agent's answer is from before it knew the token; the servers know it.
        NOT_FOUND,
    ] {
        let agent = ScriptedAgent::start();
        let pod = pod(&agent);
        let mut sidecar = pod.run_with(&["--deregister-timeout", "2s"]);
        await_alive(&agent);
        agent.fault(Route::Deregister.of(SERVICE), fault.clone(), Times::Always);
        sidecar.signal(Signal::SIGTERM);
        assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
        for route in [Route::Login, Route::Logout] {
            assert!(agent.asked(route).is_empty(), "{fault:?}: {}", sidecar.log());
        }
        assert_eq!(agent.tokens(), tokens(&["token-0"]), "{fault:?}");
        // The next start of the container uses it.
        assert_eq!(pod.read("acl-token").as_deref(), Some("token-0"));
        sidecar.await_log("the ACL token is left behind: the agent needs it");
        assert!(!agent.services().contains_key(PROXY), "{fault:?}");
    }
}

const LISTED: Fault = Fault::Status(200, r#"[{"Service": {"ID": "web-0-web"}, "Checks": []}]"#);

/// An agent confirms a deregistration at once, also while there is no leader. It tells the
/// servers later, with the pod's token.
#[test]
fn the_pod_logs_out_only_when_the_servers_have_heard_of_the_deregistration() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    agent.forget_requests();
    agent.fault(Route::Health, LISTED, Times::N(2));
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    let asked = agent.asked(Route::Health);
    assert_eq!(asked.len(), 4, "two that list the pod, and one for each entry: {asked:#?}");
    assert!(agent.await_request(Route::Logout).at > asked[3].at);
    assert_eq!(agent.tokens(), tokens(&[]), "{}", sidecar.log());
}

#[test]
fn a_pod_that_the_servers_still_list_leaves_its_token_to_the_agent() {
    for (answer, is_left) in [
        (LISTED, true),
        (Fault::Status(500, "No cluster leader"), true),
        // The token may not read the catalog.
        (Fault::Status(403, "Permission denied"), false),
    ] {
        let agent = ScriptedAgent::start();
        let pod = pod(&agent);
        let mut sidecar = pod.run_with(&["--drain-timeout", "0s"]);
        await_alive(&agent);
        agent.fault(Route::Health, answer.clone(), Times::Always);
        sidecar.signal(Signal::SIGTERM);
        assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
        assert_nothing_left(&agent);
        assert_eq!(!agent.tokens().is_empty(), is_left, "{answer:?}: {}", sidecar.log());
    }
}

#[test]
fn a_second_sigterm_ends_the_wait_for_servers_that_have_not_heard_of_the_deregistration() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    let mut sidecar = pod.run_with(&["--drain-timeout", "1h"]);
    await_alive(&agent);
    agent.forget_requests();
    agent.fault(Route::Health, LISTED, Times::Always);
    sidecar.signal(Signal::SIGTERM);
    agent.await_request(Route::Health);
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_eq!(agent.tokens(), tokens(&["token-0"]), "{}", sidecar.log());
}

/// The agent restarts while the pod shuts down, and comes back when everything else is done.
#[test]
fn deregistration_is_still_retried_after_envoy_exits_and_the_logout_follows() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    agent.stop_listening();
    sidecar.signal(Signal::SIGTERM);
    sidecar.await_log("Envoy exited");
    assert!(sidecar.is_running());
    agent.listen_again();
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_nothing_left(&agent);
    assert_eq!(agent.tokens(), tokens(&[]), "{}", sidecar.log());
}

/// Envoy is killed, for instance because it needs too much memory, between the preStop hook
/// and SIGTERM. The container does not restart, so nobody else deregisters or logs out.
#[test]
fn an_envoy_that_crashes_after_the_hook_does_not_prevent_deregistration_and_logout() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    agent.stop_listening();
    pod.deregister(&["--timeout", "2s"]).code(69);
    agent.listen_again();
    pod.envoy.dies(7);
    assert_eq!(sidecar.end(), Some(7), "{}", sidecar.log());
    assert_nothing_left(&agent);
    assert_eq!(agent.tokens(), tokens(&[]), "{}", sidecar.log());
    assert_eq!(pod.read("acl-token"), None);
    sidecar.await_log("Envoy exited unexpectedly while the pod was ending");
}

/// The shutdown began without a signal, so the kubelet's is not a second one.
#[test]
fn a_sigterm_after_envoys_crash_leaves_the_deregistration_its_time() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    agent.fault(Route::Deregister, Fault::Status(500, "No cluster leader"), Times::Always);
    pod.deregister(&["--timeout", "1s"]).code(75);
    pod.envoy.dies(7);
    sidecar.await_log("Envoy exited unexpectedly while the pod was ending");
    sidecar.signal(Signal::SIGTERM);
    // A second signal leaves it two seconds.
    let later = Instant::now() + Duration::from_secs(3);
    agent.await_that("another attempt to deregister", |state| {
        state.requests.last().is_some_and(|request| request.at > later)
    });
    agent.heal();
    assert_eq!(sidecar.end(), Some(7), "{}", sidecar.log());
    assert_nothing_left(&agent);
    assert_eq!(agent.tokens(), tokens(&[]), "{}", sidecar.log());
}

/// Asserts that the pod logged in once, registered with the new token, deregistered with it,
/// and logged it out. The agent tells the servers with the token of the registration.
#[track_caller]
fn assert_deregistered_with_another_token(agent: &ScriptedAgent, pod: &Pod, log: &str) {
    assert_nothing_left(agent);
    assert_eq!(agent.tokens(), tokens(&[]), "{log}");
    assert_eq!(pod.read("acl-token"), None, "{log}");
    assert_eq!(agent.asked(Route::Login).len(), 1, "{log}");
    let logout = agent.asked(Route::Logout).pop().unwrap();
    for id in [SERVICE, PROXY] {
        let last = |route: Route| agent.asked(route.of(id)).pop().unwrap();
        let (register, deregister) = (last(Route::Register), last(Route::Deregister));
        for request in [&register, &deregister, &logout] {
            assert_eq!(request.token.as_deref(), Some("token-1"), "{id}: {log}");
        }
        assert!(register.at < deregister.at && deregister.at < logout.at, "{id}: {log}");
    }
}

/// The pod stayed in the catalog: the agent refuses to deregister, and could not tell the
/// servers.
#[test]
fn a_pod_that_ends_without_its_token_logs_in_to_deregister() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    agent.revoke_tokens();
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_deregistered_with_another_token(&agent, &pod, &sidecar.log());
    assert!(!sidecar.log().contains("token-1"), "{}", sidecar.log());
}

/// An agent caches tokens for 30 s, and deregisters without telling the servers.
#[test]
fn a_pod_that_ends_logs_in_although_the_agent_still_accepts_its_token() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    agent.fault(Route::TokenSelf, NOT_FOUND, Times::N(2));
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_deregistered_with_another_token(&agent, &pod, &sidecar.log());
}

#[test]
fn the_login_of_a_pod_that_ends_is_retried() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    agent.revoke_tokens();
    agent.fault(Route::Login, Fault::Status(500, "No cluster leader"), Times::Always);
    sidecar.signal(Signal::SIGTERM);
    agent.await_request(Route::Login);
    agent.heal();
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_nothing_left(&agent);
    assert_eq!(agent.tokens(), tokens(&[]), "{}", sidecar.log());
}

/// The pod has logged in, and then ends before the agent has accepted a registration.
#[test]
fn what_was_registered_with_a_replaced_token_is_registered_again_to_be_deregistered() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20));
    let pod = pod(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    agent.fault(Route::Register, Fault::Status(500, "No cluster leader"), Times::Always);
    agent.revoke_tokens();
    sidecar.await_log("logged in again");
    sidecar.signal(Signal::SIGTERM);
    testkit::process::await_that("the tombstone", || pod.is_buried());
    let failed = agent.asked(Route::Register.of(SERVICE)).len();
    agent.heal();
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_deregistered_with_another_token(&agent, &pod, &sidecar.log());
    assert!(agent.asked(Route::Register.of(SERVICE)).len() > failed, "{}", sidecar.log());
}

/// The registration in flight finds the tombstone, and deregisters.
#[test]
fn a_registration_that_fails_while_the_pod_ends_leaves_nothing_of_a_replaced_token() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20));
    let pod = pod(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    agent.forget_requests();
    let held = agent.hold(Route::Register.of(SERVICE));
    let fault = Fault::Status(500, "No cluster leader");
    agent.fault(Route::Register.of(PROXY), fault, Times::N(1));
    agent.revoke_tokens();
    held.await_one();
    sidecar.signal(Signal::SIGTERM);
    testkit::process::await_that("the tombstone", || pod.is_buried());
    held.release();
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_deregistered_with_another_token(&agent, &pod, &sidecar.log());
    // The one that failed, and another.
    assert_eq!(agent.asked(Route::Register.of(PROXY)).len(), 2, "{}", sidecar.log());
}

/// A second login would leave the token of the first behind.
#[test]
fn a_login_in_flight_when_the_pod_ends_is_used() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20));
    let pod = pod(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    let held = agent.hold(Route::Login);
    agent.revoke_tokens();
    held.await_one();
    let looks = |requests: &[testkit::Request]| {
        requests.iter().filter(|request| request.path.ends_with("/token/self")).count()
    };
    let before = looks(&agent.requests());
    sidecar.signal(Signal::SIGTERM);
    agent.await_that("the sidecar to be about to log in", |state| {
        looks(&state.requests) == before + 2
    });
    held.release();
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_deregistered_with_another_token(&agent, &pod, &sidecar.log());
}

#[test]
fn a_pod_that_ends_without_its_token_reports_why_it_cannot_log_in() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    agent.revoke_tokens();
    agent.fault(Route::Login, Fault::Status(403, "Permission denied"), Times::Always);
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    for id in [SERVICE, PROXY] {
        sidecar.await_log(&format!("{id} is left on the agent"));
    }
    sidecar.await_log("ACL not found");
    sidecar.await_log("cannot log in with auth method `kubernetes`");
    sidecar.await_log("no binding rule");
    assert_eq!(agent.asked(Route::Login).len(), 1, "{}", sidecar.log());
    assert!(agent.asked(Route::Register).iter().all(|it| it.token.as_deref() == Some("token-0")));
    assert_eq!(pod.read("acl-token"), None, "{}", sidecar.log());
}

#[test]
fn a_login_that_hangs_does_not_keep_the_sidecar_from_exiting() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    let mut sidecar = pod.run_with(&["--drain-timeout", "100ms"]);
    await_alive(&agent);
    agent.revoke_tokens();
    agent.fault(Route::Login, Fault::Hang, Times::Always);
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    sidecar.await_log("cannot log in with auth method `kubernetes`");
    pod.envoy.await_asked("POST /quitquitquit");
}

/// The token is destroyed when the container restarts, not only when the pod ends.
/// Reported in <https://github.com/hashicorp/consul-k8s/pull/1914>.
#[test]
fn a_container_that_restarts_logs_in_again_before_envoy_starts() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    let mut first = pod.run();
    await_alive(&agent);
    first.signal(Signal::SIGTERM);
    assert_eq!(first.end(), Some(0), "{}", first.log());
    agent.forget_requests();

    let held = agent.hold(Route::Login);
    let second = pod.run();
    held.await_one();
    assert!(!second.log().contains("started /bin/sh"), "{}", second.log());
    held.release();
    await_alive(&agent);
    assert_eq!(agent.tokens(), tokens(&["token-1"]));
    assert_has_token(&pod, "token-1");
    assert_eq!(agent.services().len(), 2);
    let register = agent.await_request(Route::Register.of(PROXY));
    assert_eq!(register.token.as_deref(), Some("token-1"));
}

#[test]
fn an_envoy_that_crashes_leaves_the_token_for_the_restarted_container() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    pod.envoy.dies(3);
    assert_eq!(sidecar.end(), Some(3), "{}", sidecar.log());
    assert_eq!(agent.tokens(), tokens(&["token-0"]));
    let _sidecar = pod.run();
    await_alive(&agent);
    assert!(agent.asked(Route::Login).is_empty());
}

/// A rotated token had no effect. Reported in
/// <https://github.com/hashicorp/consul/issues/11949>.
#[test]
fn a_deleted_token_is_replaced_by_a_login_and_a_registration_with_the_new_one() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20));
    let pod = pod(&agent);
    let sidecar = pod.run();
    await_alive(&agent);
    agent.forget_requests();
    agent.revoke_tokens();
    for id in [SERVICE, PROXY] {
        let register = agent.await_request(Route::Register.of(id));
        assert_eq!(register.token.as_deref(), Some("token-1"), "{id}");
    }
    agent.forget_requests();
    await_alive(&agent);
    assert_eq!(agent.tokens(), tokens(&["token-1"]));
    assert_has_token(&pod, "token-1");
    sidecar.await_log("registered again: its ACL token no longer existed");
    assert!(!sidecar.log().contains("token-1"), "{}", sidecar.log());
}

/// The agent caches for 30 s that it did not find the new token. Envoy was given the token
/// again and again, without a pause.
#[test]
fn an_agent_that_does_not_know_the_new_token_yet_is_waited_for() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20));
    let pod = pod(&agent);
    let sidecar = pod.run();
    await_alive(&agent);
    agent.fault(Route::Register, NOT_FOUND, Times::N(4));
    agent.revoke_tokens();
    sidecar.await_log("registered again: its ACL token no longer existed");
    let log = sidecar.log();
    assert_eq!(log.matches("logged in again").count(), 1, "{log}");
    assert_eq!(agent.tokens(), tokens(&["token-1"]), "{log}");
}

/// It could not report that its checks are critical, and a new deny intention would not reach
/// it.
#[test]
fn a_pod_that_cannot_replace_its_token_is_unready_once_its_stream_is_refused() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20));
    let pod = pod(&agent);
    let mut sidecar = pod.run_with(&["--cut-off-after", "1ms"]);
    await_alive(&agent);
    agent.fault(Route::Login, Fault::Status(403, "Permission denied"), Times::Always);
    agent.revoke_tokens();
    pod.envoy.is_cut_off(true);
    sidecar.await_log("Envoy gets no configuration from the agent");
    pod.ready(&[]).code(1).says(&["Envoy gets no configuration from the agent"]);
    assert!(sidecar.is_running());
}

/// Envoy used to keep the old token, and the agent the old registration.
#[test]
fn a_login_that_failed_after_it_had_got_a_token_is_completed() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20));
    let pod = pod(&agent);
    let sidecar = pod.run();
    await_alive(&agent);
    pod.write("envoy-bootstrap.json", "{");
    agent.revoke_tokens();
    sidecar.await_log("cannot put the new ACL token into");
    pod.write("envoy-bootstrap.json", &bootstrap("token-0"));
    sidecar.await_log("registered again: its ACL token no longer existed");
    assert_eq!(agent.asked(Route::Login).len(), 1, "{}", sidecar.log());
    assert_has_token(&pod, "token-1");
}

/// The volume is full for a moment. A container that restarts would log in once more.
#[test]
fn a_token_whose_file_could_not_be_written_is_written_later() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20));
    let pod = pod(&agent);
    let sidecar = pod.run();
    await_alive(&agent);
    pod.remove("acl-token");
    pod.make_folder("acl-token");
    agent.revoke_tokens();
    sidecar.await_log("acl-token");
    std::fs::remove_dir(pod.path("acl-token")).unwrap();
    sidecar.await_log("registered again: its ACL token no longer existed");
    assert_eq!(agent.asked(Route::Login).len(), 1, "{}", sidecar.log());
    assert_has_token(&pod, "token-1");
}

/// Each attempt would leave a token until it expires.
#[test]
fn a_token_that_cannot_be_handed_on_is_not_replaced_again() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20)).tokens_end(Some(3600));
    let pod = pod(&agent);
    let sidecar = pod.run();
    await_alive(&agent);
    pod.remove("acl-token");
    pod.make_folder("acl-token");
    // The second is due after ten seconds, and so would be a third.
    let login = agent.await_request(Route::Login);
    let later = login.at + Duration::from_secs(15);
    agent.await_that("another attempt", |state| {
        state.requests.last().is_some_and(|request| request.at > later)
    });
    assert_eq!(agent.asked(Route::Login).len(), 1, "{}", sidecar.log());
    std::fs::remove_dir(pod.path("acl-token")).unwrap();
    sidecar.await_log("registered again: its ACL token no longer existed");
    assert_eq!(pod.read("acl-token").as_deref(), Some("token-1"));
}

/// A container that was killed between its login and the registration leaves a registration
/// made with a token that no longer exists.
#[test]
fn a_container_that_starts_registers_with_its_current_token() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    agent.forget_requests();
    let _sidecar = pod.run();
    await_alive(&agent);
    for id in [SERVICE, PROXY] {
        let registrations = agent.asked(Route::Register.of(id));
        assert_eq!(registrations.len(), 1, "{id}");
        assert_eq!(registrations[0].token.as_deref(), Some("token-0"), "{id}");
    }
}

/// A container that was killed between its login and the update of the bootstrap leaves the
/// old token in the bootstrap.
#[test]
fn a_container_that_starts_gives_envoy_its_current_token() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    agent.have_token("token-7");
    pod.write("acl-token", "token-7");
    let _sidecar = pod.run();
    await_alive(&agent);
    assert_has_token(&pod, "token-7");
    assert!(agent.asked(Route::Login).is_empty());
}

/// The agent caches for 30 s that it did not find the token. Reported in
/// <https://github.com/hashicorp/consul-k8s/pull/887>.
#[test]
fn registering_waits_for_an_agent_that_does_not_know_a_valid_token_yet() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20));
    let pod = pod(&agent);
    agent.fault(Route::Service, NOT_FOUND, Times::N(2));
    let _sidecar = pod.run();
    await_alive(&agent);
    assert!(agent.asked(Route::Login).is_empty());
    assert_eq!(agent.tokens(), tokens(&["token-0"]));
}

#[test]
fn a_logout_that_the_agent_rejects_is_abandoned_with_a_warning() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    let mut sidecar = pod.run_with(&["--drain-timeout", "300ms"]);
    await_alive(&agent);
    agent.fault(Route::Logout, Fault::Status(500, "No cluster leader"), Times::Always);
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    sidecar.await_log("the ACL token is left behind");
    sidecar.await_log("MaxTokenTTL");
    // The token is still valid, and the next start of the container uses it.
    assert_eq!(pod.read("acl-token").as_deref(), Some("token-0"));
}

/// An election of a leader takes longer than earlier releases retried the logout.
#[test]
fn a_logout_is_retried_for_as_long_as_the_shutdown_may_take() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    // With the pauses in between, these take more than two seconds.
    agent.fault(Route::Logout, Fault::Status(500, "No cluster leader"), Times::N(6));
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_eq!(agent.tokens(), tokens(&[]), "{}", sidecar.log());
    assert_eq!(pod.read("acl-token"), None);
}

/// The kubelet's SIGKILL came first: whatever hangs, each part of the shutdown must get its
/// time.
#[test]
fn each_part_of_the_shutdown_is_tried_when_the_agent_hangs_and_connections_stay_open() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    pod.envoy.has_connections(1);
    let mut sidecar = pod.run_with(&["--drain-timeout", "4s"]);
    await_alive(&agent);
    agent.forget_requests();
    agent.fault(Route::Any, Fault::Hang, Times::Always);
    pod.deregister(&["--timeout", "2s"]).code(75);
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());

    assert!(pod.is_buried());
    let asked = [
        pod.envoy.await_asked("POST /drain_listeners").at,
        pod.envoy.await_asked("GET /stats?usedonly").at,
        pod.envoy.await_asked("POST /quitquitquit").at,
    ];
    assert!(asked.is_sorted(), "{asked:?}");
    for what in [
        "web-0-web-sidecar-proxy is left on the agent",
        "web-0-web is left on the agent",
        "closing open connections",
        "the ACL token is left behind",
    ] {
        sidecar.await_log(what);
    }
    assert_eq!(pod.read("acl-token").as_deref(), Some("token-0"));
}

#[test]
fn a_logout_that_hangs_does_not_keep_the_sidecar_from_exiting() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    let mut sidecar = pod.run_with(&["--drain-timeout", "100ms"]);
    await_alive(&agent);
    agent.fault(Route::Logout, Fault::Hang, Times::Always);
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    sidecar.await_log("the ACL token is left behind");
    assert_nothing_left(&agent);
}

/// It would be gone from the agent, and the agent could not tell the servers.
#[test]
fn the_hook_leaves_a_registration_whose_token_no_longer_exists_to_the_sidecar() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    // The agent still accepts the token.
    agent.fault(Route::TokenSelf, NOT_FOUND, Times::N(3));
    let hook = pod.deregister(&[]);
    hook.code(77).says(&["the ACL token no longer exists", "hint:"]);
    assert!(pod.is_buried());
    assert!(agent.asked(Route::Deregister).is_empty());
    pod.envoy.await_asked("POST /drain_listeners");
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_deregistered_with_another_token(&agent, &pod, &sidecar.log());
}

#[test]
fn the_hook_does_not_log_out() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    pod.deregister(&[]).code(0);
    assert_nothing_left(&agent);
    assert_eq!(agent.tokens(), tokens(&["token-0"]));
}

/// A token that expires leaves Envoy without configuration.
#[test]
fn a_token_is_replaced_before_it_expires_and_envoy_reads_the_new_one_from_its_file() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20)).tokens_end(Some(3600));
    let pod = pod(&agent);
    pod.write("envoy-acl-token.json", "{}");
    let mut sidecar = pod.run();
    for id in [SERVICE, PROXY] {
        agent.until("a registration with another token", |state| {
            let mut requests = state.requests.iter();
            let is_it = |request: &&testkit::Request| {
                request.path.ends_with("/service/register")
                    && request.id().as_deref() == Some(id)
                    && request.token.as_deref() == Some("token-1")
            };
            requests.find(is_it).map(drop)
        });
    }
    agent.tokens_end(None);
    // The replaced token is logged out.
    agent.await_that("the first token to be logged out", |state| {
        state.requests.iter().any(|request| {
            request.path.ends_with("/logout") && request.token.as_deref() == Some("token-0")
        })
    });
    assert!(pod.read("envoy-acl-token.json").unwrap().contains("token-"));
    assert!(!sidecar.log().contains("restarting Envoy"), "{}", sidecar.log());
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_eq!(agent.tokens(), tokens(&[]));
}

/// A token that can't be replaced yet, because the servers are away, is valid for some
/// time, and heartbeats continue.
#[test]
fn heartbeats_continue_while_a_token_cannot_be_replaced() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20)).tokens_end(Some(3600));
    agent.fault(Route::Login, Fault::Status(500, "No cluster leader"), Times::Always);
    let pod = pod(&agent);
    let sidecar = pod.run();
    let is = |request: &testkit::Request, end: &str| request.path.ends_with(end);
    let logins = agent.until("a heartbeat after a login that failed", |state| {
        let mut requests = state.requests.iter();
        requests.position(|request| is(request, "/login"))?;
        // The first of these has passed already.
        let mut logins = 1;
        for request in requests {
            logins += usize::from(is(request, "/login"));
            if is(request, PROXY_LEASE) {
                return Some(logins);
            }
        }
        None
    });
    // With the pauses in between, that is a few seconds' worth.
    assert!(logins < 8, "{logins} logins: {}", sidecar.log());
    agent.heal();
    agent.await_that("another token", |state| {
        state.requests.iter().any(|request| request.token.as_deref() == Some("token-1"))
    });
}

/// The token was deleted, and its owner writes another to the file that `connect-init` was
/// given.
#[test]
fn a_static_token_that_is_rejected_is_read_again_from_its_original_file() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20));
    let pod = pod(&agent);
    has_static_token(&pod, Some("original"));
    pod.write("original", "token-0");
    let sidecar = pod.run();
    await_alive(&agent);
    agent.revoke_tokens();
    sidecar.await_log("the ACL token does not exist; hint:");
    sidecar.await_log(&pod.path("original"));
    agent.forget_requests();
    agent.have_token("token-9");
    pod.write("original", "token-9");
    for id in [SERVICE, PROXY] {
        let register = agent.await_request(Route::Register.of(id));
        assert_eq!(register.token.as_deref(), Some("token-9"), "{id}");
    }
    assert_has_token(&pod, "token-9");
    // If the original can't be read, the copy is used.
    pod.remove("original");
    agent.forget_requests();
    await_alive(&agent);
    let asked = agent.await_request(Route::Service);
    assert_eq!(asked.token.as_deref(), Some("token-9"));
    assert!(!sidecar.log().contains("token-9"), "{}", sidecar.log());
}

/// The token file was rewritten before the container restarted.
#[test]
fn a_container_that_starts_reads_the_token_from_its_original_file() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    has_static_token(&pod, Some("original"));
    agent.have_token("token-8");
    pod.write("original", "token-8");
    agent.forget_requests();
    let _sidecar = pod.run();
    for id in [SERVICE, PROXY] {
        let register = agent.await_request(Route::Register.of(id));
        assert_eq!(register.token.as_deref(), Some("token-8"), "{id}");
    }
    let bootstrap = pod.read("envoy-bootstrap.json").unwrap();
    assert!(bootstrap.contains("token-8"), "{bootstrap}");
}

/// The token file is rewritten before the agent rejects the old token.
#[test]
fn a_rewritten_token_file_is_read_again() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20));
    let pod = pod(&agent);
    has_static_token(&pod, None);
    pod.write("envoy-acl-token.json", "{}");
    let _sidecar = pod.run();
    await_alive(&agent);
    agent.have_token("token-9");
    pod.write("acl-token", "token-9");
    for id in [SERVICE, PROXY] {
        let register = agent.await_request(Route::Register.of(id));
        assert_eq!(register.token.as_deref(), Some("token-9"), "{id}");
    }
    assert!(pod.read("envoy-acl-token.json").unwrap().contains("token-9"));
}
