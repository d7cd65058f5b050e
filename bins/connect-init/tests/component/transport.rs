//! TLS and unix sockets.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use testkit::ScriptedAgent;

use crate::pod::{Pod, SERVICE, assert_registered};

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

/// The agent's certificate lacks the node's address. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/544>.
#[test]
fn an_agent_whose_certificate_has_another_name_is_taken_by_that_name() {
    let agent = ScriptedAgent::start_tls("server.dc1.consul");
    let pod = with_ca_of(Pod::of(&agent), &agent);
    pod.run().code(69).says(&["TLS failed", "hint:", "--tls-server-name"]);
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
fn an_agent_whose_certificate_has_ended_is_named_as_the_cause() {
    let agent = ScriptedAgent::start_expired_tls("127.0.0.1");
    let pod = with_ca_of(Pod::of(&agent), &agent);
    pod.run().code(69).says(&["TLS failed", &agent.address(), "expired", "hint: renew"]);
    let reported = pod.termination_log();
    assert!(reported.contains("expired") && reported.contains("hint:"), "{reported}");
    assert!(agent.requests().is_empty());
}

#[test]
fn each_way_of_giving_the_ca_is_as_good() {
    let agent = ScriptedAgent::start_tls("127.0.0.1");
    let other = ScriptedAgent::start_tls("127.0.0.1");
    let folder = |pod: Pod| {
        let folder = pod.file("ca/one.pem", other.ca_pem());
        pod.file("ca/two.pem", agent.ca_pem());
        let folder = folder.parent().unwrap().to_owned();
        pod.with_path("--ca-path", &folder)
    };
    for pod in [
        with_ca_of(Pod::of(&agent), &agent).by_env("--ca-file", "CONSUL_CACERT"),
        folder(Pod::of(&agent)),
        folder(Pod::of(&agent)).by_env("--ca-path", "CONSUL_CAPATH"),
        Pod::of(&agent).with_env("CONSUL_CACERT_PEM", agent.ca_pem()),
        // Together they are the sum.
        with_ca_of(Pod::of(&agent), &other).with_env("CONSUL_CACERT_PEM", agent.ca_pem()),
    ] {
        pod.run().code(0);
        assert_registered(&agent);
        let copy = std::fs::read_to_string(pod.shared("consul-ca.pem")).unwrap();
        assert!(copy.contains(agent.ca_pem().trim()), "{copy}");
    }
}

#[test]
fn a_ca_that_is_none_is_found_before_anything_is_sent() {
    let agent = ScriptedAgent::start_tls("127.0.0.1");
    let pod = Pod::of(&agent);
    let garbage = pod.file("ca.pem", "garbage");
    for (flag, path) in [
        ("--ca-file", garbage.as_path()),
        ("--ca-file", Path::new("/nonexistent/ca.pem")),
        ("--ca-path", Path::new("/nonexistent")),
    ] {
        Pod::of(&agent).with_path(flag, path).run().code(64).says(&["hint: check", flag]);
    }
    assert!(agent.requests().is_empty());
}

/// The pod's other containers speak to the agent with copies.
#[test]
fn an_agent_that_wants_a_certificate_is_shown_one() {
    let agent = ScriptedAgent::start_mutual_tls("127.0.0.1");
    let pod = with_ca_of(Pod::of(&agent), &agent).with("--timeout", "3s");
    pod.run().code(69).says(&[&agent.address(), "verify_incoming", "--client-cert"]);
    assert!(agent.requests().is_empty());

    let (cert, key) = agent.client_pem();
    let (cert, key) = (pod.file("tls.crt", cert), pod.file("tls.key", key));
    let pod = pod.with_path("--client-cert", &cert).with_path("--client-key", &key);
    pod.with("--timeout", "1m").run().code(0);
    assert_registered(&agent);
}

#[test]
fn the_copies_of_a_client_certificate_are_as_good() {
    let agent = ScriptedAgent::start_mutual_tls("127.0.0.1");
    let (cert, key) = agent.client_pem();
    let pod = with_ca_of(Pod::of(&agent), &agent);
    let (cert, key) = (pod.file("tls.crt", cert), pod.file("tls.key", key));
    let pod = pod.with_path("--client-cert", &cert).with_path("--client-key", &key);
    pod.run().code(0);
    let record = pod.json("registration.json");
    let tls = &record["agent"]["tls"];
    let files = pod.files();
    assert_eq!((files["client-cert.pem"], files["client-key.pem"]), (0o640, 0o600));

    // As connect-lifecycle would: with nothing but what the record names.
    std::fs::remove_dir_all(cert.parent().unwrap()).unwrap();
    let mut again = Pod::of(&agent);
    for (flag, key) in
        [("--ca-file", "ca_file"), ("--client-cert", "client_cert"), ("--client-key", "client_key")]
    {
        again = again.with(flag, tls[key].as_str().unwrap());
    }
    again.run().code(0);
}

#[test]
fn user_and_password_go_with_every_request_and_into_a_file_of_their_own() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent).with_env("CONSUL_HTTP_AUTH", "ann:s3cret");
    let outcome = pod.run().code(0);
    for request in agent.requests() {
        // `printf ann:s3cret | base64`
        assert_eq!(request.authorization.as_deref(), Some("Basic YW5uOnMzY3JldA=="));
    }
    assert_eq!(std::fs::read_to_string(pod.shared("http-auth")).unwrap(), "ann:s3cret");
    assert_eq!(pod.files()["http-auth"], 0o600);
    let record = pod.json("registration.json");
    assert_eq!(record["agent"]["http_auth_file"], pod.shared("http-auth").to_str().unwrap());
    assert!(!record.to_string().contains("s3cret") && !outcome.stderr().contains("s3cret"));
}

