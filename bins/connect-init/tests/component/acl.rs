//! A login's token: requested first, kept, and logged out if a later step fails.

use std::collections::BTreeSet;

use serde_json::json;
use testkit::fault::At;
use testkit::process::Signal;
use testkit::{Fault, Route, ScriptedAgent, Times};

use crate::pod::{PROXY, Pod, SERVICE, assert_nothing_left, assert_registered};

/// The claims of the service account `shop/web`, as a JSON web token has them.
const BEARER: &str = "e30.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6c2hvcDp3ZWIifQ.c2ln";

const NOT_FOUND: Fault = Fault::Status(403, "ACL not found");
const PERMISSION: Fault = Fault::Status(403, "Permission denied");

fn agent() -> ScriptedAgent {
    let agent = ScriptedAgent::start();
    agent.with_acls();
    agent
}

fn pod(agent: &ScriptedAgent) -> Pod {
    let pod = Pod::of(agent).with("--acl-auth-method", "kubernetes").with("--pod-uid", "u-1");
    let bearer = pod.file("bearer", BEARER);
    pod.with_path("--bearer-token-file", &bearer)
}

fn tokens(tokens: &[&str]) -> BTreeSet<String> {
    tokens.iter().map(|token| (*token).to_owned()).collect()
}

/// Each step after the login.
fn steps() -> [At; 4] {
    [
        Route::TokenSelf.into(),
        Route::Register.of(SERVICE),
        Route::Register.of(PROXY),
        Route::Service.of(PROXY),
    ]
}

/// With several servers, each login meets one that has not heard of it yet.
#[test]
fn servers_that_hear_of_the_token_a_moment_later_are_no_warning() {
    let agent = agent();
    agent.fault(Route::TokenSelf, NOT_FOUND, Times::N(3));
    let log = pod(&agent).run().code(0).stderr();
    assert_registered(&agent);
    assert!(agent.asked(Route::TokenSelf).len() > 3 && !log.contains("do not know"), "{log}");
}

#[test]
fn logs_in_first_and_uses_the_token_for_everything() {
    let agent = agent();
    let pod = pod(&agent);
    pod.run().code(0);
    assert_registered(&agent);
    let requests = agent.requests();
    let login = requests[0].json();
    assert_eq!(requests[0].path, "/v1/acl/login");
    assert_eq!(requests[0].token, None);
    assert_eq!(login["AuthMethod"], "kubernetes");
    assert_eq!(login["BearerToken"], BEARER);
    assert_eq!(login["Meta"]["pod"], "shop/web-0");
    assert_eq!(login["Meta"]["pod-uid"], "u-1");
    // Known before anything else is asked with it. Reported in
    // <https://github.com/hashicorp/consul-k8s/pull/887>.
    assert_eq!(requests[1].path, "/v1/acl/token/self");
    assert!(requests[1..].iter().all(|request| request.token.as_deref() == Some("token-1")));
    assert_eq!(std::fs::read_to_string(pod.shared("acl-token")).unwrap(), "token-1");
    let record = pod.json("registration.json");
    assert_eq!(record["login"]["auth_method"], "kubernetes");
    let bootstrap = std::fs::read_to_string(pod.shared("envoy-bootstrap.json")).unwrap();
    assert!(bootstrap.contains("token-1"), "{bootstrap}");
}

/// Each restart of the init container logs in again. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/845>.
#[test]
fn a_token_of_an_earlier_life_is_used_again() {
    let agent = agent();
    let pod = pod(&agent);
    for _ in 0..3 {
        pod.run().code(0);
    }
    assert_eq!(agent.tokens(), tokens(&["token-1"]));
    assert_eq!(agent.asked(Route::Login).len(), 1);
    agent.revoke_tokens();
    pod.run().code(0);
    assert_eq!(agent.tokens(), tokens(&["token-2"]));
    assert_registered(&agent);
}

/// A follower that lags, and an agent that remembers it. Reported in
/// <https://github.com/hashicorp/consul-k8s/pull/887>.
#[test]
fn a_token_that_is_not_known_yet_is_waited_for() {
    let agent = agent();
    for step in steps() {
        agent.fault(step, NOT_FOUND, Times::N(2));
    }
    // What is read back is asked for once: the agent knows the token by then.
    agent.heal();
    for step in &steps()[..3] {
        agent.fault(step.clone(), NOT_FOUND, Times::N(2));
    }
    pod(&agent).run().code(0);
    assert_registered(&agent);
    assert_eq!(agent.tokens(), tokens(&["token-1"]));
}

