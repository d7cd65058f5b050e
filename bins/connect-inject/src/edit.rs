//! The plan carried out on the pod.

use k8s_openapi::api::core::v1::EnvVar;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::annotation::{INJECTED, STATUS, UNDO};
use crate::patch::{Editor, Operation};
use crate::plan::Plan;
use crate::pod::Pod;
use crate::policy::Policy;
use crate::shape::{WrongShape, escape};
use crate::sidecar;
use crate::undo::Step;

/// A pod with its sidecar.
#[derive(Debug)]
pub(crate) struct Injected {
    /// The pod.
    pub(crate) pod: Value,
    /// How it came to be so.
    pub(crate) patch: Vec<Operation>,
}

/// Injects a pod.
pub(crate) fn inject(pod: Value, plan: &Plan, policy: &Policy) -> Result<Injected, WrongShape> {
    // What depends on the pod as it came; it is edited in place.
    let view = Pod::new(&pod);
    let variables = variables(view, plan)?;
    let present: Vec<&str> = view.pull_secret_names()?.collect();
    let lacks = |name: &&String| !present.contains(&name.as_str());
    let pull_secrets: Vec<&String> = policy.pull_secrets.iter().filter(lacks).collect();
    // Of a manifest that was copied from an injected pod, perhaps.
    let stale = view.annotations().and_then(|annotations| annotations.get(UNDO)).cloned();

    let mut editor = Editor::new(pod);
    let annotations = plan
        .defaults
        .iter()
        .map(|(key, value)| (*key, value.as_str()))
        .chain([(STATUS, INJECTED)])
        .map(|(key, value)| (key.to_owned(), Value::from(value)));
    editor.set(ANNOTATIONS, annotations.collect())?;
    editor.set("/metadata/labels", Map::from_iter([(STATUS.to_owned(), INJECTED.into())]))?;

    // Before the lists of containers change: their indexes are still the pod's.
    applications(&mut editor, variables, plan)?;

    editor.append("/spec/volumes", to_json(&sidecar::volume()))?;
    if policy.acl_auth_method.is_some() {
        editor.append("/spec/volumes", to_json(&sidecar::token_volume()))?;
    }
    for volume in &plan.volumes.added {
        editor.append("/spec/volumes", volume.clone())?;
    }
    for secret in pull_secrets {
        editor.append("/spec/imagePullSecrets", to_json(&sidecar::pull_secret(secret)))?;
    }

    let mut sidecars: Vec<Value> = sidecar::sidecars(plan, policy).iter().map(to_json).collect();
    for sidecar in &mut sidecars {
        if let Some(Value::Array(mounts)) = sidecar.get_mut("volumeMounts") {
            mounts.extend(plan.volumes.mounts.iter().cloned());
        }
    }
    editor.append("/spec/initContainers", to_json(&sidecar::init_container(plan, policy)))?;
    if plan.lifecycle.native {
        for sidecar in sidecars {
            editor.append("/spec/initContainers", sidecar)?;
        }
    } else {
        // In front, because the kubelet starts containers in order and waits for
        // each one's postStart.
        editor.prepend("/spec/containers", sidecars)?;
    }

    record(&mut editor, stale)?;
    let (pod, patch) = editor.finish();
    Ok(Injected { pod, patch })
}

const ANNOTATIONS: &str = "/metadata/annotations";

/// The variables that each of the user's own containers lacks, behind a pointer to
/// the container.
fn variables(pod: Pod<'_>, plan: &Plan) -> Result<Vec<(String, Vec<Value>)>, WrongShape> {
    let variables = sidecar::variables(&plan.upstreams);
    let containers = pod.init_containers()?.into_iter().chain(pod.containers()?);
    let lacking = containers.map(|container| {
        let lacks = |variable: &&EnvVar| !container.has_variable(&variable.name);
        (container.pointer(), variables.iter().filter(lacks).map(to_json).collect())
    });
    Ok(lacking.collect())
}

