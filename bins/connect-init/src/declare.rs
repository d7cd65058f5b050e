//! The pod's services as the flags declare them. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use registration::pod::{
    Declaration, Identity, OUTBOUND_LISTENER_PORT, PUBLIC_LISTENER_PORT, Pair, pair,
};
use registration::proxy::ExposePath;
use registration::service::TaggedAddress;
use registration::{Upstream, upstream};
use runtime::Failure;
use serde_json::{Map, Value};

use crate::args::{PodArgs, ServiceArg};

/// The values of the flags.
pub(crate) struct Said {
    /// At least one.
    pub(crate) services: Vec<ServiceArg>,
    pub(crate) upstreams: Vec<Upstream>,
    pub(crate) tags: Vec<String>,
    pub(crate) meta: Vec<(String, String)>,
    pub(crate) proxy_config: Vec<Map<String, Value>>,
    pub(crate) transparent: Transparent,
    pub(crate) pod: PodArgs,
    pub(crate) consul_namespace: Option<String>,
    pub(crate) consul_partition: Option<String>,
    /// Admin listener of the first Envoy.
    pub(crate) admin: SocketAddr,
}

/// Transparent proxy, with its virtual address resolved.
#[derive(Debug, Default)]
pub(crate) struct Transparent {
    pub(crate) is_on: bool,
    pub(crate) virtual_address: Option<SocketAddrV4>,
    /// The name whose address it is.
    pub(crate) virtual_name: Option<String>,
    pub(crate) expose: Vec<ExposePath>,
}

/// A service of the pod, and its sidecar's listeners.
pub(crate) struct Declared {
    /// Index among the pod's services.
    pub(crate) index: u16,
    pub(crate) pair: Pair,
    /// Envoy's admin listener.
    pub(crate) admin: SocketAddr,
    /// The name whose address is its virtual address.
    pub(crate) virtual_name: Option<String>,
}

/// Proxy settings that are addresses of Envoy's listeners.
const LISTENERS: [&str; 2] = ["envoy_prometheus_bind_addr", "envoy_stats_bind_addr"];

/// Makes the registrations of the pod's services. Each has the tags, metadata and proxy
/// settings. Only the first has the upstreams, the outbound listener and the exposed
/// paths, since two Envoys can't listen on one port. The ports of all other listeners
/// count up.
///
/// # Errors
/// It can't work in a pod: two listeners on one port, or a transparent proxy in a pod
/// with IPv6.
pub(crate) fn declare(said: Said) -> Result<Vec<Declared>, Failure> {
    let Said {
        services,
        mut upstreams,
        tags,
        meta,
        proxy_config,
        transparent:
            Transparent { is_on: transparent, virtual_address, mut virtual_name, mut expose },
        pod,
        consul_namespace,
        consul_partition,
        admin,
    } = said;
    if transparent && pod.pod_ip.is_ipv6() {
        return Err(refuse_ipv6(pod.pod_ip));
    }
    let listeners = transparent
        .then(|| (OUTBOUND_LISTENER_PORT, "the outbound listener of the sidecar".to_owned()))
        .into_iter()
        .chain(expose.iter().map(|path| {
            (path.listener_port, format!("the listener of the exposed path `{}`", path.path))
        }));
    check_ports(&services, &upstreams, admin, listeners.collect())?;
    let mut virtual_address = virtual_address
        .map(|address| TaggedAddress { address: address.ip().to_string(), port: address.port() });
    let identity = Identity { name: pod.pod_name, namespace: pod.pod_namespace, ip: pod.pod_ip };
    let proxy_config: Map<String, Value> = proxy_config.into_iter().flatten().collect();
    let declare_one = |(index, service)| {
        let ServiceArg { name, port } = service;
        let declaration = Declaration {
            name,
            port,
            tags: tags.clone(),
            meta: meta.iter().cloned().collect(),
            upstreams: std::mem::take(&mut upstreams),
            proxy_config: place_listeners(proxy_config.clone(), index, identity.ip),
            transparent: transparent && index == 0,
            virtual_address: virtual_address.take(),
            expose: std::mem::take(&mut expose),
            consul_namespace: consul_namespace.clone(),
            consul_partition: consul_partition.clone(),
            index,
        };
        Declared {
            index,
            pair: pair(&identity, declaration),
            admin: count_up(admin, index),
            virtual_name: virtual_name.take(),
        }
    };
    Ok((0..).zip(services).map(declare_one).collect())
}

