//! The plan carried out: edits of a pod.

mod containers;
pub(crate) mod undo;

use std::collections::{BTreeSet, HashSet};

use k8s_openapi::api::core::v1::EnvVar;
use serde_json::{Value, json};

use crate::annotation::{INJECTED, STATUS, UNDO};
use crate::json::patch::{Edit, Editor, Text};
use crate::json::{escape, find_mut};
use crate::outcome::{Denial, Reason};
use crate::plan::{LARGEST_ANNOTATIONS, Plan};
use crate::pod::{Container, Pod};
use crate::policy::Policy;
use undo::Step;

const ANNOTATIONS: &str = "/metadata/annotations";

/// The most bytes of a patch, about. etcd takes no object above 1.5 MiB.
const LARGEST_PATCH: usize = 512 << 10;

/// The edits that inject a pod.
///
/// # Errors
/// The pod would become too large, or a part of it is not of its type.
pub(crate) fn inject(pod: &Value, plan: &Plan, policy: &Policy) -> Result<Vec<Edit>, Denial> {
    let view = Pod::new(pod);
    let mut editor = Editor::new(pod);
    let annotations = plan
        .defaults
        .iter()
        .map(|(key, value)| (*key, value.as_str()))
        .chain([(STATUS, INJECTED)])
        .map(|(key, value)| (key, Text::of(&value)));
    editor.set(ANNOTATIONS, annotations.collect())?;
    editor.set("/metadata/labels", [(STATUS, Text::of(&INJECTED))].into())?;

    // Before the lists of containers change: paths are those of the pod as it came.
    variables(&mut editor, view, plan)?;
    applications(&mut editor, plan)?;

    editor.append("/spec/volumes", Text::of(&containers::volume()))?;
    if policy.acl_auth_method.is_some() {
        editor.append("/spec/volumes", Text::of(&containers::token_volume()))?;
    }
    for volume in &plan.volumes.added {
        editor.append("/spec/volumes", Text::of(volume))?;
    }
    let present: BTreeSet<&str> = view.pull_secret_names()?.collect();
    for secret in policy.lacking_pull_secrets(&present) {
        editor.append("/spec/imagePullSecrets", Text::of(&containers::pull_secret(secret)))?;
    }

    let sidecars = containers::sidecars(plan, policy);
    let sidecars = sidecars.iter().map(|sidecar| with_mounts(sidecar, &plan.volumes.mounts));
    let init = [Text::of(&containers::init_container(plan, policy))];
    // Behind it: from then on, only Envoy's user reaches anybody until Envoy listens.
    let redirect = plan.transparent.as_ref();
    let redirect = redirect.map(|it| Text::of(&containers::redirect(it, plan, policy)));
    let init = init.into_iter().chain(redirect);
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
        // In front, because the kubelet starts containers in order and waits for
        // each one's postStart.
        editor.prepend("/spec/containers", sidecars.collect())?;
    }
    bounded(&editor)?;
    Ok(editor.finish())
}

/// The pod as a document with the edits carried out, and with the note that
/// `uninject` follows.
///
/// # Errors
/// The note does not fit into the annotations.
pub(crate) fn edited(mut pod: Value, edits: Vec<Edit>) -> Result<Value, Denial> {
    // In a manifest that was copied from an injected pod, perhaps.
    let stale = Pod::new(&pod).annotations().and_then(|all| all.get(UNDO)).cloned();
    let mut steps = undo::carry_out(&mut pod, edits);
    if let Some(old) = stale {
        steps.insert(0, Step::Replaced(format!("{ANNOTATIONS}/{}", escape(UNDO)), old));
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
                "with the note for `uninject`, the annotations are {size} bytes: Kubernetes \
                 accepts {LARGEST_ANNOTATIONS}; shorten the list of upstreams, or let the webhook \
                 inject this pod, which writes no note"
            ),
        ));
    }
    Ok(pod)
}

/// The variables of the upstreams, for the user's containers that lack them and
/// run while Envoy does.
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
            // In front, so that the user's own can refer to them.
            editor.prepend(&format!("{}/env", container.pointer()), lacking)?;
            bounded(editor)?;
        }
    }
    Ok(())
}

