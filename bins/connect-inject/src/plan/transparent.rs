//! How the pod's connections are redirected to its sidecar, and what goes past it.

use std::fmt;
use std::net::{IpAddr, SocketAddrV4};

use redirect::Cidr;
use registration::pod::PUBLIC_LISTENER_PORT;
use registration::port;

use super::taken::Owner;
use super::{Lifecycle, Metrics, Service, Surroundings, Taken, probes, read};
use crate::annotation;
use crate::names::REDIRECT;
use crate::outcome::{Denial, Reason, Warnings};
use crate::pod::Pod;
use crate::policy::Policy;
use crate::values::switch;

use super::probes::Rewritten;
pub(crate) use super::probes::{Exposed, Relay};

/// How the pod's connections are redirected.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Transparent {
    /// The address by which transparent clients know the service, besides Consul's.
    pub(crate) virtual_address: Option<VirtualAddress>,
    /// Ports of the pod that are reached directly.
    pub(crate) inbound_ports: Vec<u16>,
    /// Ports that the pod reaches directly.
    pub(crate) outbound_ports: Vec<u16>,
    /// Addresses that the pod reaches directly, besides its node's.
    pub(crate) outbound_cidrs: Vec<Cidr>,
    /// Users whose connections are left alone, besides Envoy's.
    pub(crate) uids: Vec<u32>,
    /// Further services: the port of each, and that of its public listener.
    pub(crate) services: Vec<(u16, u16)>,
    /// Whether queries for names go to the sidecar.
    pub(crate) dns: bool,
    /// Paths that Envoy serves without mutual TLS, for probes.
    pub(crate) exposed: Vec<Exposed>,
    /// Probes that the sidecar runs over loopback.
    pub(crate) relay: Option<Relay>,
    /// The probes that are asked for there or at those paths.
    pub(crate) rewritten: Vec<Rewritten>,
}

/// An address by which transparent clients know a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VirtualAddress {
    /// As it is written.
    Address(SocketAddrV4),
    /// That of a Service of the pod's namespace.
    Service(String),
}

pub(super) const REASON: Reason = Reason::InvalidTransparentProxy;

/// The longest list of an annotation: each element is a rule of the kernel's.
const MOST: usize = 256;

/// What has an effect only where connections are redirected.
const SETTINGS: [&str; 7] = [
    annotation::VIRTUAL_ADDRESS,
    annotation::EXCLUDE_INBOUND_PORTS,
    annotation::EXCLUDE_OUTBOUND_PORTS,
    annotation::EXCLUDE_OUTBOUND_CIDRS,
    annotation::EXCLUDE_UIDS,
    annotation::OVERWRITE_PROBES,
    annotation::CONSUL_DNS,
];

/// Whether the pod's connections are redirected: by annotation, else by namespace or
/// flag. From then on, the ports of what redirects them are taken.
pub(super) fn is_wanted(
    pod: Pod<'_>,
    policy: &Policy,
    taken: &mut Taken<'_>,
    warnings: &mut Warnings,
) -> Result<bool, Denial> {
    let wanted = read(pod, annotation::TRANSPARENT_PROXY, REASON, switch)?;
    if !wanted.unwrap_or(policy.transparent_proxy) {
        for key in SETTINGS.into_iter().filter(|key| matches!(pod.annotation(key), Ok(Some(_)))) {
            // `consul-dns: "false"` asks for what is there.
            if pod.annotation(key).ok().flatten().and_then(crate::values::boolean) != Some(false) {
                warnings.push(|| {
                    let needed = annotation::TRANSPARENT_PROXY;
                    format!("annotation `{key}` has no effect without `{needed}: \"true\"`")
                });
            }
        }
        return Ok(false);
    }
    if policy.openshift {
        let problem = format!(
            "set annotation `{}` to \"false\": with --enable-openshift the cluster chooses the \
             user of Envoy, by which the redirect rules know its connections",
            annotation::TRANSPARENT_PROXY
        );
        return Err(Denial::new(REASON, problem));
    }
    taken.add(registration::pod::OUTBOUND_LISTENER_PORT, Owner::Outbound);
    if wants_dns(pod, policy)? {
        taken.add(crate::names::DNS_PORT, Owner::Dns);
    }
    Ok(true)
}

fn wants_dns(pod: Pod<'_>, policy: &Policy) -> Result<bool, Denial> {
    Ok(read(pod, annotation::CONSUL_DNS, REASON, switch)?.unwrap_or(policy.consul_dns))
}

