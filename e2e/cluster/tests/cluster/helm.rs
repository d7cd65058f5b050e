//! The chart with the `helm` command: install, upgrade, roll back, uninstall.

use cluster::client::{Cluster, Namespace, text};
use cluster::helm::Helm;
use cluster::mesh;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{all_are_injected, is_injected, ours, server, trusted};

/// A release in the namespace of its name. Its webhook is called before the mesh's, for
/// namespaces with its label.
pub(crate) struct Release<'n> {
    helm: Helm,
    cluster: &'n Cluster,
    name: &'n str,
}

impl<'n> Release<'n> {
    /// A release that is not installed yet.
    pub(crate) fn new(cluster: &'n Cluster, home: &'n Namespace<'_>) -> harness::Result<Self> {
        Ok(Self { helm: Helm::find()?, cluster, name: &home.name })
    }

    /// Installs or upgrades it, with some values of `connectInject`.
    pub(crate) fn apply(&self, command: &str, own: &Value) -> harness::Result<String> {
        let mut values = mesh::values(&json!({
            "namespaceSelector": {"matchLabels": {"release": self.name}},
            "resources": {"requests": {"cpu": "10m"}},
        }));
        json_patch::merge(&mut values["connectInject"], own);
        self.helm.apply(command, self.name, &values)
    }

    /// Labels a namespace, so that this release injects its pods.
    pub(crate) fn adopt(&self, namespace: &Namespace<'_>) -> harness::Result<()> {
        let label = format!("release={}", self.name);
        self.cluster.kubectl(&["label", "namespace", &namespace.name, &label], "").map(drop)
    }

    fn run(&self, args: &[&str]) -> harness::Result<String> {
        self.helm.run(&[args, &["--namespace", self.name]].concat())
    }

    /// Number of Envoy's workers in a new pod.
    fn concurrency(&self, namespace: &Namespace<'_>) -> harness::Result<String> {
        let path = format!("/api/v1/namespaces/{}/pods?dryRun=All", namespace.name);
        let pod = self.cluster.request(Method::POST, &path, Some(&server("helmed", "hello")))?;
        let containers = pod["spec"]["initContainers"].as_array().cloned().unwrap_or_default();
        let sidecar = containers.iter().find(|each| each["name"] == "envoy-sidecar");
        let command = sidecar.and_then(|each| each["command"].as_array().cloned());
        let words = command.unwrap_or_default();
        let mut words = words.iter().skip_while(|word| *word != "--concurrency").skip(1);
        Ok(words.next().map(text).unwrap_or_default().to_owned())
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
        // Webhook configurations are cluster-scoped and not removed with the namespace.
        let _ = self.run(&["uninstall", self.name, "--ignore-not-found"]);
    }
}

/// The value that shows which revision injected a pod: the number of Envoy's workers.
fn workers(count: &Value) -> Value {
    json!({"sidecarProxy": {"concurrency": count}})
}

/// Pods are created continuously meanwhile: none is rejected, none is missed.
#[test]
fn helm_installs_upgrades_rolls_back_and_uninstalls_the_chart() {
    let Some((cluster, _shared)) = ours() else { return };
    let home = cluster.namespace("a-helm").unwrap();
    let namespace = cluster.namespace("helmed").unwrap();
    let release = Release::new(cluster, &home).unwrap();
    release.adopt(&namespace).unwrap();
    let webhook = format!("{}-connect-inject", home.name);

    release.apply("install", &workers(&3.into())).unwrap();
    release.await_concurrency(&namespace, "3");
    // Helm knows the cluster's version, for the webhook's conditions. The injector asks for it
    // itself: a version set by the chart would be stale after an upgrade of the cluster.
    let path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
    let webhooks = cluster.get(&format!("{path}/{webhook}")).unwrap()["webhooks"].take();
    // For each value of the namespace's label, one webhook for pods that ask for injection,
    // and one for pods that may need a warning.
    assert_eq!(webhooks.as_array().unwrap().len(), 6, "{webhooks:#}");
    assert_eq!(webhooks[0]["matchConditions"][0]["name"], "asks");
    let config = home.kubectl(&["get", "configmap", "--output=yaml"]).unwrap();
    assert!(!config.contains("kubernetes-version"), "{config}");
    let ca = trusted(cluster, &webhook).unwrap();
    assert!(ca.contains("BEGIN CERTIFICATE"), "{ca}");

    all_are_injected(cluster, &namespace, || {
        release.apply("upgrade", &workers(&4.into())).map(drop)
    });
    release.await_concurrency(&namespace, "4");
    assert_eq!(trusted(cluster, &webhook).unwrap(), ca, "the upgrade took the CA away");

    // An invalid value changes nothing.
    let refused = release.apply("upgrade", &workers(&"many".into())).unwrap_err().to_string();
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
    // The Secret that the replicas share, and Helm's own.
    assert_eq!(left(kinds, release.name), Vec::<String>::new());
    // The mesh's injector injects pods again.
    let path = format!("/api/v1/namespaces/{}/pods?dryRun=All", namespace.name);
    let shown = cluster.request(Method::POST, &path, Some(&server("helmed", "hello"))).unwrap();
    assert!(is_injected(&shown), "{shown:#}");
}

