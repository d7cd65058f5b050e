//! What is kept of a cluster and its Consul: only what is judged. A pod of 15 KiB
//! leaves some hundred bytes here.

use std::collections::{BTreeMap, BTreeSet};

use consul::catalog::{AuthMethod, BindingRule, Intention, LoginToken};

use super::condition::Condition;
use super::selector::Selector;

/// What was seen at one time.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    /// The pods by namespace and name; none: they may not be read.
    pub(super) pods: Option<BTreeMap<PodKey, Pod>>,
    /// Kubernetes' nodes by their names; none: they may not be read.
    pub(super) nodes: Option<BTreeMap<String, Node>>,
    /// The labels of each namespace; none: they may not be read.
    pub(super) namespaces: Option<BTreeMap<String, BTreeMap<String, String>>>,
    /// Who is asked about new pods; none: it may not be read.
    pub(super) webhooks: Option<Vec<Webhook>>,
    /// Consul's nodes by their names; none: they may not all be read.
    pub(super) agents: Option<BTreeMap<String, AgentNode>>,
    /// Whether these are all: the ACL token sees them, and so what is missing.
    pub(super) all_registrations: bool,
    /// What pods are registered as.
    pub(super) registrations: Vec<Registration>,
    /// The names of all services; none: they may not all be read.
    pub(super) services: Option<BTreeSet<String>>,
    /// The services that config entries redirect, split or route: nobody has to
    /// register them.
    pub(super) virtual_services: BTreeSet<String>,
    /// Who may connect to whom; none: it may not all be read.
    pub(super) intentions: Option<Vec<Intention>>,
    /// Whether connections are allowed that no intention is about; none: unknown.
    pub(super) default_allows: Option<bool>,
    /// The releases of Envoy that the agent supports; empty if it does not say.
    pub(super) supported_envoys: Vec<String>,
    /// What there is of the policy's auth method, if it names one.
    pub(super) login: Option<Login>,
}

/// Namespace and name of a pod.
pub(super) type PodKey = (String, String);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) uid: String,
    pub(super) node: String,
    /// Its addresses, the first one first.
    pub(super) ips: Vec<String>,
    /// When it was created, in seconds since 1970.
    pub(super) created: i64,
    /// Since when it is ready, in seconds since 1970; none: it is not.
    pub(super) ready: Option<i64>,
    /// Whether it is to end.
    pub(super) ends: bool,
    /// Whether all that it ran has ended.
    pub(super) ended: bool,
    /// What it was injected with, if it was.
    pub(super) sidecar: Option<Sidecar>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sidecar {
    /// The services that the pod is registered as.
    pub(super) services: Vec<String>,
    /// Whether it is a native one.
    pub(super) native: bool,
    /// The image with Envoy.
    pub(super) envoy: String,
    pub(super) service_account: String,
}

/// A node of Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) addresses: Vec<String>,
    /// Whether its kubelet says that all is well.
    pub(super) ready: bool,
    /// The kubelet's version.
    pub(super) kubelet: String,
}

/// A node of Consul.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AgentNode {
    pub(super) address: String,
    /// Whether gossip reaches its agent.
    pub(super) alive: bool,
    /// The release of its agent; empty if it is not known.
    pub(super) release: String,
}

/// What a pod is registered as: a service or its sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Registration {
    /// The node of Consul.
    pub(super) node: String,
    pub(super) id: String,
    /// The service's name.
    pub(super) service: String,
    pub(super) address: String,
    /// The pod, by the meta.
    pub(super) pod: PodKey,
    /// Whether it is a sidecar.
    pub(super) is_proxy: bool,
    /// The service that a sidecar stands for.
    pub(super) destination: String,
    /// The services that a sidecar reaches in its own datacenter.
    pub(super) upstreams: Vec<String>,
    /// Status and output of the heartbeat; none: it has none.
    pub(super) heartbeat: Option<(String, String)>,
}

/// A webhook that is asked about new pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Webhook {
    /// The MutatingWebhookConfiguration.
    pub(super) configuration: String,
    pub(super) name: String,
    pub(super) owner: Owner,
    pub(super) fails_closed: bool,
    /// The CAs that the API server trusts, PEM.
    pub(super) ca_bundle: String,
    /// Namespace, name and port of the Service.
    pub(super) service: Option<(String, String, u16)>,
    pub(super) namespaces: Selector,
    pub(super) objects: Selector,
    /// What else has to hold for a pod: expressions in CEL.
    pub(super) conditions: Vec<Condition>,
    /// What asking its Service found; none: it has none, or may not be read.
    pub(super) served: Option<Served>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Owner {
    /// Ours.
    #[default]
    Us,
    /// Consul's own injector.
    Consul,
}

/// What a webhook's Service and TLS handshakes with its endpoints found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Served {
    /// Certificates that the CAs have signed, and the first end in seconds since 1970.
    Trusted(i64),
    /// Another.
    Untrusted(String),
    /// The API server has nobody to ask.
    Unreachable(String),
    /// There are endpoints, and none can be reached from here.
    Unchecked(String),
}

/// What there is of an auth method.
#[derive(Clone, Debug, Default)]
pub(super) struct Login {
    pub(super) name: String,
    /// None: it does not exist.
    pub(super) method: Option<AuthMethod>,
    pub(super) tokens: Vec<LoginToken>,
    pub(super) rules: Vec<BindingRule>,
}

// === impl Snapshot ===

impl Snapshot {
    /// The node of Kubernetes that a node of Consul is: by its name or its address.
    /// None for one of another cluster, and for a machine without Kubernetes.
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

    /// Whether the agent of a node of Consul lives.
    pub(super) fn is_alive(&self, agent: &str) -> bool {
        self.agents.as_ref().and_then(|all| all.get(agent)).is_some_and(|agent| agent.alive)
    }
}

// === impl Registration ===

impl Registration {
    /// The id that the pod's own registration has. Anything else with the same meta
    /// was registered by somebody else.
    pub(super) fn is_ours(&self) -> bool {
        let (namespace, pod) = &self.pod;
        let service = if self.is_proxy { &self.destination } else { &self.service };
        let suffix = if self.is_proxy { "-sidecar-proxy" } else { "" };
        self.id == format!("{namespace}_{pod}_{service}{suffix}")
    }
}
