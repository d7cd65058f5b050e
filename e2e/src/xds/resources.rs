//! From a snapshot to Envoy's resources. Pure.
//!
//! The names and shapes are those that Consul gives its sidecars, so that what
//! depends on them (statistics, drains, dashboards) sees the real thing: service
//! identity by SPIFFE id, intentions as a network filter, TCP only.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
};
use envoy_types::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, DataSource, SocketAddress,
    TrafficDirection, TransportSocket, address, config_source::ConfigSourceSpecifier, data_source,
    socket_address::PortSpecifier, transport_socket,
};
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use envoy_types::pb::envoy::config::rbac::v3::{
    Permission, Policy, Principal, Rbac, permission, principal, rbac::Action,
};
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as RbacFilter;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy, tcp_proxy::ClusterSpecifier,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SubjectAltNameMatcher,
    TlsCertificate, UpstreamTlsContext, common_tls_context::ValidationContextType,
    subject_alt_name_matcher::SanType,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{
    RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};
use envoy_types::pb::google::protobuf::{Any, BoolValue, Duration};
use prost::{Message, Name};

use super::agent::{Authorization, Endpoints, Intention, Target, Upstream};
use super::snapshot::Snapshot;

/// The cluster that leads to the application.
const LOCAL_APP: &str = "local_app";

const CONNECT_TIMEOUT: Duration = Duration { seconds: 5, nanos: 0 };

/// The kinds of resources, in the order in which Envoy must learn of them:
/// something that is referred to comes before what refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
    /// LDS.
    Listener,
}

/// A resource as it is sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// What it is.
    pub kind: Kind,
    /// Its name, unique among its kind.
    pub name: String,
    /// Changes with the content, and only with it.
    pub version: String,
    /// The content.
    pub body: Any,
}

/// All resources of the proxy that `snapshot` describes.
pub fn resources(snapshot: &Snapshot) -> Vec<Resource> {
    let mesh = Mesh::new(snapshot);
    let mut resources = vec![mesh.local_app(), mesh.public_listener()];
    for upstream in &snapshot.registration.proxy.upstreams {
        resources.push(mesh.upstream_listener(upstream));
    }
    for (target, endpoints) in &snapshot.endpoints {
        resources.push(mesh.upstream_cluster(target, endpoints));
        resources.push(mesh.upstream_endpoints(target, endpoints));
    }
    resources
}

// === impl Kind ===

impl Kind {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Cluster, Self::Endpoints, Self::Listener];

    /// Its name in the protocol.
    pub fn type_url(self) -> String {
        match self {
            Self::Cluster => Cluster::type_url(),
            Self::Endpoints => ClusterLoadAssignment::type_url(),
            Self::Listener => Listener::type_url(),
        }
    }

    /// The kind of this name, if we serve it.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }
}

// === impl Resource ===

impl Resource {
    fn new<M: Message + Name>(kind: Kind, name: String, message: &M) -> Self {
        let body = any(message);
        // Stable for one build of this server, which is all that a version must
        // be: after another build Envoy gets everything once more.
        let mut hasher = DefaultHasher::new();
        body.value.hash(&mut hasher);
        Self { kind, name, version: format!("{:016x}", hasher.finish()), body }
    }
}

// === what is the same for all resources of a proxy ===

struct Mesh<'a> {
    snapshot: &'a Snapshot,
    trust_domain: &'a str,
    datacenter: &'a str,
}

impl<'a> Mesh<'a> {
    fn new(snapshot: &'a Snapshot) -> Self {
        // The agent's own datacenter is in its service's identity; to ask the
        // agent for it would need a permission that a sidecar's token lacks.
        let datacenter = snapshot.leaf.uri.split_once("/dc/").map_or("", |(_, rest)| {
            rest.split_once('/').map_or(rest, |(datacenter, _)| datacenter)
        });
        Self { snapshot, trust_domain: &snapshot.roots.trust_domain, datacenter }
    }

    fn datacenter_or_own<'b>(&'b self, datacenter: &'b str) -> &'b str {
        if datacenter.is_empty() { self.datacenter } else { datacenter }
    }

    // --- the application's side ---

