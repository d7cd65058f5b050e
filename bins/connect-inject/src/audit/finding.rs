//! The findings of the audit. Table, JSON, metrics and README use the same codes.

use serde::{Serialize, Serializer};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// Traffic is lost or goes where it must not, now or after the next restart.
    Error,
    /// Works by luck, or only until something expires or restarts.
    Warning,
    /// Worth knowing; nothing fails because of it.
    Info,
}

impl Severity {
    /// The severity's name in table, JSON, metrics and README.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// Generates the enum, its codes, severities and advice from one table, so that none can be
/// missing.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $severity:ident, $advice:literal;)+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum Code {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Code {
            pub(super) const ALL: &[Self] = &[$(Self::$name,)+];

            /// The code's name in table, JSON, metrics and README.
            pub(super) const fn word(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }

            pub(super) const fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity,)+ }
            }

            const fn advice(self) -> &'static str {
                match self { $(Self::$name => $advice,)+ }
            }
        }
    };
}

codes! {
    /// A pod asks for a sidecar and has none.
    PodWithoutSidecar = "pod-without-sidecar", Error,
        "restart it: delete the pod, or `kubectl rollout restart` its owner";
    /// A pod asks for a sidecar in a namespace that the policy excludes.
    PodExcluded = "pod-excluded", Warning,
        "allow the namespace (connectInject.k8sAllowNamespaces, k8sDenyNamespaces), or remove the annotation";
    /// The injector would now deny a pod that asks for a sidecar, whether it has one or not.
    PodDenied = "pod-denied", Warning,
        "correct the pod template as the finding says: its next pod will be denied";
    /// A sidecar's images differ from those that the injector would use now.
    SidecarOutdated = "sidecar-outdated", Info,
        "restart the pod's owner: `kubectl rollout restart`";
    /// The injector would now configure a sidecar differently.
    SidecarOtherPolicy = "sidecar-other-policy", Info,
        "restart the pod's owner: `kubectl rollout restart`";
    /// The pod's annotations changed after it was injected.
    AnnotationsChanged = "annotations-changed", Warning,
        "annotations are read when a pod is created: change them in the pod template, which restarts its pods";
    /// A kubelet is too old for the native sidecars that pods get.
    KubeletTooOld = "kubelet-too-old", Error,
        "set connectInject.oldestKubeletVersion to the oldest kubelet's version, or upgrade the node";

    /// No webhook configuration calls this injector.
    WebhookMissing = "webhook-missing", Error,
        "install the chart again: `helm upgrade`";
    /// A pod asks for a sidecar, but no webhook of the injector matches it.
    WebhookExcludes = "webhook-excludes", Error,
        "change connectInject.namespaceSelector, or the labels of the namespace or the pod; then restart the pod's owner";
    /// The API server can't trust the injector.
    WebhookUntrusted = "webhook-untrusted", Error,
        "with --tls-auto the injector writes caBundle: see its log; otherwise set connectInject.certs.caBundle to the CA of the certificate";
    /// The injector does not answer at its Service.
    WebhookUnreachable = "webhook-unreachable", Error,
        "see why the injector's pods are not ready: `kubectl describe pods` in its namespace, and their log";
    /// The certificate of the injector could not be checked.
    WebhookUnchecked = "webhook-unchecked", Info,
        "run the audit inside the cluster (connectInject.audit.enabled); a NetworkPolicy may have to allow it to reach the injector";
    /// The certificate of the injector expires soon.
    WebhookCertificateEnds = "webhook-certificate-ends", Warning,
        "renew the certificate; with --tls-auto the injector renews it itself: see its log";
    /// Pods that ask for a sidecar are created without one while the injector is unreachable.
    WebhookIgnoresFailures = "webhook-ignores-failures", Warning,
        "set connectInject.failurePolicy to Fail: on Kubernetes 1.28 and newer this affects only pods that ask for a sidecar";
    /// The API server calls two injectors for the same pods.
    WebhookOverlaps = "webhook-overlaps", Warning,
        "restrict the namespaceSelector of one injector, so that each namespace has only one";

    /// The pod of a registration is gone.
    RegistrationOrphaned = "registration-orphaned", Error,
        "deregister it: `connect-inject audit --repair`";
    /// A registration's address is not an address of its pod.
    RegistrationStaleAddress = "registration-stale-address", Error,
        "see the sidecar's log: connect-lifecycle registers a pod by its address; restart the pod";
    /// A pod is registered with the agent of another node.
    RegistrationWrongNode = "registration-wrong-node", Warning,
        "check that connectInject.agent.httpAddr leads to the agent of the pod's own node";
    /// A pod with a sidecar is registered nowhere.
    PodUnregistered = "pod-unregistered", Error,
        "see the logs of the containers consul-connect-inject-init and envoy-sidecar, and check the node's agent";
    /// Pods of several namespaces are instances of one service.
    ServiceShared = "service-shared", Warning,
        "if this is not intended, give one of them another name with the annotation connect-service";
    /// A sidecar reports that it can't serve.
    SidecarCritical = "sidecar-critical", Error,
        "see the sidecar's log, and restart the pod if it does not recover";
    /// The agent does not renew the certificate of a sidecar.
    SidecarCertificateEnds = "sidecar-certificate-ends", Error,
        "search the log of the node's agent for `leaf`, and check that Connect's CA works: `consul connect ca get-config`";

    /// An agent is too old for the pods' Envoy.
    AgentTooOld = "agent-too-old", Error,
        "upgrade the agent to Consul 1.12 or newer";
    /// The pods' Envoy is older than any that the agent supports.
    EnvoyUnsupported = "envoy-unsupported", Warning,
        "set connectInject.imageEnvoy to a release that the agents support, or upgrade the agents";
    /// The pod of an ACL token is gone.
    TokenOrphaned = "token-orphaned", Warning,
        "delete it: `connect-inject audit --repair`";
    /// The auth method's tokens never expire.
    TokensWithoutExpiry = "tokens-without-expiry", Warning,
        "set MaxTokenTTL of the auth method: pods log in again before their token expires";
    /// The auth method of the policy does not exist.
    AuthMethodMissing = "auth-method-missing", Error,
        "create it, or correct connectInject.overrideAuthMethodName";
    /// A binding rule matches no pod's service account.
    BindingRuleUnmatched = "binding-rule-unmatched", Info,
        "delete the rule if nobody needs it to log in";
    /// An intention names a service that nobody registers.
    IntentionUnmatched = "intention-unmatched", Info,
        "correct the name, or delete the intention";
    /// Pods have an upstream that nobody registers.
    UpstreamUnserved = "upstream-unserved", Error,
        "correct the name in connect-service-upstreams, or start the service";
    /// Intentions deny the connection to an upstream.
    UpstreamDenied = "upstream-denied", Error,
        "allow it with an intention, or remove the upstream";

    /// Something could not be read, and was not checked.
    Unreadable = "unreadable", Warning,
        "grant the permissions that `connect-inject audit --print-rbac` prints";
}