/// The token would go over the network in plain text otherwise.
#[test]
fn https_may_be_demanded_by_the_environment() {
    let agent = ScriptedAgent::start_tls("127.0.0.1");
    let bare = agent.address().replace("https://", "");
    for address in [bare.clone(), format!("http://{bare}")] {
        let pod = with_ca_of(Pod::of(&agent).with("--http-addr", &address), &agent);
        pod.with_env("CONSUL_HTTP_SSL", "TRUE").run().code(0);
        assert_registered(&agent);
    }
    let pod = with_ca_of(Pod::of(&agent).with("--http-addr", &bare), &agent);
    pod.with_env("CONSUL_HTTP_SSL", "0").with("--timeout", "1s").run().code(69);
}

#[test]
fn the_check_of_the_agents_certificate_may_be_turned_off() {
    let agent = ScriptedAgent::start_tls("server.dc1.consul");
    agent.about(serde_json::json!({"xDS": {"Ports": {"Plaintext": 8502, "TLS": -1}}}));
    let pod = Pod::of(&agent).with_env("CONSUL_HTTP_SSL_VERIFY", "false");
    pod.run().code(0).says(&["WARN", "certificate is not checked"]);
    assert_registered(&agent);
    // connect-lifecycle must be able to reach it as well.
    assert_eq!(pod.json("registration.json")["agent"]["tls"]["skip_verify"], true);
}

