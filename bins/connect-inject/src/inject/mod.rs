//! Turns a plan into edits of the pod.

mod containers;
#[cfg(test)]
pub(crate) mod generated;
pub(crate) mod undo;

use std::collections::{BTreeSet, HashSet};

use k8s_openapi::api::core::v1::EnvVar;
use serde_json::{Value, json};

use crate::annotation::{INJECTED, STATUS, UNDO};
use crate::json::patch::{Edit, Editor, Text};
use crate::json::{find_mut, member};
use crate::outcome::{Denial, Reason};
use crate::plan::{LARGEST_ANNOTATIONS, Plan, Transparent};
use crate::pod::{Container, Pod};
use crate::policy::{Policy, RedirectBy};
use undo::Step;

const ANNOTATIONS: &str = "/metadata/annotations";

/// Approximate maximum size of a patch in bytes. etcd rejects objects above 1.5 MiB.
const LARGEST_PATCH: usize = 512 << 10;

/// Returns the edits that inject a pod.
///
/// # Errors
/// The pod would become too large, or a field of it has the wrong type.
pub(crate) fn inject(pod: &Value, plan: &Plan, policy: &Policy) -> Result<Vec<Edit>, Denial> {
    let view = Pod::new(pod);
    let mut editor = Editor::new(pod);
    metadata(&mut editor, plan)?;

    // Before containers are added: the paths are those in the original pod.
    variables(&mut editor, view, plan)?;
    applications(&mut editor, plan)?;

    volumes(&mut editor, plan, policy)?;
    pull_secrets(&mut editor, view, policy)?;
    containers(&mut editor, plan, policy)?;
    bounded(&editor)?;
    Ok(editor.finish())
}

/// Applies the edits to a pod of a manifest, and records in an annotation how `uninject`
/// reverses them.
///
/// # Errors
/// The annotations become too large.
pub(crate) fn edited(mut pod: Value, edits: Vec<Edit>) -> Result<Value, Denial> {
    // The manifest may be a copy of an injected pod.
    let stale = Pod::new(&pod).annotations().and_then(|all| all.get(UNDO)).cloned();
    let mut steps = undo::carry_out(&mut pod, edits);
    if let Some(old) = stale {
        steps.insert(0, Step::Replaced(member(ANNOTATIONS, UNDO), old));
    }
    let note = serde_json::to_string(&steps).expect("a step has string keys only");
    if let Some(Value::Object(annotations)) = find_mut(&mut pod, ANNOTATIONS) {
        annotations.insert(UNDO.to_owned(), json!(note));
    }
    let size = Pod::new(&pod).annotations_size();
    if size > LARGEST_ANNOTATIONS {
        return Err(Denial::new(
            Reason::PodTooLarge,
            format_args!(
                "with `{UNDO}`, the annotations have {size} bytes: Kubernetes accepts at most \
                 {LARGEST_ANNOTATIONS}; list fewer upstreams, or let the webhook inject this pod, \
                 which does not add that annotation"
            ),
        ));
    }
    Ok(pod)
}

/// Marks the pod as injected, and adds the annotations that it lacks.
fn metadata(editor: &mut Editor<'_>, plan: &Plan) -> Result<(), Denial> {
    let annotations = plan
        .defaults
        .iter()
        .map(|(key, value)| (*key, value.as_str()))
        .chain([(STATUS, INJECTED)])
        .map(|(key, value)| (key, Text::of(&value)));
    let redirect = plan.transparent.iter().filter_map(Transparent::annotation);
    let redirect = redirect.map(|(key, value)| (key, Text::of(&value)));
    editor.set(ANNOTATIONS, annotations.chain(redirect).collect())?;
    editor.set("/metadata/labels", [(STATUS, Text::of(&INJECTED))].into())?;
    Ok(())
}

