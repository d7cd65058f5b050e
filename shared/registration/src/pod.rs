//! The registrations of a pod's service and sidecar: ids, names, ports and checks.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use duration::GoDuration;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::check::Status;
use crate::proxy::{Expose, ExposePath, TransparentProxy};
use crate::service::{Kind, TaggedAddress};
use crate::{Check, Proxy, Service, Upstream};

/// Port of the public listener of a pod's first sidecar; further ones count up.
pub const PUBLIC_LISTENER_PORT: u16 = 20000;

/// Port of the admin listener of a pod's first Envoy; further ones count up.
pub const ADMIN_PORT: u16 = 19000;

/// The port of 127.0.0.1 to which the connections of a transparent pod are redirected.
pub const OUTBOUND_LISTENER_PORT: u16 = 15001;

/// Key of the tagged address by which transparent proxies reach a service, in addition
/// to the one that Consul allots. Only effective on the registration of a proxy.
pub const VIRTUAL: &str = "virtual";

/// TTL of the TTL check. A pod that is killed gets no more traffic after that.
pub const LEASE: GoDuration = GoDuration::from_secs(30);

/// Time after which the agent removes a registration whose TTL check has expired: the
/// agent's minimum.
const REMOVE_AFTER: GoDuration = GoDuration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    /// In Kubernetes.
    pub namespace: String,
    /// `status.podIP`.
    pub ip: IpAddr,
}

/// The declaration of one service of the pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Declaration {
    pub name: String,
    /// The application's port; `None`: the service makes requests only.
    pub port: Option<u16>,
    /// For service and proxy.
    pub tags: Vec<String>,
    /// For service and proxy.
    pub meta: BTreeMap<String, String>,
    pub upstreams: Vec<Upstream>,
    /// Proxy settings, such as `envoy_prometheus_bind_addr`.
    pub proxy_config: Map<String, Value>,
    /// Whether the pod's connections are redirected to the proxy.
    pub transparent: bool,
    /// The address by which other transparent proxies reach the service.
    pub virtual_address: Option<TaggedAddress>,
    /// Paths that the proxy serves without mutual TLS, for probes.
    pub expose: Vec<ExposePath>,
    /// Consul Enterprise namespace.
    pub consul_namespace: Option<String>,
    /// Consul Enterprise admin partition.
    pub consul_partition: Option<String>,
    /// Index among the pod's services.
    pub index: u16,
}

/// A service and its sidecar, registered and deregistered together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    pub service: Service,
    pub proxy: Service,
}

// === impl Pair ===

impl Pair {
    /// The same with the initial status of checks set, by id. A check that the agent
    /// already has keeps its status.
    #[must_use]
    pub fn known_to_be(&self, statuses: &BTreeMap<String, Status>) -> Self {
        let mut pair = self.clone();
        for check in pair.service.checks.iter_mut().chain(&mut pair.proxy.checks) {
            check.status = statuses.get(&check.check_id).copied().or(check.status);
        }
        pair
    }
}

/// Makes the registrations of one service of a pod.
pub fn pair(pod: &Identity, declared: Declaration) -> Pair {
    let service = service(pod, &declared);
    let proxy = proxy(pod, &service, declared);
    Pair { service, proxy }
}

fn service(pod: &Identity, declared: &Declaration) -> Service {
    let Declaration { name, port, tags, meta, consul_namespace, consul_partition, .. } = declared;
    let id = service_id(pod, name);
    let mut meta = meta.clone();
    meta.insert("pod-name".to_owned(), pod.name.clone());
    meta.insert("k8s-namespace".to_owned(), pod.namespace.clone());
    let mut checks = vec![lease(&id)];
    checks.extend(port.map(|port| application(&id, port)));
    Service {
        id,
        name: name.clone(),
        tags: tags.clone(),
        meta,
        address: pod.ip.to_string(),
        port: port.unwrap_or_default(),
        namespace: consul_namespace.clone().unwrap_or_default(),
        partition: consul_partition.clone().unwrap_or_default(),
        checks,
        ..Service::default()
    }
}

