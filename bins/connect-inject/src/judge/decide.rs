//! Decides whether a pod is injected. The pod's other annotations are read only afterwards,
//! so they never deny a pod that is not injected.

use crate::annotation;
use crate::outcome::{Denial, Reason};
use crate::pod::Pod;
use crate::policy::Policy;
use crate::values::{BOOLEAN_FORMS, boolean};

/// Namespaces of Kubernetes itself.
const SYSTEM_NAMESPACES: [&str; 2] = ["kube-system", "kube-public"];

/// The first rule that applies is the reason. Users rely on the order of the rules.
///
/// # Errors
/// The pod asks for a sidecar that it can't have, or its annotation is invalid.
pub(crate) fn decide(pod: Pod<'_>, namespace: &str, policy: &Policy) -> Result<Reason, Denial> {
    if SYSTEM_NAMESPACES.contains(&namespace) {
        return Ok(Reason::SystemNamespace);
    }
    if policy.denies(namespace) {
        return Ok(Reason::NamespaceDenied);
    }
    if !policy.allows(namespace) {
        return Ok(Reason::NamespaceNotAllowed);
    }
    if matches!(pod.annotation(annotation::STATUS), Ok(Some(status)) if !status.is_empty()) {
        return Ok(Reason::AlreadyInjected);
    }
    let reason = match requested(pod)? {
        Some(true) => Reason::Requested,
        Some(false) => Reason::OptedOut,
        None if policy.default_inject => Reason::ByDefault,
        None => Reason::NotRequested,
    };
    let Some((impossible, why)) = impossible(pod) else { return Ok(reason) };
    match reason {
        Reason::Requested => Err(Denial::new(
            Reason::ImpossibleRequested,
            format_args!("annotation `{}` on {why}; remove the annotation", annotation::INJECT),
        )),
        Reason::ByDefault => Ok(impossible),
        reason => Ok(reason),
    }
}

/// Why a pod can't have a sidecar, whatever its annotations say.
fn impossible(pod: Pod<'_>) -> Option<(Reason, &'static str)> {
    if pod.host_network() {
        let why = "a pod with hostNetwork: the sidecars of a node would share its ports";
        return Some((Reason::HostNetwork, why));
    }
    if pod.is_windows() {
        return Some((Reason::Windows, "a pod for Windows: the sidecar runs on Linux only"));
    }
    if pod.is_mirror() {
        let why = "the mirror of a static pod: the kubelet runs the pod from its file, without \
                   what would be injected";
        return Some((Reason::MirrorPod, why));
    }
    None
}

/// The value of the pod's annotation `connect-inject`.
fn requested(pod: Pod<'_>) -> Result<Option<bool>, Denial> {
    let key = annotation::INJECT;
    let value =
        pod.annotation(key).map_err(|error| Denial::new(Reason::InvalidConnectInject, error))?;
    value
        .map(|value| {
            boolean(value).ok_or_else(|| {
                let problem = format!("expected {BOOLEAN_FORMS}");
                Denial::annotation(Reason::InvalidConnectInject, key, value, problem)
            })
        })
        .transpose()
}