/// Adds the upstreams' environment variables to those of the user's containers that run while
/// Envoy does, except variables that a container defines itself.
fn variables(editor: &mut Editor<'_>, pod: Pod<'_>, plan: &Plan) -> Result<(), Denial> {
    let variables = containers::variables(plan).into_iter();
    let variables: Vec<(EnvVar, Text)> =
        variables.map(|variable| (variable.clone(), Text::of(&variable))).collect();
    let reach = |container: &Container<'_>| plan.lifecycle.has_envoy(*container);
    for container in pod.init_containers()?.iter().filter(|c| reach(c)).chain(&pod.containers()?) {
        let own: HashSet<&str> = container.variable_names().collect();
        let lacking: Vec<Text> = variables
            .iter()
            .filter(|(variable, _)| !own.contains(variable.name.as_str()))
            .map(|(_, text)| text.clone())
            .collect();
        if !lacking.is_empty() {
            // First, so that the user's variables can refer to them.
            editor.prepend(&format!("{}/env", container.pointer()), lacking)?;
            bounded(editor)?;
        }
    }
    Ok(())
}

/// Adds mounts and preStop hooks to the user's containers, and rewrites their probes.
fn applications(editor: &mut Editor<'_>, plan: &Plan) -> Result<(), Denial> {
    for container in &plan.volumes.sharing {
        let mount = Text::of(&containers::shared_mount());
        editor.append(&format!("{container}/volumeMounts"), mount)?;
    }
    for probe in plan.transparent.iter().flat_map(|transparent| &transparent.rewritten) {
        let members = probe.members.iter();
        let members = members.map(|(key, value)| (key.as_str(), Text::of(value))).collect();
        editor.set(&probe.pointer, members)?;
        bounded(editor)?;
    }
    if let Some((seconds, sleepers)) = &plan.lifecycle.sleep {
        for container in sleepers {
            let hook = [("preStop", Text::of(&containers::sleep(*seconds)))];
            editor.set(&format!("{container}/lifecycle"), hook.into())?;
            bounded(editor)?;
        }
    }
    Ok(())
}

fn volumes(editor: &mut Editor<'_>, plan: &Plan, policy: &Policy) -> Result<(), Denial> {
    editor.append("/spec/volumes", containers::volume())?;
    if policy.acl_auth_method.is_some() {
        editor.append("/spec/volumes", Text::of(&containers::token_volume()))?;
    }
    for volume in &plan.volumes.added {
        editor.append("/spec/volumes", Text::of(volume))?;
    }
    Ok(())
}

fn pull_secrets(editor: &mut Editor<'_>, pod: Pod<'_>, policy: &Policy) -> Result<(), Denial> {
    let present: BTreeSet<&str> = pod.pull_secret_names()?.collect();
    for secret in policy.lacking_pull_secrets(&present) {
        editor.append("/spec/imagePullSecrets", Text::of(&containers::pull_secret(secret)))?;
    }
    Ok(())
}

/// Adds our containers, in the order in which the kubelet starts them.
fn containers(editor: &mut Editor<'_>, plan: &Plan, policy: &Policy) -> Result<(), Denial> {
    let sidecars = containers::sidecars(plan, policy);
    let sidecars = sidecars.iter().map(Text::of);
    let init = Text::of(&containers::init_container(plan, policy));
    let (mut ahead, mut behind) = (None, None);
    if let Some(transparent) = &plan.transparent {
        let redirect = Text::of(&containers::redirect(transparent, plan, policy));
        match transparent.by {
            // As late as possible: once the rules are loaded, only Envoy's user can connect
            // until Envoy listens.
            RedirectBy::InitContainer => behind = Some(redirect),
            // First, so that nothing else runs if connect-cni did not load the rules.
            RedirectBy::Cni => ahead = Some(redirect),
        }
    }
    let init = std::iter::once(init).chain(behind);
    if plan.lifecycle.native {
        let ours = init.chain(sidecars);
        if plan.lifecycle.first {
            editor.prepend("/spec/initContainers", ours.collect())?;
        } else {
            for container in ours {
                editor.append("/spec/initContainers", container)?;
            }
        }
    } else {
        for container in init {
            editor.append("/spec/initContainers", container)?;
        }
        // First, because the kubelet starts containers in order and waits for the postStart
        // hook of each.
        editor.prepend("/spec/containers", sidecars.collect())?;
    }
    if let Some(ahead) = ahead {
        editor.prepend("/spec/initContainers", vec![ahead])?;
    }
    Ok(())
}