/// The registration of a service's sidecar, which shares address, tags and metadata with
/// the service.
fn proxy(pod: &Identity, service: &Service, declared: Declaration) -> Service {
    let id = format!("{}-sidecar-proxy", service.id);
    let listener = SocketAddr::new(pod.ip, PUBLIC_LISTENER_PORT.saturating_add(declared.index));
    let virtual_address = declared.virtual_address.map(|address| (VIRTUAL.to_owned(), address));
    let mode = if declared.transparent { "transparent" } else { "" };
    let outbound_listener_port = if declared.transparent { OUTBOUND_LISTENER_PORT } else { 0 };
    let proxy = Proxy {
        destination_service_name: service.name.clone(),
        destination_service_id: service.id.clone(),
        local_service_address: declared.port.map(|_| "127.0.0.1".to_owned()).unwrap_or_default(),
        local_service_port: declared.port.unwrap_or_default(),
        mode: mode.to_owned(),
        transparent_proxy: TransparentProxy {
            outbound_listener_port,
            ..TransparentProxy::default()
        },
        config: declared.proxy_config,
        upstreams: declared.upstreams,
        expose: Expose { paths: declared.expose, ..Expose::default() },
        ..Proxy::default()
    };
    Service {
        kind: Kind::ConnectProxy,
        name: format!("{}-sidecar-proxy", service.name),
        port: listener.port(),
        tagged_addresses: virtual_address.into_iter().collect(),
        checks: vec![
            public_listener(&id, &listener.to_string()),
            destination(&id, &service.id),
            lease(&id),
        ],
        proxy: Some(proxy),
        id,
        ..service.clone()
    }
}

/// The id of a pod's service. No two pods share one: Kubernetes allows no `_` in the
/// names of namespaces and pods.
///
/// Source: "Object Names and IDs" of the Kubernetes documentation.
fn service_id(pod: &Identity, name: &str) -> String {
    format!("{}_{}_{name}", pod.namespace, pod.name)
}

/// The TTL check by which `connect-lifecycle` reports that the pod lives; see
/// [`LEASE`].
pub(crate) fn lease(service_id: &str) -> Check {
    Check {
        check_id: lease_id(service_id),
        name: "Pod Lease".to_owned(),
        notes: "Renewed by connect-lifecycle for as long as the pod lives.".to_owned(),
        ttl: Some(LEASE),
        deregister_critical_service_after: Some(REMOVE_AFTER),
        ..Check::default()
    }
}

/// Whether the application accepts connections. `connect-lifecycle` checks that inside
/// the pod, because the application may listen on 127.0.0.1 only. It starts critical
/// and never removes the service, so a slow start does no harm.
pub(crate) fn application(service_id: &str, port: u16) -> Check {
    Check {
        check_id: application_id(service_id),
        name: "Application Health".to_owned(),
        notes: format!(
            "Set by connect-lifecycle, which asks the readiness probe over loopback, or else connects to port {port}."
        ),
        ttl: Some(LEASE),
        status: Some(Status::Critical),
        ..Check::default()
    }
}

pub(crate) fn public_listener(proxy_id: &str, listener: &str) -> Check {
    Check {
        check_id: listener_id(proxy_id),
        name: "Proxy Public Listener".to_owned(),
        tcp: listener.to_owned(),
        interval: Some(GoDuration::from_secs(10)),
        // Removal is left to the TTL check, which tells whether the pod lives.
        ..Check::default()
    }
}

pub(crate) fn destination(proxy_id: &str, service_id: &str) -> Check {
    Check {
        check_id: destination_id(proxy_id),
        name: "Destination Alias".to_owned(),
        alias_service: service_id.to_owned(),
        ..Check::default()
    }
}

/// The id of the TTL check of a service or proxy.
pub fn lease_id(service_id: &str) -> String {
    format!("{service_id}-lease")
}

/// The id of a proxy's alias check of its service.
pub fn destination_id(proxy_id: &str) -> String {
    format!("{proxy_id}-destination")
}

