//! The webhook and its admin port.

use std::io::{Read, Write};
use std::net::TcpStream;

use reqwest::StatusCode;
use reqwest::header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE};
use serde_json::{Value, json};

use crate::harness::{
    Certified, ECHO_CLIENT, ECHO_SERVER, IMAGES, Injector, PATIENCE, client, patched, review, yaml,
};

const STATUS: &str = "consul.hashicorp.com/connect-inject-status";

#[tokio::test]
async fn the_tutorials_pods_are_injected_unchanged() {
    let injector = Injector::start(&[]);
    for version in ["v1", "v1beta1"] {
        for (manifest, args) in [
            (ECHO_SERVER, json!(["--service=echo-server:8080", "--first-timeout=30s"])),
            (
                ECHO_CLIENT,
                json!([
                    "--service=echo-client",
                    "--upstream=echo-server:1234",
                    "--first-timeout=30s"
                ]),
            ),
        ] {
            let pod = yaml(manifest);
            let answer = injector.review(&review(version, "705ab4f5", &pod)).await;
            assert_eq!(answer["apiVersion"], format!("admission.k8s.io/{version}"));
            assert_eq!(answer["response"]["uid"], "705ab4f5");
            assert_eq!(answer["response"]["allowed"], true);
            let injected = patched(&pod, &answer);
            assert_eq!(injected["metadata"]["annotations"][STATUS], "injected");
            assert_eq!(injected["metadata"]["labels"][STATUS], "injected");
            assert_eq!(injected["spec"]["initContainers"][0]["args"], args);
            assert_eq!(injected["spec"]["containers"][0]["name"], "envoy-sidecar");
            let mut app = injected["spec"]["containers"][1].clone();
            app.as_object_mut().unwrap().remove("env");
            assert_eq!(app, pod["spec"]["containers"][0]);
        }
    }
}

/// The log did not say why a pod got no sidecar. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/269>.
#[tokio::test]
async fn every_review_logs_its_reason() {
    let mut injector = Injector::start(&["--deny-k8s-namespace", "default"]);
    let answer = injector.review(&review("v1", "u-37", &yaml(ECHO_SERVER))).await;
    assert_eq!(
        answer["response"],
        json!({"uid": "u-37", "allowed": true,
            "auditAnnotations": {"outcome": "skipped", "reason": "namespace-denied"}})
    );
    let line = injector.await_log("is on the deny list");
    for (field, value) in [
        ("uid", "u-37"),
        ("namespace", "default"),
        ("pod", "echo-server"),
        ("outcome", "skipped"),
        ("reason", "namespace-denied"),
    ] {
        assert_eq!(line[field], value, "{line}");
    }
    let metrics = client(&injector.pair).get(injector.admin_url("/metrics")).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let counted = "connect_inject_reviews_total{outcome=\"skipped\",reason=\"namespace-denied\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
    assert!(!metrics.contains("not_after_timestamp_seconds 0\n"), "{metrics}");
}

#[tokio::test]
async fn an_invalid_pod_is_denied_by_a_valid_review() {
    let injector = Injector::start(&[]);
    for (pod, reason, problem) in [
        (ECHO_CLIENT.replace(":1234", ":0"), "invalid-upstreams", "column 13"),
        (ECHO_SERVER.replace("8080\n", "0\n"), "invalid-pod", "containerPort"),
    ] {
        let answer = injector.review(&review("v1", "u", &yaml(&pod))).await;
        let response = &answer["response"];
        assert_eq!((&response["uid"], &response["allowed"]), (&json!("u"), &json!(false)));
        assert_eq!(response["status"]["code"], 422);
        assert_eq!(response["status"]["reason"], reason);
        assert!(response["status"]["message"].as_str().unwrap().contains(problem), "{response}");
    }
    let mut bare = yaml(ECHO_SERVER);
    bare["spec"]["containers"] = json!([]);
    let answer = injector.review(&review("v1", "u", &bare)).await;
    assert_eq!(answer["response"]["status"]["reason"], "no-containers");
    let answer = injector.review(&review("v1", "u", &json!("no pod"))).await;
    assert_eq!(answer["response"]["status"]["reason"], "invalid-pod");
}