/// A chart with two CustomResourceDefinitions that a value removes, like
/// `connectInject.enabled` in Consul's own chart.
const DEFINITIONS: &str = r#"
{{- range (.Values.without | ternary (list) (list "kept" "lost")) }}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: {{ . }}.definitions.example.com
  labels: {component: {{ . }}}
spec:
  group: definitions.example.com
  names: {kind: {{ title . }}, plural: {{ . }}, singular: {{ . }}}
  scope: Namespaced
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
{{- end }}
"#;

/// The definitions, which belong to no namespace.
struct Definitions<'c>(&'c Cluster);

impl Drop for Definitions<'_> {
    fn drop(&mut self) {
        let all = ["kept", "lost"].map(|name| format!("{name}.definitions.example.com"));
        let delete = ["delete", "customresourcedefinitions", "--ignore-not-found"];
        let _ = self.0.kubectl(&[delete.as_slice(), &[&all[0], &all[1]]].concat(), "");
    }
}

/// From 1.0 on, Consul's own chart removes its CustomResourceDefinitions with its injector.
/// As the migration page says, annotated definitions stay, with their resources.
#[test]
fn helm_keeps_a_definition_that_is_annotated_before_it_is_left_out() {
    let Some((cluster, _shared)) = ours() else { return };
    let home = cluster.namespace("definitions").unwrap();
    let chart = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        #[expect(clippy::disallowed_methods, reason = "nobody reads it yet")]
        std::fs::write(chart.path().join(name), text).unwrap();
    };
    std::fs::create_dir(chart.path().join("templates")).unwrap();
    write("Chart.yaml", "apiVersion: v2\nname: definitions\nversion: 0.1.0\n");
    write("values.yaml", "without: false\n");
    write("templates/definitions.yaml", DEFINITIONS);
    let helm = Helm::find().unwrap();
    let folder = chart.path().to_str().unwrap();
    let run = |args: &[&str]| {
        helm.run(&[args, &["--namespace", &home.name]].concat()).unwrap();
    };
    run(&["install", "definitions", folder, "--wait", "--timeout=60s"]);
    let _definitions = Definitions(cluster);
    let kubectl = |args: &[&str]| cluster.kubectl(args, "").unwrap();
    let kept = "{apiVersion: definitions.example.com/v1, kind: Kept, metadata: {name: a}}";
    harness::until("the new kind to be known", || home.apply(kept).is_ok()).unwrap();
    kubectl(&[
        "annotate",
        "customresourcedefinitions",
        "--selector=component=kept",
        "helm.sh/resource-policy=keep",
    ]);
    run(&["upgrade", "definitions", folder, "--set=without=true", "--wait", "--timeout=60s"]);
    let mut left = String::new();
    harness::until("one definition less", || {
        left = kubectl(&["get", "customresourcedefinitions", "--output=name"]);
        !left.contains("lost.definitions.example.com")
    })
    .unwrap_or_else(|error| panic!("{error}: {left}"));
    let there = home.kubectl(&["get", "kept/a", "--output=name"]);
    run(&["uninstall", "definitions"]);
    assert!(left.contains("kept.definitions.example.com"), "{left}");
    assert!(there.unwrap().contains("kept.definitions.example.com/a"));
}