/// In Consul 1.14, a transparent proxy's outbound listener is at 127.0.0.1, and virtual
/// addresses are IPv4 only.
fn refuse_ipv6(pod: IpAddr) -> Failure {
    Failure::usage(format_args!(
        "--transparent: the pod's address is {pod}, and a transparent proxy redirects IPv4 only"
    ))
    .hint(
        "set annotation consul.hashicorp.com/transparent-proxy to \"false\", and list what the \
         pod reaches in connect-service-upstreams",
    )
}

fn check_ports(
    services: &[ServiceArg],
    upstreams: &[Upstream],
    admin: SocketAddr,
    listeners: Vec<(u16, String)>,
) -> Result<(), Failure> {
    let mut taken: Vec<(u16, String)> = Vec::new();
    for (port, what) in listeners {
        if let Some((_, other)) = taken.iter().find(|(taken, _)| *taken == port) {
            return Err(Failure::usage(format_args!("port {port} is both {other} and {what}"))
                .hint("give each --expose another listener"));
        }
        taken.push((port, what));
    }
    for (index, service) in (0..).zip(services) {
        let name = &service.name;
        if services.iter().filter(|other| other.name == *name).count() > 1 {
            return Err(Failure::usage(format_args!("--service {name}: given twice"))
                .hint("service names must be unique within a pod"));
        }
        let of_sidecar = name.strip_suffix("-sidecar-proxy");
        if let Some(other) = services.iter().find(|other| Some(other.name.as_str()) == of_sidecar) {
            return Err(Failure::usage(format_args!(
                "--service {name}: that is the name of the sidecar of `{}`",
                other.name
            ))
            .hint("give the service another name"));
        }
        let listener = PUBLIC_LISTENER_PORT.saturating_add(index);
        for (port, what) in [(listener, "public"), (count_up(admin, index).port(), "admin")] {
            let what = format!("the {what} listener of the sidecar of `{name}`");
            if let Some((_, other)) = taken.iter().find(|(taken, _)| *taken == port) {
                return Err(Failure::usage(format_args!("port {port} is both {other} and {what}"))
                    .hint("give another --admin-bind"));
            }
            taken.push((port, what));
        }
    }
    for ServiceArg { name, port } in services {
        if let Some((port, what)) = taken.iter().find(|(taken, _)| Some(*taken) == *port) {
            return Err(Failure::usage(format_args!(
                "--service {name}:{port}: that port is {what}"
            ))
            .hint("let the application listen on another port"));
        }
    }
    let own = services.iter().filter_map(|ServiceArg { name, port }| {
        port.map(|port| (port, format!("the port of `{name}` itself")))
    });
    taken.extend(own);
    match upstream::conflict(upstreams, &taken) {
        Some(conflict) => Err(Failure::usage(conflict).while_doing("--upstream")),
        None => Ok(()),
    }
}

fn count_up(address: SocketAddr, by: u16) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port().saturating_add(by))
}

/// Counts the ports of a sidecar's listeners up, and replaces `0.0.0.0`, which matches
/// no address of a pod with IPv6 only. Leaves an invalid address for the bootstrap to
/// report.
fn place_listeners(mut config: Map<String, Value>, by: u16, pod: IpAddr) -> Map<String, Value> {
    for key in LISTENERS {
        let Some(Value::String(text)) = config.get_mut(key) else { continue };
        let Ok(address) = text.parse() else { continue };
        let mut address = count_up(address, by);
        if pod.is_ipv6() && address.ip() == Ipv4Addr::UNSPECIFIED {
            address.set_ip(Ipv6Addr::UNSPECIFIED.into());
        }
        *text = address.to_string();
    }
    config
}