impl Code {
    /// Whether the finding may be transient, so that only a second look confirms it.
    pub(super) const fn may_settle(self) -> bool {
        matches!(
            self,
            Self::RegistrationOrphaned
                | Self::RegistrationStaleAddress
                | Self::RegistrationWrongNode
                | Self::PodUnregistered
                | Self::SidecarCritical
                | Self::SidecarCertificateEnds
                | Self::UpstreamUnserved
                | Self::UpstreamDenied
                | Self::TokenOrphaned
                | Self::WebhookUntrusted
                | Self::WebhookUnreachable
                | Self::WebhookUnchecked
        )
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

/// An inconsistency. Programs read the JSON, so the field names must not change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    pub(super) code: Code,
    /// Kind of the object, such as `Pod`.
    pub(super) kind: &'static str,
    /// Kubernetes namespace of the object; empty if it has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) namespace: String,
    /// Name or ID of the object.
    pub(super) name: String,
    /// Kubernetes node of the object, or Consul node of a registration whose Kubernetes node
    /// is unknown; empty if there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) node: String,
    /// A sentence about what was seen.
    pub(super) detail: String,
    /// What to do about it.
    pub(super) advice: String,
}

impl Finding {
    pub(super) fn new(code: Code, kind: &'static str, name: impl Into<String>) -> Self {
        Self {
            severity: code.severity(),
            code,
            kind,
            namespace: String::new(),
            name: name.into(),
            node: String::new(),
            detail: String::new(),
            advice: code.advice().to_owned(),
        }
    }

