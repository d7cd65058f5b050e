//! Judges single pods: whether they have the sidecar that they ask for, and whether the
//! injector would now give them another one.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::super::condition::Condition;
use super::super::finding::{Code, Finding};
use super::super::sidecar::{self, Change};
use super::super::snapshot::{Owner, Pod, PodKey, Snapshot};
use super::Judging;
use crate::annotation::{INJECT, STATUS, TRANSPARENT_PROXY};
use crate::judge::Verdict;
use crate::outcome::{Outcome, Reason};
use crate::policy::Policy;
use crate::values::boolean;

/// Reduces a pod to what the snapshot keeps, and judges it. `seen` must already have the
/// webhooks and namespaces.
pub(in super::super) fn judge(
    pod: &Value,
    seen: &Snapshot,
    by: Judging<'_>,
) -> (PodKey, Pod, Option<Finding>) {
    let metadata = &pod["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let key = (text(&metadata["namespace"]), text(&metadata["name"]));
    let status = &pod["status"];
    let kept = Pod {
        uid: text(&metadata["uid"]),
        node: text(&pod["spec"]["nodeName"]),
        ips: addresses(status),
        created: seconds(&metadata["creationTimestamp"]).unwrap_or_default(),
        ready: ready_since(status),
        ends: !metadata["deletionTimestamp"].is_null(),
        ended: matches!(status["phase"].as_str(), Some("Succeeded" | "Failed")),
        sidecar: sidecar::sidecar(pod),
    };
    let finding = (!kept.ends && !kept.ended)
        .then(|| finding(pod, &key, &kept, seen, by))
        .flatten()
        .map(|finding| finding.within(&key.0).on(&kept.node));
    (key, kept, finding)
}

fn finding(
    pod: &Value,
    key: &PodKey,
    kept: &Pod,
    seen: &Snapshot,
    by: Judging<'_>,
) -> Option<Finding> {
    let namespace = &key.0;
    let policy = policy_of(namespace, seen, by.policy);
    let (code, detail) = if kept.sidecar.is_some() {
        let change = sidecar::change(pod, namespace, &policy, by.cluster)?;
        outdated(change, by.knows_policy)?
    } else if sidecar::has_another(pod) {
        return None;
    } else {
        let verdict = crate::judge::judge(&without_status(pod), namespace, &policy, by.cluster);
        without_sidecar(pod, namespace, &verdict, seen)?
    };
    Some(Finding::new(code, "Pod", &key.1).saying(detail))
}

/// The policy by which the webhook judges the pods of a namespace: its label may say whether
/// they are transparent.
fn policy_of<'p>(namespace: &str, seen: &Snapshot, policy: &'p Policy) -> Cow<'p, Policy> {
    let labels = seen.namespaces.as_ref().and_then(|all| all.get(namespace));
    match labels.and_then(|labels| labels.get(TRANSPARENT_PROXY)).map(String::as_str) {
        Some("true") => Cow::Owned(policy.of_transparency(true)),
        Some("false") => Cow::Owned(policy.of_transparency(false)),
        _ => Cow::Borrowed(policy),
    }
}

/// The finding about a sidecar that a restart would change.
fn outdated(change: Change, knows_policy: bool) -> Option<(Code, String)> {
    match change {
        // Without a policy there are no images to compare with.
        Change::Images(_) | Change::Policy(_) | Change::Denied(..) if !knows_policy => None,
        Change::Images(images) => {
            Some((Code::SidecarOutdated, format!("the sidecar has {images}")))
        }
        Change::Annotations(change) => Some((
            Code::AnnotationsChanged,
            format!("the annotations changed since the pod was injected: {change}"),
        )),
        Change::Policy(change) => Some((
            Code::SidecarOtherPolicy,
            format!("the injector would now configure the sidecar differently: {change}"),
        )),
        Change::Denied(reason, message) => Some((
            Code::PodDenied,
            format!(
                "it has a sidecar, but its next pod would be denied ({}): {message}",
                reason.code()
            ),
        )),
    }
}

