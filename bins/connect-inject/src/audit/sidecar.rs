//! Compares a pod's sidecar with the one that the injector would give the pod now.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::snapshot::Sidecar;
use crate::annotation::{self, SERVICE, SERVICE_PORT, STATUS, UNDO, USER_VOLUMES};
use crate::inject;
use crate::judge::judge;
use crate::names::{HELPER, INIT_CONTAINER, REDIRECT, SIDECAR, VOLUME};
use crate::outcome::{Outcome, Reason};
use crate::plan::BIND_ADDRESS;
use crate::policy::{Cluster, Policy};

/// What a restart of the pod would change, with details for the finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// An image differs from the one that the injector would use now.
    Images(String),
    /// The annotations that define the registration changed after the injection.
    Annotations(String),
    /// Anything else, because of other settings of the injector.
    Policy(String),
    /// The injector would deny the pod.
    Denied(Reason, String),
}

/// One of our containers.
struct Ours<'p> {
    /// As the injector would add it now.
    wanted: &'p Value,
    /// As it is in the pod.
    found: Option<&'p Value>,
}

/// The fields of a container that the injector sets. Resources are not compared, because the
/// API server normalizes quantities and a LimitRange adds defaults; nor are mounts.
const COMPARED: [&str; 8] = [
    "args",
    "command",
    "env",
    "lifecycle",
    "startupProbe",
    "readinessProbe",
    "livenessProbe",
    "restartPolicy",
];

/// The flags of `connect-init` that depend on annotations only, besides [`PROXY_CONFIG`].
const ANNOTATED: [&str; 4] = ["--service=", "--upstream=", "--tag=", "--meta="];

/// A flag of `connect-init` that depends on annotations except for [`BIND_ADDRESS`].
const PROXY_CONFIG: &str = "--proxy-config=";

/// Holds the agents' CA. The audit may not know this CA, because its file is in the injector's
/// pod.
const CA: &str = "CONSUL_CACERT_PEM";

/// Variables whose default depends on whether there is such a CA.
const ADDRESSES: [&str; 2] = ["CONSUL_HTTP_ADDR", "CONSUL_GRPC_ADDR"];

/// Reads the sidecar of a pod; `None` if the pod has none of ours.
///
/// A pod without the injector's label is a copy of an injected pod, such as `kubectl debug
/// --copy-to` creates. `connect-init` refuses to register it, and nothing recreates it.
pub(super) fn sidecar(pod: &Value) -> Option<Sidecar> {
    if pod["metadata"]["labels"][STATUS].as_str().is_none_or(str::is_empty) {
        return None;
    }
    let init = container(pod, INIT_CONTAINER)?;
    let services: Vec<String> = strings(&init["args"])
        .filter_map(|arg| arg.strip_prefix("--service="))
        .map(|service| service.split(':').next().unwrap_or_default().to_owned())
        .collect();
    let envoy = container(pod, SIDECAR).filter(|envoy| runs(envoy, HELPER))?;
    if services.is_empty() {
        return None;
    }
    Some(Sidecar {
        services,
        native: envoy["restartPolicy"] == "Always",
        envoy: envoy["image"].as_str().unwrap_or_default().to_owned(),
        service_account: pod["spec"]["serviceAccountName"].as_str().unwrap_or_default().to_owned(),
    })
}

/// Whether the pod has a sidecar that [`sidecar`] does not count: that of another injector, or
/// the copy of one of ours.
pub(super) fn has_another(pod: &Value) -> bool {
    // consul-k8s appends the service's name if a pod has several.
    let is_one = |name: &str| {
        [SIDECAR, "consul-dataplane"].iter().any(|sidecar| {
            let rest = name.strip_prefix(sidecar);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        })
    };
    containers(pod).any(|container| is_one(name(container)))
}

/// What a restart would change in a pod with our sidecar.
pub(super) fn change(
    pod: &Value,
    namespace: &str,
    policy: &Policy,
    cluster: &Cluster,
) -> Option<Change> {
    // The pod does not show whether it brought its preStop sleep or the injector added it. A
    // change is reported only if both assumptions lead to one.
    let mut first = None;
    for keeps_sleep in [false, true] {
        let change = change_of(pod, &as_it_came(pod, keeps_sleep), namespace, policy, cluster)?;
        first = first.or(Some(change));
    }
    first
}

