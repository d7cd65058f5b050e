//! `connect-inject audit` on the cluster, as a pod with the rights that it prints itself.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cluster::client::{Cluster, Namespace, text};
use cluster::{images, mesh};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{alone, annotate, in_container_mode, is_ours, server, set_of};

/// Who looks: a pod of the injector's namespace.
struct Auditor {
    cluster: &'static Cluster,
}

const NAME: &str = "audit";

/// How many pods have looked: one that is being deleted keeps its name.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// An audit looks a second time after 35 s.
const AUDIT: Duration = Duration::from_secs(180);

impl Auditor {
    /// Gives it the rights that `--print-rbac` prints.
    fn new(cluster: &'static Cluster) -> Self {
        let auditor = Self { cluster };
        cluster
            .kubectl(&["--namespace", mesh::NAMESPACE, "create", "serviceaccount", NAME], "")
            .unwrap();
        let (code, rights) = auditor.run(&["--print-rbac"]);
        assert_eq!(code, 0, "{rights}");
        cluster.kubectl(&["apply", "--filename=-"], &rights).unwrap();
        let account = format!("--serviceaccount={}:{NAME}", mesh::NAMESPACE);
        let role = "--clusterrole=connect-inject-audit";
        cluster.kubectl(&["create", "clusterrolebinding", NAME, role, &account], "").unwrap();
        auditor
    }

    /// Its exit code and its log, once it has ended.
    fn run(&self, flags: &[&str]) -> (i64, String) {
        let name = format!("{NAME}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let args: Vec<&str> = ["audit", "--config=/config/config.yaml"]
            .into_iter()
            .chain(flags.iter().copied())
            .collect();
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": mesh::NAMESPACE,
                "annotations": {"consul.hashicorp.com/connect-inject": "false"}},
            "spec": {
                "serviceAccountName": NAME,
                "restartPolicy": "Never",
                "containers": [{
                    "name": "audit", "image": images::INJECT, "imagePullPolicy": "IfNotPresent",
                    "args": args,
                    "env": [
                        {"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
                        {"name": "CONSUL_HTTP_ADDR", "value": "http://$(HOST_IP):8500"},
                        // What is written is data only.
                        {"name": "CONNECT_LOG_LEVEL", "value": "off"},
                    ],
                    "volumeMounts": [{"name": "config", "mountPath": "/config"}],
                }],
                "volumes": [{"name": "config", "configMap": {"name": mesh::INJECT}}],
            },
        });
        self.cluster.kubectl(&["apply", "--filename=-"], &pod.to_string()).unwrap();
        let path = format!("/api/v1/namespaces/{}/pods/{name}", mesh::NAMESPACE);
        let mut code = None;
        harness::until_within(AUDIT, "the end of the audit", || {
            let pod = self.cluster.get(&path).unwrap_or_default();
            code =
                pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"].as_i64();
            code.is_some()
        })
        .unwrap();
        let logs = ["--namespace", mesh::NAMESPACE, "logs", &name];
        let log = self.cluster.kubectl(&logs, "").unwrap();
        let delete = ["--namespace", mesh::NAMESPACE, "delete", "pod", &name, "--wait=false"];
        self.cluster.kubectl(&delete, "").unwrap();
        (code.unwrap(), log)
    }

    /// The findings of a namespace and of what has none, by code and name.
    fn findings(&self, namespace: &Namespace<'_>, flags: &[&str]) -> Vec<(String, String)> {
        let of = format!("--namespace={}", namespace.name);
        let (code, log) = self.run(&[&["--output=json", &of], flags].concat());
        let report: Value = serde_json::from_str(&log).unwrap_or_else(|_| panic!("{code}: {log}"));
        let findings = report["findings"].as_array().unwrap().iter();
        let findings: Vec<_> = findings
            .map(|finding| (text(&finding["code"]).to_owned(), text(&finding["name"]).to_owned()))
            .collect();
        assert_eq!(code, i64::from(!findings.is_empty()), "{log}");
        // This cluster has no DNS, by which a pod would reach the webhook's Service.
        findings.into_iter().filter(|(code, _)| code != "webhook-unreachable").collect()
    }
}

impl Drop for Auditor {
    fn drop(&mut self) {
        for what in [
            ["clusterrolebinding", NAME],
            ["clusterrole", "connect-inject-audit"],
            ["serviceaccount", NAME],
        ] {
            let delete = ["--namespace", mesh::NAMESPACE, "delete", "--ignore-not-found"];
            let _ = self.cluster.kubectl(&[delete.as_slice(), &what].concat(), "");
        }
    }
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(code, name)| ((*code).to_owned(), (*name).to_owned())).collect()
}