/// The finding about a pod without a sidecar. `verdict` is what the injector would decide
/// now.
fn without_sidecar(
    pod: &Value,
    namespace: &str,
    verdict: &Verdict,
    seen: &Snapshot,
) -> Option<(Code, String)> {
    let message = &verdict.message;
    let asks = pod["metadata"]["annotations"][INJECT].as_str().and_then(boolean) == Some(true);
    match verdict.reason {
        Reason::SystemNamespace | Reason::NamespaceDenied | Reason::NamespaceNotAllowed if asks => {
            let why = lower(message);
            let detail = format!("annotation `{INJECT}` asks for a sidecar, but {why}");
            Some((Code::PodExcluded, detail))
        }
        Reason::Requested | Reason::ByDefault => match reach(pod, namespace, seen) {
            // Injection by default applies only to pods that the webhooks match.
            Reach::Excluded if verdict.reason == Reason::ByDefault => None,
            Reach::Excluded => Some((
                Code::WebhookExcludes,
                "it asks for a sidecar, but no webhook of the injector matches its namespace, \
                 labels and annotations"
                    .to_owned(),
            )),
            Reach::Called => Some((Code::PodWithoutSidecar, missed(pod))),
            Reach::Unknown(condition) => Some((
                Code::PodWithoutSidecar,
                format!(
                    "{}; or the matchCondition {condition}, which the audit cannot evaluate, \
                     excludes it",
                    missed(pod)
                ),
            )),
        },
        reason if reason.outcome() == Outcome::Denied => Some((
            Code::PodDenied,
            format!(
                "it asks for a sidecar, has none, and would be denied now ({}): {message}",
                reason.code()
            ),
        )),
        _ => None,
    }
}

/// How a pod for which the webhook is called can have no sidecar.
fn missed(pod: &Value) -> String {
    if pod["metadata"]["annotations"][STATUS].is_string() {
        format!("its annotation `{STATUS}` says that it was injected, but it has no sidecar")
    } else {
        "it asks for a sidecar and has none: it was created while no injector answered, or before \
         its namespace or its labels were selected"
            .to_owned()
    }
}

/// Whether the API server calls a webhook of ours for a pod.
#[derive(Debug, PartialEq, Eq)]
enum Reach {
    /// A webhook matches, or the webhooks or the namespace could not be read.
    Called,
    /// No webhook matches.
    Excluded,
    /// The result depends on this condition, which can't be evaluated.
    Unknown(String),
}

fn reach(pod: &Value, namespace: &str, seen: &Snapshot) -> Reach {
    let (Some(webhooks), Some(namespaces)) = (&seen.webhooks, &seen.namespaces) else {
        return Reach::Called;
    };
    let Some(of_namespace) = namespaces.get(namespace) else { return Reach::Called };
    let labels: BTreeMap<String, String> =
        serde_json::from_value(pod["metadata"]["labels"].clone()).unwrap_or_default();
    let ours: Vec<_> = webhooks.iter().filter(|webhook| webhook.owner == Owner::Us).collect();
    let mut reach = if ours.is_empty() { Reach::Called } else { Reach::Excluded };
    for webhook in ours.into_iter().filter(|webhook| {
        webhook.namespaces.matches(of_namespace) && webhook.objects.matches(&labels)
    }) {
        let holds = |condition: &Condition| condition.holds(pod);
        if webhook.conditions.iter().any(|condition| holds(condition) == Some(false)) {
            continue;
        }
        match webhook.conditions.iter().find(|condition| holds(condition).is_none()) {
            None => return Reach::Called,
            Some(condition) => {
                reach = Reach::Unknown(format!("{condition} of {}", webhook.name));
            }
        }
    }
    reach
}

fn without_status(pod: &Value) -> Value {
    let mut pod = pod.clone();
    if let Some(Value::Object(annotations)) = pod.pointer_mut("/metadata/annotations") {
        annotations.remove(STATUS);
    }
    pod
}

fn addresses(status: &Value) -> Vec<String> {
    let all = status["podIPs"].as_array().into_iter().flatten().filter_map(|ip| ip["ip"].as_str());
    let mut ips: Vec<String> = all.map(str::to_owned).collect();
    if let Some(ip) = status["podIP"].as_str().filter(|ip| !ips.iter().any(|known| known == ip)) {
        ips.insert(0, ip.to_owned());
    }
    ips
}

fn ready_since(status: &Value) -> Option<i64> {
    let conditions = status["conditions"].as_array()?;
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready")?;
    (ready["status"] == "True").then(|| seconds(&ready["lastTransitionTime"]).unwrap_or_default())
}

fn seconds(time: &Value) -> Option<i64> {
    time.as_str()?.parse::<Timestamp>().ok().map(Timestamp::as_second)
}

