//! What is installed on a cluster of ours: Consul by manifests, the injector by
//! its chart.

use std::path::Path;
use std::process::{Command, Stdio};

use super::write;
use crate::Result;
use crate::process::run;

const CONSUL: &str = include_str!("../../manifests/cluster/consul.yaml");
const VALUES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/cluster/values.yaml");
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../bins/connect-inject/chart");

/// The namespace of both.
pub const NAMESPACE: &str = "consul";
/// The injector's Deployment, Service and webhook, as the chart names them for
/// a release that is called as the namespace is.
pub const INJECT: &str = "consul-connect-inject";

/// Does what `helm template` does: chart, values, name and namespace in, a
/// stream of documents out.
const RENDER: &str = r#"
import sys, yaml
from helm_python.chart import Chart
chart, values, name = sys.argv[1:]
with open(values) as file:
    values = yaml.safe_load(file)
for path, text in sorted(Chart.load(chart).render(values, name=name, namespace=name).items()):
    if not path.endswith("/NOTES.txt") and text.strip():
        print("---\n" + text)
"#;

/// Installs both, and waits until they are ready.
///
/// # Errors
/// Something did not become ready; with the state of the pods.
pub fn install(kubectl: &Path, kubeconfig: &Path, python: &Path) -> Result<()> {
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
    apply("injector.yaml", &injector(python)?)?;
    rolled_out("deployment/consul-server")?;
    rolled_out("daemonset/consul-client")?;
    rolled_out(&format!("deployment/{INJECT}"))?;
    Ok(())
}

/// The injector's chart, rendered.
fn injector(python: &Path) -> Result<String> {
    let output = Command::new("python3")
        .args(["-c", RENDER, CHART, VALUES, NAMESPACE])
        .env("PYTHONPATH", python)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot start python3: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout)?);
    }
    Err(format!("the chart can't be rendered: {}", String::from_utf8_lossy(&output.stderr)).into())
}
