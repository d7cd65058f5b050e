//! The chart, by the `helm` command: a release is installed, upgraded, rolled
//! back and uninstalled.

use cluster::client::{Cluster, Namespace, text};
use cluster::helm::Helm;
use cluster::mesh;
use reqwest::Method;
use serde_json::{Value, json};

use crate::injector::{all_are_injected, trusted};
use crate::support::{ours, server};

/// A release of its own, whose webhook comes before the mesh's and is asked about
/// the namespaces with its label. Its namespace has its name.
struct Release<'n> {
    helm: Helm,
    cluster: &'n Cluster,
    name: &'n str,
}

impl Release<'_> {
    /// Installs or upgrades it. Injected pods show which values were in force: by
    /// the number of Envoy's workers.
    fn apply(&self, command: &str, concurrency: &Value) -> harness::Result<String> {
        let values = mesh::values(&json!({
            "namespaceSelector": {"matchLabels": {"release": self.name}},
            "sidecarProxy": {"concurrency": concurrency},
            "resources": {"requests": {"cpu": "10m"}},
        }));
        self.helm.apply(command, self.name, &values)
    }

    fn run(&self, args: &[&str]) -> harness::Result<String> {
        self.helm.run(&[args, &["--namespace", self.name]].concat())
    }

    /// How many workers Envoy has in a pod that is created now.
    fn concurrency(&self, namespace: &Namespace<'_>) -> harness::Result<String> {
        let path = format!("/api/v1/namespaces/{}/pods?dryRun=All", namespace.name);
        let pod = self.cluster.request(Method::POST, &path, Some(&server("helmed", "hello")))?;
        let containers = pod["spec"]["initContainers"].as_array().cloned().unwrap_or_default();
        let sidecar = containers.iter().find(|each| each["name"] == "envoy-sidecar");
        let command = sidecar.and_then(|each| each["command"].as_array().cloned());
        let mut words = command.unwrap_or_default().into_iter();
        let after = words.by_ref().skip_while(|word| word != "--concurrency").nth(1);
        Ok(text(&after.unwrap_or_default()).to_owned())
    }

    fn await_concurrency(&self, namespace: &Namespace<'_>, wanted: &str) {
        let mut seen = String::new();
        harness::until("a pod injected with the release's values", || {
            seen = self.concurrency(namespace).unwrap_or_else(|error| error.to_string());
            seen == wanted
        })
        .unwrap_or_else(|error| panic!("{error}: {seen}"));
    }
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        // A release that is left behind would be asked about nobody's pods; still.
        let _ = self.run(&["uninstall", self.name, "--ignore-not-found"]);
    }
}

/// Its life, with pods created all the while: none is refused, none is missed.
#[test]
fn helm_installs_upgrades_rolls_back_and_uninstalls_the_chart() {
    let Some((cluster, _shared)) = ours() else { return };
    let home = cluster.namespace("a-helm").unwrap();
    let namespace = cluster.namespace("helmed").unwrap();
    let label = format!("release={}", home.name);
    cluster.kubectl(&["label", "namespace", &namespace.name, &label], "").unwrap();
    let release = Release { helm: Helm::find().unwrap(), cluster, name: &home.name };
    let webhook = format!("{}-connect-inject", home.name);

    release.apply("install", &json!(3)).unwrap();
    release.await_concurrency(&namespace, "3");
    // The cluster says its version: nobody has to.
    let config = home.kubectl(&["get", "configmap", "--output=yaml"]).unwrap();
    let version = cluster.get("/version").unwrap();
    let version = format!("{}.{}", text(&version["major"]), text(&version["minor"]));
    assert!(config.contains(&version), "{config}");
    let ca = trusted(cluster, &webhook).unwrap();
    assert!(ca.contains("BEGIN CERTIFICATE"), "{ca}");

    all_are_injected(cluster, &namespace, || release.apply("upgrade", &json!(4)).map(drop));
    release.await_concurrency(&namespace, "4");
    assert_eq!(trusted(cluster, &webhook).unwrap(), ca, "the upgrade took the CA away");

    // A value that is wrong changes nothing.
    let refused = release.apply("upgrade", &json!("many")).unwrap_err().to_string();
    assert!(refused.contains("concurrency"), "{refused}");

    all_are_injected(cluster, &namespace, || {
        release.run(&["rollback", release.name, "1", "--wait", "--timeout=120s"]).map(drop)
    });
    release.await_concurrency(&namespace, "3");
    assert_eq!(trusted(cluster, &webhook).unwrap(), ca, "the rollback took the CA away");

    release.run(&["uninstall", release.name, "--wait", "--timeout=120s"]).unwrap();
    let left = |kinds: &str, filter: &str| {
        let args = ["get", kinds, "--ignore-not-found", "--output=name", "--all-namespaces"];
        let left = cluster.kubectl(&args, "").unwrap();
        left.lines().filter(|line| line.contains(filter)).map(str::to_owned).collect::<Vec<_>>()
    };
    let kinds = "mutatingwebhookconfigurations,clusterroles,clusterrolebindings,roles,\
                 rolebindings,serviceaccounts,configmaps,secrets,services,deployments,\
                 poddisruptionbudgets,leases";
    // Secrets that the replicas share, and Helm's own, too.
    assert_eq!(left(kinds, release.name), Vec::<String>::new());
    let pod = server("helmed", "hello").to_string();
    // Pods are the mesh's injector's again.
    let shown = namespace.try_kubectl(&["create", "--filename=-", "--dry-run=server"], &pod);
    assert!(shown.unwrap().status.success());
}