/// Reads what goes past the sidecar, and rewrites probes. From then on, the
/// listeners of exposed paths are taken.
pub(super) fn transparent(
    pod: Pod<'_>,
    around: &Surroundings<'_>,
    (service, metrics, lifecycle): (&Service, Option<&Metrics>, &Lifecycle),
    taken: &mut Taken<'_>,
    policy: &Policy,
    warnings: &mut Warnings,
) -> Result<Transparent, Denial> {
    let named = around.named();
    let services: Vec<(u16, u16)> = (PUBLIC_LISTENER_PORT + 1..)
        .zip(&service.more)
        .map(|(listener, (_, port))| (*port, listener))
        .collect();
    let mut inbound_ports = list(pod, annotation::EXCLUDE_INBOUND_PORTS, |text| {
        let port = port::resolve(text, &named).map_err(|error| error.to_string())?;
        match services.iter().find(|(own, _)| *own == port) {
            Some(_) => Err(format!("port {port} is a further service's: it goes to its sidecar")),
            None => Ok(port),
        }
    })?;
    let outbound_ports = list(pod, annotation::EXCLUDE_OUTBOUND_PORTS, |text| {
        port::resolve(text, &[]).map_err(|error| error.to_string())
    })?;
    let outbound_cidrs = list(pod, annotation::EXCLUDE_OUTBOUND_CIDRS, |text| {
        text.parse::<Cidr>().map_err(|error| error.to_string())
    })?;
    let uids = list(pod, annotation::EXCLUDE_UIDS, |text| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let uid = digits.then(|| text.parse::<u32>().ok()).flatten();
        uid.ok_or_else(|| "expected the number of a user, such as `1000`".to_owned())
    })?;
    inbound_ports.extend(metrics.map(|metrics| metrics.port));
    let overwrites = read(pod, annotation::OVERWRITE_PROBES, REASON, switch)?;
    let mut found = probes::Probes::default();
    if overwrites.unwrap_or(policy.overwrite_probes) {
        found = probes::probes(around, lifecycle.first, &inbound_ports, taken, warnings)?;
    }
    inbound_ports.extend(found.excluded);
    inbound_ports.extend(found.exposed.iter().map(|exposed| exposed.listener));
    inbound_ports.extend(found.relay.as_ref().map(|relay| relay.port));
    inbound_ports.sort_unstable();
    inbound_ports.dedup();
    warn_of_pod_security(warnings);
    Ok(Transparent {
        virtual_address: virtual_address(pod)?,
        inbound_ports,
        outbound_ports,
        outbound_cidrs,
        uids,
        services,
        dns: wants_dns(pod, policy)?,
        exposed: found.exposed,
        relay: found.relay,
        rewritten: found.rewritten,
    })
}

/// PodSecurity looks at the pod after the webhooks do, and its Deployment tells
/// nobody. So it is said of each: a webhook doesn't know the namespace's level.
fn warn_of_pod_security(warnings: &mut Warnings) {
    warnings.push(|| {
        format!(
            "use a namespace of PodSecurity level `privileged`: `baseline` and `restricted` refuse \
             the capability NET_ADMIN of container `{REDIRECT}`, and the pod with it; or set `{}: \
             \"false\"`",
            annotation::TRANSPARENT_PROXY
        )
    });
}