fn change_of(
    pod: &Value,
    before: &Value,
    namespace: &str,
    policy: &Policy,
    cluster: &Cluster,
) -> Option<Change> {
    let verdict = judge(before, namespace, policy, cluster);
    let Some(edits) = verdict.edits else {
        let is_denied = verdict.reason.outcome() == Outcome::Denied;
        if is_denied && !asks_nothing(before) {
            return Some(Change::Denied(verdict.reason, verdict.message));
        }
        let is_skipped = verdict.reason.outcome() == Outcome::Skipped;
        return (is_denied || is_skipped)
            .then(|| Change::Policy(format!("the pod would get no sidecar: {}", verdict.message)));
    };
    let now = inject::edited(before.clone(), edits).ok()?;
    let ours: Vec<Ours<'_>> = containers(&now)
        .filter(|container| is_ours(container))
        .map(|wanted| Ours { wanted, found: container(pod, name(wanted)) })
        .collect();
    if let Some(declared) = ours.iter().find_map(Ours::declared) {
        return Some(Change::Annotations(declared));
    }
    if let Some(images) = ours.iter().find_map(Ours::image) {
        return Some(Change::Images(images));
    }
    // The injector rewrote the probes of a transparent pod; their original form is unknown.
    if container(pod, REDIRECT).is_some() {
        return None;
    }
    let differences: Vec<String> = ours.iter().flat_map(Ours::differences).collect();
    (!differences.is_empty()).then(|| Change::Policy(differences.join(", ")))
}

/// Whether the pod may have come without any of our annotations, to be injected by default.
/// The injector then added these, and skips such a pod where it would deny another.
fn asks_nothing(before: &Value) -> bool {
    let annotations = before["metadata"]["annotations"].as_object();
    let mut ours = annotations.into_iter().flat_map(annotation::ours);
    ours.all(|key| [SERVICE, SERVICE_PORT, annotation::REDIRECT].contains(&key))
}

/// Reconstructs the pod as it was before the injection, as far as possible.
fn as_it_came(pod: &Value, keeps_sleep: bool) -> Value {
    let mut pod = pod.clone();
    // The injector would deny a pod that already has a volume which it is to add.
    let added = pod["metadata"]["annotations"][USER_VOLUMES].as_str();
    let added = added.and_then(|list| serde_json::from_str::<Vec<Value>>(list).ok());
    let is_added = |volume: &Value| added.iter().flatten().any(|added| name(added) == name(volume));
    if let Some(Value::Array(volumes)) = pod.pointer_mut("/spec/volumes") {
        volumes.retain(|volume| {
            !name(volume).starts_with("consul-connect-inject-") && !is_added(volume)
        });
    }
    for (field, key) in [("annotations", STATUS), ("annotations", UNDO), ("labels", STATUS)] {
        if let Some(Value::Object(entries)) = pod.pointer_mut(&format!("/metadata/{field}")) {
            entries.remove(key);
        }
    }
    for list in ["/spec/containers", "/spec/initContainers"] {
        let Some(Value::Array(containers)) = pod.pointer_mut(list) else { continue };
        containers.retain(|container| !is_ours(container));
        for container in containers {
            if let Some(Value::Array(mounts)) = container.get_mut("volumeMounts") {
                mounts.retain(|mount| mount["name"] != VOLUME);
            }
            let is_sleep = container["lifecycle"]["preStop"].get("sleep").is_some();
            if let Some(Value::Object(hooks)) = container.get_mut("lifecycle")
                && is_sleep
                && !keeps_sleep
            {
                hooks.remove("preStop");
            }
        }
    }
    pod
}

fn is_ours(container: &Value) -> bool {
    let name = name(container);
    let is_further = name.strip_prefix(SIDECAR).is_some_and(|rest| rest.starts_with('-'));
    name == INIT_CONTAINER || name == SIDECAR || is_further || runs(container, "/connect-")
}

fn runs(container: &Value, program: &str) -> bool {
    strings(&container["command"]).next().is_some_and(|command| command.starts_with(program))
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"]
        .into_iter()
        .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten())
}

fn container<'p>(pod: &'p Value, wanted: &str) -> Option<&'p Value> {
    containers(pod).find(|container| name(container) == wanted)
}

fn name(element: &Value) -> &str {
    element["name"].as_str().unwrap_or_default()
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// The arguments of a container that depend on annotations only, and the part of
/// [`PROXY_CONFIG`] that does.
fn declared(container: &Value) -> Vec<Cow<'_, str>> {
    strings(&container["args"])
        .filter_map(|arg| match arg.strip_prefix(PROXY_CONFIG) {
            Some(config) => without_bind_address(config),
            None => ANNOTATED.iter().any(|flag| arg.starts_with(flag)).then_some(arg.into()),
        })
        .collect()
}

