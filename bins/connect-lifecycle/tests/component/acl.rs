//! The ACL token: given back when the pod ends, had anew when it is gone.

use std::collections::BTreeSet;
use std::time::Duration;

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

/// Instead of logging in, the pod was given a token; its file, within the folder.
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
fn logs_out_when_envoy_has_ended_and_both_are_seen_to_be_deregistered() {
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
    // Until Envoy is gone, it needs the token.
    assert!(logout > pod.envoy.await_asked("POST /quitquitquit").at);
    for id in [SERVICE, PROXY] {
        assert!(logout > agent.asked(Route::Service.of(id)).pop().unwrap().at, "{id}");
    }
}

/// Without the token, the agent could neither deregister a dead pod nor tell the
/// servers that its TTL check has run out: it stayed in the catalog, passing.
#[test]
fn a_token_that_the_agent_needs_for_what_is_left_is_not_logged_out() {
    for fault in [
        Fault::Hang,
        Fault::Status(500, "No cluster leader"),
        Fault::Status(403, "Permission denied"),
        // The agent said so before it knew the token; the servers do.
        NOT_FOUND,
    ] {
        let agent = ScriptedAgent::start();
        let pod = pod(&agent);
        let mut sidecar = pod.run_with(&["--deregister-timeout", "300ms"]);
        await_alive(&agent);
        agent.fault(Route::Deregister.of(SERVICE), fault.clone(), Times::Always);
        sidecar.signal(Signal::SIGTERM);
        assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
        assert!(agent.asked(Route::Logout).is_empty(), "{fault:?}: {}", sidecar.log());
        assert_eq!(agent.tokens(), tokens(&["token-0"]), "{fault:?}");
        // Whoever comes next uses it.
        assert_eq!(pod.read("acl-token").as_deref(), Some("token-0"));
        sidecar.await_log("the ACL token is left behind: the agent needs it");
        assert!(!agent.services().contains_key(PROXY), "{fault:?}");
    }
}

/// The agent restarts while the pod ends, and comes back when all else is over.
#[test]
fn deregistration_is_tried_after_envoys_end_and_the_logout_follows_it() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    agent.stop_listening();
    sidecar.signal(Signal::SIGTERM);
    sidecar.await_log("Envoy ended");
    assert!(sidecar.is_running());
    agent.listen_again();
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_nothing_left(&agent);
    assert_eq!(agent.tokens(), tokens(&[]), "{}", sidecar.log());
}

#[test]
fn a_token_that_is_gone_at_the_end_is_forgotten() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    agent.revoke_tokens();
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_eq!(pod.read("acl-token"), None, "{}", sidecar.log());
}

/// The token is destroyed when the container restarts, not only when the pod ends.
/// Reported in <https://github.com/hashicorp/consul-k8s/pull/1914>.
#[test]
fn a_container_that_comes_back_logs_in_again_before_envoy_starts() {
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
fn an_envoy_that_dies_leaves_the_token_to_the_container_that_comes() {
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

/// A rotated token does nothing. Reported in
/// <https://github.com/hashicorp/consul/issues/11949>.
#[test]
fn a_token_that_somebody_else_deleted_is_had_anew_and_registered_with() {
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
    sidecar.await_log("registered again: its ACL token was gone");
    assert!(!sidecar.log().contains("token-1"), "{}", sidecar.log());
}

/// A container that was killed between its login and the registration leaves one
/// that was made with a token that is gone.
#[test]
fn a_container_that_starts_registers_with_the_token_that_it_has() {
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

/// A container that was killed between its login and the bootstrap's new token
/// leaves the old one in there.
#[test]
fn a_container_that_starts_gives_envoy_the_token_that_it_has() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    agent.have_token("token-7");
    pod.write("acl-token", "token-7");
    let _sidecar = pod.run();
    await_alive(&agent);
    assert_has_token(&pod, "token-7");
    assert!(agent.asked(Route::Login).is_empty());
}

/// The agent remembers for 30 s that it did not find the token. Reported in
/// <https://github.com/hashicorp/consul-k8s/pull/887>.
#[test]
fn an_agent_that_does_not_know_a_good_token_yet_is_waited_for() {
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
fn an_agent_that_does_not_log_out_is_given_up_and_said() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    let mut sidecar = pod.run_with(&["--drain-timeout", "300ms"]);
    await_alive(&agent);
    agent.fault(Route::Logout, Fault::Status(500, "No cluster leader"), Times::Always);
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    sidecar.await_log("the ACL token is left behind");
    sidecar.await_log("MaxTokenTTL");
    // It is still the truth: whoever comes next uses it.
    assert_eq!(pod.read("acl-token").as_deref(), Some("token-0"));
}

/// A change of leaders takes longer than the logout once was tried for.
#[test]
fn a_logout_is_tried_for_as_long_as_the_pods_end_may_take() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    // With the pauses between them, these take more than two seconds.
    agent.fault(Route::Logout, Fault::Status(500, "No cluster leader"), Times::N(6));
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_eq!(agent.tokens(), tokens(&[]), "{}", sidecar.log());
    assert_eq!(pod.read("acl-token"), None);
}

/// The kubelet's SIGKILL won. Whatever hangs, each part of the end has its turn.
#[test]
fn with_an_agent_that_hangs_and_connections_that_stay_each_part_of_the_end_is_tried() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    pod.envoy.has_connections(1);
    let mut sidecar = pod.run_with(&["--drain-timeout", "600ms"]);
    await_alive(&agent);
    agent.forget_requests();
    agent.fault(Route::Any, Fault::Hang, Times::Always);
    pod.deregister(&["--timeout", "300ms"]).code(75);
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
        "open connections are cut",
        "the ACL token is left behind",
    ] {
        sidecar.await_log(what);
    }
    assert_eq!(pod.read("acl-token").as_deref(), Some("token-0"));
}

