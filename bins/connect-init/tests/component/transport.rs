//! TLS and unix sockets.

use scripted_agent::ScriptedAgent;

use crate::pod::{Pod, assert_registered};

fn with_ca_of(pod: Pod, agent: &ScriptedAgent) -> Pod {
    let ca = pod.file("ca.pem", agent.ca_pem());
    pod.with_path("--ca-file", &ca)
}

#[test]
fn an_agent_over_https_is_checked_against_its_ca() {
    let agent = ScriptedAgent::start_tls("127.0.0.1");
    let pod = with_ca_of(Pod::of(&agent), &agent);
    pod.run().code(0);
    assert_registered(&agent);
    // The init container's own file is not there for the pod's other containers.
    let copy = pod.shared("consul-ca.pem");
    assert_eq!(std::fs::read_to_string(&copy).unwrap().trim(), agent.ca_pem().trim());
    assert_eq!(pod.files()["consul-ca.pem"], 0o640);
    assert_eq!(pod.json("registration.json")["agent"]["tls"]["ca_file"], copy.to_str().unwrap());
}

/// Pain 54: the agent's certificate lacks the node's address.
#[test]
fn an_agent_whose_certificate_has_another_name_is_taken_by_that_name() {
    let agent = ScriptedAgent::start_tls("server.dc1.consul");
    let pod = with_ca_of(Pod::of(&agent), &agent);
    pod.run().code(69).says(&["TLS failed", "--tls-server-name"]);
    assert!(agent.requests().is_empty());
    pod.with("--tls-server-name", "server.dc1.consul").run().code(0);
    assert_registered(&agent);
}

#[test]
fn an_agent_of_another_ca_is_not_trusted() {
    let agent = ScriptedAgent::start_tls("127.0.0.1");
    let other = ScriptedAgent::start_tls("127.0.0.1");
    let pod = with_ca_of(Pod::of(&agent), &other);
    pod.run().code(69).says(&["TLS failed", &agent.address(), "hint: check --ca-file"]);
    Pod::of(&agent).run().code(69).says(&["TLS failed", "hint: check --ca-file"]);
    assert!(agent.requests().is_empty());
}

#[test]
fn an_agent_without_tls_is_named_as_the_cause() {
    let agent = ScriptedAgent::start();
    let address = agent.address().replace("http://", "https://");
    let pod = Pod::of(&agent).with("--http-addr", &address).with("--timeout", "1s");
    pod.run().code(69).says(&[&address, "TLS failed", "HTTPS port"]);
}

#[test]
fn an_agent_on_a_unix_socket() {
    let agent = ScriptedAgent::start_unix();
    let pod = Pod::of(&agent);
    pod.run().code(0);
    assert_registered(&agent);
    assert_eq!(pod.json("registration.json")["agent"]["http_addr"], agent.address());
}

#[test]
fn a_unix_socket_that_comes_late_is_waited_for() {
    let agent = ScriptedAgent::start_unix();
    agent.stop_listening();
    let pod = Pod::of(&agent);
    let mut init = pod.start();
    init.await_log("the unix socket does not exist; trying again");
    agent.listen_again();
    assert_eq!(init.end(), Some(0), "{}", init.log());
    assert_registered(&agent);
}

#[test]
fn a_unix_socket_that_never_comes_is_reported() {
    let agent = ScriptedAgent::start_unix();
    agent.stop_listening();
    let pod = Pod::of(&agent).with("--timeout", "1s");
    pod.run().code(69).says(&[&agent.address(), "hint:", "the socket is mounted"]);
}
