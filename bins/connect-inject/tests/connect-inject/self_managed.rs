//! `--tls-auto`: the certificate that replicas share, against a fake API server on a real
//! socket.

use reqwest::Client;

use crate::harness::{
    Certified, ECHO_SERVER, Injector, client, install_provider, patched, review, until, yaml,
};
use crate::kubernetes::{Kubernetes, WEBHOOKS};

const HOST: &str = "connect-inject.shop.svc";

/// A replica, whose clients don't know yet which CA to trust.
fn replica(kubernetes: &Kubernetes, flags: &[&str]) -> Injector {
    let kubeconfig = kubernetes.kubeconfig();
    let tls = [
        "--tls-auto".as_ref(),
        WEBHOOKS.as_ref(),
        "--tls-auto-hosts=connect-inject.shop.svc,127.0.0.1".as_ref(),
        "--kubeconfig".as_ref(),
        kubeconfig.as_os_str(),
    ];
    Injector::launch(&tls, flags, Certified { cert: String::new(), key: String::new() })
}

/// A client like an API server: it trusts the bundle and expects the name.
fn api_server(injector: &Injector, bundle: &str) -> Client {
    install_provider();
    let trusted = reqwest::Certificate::from_pem_bundle(bundle.as_bytes()).unwrap();
    Client::builder()
        .no_proxy()
        .tls_certs_only(trusted)
        .resolve(HOST, injector.address.parse().unwrap())
        .build()
        .unwrap()
}

async fn is_well(injector: &Injector, bundle: &str) {
    let port = injector.address.rsplit_once(':').unwrap().1;
    let response = api_server(injector, bundle)
        .post(format!("https://{HOST}:{port}/mutate"))
        .json(&review("v1", "u", &yaml(ECHO_SERVER)))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
}