/// What the user's own containers get.
fn applications(
    editor: &mut Editor,
    variables: Vec<(String, Vec<Value>)>,
    plan: &Plan,
) -> Result<(), WrongShape> {
    for (container, lacking) in variables {
        if !lacking.is_empty() {
            // In front, so that the user's own can refer to them.
            editor.prepend(&format!("{container}/env"), lacking)?;
        }
    }
    for container in &plan.volumes.sharing {
        let mount = to_json(&sidecar::shared_mount());
        editor.append(&format!("{container}/volumeMounts"), mount)?;
    }
    if let Some((seconds, containers)) = &plan.lifecycle.sleep {
        for container in containers {
            let hook = [("preStop".to_owned(), to_json(&sidecar::sleep(*seconds)))];
            editor.set(&format!("{container}/lifecycle"), Map::from_iter(hook))?;
        }
    }
    Ok(())
}

/// Writes into the pod how all of it is taken back.
fn record(editor: &mut Editor, stale: Option<Value>) -> Result<(), WrongShape> {
    let stale = stale.map(|old| Step::Replaced(format!("{ANNOTATIONS}/{}", escape(UNDO)), old));
    let steps: Vec<&Step> = stale.iter().chain(editor.steps()).collect();
    let record = serde_json::to_string(&steps).expect("a step has string keys only");
    editor.set(ANNOTATIONS, Map::from_iter([(UNDO.to_owned(), json!(record))]))
}

