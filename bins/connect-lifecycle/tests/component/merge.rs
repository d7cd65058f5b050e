//! Merged metrics.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;

use testkit::{Port, Process, ScriptedAgent};

use crate::pod::{Pod, await_alive};

const BOTH: &str = "# TYPE envoy_up gauge\nenvoy_up 1\n";

/// Starts a sidecar that serves merged metrics. The test holds the port until the sidecar
/// listens on it.
fn run(pod: &Pod, merged: &Port, application: &Port, path: &str) -> Process {
    let [merged, application] = [merged, application].map(|port| port.address().port().to_string());
    pod.run_with(&[
        "--merged-metrics-port",
        &merged,
        "--service-metrics-port",
        &application,
        "--service-metrics-path",
        path,
    ])
}

/// Status and body of the response.
fn scrape(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(testkit::PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().to_owned(), body.to_owned())
}

/// An application that answers one request; returns the request.
fn answers(listener: TcpListener, answer: impl Into<Vec<u8>>) -> JoinHandle<String> {
    let answer = answer.into();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut question = [0; 4096];
        let length = stream.read(&mut question).unwrap();
        // The client may disconnect before everything is written.
        let _ = stream.write_all(&answer);
        String::from_utf8_lossy(&question[..length]).into_owned()
    })
}

fn success(envoy: u8, application: u8) -> String {
    format!(
        "# TYPE connect_merged_envoy_metrics_success gauge\n\
         connect_merged_envoy_metrics_success {envoy}\n\
         # TYPE consul_merged_service_metrics_success gauge\n\
         consul_merged_service_metrics_success {application}\n"
    )
}

#[test]
fn one_scrape_returns_both() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let (merged, application) = (Port::keep(), Port::keep());
    let body = "app_up 1\n# EOF\n";
    let asked = answers(
        application.listen(),
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()),
    );
    let _sidecar = run(&pod, &merged, &application, "/own?x=1");
    await_alive(&agent);
    let (status, page) = scrape(merged.address(), "/stats/prometheus");
    assert_eq!(status, "200");
    assert_eq!(page, format!("{BOTH}app_up 1\n{}", success(1, 1)));
    let question = asked.join().unwrap();
    assert!(question.starts_with("GET /own?x=1 HTTP/1.1\r\n"), "{question}");
    assert_eq!(scrape(merged.address(), "/").0, "404");
}

#[test]
fn an_application_without_metrics_is_reported() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let (merged, application) = (Port::keep(), Port::keep());
    let sidecar = run(&pod, &merged, &application, "/metrics");
    await_alive(&agent);
    let missing = format!("{BOTH}{}", success(1, 0));
    let page = || scrape(merged.address(), "/stats/prometheus").1;
    assert_eq!(page(), missing);
    sidecar.await_log("the metrics of the application at http://127.0.0.1:");
    sidecar.await_log("Connection refused");

    let refused = answers(application.listen(), "HTTP/1.1 500 No\r\ncontent-length: 3\r\n\r\nx 1");
    assert_eq!(page(), missing);
    refused.join().unwrap();
    sidecar.await_log("status 500");

    // The truncated line is dropped, so that the lines that follow stay valid.
    let cut = answers(application.listen(), "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\na 1\nb");
    assert_eq!(page(), format!("{BOTH}a 1\n{}", success(1, 0)));
    cut.join().unwrap();
}

#[test]
fn an_application_that_keeps_sending_is_cut_off() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let (merged, application) = (Port::keep(), Port::keep());
    let sidecar = run(&pod, &merged, &application, "/metrics");
    await_alive(&agent);
    let page = || scrape(merged.address(), "/stats/prometheus").1;
    let long = b"x 1\n".repeat(5 << 20);
    let huge = answers(application.listen(), [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &long].concat());
    let seen = page();
    assert!(seen.ends_with(&format!("x 1\n{}", success(1, 0))));
    assert!(seen.len() < 17 << 20, "{}", seen.len());
    huge.join().unwrap();
    sidecar.await_log("more than 16777216 bytes");

    let listener = application.listen();
    assert_eq!(page(), format!("{BOTH}{}", success(1, 0)));
    sidecar.await_log("not complete within 4s");
    drop(listener);
}

/// One client that stopped reading blocked all others.
#[test]
fn a_client_that_stops_reading_does_not_block_others() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let (merged, application) = (Port::keep(), Port::keep());
    let listener = application.listen();
    let _sidecar = run(&pod, &merged, &application, "/metrics");
    await_alive(&agent);
    let mut stuck = TcpStream::connect(merged.address()).unwrap();
    write!(stuck, "GET /stats/prometheus HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    // More than fits into the buffers of both connections.
    let (mut endless, _) = listener.accept().unwrap();
    let flood = std::thread::spawn(move || {
        let _ = endless.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while endless.write_all(&b"x 1\n".repeat(1 << 14)).is_ok() {}
    });
    let short = answers(listener, "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\na 1");
    let (_, page) = scrape(merged.address(), "/stats/prometheus");
    assert_eq!(page, format!("{BOTH}a 1\n{}", success(1, 1)));
    short.join().unwrap();
    // It is disconnected.
    flood.join().unwrap();
}

#[test]
fn an_envoy_without_metrics_is_reported() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    // Nothing listens on port 1.
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    pod.write("registration.json", &pod.record(&agent, nowhere).to_string());
    let (merged, application) = (Port::keep(), Port::keep());
    let sidecar = run(&pod, &merged, &application, "/metrics");
    await_alive(&agent);
    let asked = answers(application.listen(), "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nx 1");
    let (_, page) = scrape(merged.address(), "/stats/prometheus");
    assert_eq!(page, format!("x 1\n{}", success(0, 1)));
    asked.join().unwrap();
    sidecar.await_log("the metrics of Envoy at http://127.0.0.1:1/stats/prometheus are missing");
}

#[test]
fn a_port_in_use_is_reported() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let (merged, application) = (Port::keep(), Port::keep());
    let _taken = merged.listen();
    let mut sidecar = run(&pod, &merged, &application, "/metrics");
    assert_eq!(sidecar.end(), Some(1), "{}", sidecar.log());
    sidecar.await_log("cannot serve merged metrics at 127.0.0.1:");
    sidecar.await_log("hint: set --merged-metrics-port to");
}