async fn readiness(injector: &Injector) -> (u16, String) {
    let response =
        client(&Certified::new()).get(injector.admin_url("/readyz")).send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

async fn until_ready(injector: &Injector) {
    until_answered(injector, 200, "").await;
}

/// Polls `/readyz` until it answers with this status and these words.
async fn until_answered(injector: &Injector, status: u16, words: &str) -> String {
    until(async || {
        let (seen, reason) = readiness(injector).await;
        if seen == status && reason.contains(words) { Ok(reason) } else { Err((seen, reason)) }
    })
    .await
}

async fn trusted(kubernetes: &Kubernetes) -> String {
    kubernetes.until("no webhook trusts anything", Kubernetes::bundle).await
}

#[tokio::test]
async fn replicas_share_one_certificate_that_every_webhook_trusts() {
    let kubernetes = Kubernetes::start();
    let replicas: Vec<_> = (0..3).map(|_| replica(&kubernetes, &[])).collect();
    let bundle = trusted(&kubernetes).await;
    for injector in &replicas {
        until_ready(injector).await;
        is_well(injector, &bundle).await;
    }
    assert_eq!(kubernetes.secret("ca.crt").as_ref(), Some(&bundle));
    assert_eq!(bundle.matches("BEGIN").count(), 1, "the loser of a race adopts the winner's CA");
    let secret = kubernetes.whole_secret().unwrap();
    assert_eq!(secret["type"], "kubernetes.io/tls");
    // The rest of the configuration is unchanged.
    let webhooks = kubernetes.webhooks();
    assert_eq!(webhooks["metadata"]["labels"]["of"], "users");
    assert_eq!(webhooks["webhooks"][1]["clientConfig"]["service"]["name"], "s");

    let metrics = client(&Certified::new()).get(replicas[0].admin_url("/metrics"));
    let metrics = metrics.send().await.unwrap().text().await.unwrap();
    let name = "connect_inject_certificate_not_after_timestamp_seconds ";
    let end = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let (end, month) = (end.parse::<u64>().unwrap(), 30 * 24 * 3600);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!(end <= now + month && end > now + month - 3600, "{end}");
}

/// The loser of a race never serves a certificate of its own.
#[tokio::test]
async fn the_loser_of_a_race_adopts_the_winners_certificate() {
    let elsewhere = Kubernetes::start();
    let winner = replica(&elsewhere, &[]);
    let bundle = trusted(&elsewhere).await;
    until_ready(&winner).await;

    let kubernetes = Kubernetes::start();
    kubernetes.overtake(elsewhere.whole_secret().unwrap());
    let mut loser = replica(&kubernetes, &["--log-level", "debug"]);
    until_ready(&loser).await;
    let before: Vec<_> = loser.log_until("another replica was faster");
    assert!(!before.iter().any(|line| line["message"] == "new certificate"), "{before:?}");
    assert_eq!(trusted(&kubernetes).await, bundle);
    is_well(&loser, &bundle).await;
}

/// A replica that starts later uses the existing certificate.
#[tokio::test]
async fn an_existing_certificate_is_kept() {
    let kubernetes = Kubernetes::start();
    let first = replica(&kubernetes, &[]);
    let bundle = trusted(&kubernetes).await;
    until_ready(&first).await;
    let before = kubernetes.whole_secret();
    drop(first);
    let second = replica(&kubernetes, &[]);
    until_ready(&second).await;
    is_well(&second, &bundle).await;
    assert_eq!(kubernetes.whole_secret(), before);
    let writes = kubernetes.requests().iter().filter(|r| !r.starts_with("GET")).count();
    assert!(kubernetes.requests().len() < 40, "{:#?}", kubernetes.requests());
    assert!(writes < 10, "{:#?}", kubernetes.requests());
}

/// For example, an upgrade of the chart resets them.
#[tokio::test]
async fn every_ca_bundle_is_restored() {
    let kubernetes = Kubernetes::start();
    let injector = replica(&kubernetes, &[]);
    let bundle = trusted(&kubernetes).await;
    until_ready(&injector).await;
    kubernetes.set_webhooks(&["a.example.com", "new.example.com", "third.example.com"]);
    assert_eq!(trusted(&kubernetes).await, bundle);
    kubernetes.remove_webhooks();
    kubernetes.set_webhooks(&["again.example.com"]);
    assert_eq!(trusted(&kubernetes).await, bundle);
    is_well(&injector, &bundle).await;
}

/// `helm upgrade --force` empties the Secret. One replica issued a new CA and dropped the
/// old one, whose certificate the other replica still served.
#[tokio::test]
async fn a_secret_that_is_emptied_is_filled_again_without_a_failed_review() {
    let kubernetes = Kubernetes::start();
    let replicas = [replica(&kubernetes, &[]), replica(&kubernetes, &[])];
    let bundle = trusted(&kubernetes).await;
    for injector in &replicas {
        until_ready(injector).await;
    }
    let before = kubernetes.whole_secret().unwrap()["data"].clone();
    for emptied in [Some(&[][..]), None, Some(&[("ca.crt", ""), ("tls.crt", "")])] {
        kubernetes.set_secret(emptied);
        // Triggers a check.
        kubernetes.set_webhooks(&["a.example.com", "b.example.com"]);
        let filled = kubernetes.until("the Secret was not filled", |k| {
            let data = k.whole_secret()?["data"].clone();
            data["ca.crt"].as_str().is_some_and(|ca| !ca.is_empty()).then_some(data)
        });
        let load = async {
            loop {
                for injector in &replicas {
                    is_well(injector, &bundle).await;
                }
            }
        };
        let filled = tokio::select! {
            filled = filled => filled,
            () = load => unreachable!("it never ends"),
        };
        for key in ["ca.crt", "ca.key", "tls.crt", "tls.key"] {
            assert_eq!(filled[key], before[key], "{key}");
        }
        assert_eq!(trusted(&kubernetes).await, bundle);
        for injector in &replicas {
            is_well(injector, &bundle).await;
        }
    }
}

/// The replica keeps serving its certificate; it does not need the Secret until the next
/// renewal.
#[tokio::test]
async fn a_failing_api_server_does_not_affect_the_certificate() {
    let kubernetes = Kubernetes::start();
    let mut injector = replica(&kubernetes, &[]);
    let bundle = trusted(&kubernetes).await;
    until_ready(&injector).await;
    kubernetes.fail(Some(500));
    let line = injector.await_log("keeping the current certificate").to_string();
    assert!(line.contains("out of order") && line.contains("500"), "{line}");
    is_well(&injector, &bundle).await;
    assert_eq!(readiness(&injector).await.0, 200);
    // Nor is invalid data that someone else wrote.
    kubernetes.fail(None);
    kubernetes.set_secret(Some(&[("tls.crt", "rubbish"), ("ca.crt", &bundle), ("mine", "kept")]));
    kubernetes.set_webhooks(&["a.example.com"]);
    let new = kubernetes
        .until("the Secret was not repaired", |k| {
            k.bundle()
                .filter(|new| *new != bundle && k.secret("tls.crt").as_deref() != Some("rubbish"))
        })
        .await;
    assert!(new.contains(&bundle), "the CA in use must stay trusted");
    assert_eq!(kubernetes.secret("mine").as_deref(), Some("kept"));
    is_well(&injector, &new).await;
}

#[tokio::test]
async fn without_a_trusted_certificate_it_is_not_ready() {
    let kubernetes = Kubernetes::start();
    kubernetes.fail(Some(403));
    let mut injector = replica(&kubernetes, &[]);
    injector.await_log("keeping the current certificate");
    let why = "no certificate yet: cannot read Secret connect-inject-tls: Kubernetes API http";
    let reason = until_answered(&injector, 503, why).await;
    assert!(reason.contains("out of order"), "{reason}");
    let metrics = client(&Certified::new()).get(injector.admin_url("/metrics"));
    assert!(metrics.send().await.unwrap().text().await.unwrap().contains("timestamp_seconds 0\n"));

    kubernetes.remove_webhooks();
    kubernetes.fail(None);
    injector.await_log("there is no MutatingWebhookConfiguration connect-inject");
    until_answered(&injector, 503, "does not trust the certificate yet: there is no").await;
    kubernetes.set_webhooks(&["a.example.com"]);
    until_ready(&injector).await;
}

#[test]
fn invalid_tls_flags_are_rejected_at_the_start() {
    for (flags, problem) in [
        (&["--tls-auto", "x", "--tls-auto-hosts", "a_b.c d"][..], "`a_b.c d` is not a host"),
        (&["--tls-auto", "x", "--kubeconfig", "/none"], "--kubeconfig /none: "),
        (&["--tls-auto", "x", "--kubeconfig", "/none"], "--tls-auto-hosts: name at least one"),
        (&["--tls-auto", "x"], "cannot reach the Kubernetes API"),
        (&["--tls-auto", "x", "--kubeconfig="], "cannot reach the Kubernetes API"),
        (&["--tls-auto", "x", "--tls-cert-file", "y"], "either --tls-cert-file"),
        (&["--tls-cert-file", "y"], "either --tls-cert-file"),
        (&[], "either --tls-cert-file"),
    ] {
        let assert = assert_cmd::cargo::cargo_bin_cmd!("connect-inject")
            .arg("serve")
            .args(crate::harness::IMAGES)
            .args(flags)
            .env_remove("KUBECONFIG")
            .timeout(crate::harness::PATIENCE)
            .assert()
            .code(64);
        let log = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(log.contains(problem), "{flags:?}: {log}");
    }
}

/// Features of the cluster's version are used without a flag, even if the API server could
/// not be asked at first.
#[tokio::test]
async fn the_version_is_read_from_the_api_server() {
    let kubernetes = Kubernetes::start();
    let kubeconfig = kubernetes.kubeconfig().display().to_string();
    let is_native = async |injector: &Injector| {
        let pod = yaml(ECHO_SERVER);
        let answer = injector.review(&review("v1", "u", &pod)).await;
        let injected = patched(&pod, &answer);
        injected["spec"]["initContainers"][1]["name"] == "envoy-sidecar"
    };
    let ready = async |flags: &[&str]| {
        let injector = Injector::start(flags);
        until_ready(&injector).await;
        injector
    };
    kubernetes.upgrade(32);
    assert!(is_native(&ready(&["--kubeconfig", &kubeconfig]).await).await);
    let told = ["--kubeconfig", &kubeconfig, "--kubernetes-version", "1.28"];
    assert!(!is_native(&ready(&told).await).await);
    kubernetes.upgrade(31);
    assert!(!is_native(&ready(&told[..2]).await).await, "kubelets may be of 1.28");

    kubernetes.fail(Some(500));
    let mut injector = ready(&told[..2]).await;
    assert!(!is_native(&injector).await);
    kubernetes.upgrade(33);
    kubernetes.fail(None);
    injector.await_log("learnt the version of the API server");
    assert!(is_native(&injector).await);
}

/// Errors had no host, port or cause; the client library logged each of them, too; and
/// ports were bound only after the API server had answered.
#[tokio::test]
async fn the_error_about_an_unreachable_api_server_is_logged_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    let kept = testkit::Port::keep();
    let nobody = kept.address();
    let kubeconfig = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, clusters: [{{name: c, cluster: {{server: 'http://{nobody}'}}}}], \
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}], users: [{{name: u, user: {{token: t}}}}]}}"
    );
    runtime::file::write_whole(&file, 0o600, kubeconfig.as_bytes()).unwrap();
    let mut injector = Injector::start(&["--kubeconfig", file.to_str().unwrap()]);
    until_ready(&injector).await;
    let line = injector.await_log("cannot ask for the API server's version");
    let message = line["message"].as_str().unwrap();
    assert!(message.contains(&format!("http://{nobody}")), "{message}");
    assert!(message.contains("refused"), "{message}");
    injector.signal(nix::sys::signal::Signal::SIGTERM);
    let lines = injector.log_until("not ready any more");
    assert!(lines.iter().all(|line| line["level"] != "ERROR"), "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line["level"] == "WARN").count(), 1, "{lines:?}");
}