/// A CA is given, so that the agent's TLS port is taken, with the certificate that
/// `tls.grpc.verify_incoming` requires.
#[test]
fn envoy_is_fed_over_tls_with_the_certificate_that_was_given() {
    let agent = ScriptedAgent::start_mutual_tls("127.0.0.1");
    agent.about(serde_json::json!({"xDS": {"Ports": {"Plaintext": 8502, "TLS": 8503}}}));
    let (cert, key) = agent.client_pem();
    let pod = with_ca_of(Pod::of(&agent).without("--grpc-addr"), &agent);
    let (cert, key) = (pod.file("tls.crt", cert), pod.file("tls.key", key));
    let pod = pod.with_path("--client-cert", &cert).with_path("--client-key", &key);
    pod.run().code(0);
    let cluster = &pod.json("envoy-bootstrap.json")["static_resources"]["clusters"][0];
    let text = cluster.to_string();
    assert!(text.contains(r#""port_value":8503"#), "{text}");
    let context = &cluster["transport_socket"]["typed_config"]["common_tls_context"];
    // The copies, which the sidecar sees.
    let files = &context["tls_certificates"][0];
    let copies = ["client-cert.pem", "client-key.pem"].map(|name| pod.shared(name));
    assert_eq!(files["certificate_chain"]["filename"], copies[0].to_str().unwrap());
    assert_eq!(files["private_key"]["filename"], copies[1].to_str().unwrap());
}

/// Up to Consul 1.13, an agent with HTTPS serves xDS over TLS on its one port.
#[test]
fn an_old_agent_with_https_feeds_envoy_over_tls() {
    let agent = ScriptedAgent::start_tls("127.0.0.1");
    agent.about(serde_json::json!({"DebugConfig": {"GRPCPort": 8502, "HTTPSPort": 8501}}));
    for pod in [Pod::of(&agent), Pod::of(&agent).without("--grpc-addr")] {
        let pod = with_ca_of(pod, &agent);
        pod.run().code(0);
        let clusters = pod.json("envoy-bootstrap.json")["static_resources"]["clusters"].to_string();
        assert!(clusters.contains(r#""port_value":8502"#), "{clusters}");
        assert!(clusters.contains("UpstreamTlsContext"), "{clusters}");
    }
}

/// Reported in <https://github.com/hashicorp/consul/issues/10291>.
#[test]
fn an_agent_and_a_pod_of_ipv6() {
    let has_it = Path::new("/proc/net/if_inet6").exists();
    let has_it = has_it.then_some(()).ok_or_else(|| "this machine has no IPv6".to_owned());
    let Some(()) = testkit::or_skip(has_it) else { return };
    for agent in [ScriptedAgent::start_v6(), ScriptedAgent::start_tls_v6()] {
        let mut pod = Pod::of(&agent)
            .with("--pod-ip", "fd00::7")
            .with("--grpc-addr", "[fd00::1]:8502")
            .with("--admin-bind", "[::1]:19000");
        if agent.address().starts_with("https") {
            pod = with_ca_of(pod, &agent);
        }
        // With brackets, and as a kubelet makes it from `http://$(HOST_IP):8500`.
        let bare = agent.address().replace(['[', ']'], "");
        for address in [agent.address(), bare] {
            pod = pod.with("--http-addr", &address);
            pod.run().code(0);
            assert_registered(&agent);
            assert_eq!(agent.services()[SERVICE]["Address"], "fd00::7");
            assert_eq!(pod.json("registration.json")["agent"]["http_addr"], agent.address());
            let bootstrap = pod.json("envoy-bootstrap.json");
            assert!(bootstrap["static_resources"].to_string().contains(r#""address":"fd00::1""#));
            assert_eq!(bootstrap["admin"]["address"]["socket_address"]["address"], "::1");
        }
        agent.stop_listening();
        pod.with("--timeout", "1s").run().code(69).says(&[&agent.address(), "connection refused"]);
    }
}

#[test]
fn envoy_is_fed_over_a_unix_socket() {
    let agent = ScriptedAgent::start_unix();
    let pod = Pod::of(&agent).with("--grpc-addr", "unix:///run/consul/grpc.sock");
    pod.run().code(0);
    let bootstrap = pod.json("envoy-bootstrap.json");
    let text = bootstrap["static_resources"].to_string();
    assert!(text.contains(r#""pipe":{"path":"/run/consul/grpc.sock"}"#), "{text}");
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

/// Waiting for it heals nothing.
#[test]
fn a_unix_socket_that_the_pods_user_may_not_open_is_final() {
    let agent = ScriptedAgent::start_unix();
    let socket = agent.address().replace("unix://", "");
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(Path::new(&socket).parent().unwrap(), 0o755);
    mode(Path::new(&socket), 0);
    let pod = Pod::of(&agent).by_an_ordinary_user();
    mode(&pod.shared(""), 0o777);
    let outcome = pod.run().code(69).says(&["no permission", &socket, "hint:", "`unix_sockets`"]);
    assert!(!outcome.stderr().contains("trying again"), "{}", outcome.stderr());
    assert!(agent.requests().is_empty());
    mode(Path::new(&socket), 0o777);
    pod.run().code(0);
}