/// [`PROXY_CONFIG`] without the address of Envoy's metrics, which may come from the policy;
/// `None` if nothing is left.
fn without_bind_address(config: &str) -> Option<Cow<'_, str>> {
    let mut members: Map<String, Value> = serde_json::from_str(config).unwrap_or_default();
    members.remove(BIND_ADDRESS);
    (!members.is_empty()).then(|| format!("{PROXY_CONFIG}{}", Value::Object(members)).into())
}

/// Notes the places where `found` lacks or contradicts something in `wanted`. Additional
/// values are fine, because the API server and other webhooks add some.
fn compare(wanted: &Value, found: &Value, place: &str, differences: &mut Vec<String>) {
    match (wanted, found) {
        (Value::Null, _) => {}
        (Value::Object(wanted), Value::Object(found)) => {
            let none = Value::Null;
            for (key, wanted) in wanted {
                let found = found.get(key).unwrap_or(&none);
                compare(wanted, found, &format!("{place}.{key}"), differences);
            }
        }
        (Value::Array(wanted), Value::Array(found)) if wanted.iter().all(is_named) => {
            for wanted in wanted {
                let found = found.iter().find(|found| name(found) == name(wanted));
                let place = format!("{place}.{}", name(wanted));
                compare(wanted, found.unwrap_or(&Value::Null), &place, differences);
            }
        }
        (wanted, found) if wanted == found => {}
        (Value::Object(wanted), Value::Null) if wanted.values().all(Value::is_null) => {}
        _ => differences.push(place.to_owned()),
    }
}

fn has_variable(container: &Value, wanted: &str) -> bool {
    let variables = container["env"].as_array().into_iter().flatten();
    variables.into_iter().any(|variable| name(variable) == wanted)
}

fn is_named(element: &Value) -> bool {
    element.as_object().and_then(|fields: &Map<_, _>| fields.get("name")).is_some()
}

// === impl Ours ===

