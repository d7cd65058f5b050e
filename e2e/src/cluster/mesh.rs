//! What is installed on a cluster of ours: Consul and the injector.

use std::path::Path;

use serde_json::{Value, json};

use super::write;
use crate::Result;
use crate::process::run;

const CONSUL: &str = include_str!("../../manifests/cluster/consul.yaml");
const INJECTOR: &str = include_str!("../../manifests/cluster/injector.yaml");

/// The namespace of both.
pub const NAMESPACE: &str = "consul";
/// The injector's Deployment, Service and webhook.
pub const INJECT: &str = "connect-injector";

/// Installs both, and waits until they are ready.
///
/// # Errors
/// Something did not become ready; with the state of the pods.
pub fn install(kubectl: &Path, kubeconfig: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = format!("--kubeconfig={}", kubeconfig.display());
    let kubectl = |args: &[&str]| {
        let args: Vec<&str> = [config.as_str()].into_iter().chain(args.iter().copied()).collect();
        run(&kubectl.to_string_lossy(), &args)
    };
    let apply = |name: &str, text: &str| {
        let file = folder.path().join(name);
        write(&file, text)?;
        kubectl(&["apply", "--filename", &file.to_string_lossy()])
    };
    // Later releases have the label by themselves.
    kubectl(&["label", "namespace", "kube-system", "kubernetes.io/metadata.name=kube-system"])?;
    apply("consul.yaml", CONSUL)?;

    let host = format!("{INJECT}.{NAMESPACE}.svc");
    let made = rcgen::generate_simple_self_signed([host])?;
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": format!("{INJECT}-tls"), "namespace": NAMESPACE},
        "type": "kubernetes.io/tls",
        "stringData": {"tls.crt": made.cert.pem(), "tls.key": made.signing_key.serialize_pem()},
    });
    apply("secret.json", &secret.to_string())?;
    apply("injector.yaml", INJECTOR)?;
    let rolled_out = |what: &str| {
        let rollout = ["rollout", "status", what, "--namespace", NAMESPACE, "--timeout=120s"];
        kubectl(&rollout).map_err(|error| {
            let pods = kubectl(&["describe", "pods", "--namespace", NAMESPACE]);
            format!("{error}\n{}", pods.unwrap_or_default())
        })
    };
    rolled_out("deployment/consul-server")?;
    rolled_out("daemonset/consul-client")?;
    rolled_out(&format!("deployment/{INJECT}"))?;
    // Last: from now on pods are not admitted without it.
    apply("webhook.json", &webhook(&made.cert.pem()).to_string())?;
    Ok(())
}

fn webhook(ca: &str) -> Value {
    use base64::Engine as _;
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": INJECT},
        "webhooks": [{
            "name": "connect-injector.consul.hashicorp.com",
            "admissionReviewVersions": ["v1", "v1beta1"],
            "sideEffects": "None",
            "failurePolicy": "Fail",
            "reinvocationPolicy": "IfNeeded",
            "timeoutSeconds": 5,
            "rules": [{
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": ["CREATE"],
                "resources": ["pods"],
                "scope": "Namespaced",
            }],
            "namespaceSelector": {"matchExpressions": [
                {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system", NAMESPACE]},
            ]},
            "clientConfig": {
                "service": {"namespace": NAMESPACE, "name": INJECT, "path": "/mutate", "port": 443},
                "caBundle": base64::prelude::BASE64_STANDARD.encode(ca),
            },
        }],
    })
}