/// Reviews carry no labels of namespaces, so the API server posts to a path for each label.
#[tokio::test]
async fn the_path_decides_whether_the_namespaces_pods_are_transparent() {
    for (flag, whole) in [("false", false), ("true", true)] {
        let injector = Injector::start(&[&format!("--default-transparent-proxy={flag}")]);
        let client = client(&injector.pair);
        for (path, annotation, expected) in [
            ("/mutate", None, whole),
            ("/mutate/transparent", None, true),
            ("/mutate/direct", None, false),
            ("/mutate/transparent", Some("false"), false),
            ("/mutate/direct", Some("true"), true),
        ] {
            let mut pod = yaml(ECHO_SERVER);
            if let Some(value) = annotation {
                pod["metadata"]["annotations"]["consul.hashicorp.com/transparent-proxy"] =
                    value.into();
            }
            let review = review("v1", "u", &pod);
            let answer = client.post(injector.url(path)).json(&review).send().await.unwrap();
            let answer: Value = answer.json().await.unwrap();
            assert_eq!(answer["response"]["auditAnnotations"]["outcome"], "injected");
            let found = patched(&pod, &answer).to_string().contains("NET_ADMIN");
            assert_eq!(found, expected, "{path} {annotation:?} with {flag}");
            let warned = answer["response"]["warnings"].to_string().contains("PodSecurity");
            assert_eq!(warned, expected);
        }
    }
}

