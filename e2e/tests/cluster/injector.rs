//! The injector itself comes and goes.

use std::sync::atomic::{AtomicBool, Ordering};

use e2e::cluster::client::Cluster;
use e2e::cluster::mesh;
use reqwest::Method;
use serde_json::Value;

use crate::support::{alone, server};

/// Pods are created without a pause while the injector is rolled out: each is
/// admitted and injected.
#[test]
fn no_pod_is_refused_or_missed_while_the_injector_is_rolled() {
    let Some((cluster, _alone)) = alone() else { return };
    let namespace = cluster.namespace("rolling").unwrap();
    let pod = server("rolling", "hello");
    let (done, mut created) = (AtomicBool::new(false), 0);
    let injector = format!("deployment/{}", mesh::INJECT);
    std::thread::scope(|scope| {
        let rollout = scope.spawn(|| {
            let rolled = rollout(cluster, &injector);
            done.store(true, Ordering::Relaxed);
            rolled
        });
        // Dry runs: they pass admission as others do, and nothing has to run.
        let path = format!("/api/v1/namespaces/{}/pods?dryRun=All", namespace.name);
        let mut refused: Option<String> = None;
        while !done.load(Ordering::Relaxed) && refused.is_none() {
            match cluster.request(Method::POST, &path, Some(&pod)) {
                Ok(pod) if is_injected(&pod) => created += 1,
                Ok(pod) => refused = Some(format!("a pod was not injected: {pod:#}")),
                Err(error) => refused = Some(error.to_string()),
            }
        }
        rollout.join().unwrap().unwrap();
        assert_eq!(refused, None, "after {created} pods");
    });
    assert!(created > 0);
}

/// Without an injector, pods that would be asked about are refused, rather than
/// started without a sidecar; and the injector itself can come back.
#[test]
fn without_an_injector_pods_are_refused_until_it_is_back() {
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
    let refused = e2e::until("a refusal", || {
        let asked = cluster.request(Method::POST, &path, Some(&server("closed", "hello")));
        seen = asked.map_or_else(|error| error.to_string(), |_| String::new());
        seen.contains("failed calling webhook")
    });
    // Before anything else: the other tests need it.
    scale("--replicas=2");
    let args = ["--namespace", mesh::NAMESPACE, "rollout", "status", &injector, "--timeout=90s"];
    cluster.kubectl(&args, "").unwrap();
    refused.unwrap_or_else(|error| panic!("{error}: {seen}"));
    e2e::until("an admission", || {
        let asked = cluster.request(Method::POST, &path, Some(&server("closed", "hello")));
        asked.is_ok_and(|pod| is_injected(&pod))
    })
    .unwrap();
}

fn rollout(cluster: &Cluster, injector: &str) -> e2e::Result<()> {
    let restart = ["--namespace", mesh::NAMESPACE, "rollout", "restart", injector];
    cluster.kubectl(&restart, "")?;
    let status = ["--namespace", mesh::NAMESPACE, "rollout", "status", injector, "--timeout=120s"];
    cluster.kubectl(&status, "").map(drop)
}

fn is_injected(pod: &Value) -> bool {
    let containers = pod["spec"]["containers"].as_array();
    containers.is_some_and(|list| list.iter().any(|each| each["name"] == "envoy-sidecar"))
}
