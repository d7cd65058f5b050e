//! Kubelet probes that can't go through Envoy: the kubelet sends a request to the sidecar,
//! which runs the probe over loopback.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use testkit::process::await_that;
use testkit::{PATIENCE, Port, ScriptedAgent};

use crate::pod::{Pod, await_alive};

/// The status of a response.
fn status(address: SocketAddr, question: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "{question} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn the_response_says_whether_a_probe_succeeds() {
    let (agent, application, relay) = (ScriptedAgent::start(), Port::keep(), Port::keep());
    let pod = Pod::of(&agent);
    let (port, at) = (application.address().port(), relay.address());
    let tcp = format!(r#"/web/livenessProbe={{"tcpSocket":{{"port":{port}}}}}"#);
    let http = format!(r#"/web/startupProbe={{"httpGet":{{"port":{port},"path":"/a=b"}}}}"#);
    let flags = ["--probe-port", &at.port().to_string(), "--probe", &tcp, "--probe", &http];
    let sidecar = pod.run_with(&flags);
    await_alive(&agent);
    let live = || status(at, "GET /web/livenessProbe");
    assert_eq!(live(), "503");
    assert_eq!(status(at, "GET /web/startupProbe"), "503");
    let listener = application.listen();
    assert_eq!([live(), live()], ["200", "200"]);
    drop(listener);
    // A process that another test starts may have a copy of it for a moment.
    await_that("the probe to fail", || live() == "503");
    assert_eq!(live(), "503");
    for other in ["GET /", "GET /web", "POST /web/livenessProbe"] {
        assert_eq!(status(at, other), "404", "{other}");
    }
    // Each change is logged once, with the reason.
    let log = sidecar.log();
    let told = |words: &str| log.matches(&format!("the probe /web/livenessProbe {words}")).count();
    let action = format!("(TCP on port {port})");
    assert_eq!(told(&format!("{action} fails: cannot connect to")), 2, "{log}");
    assert_eq!(told(&format!("{action} succeeds again")), 1, "{log}");
}

#[test]
fn clients_that_hold_connections_open_do_not_lock_the_kubelet_out() {
    let (agent, relay) = (ScriptedAgent::start(), Port::keep());
    let pod = Pod::of(&agent);
    let at = relay.address();
    let probe =
        format!(r#"/web/livenessProbe={{"tcpSocket":{{"port":{}}}}}"#, pod.envoy.admin().port());
    let _sidecar = pod.run_with(&["--probe-port", &at.port().to_string(), "--probe", &probe]);
    await_alive(&agent);
    let held: Vec<_> = (0..100).map(|_| TcpStream::connect(at).unwrap()).collect();
    assert_eq!(status(at, "GET /web/livenessProbe"), "200");
    drop(held);
}

#[test]
fn an_invalid_probe_is_rejected() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    for (probe, problem) in [
        ("web", "expected /PATH=JSON"),
        ("web={}", "expected /PATH=JSON"),
        ("/web={}", "it has no action"),
        (r#"/web={"exec":{}}"#, "it runs a command"),
    ] {
        let mut sidecar = pod.run_with(&["--probe-port", "1", "--probe", probe]);
        sidecar.await_log(problem);
        assert_eq!(sidecar.end(), Some(64), "{probe}");
    }
}
