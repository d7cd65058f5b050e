//! An agent that says no, at each step.

use serde_json::json;
use testkit::{Fault, Route, ScriptedAgent, Times};

use crate::pod::{PROXY, Pod, SERVICE, assert_nothing_left};

const DENIED: Fault = Fault::Status(403, "Permission denied: Missing service:write on web");
const INVALID: Fault = Fault::Status(400, "Invalid Service Meta: Key contains invalid characters");

/// An opaque 403. Reported in <https://github.com/hashicorp/consul-helm/issues/202>.
#[test]
fn a_denial_is_final_and_names_the_rule() {
    let agent = ScriptedAgent::start();
    agent.fault(Route::Register, DENIED, Times::Always);
    let pod = Pod::of(&agent);
    pod.run().code(77).says(&[
        "403 Permission denied: Missing service:write on web",
        "hint: the ACL token lacks a rule",
    ]);
    assert!(pod.termination_log().contains("Missing service:write on web"));
    assert_eq!(agent.asked(Route::Register).len(), 1);
}

#[test]
fn a_refusal_is_final_and_repeats_the_agents_words() {
    let agent = ScriptedAgent::start();
    agent.fault(Route::Register, INVALID, Times::Always);
    Pod::of(&agent).run().code(78).says(&["400 Invalid Service Meta", "hint:"]);
    assert_eq!(agent.asked(Route::Register).len(), 1);
}

#[test]
fn a_service_whose_proxy_is_refused_is_taken_back() {
    for (fault, code) in [(DENIED, 77), (INVALID, 78)] {
        let agent = ScriptedAgent::start();
        agent.fault(Route::Register.of(PROXY), fault, Times::Always);
        let pod = Pod::of(&agent);
        pod.run()
            .code(code)
            .says(&["cannot register service `shop_web-0_web`", "its sidecar proxy"]);
        assert_nothing_left(&agent);
        assert_eq!(pod.files().into_keys().collect::<Vec<_>>(), ["connect-lifecycle", "lock"]);
    }
}

#[test]
fn what_cannot_be_taken_back_is_said_besides_the_cause() {
    let agent = ScriptedAgent::start();
    agent.fault(Route::Register.of(PROXY), INVALID, Times::Always);
    agent.fault(Route::Deregister.of(SERVICE), DENIED, Times::Always);
    Pod::of(&agent).run().code(78).says(&[
        "400 Invalid Service Meta",
        "shop_web-0_web is left on the agent",
        "TTL check expires",
    ]);
}

#[test]
fn central_configuration_that_cannot_be_honoured_leaves_nothing_registered() {
    for (key, value) in [
        ("envoy_stats_tags", json!({"a": 1})),
        ("envoy_prometheus_bind_addr", json!("9102")),
        ("envoy_extra_static_clusters_json", json!("{")),
    ] {
        let agent = ScriptedAgent::start();
        agent.proxy_config(key, value);
        let pod = Pod::of(&agent);
        pod.run().code(64).says(&["the bootstrap of `shop_web-0_web-sidecar-proxy`", key]);
        assert_nothing_left(&agent);
        assert!(!pod.files().contains_key("envoy-bootstrap.json"));
    }
}

#[test]
fn a_proxy_that_is_gone_when_it_is_read_back_leaves_nothing_registered() {
    let agent = ScriptedAgent::start();
    agent.fault(
        Route::Service.of(PROXY),
        Fault::Status(404, "unknown service ID: shop_web-0_web-sidecar-proxy"),
        Times::N(1),
    );
    Pod::of(&agent).run().code(1).says(&["is not on the agent any more", "hint:"]);
    assert_nothing_left(&agent);
}

/// A token that may not read the central configuration is no reason to have no sidecar.
#[test]
fn access_logs_that_may_not_be_read_are_left_out_with_a_warning() {
    let agent = ScriptedAgent::start();
    agent.fault(Route::Config, Fault::Status(403, "Permission denied"), Times::Always);
    Pod::of(&agent).run().code(0).says(&["WARN", "access logs", "403 Permission denied"]);
}

#[test]
fn an_agent_without_grpc_is_reported_and_nothing_is_left() {
    let agent = ScriptedAgent::start();
    agent.about(json!({"DebugConfig": {"GRPCPort": -1}}));
    Pod::of(&agent)
        .without("--grpc-addr")
        .run()
        .code(64)
        .says(&["gRPC is off on the agent", "hint: set `ports { grpc = 8502 }`"]);
    assert_nothing_left(&agent);
    assert!(agent.asked(Route::Register).is_empty());
    // Consul 1.14 says it like this.
    agent.about(json!({"xDS": {"Ports": {"Plaintext": -1, "TLS": -1}}}));
    Pod::of(&agent).without("--grpc-addr").run().code(64).says(&["gRPC is off on the agent"]);
    assert!(agent.asked(Route::Register).is_empty());
}

/// An agent with TLS only, and no CA for it, is found out before anything is sent.
#[test]
fn an_agent_with_grpc_over_tls_only_requires_a_ca_before_anything_is_registered() {
    let agent = ScriptedAgent::start();
    agent.about(json!({"xDS": {"Ports": {"Plaintext": -1, "TLS": 8503}}}));
    for pod in [Pod::of(&agent).without("--grpc-addr"), Pod::of(&agent)] {
        pod.run().code(64).says(&["--grpc-ca-file", "/v1/connect/ca/roots?pem=true"]);
    }
    assert!(agent.requests().iter().all(|request| request.method == "GET"));
}

/// What another pod has registered under the same id.
fn seed_of_another(agent: &ScriptedAgent, pod: &str, namespace: &str, lease: &str) {
    agent.seed(json!({
        "ID": SERVICE,
        "Name": "web",
        "Address": "10.0.0.8",
        "Meta": {"pod-name": pod, "k8s-namespace": namespace},
        "Checks": [{"CheckID": format!("{SERVICE}-lease"), "Name": "Pod Lease", "TTL": "30s", "Status": lease}],
    }));
}

#[test]
fn an_id_of_another_pod_that_lives_is_left_to_it() {
    for (pod, namespace, other) in
        [("web-0", "staging", "staging/web-0"), ("web", "shop", "shop/web")]
    {
        let agent = ScriptedAgent::start();
        seed_of_another(&agent, pod, namespace, "passing");
        let services = agent.services();
        Pod::of(&agent).run().code(78).says(&[
            "cannot register service `shop_web-0_web`",
            "of pod `shop/web-0`",
            &format!("that of pod `{other}` at 10.0.0.8"),
            "hint: rename",
        ]);
        assert_eq!(agent.services(), services);
        assert_eq!(agent.asked(Route::Register).len(), 0);
        assert_eq!(agent.asked(Route::Deregister).len(), 0);
    }
}

#[test]
fn an_id_of_a_dead_pod_or_of_the_same_one_is_taken_over() {
    for (namespace, lease) in [("staging", "critical"), ("shop", "passing")] {
        let agent = ScriptedAgent::start();
        seed_of_another(&agent, "web-0", namespace, lease);
        Pod::of(&agent).run().code(0);
        assert_eq!(agent.services()[SERVICE]["Address"], "10.0.0.7");
    }
}

#[test]
fn an_agent_that_cannot_tell_whose_an_id_is_registers_all_the_same() {
    for fault in [DENIED, Fault::Status(500, "No cluster leader")] {
        let agent = ScriptedAgent::start();
        agent.fault(Route::Service.of(SERVICE), fault, Times::Always);
        Pod::of(&agent).run().code(0);
    }
}