#[tokio::test]
async fn an_invalid_request_gets_an_http_error() {
    let injector = Injector::start(&[]);
    let client = client(&injector.pair);
    let url = injector.url("/mutate");
    let good = review("v1", "u", &yaml(ECHO_SERVER)).to_string();
    let json = |body: &str| {
        client.post(&url).header(CONTENT_TYPE, "application/json").body(body.to_owned())
    };
    for (request, status) in [
        (client.get(&url), StatusCode::METHOD_NOT_ALLOWED),
        (client.post(injector.url("/")).body(good.clone()), StatusCode::NOT_FOUND),
        (client.post(injector.url("/mutate/x")).body(good.clone()), StatusCode::NOT_FOUND),
        (json(""), StatusCode::BAD_REQUEST),
        (json(&good[..good.len() - 10]), StatusCode::BAD_REQUEST),
        (json(&"[".repeat(1 << 16)), StatusCode::BAD_REQUEST),
        (json("\u{1f}\u{fffd}\u{8}"), StatusCode::BAD_REQUEST),
        (json(&good.replace("\"uid\"", "\"id\"")), StatusCode::BAD_REQUEST),
        (json(&good.replace("\"uid\":", "\"uid\":\"v\",\"uid\":")), StatusCode::BAD_REQUEST),
        (json(&good.replace("\"uid\":\"u\"", "\"uid\":5")), StatusCode::BAD_REQUEST),
        (
            json(&good.replace("\"namespace\":\"default\"", "\"namespace\":[]")),
            StatusCode::BAD_REQUEST,
        ),
        (json(&good).header(CONTENT_ENCODING, "gzip"), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (
            client.post(&url).header(CONTENT_TYPE, "text/yaml").body("a: 1"),
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ),
        (json(&" ".repeat((8 << 20) + 1)), StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(
            response.headers().contains_key(ALLOW),
            status == StatusCode::METHOD_NOT_ALLOWED
        );
        let sentence = response.text().await.unwrap();
        assert!(sentence.len() > 10 && sentence.len() < 300, "{sentence}");
    }
    let charset = client
        .post(&url)
        .header(CONTENT_TYPE, "application/json; charset=utf-8")
        .body(good.clone());
    assert_eq!(charset.send().await.unwrap().status(), 200);
    let duplicates = good.replacen('{', "{\"kind\":\"AdmissionReview\",", 1);
    assert_eq!(json(&duplicates).send().await.unwrap().status(), 400);
    injector.is_well().await;
}

#[tokio::test]
async fn http_1_and_http_2_are_served() {
    let injector = Injector::start(&[]);
    crate::harness::install_provider();
    let certificate = reqwest::Certificate::from_pem(injector.pair.cert.as_bytes()).unwrap();
    for (version, builder) in [
        (reqwest::Version::HTTP_11, reqwest::Client::builder().http1_only()),
        (reqwest::Version::HTTP_2, reqwest::Client::builder()),
    ] {
        let client = builder.no_proxy().tls_certs_only([certificate.clone()]).build().unwrap();
        let review = review("v1", "u", &yaml(ECHO_SERVER));
        let response = client.post(injector.url("/mutate")).json(&review).send().await.unwrap();
        assert_eq!((response.status(), response.version()), (StatusCode::OK, version));
    }
}

#[tokio::test]
async fn bytes_other_than_tls_close_the_connection() {
    let injector = Injector::start(&[]);
    for bytes in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0; 1000], b"\x16\x03\x01\xff\xff"] {
        let mut stream = TcpStream::connect(&injector.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // The server may close the connection before everything is written.
        let _ = stream.write_all(bytes);
        if bytes.len() > 5 {
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            assert!(answer.len() < 100, "{}", String::from_utf8_lossy(&answer));
        }
        injector.is_well().await;
    }
}

#[tokio::test]
async fn a_changed_certificate_is_used_at_once() {
    let mut injector = Injector::start(&[]);
    injector.is_well().await;
    let next = Certified::new();
    injector.swap(&next.cert, &next.key);
    let url = injector.url("/mutate");
    let old = client(&injector.pair).get(&url).send().await;
    assert!(old.is_err(), "the old certificate is still in use");
    injector.pair = next;
    injector.is_well().await;
    injector.await_log("new certificate");

    // A certificate with another's key: the last valid pair stays.
    let key = injector.pair.key.clone();
    injector.swap(&Certified::new().cert, &key);
    injector.is_well().await;
    injector.await_log("the last certificate stays in use");
    injector.swap("garbage", "");
    injector.is_well().await;
    let line = injector.await_log("the last certificate stays in use");
    assert!(line["message"].as_str().unwrap().contains("tls.crt"), "{line}");
}

#[tokio::test]
async fn the_admin_port_serves_health_and_metrics() {
    let injector = Injector::start(&[]);
    let client = client(&injector.pair);
    for (path, status, body) in [
        ("/livez", 200, "ok"),
        ("/readyz", 200, "ok"),
        ("/metrics", 200, "connect_inject_build_info"),
        ("/mutate", 404, "/readyz"),
    ] {
        let response = client.get(injector.admin_url(path)).send().await.unwrap();
        assert_eq!(response.status(), status, "{path}");
        assert!(response.text().await.unwrap().contains(body), "{path}");
    }
    assert_eq!(client.post(injector.admin_url("/livez")).send().await.unwrap().status(), 405);
}

/// Clients would reject it; another replica may serve them.
#[tokio::test]
async fn an_injector_with_an_expired_certificate_is_not_ready() {
    let mut injector = Injector::start_showing(Certified::ending(2020), &[]);
    let url = injector.admin_url("/readyz");
    let readiness = async || client(&Certified::new()).get(&url).send().await.unwrap();
    let response = readiness().await;
    assert_eq!(response.status(), 503);
    assert!(
        response.text().await.unwrap().contains("expires or has expired: 2020-01-02T00:00:00Z")
    );
    let next = Certified::new();
    injector.swap(&next.cert, &next.key);
    assert_eq!(readiness().await.status(), 200);
}

#[test]
fn errors_in_flags_are_reported_before_a_port_is_bound() {
    let secret = crate::harness::SecretVolume::new(&Certified::new());
    let serve = |cert: &str, init_image: &str| {
        let mut command = assert_cmd::cargo::cargo_bin_cmd!("connect-inject");
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .arg("--tls-cert-file")
            .arg(secret.path(cert))
            .arg("--tls-key-file")
            .arg(secret.path("tls.key"))
            .args(["--init-image", init_image, "--envoy-image", "e"])
            .timeout(PATIENCE);
        let output = command.assert().code(64).get_output().clone();
        String::from_utf8(output.stderr).unwrap()
    };
    let log = serve("missing.crt", "i");
    assert!(log.contains("missing.crt: No such file") && !log.contains("answering"), "{log}");
    let log = serve("tls.key", "");
    assert!(log.contains("--init-image"), "{log}");
    let log = serve("tls.key", "i");
    assert!(log.contains("tls.key: no PEM certificate"), "{log}");
}

#[test]
fn the_error_about_an_address_in_use_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let secret = crate::harness::SecretVolume::new(&Certified::new());
    let assert = assert_cmd::cargo::cargo_bin_cmd!("connect-inject")
        .args(["serve", "--listen", &address, "--admin-listen", "127.0.0.1:0"])
        .arg("--tls-cert-file")
        .arg(secret.path("tls.crt"))
        .arg("--tls-key-file")
        .arg(secret.path("tls.key"))
        .args(IMAGES)
        .timeout(PATIENCE)
        .assert()
        .code(64);
    let log = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(log.contains(&format!("--listen: cannot listen on {address}")), "{log}");
}

