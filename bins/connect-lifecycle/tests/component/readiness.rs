//! The application's readiness probe, run inside the pod, decides whether Consul sends
//! traffic.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use rcgen::generate_simple_self_signed;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use testkit::{Port, Process, Request, ScriptedAgent};
use tokio::net::TcpStream;

use crate::pod::{APPLICATION, PROXY_LEASE, Pod, await_alive};

/// A scripted application, and the requests that it received.
struct App {
    answer: Arc<Mutex<String>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl App {
    /// An application that speaks HTTP, in plain text or over TLS.
    fn on(listener: TcpListener, tls: Option<Arc<ServerConfig>>, answer: &str) -> Self {
        let app = Self { answer: Arc::new(Mutex::new(answer.to_owned())), asked: Arc::default() };
        let (answer, asked) = (Arc::clone(&app.answer), Arc::clone(&app.asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let answer = answer.lock().unwrap().clone();
                // Noted before it is answered: a test that sees the outcome sees the question.
                let note = |question| asked.lock().unwrap().push(question);
                match &tls {
                    None => exchange(stream, note, &answer),
                    Some(tls) => {
                        let connection = ServerConnection::new(Arc::clone(tls)).unwrap();
                        exchange(StreamOwned::new(connection, stream), note, &answer);
                    }
                }
            }
        });
        app
    }

    fn answers(&self, status: &str) {
        *self.answer.lock().unwrap() = with_status(status);
    }

    fn first_question(&self) -> String {
        self.asked.lock().unwrap()[0].clone()
    }