    fn local_app(&self) -> Resource {
        let proxy = &self.snapshot.registration.proxy;
        let host = or_loopback(&proxy.local_service_address);
        // A service without a port can't be connected to; its proxy is there for
        // the upstreams.
        let addresses = match proxy.local_service_port {
            0 => vec![],
            port => vec![(host.to_owned(), port)],
        };
        let cluster = Cluster {
            name: LOCAL_APP.into(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
            connect_timeout: Some(CONNECT_TIMEOUT),
            load_assignment: Some(load_assignment(LOCAL_APP, &addresses)),
            ..Cluster::default()
        };
        Resource::new(Kind::Cluster, cluster.name.clone(), &cluster)
    }

    fn public_listener(&self) -> Resource {
        let registration = &self.snapshot.registration;
        let host = match &*registration.address {
            "" => "0.0.0.0",
            address => address,
        };
        let tls = DownstreamTlsContext {
            common_tls_context: Some(self.tls(vec![])),
            require_client_certificate: Some(BoolValue { value: true }),
            ..DownstreamTlsContext::default()
        };
        let rbac = RbacFilter {
            stat_prefix: "connect_authz".into(),
            rules: Some(rbac(&self.snapshot.authorization, self.trust_domain)),
            ..RbacFilter::default()
        };
        listener(
            "public_listener",
            (host, registration.port),
            TrafficDirection::Inbound,
            FilterChain {
                filters: vec![
                    filter("envoy.filters.network.rbac", &rbac),
                    tcp_proxy("public_listener", LOCAL_APP),
                ],
                transport_socket: Some(transport_socket(&tls)),
                ..FilterChain::default()
            },
        )
    }

    // --- the upstreams' side ---

    fn upstream_listener(&self, upstream: &Upstream) -> Resource {
        let target = &upstream.target;
        let stat_prefix = if target.is_query() {
            format!("upstream.prepared_query_{}", target.destination_name)
        } else {
            let datacenter = self.datacenter_or_own(&target.datacenter);
            format!("upstream.{}.default.{datacenter}", target.destination_name)
        };
        listener(
            &label(target),
            (or_loopback(&upstream.local_bind_address), upstream.local_bind_port),
            TrafficDirection::Outbound,
            FilterChain {
                filters: vec![tcp_proxy(&stat_prefix, &self.cluster_name(target))],
                ..FilterChain::default()
            },
        )
    }

    fn upstream_cluster(&self, target: &Target, endpoints: &Endpoints) -> Resource {
        let name = self.cluster_name(target);
        // A query that gave no answer yet has no instances either; the upstream's
        // own name stands in for what it will find.
        let (service, datacenter) = if endpoints.service.is_empty() {
            (&target.destination_name, &target.datacenter)
        } else {
            (&endpoints.service, &endpoints.datacenter)
        };
        let spiffe_id = StringMatcher {
            match_pattern: Some(MatchPattern::Exact(format!(
                "spiffe://{}/ns/default/dc/{}/svc/{service}",
                self.trust_domain,
                self.datacenter_or_own(datacenter),
            ))),
            ..StringMatcher::default()
        };
        let tls = UpstreamTlsContext {
            common_tls_context: Some(self.tls(vec![SubjectAltNameMatcher {
                san_type: SanType::Uri.into(),
                matcher: Some(spiffe_id),
                ..SubjectAltNameMatcher::default()
            }])),
            sni: name.clone(),
            ..UpstreamTlsContext::default()
        };
        let cluster = Cluster {
            name,
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
            eds_cluster_config: Some(EdsClusterConfig {
                eds_config: Some(ConfigSource {
                    resource_api_version: ApiVersion::V3.into(),
                    config_source_specifier: Some(ConfigSourceSpecifier::Ads(
                        AggregatedConfigSource::default(),
                    )),
                    ..ConfigSource::default()
                }),
                ..EdsClusterConfig::default()
            }),
            connect_timeout: Some(CONNECT_TIMEOUT),
            transport_socket: Some(transport_socket(&tls)),
            ..Cluster::default()
        };
        Resource::new(Kind::Cluster, cluster.name.clone(), &cluster)
    }

    fn upstream_endpoints(&self, target: &Target, endpoints: &Endpoints) -> Resource {
        let name = self.cluster_name(target);
        let assignment = load_assignment(&name, &endpoints.addresses);
        Resource::new(Kind::Endpoints, name, &assignment)
    }

    fn cluster_name(&self, target: &Target) -> String {
        let Target { destination_name: name, datacenter, .. } = target;
        let routing = if target.is_query() { "query" } else { "internal" };
        let datacenter = self.datacenter_or_own(datacenter);
        format!("{name}.default.{datacenter}.{routing}.{}", self.trust_domain)
    }

    /// Our own certificate, and what the other side's must be.
    fn tls(&self, names: Vec<SubjectAltNameMatcher>) -> CommonTlsContext {
        let Snapshot { leaf, roots, .. } = self.snapshot;
        let roots = roots.roots.iter().map(|root| format!("{}\n", root.root_cert.trim()));
        CommonTlsContext {
            tls_certificates: vec![TlsCertificate {
                certificate_chain: Some(inline(leaf.certificate.clone())),
                private_key: Some(inline(leaf.key.clone())),
                ..TlsCertificate::default()
            }],
            validation_context_type: Some(ValidationContextType::ValidationContext(
                CertificateValidationContext {
                    trusted_ca: Some(inline(roots.collect())),
                    match_typed_subject_alt_names: names,
                    ..CertificateValidationContext::default()
                },
            )),
            ..CommonTlsContext::default()
        }
    }
}

// === intentions ===

/// Who may connect, as Envoy's RBAC filter says it: those that differ from what
/// applies to everybody else.
fn rbac(authorization: &Authorization, trust_domain: &str) -> Rbac {
    let (others_allowed, exceptions) = decide(authorization);
    let action = if others_allowed { Action::Deny } else { Action::Allow };
    let principals: Vec<_> =
        exceptions.into_iter().map(|service| principal(service, trust_domain)).collect();
    let mut policies = std::collections::HashMap::new();
    // A policy needs somebody whom it is about.
    if !principals.is_empty() {
        let permissions = vec![Permission { rule: Some(permission::Rule::Any(true)) }];
        let policy = Policy { permissions, principals, ..Policy::default() };
        policies.insert("consul-intentions-layer4".to_owned(), policy);
    }
    Rbac { action: action.into(), policies, ..Rbac::default() }
}

/// Whether sources are allowed in general, and those for which the opposite holds.
///
/// For each source the most specific intention counts: one for just this
/// destination before one for all, and among those one for just this source
/// before one for all ("Precedence and Match Order" in Consul's documentation of
/// intentions).
fn decide(authorization: &Authorization) -> (bool, Vec<&str>) {
    let mut intentions: Vec<&Intention> = authorization.intentions.iter().collect();
    intentions.sort_by_key(|it| (it.destination_name == "*", it.source_name == "*"));
    let allows = |intention: &Intention| intention.action == "allow";

    let others = intentions.iter().position(|it| it.source_name == "*");
    let others_allowed = others.map_or(authorization.others_allowed, |at| allows(intentions[at]));
    let mut decided = BTreeMap::new();
    // Behind the one for all sources nothing counts any more.
    for intention in &intentions[..others.unwrap_or(intentions.len())] {
        decided.entry(&*intention.source_name).or_insert(allows(intention));
    }
    decided.retain(|_, allowed| *allowed != others_allowed);
    (others_allowed, decided.into_keys().collect())
}

/// A service, in whatever datacenter it is.
fn principal(service: &str, trust_domain: &str) -> Principal {
    let [trust_domain, service] = [trust_domain, service].map(escape);
    let regex = format!("^spiffe://{trust_domain}/ns/default/dc/[^/]+/svc/{service}$");
    let spiffe_id = StringMatcher {
        match_pattern: Some(MatchPattern::SafeRegex(RegexMatcher {
            regex,
            ..RegexMatcher::default()
        })),
        ..StringMatcher::default()
    };
    Principal {
        identifier: Some(principal::Identifier::Authenticated(principal::Authenticated {
            principal_name: Some(spiffe_id),
        })),
    }
}

/// The regular expression for just this text.
fn escape(text: &str) -> String {
    let literal = |c: char| c.is_alphanumeric() || "-_/".contains(c);
    text.chars().flat_map(|c| (!literal(c)).then_some('\\').into_iter().chain([c])).collect()
}

// === small parts ===

/// How Consul names an upstream in names of listeners.
fn label(target: &Target) -> String {
    let prefix = if target.is_query() { "prepared_query:" } else { "" };
    let suffix = match &*target.datacenter {
        "" => String::new(),
        datacenter => format!("?dc={datacenter}"),
    };
    format!("{prefix}{}{suffix}", target.destination_name)
}

fn listener(
    label: &str,
    (host, port): (&str, u16),
    direction: TrafficDirection,
    chain: FilterChain,
) -> Resource {
    let listener = Listener {
        name: format!("{label}:{host}:{port}"),
        address: Some(address(host, port)),
        filter_chains: vec![chain],
        traffic_direction: direction.into(),
        ..Listener::default()
    };
    Resource::new(Kind::Listener, listener.name.clone(), &listener)
}

fn tcp_proxy(stat_prefix: &str, cluster: &str) -> Filter {
    let tcp_proxy = TcpProxy {
        stat_prefix: stat_prefix.into(),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.into())),
        ..TcpProxy::default()
    };
    filter("envoy.filters.network.tcp_proxy", &tcp_proxy)
}