/// The id of the check of a proxy's public listener.
pub fn listener_id(proxy_id: &str) -> String {
    format!("{proxy_id}-listener")
}

/// The id of a service's application check.
pub fn application_id(service_id: &str) -> String {
    format!("{service_id}-application")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Identity {
        Identity {
            name: "web-0".to_owned(),
            namespace: "shop".to_owned(),
            ip: "10.0.0.7".parse().unwrap(),
        }
    }

    #[test]
    fn a_service_and_its_sidecar() {
        let upstream = Upstream {
            destination_name: "db".to_owned(),
            local_bind_port: 1234,
            ..Upstream::default()
        };
        let pair = pair(
            &pod(),
            Declaration {
                name: "web".to_owned(),
                port: Some(8080),
                tags: vec!["v1".to_owned()],
                meta: [("team".to_owned(), "a".to_owned())].into(),
                upstreams: vec![upstream],
                ..Declaration::default()
            },
        );
        assert_eq!(
            serde_json::to_value(&pair.service).unwrap(),
            json!({
                "ID": "shop_web-0_web", "Name": "web", "Tags": ["v1"], "Address": "10.0.0.7", "Port": 8080,
                "Meta": {"team": "a", "pod-name": "web-0", "k8s-namespace": "shop"},
                "Checks": [
                    {"CheckID": "shop_web-0_web-lease", "Name": "Pod Lease", "TTL": "30s",
                     "Notes": "Renewed by connect-lifecycle for as long as the pod lives.",
                     "DeregisterCriticalServiceAfter": "1m0s"},
                    {"CheckID": "shop_web-0_web-application", "Name": "Application Health", "TTL": "30s",
                     "Notes": "Set by connect-lifecycle, which asks the readiness probe over loopback, or else connects to port 8080.",
                     "Status": "critical"},
                ],
            })
        );
        assert_eq!(
            serde_json::to_value(&pair.proxy).unwrap(),
            json!({
                "Kind": "connect-proxy", "ID": "shop_web-0_web-sidecar-proxy", "Name": "web-sidecar-proxy",
                "Tags": ["v1"], "Address": "10.0.0.7", "Port": 20000,
                "Meta": {"team": "a", "pod-name": "web-0", "k8s-namespace": "shop"},
                "Proxy": {
                    "DestinationServiceName": "web", "DestinationServiceID": "shop_web-0_web",
                    "LocalServiceAddress": "127.0.0.1", "LocalServicePort": 8080,
                    "Upstreams": [{"DestinationType": "service", "DestinationName": "db", "LocalBindPort": 1234}],
                },
                "Checks": [
                    {"CheckID": "shop_web-0_web-sidecar-proxy-listener", "Name": "Proxy Public Listener",
                     "TCP": "10.0.0.7:20000", "Interval": "10s"},
                    {"CheckID": "shop_web-0_web-sidecar-proxy-destination", "Name": "Destination Alias",
                     "AliasService": "shop_web-0_web"},
                    {"CheckID": "shop_web-0_web-sidecar-proxy-lease", "Name": "Pod Lease", "TTL": "30s",
                     "Notes": "Renewed by connect-lifecycle for as long as the pod lives.",
                     "DeregisterCriticalServiceAfter": "1m0s"},
                ],
            })
        );
    }

    /// Two pods of one name in two namespaces on one node, and names whose hyphens or
    /// dots could be read in two ways. Reported in
    /// <https://github.com/hashicorp/consul-k8s/issues/690>.
    #[test]
    fn no_two_pods_have_a_service_of_one_id() {
        let ids = [
            ("shop", "db-0", "db"),
            ("test", "db-0", "db"),
            ("shop-db", "0", "db"),
            ("shop", "db", "0-db"),
            ("shop", "db.0", "db"),
            ("shop", "db", "0.db"),
            ("shop", "db", "0_db"),
        ]
        .map(|(namespace, name, service)| {
            let pod = Identity { namespace: namespace.to_owned(), name: name.to_owned(), ..pod() };
            let declared = Declaration { name: service.to_owned(), ..Declaration::default() };
            let Pair { service, proxy } = pair(&pod, declared);
            [service.id, proxy.id]
        });
        let ids = ids.as_flattened();
        assert_eq!(
            ids.iter().collect::<std::collections::BTreeSet<_>>().len(),
            ids.len(),
            "{ids:?}"
        );
    }

    /// Source of where the address counts: the proxy's registration only.
    #[test]
    fn a_transparent_proxy_has_the_virtual_address_and_the_service_does_not() {
        let declared = Declaration {
            name: "web".to_owned(),
            port: Some(80),
            transparent: true,
            virtual_address: Some(TaggedAddress { address: "10.96.0.10".to_owned(), port: 80 }),
            expose: vec![ExposePath {
                path: "/healthz".to_owned(),
                listener_port: 20300,
                local_path_port: 80,
                protocol: String::new(),
            }],
            ..Declaration::default()
        };
        let Pair { service, proxy } = pair(&pod(), declared);
        assert_eq!(service.tagged_addresses, BTreeMap::new());
        let proxy = serde_json::to_value(&proxy).unwrap();
        assert_eq!(
            proxy["TaggedAddresses"],
            json!({"virtual": {"Address": "10.96.0.10", "Port": 80}})
        );
        let settings = &proxy["Proxy"];
        assert_eq!(settings["Mode"], "transparent");
        assert_eq!(settings["TransparentProxy"], json!({"OutboundListenerPort": 15001}));
        let path = json!({"Path": "/healthz", "ListenerPort": 20300, "LocalPathPort": 80});
        assert_eq!(settings["Expose"], json!({"Paths": [path]}));
    }

    #[test]
    fn checks_start_as_they_are_known_to_be() {
        let declared = Declaration { name: "web".to_owned(), port: Some(80), ..<_>::default() };
        let pair = pair(&pod(), declared);
        assert_eq!(pair.known_to_be(&BTreeMap::new()), pair);
        let (service, proxy) = (pair.service.id(), pair.proxy.id());
        let statuses = [
            (lease_id(service), Status::Passing),
            (application_id(service), Status::Warning),
            (lease_id(proxy), Status::Passing),
            (listener_id(proxy), Status::Passing),
        ];
        let known = pair.known_to_be(&statuses.into());
        let of = |service: &Service| service.checks.iter().map(|check| check.status).collect();
        let known: [Vec<_>; 2] = [of(&known.service), of(&known.proxy)];
        let (passing, warning) = (Some(Status::Passing), Some(Status::Warning));
        assert_eq!(known, [vec![passing, warning], vec![passing, None, passing]]);
    }

    #[test]
    fn a_client_has_no_port_and_no_application_check() {
        let Pair { service, proxy } =
            pair(&pod(), Declaration { name: "web".to_owned(), ..Declaration::default() });
        assert_eq!(service.port, 0);
        assert_eq!(service.checks.len(), 1);
        let proxy = proxy.proxy.unwrap();
        assert_eq!((proxy.local_service_address.as_str(), proxy.local_service_port), ("", 0));
    }

    /// "too many colons in address". Reported in
    /// <https://github.com/hashicorp/consul/issues/10291>.
    #[test]
    fn an_ipv6_pod_is_bracketed_where_a_port_follows() {
        let pod = Identity { ip: "fd00::7".parse().unwrap(), ..pod() };
        let Pair { service, proxy } =
            pair(&pod, Declaration { name: "web".to_owned(), index: 1, ..Declaration::default() });
        assert_eq!(service.address, "fd00::7");
        assert_eq!(proxy.checks[0].tcp, "[fd00::7]:20001");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let pair = pair(
            &pod(),
            Declaration { name: "web".to_owned(), port: Some(80), ..Declaration::default() },
        );
        let text = serde_json::to_string(&pair).unwrap();
        assert_eq!(serde_json::from_str::<Pair>(&text).unwrap(), pair);
    }
}