/// Both share one code path.
#[tokio::test]
async fn the_webhook_and_the_command_agree() {
    let injector = Injector::start(&[]);
    for manifest in [ECHO_SERVER, ECHO_CLIENT] {
        let pod = yaml(manifest);
        let answer = injector.review(&review("v1", "u", &pod)).await;
        let output = assert_cmd::cargo::cargo_bin_cmd!("connect-inject")
            .arg("inject")
            .args(IMAGES)
            .write_stdin(manifest)
            .assert()
            .success();
        let mut offline: Value = yaml(&String::from_utf8_lossy(&output.get_output().stdout));
        // Only manifests get the note for `uninject`.
        let annotations = offline["metadata"]["annotations"].as_object_mut().unwrap();
        annotations.remove("consul.hashicorp.com/connect-inject-undo").unwrap();
        assert_eq!(offline, patched(&pod, &answer));
    }
}

/// Starts a fake agent and returns its address. Its datacenter is dc1; proxy-defaults has
/// the given mode, and a blocking query waits for changes.
fn agent(mode: &'static str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut waiting = Vec::new();
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap();
            let line = String::from_utf8_lossy(&request[..length]).into_owned();
            let body = if line.starts_with("GET /v1/agent/self") {
                json!({"Config": {"Datacenter": "dc1"}})
            } else if line.contains("index=7") {
                waiting.push(stream);
                continue;
            } else {
                assert!(line.starts_with("GET /v1/config/proxy-defaults/global"), "{line}");
                json!({"Kind": "proxy-defaults", "MeshGateway": {"Mode": mode}})
            };
            let body = body.to_string();
            let head = "HTTP/1.1 200 OK\r\nconnection: close\r\nX-Consul-Index: 7";
            let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    address
}

/// Working pods were denied, and the agent was asked again for each review.
#[tokio::test]
async fn an_upstream_in_another_datacenter_causes_a_warning_unless_a_gateway_mode_is_set() {
    let reviewed = async |injector: &Injector, datacenter: &str| {
        let pod = yaml(&ECHO_CLIENT.replace(":1234", &format!(":1234:{datacenter}")));
        let answer = injector.review(&review("v1", "u", &pod)).await;
        assert_eq!(answer["response"]["auditAnnotations"]["reason"], "requested", "{answer}");
        answer["response"]["warnings"].as_array().map_or(0, Vec::len)
    };
    let mut injector = Injector::start(&["--http-addr", &agent("local")]);
    injector.await_log("mesh gateways");
    assert_eq!(reviewed(&injector, "dc2").await, 0);
    let mut injector = Injector::start(&["--http-addr", &agent("none"), "--log-level", "debug"]);
    injector.await_log("learnt the datacenter");
    assert_eq!((reviewed(&injector, "dc1").await, reviewed(&injector, "dc2").await), (0, 1));
    let nobody = testkit::Port::keep();
    let injector = Injector::start(&["--http-addr", &nobody.address().to_string()]);
    assert_eq!(reviewed(&injector, "dc2").await, 1);
}