/// Turns a sentence into a part of another one.
fn lower(sentence: &str) -> String {
    let mut characters = sentence.chars();
    let first = characters.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(characters).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::snapshot::Webhook;
    use super::*;
    use crate::audit::selector::Selector;
    use crate::policy::tests::policy_of;
    use crate::policy::{Cluster, Policy};

    fn judged(pod: &Value, policy: &Policy, seen: &Snapshot) -> Option<Finding> {
        let cluster = Cluster::default();
        let by = Judging { grace: 120, ..Judging::of(policy, &cluster) };
        judge(pod, seen, by).2
    }

    fn pod(namespace: &str, annotations: &Value) -> Value {
        json!({
            "metadata": {"name": "web", "namespace": namespace, "annotations": annotations,
                "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "web"}]},
            "status": {"phase": "Running", "podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}]},
        })
    }

    fn injected(pod: Value, policy: &Policy) -> Value {
        let edits = crate::judge::judge(&pod, "shop", policy, &Cluster::default()).edits.unwrap();
        crate::inject::edited(pod, edits).unwrap()
    }

    fn code(finding: Option<Finding>) -> Option<Code> {
        finding.map(|finding| finding.code)
    }

    /// Pods start without a sidecar, silently. Reported in
    /// <https://github.com/hashicorp/consul-helm/issues/851>.
    #[test]
    fn a_pod_without_the_sidecar_that_it_asks_for_is_reported_with_the_cause() {
        let policy = policy_of(&["--deny-k8s-namespace=off"]);
        let none = Snapshot::default();
        let asks = json!({INJECT: "true"});
        let judged = |pod: &Value| judged(pod, &policy, &none);
        assert_eq!(code(judged(&pod("shop", &asks))), Some(Code::PodWithoutSidecar));
        assert_eq!(code(judged(&pod("off", &asks))), Some(Code::PodExcluded));
        assert_eq!(code(judged(&pod("kube-system", &asks))), Some(Code::PodExcluded));
        assert_eq!(code(judged(&pod("off", &json!({})))), None);
        assert_eq!(code(judged(&pod("shop", &json!({INJECT: "yes"})))), Some(Code::PodDenied));
        let forged = pod("shop", &json!({INJECT: "true", STATUS: "injected"}));
        let found = judged(&forged).unwrap();
        assert_eq!(found.code, Code::PodWithoutSidecar);
        assert!(found.detail.contains("says that it was injected"), "{}", found.detail);
        for quiet in [json!({}), json!({INJECT: "false"})] {
            assert_eq!(judged(&pod("shop", &quiet)), None, "{quiet}");
        }
    }

    #[test]
    fn a_pod_that_is_terminating_or_has_ended_causes_no_finding() {
        let policy = policy_of(&[]);
        let mut ends = pod("shop", &json!({INJECT: "true"}));
        ends["metadata"]["deletionTimestamp"] = "2026-11-25T12:00:00Z".into();
        assert_eq!(judged(&ends, &policy, &Snapshot::default()), None);
        let mut ended = pod("shop", &json!({INJECT: "true"}));
        ended["status"]["phase"] = "Succeeded".into();
        assert_eq!(judged(&ended, &policy, &Snapshot::default()), None);
    }

    /// The label of the namespace takes precedence over the default.
    #[test]
    fn a_namespace_whose_label_turns_the_transparent_proxy_off_has_its_own_policy() {
        let policy = policy_of(&["--default-transparent-proxy"]);
        let labelled = |label: &str| Snapshot {
            namespaces: Some(BTreeMap::from([(
                "shop".to_owned(),
                BTreeMap::from([(TRANSPARENT_PROXY.to_owned(), label.to_owned())]),
            )])),
            ..Snapshot::default()
        };
        let asks = pod("shop", &json!({INJECT: "true"}));
        let injected = injected(asks, &policy.of_transparency(false));
        assert_eq!(judged(&injected, &policy, &labelled("false")), None);
        let found = judged(&injected, &policy, &labelled("true"));
        assert_eq!(code(found), Some(Code::SidecarOtherPolicy));
    }

    /// With ACLs enabled since, each restart of such a pod is rejected.
    #[test]
    fn a_sidecar_whose_next_pod_would_be_denied_is_found_if_the_policy_is_known() {
        let asks = pod("shop", &json!({INJECT: "true"}));
        let acls = policy_of(&["--acl-auth-method=k8s"]);
        let injected = injected(asks, &policy_of(&[]));
        let found = judged(&injected, &acls, &Snapshot::default()).unwrap();
        assert_eq!(found.code, Code::PodDenied);
        assert!(
            found.detail.starts_with(
                "it has a sidecar, but its next pod would be denied (service-account-mismatch): "
            ),
            "{}",
            found.detail
        );
        let cluster = Cluster::default();
        let by = Judging { knows_policy: false, ..Judging::of(&acls, &cluster) };
        assert_eq!(judge(&injected, &Snapshot::default(), by).2, None);
    }

    /// `connect-init` refuses to register a copy, which nobody restarts.
    #[test]
    fn a_copy_of_an_injected_pod_counts_as_one_without_a_sidecar_and_causes_no_finding() {
        let policy = policy_of(&[]);
        let mut copy = injected(pod("shop", &json!({INJECT: "true"})), &policy);
        let newer = Policy { envoy_image: "envoy:2".to_owned(), ..policy_of(&[]) };
        assert!(judged(&copy, &newer, &Snapshot::default()).is_some());
        // As `kubectl debug --copy-to` does; it keeps annotations with --keep-annotations.
        copy["metadata"].as_object_mut().unwrap().remove("labels");
        let bare = {
            let mut bare = copy.clone();
            bare["metadata"].as_object_mut().unwrap().remove("annotations");
            bare
        };
        let cluster = Cluster::default();
        for copy in [copy, bare] {
            let (_, kept, finding) =
                judge(&copy, &Snapshot::default(), Judging::of(&newer, &cluster));
            assert_eq!((kept.sidecar, finding), (None, None), "{copy}");
        }
    }

    #[test]
    fn a_pod_that_no_webhook_selects_has_a_finding_of_its_own() {
        let webhook = Webhook {
            namespaces: Selector::of(&json!({"matchLabels": {"mesh": "on"}})),
            ..Webhook::default()
        };
        let labels = |on: &str| BTreeMap::from([("mesh".to_owned(), on.to_owned())]);
        let seen = Snapshot {
            webhooks: Some(vec![webhook]),
            namespaces: Some(BTreeMap::from([
                ("shop".to_owned(), labels("on")),
                ("dark".to_owned(), labels("off")),
            ])),
            ..Snapshot::default()
        };
        let asks = json!({INJECT: "true"});
        let policy = policy_of(&[]);
        assert_eq!(
            code(judged(&pod("shop", &asks), &policy, &seen)),
            Some(Code::PodWithoutSidecar)
        );
        assert_eq!(code(judged(&pod("dark", &asks), &policy, &seen)), Some(Code::WebhookExcludes));
        let by_default = policy_of(&["--default-inject"]);
        assert_eq!(code(judged(&pod("dark", &json!({})), &by_default, &seen)), None);
        let found = judged(&pod("shop", &json!({})), &by_default, &seen);
        assert_eq!(code(found), Some(Code::PodWithoutSidecar));
    }

    #[test]
    fn a_pod_that_matchconditions_exclude_has_a_finding_of_its_own() {
        let policy = policy_of(&[]);
        let asks = pod("shop", &json!({INJECT: "true"}));
        let found = |webhooks: &[&[Condition]]| {
            let webhook = |conditions: &&[Condition]| Webhook {
                name: "w".to_owned(),
                conditions: conditions.to_vec(),
                ..Webhook::default()
            };
            let seen = Snapshot {
                webhooks: Some(webhooks.iter().map(webhook).collect()),
                namespaces: Some([("shop".to_owned(), BTreeMap::new())].into()),
                ..Snapshot::default()
            };
            judged(&asks, &policy, &seen).unwrap()
        };
        let other = Condition::Other("mine".to_owned());
        let code = |webhooks: &[&[Condition]]| found(webhooks).code;
        assert_eq!(code(&[&[Condition::Asks]]), Code::PodWithoutSidecar);
        assert_eq!(code(&[&[Condition::Silent]]), Code::WebhookExcludes);
        assert_eq!(code(&[&[Condition::Silent, other.clone()]]), Code::WebhookExcludes);
        let unknown = found(&[&[Condition::Asks, other.clone()], &[Condition::Silent]]);
        assert_eq!(unknown.code, Code::PodWithoutSidecar);
        assert!(unknown.detail.contains("matchCondition `mine` of w"), "{}", unknown.detail);
        let either = found(&[&[other], &[Condition::Asks]]);
        assert!(!either.detail.contains("matchCondition"), "{}", either.detail);
    }

    #[test]
    fn addresses_times_and_node_of_a_pod_are_kept() {
        let mut pod = pod("shop", &json!({}));
        pod["metadata"]["creationTimestamp"] = "1970-01-01T00:01:40Z".into();
        pod["status"]["conditions"] = json!([{"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:02:00Z"}]);
        let cluster = Cluster::default();
        let policy = policy_of(&[]);
        let by = Judging::of(&policy, &cluster);
        let (key, kept, _) = judge(&pod, &Snapshot::default(), by);
        assert_eq!(key, ("shop".to_owned(), "web".to_owned()));
        assert_eq!((kept.created, kept.ready, kept.node.as_str()), (100, Some(120), "n1"));
        assert_eq!(kept.ips, ["10.0.0.7"]);
    }
}