    fn looks(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

/// Reads a request's head, notes it, and answers.
fn exchange(mut stream: impl Read + Write, note: impl FnOnce(String), answer: &str) {
    let mut question = Vec::new();
    let mut byte = [0];
    while !question.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
        question.push(byte[0]);
    }
    note(String::from_utf8_lossy(&question).into_owned());
    // The client may be gone.
    let _ = stream.write_all(answer.as_bytes());
    let _ = stream.flush();
}

fn with_status(status: &str) -> String {
    let body = "as the test says\n";
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn run(pod: &Pod, probe: &Value) -> Process {
    pod.run_with(&["--readiness-probe", &probe.to_string()])
}

fn await_status(agent: &ScriptedAgent, status: &str) {
    agent.await_that("the application's status", |state| state.model.is(status, APPLICATION));
}

fn output(agent: &ScriptedAgent) -> String {
    agent.check(APPLICATION).unwrap().output
}

/// Waits until the check's output contains these words.
fn await_output(agent: &ScriptedAgent, words: &str) {
    let waiting = Instant::now();
    while !output(agent).contains(words) {
        assert!(waiting.elapsed() < testkit::PATIENCE, "`{words}` is not said: {}", output(agent));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An application whose readiness probe failed still got traffic.
#[test]
fn an_http_probe_decides_after_as_many_results_as_its_thresholds_say() {
    let agent = ScriptedAgent::start();
    let port = Port::keep();
    let pod = Pod::with_application(&agent, &port);
    let app = App::on(port.listen(), None, &with_status("503 No"));
    let number = port.address().port();
    let headers =
        json!([{"name": "X-Probe", "value": "a $(B)"}, {"name": "Accept", "value": "text/x"}]);
    let sidecar = run(
        &pod,
        &json!({"httpGet": {"path": "/ready?a=b", "port": number, "httpHeaders": headers},
            "periodSeconds": 1, "failureThreshold": 2, "successThreshold": 2}),
    );
    await_alive(&agent);
    let waiting = Instant::now();
    while app.looks() == 0 {
        assert!(waiting.elapsed() < testkit::PATIENCE);
        std::thread::sleep(Duration::from_millis(10));
    }
    let question = app.first_question().to_lowercase();
    assert!(question.starts_with("get /ready?a=b http/1.1\r\n"), "{question}");
    for header in [
        "x-probe: a $(b)\r\n",
        "accept: text/x\r\n",
        "user-agent: kube-probe/",
        // The pod's address, as in the kubelet's requests.
        &format!("host: 10.0.0.7:{number}\r\n"),
    ] {
        assert!(question.contains(header), "{question}");
    }
    assert_eq!(agent.check(APPLICATION).unwrap().status, "critical");

    app.answers("200 OK");
    await_status(&agent, "passing");
    let looks = app.looks();
    app.answers("500 No");
    await_status(&agent, "critical");
    assert!(app.looks() >= looks + 2, "one failure is not enough");
    await_output(&agent, "fails: HTTP status 500 as the test says");
    app.answers("204 None");
    await_status(&agent, "passing");
    sidecar.await_log(&format!("readiness probe (HTTP GET /ready?a=b on port {number}) succeeds"));
}

/// Traffic starts as soon as the application is ready, even if the probe's period is long.
#[test]
fn an_application_that_is_starting_is_probed_often() {
    let agent = ScriptedAgent::start();
    let port = Port::keep();
    let pod = Pod::with_application(&agent, &port);
    let probe = json!({"tcpSocket": {"port": port.address().port()}, "periodSeconds": 3600});
    let _sidecar = run(&pod, &probe);
    await_alive(&agent);
    await_output(&agent, "fails: cannot connect to 127.0.0.1:");
    let _listener = port.listen();
    // Long before the next period.
    await_status(&agent, "passing");
}

#[test]
fn an_https_probe_accepts_any_certificate() {
    let agent = ScriptedAgent::start();
    let port = Port::keep();
    let pod = Pod::with_application(&agent, &port);
    let made = generate_simple_self_signed(["elsewhere.test".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config =
        ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
    let app = App::on(port.listen(), Some(config.into()), &with_status("200 OK"));
    let probe =
        json!({"httpGet": {"port": port.address().port(), "scheme": "HTTPS"}, "periodSeconds": 1});
    let _sidecar = run(&pod, &probe);
    await_status(&agent, "passing");
    app.answers("404 No");
    await_status(&agent, "critical");
    await_output(&agent, "HTTP status 404");
}

/// As in the kubelet: a redirect within the pod is followed, and a redirect to another host
/// is a success.
#[test]
fn redirects_are_followed_within_the_pod() {
    let agent = ScriptedAgent::start();
    // A new output of the same status is sent with the next heartbeat.
    agent.longest_wait(Duration::from_millis(100));
    let (port, other) = (Port::keep(), Port::keep());
    let pod = Pod::with_application(&agent, &port);
    let redirect =
        |to: &str| format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n");
    let there = format!("http://10.0.0.7:{}/there", other.address().port());
    let app = App::on(port.listen(), None, &redirect(&there));
    let second = App::on(other.listen(), None, &with_status("503 No"));
    let probe = json!({"httpGet": {"port": port.address().port()}, "periodSeconds": 1, "failureThreshold": 1});
    let _sidecar = run(&pod, &probe);
    await_output(&agent, "HTTP status 503");
    assert!(second.first_question().starts_with("GET /there HTTP/1.1\r\n"));
    second.answers("200 OK");
    await_status(&agent, "passing");
    *app.answer.lock().unwrap() = redirect("/");
    await_status(&agent, "critical");
    await_output(&agent, "stopped after 10 redirects");
    *app.answer.lock().unwrap() = redirect("http://elsewhere.test/login");
    await_status(&agent, "passing");
}

/// A probe may take longer than the time between heartbeats, which is at most 10 s.
#[test]
fn a_slow_application_is_ready_and_a_silent_one_is_not() {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(100));
    let port = Port::keep();
    let pod = Pod::with_application(&agent, &port);
    let listener = port.listen();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for (index, stream) in listener.incoming().map_while(Result::ok).enumerate() {
            if index < 2 {
                std::thread::sleep(Duration::from_millis(1500));
                exchange(stream, drop, &with_status("200 OK"));
            } else {
                kept.push(stream);
            }
        }
    });
    let probe = json!({"httpGet": {"port": port.address().port()}, "periodSeconds": 1,
        "timeoutSeconds": 3, "failureThreshold": 1});
    let _sidecar = run(&pod, &probe);
    await_status(&agent, "passing");
    await_status(&agent, "critical");
    await_output(&agent, "fails: no answer within 3s");
}

#[test]
fn the_initial_delay_counts_from_the_pods_start() {
    let agent = ScriptedAgent::start();
    // Heartbeats follow each other.
    agent.longest_wait(Duration::from_millis(20));
    let port = Port::keep();
    let pod = Pod::with_application(&agent, &port);
    let _listener = port.listen();
    let probe = |delay: u32| json!({"tcpSocket": {"port": port.address().port()}, "initialDelaySeconds": delay});
    let sidecar = run(&pod, &probe(10));
    await_alive(&agent);
    agent.forget_requests();
    // Without the delay, the application would pass before the second heartbeat.
    agent.await_that("further heartbeats", |state| {
        let is_heartbeat = |request: &&Request| request.id().as_deref() == Some(PROXY_LEASE);
        state.requests.iter().filter(is_heartbeat).count() > 3
    });
    assert!(output(&agent).contains("has no answer yet"), "{}", output(&agent));
    await_status(&agent, "passing");
    drop(sidecar);

    // The container restarts in a pod that started an hour ago.
    let record = File::options().append(true).open(pod.path("registration.json")).unwrap();
    record.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    agent.wipe();
    pod.register(&agent);
    let _sidecar = run(&pod, &probe(3600));
    await_status(&agent, "passing");
}

/// A message or a status code.
type Answer = Result<Vec<u8>, &'static str>;

/// An application that speaks gRPC, and gives that answer for the service `a.B`.
fn grpc(port: &Port, answer: &Arc<Mutex<Answer>>) {
    let (listener, answer) = (port.listen(), Arc::clone(answer));
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                // An error means that the probe gave up.
                let _ = serve_grpc(stream, &answer).await;
            }
        });
    });
}

