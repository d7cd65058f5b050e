//! Installs Consul with manifests and the injector with its chart, on a cluster of
//! `scripts/cluster`.

use std::path::Path;

use serde_json::{Value, json};

use crate::helm::Helm;
use crate::network::Family;
use crate::{images, write};
use harness::Result;
use harness::process::run;
use harness::runtime::image;

const CONSUL: &str = include_str!("../manifests/consul.yaml");

/// The namespace of both.
pub const NAMESPACE: &str = "consul";
/// Name of the injector's Deployment, Service and webhook: the chart's for a release named
/// like the namespace.
pub const INJECT: &str = "consul-connect-inject";

/// Installs both, and waits until they are ready.
///
/// # Errors
/// Something did not become ready; with the state of the pods.
pub fn install(kubectl: &Path, kubeconfig: &Path, family: Family) -> Result<()> {
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
    apply("consul.yaml", &consul(family))?;
    let own = match family {
        Family::Ipv4 => json!({}),
        Family::Ipv6 => json!({"listenAddress": "[::]"}),
    };
    // The cluster's, for helm and for other commands.
    let helm = Helm::find()?.on(kubeconfig);
    let installed = helm.apply("install", NAMESPACE, &values(&own));
    // Reports why the injector did not become ready.
    rolled_out(&format!("deployment/{INJECT}"))?;
    installed?;
    rolled_out("deployment/consul-server")?;
    rolled_out("daemonset/consul-client")?;
    Ok(())
}

/// The manifest of a second Consul, with ACLs.
pub const ACL_CONSUL: &str = include_str!("../manifests/acl.yaml");
/// Its namespace, and the release of its injector there. By its name, its webhook is called
/// before the first one.
pub const ACL: &str = "acl";
/// Its auth method.
pub const ACL_METHOD: &str = "pods";

/// The values of the injector that belongs to the Consul with ACLs: for namespaces
/// with the label `mesh: acl`.
pub fn acl_values() -> Value {
    values(&json!({
        "replicas": 1,
        "namespaceSelector": {"matchLabels": {"mesh": ACL}},
        "agent": {"httpAddr": "http://$(HOST_IP):9500", "grpcAddr": "$(HOST_IP):9502"},
        "overrideAuthMethodName": ACL_METHOD,
    }))
}

/// The manifest of Consul, for a cluster with these addresses.
fn consul(family: Family) -> String {
    let server = family.network().server;
    let host = "$(HOST_IP)";
    CONSUL
        .replace("SERVER_IN_URL", &family.in_url(server))
        .replace("SERVER", server)
        .replace("HOST_IN_URL", &family.in_url(host))
}

/// The chart's values for a release with the images of a cluster of `scripts/cluster`.
pub fn values(own: &Value) -> Value {
    let mut values = json!({"connectInject": {
        "image": images::INJECT,
        "imageInit": image::INIT,
        "imageEnvoy": image::ENVOY,
    }});
    json_patch::merge(&mut values["connectInject"], own);
    values
}
