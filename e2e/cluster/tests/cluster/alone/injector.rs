//! The injector itself restarts, loses its certificate, or is away.

use std::collections::BTreeSet;

use cluster::client::Cluster;
use cluster::mesh;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    all_are_injected, alone, annotate, decoded, is_injected, server, sharing, trusted,
};

/// Pods are created continuously while the injector is rolled out: each is admitted and
/// injected.
#[test]
fn no_pod_is_rejected_or_missed_while_the_injector_is_rolled_out() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("rolling").unwrap();
    let injector = format!("deployment/{}", mesh::INJECT);
    all_are_injected(cluster, &namespace, || rollout(cluster, &injector));
}

/// The CA and the certificate are replaced, and somebody empties the caBundle, while pods are
/// created continuously: each is admitted and injected, except while the caBundle is empty.
#[test]
fn certificates_rotate_while_pods_are_created() {
    let Some((cluster, _alone)) = alone() else { return };
    let namespace = cluster.namespace("rotating").unwrap();
    let authorities = || trusted(cluster, mesh::INJECT).map(|bundle| certificates(&bundle));
    let before = authorities().unwrap();
    all_are_injected(cluster, &namespace, || {
        // A CA without its key is useless, so the injector publishes the next one.
        clear(cluster, &["ca.key"])?;
        harness::until("trust in both CAs", || {
            authorities().is_ok_and(|now| !now.is_subset(&before) && !now.is_disjoint(&before))
        })
    });
    let old = secret(cluster, "tls.crt").unwrap();
    all_are_injected(cluster, &namespace, || {
        clear(cluster, &["tls.crt", "tls.key"])?;
        harness::until("another certificate", || {
            secret(cluster, "tls.crt").is_ok_and(|new| !new.is_empty() && new != old)
        })
    });

    let both = trusted(cluster, mesh::INJECT).unwrap();
    let nothing = r#"[{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]"#;
    let webhooks = ["patch", "mutatingwebhookconfiguration", mesh::INJECT, "--type=json"];
    cluster.kubectl(&[webhooks.as_slice(), &["--patch", nothing]].concat(), "").unwrap();
    harness::until("the trust to be back", || {
        trusted(cluster, mesh::INJECT).is_ok_and(|now| now == both)
    })
    .unwrap();
    let path = format!("/api/v1/namespaces/{}/pods?dryRun=All", namespace.name);
    harness::until("an admission", || {
        let asked = cluster.request(Method::POST, &path, Some(&server("rotating", "hello")));
        asked.is_ok_and(|pod| is_injected(&pod))
    })
    .unwrap();
}

/// `helm upgrade --force` and Argo CD's Replace empty the Secret, while pods are created
/// continuously: the replicas write it again.
#[test]
fn an_emptied_secret_is_written_again_and_no_pod_is_rejected() {
    let Some((cluster, _alone)) = alone() else { return };
    let namespace = cluster.namespace("emptied").unwrap();
    let keys = ["ca.crt", "ca.key", "tls.crt", "tls.key"];
    let held = || keys.map(|key| secret(cluster, key).unwrap_or_default());
    let before = held();
    assert!(before.iter().all(|value| !value.is_empty()));
    all_are_injected(cluster, &namespace, || {
        clear(cluster, &keys)?;
        harness::until("the Secret as it was", || held() == before)
    });
    assert_eq!(trusted(cluster, mesh::INJECT).unwrap(), before[0]);
}

fn certificates(bundle: &str) -> BTreeSet<String> {
    let all = bundle.split_inclusive("-----END CERTIFICATE-----");
    all.map(|each| each.trim().to_owned()).filter(|each| !each.is_empty()).collect()
}

/// A value of the Secret that the replicas share.
fn secret(cluster: &Cluster, key: &str) -> harness::Result<String> {
    let path = format!("/api/v1/namespaces/{}/secrets/{}-tls", mesh::NAMESPACE, mesh::INJECT);
    decoded(&cluster.get(&path)?["data"][key])
}

/// Empties values of that Secret.
fn clear(cluster: &Cluster, keys: &[&str]) -> harness::Result<()> {
    let empty: Vec<Value> = keys
        .iter()
        .map(|key| json!({"op": "replace", "path": format!("/data/{key}"), "value": ""}))
        .collect();
    let (name, patch) = (format!("{}-tls", mesh::INJECT), Value::from(empty).to_string());
    let args = ["--namespace", mesh::NAMESPACE, "patch", "secret", &name, "--type=json"];
    cluster.kubectl(&[args.as_slice(), &["--patch", &patch]].concat(), "").map(drop)
}

/// Without an injector, pods that ask for injection are rejected, rather than started without
/// a sidecar. Others are created, including those that opt out and those that only have
/// another annotation of ours. The injector itself can start again.
#[test]
fn without_an_injector_pods_that_ask_are_rejected_until_it_is_back() {
    let Some((cluster, _alone)) = alone() else { return };
    let namespace = cluster.namespace("closed").unwrap();
    let injector = format!("deployment/{}", mesh::INJECT);
    let scale = |replicas: &str| {
        let args = ["--namespace", mesh::NAMESPACE, "scale", &injector, replicas];
        cluster.kubectl(&args, "").unwrap();
    };
    scale("--replicas=0");
    let path = format!("/api/v1/namespaces/{}/pods?dryRun=All", namespace.name);
    let mut seen = String::new();
    let refused = harness::until("a refusal", || {
        let asked = cluster.request(Method::POST, &path, Some(&server("closed", "hello")));
        seen = asked.map_or_else(|error| error.to_string(), |_| String::new());
        seen.contains("failed calling webhook")
    });
    let mut unasked = server("unasked", "hello");
    unasked["metadata"]["annotations"].take();
    let unasked = cluster.request(Method::POST, &path, Some(&unasked));
    let mut declined = server("declined", "hello");
    annotate(&mut declined, &[("connect-inject", "false")]);
    let declined = cluster.request(Method::POST, &path, Some(&declined));
    // It does not ask for injection: a review would only add a warning.
    let mut silent = server("silent", "hello");
    silent["metadata"]["annotations"] = json!({"consul.hashicorp.com/connect-service": "s"});
    let silent = cluster.request(Method::POST, &path, Some(&silent));
    // Before any assertion, because the other tests need it.
    scale("--replicas=2");
    let args = ["--namespace", mesh::NAMESPACE, "rollout", "status", &injector, "--timeout=90s"];
    cluster.kubectl(&args, "").unwrap();
    refused.unwrap_or_else(|error| panic!("{error}: {seen}"));
    assert!(!is_injected(&unasked.unwrap()));
    assert!(!is_injected(&declined.unwrap()));
    assert!(!is_injected(&silent.unwrap()));
    harness::until("an admission", || {
        let asked = cluster.request(Method::POST, &path, Some(&server("closed", "hello")));
        asked.is_ok_and(|pod| is_injected(&pod))
    })
    .unwrap();
}

fn rollout(cluster: &Cluster, injector: &str) -> harness::Result<()> {
    let restart = ["--namespace", mesh::NAMESPACE, "rollout", "restart", injector];
    cluster.kubectl(&restart, "")?;
    let status = ["--namespace", mesh::NAMESPACE, "rollout", "status", injector, "--timeout=120s"];
    cluster.kubectl(&status, "").map(drop)
}