/// The elements of a list, each read by `parse`; none if the annotation is absent.
fn list<T>(
    pod: Pod<'_>,
    key: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, Denial> {
    let read_all = |value: &str| {
        if value.trim().is_empty() {
            return Ok(Vec::new());
        }
        let count = value.split(',').count();
        if count > MOST {
            return Err(format!("{count} elements: at most {MOST}"));
        }
        let read_one = |(index, element): (usize, &str)| {
            parse(element.trim()).map_err(|problem| format!("element {index}: {problem}"))
        };
        (1..).zip(value.split(',')).map(read_one).collect()
    };
    Ok(read(pod, key, REASON, read_all)?.unwrap_or_default())
}

/// The address of the annotation; none: Consul's own only.
fn virtual_address(pod: Pod<'_>) -> Result<Option<VirtualAddress>, Denial> {
    let parse = |value: &str| {
        if value == "none" {
            return Ok(None);
        }
        let form = || "expected an IPv4 address and a port, such as `10.96.0.10:80`, `service:NAME` or `none`";
        if let Some(name) = value.strip_prefix("service:") {
            // As Kubernetes names Services.
            let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            let is_name = (1..=63).contains(&name.len()) && name.chars().all(legal);
            let service = is_name.then(|| VirtualAddress::Service(name.to_owned()));
            return service.map(Some).ok_or_else(|| form().to_owned());
        }
        let address: SocketAddrV4 = value.parse().map_err(|_| form().to_owned())?;
        let ip = address.ip();
        if address.port() == 0 {
            return Err(form().to_owned());
        }
        if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() {
            return Err(format!("nobody is reached at {ip}: expected the address of a Service"));
        }
        Ok(Some(VirtualAddress::Address(address)))
    };
    Ok(read(pod, annotation::VIRTUAL_ADDRESS, REASON, parse)?.flatten())
}

/// An upstream takes the virtual address of its service away: only the upstream's
/// port leads there.
pub(super) fn warn_of_upstreams(upstreams: &[registration::Upstream], warnings: &mut Warnings) {
    if let Some(upstream) = upstreams.first() {
        warnings.push(|| {
            format!(
                "call `{0}` at its local port {1}, or remove it from `{2}`: an upstream takes \
                 the virtual address of its service away",
                upstream.destination_name,
                upstream.local_bind_port,
                annotation::UPSTREAMS
            )
        });
    }
}

// === impl Transparent ===

impl Transparent {
    /// The arguments of `connect-redirect apply`. `$(HOST_IP)` is the node's agent.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut add = |flag: &str, values: Vec<String>| {
            if !values.is_empty() {
                arguments.push(format!("--{flag}={}", values.join(",")));
            }
        };
        let cidrs = self.outbound_cidrs.iter().map(ToString::to_string);
        add(
            "exclude-outbound-cidr",
            std::iter::once("$(HOST_IP)".to_owned()).chain(cidrs).collect(),
        );
        add("exclude-outbound-port", texts(&self.outbound_ports));
        add("exclude-inbound-port", texts(&self.inbound_ports));
        add("exclude-uid", texts(&self.uids));
        let services = self.services.iter().map(|(port, listener)| format!("{port}={listener}"));
        add("service", services.collect());
        let localhost = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
        let dns = self.dns.then(|| format!("{localhost}:{}", crate::names::DNS_PORT));
        add("consul-dns", dns.into_iter().collect());
        arguments
    }
}

impl fmt::Display for VirtualAddress {
    /// As `connect-init --virtual` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Service(name) => write!(f, "service:{name}"),
        }
    }
}