/// Rejects a patch that is too large. Called while the patch is built, to limit memory.
fn bounded(editor: &Editor<'_>) -> Result<(), Denial> {
    if editor.weight() <= LARGEST_PATCH {
        return Ok(());
    }
    Err(Denial::new(
        Reason::PodTooLarge,
        format_args!(
            "the patch would be larger than the maximum of {} KiB: list fewer upstreams, or split \
             the containers across several pods",
            LARGEST_PATCH >> 10
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::generated::{generous, pods};
    use super::*;
    use crate::annotation;
    use crate::inject::undo::{Undone, uninject};
    use crate::json::patch::patch;
    use crate::judge::judge;
    use crate::outcome::{Outcome, Reason};
    use crate::policy::Cluster;
    use crate::policy::tests::policy;
    use crate::policy::tests::policy_of;
    use proptest::prelude::*;

    /// Applies the patch as an API server would, and checks that the edited document differs
    /// only in the annotation for `uninject`.
    fn patched(before: &Value, edits: Vec<Edit>) -> (Value, Value) {
        let operations: Value = serde_json::from_slice(&patch(&edits)).unwrap();
        let patch: json_patch::Patch = serde_json::from_value(operations).unwrap();
        let mut pod = before.clone();
        json_patch::patch(&mut pod, &patch).unwrap();
        let document = edited(before.clone(), edits).unwrap();
        let mut without_note = document.clone();
        let annotations = without_note["metadata"]["annotations"].as_object_mut().unwrap();
        annotations.remove(UNDO).unwrap();
        let mut expected = pod.clone();
        expected["metadata"]["annotations"].as_object_mut().unwrap().remove(UNDO);
        assert_eq!(without_note, expected);
        (pod, document)
    }

    fn injected_by(pod: &Value, policy: &Policy, cluster: &Cluster) -> Value {
        let verdict = judge(pod, "default", policy, cluster);
        assert_eq!(verdict.reason, Reason::Requested, "{}", verdict.message);
        patched(pod, verdict.edits.unwrap()).0
    }

    fn injected(pod: &Value) -> Value {
        injected_by(pod, &policy(), &Cluster::default())
    }

    /// The tutorial's `echo-client`, with additional fields and containers.
    fn client() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"generateName": "echo-client-", "annotations": {
                annotation::INJECT: "true", annotation::UPSTREAMS: "echo-server:1234",
            }},
            "spec": {
                "newField": {"of": ["a", "later", "release"]},
                "containers": [
                    {"name": "echo-client", "image": "curl", "env": [
                        {"name": "ECHO_SERVER_CONNECT_SERVICE_PORT", "value": "9"},
                        {"name": "URL", "value": "http://$(ECHO_SERVER_CONNECT_SERVICE_HOST)"},
                    ]},
                    {"name": "other", "resizePolicy": []},
                ],
                "initContainers": [{"name": "mine", "restartPolicy": "Always"}],
            },
        })
    }

    #[test]
    fn an_injected_pod_has_exactly_these_fields() {
        let security = json!({
            "runAsUser": 5995, "runAsGroup": 5995, "runAsNonRoot": true, "readOnlyRootFilesystem": true,
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        });
        let mounts =
            json!([{"name": "consul-connect-inject-data", "mountPath": "/consul/connect-inject"}]);
        let host = json!({"name": "ECHO_SERVER_CONNECT_SERVICE_HOST", "value": "127.0.0.1"});
        let port = json!({"name": "ECHO_SERVER_CONNECT_SERVICE_PORT", "value": "1234"});
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let helper = "/consul/connect-inject/connect-lifecycle";
        let pod = injected(&client());
        assert_eq!(
            pod,
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "generateName": "echo-client-",
                    "labels": {"consul.hashicorp.com/connect-inject-status": "injected"},
                    "annotations": {
                        "consul.hashicorp.com/connect-inject": "true",
                        "consul.hashicorp.com/connect-service-upstreams": "echo-server:1234",
                        "consul.hashicorp.com/connect-service": "echo-client",
                        "consul.hashicorp.com/connect-inject-status": "injected",
                        "kubectl.kubernetes.io/default-container": "echo-client",
                    },
                },
                "spec": {
                    "newField": {"of": ["a", "later", "release"]},
                    "containers": [
                        {
                            "name": "envoy-sidecar", "image": "envoy:1",
                            "command": [
                                helper, "run", "--", "envoy", "--config-path",
                                "/consul/connect-inject/envoy-bootstrap.json",
                                "--disable-hot-restart", "--drain-strategy", "immediate",
                                "--drain-time-s", "20", "--concurrency", "2",
                            ],
                            "lifecycle": {
                                "postStart": {"exec": {"command": [helper, "ready", "--wait", "30s"]}},
                                "preStop": {"exec": {"command": [helper, "deregister", "--timeout=5s"]}},
                            },
                            "readinessProbe": {
                                "exec": {"command": [helper, "ready", "--serving", "--timeout=7s"]},
                                "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 3,
                            },
                            "volumeMounts": mounts, "securityContext": security,
                            "terminationMessagePolicy": "FallbackToLogsOnError",
                        },
                        {"name": "echo-client", "image": "curl", "env": [
                            host,
                            {"name": "ECHO_SERVER_CONNECT_SERVICE_PORT", "value": "9"},
                            {"name": "URL", "value": "http://$(ECHO_SERVER_CONNECT_SERVICE_HOST)"},
                        ]},
                        {"name": "other", "resizePolicy": [], "env": [host, port]},
                    ],
                    "initContainers": [
                        {"name": "mine", "restartPolicy": "Always", "env": [host, port]},
                        {
                            "name": "consul-connect-inject-init", "image": "connect-init:1",
                            "command": ["/connect-init"],
                            "args": ["--service=echo-client", "--upstream=echo-server:1234", "--first-timeout=30s"],
                            "env": [
                                field("POD_NAME", "metadata.name"),
                                field("POD_NAMESPACE", "metadata.namespace"),
                                field("POD_UID", "metadata.uid"),
                                field("POD_IP", "status.podIP"),
                                field("HOST_IP", "status.hostIP"),
                                field("NODE_NAME", "spec.nodeName"),
                                field("CONNECT_INJECT_STATUS", "metadata.labels['consul.hashicorp.com/connect-inject-status']"),
                                {"name": "CONSUL_HTTP_ADDR", "value": "http://$(HOST_IP):8500"},
                                {"name": "CONSUL_GRPC_ADDR", "value": "$(HOST_IP):8502"},
                                {"name": "CONNECT_ENVOY_VERSION", "value": "envoy:1"},
                            ],
                            "volumeMounts": mounts, "securityContext": security,
                            "terminationMessagePolicy": "FallbackToLogsOnError",
                        },
                    ],
                    "volumes": [{"name": "consul-connect-inject-data", "emptyDir": {"medium": "Memory", "sizeLimit": "32Mi"}}],
                },
            })
        );
    }

    /// Pods without metadata or volumes. Reported in
    /// <https://github.com/hashicorp/consul-k8s/issues/20>.
    #[test]
    fn a_minimal_pod_is_injected_by_default() {
        let policy = Policy { default_inject: true, ..policy() };
        for (metadata, spec) in [
            (None, None),
            (Some(Value::Null), Some(Value::Null)),
            (Some(json!({})), Some(json!([]))),
        ] {
            let mut pod = json!({"spec": {"containers": [{"name": "web"}]}});
            if let Some(metadata) = metadata {
                pod["metadata"] = metadata;
            }
            if let Some(volumes) = spec {
                pod["spec"]["volumes"] = volumes;
            }
            let verdict = judge(&pod, "default", &policy, &Cluster::default());
            assert_eq!(verdict.reason, Reason::ByDefault, "{}", verdict.message);
            let (after, _) = patched(&pod, verdict.edits.unwrap());
            assert_eq!(after["metadata"]["annotations"][annotation::SERVICE], "web");
        }
    }

    /// `kubectl logs` showed the wrong container. Reported in
    /// <https://github.com/hashicorp/consul-k8s/issues/771>.
    #[test]
    fn kubectl_finds_the_application() {
        let mut pod = client();
        assert_eq!(
            injected(&pod)["metadata"]["annotations"][annotation::DEFAULT_CONTAINER],
            "echo-client"
        );
        pod["metadata"]["annotations"][annotation::DEFAULT_CONTAINER] = "other".into();
        assert_eq!(
            injected(&pod)["metadata"]["annotations"][annotation::DEFAULT_CONTAINER],
            "other"
        );
    }

    /// With a native sidecar, and with an ordinary container.
    #[test]
    fn a_transparent_pod_is_redirected_after_its_registration() {
        let mut pod = client();
        pod["metadata"]["annotations"][annotation::TRANSPARENT_PROXY] = "true".into();
        pod["metadata"]["annotations"][annotation::CONSUL_DNS] = "true".into();
        pod["metadata"]["annotations"][annotation::VIRTUAL_ADDRESS] = "10.96.0.10:80".into();
        pod["spec"]["containers"][0]["readinessProbe"] =
            json!({"httpGet": {"path": "/h", "port": 8080}, "periodSeconds": 3});
        let names = |pod: &Value| {
            let all = pod["spec"]["initContainers"].as_array().unwrap().iter();
            all.map(|container| container["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let (init, redirect) = ("consul-connect-inject-init", "consul-connect-inject-redirect");
        let beside = injected(&pod);
        assert_eq!(names(&beside), ["mine", init, redirect]);
        let sidecar = beside["spec"]["containers"][0]["command"].as_array().unwrap();
        assert!(sidecar.contains(&json!("--dns-port=8653")), "{sidecar:?}");
        let native = injected_by(&pod, &policy(), &crate::policy::tests::cluster("1.34"));
        assert_eq!(names(&native), [init, redirect, "envoy-sidecar", "mine"]);
        let args = native["spec"]["initContainers"][0]["args"].as_array().unwrap();
        for flag in ["--transparent", "--virtual=10.96.0.10:80", "--expose=/h=20300:8080"] {
            assert!(args.contains(&flag.into()), "{args:?}");
        }
        assert_eq!(
            native["spec"]["containers"][0]["readinessProbe"],
            json!({"httpGet": {"path": "/h", "port": 20300}, "periodSeconds": 3})
        );
        let field = json!({"fieldRef": {"fieldPath": "status.hostIP"}});
        assert_eq!(
            native["spec"]["initContainers"][1],
            json!({
                "name": redirect, "image": "connect-init:1",
                "command": ["/connect-redirect", "apply"],
                "args": [
                    "--exclude-outbound-cidr=$(HOST_IP)", "--exclude-inbound-port=20300",
                    "--consul-dns=127.0.0.1:8653",
                ],
                "env": [{"name": "HOST_IP", "valueFrom": field}],
                "securityContext": {
                    "runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": false,
                    "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                    "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "terminationMessagePolicy": "FallbackToLogsOnError",
            })
        );
        // `uninject` restores the probe.
        let edits = judge(&pod, "default", &policy(), &Cluster::default()).edits.unwrap();
        assert_eq!(uninject(&edited(pod.clone(), edits).unwrap()), Undone::Pod(pod));
    }

    #[test]
    fn with_connect_cni_the_first_container_verifies_the_redirect() {
        let mut pod = client();
        pod["metadata"]["annotations"][annotation::TRANSPARENT_PROXY] = "true".into();
        let names = |pod: &Value| {
            let init = pod["spec"]["initContainers"].as_array().unwrap().iter();
            init.map(|init| init["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let (init, redirect) = ("consul-connect-inject-init", "consul-connect-inject-redirect");
        let policy = policy_of(&["--transparent-proxy-by=cni"]);
        let beside = injected_by(&pod, &policy, &Cluster::default());
        assert_eq!(names(&beside), [redirect, "mine", init]);
        let modern = policy_of(&["--transparent-proxy-by=cni", "--kubernetes-version=1.34"]);
        let native = injected_by(&pod, &modern, &Cluster::default());
        assert_eq!(names(&native), [redirect, init, "envoy-sidecar", "mine"]);
        pod["metadata"]["annotations"][annotation::POSITION] = "last".into();
        let last = injected_by(&pod, &modern, &Cluster::default());
        assert_eq!(names(&last), [redirect, "mine", init, "envoy-sidecar"]);

        let plan = native["metadata"]["annotations"][annotation::REDIRECT].as_str().unwrap();
        assert_eq!(plan, r#"{"inbound":20000,"outbound":15001,"excludeUids":[5995]}"#);
        let field = json!({"fieldRef": {"fieldPath": "status.hostIP"}});
        assert_eq!(
            native["spec"]["initContainers"][0],
            json!({
                "name": redirect, "image": "connect-init:1",
                "command": ["/connect-redirect", "verify"],
                "args": ["--exclude-outbound-cidr=$(HOST_IP)"],
                "env": [{"name": "HOST_IP", "valueFrom": field}],
                "securityContext": {
                    "runAsUser": 5996, "runAsGroup": 5996, "runAsNonRoot": true,
                    "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]},
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "resources": {
                    "requests": {"cpu": "50m", "memory": "25Mi"},
                    "limits": {"memory": "25Mi"},
                },
                "terminationMessagePolicy": "FallbackToLogsOnError",
            })
        );
        let edits = judge(&pod, "default", &policy, &Cluster::default()).edits.unwrap();
        assert_eq!(uninject(&edited(pod.clone(), edits).unwrap()), Undone::Pod(pod));
    }

    /// Reported in <https://github.com/hashicorp/consul-k8s/issues/4441>.
    #[test]
    fn injected_containers_pass_pod_security_level_restricted() {
        let pod = injected(&client());
        for container in [&pod["spec"]["containers"][0], &pod["spec"]["initContainers"][1]] {
            let security = &container["securityContext"];
            assert_eq!(security["runAsNonRoot"], true);
            assert_eq!(security["allowPrivilegeEscalation"], false);
            assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
            assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
            assert_eq!(security["readOnlyRootFilesystem"], true);
        }
    }

    /// Whether the injector may write to this path.
    fn is_declared(path: &str) -> bool {
        const WHOLE: [&str; 7] = [
            "/metadata",
            "/metadata/annotations",
            "/metadata/labels",
            "/spec/imagePullSecrets",
            "/spec/initContainers",
            "/spec/volumes",
            "/spec",
        ];
        const KEYS: [&str; 9] = [
            "/metadata/annotations/consul.hashicorp.com~1transparent-proxy-redirect",
            "/metadata/annotations/consul.hashicorp.com~1connect-inject-status",
            "/metadata/annotations/consul.hashicorp.com~1connect-service",
            "/metadata/annotations/consul.hashicorp.com~1connect-service-port",
            "/metadata/annotations/kubectl.kubernetes.io~1default-container",
            "/metadata/annotations/prometheus.io~1path",
            "/metadata/annotations/prometheus.io~1port",
            "/metadata/annotations/prometheus.io~1scrape",
            "/metadata/labels/consul.hashicorp.com~1connect-inject-status",
        ];
        const ELEMENTS: [&str; 9] = [
            "/spec/containers/0",
            "/spec/containers/1",
            "/spec/imagePullSecrets/-",
            "/spec/initContainers/0",
            "/spec/initContainers/1",
            "/spec/initContainers/2",
            "/spec/initContainers/3",
            "/spec/initContainers/-",
            "/spec/volumes/-",
        ];
        let parts: Vec<&str> = path.split('/').collect();
        WHOLE.contains(&path)
            || KEYS.contains(&path)
            || ELEMENTS.contains(&path)
            || matches!(
                parts[..],
                [
                    "",
                    "spec",
                    "containers" | "initContainers",
                    _,
                    "env" | "readinessProbe" | "livenessProbe" | "startupProbe"
                ] | ["", "spec", "containers" | "initContainers", _, "env", _]
                    | ["", "spec", "containers", _, "volumeMounts" | "lifecycle"]
                    | ["", "spec", "containers", _, "volumeMounts", "-"]
                    | ["", "spec", "containers", _, "lifecycle", "preStop"]
                    | [
                        "",
                        "spec",
                        "containers" | "initContainers",
                        _,
                        "readinessProbe" | "livenessProbe" | "startupProbe",
                        "httpGet" | "grpc",
                        "port"
                    ]
            )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::cases(2048)))]

        /// Any pod, by the webhook and offline.
        #[test]
        fn any_pod_is_judged(pod in pods(), default_inject: bool, all: bool) {
            let policy = Policy { default_inject, ..if all { generous() } else { policy() } };
            let verdict = judge(&pod, "default", &policy, &Cluster::default());
            prop_assert_eq!(verdict.edits.is_some(), verdict.reason.outcome() == Outcome::Injected);
            let Some(edits) = verdict.edits else { return Ok(()) };
            let operations: Value = serde_json::from_slice(&patch(&edits)).unwrap();
            for operation in operations.as_array().unwrap() {
                let path = operation["path"].as_str().unwrap();
                prop_assert!(is_declared(path), "{}", path);
            }
            let (after, document) = patched(&pod, edits);
            let again = judge(&after, "default", &policy, &Cluster::default());
            prop_assert_eq!(again.reason, Reason::AlreadyInjected);
            prop_assert_eq!(after["spec"].get("unknownField"), pod["spec"].get("unknownField"));
            prop_assert_eq!(uninject(&document), Undone::Pod(pod));
        }
    }

    /// Without such pods, the property above would test nothing.
    #[test]
    fn generated_pods_have_every_outcome() {
        use proptest::strategy::ValueTree;
        use proptest::test_runner::TestRunner;
        let mut runner = TestRunner::deterministic();
        let policy = Policy { default_inject: true, ..policy() };
        let mut seen = std::collections::BTreeMap::<&str, u32>::new();
        let (mut of_several, mut relays) = (0, 0);
        for _ in 0..500 {
            let pod = pods().new_tree(&mut runner).unwrap().current();
            let verdict = judge(&pod, "default", &policy, &Cluster::default());
            *seen.entry(verdict.reason.outcome().code()).or_default() += 1;
            let several = verdict.message.contains(", service `admin` on port 9090");
            of_several += u32::from(verdict.edits.is_some() && several);
            let full = judge(&pod, "default", &generous(), &Cluster::default());
            relays += u32::from(format!("{:?}", full.edits).contains("--probe-port"));
        }
        assert!(relays > 5, "only {relays} pods whose probes the sidecar runs");
        assert!(of_several > 0, "no pod of several services");
        assert!(seen["injected"] > 25 && seen["denied"] > 25 && seen["skipped"] > 25, "{seen:?}");
    }
}
