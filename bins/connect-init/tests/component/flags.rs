//! A command line that is invalid: each names the input and the accepted form, and
//! nothing is sent.

use std::process::Command;

use testkit::ScriptedAgent;
use testkit::outcome::Outcome;

use crate::pod::{Pod, assert_registered};

#[track_caller]
fn refused(flag: &'static str, value: &str, words: &[&str]) {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent).with(flag, value);
    pod.run().code(64).says(words).says(&[flag]);
    assert!(agent.requests().is_empty());
    assert!(pod.files().is_empty());
}

#[test]
fn a_bad_service() {
    refused("--service", "we b:80", &["we b", "letters"]);
    refused("--service", ":80", &[":80"]);
    refused("--service", "", &["NAME[:PORT]"]);
}

/// Port 0 is registered, and traffic is silently broken. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/195>.
#[test]
fn a_bad_port() {
    refused("--service", "web:0", &["web:0", "1 to 65535"]);
    refused("--service", "web:65536", &["web:65536", "1 to 65535"]);
    refused("--service", "web:http", &["web:http"]);
    refused("--service", "web:20000", &["web:20000", "public listener", "hint:"]);
}

/// An upstream that is half understood is silently dropped. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/224>.
#[test]
fn a_bad_upstream() {
    refused("--upstream", "db", &["db", "name:port"]);
    refused("--upstream", "db:0", &["db:0", "1 to 65535"]);
    refused("--upstream", "db:1234,auth:x", &["auth:x"]);
    refused("--upstream", "db:8080", &["8080", "the port of `web` itself"]);
    refused("--upstream", "db:19000", &["19000", "admin listener"]);
    refused("--upstream", "db:1234,auth:1234", &["1234", "both listen on"]);
}

/// An address that a template made wrong. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/544>.
#[test]
fn a_bad_agent_address() {
    refused("--http-addr", "http://$(HOST_IP):8500", &["$(HOST_IP)", "expected host:port"]);
    refused("--http-addr", "ftp://h:1", &["ftp://h:1", "expected host:port"]);
    refused("--http-addr", "http://:8500", &["expected host:port"]);
    refused("--grpc-addr", "nonsense://x", &["nonsense://x"]);
}

#[test]
fn a_bad_pod_address() {
    refused("--pod-ip", "", &["--pod-ip"]);
    refused("--pod-ip", "web-0", &["web-0", "invalid IP address"]);
}

#[test]
fn bad_meta() {
    refused("--meta", "team", &["team", "expected KEY=VALUE"]);
    refused("--meta", "=a", &["=a", "expected KEY=VALUE"]);
}

#[test]
fn a_bad_length_of_time() {
    refused("--timeout", "2 minutes", &["2 minutes"]);
    refused("--timeout", "-1s", &["-1s"]);
}

#[test]
fn a_bad_admin_listener() {
    refused("--admin-bind", "19000", &["19000", "expected host:port"]);
}

#[test]
fn a_flag_that_must_be_there() {
    let agent = ScriptedAgent::start();
    for flag in ["--service", "--pod-name", "--pod-ip"] {
        Pod::of(&agent).without(flag).run().code(64).says(&[flag]);
    }
    assert!(agent.requests().is_empty());
}

/// Deployments often set variables to nothing, such as `CONSUL_CACERT: ""`.
#[test]
fn a_variable_that_is_set_but_empty_counts_as_absent() {
    let mut help = Command::new(env!("CARGO_BIN_EXE_connect-init"));
    help.arg("--help").env_clear();
    let help = Outcome::of(help).code(0).stdout();
    let variables: Vec<String> = help
        .split("[env: ")
        .skip(1)
        .map(|rest| rest.split(['=', ']']).next().unwrap().to_owned())
        .collect();
    assert!(variables.len() > 30, "{variables:?}");
    let agent = ScriptedAgent::start();
    let mut pod = Pod::of(&agent);
    for variable in variables {
        pod = pod.with_env(variable.leak(), "");
    }
    pod.run().code(0);
    assert_registered(&agent);
}

#[test]
fn an_error_names_the_variable_that_nobody_gave_as_a_flag() {
    let agent = ScriptedAgent::start();
    Pod::of(&agent)
        .with_env("CONNECT_ADMIN_BIND", "19000")
        .with_env("CONNECT_PROMETHEUS_BACKEND_PORT", "http")
        .run()
        .code(64)
        .says(&["hint: the environment variable CONNECT_PROMETHEUS_BACKEND_PORT sets"]);
    Pod::of(&agent)
        .with_env("CONSUL_HTTP_TOKEN", "t")
        .and("--acl-auth-method", "jwt")
        .run()
        .code(64)
        .says(&["hint: the environment variable CONSUL_HTTP_TOKEN sets --token"]);
    assert!(agent.requests().is_empty());
}

#[test]
fn words_and_booleans_are_those_of_consuls_cli() {
    for value in ["1", "TRUE", "0", "f"] {
        let agent = ScriptedAgent::start();
        let pod = Pod::of(&agent).with_env("CONNECT_LOG_LEVEL", "INFO");
        pod.with_env("CONNECT_NO_CENTRAL_CONFIG", value).run().code(0);
        let asks = agent.requests().iter().any(|request| request.path.contains("proxy-defaults"));
        assert_eq!(asks, matches!(value, "0" | "f"), "{value}");
    }
}

#[test]
fn a_password_in_the_address_is_not_repeated() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent).with("--http-addr", "http://me:s3cret@h:1");
    let outcome = pod.run().code(64).says(&["***@h:1", "--http-auth (CONSUL_HTTP_AUTH)"]);
    assert!(!outcome.stderr().contains("s3cret"), "{}", outcome.stderr());
}

/// `kubectl debug --copy-to` takes the annotations away: the variable, which the injector
/// sets by the downward API, is empty then.
#[test]
fn a_copy_of_an_injected_pod_is_not_registered() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent).with_env("CONNECT_INJECT_STATUS", "");
    pod.run().code(64).says(&["copy", "connect-inject-status", "--keep-init-containers=false"]);
    assert!(agent.requests().is_empty());
    let pod = Pod::of(&agent).with_env("CONNECT_INJECT_STATUS", "injected");
    pod.run().code(0);
}
