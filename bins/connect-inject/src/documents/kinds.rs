//! Finds the pods in an object.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::Value;

use crate::inject::edited;
use crate::inject::undo::{Undone, uninject};
use crate::judge::{Verdict, judge_pod};
use crate::outcome::{Denial, Reason};
use crate::pod::Pod;
use crate::policy::{Cluster, Policy};
use crate::values::boolean;
use crate::{annotation, json};

/// Result for a document.
#[derive(Debug)]
pub(crate) struct Findings<T> {
    /// A result for each object: one, or one for each item of a List.
    pub(crate) judged: Vec<Judged<T>>,
    /// The document with its pods changed, if any was.
    pub(crate) changed: Option<Value>,
}

/// Result for an object.
#[derive(Debug)]
pub(crate) struct Judged<T> {
    pub(crate) object: Object,
    /// Result for its pod; `None` if it has no pod.
    pub(crate) finding: Option<T>,
    /// A problem with the object around the pod.
    pub(crate) warning: Option<String>,
}

/// Identifies an object, as in `Deployment shop/web`.
#[derive(Debug)]
pub(crate) struct Object {
    kind: String,
    pub(crate) namespace: String,
    name: String,
}

/// Where the pods of an object are.
enum Place<'d> {
    /// JSON pointer of the pod or pod template.
    Pod(&'static str),
    /// JSON pointer of a list of objects, and the items' version and kind if the list
    /// defines them.
    Items(&'static str, Option<(&'d str, &'d str)>),
    Nowhere,
}

/// Injects the pods of a document. Injects a pod again if it was injected before and the
/// result would differ now.
pub(crate) fn inject(document: &Value, namespace: &str, policy: &Policy) -> Findings<Verdict> {
    let inject = |pod: Pod<'_>, namespace: &str| {
        let mut verdict = judge_pod(pod, namespace, policy, &Cluster::default());
        match verdict.edits.take().map(|edits| edited(pod.value().clone(), edits)) {
            None => (verdict, None),
            Some(Ok(pod)) => (verdict, Some(pod)),
            Some(Err(Denial { reason, message })) => (Verdict { reason, message, ..verdict }, None),
        }
    };
    each(document, namespace, &mut |pod, namespace| {
        let (verdict, changed) = inject(pod, namespace);
        if verdict.reason == Reason::AlreadyInjected
            && let Undone::Pod(before) = uninject(pod.value())
        {
            let (again, changed) = inject(pod.with_value(&before), namespace);
            if changed.as_ref() != Some(pod.value()) {
                return (again, changed);
            }
        }
        (verdict, changed)
    })
}