/// A logout that hangs has an end, too.
#[test]
fn a_logout_that_hangs_does_not_keep_the_sidecar_from_ending() {
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

#[test]
fn the_hook_leaves_the_token_to_envoy() {
    let agent = ScriptedAgent::start();
    let pod = pod(&agent);
    pod.deregister(&[]).code(0);
    assert_nothing_left(&agent);
    assert_eq!(agent.tokens(), tokens(&["token-0"]));
}

/// A token that ends leaves Envoy without configuration.
#[test]
fn a_token_is_replaced_before_it_ends_and_envoy_reads_it_from_its_file() {
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
    // The one that was replaced is not left.
    agent.await_that("the first token to be logged out", |state| {
        state.requests.iter().any(|request| {
            request.path.ends_with("/logout") && request.token.as_deref() == Some("token-0")
        })
    });
    assert!(pod.read("envoy-acl-token.json").unwrap().contains("token-"));
    assert!(!sidecar.log().contains("restarted in place"), "{}", sidecar.log());
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_eq!(agent.tokens(), tokens(&[]));
}

/// Static stability: a token that can't be replaced yet, because the servers are away,
/// is good for a while, and so are the TTL checks.
#[test]
fn a_token_that_cannot_be_replaced_yet_costs_no_heartbeat() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20)).tokens_end(Some(3600));
    agent.fault(Route::Login, Fault::Status(500, "No cluster leader"), Times::Always);
    let pod = pod(&agent);
    let sidecar = pod.run();
    let is = |request: &testkit::Request, end: &str| request.path.ends_with(end);
    let logins = agent.until("a heartbeat after a login that failed", |state| {
        let mut requests = state.requests.iter();
        requests.position(|request| is(request, "/login"))?;
        // The first of them is passed already.
        let mut logins = 1;
        for request in requests {
            logins += usize::from(is(request, "/login"));
            if is(request, PROXY_LEASE) {
                return Some(logins);
            }
        }
        None
    });
    // With the pauses between them, that is a few seconds' worth.
    assert!(logins < 8, "{logins} logins: {}", sidecar.log());
    agent.heal();
    agent.await_that("another token", |state| {
        state.requests.iter().any(|request| request.token.as_deref() == Some("token-1"))
    });
}

/// A token that was deleted, and another that its owner puts into the file that
/// `connect-init` was given.
#[test]
fn a_static_token_that_is_refused_is_read_again_from_where_it_came() {
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
    // Where the original can't be read, the copy is as good.
    pod.remove("original");
    agent.forget_requests();
    await_alive(&agent);
    let asked = agent.await_request(Route::Service);
    assert_eq!(asked.token.as_deref(), Some("token-9"));
    assert!(!sidecar.log().contains("token-9"), "{}", sidecar.log());
}

/// A container that starts again, after its token was replaced meanwhile.
#[test]
fn a_container_that_starts_takes_the_token_from_where_it_came() {
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

/// A token that is replaced before anybody refuses it.
#[test]
fn a_static_token_is_read_again_from_its_file() {
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
