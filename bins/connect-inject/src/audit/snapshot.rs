//! The state of a cluster and its Consul. Keeps only what the audit judges: some hundred
//! bytes of a pod of 15 KiB.

use std::collections::{BTreeMap, BTreeSet};

use consul::catalog::{AuthMethod, BindingRule, Intention, LoginToken};

use super::condition::Condition;
use super::selector::Selector;

/// What one look read. Most fields are `None` if the audit lacks the permission to read them.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) pods: Option<BTreeMap<PodKey, Pod>>,
    /// Kubernetes nodes by name.
    pub(super) nodes: Option<BTreeMap<String, Node>>,
    /// Labels of each namespace.
    pub(super) namespaces: Option<BTreeMap<String, BTreeMap<String, String>>>,
    /// Webhooks that the API server calls for new pods.
    pub(super) webhooks: Option<Vec<Webhook>>,
    /// Consul nodes by name.
    pub(super) agents: Option<BTreeMap<String, AgentNode>>,
    /// Whether `registrations` and `agents` are complete. If ACLs hide some, a missing
    /// registration proves nothing.
    pub(super) all_registrations: bool,
    pub(super) registrations: Vec<Registration>,
    /// Names of all services; `None` if ACLs hide some.
    pub(super) services: Option<BTreeSet<String>>,
    /// Services with a service-resolver, service-router or service-splitter: they need no
    /// instances.
    pub(super) virtual_services: BTreeSet<String>,
    /// `None` if ACLs hide some.
    pub(super) intentions: Option<Vec<Intention>>,
    /// Whether the servers know no other datacenter.
    pub(super) is_only_datacenter: bool,
    /// Whether Consul allows a connection that no intention matches; `None` if unknown.
    pub(super) default_allows: Option<bool>,
    /// Envoy releases that the agent supports; empty if the agent does not list them.
    pub(super) supported_envoys: Vec<String>,
    /// `None` if the policy names no auth method.
    pub(super) login: Option<Login>,
}

/// Namespace and name of a pod.
pub(super) type PodKey = (String, String);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) uid: String,
    pub(super) node: String,
    /// The pod's addresses, `podIP` first.
    pub(super) ips: Vec<String>,
    /// Creation time in seconds since 1970.
    pub(super) created: i64,
    /// Time since which the pod is ready, in seconds since 1970; `None` if it isn't.
    pub(super) ready: Option<i64>,
    /// Whether the pod is terminating.
    pub(super) ends: bool,
    /// Whether all containers have ended.
    pub(super) ended: bool,
    /// `None` if the pod has no sidecar of ours.
    pub(super) sidecar: Option<Sidecar>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sidecar {
    /// The services that the pod is registered as.
    pub(super) services: Vec<String>,
    /// Whether it is a native sidecar.
    pub(super) native: bool,
    /// Envoy's image.
    pub(super) envoy: String,
    pub(super) service_account: String,
}

/// A Kubernetes node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) addresses: Vec<String>,
    /// The node's condition `Ready`.
    pub(super) ready: bool,
    /// Version of the kubelet.
    pub(super) kubelet: String,
}

/// A Consul node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AgentNode {
    pub(super) address: String,
    /// Whether gossip reaches the agent (the check `serfHealth`).
    pub(super) alive: bool,
    /// The agent's Consul release; empty if unknown.
    pub(super) release: String,
}

/// A catalog entry whose meta names a pod: a service or its sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Registration {
    /// The Consul node.
    pub(super) node: String,
    pub(super) id: String,
    /// The service's name.
    pub(super) service: String,
    pub(super) address: String,
    /// The pod that the meta names.
    pub(super) pod: PodKey,
    /// Whether it is a sidecar.
    pub(super) is_proxy: bool,
    /// The service that a sidecar proxies; empty for a service.
    pub(super) destination: String,
    /// A sidecar's upstreams in its own datacenter.
    pub(super) upstreams: Vec<String>,
    /// Status and output of the TTL check, if the agent has one.
    pub(super) heartbeat: Option<(String, String)>,
}

/// A webhook that the API server calls for new pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Webhook {
    /// Name of the MutatingWebhookConfiguration.
    pub(super) configuration: String,
    pub(super) name: String,
    pub(super) owner: Owner,
    pub(super) fails_closed: bool,
    /// PEM certificates of the CAs that the API server trusts for this webhook.
    pub(super) ca_bundle: String,
    /// Namespace, name and port of the Service.
    pub(super) service: Option<(String, String, u16)>,
    pub(super) namespaces: Selector,
    pub(super) objects: Selector,
    /// The webhook's matchConditions.
    pub(super) conditions: Vec<Condition>,
    /// State of the Service; `None` without a Service, or if it can't be read.
    pub(super) served: Option<Served>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Owner {
    /// connect-inject.
    #[default]
    Us,
    /// The injector of consul-k8s.
    Consul,
}

/// The state of a webhook's Service, found by TLS handshakes with its endpoints.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Served {
    /// caBundle verifies all certificates; the earliest expires then, in seconds since 1970.
    Trusted(i64),
    /// caBundle does not verify a certificate, and why.
    Untrusted(String),
    /// The API server has no endpoint to call, and why.
    Unreachable(String),
    /// There are ready endpoints, but the audit can't reach any of them, and why.
    Unchecked(String),
}

/// An auth method with its tokens and binding rules.
#[derive(Clone, Debug, Default)]
pub(super) struct Login {
    pub(super) name: String,
    /// `None` if it does not exist.
    pub(super) method: Option<AuthMethod>,
    pub(super) tokens: Vec<LoginToken>,
    pub(super) rules: Vec<BindingRule>,
}

// === impl Snapshot ===

impl Snapshot {
    /// The Kubernetes node with the name or the address of a Consul node. `None` for a node of
    /// another cluster and for a machine without Kubernetes.
    pub(super) fn node_of(&self, agent: &str) -> Option<(&str, &Node)> {
        let nodes = self.nodes.as_ref()?;
        if let Some((name, node)) = nodes.get_key_value(agent) {
            return Some((name, node));
        }
        let address = &self.agents.as_ref()?.get(agent)?.address;
        nodes
            .iter()
            .find(|(_, node)| node.addresses.contains(address))
            .map(|(name, node)| (name.as_str(), node))
    }

    /// The name of the Kubernetes node of a Consul node; the Consul node's own if unknown.
    pub(super) fn name_of_node<'a>(&'a self, agent: &'a str) -> &'a str {
        self.node_of(agent).map_or(agent, |(name, _)| name)
    }

    /// Whether gossip reaches the agent of a Consul node.
    pub(super) fn is_alive(&self, agent: &str) -> bool {
        self.agents.as_ref().and_then(|all| all.get(agent)).is_some_and(|agent| agent.alive)
    }
}

// === impl Registration ===

impl Registration {
    /// Whether the ID has the form that `connect-init` gives it. Any other registration with
    /// the same meta comes from somebody else.
    pub(super) fn is_ours(&self) -> bool {
        let (namespace, pod) = &self.pod;
        let service = if self.is_proxy { &self.destination } else { &self.service };
        let suffix = if self.is_proxy { "-sidecar-proxy" } else { "" };
        self.id == format!("{namespace}_{pod}_{service}{suffix}")
    }
}