/// Calls `treat` for each pod of a document. It returns the result, and the changed pod if
/// there is one.
pub(crate) fn each<T>(
    document: &Value,
    namespace: &str,
    treat: &mut impl FnMut(Pod<'_>, &str) -> (T, Option<Value>),
) -> Findings<T> {
    let object = Object::of(document, namespace);
    match place(document) {
        Place::Nowhere => {
            let warning = asks(document).then(|| {
                if object.kind == "Namespace" {
                    return format!(
                        "a common mistake: `{}` on a Namespace has no effect: annotate the pods, or \
                         run the injector with --default-inject and --allow-k8s-namespace",
                        annotation::INJECT
                    );
                }
                format!(
                    "let the webhook inject the pods of this {}: it has annotation `{}`, but its kind is \
                     unknown here",
                    object.kind,
                    annotation::INJECT
                )
            });
            Findings { judged: vec![Judged { object, finding: None, warning }], changed: None }
        }
        Place::Items(pointer, kind) => each_item(document, pointer, kind, namespace, treat),
        Place::Pod(pointer) => {
            let pod = Pod::new(json::find(document, pointer).unwrap_or(&Value::Null))
                .with_claims(json::find(document, "/spec/volumeClaimTemplates"));
            let (finding, changed) = treat(pod, &object.namespace);
            let warning = misplaced(document, pointer);
            let changed = changed.and_then(|pod| {
                let mut document = document.clone();
                *json::find_mut(&mut document, pointer)? = pod;
                Some(document)
            });
            Findings { judged: vec![Judged { object, finding: Some(finding), warning }], changed }
        }
    }
}

/// Calls `treat` for the pods of a list's items. Items of a typed list, such as a PodList,
/// lack a kind.
fn each_item<T>(
    list: &Value,
    pointer: &str,
    kind: Option<(&str, &str)>,
    namespace: &str,
    treat: &mut impl FnMut(Pod<'_>, &str) -> (T, Option<Value>),
) -> Findings<T> {
    let mut judged = Vec::new();
    let mut replaced = Vec::new();
    let items = json::find(list, pointer).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for (index, item) in items.iter().enumerate() {
        let named = kind.filter(|_| item.get("kind").is_none()).map(|(version, kind)| {
            let mut item = item.clone();
            if let Value::Object(members) = &mut item {
                members.insert("apiVersion".to_owned(), version.into());
                members.insert("kind".to_owned(), kind.into());
            }
            item
        });
        let findings = each(named.as_ref().unwrap_or(item), namespace, treat);
        judged.extend(findings.judged);
        if let Some(mut changed) = findings.changed {
            if let Value::Object(members) = &mut changed
                && named.is_some()
            {
                members.remove("apiVersion");
                members.remove("kind");
            }
            replaced.push((index, changed));
        }
    }
    let changed = (!replaced.is_empty()).then(|| {
        let mut list = list.clone();
        if let Some(Value::Array(items)) = json::find_mut(&mut list, pointer) {
            for (index, item) in replaced {
                items[index] = item;
            }
        }
        list
    });
    Findings { judged, changed }
}

/// Whether an annotation anywhere in an object asks for a sidecar.
fn asks(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.iter().any(|(key, value)| {
            (key == annotation::INJECT && value.as_str().and_then(boolean) == Some(true))
                || asks(value)
        }),
        Value::Array(elements) => elements.iter().any(asks),
        _ => false,
    }
}

/// Warns of annotations on the object around the pod, where they have no effect. The
/// tutorial calls this a common mistake.
fn misplaced(document: &Value, pointer: &str) -> Option<String> {
    let annotations = |value: &'_ Value, at: &str| {
        json::find(value, &format!("{at}/metadata/annotations")).cloned()
    };
    if pointer.is_empty() {
        return None;
    }
    let on_pod = annotations(document, pointer);
    let has = |key: &str| on_pod.as_ref().is_some_and(|on_pod| on_pod.get(key).is_some());
    // A CronJob has a Job template in between.
    let around = ["", "/spec/jobTemplate"].into_iter().filter(|at| *at != pointer);
    let keys: BTreeSet<String> = around
        .filter_map(|at| annotations(document, at))
        .filter_map(|annotations| {
            let annotations = annotations.as_object()?;
            Some(annotation::ours(annotations).map(str::to_owned).collect::<Vec<_>>())
        })
        .flatten()
        .filter(|key| !has(key))
        .collect();
    if keys.is_empty() {
        return None;
    }
    let keys: Vec<_> = keys.iter().map(|key| format!("`{key}`")).collect();
    Some(format!(
        "a common mistake: {} on the {} itself has no effect: move it to {}.metadata.annotations",
        keys.join(", "),
        document.get("kind").and_then(Value::as_str).unwrap_or("object"),
        pointer[1..].replace('/', "."),
    ))
}

/// Finds the pods by API group and kind; includes widely used third-party kinds.
fn place(document: &Value) -> Place<'_> {
    let field = |name| document.get(name).and_then(Value::as_str).unwrap_or_default();
    let version = field("apiVersion");
    let group = version.rsplit_once('/').map_or("", |(group, _)| group);
    match (group, field("kind")) {
        ("", "Pod") => Place::Pod(""),
        ("", "PodTemplate") => Place::Pod("/template"),
        ("", "ReplicationController")
        | ("apps" | "extensions", "Deployment" | "DaemonSet" | "ReplicaSet")
        | ("apps", "StatefulSet")
        | ("batch", "Job")
        | ("argoproj.io", "Rollout")
        | ("apps.openshift.io", "DeploymentConfig")
        | ("apps.kruise.io", "CloneSet" | "StatefulSet" | "DaemonSet") => {
            Place::Pod("/spec/template")
        }
        ("batch", "CronJob") => Place::Pod("/spec/jobTemplate/spec/template"),
        ("" | "template.openshift.io", "Template") => Place::Items("/objects", None),
        (_, "List") => Place::Items("/items", None),
        (_, list) => match list.strip_suffix("List") {
            Some(kind) => Place::Items("/items", Some((version, kind))),
            None => Place::Nowhere,
        },
    }
}

// === impl Object ===