/// A pod that was created while nobody injected it.
fn bare(name: &str) -> Value {
    let mut pod = server(name, "hello");
    annotate(&mut pod, &[("connect-inject", "false")]);
    pod
}

#[test]
fn a_healthy_cluster_has_no_findings_in_either_mode_nor_during_a_rollout() {
    let Some((cluster, _alone)) = alone().filter(|(cluster, _)| is_ours(cluster)) else { return };
    let auditor = Auditor::new(cluster);
    let namespace = cluster.namespace("audit-well").unwrap();
    namespace.apply(&set_of("Deployment", &server("well", "hello"), 2).to_string()).unwrap();
    let container = in_container_mode(server("well-container", "hello"));
    namespace.apply(&set_of("Deployment", &container, 1).to_string()).unwrap();
    for name in ["well", "well-container"] {
        namespace.await_rollout(&format!("deployment/{name}")).unwrap();
    }
    // No pod is too young to be judged.
    assert_eq!(auditor.findings(&namespace, &["--grace=0s"]), []);
    namespace
        .kubectl(&["rollout", "restart", "deployment/well", "deployment/well-container"])
        .unwrap();
    assert_eq!(auditor.findings(&namespace, &[]), []);
}

#[test]
fn what_does_not_add_up_is_found_and_gone_after_the_advice() {
    let Some((cluster, _alone)) = alone().filter(|(cluster, _)| is_ours(cluster)) else { return };
    let auditor = Auditor::new(cluster);
    let namespace = cluster.namespace("audit-ill").unwrap();
    // Created without a sidecar; and injected, with an annotation that changes.
    namespace.apply(&bare("bare").to_string()).unwrap();
    namespace.apply(&server("changed", "hello").to_string()).unwrap();
    for pod in ["pod/bare", "pod/changed"] {
        namespace.await_condition(pod, "Ready").unwrap();
    }
    let key = |name: &str, value: &str| format!("consul.hashicorp.com/{name}={value}");
    namespace
        .kubectl(&["annotate", "--overwrite", "pod/bare", &key("connect-inject", "true")])
        .unwrap();
    let upstream = key("connect-service-upstreams", "nobody-at-all:1234");
    namespace.kubectl(&["annotate", "pod/changed", &upstream]).unwrap();
    // A registration as one that nobody took back, and one by hand.
    let pod = format!("{}_gone_audit-web", namespace.name);
    let meta = json!({"pod-name": "gone", "k8s-namespace": namespace.name});
    let register = |id: &str| {
        let service = json!({"ID": id, "Name": "audit-web", "Address": "10.9.9.9", "Meta": meta});
        cluster.consul_request(Method::PUT, "/v1/agent/service/register", Some(&service)).unwrap();
    };
    register(&pod);
    register("audit-by-hand");
    // An intention of nobody.
    let intention =
        json!({"SourceName": "audit-nobody", "DestinationName": "changed", "Action": "allow"});
    cluster.consul_request(Method::POST, "/v1/connect/intentions", Some(&intention)).unwrap();
    assert_eq!(
        auditor.findings(&namespace, &["--settle=1s"]),
        pairs(&[
            ("pod-without-sidecar", "bare"),
            ("registration-orphaned", &pod),
            ("annotations-changed", "changed"),
            ("intention-unmatched", "audit-nobody -> changed"),
        ])
    );

    // What each advises.
    let (_, log) =
        auditor.run(&["--repair", "--yes", "--settle=1s", "--only=registration-orphaned"]);
    assert!(!cluster.is_unknown("audit-web").unwrap(), "that by hand stays: {log}");
    namespace.kubectl(&["delete", "pod/bare", "pod/changed"]).unwrap();
    namespace.apply(&server("bare", "hello").to_string()).unwrap();
    namespace.apply(&server("changed", "hello").to_string()).unwrap();
    for pod in ["pod/bare", "pod/changed"] {
        namespace.await_condition(pod, "Ready").unwrap();
    }
    let exact = "/v1/connect/intentions/exact?source=audit-nobody&destination=changed";
    cluster.consul_request(Method::DELETE, exact, None).unwrap();
    assert_eq!(auditor.findings(&namespace, &["--settle=1s"]), []);
    cluster
        .consul_request(Method::PUT, "/v1/agent/service/deregister/audit-by-hand", None)
        .unwrap();
}
