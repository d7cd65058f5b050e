//! Whether a pod is injected. What it would be injected with is looked at only
//! after that: a pod that will not be injected is never denied for it.

use crate::annotation::{self, BOOLEAN_FORMS};
use crate::denial::Denial;
use crate::pod::Pod;
use crate::policy::Policy;
use crate::reason::Reason;

/// The namespaces of Kubernetes itself.
const SYSTEM_NAMESPACES: [&str; 2] = ["kube-system", "kube-public"];

/// Decides. The order is part of the contract with users: the first that
/// applies is the reason.
///
/// # Errors
/// A pod that asks for what can't be, or in words that can't be understood.
pub(crate) fn decide(pod: Pod<'_>, namespace: &str, policy: &Policy) -> Result<Reason, Denial> {
    if SYSTEM_NAMESPACES.contains(&namespace) {
        return Ok(Reason::SystemNamespace);
    }
    if policy.deny_namespaces.contains(namespace) {
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
    match reason {
        Reason::Requested if pod.host_network() => Err(Denial::new(
            Reason::HostNetworkRequested,
            format_args!(
                "annotation `{}` on a pod with hostNetwork: the sidecars of a node would share its \
                 ports; remove one of the two",
                annotation::INJECT
            ),
        )),
        Reason::ByDefault if pod.host_network() => Ok(Reason::HostNetwork),
        reason => Ok(reason),
    }
}

/// What the pod itself says.
fn requested(pod: Pod<'_>) -> Result<Option<bool>, Denial> {
    let key = annotation::INJECT;
    let value =
        pod.annotation(key).map_err(|error| Denial::new(Reason::InvalidConnectInject, error))?;
    value
        .map(|value| {
            annotation::boolean(value).ok_or_else(|| {
                let problem = format!("expected {BOOLEAN_FORMS}");
                Denial::annotation(Reason::InvalidConnectInject, key, value, problem)
            })
        })
        .transpose()
}

/// A reason to inject or to skip, for people.
pub(crate) fn explain(reason: Reason, namespace: &str) -> String {
    let inject = annotation::INJECT;
    match reason {
        Reason::Requested => format!("annotation `{inject}` asks for it"),
        Reason::ByDefault => "injection is on by default".to_owned(),
        Reason::NotAPodCreation => "not the creation of a pod".to_owned(),
        Reason::SystemNamespace => format!("namespace `{namespace}` belongs to Kubernetes"),
        Reason::NamespaceDenied => format!("namespace `{namespace}` is on the deny list"),
        Reason::NamespaceNotAllowed => format!("namespace `{namespace}` is not on the allow list"),
        Reason::AlreadyInjected => format!("annotation `{}` is there", annotation::STATUS),
        Reason::OptedOut => format!("annotation `{inject}` asks for none"),
        Reason::NotRequested => {
            format!("no annotation `{inject}`, and injection is off by default")
        }
        Reason::HostNetwork => "the pod is in the node's network".to_owned(),
        // Those that deny or refuse come with a message of their own.
        other => other.code().to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::policy::SidecarMode;
    use crate::quantity::Resources;

    /// The policy of an injector with no flags but the images, and
    /// without resources.
    pub(crate) fn policy() -> Policy {
        Policy {
            default_inject: false,
            allow_namespaces: ["*".to_owned()].into(),
            deny_namespaces: [].into(),
            init_image: "connect-init:1".to_owned(),
            envoy_image: "envoy:1".to_owned(),
            pull_when: None,
            pull_secrets: Vec::new(),
            envoy_extra_args: Vec::new(),
            concurrency: 2,
            sidecar_resources: Resources::default(),
            init_resources: Resources::default(),
            fixed_user: true,
            metrics: false,
            metrics_port: 20200,
            metrics_path: "/metrics".to_owned(),
            startup_grace: 30,
            shutdown_grace: None,
            application_sleep: 5,
            sidecar_mode: SidecarMode::Auto,
            kubernetes: None,
            mesh_gateways: None,
            pod_log_level: None,
            pod_log_format: None,
            consul_http_addr: "http://$(HOST_IP):8500".to_owned(),
            consul_grpc_addr: "$(HOST_IP):8502".to_owned(),
            consul_ca: None,
            consul_server_name: None,
            acl_auth_method: None,
        }
    }

    fn pod(annotations: &Value) -> Value {
        json!({"metadata": {"annotations": annotations}, "spec": {}})
    }

    fn decided(pod: &Value, namespace: &str, policy: &Policy) -> Reason {
        decide(Pod::new(pod), namespace, policy).unwrap_or_else(|denial| denial.reason)
    }

    #[test]
    fn the_first_that_applies_is_the_reason() {
        // The worst pod: every later rule applies as well.
        let mut policy = Policy {
            default_inject: true,
            allow_namespaces: ["shop".to_owned()].into(),
            deny_namespaces: ["shop".to_owned(), "kube-system".to_owned()].into(),
            ..policy()
        };
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

    /// Pain 51: pods in the node's network.
    #[test]
    fn a_pod_in_the_nodes_network_is_denied_only_if_it_asked() {
        let policy = Policy { default_inject: true, ..policy() };
        let mut pod = json!({"spec": {"hostNetwork": true}});
        assert_eq!(decided(&pod, "shop", &policy), Reason::HostNetwork);
        pod["metadata"] = json!({"annotations": {annotation::INJECT: "false"}});
        assert_eq!(decided(&pod, "shop", &policy), Reason::OptedOut);
        pod["metadata"] = json!({"annotations": {annotation::INJECT: "true"}});
        assert_eq!(decided(&pod, "shop", &policy), Reason::HostNetworkRequested);
    }

    #[test]
    fn what_is_no_boolean_is_quoted() {
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