fn to_json(object: &impl Serialize) -> Value {
    serde_json::to_value(object).expect("Kubernetes objects have string keys only")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::annotation;
    use crate::decision::tests::policy;
    use crate::reason::{Outcome, Reason};
    use crate::undo::{Undone, uninject};
    use crate::verdict::{Verdict, judge};
    use proptest::prelude::*;

    /// Applies the patch as an API server would, and checks that it says what
    /// was done.
    fn patched(before: &Value, injected: &Injected) -> Value {
        let operations = serde_json::to_value(&injected.patch).unwrap();
        let patch: json_patch::Patch = serde_json::from_value(operations).unwrap();
        let mut pod = before.clone();
        json_patch::patch(&mut pod, &patch).unwrap();
        assert_eq!(pod, injected.pod);
        pod
    }

    fn injected(pod: &Value) -> Value {
        let Verdict { reason, message, injected, .. } = judge(pod.clone(), "default", &policy());
        assert_eq!(reason, Reason::Requested, "{message}");
        patched(pod, &injected.unwrap())
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
        let mut pod = injected(&client());
        let annotations = pod["metadata"]["annotations"].as_object_mut().unwrap();
        assert!(annotations.remove(annotation::UNDO).is_some());
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
                                "--disable-hot-restart", "--concurrency", "2",
                            ],
                            "lifecycle": {
                                "postStart": {"exec": {"command": [helper, "ready", "--wait", "30s"]}},
                                "preStop": {"exec": {"command": [helper, "deregister", "--timeout=5s"]}},
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
                            "args": ["--service=echo-client", "--upstream=echo-server:1234"],
                            "env": [
                                field("POD_NAME", "metadata.name"),
                                field("POD_NAMESPACE", "metadata.namespace"),
                                field("POD_UID", "metadata.uid"),
                                field("POD_IP", "status.podIP"),
                                field("HOST_IP", "status.hostIP"),
                                field("NODE_NAME", "spec.nodeName"),
                                {"name": "CONSUL_HTTP_ADDR", "value": "http://$(HOST_IP):8500"},
                                {"name": "CONSUL_GRPC_ADDR", "value": "$(HOST_IP):8502"},
                                {"name": "CONNECT_ENVOY_VERSION", "value": "envoy:1"},
                            ],
                            "volumeMounts": mounts, "securityContext": security,
                            "terminationMessagePolicy": "FallbackToLogsOnError",
                        },
                    ],
                    "volumes": [{"name": "consul-connect-inject-data", "emptyDir": {"medium": "Memory"}}],
                },
            })
        );
    }

    /// Pain 34: pods that lack what others have.
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
            let verdict = judge(pod.clone(), "default", &policy);
            assert_eq!(verdict.reason, Reason::ByDefault, "{}", verdict.message);
            let after = patched(&pod, &verdict.injected.unwrap());
            assert_eq!(after["metadata"]["annotations"][annotation::SERVICE], "web");
        }
    }

    /// Pain 42: `kubectl logs` of the wrong container.
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

    /// Pain 48: PodSecurity's level `restricted`.
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
        const KEYS: [&str; 9] = [
            "/metadata/annotations/consul.hashicorp.com~1connect-inject-status",
            "/metadata/annotations/consul.hashicorp.com~1connect-inject-undo",
            "/metadata/annotations/consul.hashicorp.com~1connect-service",
            "/metadata/annotations/consul.hashicorp.com~1connect-service-port",
            "/metadata/annotations/kubectl.kubernetes.io~1default-container",
            "/metadata/annotations/prometheus.io~1path",
            "/metadata/annotations/prometheus.io~1port",
            "/metadata/annotations/prometheus.io~1scrape",
            "/metadata/labels/consul.hashicorp.com~1connect-inject-status",
        ];
        const ELEMENTS: [&str; 5] = [
            "/spec/containers/0",
            "/spec/containers/1",
            "/spec/imagePullSecrets/-",
            "/spec/initContainers/-",
            "/spec/volumes/-",
        ];
        let parts: Vec<&str> = path.split('/').collect();
        WHOLE.contains(&path)
            || KEYS.contains(&path)
            || ELEMENTS.contains(&path)
            || matches!(
                parts[..],
                ["", "spec", "containers" | "initContainers", _, "env"]
                    | ["", "spec", "containers" | "initContainers", _, "env", _]
                    | ["", "spec", "containers", _, "volumeMounts" | "lifecycle"]
                    | ["", "spec", "containers", _, "volumeMounts", "-"]
                    | ["", "spec", "containers", _, "lifecycle", "preStop"]
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

    /// A policy that has all be written that can be.
    pub(crate) fn generous() -> Policy {
        Policy {
            metrics: true,
            pull_secrets: vec!["pull".to_owned(), "data".to_owned()],
            kubernetes: "1.30".parse().ok(),
            acl_auth_method: Some("k8s".to_owned()),
            consul_ca: Some("PEM".to_owned()),
            ..policy()
        }
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
        #![proptest_config(ProptestConfig::with_cases(1024))]

        /// Pains 34, 35 and 41: any pod at all.
        #[test]
        fn any_pod_is_judged(pod in pods(), default_inject: bool, all: bool) {
            let policy = Policy { default_inject, ..if all { generous() } else { policy() } };
            let verdict = judge(pod.clone(), "default", &policy);
            prop_assert_eq!(verdict.injected.is_some(), verdict.reason.outcome() == Outcome::Injected);
            let Some(injected) = verdict.injected else { return Ok(()) };
            let after = patched(&pod, &injected);
            for operation in &injected.patch {
                let (Operation::Add { path, .. } | Operation::Replace { path, .. }) = operation;
                prop_assert!(is_declared(path), "{}", path);
            }
            let again = judge(after.clone(), "default", &policy);
            prop_assert_eq!(again.reason, Reason::AlreadyInjected);
            prop_assert_eq!(after["spec"].get("unknownField"), pod["spec"].get("unknownField"));
            prop_assert_eq!(uninject(&after), Undone::Pod(pod));
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
            let verdict = judge(pod.clone(), "default", &policy);
            *seen.entry(verdict.reason.outcome().code()).or_default() += 1;
            let several = verdict.message.contains(", service `admin` on port 9090");
            of_several += u32::from(verdict.injected.is_some() && several);
        }
        assert!(of_several > 0, "no pod of several services");
        assert!(seen["injected"] > 25 && seen["denied"] > 25 && seen["skipped"] > 25, "{seen:?}");
    }
}