/// The agent tells the servers of a deregistration with the token of the registration. If that
/// no longer exists, they would go on listing the pod.
#[test]
fn a_rollback_registers_again_what_a_deleted_token_had_registered() {
    let agent = agent();
    let pod = pod(&agent).without("--grpc-addr");
    pod.run().code(0);
    agent.revoke_tokens();
    agent.forget_requests();
    // The next run finds nothing for Envoy to connect to.
    agent.about(json!({"DebugConfig": {"GRPCPort": -1}}));
    let log = pod.run().code(64).stderr();
    assert_nothing_left(&agent);
    assert_eq!(agent.tokens(), tokens(&[]), "{log}");
    for id in [SERVICE, PROXY] {
        let last = |route: Route| agent.asked(route.of(id)).pop().unwrap();
        let (register, deregister) = (last(Route::Register), last(Route::Deregister));
        assert_eq!(register.token.as_deref(), Some("token-2"), "{id}: {log}");
        assert!(register.at < deregister.at, "{id}: {log}");
    }
}

/// Somebody deletes it, or the servers lost it, while the agent is waited for.
#[test]
fn a_deleted_token_is_replaced_in_the_next_attempt() {
    let agent = agent();
    let pod = pod(&agent);
    let held = agent.hold(Route::Register.of(SERVICE));
    let mut init = pod.start();
    held.await_one();
    agent.revoke_tokens();
    held.release();
    assert_eq!(init.end(), Some(0), "{}", init.log());
    assert_eq!(pod.token(), "token-2");
    assert_eq!(agent.tokens(), tokens(&["token-2"]));
    assert_registered(&agent);
    let bootstrap = pod.json("envoy-bootstrap.json").to_string();
    assert!(bootstrap.contains("token-2") && !bootstrap.contains("token-1"));
    for id in [SERVICE, PROXY] {
        let register = agent.asked(Route::Register.of(id)).pop().unwrap();
        assert_eq!(register.token.as_deref(), Some("token-2"), "{id}");
    }
}

#[test]
fn no_token_is_left_whichever_step_fails() {
    for step in steps() {
        for (fault, code) in [(PERMISSION, 77), (Fault::Status(400, "no"), 78)] {
            let agent = agent();
            agent.fault(step.clone(), fault.clone(), Times::N(1));
            let pod = pod(&agent);
            let outcome = pod.run().code(code);
            assert_eq!(agent.tokens(), tokens(&[]), "{step:?} {fault:?}: {}", outcome.stderr());
            assert!(!pod.files().contains_key("acl-token"), "{step:?}");
            assert_nothing_left(&agent);
        }
    }
}

