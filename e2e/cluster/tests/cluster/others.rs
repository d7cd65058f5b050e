//! Another mutating webhook in addition to ours.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cluster::client::{Cluster, Namespace};
use cluster::images;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{ours, server};

/// The API server calls webhooks in the order of their configurations' names.
#[test]
fn another_webhook_before_ours() {
    play("a-webhook-before");
}

#[test]
fn another_webhook_after_ours() {
    play("zz-webhook-after");
}

/// A pod that both webhooks change gets the additions of each, once, and runs. Either webhook
/// is called again after the other's change, as `reinvocationPolicy` says.
fn play(name: &str) {
    let Some((cluster, _shared)) = ours() else { return };
    let namespace = cluster.namespace(name).unwrap();
    let _registered = install(cluster, &namespace);
    let asked = format!("asked-{}", &name[..1]);
    // The API server takes a moment to load a configuration.
    let path = format!("/api/v1/namespaces/{}/pods?dryRun=All", namespace.name);
    let pod = server(&asked, "hello");
    harness::until("the other webhook", || {
        let shown = cluster.request(Method::POST, &path, Some(&pod));
        shown.is_ok_and(|pod| names(&pod, "containers").contains(&"beside".to_owned()))
    })
    .unwrap();

    namespace.apply(&pod.to_string()).unwrap();
    let pod = namespace.pod(&asked).unwrap();
    let mut all = [names(&pod, "initContainers"), names(&pod, "containers")].concat();
    all.sort_unstable();
    let sidecar = ["consul-connect-inject-init", "envoy-sidecar"].map(str::to_owned);
    let mut expected = [sidecar.as_slice(), &["beside".to_owned(), asked.clone()]].concat();
    expected.sort_unstable();
    assert_eq!(all, expected);
    namespace.await_condition(&format!("pod/{asked}"), "Ready").unwrap();
    cluster.await_instances(&asked, 1).unwrap();
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    let list = pod["spec"][list].as_array().cloned().unwrap_or_default();
    list.iter().filter_map(|each| Some(each["name"].as_str()?.to_owned())).collect()
}

/// A webhook configuration, which is cluster-scoped.
struct Registered(&'static Cluster, String);

impl Drop for Registered {
    fn drop(&mut self) {
        let path = format!("{CONFIGURATIONS}/{}", self.1);
        let _ = self.0.request(Method::DELETE, &path, None);
    }
}

const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

/// Runs the other webhook in the namespace, and registers it for the namespace's other pods,
/// under the namespace's name.
fn install(cluster: &'static Cluster, namespace: &Namespace<'_>) -> Registered {
    let name = &namespace.name;
    let made = rcgen::generate_simple_self_signed([format!("other.{name}.svc")]).unwrap();
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "tls"},
            "stringData": {"tls.crt": made.cert.pem(), "tls.key": made.signing_key.serialize_pem()},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "other"},
            "spec": {"selector": {"app": "other"}, "ports": [{"port": 443, "targetPort": 8443}]},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "other", "labels": {"app": "other"}},
            "spec": {
                "containers": [{
                    "name": "other",
                    "image": images::OTHER,
                    "resources": {"requests": {"cpu": "10m"}},
                    "args": ["--tls=/tls", "--image=tutum/curl"],
                    "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1},
                    "volumeMounts": [{"name": "tls", "mountPath": "/tls"}],
                }],
                "volumes": [{"name": "tls", "secret": {"secretName": "tls"}}],
            },
        },
    ]});
    namespace.apply(&objects.to_string()).unwrap();
    namespace.await_condition("pod/other", "Ready").unwrap();
    let label = format!("webhook-of={name}");
    namespace.kubectl(&["label", "namespace", name, &label]).unwrap();
    let configuration = json!({
        "metadata": {"name": name},
        "webhooks": [{
            "name": "other.example.com",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": "Fail",
            "reinvocationPolicy": "IfNeeded",
            "rules": [{
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": ["CREATE"],
                "resources": ["pods"],
            }],
            "namespaceSelector": {"matchLabels": {"webhook-of": name}},
            "clientConfig": {
                "service": {"namespace": name, "name": "other", "port": 443},
                "caBundle": BASE64_STANDARD.encode(made.cert.pem()),
            },
        }],
    });
    let registered = Registered(cluster, name.clone());
    cluster.request(Method::POST, CONFIGURATIONS, Some(&configuration)).unwrap();
    registered
}