impl Ours<'_> {
    /// How the image differs.
    fn image(&self) -> Option<String> {
        let (wanted, found) = (self.wanted["image"].as_str()?, self.found?["image"].as_str()?);
        (wanted != found).then(|| format!("{found}, but the injector would now use {wanted}"))
    }

    /// How the arguments that depend on annotations differ.
    fn declared(&self) -> Option<String> {
        let (wanted, found) = (declared(self.wanted), declared(self.found?));
        let only = |these: &[Cow<'_, str>], those: &[Cow<'_, str>]| {
            let only: Vec<&str> =
                these.iter().filter(|arg| !those.contains(arg)).map(|arg| &**arg).collect();
            if only.is_empty() { "nothing".to_owned() } else { only.join(" ") }
        };
        (wanted != found)
            .then(|| format!("from {} to {}", only(&found, &wanted), only(&wanted, &found)))
    }

    /// The places where the fields that the injector sets differ.
    fn differences(&self) -> Vec<String> {
        let name = name(self.wanted);
        let Some(found) = self.found else { return vec![format!("container {name}")] };
        let mut wanted = self.wanted.clone();
        let knows_ca = has_variable(&wanted, CA) || !has_variable(found, CA);
        if let Some(Value::Array(variables)) = wanted.get_mut("env") {
            variables.retain(|variable| {
                let name = self::name(variable);
                name != CA && (knows_ca || !ADDRESSES.contains(&name))
            });
        }
        let mut differences = Vec::new();
        for field in COMPARED {
            compare(&wanted[field], &found[field], &format!("{name}.{field}"), &mut differences);
        }
        if !wanted["restartPolicy"].is_string() && found["restartPolicy"].is_string() {
            differences.push(format!("{name}.restartPolicy"));
        }
        differences
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::annotation;
    use crate::policy::tests::{cluster, policy, policy_of};

    /// A running pod: injected, and with the fields that API server and kubelet add.
    pub(crate) fn running(annotations: &Value, policy: &Policy, cluster: &Cluster) -> Value {
        let pod = json!({
            "metadata": {"name": "web-0", "namespace": "shop", "annotations": annotations},
            "spec": {"nodeName": "n1", "serviceAccountName": "web", "containers": [
                {"name": "web", "image": "web:1", "ports": [{"containerPort": 8080, "name": "http"}],
                    "readinessProbe": {"httpGet": {"path": "/", "port": 8080}}},
                {"name": "log", "image": "log:1"},
            ]},
        });
        let edits = judge(&pod, "shop", policy, cluster).edits.unwrap();
        let mut pod = inject::edited(pod, edits).unwrap();
        pod["metadata"]["annotations"].as_object_mut().unwrap().remove(UNDO);
        for list in ["containers", "initContainers"] {
            for container in pod["spec"][list].as_array_mut().unwrap() {
                container["terminationMessagePath"] = "/dev/termination-log".into();
                for probe in ["startupProbe", "readinessProbe"] {
                    if container.get(probe).is_some() {
                        container[probe]["successThreshold"] = 1.into();
                    }
                }
                let mount = json!({"name": "kube-api-access-x", "mountPath": "/var/run/x"});
                match container.get_mut("volumeMounts") {
                    Some(Value::Array(mounts)) => mounts.push(mount),
                    _ => container["volumeMounts"] = json!([mount]),
                }
                for variable in
                    container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten()
                {
                    if variable.pointer("/valueFrom/fieldRef").is_some() {
                        variable["valueFrom"]["fieldRef"]["apiVersion"] = "v1".into();
                    }
                }
            }
        }
        pod
    }

    fn asking() -> Value {
        json!({annotation::INJECT: "true"})
    }

    #[test]
    fn a_pod_that_the_injector_would_inject_the_same_way_again_has_no_change() {
        let modern = cluster("1.34");
        for flags in [
            &[][..],
            &["--sidecar-mode=container"],
            &["--acl-auth-method=k8s", "--default-enable-metrics"],
            &["--default-inject", "--default-application-sleep-seconds=0"],
            &["--default-sidecar-proxy-liveness-failure-seconds=20", "--pod-log-level=debug"],
            &["--consul-tls-server-name=client.dc1.consul"],
            &["--default-transparent-proxy", "--default-consul-dns"],
        ] {
            let policy = policy_of(flags);
            for more in [
                json!({}),
                json!({annotation::UPSTREAMS: "db:1234,auth:1235"}),
                json!({annotation::SERVICE: "web", annotation::TAGS: "a,$POD_NAME"}),
                json!({annotation::ENVOY_ARGS: "-l debug", annotation::SLEEP: "3"}),
                json!({annotation::METRICS: "true", annotation::SIDECAR_MODE: "native"}),
                json!({
                    annotation::USER_VOLUMES: r#"[{"name": "more", "emptyDir": {}}]"#,
                    annotation::USER_MOUNTS: r#"[{"name": "more", "mountPath": "/more"}]"#,
                    annotation::ACCESS_LOGS: "/logs", annotation::MOUNT_VOLUME: "web",
                }),
            ] {
                let mut annotations = asking();
                annotations.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
                let pod = running(&annotations, &policy, &modern);
                assert_eq!(change(&pod, "shop", &policy, &modern), None, "{flags:?} {more}");
            }
        }
    }

    /// A pod with metrics by default was reported as one whose annotations had changed, which hid
    /// that its sidecar was outdated.
    #[test]
    fn metrics_that_the_policy_turns_on_or_off_are_no_change_of_an_annotation() {
        let modern = cluster("1.34");
        let (with, without) = (policy_of(&["--default-enable-metrics"]), policy());
        for config in [None, Some(r#"{"local_connect_timeout_ms": 5}"#)] {
            let mut annotations = asking();
            annotations[annotation::PROXY_CONFIG] = config.into();
            for (before, now) in [(&with, &without), (&without, &with)] {
                let pod = running(&annotations, before, &modern);
                let found = change(&pod, "shop", now, &modern);
                assert!(matches!(found, Some(Change::Policy(_))), "{config:?}: {found:?}");
                let newer = Policy { envoy_image: "envoy:2".to_owned(), ..now.clone() };
                let found = change(&pod, "shop", &newer, &modern);
                assert!(matches!(found, Some(Change::Images(_))), "{config:?}: {found:?}");
            }
            let mut edited = running(&annotations, &with, &modern);
            edited["metadata"]["annotations"][annotation::PROXY_CONFIG] =
                r#"{"local_connect_timeout_ms": 6}"#.into();
            let found = change(&edited, "shop", &without, &modern);
            assert!(matches!(found, Some(Change::Annotations(_))), "{config:?}: {found:?}");
        }
    }

    #[test]
    fn a_pod_whose_next_one_the_injector_would_deny_has_a_change_of_its_own() {
        let modern = cluster("1.34");
        let mut pod = running(&asking(), &policy(), &modern);
        let acls = policy_of(&["--acl-auth-method=k8s"]);
        let found = change(&pod, "shop", &acls, &modern);
        assert!(matches!(found, Some(Change::Policy(_))), "{found:?}");
        pod["spec"]["serviceAccountName"] = "other".into();
        let found = change(&pod, "shop", &acls, &modern);
        let Some(Change::Denied(reason, message)) = found else { panic!("{found:?}") };
        assert_eq!(reason, Reason::ServiceAccountMismatch);
        assert!(message.contains("serviceAccountName: web"), "{message}");
        assert_eq!(change(&pod, "shop", &policy(), &modern), None);
    }

    /// The injector adds annotations to a pod that has none.
    #[test]
    fn a_pod_that_is_injected_by_default_is_not_said_to_be_denied() {
        let modern = cluster("1.34");
        let mut pod = running(&json!({}), &policy_of(&["--default-inject"]), &modern);
        pod["spec"]["serviceAccountName"] = "other".into();
        let acls = policy_of(&["--default-inject", "--acl-auth-method=k8s"]);
        let found = change(&pod, "shop", &acls, &modern);
        let Some(Change::Policy(message)) = found else { panic!("{found:?}") };
        assert!(message.starts_with("the pod would get no sidecar: "), "{message}");
    }

    /// The audit may run on a machine without the injector's files.
    #[test]
    fn a_ca_that_the_audit_does_not_know_counts_as_unchanged() {
        let modern = cluster("1.34");
        let known = crate::policy::Cluster { roots: Some("ROOT".to_owned()), ..modern.clone() };
        let pod = running(&asking(), &policy_of(&["--enable-auto-encrypt"]), &known);
        assert_eq!(change(&pod, "shop", &policy_of(&[]), &modern), None);
        let other = policy_of(&["--consul-http-addr-template=http://10.0.0.1:8500"]);
        let plain = running(&asking(), &policy_of(&[]), &modern);
        let found = change(&plain, "shop", &other, &modern);
        assert!(matches!(found, Some(Change::Policy(_))), "{found:?}");
    }

    #[test]
    fn a_sidecar_is_read_from_the_pod() {
        let pod = running(&asking(), &policy(), &cluster("1.34"));
        let found = sidecar(&pod).unwrap();
        assert_eq!((found.services, found.native), (vec!["web".to_owned()], true));
        assert_eq!((found.envoy.as_str(), found.service_account.as_str()), ("envoy:1", "web"));
        let mut other = pod.clone();
        other["spec"]["initContainers"][1]["command"] = json!(["consul", "connect"]);
        assert_eq!(sidecar(&other), None);
        assert!(has_another(&other));
        let of = |name: &str| json!({"spec": {"containers": [{"name": "web"}, {"name": name}]}});
        assert!(has_another(&of("consul-dataplane")));
        assert!(has_another(&of("consul-dataplane-web-admin")), "a pod with several services");
        assert!(!has_another(&of("consul-dataplanes")));
    }

    #[test]
    fn a_change_of_image_annotation_or_policy_is_distinguished() {
        let modern = cluster("1.34");
        let old = policy();
        let pod = running(&asking(), &old, &modern);
        let mut new = policy();
        new.envoy_image = "envoy:2".to_owned();
        let found = change(&pod, "shop", &new, &modern);
        let Some(Change::Images(sentence)) = found else { panic!("{found:?}") };
        assert_eq!(sentence, "envoy:1, but the injector would now use envoy:2");
        let beside = policy_of(&["--default-transparent-proxy"]);
        let found = change(&pod, "shop", &beside, &modern);
        assert!(matches!(found, Some(Change::Policy(_))), "{found:?}");

        let found = change(&pod, "shop", &policy_of(&["--sidecar-mode=container"]), &modern);
        let Some(Change::Policy(sentence)) = found else { panic!("{found:?}") };
        assert!(sentence.contains("envoy-sidecar."), "{sentence}");
        let found = change(&pod, "shop", &policy_of(&["--pod-log-level=debug"]), &modern);
        assert!(matches!(found, Some(Change::Policy(_))), "{found:?}");
        let found = change(&pod, "shop", &policy_of(&["--deny-k8s-namespace=shop"]), &modern);
        assert!(matches!(found, Some(Change::Policy(_))), "{found:?}");

        let mut edited = pod.clone();
        edited["metadata"]["annotations"][annotation::UPSTREAMS] = "db:1234".into();
        let found = change(&edited, "shop", &old, &modern);
        assert_eq!(
            found,
            Some(Change::Annotations("from nothing to --upstream=db:1234".to_owned()))
        );
    }
}