#[cfg(test)]
mod tests {
    use runtime::Exit;

    use super::*;
    use crate::args::UpstreamsArg;

    fn said(service: &str, upstreams: &str) -> Said {
        Said {
            services: service.split(',').map(|service| service.parse().unwrap()).collect(),
            upstreams: upstreams.parse::<UpstreamsArg>().unwrap().0,
            tags: Vec::new(),
            meta: Vec::new(),
            proxy_config: Vec::new(),
            transparent: Transparent::default(),
            pod: PodArgs {
                pod_name: "web-0".to_owned(),
                pod_namespace: "shop".to_owned(),
                pod_ip: [10, 0, 0, 7].into(),
                pod_uid: None,
                node_name: None,
            },
            consul_namespace: None,
            consul_partition: None,
            admin: ([127, 0, 0, 1], 19000).into(),
        }
    }

    fn only(said: Said) -> Pair {
        let [declared] = declare(said).ok().unwrap().try_into().ok().unwrap();
        let Declared { pair, .. } = declared;
        pair
    }

    #[test]
    fn a_service_with_upstreams() {
        let pair = only(said("web:80", "db:1234,auth:6789"));
        assert_eq!(pair.service.id, "shop_web-0_web");
        assert_eq!(pair.proxy.proxy.unwrap().upstreams.len(), 2);
    }

    #[test]
    fn further_services_count_their_ports_up() {
        let listeners = r#"{"envoy_prometheus_bind_addr": "0.0.0.0:20200", "a": 1}"#;
        let proxy_config = vec![serde_json::from_str(listeners).unwrap()];
        let declared =
            declare(Said { proxy_config, ..said("web:80,web-admin:81", "db:1234") }).unwrap();
        let [first, second] = declared.as_slice() else { panic!("two services") };
        assert_eq!(first.admin.port() + 1, second.admin.port());
        assert_eq!((first.pair.proxy.port, second.pair.proxy.port), (20000, 20001));
        let proxy = |declared: &Declared| declared.pair.proxy.proxy.clone().unwrap();
        assert_eq!((proxy(first).upstreams.len(), proxy(second).upstreams.len()), (1, 0));
        assert_eq!(proxy(first).config["envoy_prometheus_bind_addr"], "0.0.0.0:20200");
        assert_eq!(proxy(second).config["envoy_prometheus_bind_addr"], "0.0.0.0:20201");
        assert_eq!(second.pair.service.id, "shop_web-0_web-admin");
    }

