//! Protocols through the mesh: HTTP/1, HTTP/2, gRPC, websocket and server-sent events.

use std::io::{Read, Write};

use harness::kubelet::Pod;
use harness::runtime::image;
use harness::{load, until};
use serde_json::{Value, json};

use crate::mesh::{Mesh, UPSTREAM, server, started, status};

impl Mesh {
    /// A server that runs the application, and its client.
    pub(crate) fn application(&self, annotations: &Value) -> [Pod<'_>; 2] {
        self.application_with(annotations, &Value::Null)
    }

    fn application_with(&self, annotations: &Value, lifecycle: &Value) -> [Pod<'_>; 2] {
        let mut pod = server("api-1", annotations, lifecycle);
        let container = &mut pod["spec"]["containers"][0];
        container["image"] = image::APPLICATION.into();
        container["args"] = json!(["0.0.0.0:8080"]);
        // As process 1 without a handler, the application ignores SIGTERM, and is killed at
        // the end of this period.
        pod["spec"]["terminationGracePeriodSeconds"] = json!(15);
        let server = started(&self.node, &self.injector, &pod);
        let client = self.client();
        until("the application", || {
            ["--http1.1", "--http2-prior-knowledge"]
                .iter()
                .any(|version| status(&client, "/", &[version]) == "200")
        })
        .unwrap();
        [server, client]
    }
}

/// curl's output in the client's pod, headers and trailers included.
fn curl(client: &Pod<'_>, command: &str) -> String {
    let command = format!("{command} http://127.0.0.1:{UPSTREAM}");
    let output = client.exec("web", &["sh", "-c", &command]).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {}: {text}", output.status);
    text
}

/// A gRPC message: not compressed, three bytes.
const CALL: &str = r"printf '\0\0\0\0\003abc' | curl -sSi --http2-prior-knowledge --data-binary @- \
    -H 'content-type: application/grpc' -H 'te: trailers'";

#[test]
fn grpc_calls_are_answered_with_their_trailers_over_grpc() {
    call("grpc");
}

#[test]
fn grpc_calls_are_answered_with_their_trailers_over_http2() {
    call("http2");
}

fn call(protocol: &str) {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    mesh.speak(protocol);
    let [mut server, client] = mesh.application(&json!({}));
    let answer = curl(&client, CALL);
    assert!(answer.contains("abc") && answer.contains("grpc-status: 0"), "{answer}");
    server.await_xds().unwrap();
}

#[test]
fn a_websocket_works_through_an_http_service() {
    upgrade("http");
}

#[test]
fn a_websocket_works_through_a_tcp_service() {
    upgrade("tcp");
}

fn upgrade(protocol: &str) {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    mesh.speak(protocol);
    let [_server, client] = mesh.application(&json!({}));
    let mut stream = load::connect(&client.network(), UPSTREAM).unwrap();
    let request = "GET / HTTP/1.1\r\nhost: test\r\n\
        connection: upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    for message in [b"ping", b"pong"] {
        stream.write_all(message).unwrap();
        let mut echo = [0; 4];
        stream.read_exact(&mut echo).unwrap();
        assert_eq!(&echo, message);
    }
}

/// Envoy ends a request after 15 s unless both sides have another timeout.
#[test]
fn an_event_stream_outlives_the_default_timeout_if_both_sides_have_another() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    mesh.speak("http");
    mesh.configure(&json!({"Kind": "service-router", "Name": "api", "Routes": [
        {"Destination": {"RequestTimeout": "1h"}},
    ]}));
    let config = json!({"local_request_timeout_ms": 0}).to_string();
    let [_server, client] = mesh.application(&json!({"proxy-config-map": config}));
    let url = format!("http://127.0.0.1:{UPSTREAM}/events/170");
    let output = client.exec("web", &["curl", "-sSN", &url]).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.matches("data: event").count(), 170);
}

/// As the troubleshooting page says. Nothing in the server's pod can choose another code:
/// the response has begun, so the client's Envoy can only reset the stream.
#[test]
fn a_stream_that_outlives_the_drain_is_reset_as_an_internal_error() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    mesh.speak("http2");
    let budget = json!({"sidecar-proxy-lifecycle-shutdown-grace-period-seconds": "1"});
    // The application outlives the drain.
    let lifecycle = json!({"preStop": {"exec": {"command": ["sleep", "5"]}}});
    let [server, client] = mesh.application_with(&budget, &lifecycle);
    let url = format!("http://127.0.0.1:{UPSTREAM}/events/100000");
    let line = format!("curl -sSN --http2-prior-knowledge {url} > /tmp/events 2> /tmp/said &");
    client.exec("web", &["sh", "-c", &line]).unwrap();
    let has = |file: &str| {
        let seen = client.exec("web", &["test", "-s", file]);
        seen.is_ok_and(|seen| seen.status.success())
    };
    until("the first event", || has("/tmp/events")).unwrap();
    // The drain's end cuts it, not the application's. The log goes with the pod.
    let log = std::fs::File::open(server.log_file("envoy-sidecar")).unwrap();
    server.stop().unwrap();
    let log = std::io::read_to_string(log).unwrap();
    assert!(log.contains("closing open connections"), "the drain goes on: {log}");
    until("curl's end", || has("/tmp/said")).unwrap();
    let output = client.exec("web", &["cat", "/tmp/said"]).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("INTERNAL_ERROR"), "{said}");
}