/// What the user's own containers get besides.
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

/// Refuses a patch that is too large, while it is being built.
fn bounded(editor: &Editor<'_>) -> Result<(), Denial> {
    if editor.weight() <= LARGEST_PATCH {
        return Ok(());
    }
    Err(Denial::new(
        Reason::PodTooLarge,
        format_args!(
            "the patch would be larger than {} KiB, and no pod of that size can be stored: list \
             fewer upstreams, or spread the containers over several pods",
            LARGEST_PATCH >> 10
        ),
    ))
}

/// A sidecar with mounts besides its own, of which any field goes through.
fn with_mounts(sidecar: &k8s_openapi::api::core::v1::Container, more: &[Value]) -> Text {
    if more.is_empty() {
        return Text::of(sidecar);
    }
    let mut sidecar = json!(sidecar);
    if let Some(Value::Array(mounts)) = sidecar.get_mut("volumeMounts") {
        mounts.extend_from_slice(more);
    }
    Text::of(&sidecar)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::annotation;
    use crate::inject::undo::{Undone, uninject};
    use crate::json::patch::Patch;
    use crate::judge::judge;
    use crate::outcome::{Outcome, Reason};
    use crate::policy::Cluster;
    use crate::policy::tests::policy;
    use crate::policy::tests::policy_of;
    use proptest::prelude::*;

    /// Applies the patch as an API server would, and checks that the edited
    /// document is the same but for its note.
    fn patched(before: &Value, edits: Vec<Edit>) -> (Value, Value) {
        let operations = serde_json::to_value(Patch(&edits)).unwrap();
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

    /// The document's `echo-client`, with what else a pod may hold.
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
    fn the_pod_after_injection() {
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

    /// Pods that lack what others have. Reported in
    /// <https://github.com/hashicorp/consul-k8s/issues/20>.
    #[test]
    fn a_bare_pod_by_default() {
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

    /// `kubectl logs` of the wrong container. Reported in
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

    /// In native mode, and beside the application.
    #[test]
    fn a_transparent_pod_is_redirected_behind_its_registration() {
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
        // The probe comes back.
        let edits = judge(&pod, "default", &policy(), &Cluster::default()).edits.unwrap();
        assert_eq!(uninject(&edited(pod.clone(), edits).unwrap()), Undone::Pod(pod));
    }

    /// PodSecurity's level `restricted`. Reported in
    /// <https://github.com/hashicorp/consul-k8s/issues/4441>.
    #[test]
    fn injected_containers_are_restricted() {
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

    /// Where the injector may write.
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
        const KEYS: [&str; 8] = [
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

    /// Any JSON, with the words that matter now and then.
    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            Just(Value::from("true")),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("name|env|ports|[a-z/~]{0,4}|\\PC{0,3}", inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    /// `usual` most of the time, else absent, null or anything at all.
    fn odd(usual: impl Strategy<Value = Value> + 'static) -> impl Strategy<Value = Option<Value>> {
        prop_oneof![
            12 => usual.prop_map(Some),
            3 => Just(None),
            1 => Just(Some(Value::Null)),
            1 => json_value().prop_map(Some),
        ]
    }

    fn object(
        fields: Vec<(&'static str, BoxedStrategy<Option<Value>>)>,
    ) -> impl Strategy<Value = Value> {
        let (names, values): (Vec<_>, Vec<_>) = fields.into_iter().unzip();
        values.prop_map(move |values| {
            let present = names
                .iter()
                .zip(values)
                .filter_map(|(name, value)| Some(((*name).to_owned(), value?)));
            Value::Object(present.collect())
        })
    }

    fn text(pattern: &'static str) -> impl Strategy<Value = Value> {
        pattern.prop_map(Value::from)
    }

    fn list(element: impl Strategy<Value = Value> + 'static) -> impl Strategy<Value = Value> {
        prop::collection::vec(element, 0..3).prop_map(Value::from)
    }

    fn probe() -> impl Strategy<Value = Value> {
        let port = || prop_oneof![(0..70000).prop_map(Value::from), text("http|grpc|nobody")];
        let get = object(vec![
            ("path", odd(text("/(a|b)?(\\?q)?|\\PC*")).boxed()),
            ("port", odd(port()).boxed()),
            ("scheme", odd(text("HTTPS?")).boxed()),
            ("host", prop_oneof![9 => Just(None), 1 => odd(text("a"))].boxed()),
        ]);
        let grpc = object(vec![("port", odd(port()).boxed())]);
        prop_oneof![
            get.prop_map(|get| json!({"httpGet": get})),
            grpc.prop_map(|grpc| json!({"grpc": grpc, "periodSeconds": 3})),
            Just(json!({"tcpSocket": {"port": "http"}})),
        ]
    }

    fn container() -> impl Strategy<Value = Value> {
        let port = object(vec![
            ("containerPort", odd((0..70000).prop_map(Value::from)).boxed()),
            ("name", odd(text("http|grpc")).boxed()),
            ("protocol", odd(text("TCP|UDP")).boxed()),
        ]);
        let variable = object(vec![("name", odd(text("DB_CONNECT_SERVICE_HOST|X")).boxed())]);
        object(vec![
            ("name", prop_oneof![20 => Just(Some("app".into())), 1 => odd(text("\\PC*")), 1 => odd(text("mesh-(proxy|init)|envoy-sidecar"))].boxed()),
            ("ports", odd(list(port)).boxed()),
            ("env", odd(list(variable)).boxed()),
            ("lifecycle", odd(json_value()).boxed()),
            ("readinessProbe", odd(probe()).boxed()),
            ("livenessProbe", odd(probe()).boxed()),
            (
                "volumeMounts",
                odd(list(object(vec![(
                    "mountPath",
                    odd(text("/|/consul/connect-inject")).boxed(),
                )])))
                .boxed(),
            ),
            ("unknown~/field", odd(json_value()).boxed()),
        ])
    }

    /// A policy that writes all that can be written.
    pub(crate) fn generous() -> Policy {
        static POLICY: LazyLock<Policy> = LazyLock::new(read_generous);
        POLICY.clone()
    }

    fn read_generous() -> Policy {
        let file = tempfile::NamedTempFile::new().unwrap();
        let ca = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
        std::io::Write::write_all(&mut file.as_file(), ca.as_bytes()).unwrap();
        policy_of(&[
            "--default-enable-metrics",
            "--default-transparent-proxy",
            "--default-consul-dns",
            "--image-pull-secret=pull,data",
            "--kubernetes-version=1.34",
            "--acl-auth-method=k8s",
            "--consul-ca-cert",
            file.path().to_str().unwrap(),
        ])
    }

    pub(crate) fn pods() -> impl Strategy<Value = Value> {
        let annotations = object(vec![
            (annotation::INJECT, odd(text("true|1|T|false|maybe")).boxed()),
            (annotation::STATUS, prop_oneof![9 => Just(None), 1 => odd(text("|injected"))].boxed()),
            (
                annotation::SERVICE,
                prop_oneof![3 => odd(text("web|web-2|\\PC*")), 1 => Just(Some("web,admin".into()))]
                    .boxed(),
            ),
            (
                annotation::SERVICE_PORT,
                prop_oneof![
                    3 => odd(text("http|8080|0|\\PC*")), 1 => Just(Some("8080,9090".into())),
                ]
                .boxed(),
            ),
            (
                annotation::UPSTREAMS,
                odd(text("db:[1-9][0-9]{0,4}(,auth:1234)?|prepared_query:\\PC{0,4}:1|\\PC*"))
                    .boxed(),
            ),
            ("consul.hashicorp.com/connect-servce", odd(text("x")).boxed()),
            (annotation::UNDO, prop_oneof![9 => Just(None), 1 => odd(text("\\[\\]|x"))].boxed()),
            (annotation::MOUNT_VOLUME, prop_oneof![5 => Just(None), 1 => odd(text("app"))].boxed()),
            (
                annotation::USER_VOLUMES,
                prop_oneof![5 => Just(None), 1 => odd(text(r#"\[\{"name":"(data|more)"\}\]"#))]
                    .boxed(),
            ),
            (
                annotation::SIDECAR_MODE,
                prop_oneof![5 => Just(None), 1 => odd(text("auto|native|container"))].boxed(),
            ),
            (
                annotation::TRANSPARENT_PROXY,
                prop_oneof![2 => Just(None), 1 => odd(text("true|false"))].boxed(),
            ),
            (
                annotation::EXCLUDE_INBOUND_PORTS,
                prop_oneof![9 => Just(None), 1 => odd(text("http|1,2|\\PC*"))].boxed(),
            ),
            (annotation::SLEEP, prop_oneof![5 => Just(None), 1 => odd(text("0|7"))].boxed()),
            (annotation::TAGS, odd(text("\\PC{0,9}")).boxed()),
            ("consul.hashicorp.com/service-meta-x", odd(text("\\PC{0,9}")).boxed()),
            // What another injector left, huge or not.
            ("consul.hashicorp.com/original-pod", prop_oneof![
                9 => Just(None), 1 => (0..200_000_usize).prop_map(|n| Some("{".repeat(n).into()))
            ].boxed()),
            ("prometheus.io/port", prop_oneof![9 => Just(None), 1 => odd(text("1"))].boxed()),
            ("\u{1f600}/~", odd(text("\\PC*")).boxed()),
        ]);
        let metadata = object(vec![
            ("annotations", odd(annotations).boxed()),
            ("labels", odd(object(vec![("app", odd(text("x")).boxed())])).boxed()),
            ("generateName", odd(text("web-")).boxed()),
        ]);
        let volume = text("data|other|consul-connect-inject-data");
        let volume = object(vec![("name", odd(volume).boxed())]).boxed();
        let spec = object(vec![
            ("containers", prop_oneof![20 => prop::collection::vec(container(), 1..3).prop_map(|c| Some(Value::from(c))), 1 => odd(list(container()))].boxed()),
            ("initContainers", odd(list(container())).boxed()),
            ("volumes", odd(list(volume.clone())).boxed()),
            ("imagePullSecrets", odd(list(volume)).boxed()),
            ("hostNetwork", prop_oneof![9 => Just(None), 1 => odd(any::<bool>().prop_map(Value::from))].boxed()),
            ("unknownField", odd(json_value()).boxed()),
            ("serviceAccountName", odd(text("app|web|default")).boxed()),
        ]);
        prop_oneof![
            40 => object(vec![("metadata", odd(metadata).boxed()), ("spec", prop_oneof![30 => spec.prop_map(Some), 1 => odd(json_value())].boxed())]),
            1 => json_value(),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::cases(2048)))]

        /// Pains 34, 35, 38 and 41: any pod at all, by the webhook as offline.
        #[test]
        fn any_pod_is_judged(pod in pods(), default_inject: bool, all: bool) {
            let policy = Policy { default_inject, ..if all { generous() } else { policy() } };
            let verdict = judge(&pod, "default", &policy, &Cluster::default());
            prop_assert_eq!(verdict.edits.is_some(), verdict.reason.outcome() == Outcome::Injected);
            let Some(edits) = verdict.edits else { return Ok(()) };
            let operations = serde_json::to_value(Patch(&edits)).unwrap();
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

    /// So that the property above is not empty.
    #[test]
    fn generated_pods_are_of_every_outcome() {
        use proptest::strategy::ValueTree;
        use proptest::test_runner::TestRunner;
        let mut runner = TestRunner::deterministic();
        let policy = Policy { default_inject: true, ..policy() };
        let mut seen = std::collections::BTreeMap::<&str, u32>::new();
        let mut of_several = 0;
        for _ in 0..500 {
            let pod = pods().new_tree(&mut runner).unwrap().current();
            let verdict = judge(&pod, "default", &policy, &Cluster::default());
            *seen.entry(verdict.reason.outcome().code()).or_default() += 1;
            let several = verdict.message.contains(", service `admin` on port 9090");
            of_several += u32::from(verdict.edits.is_some() && several);
        }
        assert!(of_several > 0, "no pod of several services");
        assert!(seen["injected"] > 25 && seen["denied"] > 25 && seen["skipped"] > 25, "{seen:?}");
    }
}