    pub(super) fn within(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    pub(super) fn on(mut self, node: &str) -> Self {
        node.clone_into(&mut self.node);
        self
    }

    pub(super) fn saying(mut self, detail: impl std::fmt::Display) -> Self {
        self.detail = detail.to_string();
        self
    }

    /// The object's kind, namespace and name, such as `Pod shop/web-0`.
    pub(super) fn object(&self) -> String {
        if self.namespace.is_empty() {
            format!("{} {}", self.kind, self.name)
        } else {
            format!("{} {}/{}", self.kind, self.namespace, self.name)
        }
    }

    /// Whether an earlier look had the same finding, even if its details differ.
    pub(super) fn is_again(&self, earlier: &Self) -> bool {
        let identity = |finding: &Self| {
            (finding.code, finding.kind, finding.namespace.clone(), finding.name.clone())
        };
        identity(self) == identity(earlier) && self.node == earlier.node
    }
}

/// Which findings are reported.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Only objects in this Kubernetes namespace, and objects without a namespace.
    pub(crate) namespace: Option<String>,
    /// Only objects on this node, and objects without a node.
    pub(crate) node: Option<String>,
    /// Only findings of these codes; empty for all.
    pub(crate) only: Vec<Code>,
}

impl Filter {
    pub(super) fn keeps(&self, finding: &Finding) -> bool {
        let is = |wanted: &Option<String>, found: &str| {
            wanted.as_ref().is_none_or(|wanted| found.is_empty() || wanted == found)
        };
        is(&self.namespace, &finding.namespace)
            && is(&self.node, &finding.node)
            && (self.only.is_empty() || self.only.contains(&finding.code))
    }
}

/// Parses a value of `--only`.
pub(crate) fn code(text: &str) -> Result<Code, String> {
    Code::ALL.iter().find(|code| code.word() == text).copied().ok_or_else(|| {
        let near = crate::values::nearest(text, Code::ALL.iter().map(|code| code.word()));
        match near {
            Some(near) => format!("unknown code: did you mean `{near}`?"),
            None => "unknown code: the README lists them under \"Findings of audit\"".to_owned(),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_readme_lists_every_code_with_its_severity() {
        let documented: BTreeSet<(String, String)> = include_str!("../../README.md")
            .lines()
            .skip_while(|line| *line != "### Findings of audit")
            .skip(1)
            .take_while(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let mut cells = line.strip_prefix("| `")?.split(" | ");
                Some((cells.next()?.trim_end_matches('`').to_owned(), cells.next()?.to_owned()))
            })
            .collect();
        let coded: BTreeSet<(String, String)> = Code::ALL
            .iter()
            .map(|code| (code.word().to_owned(), code.severity().word().to_owned()))
            .collect();
        assert_eq!(documented, coded);
        assert_eq!(coded.len(), Code::ALL.len(), "a code is used twice");
    }

    #[test]
    fn a_misspelt_code_is_rejected_with_the_nearest_one() {
        assert_eq!(code("token-orphaned"), Ok(Code::TokenOrphaned));
        assert!(code("token-orphan").unwrap_err().contains("`token-orphaned`"));
        assert!(code("x").is_err());
    }

    #[test]
    fn a_filter_keeps_objects_without_a_namespace() {
        let pod = Finding::new(Code::PodWithoutSidecar, "Pod", "web").within("shop").on("n1");
        let hook = Finding::new(Code::WebhookMissing, "MutatingWebhookConfiguration", "x");
        let shop = Filter { namespace: Some("shop".to_owned()), ..Filter::default() };
        let other = Filter { namespace: Some("other".to_owned()), ..Filter::default() };
        assert!(shop.keeps(&pod) && shop.keeps(&hook) && other.keeps(&hook) && !other.keeps(&pod));
        let n2 = Filter { node: Some("n2".to_owned()), ..Filter::default() };
        assert!(!n2.keeps(&pod));
        let only = Filter { only: vec![Code::WebhookMissing], ..Filter::default() };
        assert!(only.keeps(&hook) && !only.keeps(&pod));
    }
}