/// Describes a reason to inject or to skip, for people.
pub(crate) fn explain(reason: Reason, namespace: &str) -> String {
    let inject = annotation::INJECT;
    match reason {
        Reason::Requested => format!("annotation `{inject}` requests it"),
        Reason::ByDefault => "injection is on by default".to_owned(),
        Reason::NotAPodCreation => "not a request to create a pod".to_owned(),
        Reason::SystemNamespace => format!("namespace `{namespace}` belongs to Kubernetes"),
        Reason::NamespaceDenied => format!("namespace `{namespace}` is on the deny list"),
        Reason::NamespaceNotAllowed => format!("namespace `{namespace}` is not on the allow list"),
        Reason::AlreadyInjected => format!("annotation `{}` is set", annotation::STATUS),
        Reason::OptedOut => format!("annotation `{inject}` opts out"),
        Reason::NotRequested => {
            format!("no annotation `{inject}`, and injection is off by default")
        }
        Reason::HostNetwork => "the pod uses the host's network".to_owned(),
        Reason::Windows => "the pod runs on Windows".to_owned(),
        Reason::MirrorPod => "the pod mirrors a static pod".to_owned(),
        // Denied and refused requests have messages of their own.
        other => other.code().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::policy::tests::{policy, policy_of};

    fn pod(annotations: &Value) -> Value {
        json!({"metadata": {"annotations": annotations}, "spec": {}})
    }

    fn decided(pod: &Value, namespace: &str, policy: &Policy) -> Reason {
        decide(Pod::new(pod), namespace, policy).unwrap_or_else(|denial| denial.reason)
    }

    #[test]
    fn the_first_rule_that_applies_is_the_reason() {
        // Every rule applies to this pod.
        let mut policy = policy_of(&[
            "--default-inject",
            "--allow-k8s-namespace=shop",
            "--deny-k8s-namespace=shop,kube-system",
        ]);
        let worst = pod(&json!({annotation::STATUS: "injected", annotation::INJECT: "maybe"}));
        assert_eq!(decided(&worst, "kube-system", &policy), Reason::SystemNamespace);
        assert_eq!(decided(&worst, "kube-public", &policy), Reason::SystemNamespace);
        assert_eq!(decided(&worst, "shop", &policy), Reason::NamespaceDenied);
        assert_eq!(decided(&worst, "other", &policy), Reason::NamespaceNotAllowed);
        policy.deny_namespaces.clear();
        assert_eq!(decided(&worst, "shop", &policy), Reason::AlreadyInjected);
        let bad = pod(&json!({annotation::STATUS: "", annotation::INJECT: "maybe"}));
        assert_eq!(decided(&bad, "shop", &policy), Reason::InvalidConnectInject);
        assert_eq!(
            decided(&pod(&json!({annotation::INJECT: "f"})), "shop", &policy),
            Reason::OptedOut
        );
        assert_eq!(
            decided(&pod(&json!({annotation::INJECT: "1"})), "shop", &policy),
            Reason::Requested
        );
        assert_eq!(decided(&json!({}), "shop", &policy), Reason::ByDefault);
        policy.default_inject = false;
        assert_eq!(decided(&json!({}), "shop", &policy), Reason::NotRequested);
        policy.allow_namespaces.clear();
        assert_eq!(decided(&json!({}), "shop", &policy), Reason::NamespaceNotAllowed);
    }

    /// Pods with host network, pods on Windows, mirror pods. Reported in
    /// <https://github.com/istio/istio/issues/9002>.
    #[test]
    fn a_pod_that_cannot_have_a_sidecar_is_denied_only_if_it_asks_for_one() {
        let policy = policy_of(&["--default-inject"]);
        let mirror = json!({"kubernetes.io/config.mirror": "hash"});
        for (mut pod, skipped) in [
            (json!({"spec": {"hostNetwork": true}}), Reason::HostNetwork),
            (json!({"spec": {"os": {"name": "windows"}}}), Reason::Windows),
            (json!({"spec": {"nodeSelector": {"kubernetes.io/os": "windows"}}}), Reason::Windows),
            (json!({"metadata": {"annotations": mirror}, "spec": {}}), Reason::MirrorPod),
        ] {
            assert_eq!(decided(&pod, "shop", &policy), skipped);
            pod["metadata"]["annotations"][annotation::INJECT] = "false".into();
            assert_eq!(decided(&pod, "shop", &policy), Reason::OptedOut);
            pod["metadata"]["annotations"][annotation::INJECT] = "true".into();
            assert_eq!(decided(&pod, "shop", &policy), Reason::ImpossibleRequested);
        }
        let linux = json!({"spec": {"os": {"name": "linux"}, "nodeSelector": {"kubernetes.io/os": "linux"}}});
        assert_eq!(decided(&linux, "shop", &policy), Reason::ByDefault);
    }

    #[test]
    fn a_value_that_is_not_a_boolean_is_quoted() {
        let deny = |value: Value| {
            decide(Pod::new(&pod(&json!({annotation::INJECT: value}))), "shop", &policy())
                .unwrap_err()
                .message
        };
        assert_eq!(
            deny(json!("yes")),
            "annotation `consul.hashicorp.com/connect-inject` with value `yes`: expected `true` or `false`"
        );
        assert!(deny(json!(true)).ends_with("expected a string in quotes, found the boolean true"));
    }
}