fn texts<T: ToString>(numbers: &[T]) -> Vec<String> {
    numbers.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::Plan;
    use crate::plan::tests::plan_in;
    use crate::policy::Cluster;
    use crate::policy::tests::{policy, policy_of};

    fn planned(annotations: &Value, policy: &Policy) -> Result<(Plan, Vec<String>), Denial> {
        let ports = json!([{"containerPort": 8080, "name": "http"}, {"containerPort": 9102}]);
        let pod = json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "app", "ports": ports}]}});
        plan_in(&pod, policy, &Cluster::default())
    }

    #[test]
    fn the_annotation_wins_over_the_flag() {
        let on = policy_of(&["--default-transparent-proxy"]);
        let is_transparent = |annotations: Value, policy: &Policy| {
            planned(&annotations, policy).unwrap().0.transparent.is_some()
        };
        let key = annotation::TRANSPARENT_PROXY;
        assert!(!is_transparent(json!({}), &policy()));
        assert!(is_transparent(json!({key: "true"}), &policy()));
        assert!(is_transparent(json!({}), &on));
        assert!(!is_transparent(json!({key: "false"}), &on));
    }

    #[test]
    fn what_goes_past_the_sidecar() {
        let (plan, warnings) = planned(
            &json!({
                annotation::TRANSPARENT_PROXY: "true",
                annotation::EXCLUDE_INBOUND_PORTS: "9102, http",
                annotation::EXCLUDE_OUTBOUND_PORTS: "5432,6379",
                annotation::EXCLUDE_OUTBOUND_CIDRS: "10.0.0.0/8, fd00::/8,192.168.0.1",
                annotation::EXCLUDE_UIDS: "1000",
                annotation::CONSUL_DNS: "true",
                annotation::METRICS: "true",
                annotation::VIRTUAL_ADDRESS: "10.96.0.10:80",
            }),
            &policy(),
        )
        .unwrap();
        let transparent = plan.transparent.unwrap();
        assert_eq!(
            transparent.arguments(),
            [
                "--exclude-outbound-cidr=$(HOST_IP),10.0.0.0/8,fd00::/8,192.168.0.1",
                "--exclude-outbound-port=5432,6379",
                "--exclude-inbound-port=8080,9102,20200",
                "--exclude-uid=1000",
                "--consul-dns=127.0.0.1:8653",
            ]
        );
        assert_eq!(transparent.virtual_address.unwrap().to_string(), "10.96.0.10:80");
        let [warning] = &warnings[..] else { panic!("{warnings:?}") };
        assert!(warning.contains("`baseline` and `restricted` refuse"), "{warning}");
        assert!(warning.len() <= 256, "kubectl cuts it: {}", warning.len());
    }

    #[test]
    fn further_services_go_to_sidecars_of_their_own() {
        let annotations = json!({
            annotation::TRANSPARENT_PROXY: "true",
            annotation::SERVICE: "web,web-admin", annotation::SERVICE_PORT: "8080,9102",
        });
        let (plan, _) = planned(&annotations, &policy()).unwrap();
        let arguments = plan.transparent.unwrap().arguments();
        assert_eq!(arguments[1..], ["--service=9102=20001"]);
    }

    #[test]
    fn what_cannot_be_understood_is_denied() {
        let many = vec!["1"; 257].join(",");
        for (key, value, problem) in [
            (annotation::TRANSPARENT_PROXY, "yes", "`true` or `false`"),
            (annotation::EXCLUDE_INBOUND_PORTS, "0", "element 1"),
            (annotation::EXCLUDE_INBOUND_PORTS, "grpc", "there are: http"),
            (annotation::EXCLUDE_OUTBOUND_PORTS, "80,http", "element 2"),
            (annotation::EXCLUDE_OUTBOUND_PORTS, "80,", "element 2"),
            (annotation::EXCLUDE_OUTBOUND_PORTS, &many, "257 elements: at most 256"),
            (annotation::EXCLUDE_OUTBOUND_CIDRS, "10.0.0.0/33", "element 1"),
            (annotation::EXCLUDE_UIDS, "root", "such as `1000`"),
            (annotation::EXCLUDE_UIDS, "+1", "such as `1000`"),
            (annotation::OVERWRITE_PROBES, "", "`true` or `false`"),
            (annotation::CONSUL_DNS, "on", "`true` or `false`"),
            (annotation::VIRTUAL_ADDRESS, "10.96.0.10", "such as `10.96.0.10:80`"),
            (annotation::VIRTUAL_ADDRESS, "service:a.b", "`service:NAME`"),
            (annotation::VIRTUAL_ADDRESS, "[fd00::1]:80", "such as `10.96.0.10:80`"),
            (annotation::VIRTUAL_ADDRESS, "127.0.0.1:80", "nobody is reached"),
        ] {
            let mut annotations = json!({annotation::TRANSPARENT_PROXY: "true"});
            annotations[key] = value.into();
            let denial = planned(&annotations, &policy()).unwrap_err();
            assert_eq!(denial.reason, REASON);
            assert!(denial.message.contains(problem), "{}", denial.message);
        }
        let openshift = policy_of(&["--enable-openshift"]);
        let asked = json!({annotation::TRANSPARENT_PROXY: "true"});
        assert!(planned(&asked, &openshift).unwrap_err().message.contains("--enable-openshift"));
        let taken = json!({
            annotation::TRANSPARENT_PROXY: "true", annotation::UPSTREAMS: "db:15001",
        });
        let denial = planned(&taken, &policy()).unwrap_err();
        assert!(denial.message.contains("Envoy's outbound listener"), "{}", denial.message);
        let further = json!({
            annotation::TRANSPARENT_PROXY: "true", annotation::EXCLUDE_INBOUND_PORTS: "9102",
            annotation::SERVICE: "web,web-admin", annotation::SERVICE_PORT: "8080,9102",
        });
        let denial = planned(&further, &policy()).unwrap_err();
        assert!(denial.message.contains("further service's"), "{}", denial.message);
    }

    #[test]
    fn settings_without_effect_are_warned_of() {
        let (plan, warnings) = planned(
            &json!({annotation::EXCLUDE_UIDS: "x", annotation::CONSUL_DNS: "false"}),
            &policy(),
        )
        .unwrap();
        assert_eq!(plan.transparent, None);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("exclude-uids` has no effect without"), "{warnings:?}");
        let upstream =
            json!({annotation::TRANSPARENT_PROXY: "true", annotation::UPSTREAMS: "db:1"});
        let (_, warnings) = planned(&upstream, &policy()).unwrap();
        assert!(warnings.iter().any(|it| it.contains("call `db` at its local port 1")));
    }
}