fn filter<M: Message + Name>(name: &str, config: &M) -> Filter {
    Filter { name: name.into(), config_type: Some(filter::ConfigType::TypedConfig(any(config))) }
}

fn transport_socket<M: Message + Name>(config: &M) -> TransportSocket {
    TransportSocket {
        name: "tls".into(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(any(config))),
    }
}

fn load_assignment(cluster: &str, addresses: &[(String, u16)]) -> ClusterLoadAssignment {
    let endpoint = |(host, port): &(String, u16)| LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(address(host, *port)),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    ClusterLoadAssignment {
        cluster_name: cluster.into(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: addresses.iter().map(endpoint).collect(),
            ..LocalityLbEndpoints::default()
        }],
        ..ClusterLoadAssignment::default()
    }
}

fn address(host: &str, port: u16) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: host.into(),
            port_specifier: Some(PortSpecifier::PortValue(port.into())),
            ..SocketAddress::default()
        })),
    }
}

fn inline(text: String) -> DataSource {
    DataSource {
        specifier: Some(data_source::Specifier::InlineString(text)),
        ..DataSource::default()
    }
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn or_loopback(address: &str) -> &str {
    if address.is_empty() { "127.0.0.1" } else { address }
}

#[cfg(test)]
mod tests {
    use super::super::agent::{Leaf, Proxy, Registration, Root, Roots};
    use super::*;

    const TRUST_DOMAIN: &str = "11111111-2222-3333-4444-555555555555.consul";

    fn intention(text: &str) -> Intention {
        let mut words = text.split(' ').map(str::to_owned);
        let mut word = || words.next().unwrap();
        Intention { source_name: word(), action: word(), destination_name: word() }
    }

    fn authorization(others_allowed: bool, intentions: &[&str]) -> Authorization {
        let intentions = intentions.iter().map(|text| intention(text)).collect();
        Authorization { intentions, others_allowed }
    }

    fn target(name: &str) -> Target {
        Target { destination_name: name.into(), ..Target::default() }
    }

    fn snapshot() -> Snapshot {
        let upstream =
            Upstream { target: target("api"), local_bind_port: 5000, ..Upstream::default() };
        let api = Endpoints {
            service: "api".into(),
            addresses: vec![("10.0.0.2".into(), 20000)],
            ..Endpoints::default()
        };
        Snapshot {
            registration: Registration {
                kind: "connect-proxy".into(),
                address: "10.0.0.1".into(),
                port: 20000,
                proxy: Proxy {
                    destination_service_name: "web".into(),
                    local_service_port: 8080,
                    upstreams: vec![upstream],
                    ..Proxy::default()
                },
            },
            roots: Roots {
                trust_domain: TRUST_DOMAIN.into(),
                roots: ["old", "new"].map(|it| Root { root_cert: it.into() }).into(),
            },
            leaf: Leaf {
                certificate: "certificate".into(),
                key: "key".into(),
                uri: format!("spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/web"),
            },
            authorization: authorization(true, &[]),
            endpoints: [(target("api"), api)].into(),
        }
    }

    fn names(snapshot: &Snapshot) -> Vec<String> {
        resources(snapshot).into_iter().map(|it| format!("{:?} {}", it.kind, it.name)).collect()
    }

    fn body<M: Message + Name + Default>(snapshot: &Snapshot, name: &str) -> M {
        let mut all = resources(snapshot).into_iter();
        let found = all.find(|it| it.name == name && it.body.type_url == M::type_url());
        M::decode(&*found.unwrap().body.value).unwrap()
    }

    #[test]
    fn names_are_consuls() {
        let api = format!("api.default.dc1.internal.{TRUST_DOMAIN}");
        assert_eq!(
            names(&snapshot()),
            [
                "Cluster local_app",
                "Listener public_listener:10.0.0.1:20000",
                "Listener api:127.0.0.1:5000",
                &format!("Cluster {api}"),
                &format!("Endpoints {api}"),
            ]
        );
    }

    #[test]
    fn a_query_in_another_datacenter() {
        let mut it = snapshot();
        let query = Target {
            destination_type: "prepared_query".into(),
            destination_name: "near".into(),
            datacenter: "dc2".into(),
        };
        it.registration.proxy.upstreams[0].target = query.clone();
        let found =
            Endpoints { service: "db".into(), datacenter: "dc3".into(), ..Endpoints::default() };
        it.endpoints = [(query, found)].into();
        let cluster = format!("near.default.dc2.query.{TRUST_DOMAIN}");
        assert_eq!(names(&it)[2], "Listener prepared_query:near?dc=dc2:127.0.0.1:5000");
        assert_eq!(names(&it)[3], format!("Cluster {cluster}"));

        let cluster: Cluster = body(&it, &cluster);
        let tls = String::from_utf8_lossy(&cluster.encode_to_vec()).into_owned();
        assert!(tls.contains(&format!("spiffe://{TRUST_DOMAIN}/ns/default/dc/dc3/svc/db")));
    }

    #[test]
    fn a_service_without_a_port_is_not_connected_to() {
        let endpoints = |port| {
            let mut it = snapshot();
            it.registration.proxy.local_service_port = port;
            let cluster: Cluster = body(&it, LOCAL_APP);
            cluster.load_assignment.unwrap().endpoints[0].lb_endpoints.len()
        };
        assert_eq!(endpoints(8080), 1);
        assert_eq!(endpoints(0), 0);
    }

    #[test]
    fn a_version_changes_with_the_content_only() {
        let versions = |snapshot: &Snapshot| -> BTreeMap<_, _> {
            let all = resources(snapshot).into_iter();
            all.map(|it| (format!("{:?} {}", it.kind, it.name), it.version)).collect()
        };
        let before = versions(&snapshot());
        assert_eq!(before, versions(&snapshot()));

        let mut it = snapshot();
        it.authorization = authorization(true, &["db deny web"]);
        let changed: Vec<_> =
            versions(&it).into_iter().filter(|(name, version)| before[name] != *version).collect();
        assert_eq!(changed.len(), 1);
        assert_eq!(changed[0].0, "Listener public_listener:10.0.0.1:20000");

        let mut it = snapshot();
        it.leaf.certificate = "renewed".into();
        let after = versions(&it);
        let changed = before.iter().filter(|(name, version)| after[*name] != **version);
        assert_eq!(changed.count(), 2, "the public listener and the upstream's cluster");
    }

    #[test]
    fn all_roots_are_trusted() {
        let snapshot = snapshot();
        let tls = Mesh::new(&snapshot).tls(vec![]);
        let Some(ValidationContextType::ValidationContext(it)) = tls.validation_context_type else {
            panic!("{tls:?}")
        };
        assert_eq!(it.trusted_ca, Some(inline("old\nnew\n".into())));
    }

    #[test]
    fn the_most_specific_intention_counts() {
        let table: [(bool, &[&str], bool, &[&str]); 9] = [
            (true, &[], true, &[]),
            (false, &[], false, &[]),
            (true, &["db deny web"], true, &["db"]),
            (false, &["db deny web"], false, &[]),
            (false, &["db allow web", "x allow *"], false, &["db", "x"]),
            (true, &["db deny *", "db allow web"], true, &[]),
            (true, &["* deny *", "db allow web"], false, &["db"]),
            (false, &["* allow web", "db deny *"], true, &[]),
            (true, &["* allow *", "* deny web", "db allow *", "x allow web"], false, &["x"]),
        ];
        for (default, intentions, others, exceptions) in table {
            let authorization = authorization(default, intentions);
            assert_eq!(decide(&authorization), (others, exceptions.to_vec()), "{intentions:?}");
        }
    }

    #[test]
    fn a_rule_is_about_those_that_differ() {
        let rules =
            |default| rbac(&authorization(default, &["a.b allow web", "c deny web"]), "t.consul");
        let only = |rbac: &Rbac, service| {
            let policies: Vec<_> = rbac.policies.values().collect();
            assert_eq!(policies.len(), 1);
            assert_eq!(policies[0].principals, [principal(service, "t.consul")]);
        };
        let deny = rules(true);
        assert_eq!(deny.action(), Action::Deny);
        only(&deny, "c");
        let allow = rules(false);
        assert_eq!(allow.action(), Action::Allow);
        only(&allow, "a.b");
        assert_eq!(escape("a.b-c/d"), r"a\.b-c/d");
        assert!(rbac(&authorization(false, &[]), "t.consul").policies.is_empty());
    }
}
