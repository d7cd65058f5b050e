//! What is installed on a cluster of ours: Consul by manifests, the injector by
//! its chart.

use std::path::Path;

use serde_json::json;

use super::{images, write};
use crate::process::run;
use crate::python::{Release, Tools};
use crate::{Result, image};

const CONSUL: &str = include_str!("../../manifests/cluster/consul.yaml");

/// The namespace of both.
pub const NAMESPACE: &str = "consul";
/// The injector's Deployment, Service and webhook, as the chart names them for
/// a release that is called as the namespace is.
pub const INJECT: &str = "consul-connect-inject";

/// Installs both, and waits until they are ready.
///
/// # Errors
/// Something did not become ready; with the state of the pods.
pub fn install(kubectl: &Path, kubeconfig: &Path, helm: &Tools) -> Result<()> {
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
    let rolled_out = |what: &str| {
        let rollout = ["rollout", "status", what, "--namespace", NAMESPACE, "--timeout=120s"];
        kubectl(&rollout).map_err(|error| {
            let pods = kubectl(&["describe", "pods", "--namespace", NAMESPACE]);
            let logs = kubectl(&["logs", what, "--namespace", NAMESPACE, "--tail=20"]);
            format!("{error}\n{}\n{}", pods.unwrap_or_default(), logs.unwrap_or_default())
        })
    };
    // Later releases have the label by themselves.
    kubectl(&["label", "namespace", "kube-system", "kubernetes.io/metadata.name=kube-system"])?;
    apply("consul.yaml", CONSUL)?;
    apply("injector.yaml", &injector(helm)?)?;
    rolled_out("deployment/consul-server")?;
    rolled_out("daemonset/consul-client")?;
    rolled_out(&format!("deployment/{INJECT}"))?;
    Ok(())
}

/// The injector's chart, rendered as `helm template` does it: without the
/// cluster's version, which the injector asks for.
fn injector(helm: &Tools) -> Result<String> {
    let values = json!({"connectInject": {
        "image": images::INJECT,
        "imageInit": image::INIT,
        "imageEnvoy": image::ENVOY,
    }});
    let release = Release { name: NAMESPACE, namespace: NAMESPACE, values };
    let rendered = helm.render(&[release])?.releases.pop().ok_or("Helm renders nothing")??;
    let list = json!({"apiVersion": "v1", "kind": "List", "items": rendered.documents});
    Ok(list.to_string())
}
