//! What does not add up: one code for table, JSON and README.

use serde::{Serialize, Serializer};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// Traffic is lost or goes where it must not, or will at the next restart.
    Error,
    /// It works by luck, or only until something ends.
    Warning,
    /// Worth knowing.
    Info,
}

impl Severity {
    /// The word: the same in table, JSON, metrics and README.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// Makes the enum, its codes, severities and advice from one table, so that they
/// can't differ.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $severity:ident, $advice:literal;)+) => {
        /// What was found.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum Code {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Code {
            /// All of them.
            pub(super) const ALL: &[Self] = &[$(Self::$name,)+];

            /// The code: the same in table, JSON and README.
            pub(super) const fn word(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }

            /// How bad it is.
            pub(super) const fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity,)+ }
            }

            /// What to do about it.
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
    /// A pod asks for a sidecar in a namespace that the policy leaves out.
    PodExcluded = "pod-excluded", Warning,
        "allow the namespace (connectInject.k8sAllowNamespaces, k8sDenyNamespaces), or remove the annotation";
    /// A pod asks for a sidecar, has none, and would be denied now.
    PodDenied = "pod-denied", Warning,
        "correct the pod template as the sentence says: its next pod is denied";
    /// A sidecar is of other images than the injector gives now.
    SidecarOutdated = "sidecar-outdated", Info,
        "restart the pod's owner: `kubectl rollout restart`";
    /// A sidecar is configured otherwise than the injector would now.
    SidecarOtherPolicy = "sidecar-other-policy", Info,
        "restart the pod's owner: `kubectl rollout restart`";
    /// The pod's annotations changed after it was injected.
    AnnotationsChanged = "annotations-changed", Warning,
        "annotations are read when a pod is created: change them in the pod template, which restarts its pods";
    /// A kubelet is too old for the sidecars that pods get.
    KubeletTooOld = "kubelet-too-old", Error,
        "set connectInject.oldestKubeletVersion to the oldest kubelet's version, or upgrade the node";

    /// No webhook configuration asks this injector.
    WebhookMissing = "webhook-missing", Error,
        "install the chart again: `helm upgrade`";
    /// No webhook of the injector matches a pod that asks.
    WebhookExcludes = "webhook-excludes", Error,
        "change connectInject.namespaceSelector, or the labels of the namespace or the pod; then restart the pod's owner";
    /// The API server can't trust the injector.
    WebhookUntrusted = "webhook-untrusted", Error,
        "with --tls-auto the injector writes caBundle: see its log; otherwise set connectInject.certs.caBundle to the CA of the certificate";
    /// The injector does not answer at its Service.
    WebhookUnreachable = "webhook-unreachable", Error,
        "see why the injector's pods are not ready: `kubectl describe pods` in its namespace, and their log";
    /// The certificate of the injector could not be looked at.
    WebhookUnchecked = "webhook-unchecked", Info,
        "look from inside of the cluster (connectInject.audit.enabled); a NetworkPolicy may have to let the audit reach the injector";
    /// The certificate of the injector ends soon.
    WebhookCertificateEnds = "webhook-certificate-ends", Warning,
        "renew the certificate; with --tls-auto the injector does: see its log";
    /// Pods that ask are created without a sidecar while the injector is away.
    WebhookIgnoresFailures = "webhook-ignores-failures", Warning,
        "set connectInject.failurePolicy to Fail: on Kubernetes 1.28 and newer it concerns pods that ask only";
    /// Two injectors are asked about the same pods.
    WebhookOverlaps = "webhook-overlaps", Warning,
        "let each namespace have one injector, by the namespaceSelector of either";

    /// The pod of a registration is gone.
    RegistrationOrphaned = "registration-orphaned", Error,
        "take it back: `connect-inject audit --repair`";
    /// A registration has an address that is not its pod's.
    RegistrationStaleAddress = "registration-stale-address", Error,
        "see the sidecar's log: connect-lifecycle registers a pod by its address; restart the pod";
    /// A pod is registered with the agent of another node.
    RegistrationWrongNode = "registration-wrong-node", Warning,
        "check that connectInject.agent.httpAddr leads to the agent of the pod's own node";
    /// A pod with a sidecar is registered nowhere.
    PodUnregistered = "pod-unregistered", Error,
        "see the log of consul-connect-inject-init and envoy-sidecar, and whether the agent of the node is well";
    /// Pods of several namespaces are instances of one service.
    ServiceShared = "service-shared", Warning,
        "if that is not meant, give one of them another name by the annotation connect-service";
    /// A sidecar says that it can't serve.
    SidecarCritical = "sidecar-critical", Error,
        "see the sidecar's log, and restart the pod if it does not recover";

    /// An agent is too old for the pods' Envoy.
    AgentTooOld = "agent-too-old", Error,
        "upgrade the agent to Consul 1.12 or newer";
    /// The pods' Envoy is older than any that the agent supports.
    EnvoyUnsupported = "envoy-unsupported", Warning,
        "set connectInject.imageEnvoy to a release that the agents support, or upgrade the agents";
    /// The pod of an ACL token is gone.
    TokenOrphaned = "token-orphaned", Warning,
        "delete it: `connect-inject audit --repair`";
    /// The auth method's tokens never end.
    TokensWithoutExpiry = "tokens-without-expiry", Warning,
        "set MaxTokenTTL of the auth method: pods log in again ahead of its end";
    /// The auth method of the policy does not exist.
    AuthMethodMissing = "auth-method-missing", Error,
        "create it, or correct connectInject.overrideAuthMethodName";
    /// A binding rule matches no pod's service account.
    BindingRuleUnmatched = "binding-rule-unmatched", Info,
        "delete the rule if nobody is to log in by it";
    /// An intention names a service that nobody registers.
    IntentionUnmatched = "intention-unmatched", Info,
        "correct the name, or delete the intention";
    /// Nobody registers a service that pods have as an upstream.
    UpstreamUnserved = "upstream-unserved", Error,
        "correct the name in connect-service-upstreams, or start the service";
    /// Intentions deny a connection that pods are configured for.
    UpstreamDenied = "upstream-denied", Error,
        "allow it by an intention, or remove the upstream";

    /// Something could not be read, so that nothing is said of it.
    Unreadable = "unreadable", Warning,
        "give the rights that `connect-inject audit --print-rbac` prints";
}