impl Object {
    fn of(document: &Value, default_namespace: &str) -> Self {
        let text = |pointer: &str| {
            document.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty())
        };
        Self {
            kind: text("/kind").unwrap_or("document").to_owned(),
            namespace: text("/metadata/namespace").unwrap_or(default_namespace).to_owned(),
            name: text("/metadata/name")
                .or_else(|| text("/metadata/generateName"))
                .unwrap_or("(no name)")
                .to_owned(),
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::policy::tests::{policy, policy_of};

    fn template() -> Value {
        json!({
            "metadata": {"annotations": {annotation::INJECT: "true"}},
            "spec": {"containers": [{"name": "app"}]},
        })
    }

    fn is_injected(pod: &Value) -> bool {
        pod["metadata"]["annotations"][annotation::STATUS] == "injected"
    }

    #[test]
    fn every_kind_with_a_pod_is_injected() {
        for (version, kind) in [
            ("apps/v1", "Deployment"),
            ("extensions/v1beta1", "Deployment"),
            ("apps/v1", "StatefulSet"),
            ("apps/v1", "DaemonSet"),
            ("apps/v1", "ReplicaSet"),
            ("v1", "ReplicationController"),
            ("batch/v1", "Job"),
            ("argoproj.io/v1alpha1", "Rollout"),
            ("apps.openshift.io/v1", "DeploymentConfig"),
            ("apps.kruise.io/v1alpha1", "CloneSet"),
        ] {
            let document =
                json!({"apiVersion": version, "kind": kind, "spec": {"template": template()}});
            let changed = inject(&document, "default", &policy()).changed.unwrap();
            assert!(is_injected(&changed["spec"]["template"]), "{kind}");
        }
        let document = json!({"apiVersion": "batch/v1", "kind": "CronJob", "spec": {"jobTemplate": {"spec": {"template": template()}}}});
        let changed = inject(&document, "default", &policy()).changed.unwrap();
        assert!(is_injected(&changed["spec"]["jobTemplate"]["spec"]["template"]));
    }

    #[test]
    fn the_pods_of_a_list_are_injected() {
        let mut pod = template();
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [{"kind": "Service"}, pod]});
        let findings = inject(&list, "default", &policy());
        assert_eq!(findings.judged.len(), 2);
        let changed = findings.changed.unwrap();
        assert_eq!(changed["items"][0], list["items"][0]);
        assert!(is_injected(&changed["items"][1]));
        assert!(
            inject(&json!({"kind": "List", "items": 5}), "default", &policy()).judged.is_empty()
        );
    }

    /// These kinds were skipped without a warning.
    #[test]
    fn lists_and_templates_of_one_kind() {
        let document = json!({"apiVersion": "v1", "kind": "PodTemplate", "template": template()});
        let changed = inject(&document, "default", &policy()).changed.unwrap();
        assert!(is_injected(&changed["template"]));
        let document =
            json!({"apiVersion": "v1", "kind": "PodList", "items": [template(), {"spec": 5}]});
        let findings = inject(&document, "default", &policy());
        assert_eq!(findings.judged[0].object.kind, "Pod");
        let changed = findings.changed.unwrap();
        assert!(is_injected(&changed["items"][0]) && changed["items"][0].get("kind").is_none());
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": template()["metadata"], "spec": template()["spec"]});
        let document =
            json!({"apiVersion": "template.openshift.io/v1", "kind": "Template", "objects": [pod]});
        assert!(is_injected(
            &inject(&document, "default", &policy()).changed.unwrap()["objects"][0]
        ));
    }

    #[test]
    fn an_unknown_kind_with_the_annotation_causes_a_warning() {
        for kind in ["Service", "WorkflowTemplate"] {
            let document = json!({"apiVersion": "serving.knative.dev/v1", "kind": kind, "spec": {"template": template()}});
            let findings = inject(&document, "default", &policy());
            let warning = findings.judged[0].warning.clone().unwrap();
            assert!(warning.contains(&format!("pods of this {kind}")), "{warning}");
        }
        // An annotation on the Namespace caused no warning.
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "shop", "annotations": {annotation::INJECT: "true"}}});
        let warning = inject(&namespace, "default", &policy()).judged[0].warning.clone().unwrap();
        assert!(warning.contains("on a Namespace has no effect"), "{warning}");
        let other = json!({"apiVersion": "v1", "kind": "Service"});
        assert_eq!(inject(&other, "default", &policy()).judged[0].warning, None);
    }

    /// The StatefulSet's controller adds a volume for each claim template.
    #[test]
    fn a_volume_of_a_claim_template_can_be_mounted() {
        let mut template = template();
        template["metadata"]["annotations"][annotation::USER_MOUNTS] =
            r#"[{"name":"data","mountPath":"/data"}]"#.into();
        let mut set =
            json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "spec": {"template": template}});
        assert_eq!(inject(&set, "default", &policy()).changed, None);
        set["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}}]);
        assert!(inject(&set, "default", &policy()).changed.is_some());
    }

    /// The claim templates were looked up in the List instead of in its items.
    #[test]
    fn each_statefulset_of_a_list_has_its_own_claim_templates() {
        let set = |claim: &str| {
            let mut template = template();
            template["metadata"]["annotations"][annotation::USER_MOUNTS] =
                r#"[{"name":"data","mountPath":"/data"}]"#.into();
            json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "spec": {
                "template": template, "volumeClaimTemplates": [{"metadata": {"name": claim}}],
            }})
        };
        let list = |items: &[Value]| json!({"apiVersion": "v1", "kind": "List", "items": items});
        let nested = list(&[set("data"), set("other"), list(&[set("data")])]);
        let findings = inject(&nested, "default", &policy());
        let reasons: Vec<_> =
            findings.judged.iter().map(|judged| judged.finding.as_ref().unwrap().reason).collect();
        assert_eq!(reasons, [Reason::Requested, Reason::InvalidVolumes, Reason::Requested]);
        // An injected one is judged as it was before.
        let once = findings.changed.unwrap();
        let newer = Policy { envoy_image: "envoy:2".to_owned(), ..policy() };
        let again = inject(&once, "default", &newer);
        let judged = again.judged[0].finding.as_ref().unwrap();
        assert_eq!(judged.reason, Reason::Requested, "{}", judged.message);
    }

    /// A manifest that was injected before was not injected again when its annotations had
    /// changed.
    #[test]
    fn an_injected_manifest_is_injected_again_if_it_has_changed() {
        let document = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"template": template()}});
        let once = inject(&document, "default", &policy()).changed.unwrap();
        let again = inject(&once, "default", &policy());
        assert_eq!(again.changed, None);
        let verdict = again.judged[0].finding.as_ref().unwrap();
        assert_eq!(verdict.reason, Reason::AlreadyInjected);

        let key = annotation::UPSTREAMS;
        let mut edited = once.clone();
        edited["spec"]["template"]["metadata"]["annotations"][key] = "db:1".into();
        let after = inject(&edited, "default", &policy()).changed.unwrap();
        let mut expected = document;
        expected["spec"]["template"]["metadata"]["annotations"][key] = "db:1".into();
        let expected = inject(&expected, "default", &policy()).changed.unwrap();
        assert_eq!(after, expected);
    }

    #[test]
    fn other_objects_are_not_changed() {
        for document in [
            json!({"apiVersion": "v1", "kind": "Service"}),
            json!({"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "spec": {"template": template()}}),
            json!("text"),
            json!(["a"]),
        ] {
            let findings = inject(&document, "default", &policy());
            assert!(findings.judged[0].finding.is_none());
            assert_eq!(findings.changed, None);
        }
    }

    #[test]
    fn a_template_that_is_missing_is_skipped() {
        let document = json!({"apiVersion": "apps/v1", "kind": "Deployment"});
        assert_eq!(inject(&document, "default", &policy()).changed, None);
    }

    #[test]
    fn the_namespace_is_the_objects_own_or_the_default() {
        let policy = policy_of(&["--deny-k8s-namespace=shop"]);
        let mut document = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"template": template()}});
        assert!(inject(&document, "default", &policy).changed.is_some());
        assert!(inject(&document, "shop", &policy).changed.is_none());
        document["metadata"] = json!({"namespace": "shop", "name": "web"});
        let findings = inject(&document, "default", &policy);
        assert!(findings.changed.is_none());
        assert_eq!(findings.judged[0].object.to_string(), "Deployment shop/web");
    }

    /// Tested because the tutorial calls it a common mistake.
    #[test]
    fn an_annotation_on_the_object_around_the_pod_is_explained() {
        let on = || json!({"annotations": {annotation::INJECT: "true", "other": "x"}});
        let template = || json!({"spec": {"containers": [{"name": "app"}]}});
        let mut deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": on(), "spec": {"template": template()}});
        let findings = inject(&deployment, "default", &policy());
        let warning = findings.judged[0].warning.clone().unwrap();
        assert_eq!(
            warning,
            "a common mistake: `consul.hashicorp.com/connect-inject` on the Deployment itself has \
             no effect: move it to spec.template.metadata.annotations"
        );
        deployment["spec"]["template"]["metadata"] = on();
        assert_eq!(inject(&deployment, "default", &policy()).judged[0].warning, None);

        let cron_job = json!({"apiVersion": "batch/v1", "kind": "CronJob", "spec": {"jobTemplate": {
            "metadata": on(), "spec": {"template": template()}}}});
        let findings = inject(&cron_job, "default", &policy());
        let warning = findings.judged[0].warning.clone().unwrap();
        assert!(warning.contains("spec.jobTemplate.spec.template.metadata"), "{warning}");

        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": on()});
        assert_eq!(inject(&pod, "default", &policy()).judged[0].warning, None);
    }
}