/// The agent confirms a deregistration before it has told the servers, with the pod's token.
#[test]
fn a_rollback_logs_out_only_when_the_servers_have_heard_of_the_deregistration() {
    let agent = agent();
    let listed = Fault::Status(200, r#"[{"Service": {"ID": "any"}, "Checks": []}]"#);
    agent.fault(Route::Register.of(PROXY), Fault::Status(400, "no"), Times::Always);
    agent.fault(Route::Health, listed, Times::N(2));
    let outcome = pod(&agent).run().code(78);
    assert_eq!(agent.tokens(), tokens(&[]), "{}", outcome.stderr());
    let asked = agent.asked(Route::Health);
    assert_eq!(asked.len(), 4, "two that list the pod, and one for each entry: {asked:#?}");
    assert!(agent.await_request(Route::Logout).at > asked[3].at);
}

#[test]
fn an_agent_that_hangs_on_taking_back_keeps_the_tokens_that_it_needs() {
    let agent = agent();
    agent.fault(Route::Register.of("shop_web-0_api"), Fault::Status(400, "no"), Times::Always);
    agent.fault(Route::Deregister, Fault::Hang, Times::Always);
    let pod = pod(&agent).and("--service", "api:9090");
    let outcome = pod.run().code(78).says(&["the ACL token is left behind: the agent needs it"]);
    assert_eq!(agent.tokens(), tokens(&["token-1", "token-2"]), "{}", outcome.stderr());
    assert!(agent.asked(Route::Logout).is_empty());
    assert!(pod.files().contains_key("acl-token") && pod.files().contains_key("acl-token-api"));
    // None was left out because another took all the time.
    for id in ["shop_web-0_api", PROXY, SERVICE] {
        assert!(!agent.asked(Route::Deregister.of(id)).is_empty(), "{id}");
    }
}

/// The sandbox was made again. What was registered before would have stayed in the
/// catalog without a token.
#[test]
fn what_an_earlier_run_registered_is_taken_back_before_the_logout() {
    let agent = agent();
    let pod = pod(&agent);
    pod.run().code(0);
    agent.fault(Route::TokenSelf, Fault::Status(400, "no"), Times::Always);
    let outcome = pod.run().code(78);
    assert_nothing_left(&agent);
    assert_eq!(agent.tokens(), tokens(&[]), "{}", outcome.stderr());
}

/// What is registered stays so until it is registered with the new token.
#[test]
fn a_token_that_servers_do_not_know_is_logged_out_when_nothing_is_registered_with_it() {
    let agent = agent();
    let pod = pod(&agent);
    pod.run().code(0);
    agent.forget_requests();
    agent.fault(Route::TokenSelf, NOT_FOUND, Times::N(1));
    pod.run().code(0);
    assert_eq!(agent.tokens(), tokens(&["token-2"]));
    let logout = agent.await_request(Route::Logout);
    assert_eq!(logout.token.as_deref(), Some("token-1"));
    for id in [SERVICE, PROXY] {
        assert!(agent.await_request(Route::Register.of(id)).at < logout.at, "{id}");
    }
}

#[test]
fn a_login_under_way_is_brought_to_its_end_and_undone() {
    let agent = agent();
    let held = agent.hold(Route::Login);
    let pod = pod(&agent);
    let mut init = pod.start();
    held.await_one();
    // Whichever comes first to it, the signal or the answer, it goes no further.
    let _next = agent.hold(Route::TokenSelf);
    init.signal(Signal::SIGTERM);
    held.release();
    assert_eq!(init.end(), Some(1), "{}", init.log());
    assert_eq!(agent.asked(Route::Logout).len(), 1);
    assert_eq!(agent.tokens(), tokens(&[]));
}

#[test]
fn a_refused_login_says_who_asked_whom_and_which_rule_is_missing() {
    for (fault, hint) in [
        (PERMISSION, "no binding rule of auth method `kubernetes` fits service account `shop/web`"),
        (NOT_FOUND, "Consul has no auth method `kubernetes`"),
        (
            Fault::Status(500, "error validating claims: token is expired (exp)"),
            "does not accept the bearer token",
        ),
        (
            Fault::Status(500, "rpc error making call: lookup failed: invalid bearer token"),
            "does not accept the bearer token",
        ),
    ] {
        let agent = agent();
        agent.fault(Route::Login, fault, Times::Always);
        let outcome = pod(&agent).run().code(77).says(&[
            "cannot log in with auth method `kubernetes` as service account `shop/web`",
            hint,
        ]);
        assert!(!outcome.stderr().contains(BEARER), "{}", outcome.stderr());
        assert_eq!(agent.asked(Route::Login).len(), 1);
    }
}

#[test]
fn a_token_that_lacks_a_rule_says_which() {
    let agent = agent();
    agent.fault(Route::Register, PERMISSION, Times::Always);
    let pod = pod(&agent).with("--service", "api:8080");
    pod.run().code(77).says(&[
        "403 Permission denied",
        "auth method `kubernetes` gave to service account `shop/web`",
        "service:write on `api` and `api-sidecar-proxy`",
        "the service account must have the service's name",
    ]);
}

#[test]
fn an_agent_without_acls_says_so() {
    let agent = ScriptedAgent::start();
    pod(&agent).run().code(78).says(&["401 ACL support disabled", "omit --acl-auth-method"]);
}

#[test]
fn a_bearer_token_that_is_not_there_is_named() {
    let agent = agent();
    let pod = pod(&agent);
    let empty = pod.file("empty", "\n");
    for (path, problem) in
        [("/nonexistent/token".as_ref(), "No such file"), (empty.as_path(), "it is empty")]
    {
        let pod = self::pod(&agent).with_path("--bearer-token-file", path);
        pod.run().code(64).says(&[
            path.to_str().unwrap(),
            problem,
            "hint: check --bearer-token-file",
        ]);
    }
    assert!(agent.requests().is_empty());
}

#[test]
fn a_token_that_is_given_and_a_login_do_not_go_together() {
    let agent = agent();
    pod(&agent)
        .with("--token-file", "/etc/token")
        .run()
        .code(64)
        .says(&["--acl-auth-method", "--token-file"]);
}

/// Each service of a pod has a token, all are there or none.
#[test]
fn several_services_log_in_each_and_all_or_none() {
    let agent = agent();
    let pod = pod(&agent).and("--service", "api:9090");
    pod.run().code(0);
    assert_eq!(agent.tokens(), tokens(&["token-1", "token-2"]));
    assert_eq!(std::fs::read_to_string(pod.shared("acl-token-api")).unwrap(), "token-2");
    assert_eq!(agent.services().len(), 4);

    let agent = self::agent();
    agent.fault(Route::Register.of("shop_web-0_api-sidecar-proxy"), PERMISSION, Times::Always);
    self::pod(&agent).and("--service", "api:9090").run().code(77);
    assert_eq!(agent.tokens(), tokens(&[]));
    assert_nothing_left(&agent);
}