impl Code {
    /// Whether what looks like it may be on its way, so that a second look decides.
    pub(super) const fn may_settle(self) -> bool {
        matches!(
            self,
            Self::RegistrationOrphaned
                | Self::RegistrationStaleAddress
                | Self::RegistrationWrongNode
                | Self::PodUnregistered
                | Self::SidecarCritical
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

/// Something that does not add up. The field names are an interface: programs read
/// them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    pub(super) code: Code,
    /// What kind of object it is about, such as `Pod`.
    pub(super) kind: &'static str,
    /// Its Kubernetes namespace; empty if it has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) namespace: String,
    /// Its name or id.
    pub(super) name: String,
    /// The Kubernetes node, or that of Consul for a registration; empty if there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) node: String,
    /// What was seen: a sentence.
    pub(super) detail: String,
    /// What to do.
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

    /// The same in a namespace.
    pub(super) fn within(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// The same on a node.
    pub(super) fn on(mut self, node: &str) -> Self {
        node.clone_into(&mut self.node);
        self
    }

    /// The same with what was seen.
    pub(super) fn saying(mut self, detail: impl std::fmt::Display) -> Self {
        self.detail = detail.to_string();
        self
    }

    /// The object as people name it, such as `Pod shop/web-0`.
    pub(super) fn object(&self) -> String {
        if self.namespace.is_empty() {
            format!("{} {}", self.kind, self.name)
        } else {
            format!("{} {}/{}", self.kind, self.namespace, self.name)
        }
    }

    /// Whether it is the same again, seen later.
    pub(super) fn is_again(&self, earlier: &Self) -> bool {
        let identity = |finding: &Self| {
            (finding.code, finding.kind, finding.namespace.clone(), finding.name.clone())
        };
        identity(self) == identity(earlier) && self.node == earlier.node
    }
}

/// What is looked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Objects of this Kubernetes namespace only, and those of none.
    pub(crate) namespace: Option<String>,
    /// Objects of this node only, and those of none.
    pub(crate) node: Option<String>,
    /// Findings of these codes only; empty: all.
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

/// Reads a code.
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
    fn a_code_is_read_by_its_word_and_a_mistake_gets_the_nearest() {
        assert_eq!(code("token-orphaned"), Ok(Code::TokenOrphaned));
        assert!(code("token-orphan").unwrap_err().contains("`token-orphaned`"));
        assert!(code("x").is_err());
    }

    #[test]
    fn a_filter_keeps_what_has_no_namespace() {
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