async fn serve_grpc(stream: TcpStream, answer: &Mutex<Answer>) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = accepted?;
        let (head, mut body) = request.into_parts();
        assert_eq!(head.uri.path(), "/grpc.health.v1.Health/Check");
        let Some(question) = body.data().await else { continue };
        assert_eq!(question?[..], *b"\0\0\0\0\x05\x0a\x03a.B");
        let response = hyper::Response::builder().header("content-type", "application/grpc");
        let answer = answer.lock().unwrap().clone();
        match answer {
            Ok(message) => {
                let mut send = respond.send_response(response.body(()).unwrap(), false)?;
                send.send_data(message.into(), false)?;
                let trailers = [("grpc-status".parse().unwrap(), "0".parse().unwrap())];
                send.send_trailers(trailers.into_iter().collect())?;
            }
            Err(code) => {
                let response = response.header("grpc-status", code).body(()).unwrap();
                respond.send_response(response, true)?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_grpc_probe_asks_for_its_service() {
    let agent = ScriptedAgent::start();
    // A new output of the same status is sent with the next heartbeat.
    agent.longest_wait(Duration::from_millis(100));
    let port = Port::keep();
    let pod = Pod::with_application(&agent, &port);
    let answer = Arc::new(Mutex::new(Ok(b"\0\0\0\0\x02\x08\x02".to_vec())));
    grpc(&port, &answer);
    let probe = json!({"grpc": {"port": port.address().port(), "service": "a.B"}, "periodSeconds": 1, "failureThreshold": 1});
    let _sidecar = run(&pod, &probe);
    await_output(&agent, "the service's status is NOT_SERVING");
    *answer.lock().unwrap() = Ok(b"\0\0\0\0\x02\x08\x01".to_vec());
    await_status(&agent, "passing");
    for (wrong, words) in [
        (Err("12"), "does not implement grpc.health.v1, or does not know the service"),
        (Ok(b"hello".to_vec()), "not a HealthCheckResponse"),
    ] {
        *answer.lock().unwrap() = wrong;
        await_output(&agent, words);
        assert_eq!(agent.check(APPLICATION).unwrap().status, "critical");
    }
}

#[test]
fn a_grpc_probe_fails_on_a_server_that_does_not_speak_grpc() {
    let agent = ScriptedAgent::start();
    // A new output of the same status is sent with the next heartbeat.
    agent.longest_wait(Duration::from_millis(100));
    let port = Port::keep();
    let pod = Pod::with_application(&agent, &port);
    let listener = port.listen();
    let answer = Arc::new(Mutex::new(with_status("400 No")));
    let answers = Arc::clone(&answer);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            // Read the whole request: closing with unread data would reset the connection.
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answers.lock().unwrap().as_bytes());
        }
    });
    let _sidecar = run(&pod, &json!({"grpc": {"port": port.address().port()}}));
    await_output(&agent, "does not speak HTTP/2 in plain text");
    answer.lock().unwrap().clear();
    await_output(&agent, "the server closed the connection");
}

#[test]
fn an_unsupported_probe_is_rejected() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    for (probe, words) in [
        (r#"{"exec": {"command": ["true"]}}"#, "it runs a command"),
        (r#"{"tcpSocket": {"port": "http"}}"#, "its port `http`"),
        ("x", "it is invalid"),
    ] {
        let mut sidecar = pod.run_with(&["--readiness-probe", probe]);
        assert_eq!(sidecar.end(), Some(64));
        sidecar.await_log(words);
    }
}