    #[test]
    fn all_addresses_are_those_that_the_pod_has() {
        for (pod, bound) in [("10.0.0.7", "0.0.0.0:20200"), ("fd00::7", "[::]:20200")] {
            let listeners = r#"{"envoy_prometheus_bind_addr": "0.0.0.0:20200",
                "envoy_stats_bind_addr": "127.0.0.1:20201"}"#;
            let mut said = said("web:80", "");
            said.proxy_config = vec![serde_json::from_str(listeners).unwrap()];
            said.pod.pod_ip = pod.parse().unwrap();
            let config = only(said).proxy.proxy.unwrap().config;
            assert_eq!(config["envoy_prometheus_bind_addr"], bound, "{pod}");
            assert_eq!(config["envoy_stats_bind_addr"], "127.0.0.1:20201", "{pod}");
        }
    }

    fn transparent(service: &str, upstreams: &str) -> Said {
        let expose = ExposePath {
            path: "/healthz".to_owned(),
            listener_port: 20300,
            local_path_port: 80,
            protocol: "http".to_owned(),
        };
        let transparent = Transparent {
            is_on: true,
            virtual_address: Some("10.96.0.10:80".parse().unwrap()),
            virtual_name: None,
            expose: vec![expose],
        };
        Said { transparent, ..said(service, upstreams) }
    }

    #[test]
    fn only_the_first_sidecar_is_transparent() {
        let declared = declare(transparent("web:80,web-admin:81", "")).unwrap();
        let [first, second] = declared.as_slice() else { panic!("two services") };
        let proxy = |declared: &Declared| declared.pair.proxy.proxy.clone().unwrap();
        assert_eq!((proxy(first).mode.as_str(), proxy(second).mode.as_str()), ("transparent", ""));
        assert_eq!((proxy(first).expose.paths.len(), proxy(second).expose.paths.len()), (1, 0));
        assert_eq!(first.pair.proxy.tagged_addresses["virtual"].address, "10.96.0.10");
        assert!(second.pair.proxy.tagged_addresses.is_empty());
    }

    #[test]
    fn a_transparent_proxy_in_a_pod_of_ipv6_is_refused() {
        let mut said = transparent("web:80", "");
        said.pod.pod_ip = "fd00::7".parse().unwrap();
        let failure = declare(said).err().unwrap();
        assert_eq!(failure.exit(), Exit::Usage);
        assert!(failure.to_string().contains("IPv4 only"), "{failure}");
    }

    #[test]
    fn what_a_transparent_proxy_listens_on_is_taken() {
        for (service, upstreams, words) in [
            ("web:15001", "", "the outbound listener of the sidecar"),
            ("web:80", "db:15001", "the outbound listener of the sidecar"),
            ("web:20300", "", "exposed path `/healthz`"),
            ("web:80", "db:20300", "exposed path `/healthz`"),
        ] {
            let failure = declare(transparent(service, upstreams)).err().unwrap();
            assert!(failure.to_string().contains(words), "{failure}");
        }
        let mut twice = transparent("web:80", "");
        twice.transparent.expose.push(twice.transparent.expose[0].clone());
        assert!(declare(twice).err().unwrap().to_string().contains("is both"));
        declare(said("web:15001", "db:20300")).unwrap();
    }

    #[test]
    fn later_settings_of_the_proxy_win() {
        let object = |text: &str| serde_json::from_str(text).unwrap();
        let proxy_config = vec![object(r#"{"a": 1, "b": 2}"#), object(r#"{"b": 3}"#)];
        let pair = only(Said { proxy_config, ..said("web:80", "") });
        assert_eq!(Value::Object(pair.proxy.proxy.unwrap().config).to_string(), r#"{"a":1,"b":3}"#);
    }

    /// An upstream on a port that something else in the pod uses. Reported in
    /// <https://github.com/hashicorp/consul-k8s/issues/224>.
    #[test]
    fn two_listeners_on_one_port_are_refused() {
        for (service, upstreams, words) in [
            ("web:80", "db:80", "the port of `web` itself"),
            ("web:80", "db:20000", "public listener"),
            ("web:80", "db:19000", "admin listener"),
            ("web:80", "db:1,auth:1", "both listen on"),
            ("web:20000", "", "public listener"),
            ("web:80,api:19001", "", "the admin listener of the sidecar of `api`"),
            ("web:80,api:81", "db:20001", "the public listener of the sidecar of `api`"),
            ("web:80,api:81", "db:81", "the port of `api` itself"),
            ("web:80,web:81", "", "given twice"),
            ("web:80,web-sidecar-proxy:81", "", "the name of the sidecar of `web`"),
        ] {
            let failure = declare(said(service, upstreams)).err().unwrap();
            assert_eq!(failure.exit(), Exit::Usage);
            assert!(failure.to_string().contains(words), "{failure}");
        }
    }

    #[test]
    fn an_admin_listener_on_the_port_of_a_public_one_is_refused() {
        for (port, service) in
            [(20000, "web:80"), (20001, "web:80,api:81"), (65535, "web:80,api:81")]
        {
            let admin = ([127, 0, 0, 1], port).into();
            let failure = declare(Said { admin, ..said(service, "") }).err().unwrap();
            assert!(failure.to_string().contains("listener of the sidecar"), "{failure}");
        }
    }
}
