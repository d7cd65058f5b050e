//! Transparent proxy: how the pod's connections are redirected to its sidecar, and which
//! connections bypass the sidecar.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use redirect::Cidr;
use registration::pod::{OUTBOUND_LISTENER_PORT, PUBLIC_LISTENER_PORT};
use registration::port;

use super::taken::Owner;
use super::{Lifecycle, Metrics, Service, Surroundings, Taken, probes, read};
use crate::annotation;
use crate::names::{DNS_PORT, REDIRECT, USER};
use crate::outcome::{Denial, Reason, Warnings};
use crate::pod::Pod;
use crate::policy::{Policy, RedirectBy};
use crate::values::switch;

use super::probes::Rewritten;
pub(crate) use super::probes::{Exposed, Relay};

/// How the pod's connections are redirected to its sidecar.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Transparent {
    /// What loads the redirect rules.
    pub(crate) by: RedirectBy,
    /// Address at which transparent clients reach the service, besides Consul's own virtual
    /// address.
    pub(crate) virtual_address: Option<VirtualAddress>,
    /// Ports of the pod that clients reach directly.
    pub(crate) inbound_ports: Vec<u16>,
    /// Destination ports that the pod reaches directly.
    pub(crate) outbound_ports: Vec<u16>,
    /// Destination addresses that the pod reaches directly, besides its node's.
    pub(crate) outbound_cidrs: Vec<Cidr>,
    /// Users whose connections are not redirected, besides Envoy's.
    pub(crate) uids: Vec<u32>,
    /// For each additional service, its port and the port of its sidecar's public listener.
    pub(crate) services: Vec<(u16, u16)>,
    /// Whether DNS queries are redirected to the sidecar.
    pub(crate) dns: bool,
    /// Paths that Envoy serves without mutual TLS, for the kubelet's probes.
    pub(crate) exposed: Vec<Exposed>,
    /// Probes that the sidecar runs over loopback.
    pub(crate) relay: Option<Relay>,
    /// Probes that are changed to call the exposed paths or the relay.
    pub(crate) rewritten: Vec<Rewritten>,
}

/// An address at which transparent clients reach a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VirtualAddress {
    Address(SocketAddrV4),
    /// The cluster IP and port of this Service in the pod's namespace.
    Service(String),
}

pub(super) const REASON: Reason = Reason::InvalidTransparentProxy;

/// Maximum number of elements in an annotation, each of which becomes a rule in the kernel.
const MOST: usize = 256;

/// Annotations that have no effect unless connections are redirected.
const SETTINGS: [&str; 8] = [
    annotation::TRANSPARENT_PROXY_BY,
    annotation::VIRTUAL_ADDRESS,
    annotation::EXCLUDE_INBOUND_PORTS,
    annotation::EXCLUDE_OUTBOUND_PORTS,
    annotation::EXCLUDE_OUTBOUND_CIDRS,
    annotation::EXCLUDE_UIDS,
    annotation::OVERWRITE_PROBES,
    annotation::CONSUL_DNS,
];

/// Whether the pod's connections are redirected: as the annotation says, or else the
/// namespace's label or the flag. If so, marks Envoy's outbound listener and the sidecar's
/// DNS port as taken.
pub(super) fn is_wanted(
    pod: Pod<'_>,
    policy: &Policy,
    taken: &mut Taken<'_>,
    warnings: &mut Warnings,
) -> Result<bool, Denial> {
    let wanted = read(pod, annotation::TRANSPARENT_PROXY, REASON, switch)?;
    if !wanted.unwrap_or(policy.transparent_proxy) {
        warn_of_stale_redirect(pod, warnings);
        for key in SETTINGS.into_iter().filter(|key| matches!(pod.annotation(key), Ok(Some(_)))) {
            // `consul-dns: "false"` is harmless: DNS is off anyway.
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
            "set annotation `{}` to \"false\": the redirect rules recognize Envoy's connections by \
             its user, but with --enable-openshift the cluster chooses that user",
            annotation::TRANSPARENT_PROXY
        );
        return Err(Denial::new(REASON, problem));
    }
    taken.add(OUTBOUND_LISTENER_PORT, Owner::Outbound);
    if wants_dns(pod, policy)? {
        taken.add(DNS_PORT, Owner::Dns);
    }
    Ok(true)
}

fn wants_dns(pod: Pod<'_>, policy: &Policy) -> Result<bool, Denial> {
    Ok(read(pod, annotation::CONSUL_DNS, REASON, switch)?.unwrap_or(policy.consul_dns))
}

/// The connections that bypass the sidecar.
struct Excluded {
    inbound_ports: Vec<u16>,
    outbound_ports: Vec<u16>,
    outbound_cidrs: Vec<Cidr>,
    uids: Vec<u32>,
}

/// Reads which connections bypass the sidecar, and rewrites probes. Marks the ports of the
/// listeners for probes as taken.
pub(super) fn transparent(
    pod: Pod<'_>,
    around: &Surroundings<'_>,
    (service, metrics, lifecycle): (&Service, Option<&Metrics>, &Lifecycle),
    taken: &mut Taken<'_>,
    policy: &Policy,
    warnings: &mut Warnings,
) -> Result<Transparent, Denial> {
    let services: Vec<(u16, u16)> = (PUBLIC_LISTENER_PORT + 1..)
        .zip(&service.more)
        .map(|(listener, (_, port))| (*port, listener))
        .collect();
    distinct(service)?;
    let Excluded { mut inbound_ports, outbound_ports, outbound_cidrs, uids } =
        excluded(pod, around, &services)?;
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
    let by = read(pod, annotation::TRANSPARENT_PROXY_BY, REASON, str::parse)?;
    let by = by.unwrap_or(policy.transparent_proxy_by);
    if by == RedirectBy::InitContainer {
        warn_of_pod_security(warnings);
        warn_of_stale_redirect(pod, warnings);
    }
    let transparent = Transparent {
        by,
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
    };
    verifiable(&transparent)?;
    Ok(transparent)
}

/// Rejects two additional services with one port: its connections can go to one sidecar only,
/// and the other one's listener would get none.
fn distinct(service: &Service) -> Result<(), Denial> {
    for (index, (name, port)) in service.more.iter().enumerate() {
        let before = service.more.get(..index).unwrap_or_default();
        if let Some((other, _)) = before.iter().find(|(_, taken)| taken == port) {
            let problem = format!(
                "give the services `{other}` and `{name}` different ports: connections to port \
                 {port} of a transparent pod can be redirected to one sidecar only"
            );
            return Err(Denial::new(REASON, problem));
        }
    }
    Ok(())
}

/// Rejects redirect rules that `connect-redirect` or `connect-cni` would reject in the pod.
fn verifiable(transparent: &Transparent) -> Result<(), Denial> {
    let plan = transparent.plan();
    plan.check().map_err(|mistake| {
        let problem = format!("the redirect rules contradict each other: {mistake}");
        Denial::new(REASON, problem)
    })?;
    let witness = u32::try_from(transparent.witness()).ok();
    if transparent.by == RedirectBy::Cni && witness.and_then(|uid| plan.witness(uid)).is_none() {
        let problem = format!(
            "exclude fewer addresses with `{}`, or set `{}` to \"init-container\": to verify that \
             connect-cni has redirected the pod, `{REDIRECT}` needs an address that is not excluded",
            annotation::EXCLUDE_OUTBOUND_CIDRS,
            annotation::TRANSPARENT_PROXY_BY
        );
        return Err(Denial::new(REASON, problem));
    }
    Ok(())
}

/// Reads from the annotations which connections bypass the sidecar. `services` are the
/// additional services, as in [`Transparent::services`].
fn excluded(
    pod: Pod<'_>,
    around: &Surroundings<'_>,
    services: &[(u16, u16)],
) -> Result<Excluded, Denial> {
    let named = around.named();
    let inbound_ports = list(pod, annotation::EXCLUDE_INBOUND_PORTS, |text| {
        let port = port::resolve(text, &named).map_err(|error| error.to_string())?;
        match services.iter().find(|(own, _)| *own == port) {
            Some(_) => Err(format!(
                "port {port} is that of an additional service and cannot be excluded: its sidecar \
                 must receive the connections"
            )),
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
        uid.ok_or_else(|| "expected a numeric user ID, such as `1000`".to_owned())
    })?;
    Ok(Excluded { inbound_ports, outbound_ports, outbound_cidrs, uids })
}

/// PodSecurity checks the pod after the webhooks have changed it, and the user of a
/// Deployment does not see the rejection. So each transparent pod gets the warning: the
/// webhook doesn't know the level of the namespace.
fn warn_of_pod_security(warnings: &mut Warnings) {
    warnings.push(|| {
        format!(
            "use a namespace of PodSecurity level `privileged`: `baseline` and `restricted` reject \
             the pod, because container `{REDIRECT}` has capability NET_ADMIN; or set `{}: cni`",
            annotation::TRANSPARENT_PROXY_BY
        )
    });
}

/// `connect-cni` also obeys the annotation on a pod to which the injector did not add it, such
/// as one whose manifest was copied from a running pod.
fn warn_of_stale_redirect(pod: Pod<'_>, warnings: &mut Warnings) {
    let key = annotation::REDIRECT;
    if pod.annotations().is_some_and(|all| all.contains_key(key)) {
        warnings.push(|| {
            format!(
                "remove annotation `{key}`: on nodes with connect-cni, it redirects the pod's \
                 connections"
            )
        });
    }
}

/// Warns of init containers that run before Envoy: `connect-cni` redirects their connections,
/// too, but nothing listens yet.
pub(super) fn warn_of_early_containers(
    transparent: &Transparent,
    around: &Surroundings<'_>,
    lifecycle: &Lifecycle,
    warnings: &mut Warnings,
) {
    let mut init = around.init_containers.iter();
    let early = init.find(|init| !lifecycle.has_envoy(**init));
    if let Some(early) = early.filter(|_| transparent.by == RedirectBy::Cni) {
        warnings.push(|| {
            format!(
                "set `{}: native`, or `{}` to the user of init container `{}`: it runs before \
                 Envoy, and connect-cni redirects its connections",
                annotation::SIDECAR_MODE,
                annotation::EXCLUDE_UIDS,
                early.name
            )
        });
    }
}

/// Parses each element of a comma-separated list; empty if the annotation is absent.
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

/// Reads the address from the annotation; `None` for Consul's own virtual address only.
fn virtual_address(pod: Pod<'_>) -> Result<Option<VirtualAddress>, Denial> {
    let parse = |value: &str| {
        if value == "none" {
            return Ok(None);
        }
        let form = || "expected an IPv4 address and a port, such as `10.96.0.10:80`, `service:NAME` or `none`";
        if let Some(name) = value.strip_prefix("service:") {
            // The characters and lengths that Kubernetes allows in the name of a Service.
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
            return Err(format!(
                "{ip} cannot be the address of a Service: expected its cluster IP"
            ));
        }
        Ok(Some(VirtualAddress::Address(address)))
    };
    Ok(read(pod, annotation::VIRTUAL_ADDRESS, REASON, parse)?.flatten())
}

/// Warns of upstreams: a service that is an upstream is reached only at the upstream's local
/// port, no longer at the service's virtual address.
pub(super) fn warn_of_upstreams(upstreams: &[registration::Upstream], warnings: &mut Warnings) {
    if let Some(upstream) = upstreams.first() {
        warnings.push(|| {
            format!(
                "call `{0}` at its local port {1}, or remove it from `{2}`: a service that \
                 is an upstream cannot be reached at its virtual address",
                upstream.destination_name,
                upstream.local_bind_port,
                annotation::UPSTREAMS
            )
        });
    }
}

// === impl Transparent ===

impl Transparent {
    /// The redirect rules without the node's address, which is unknown until the pod is
    /// scheduled: `connect-redirect` or `connect-cni` adds it.
    pub(crate) fn plan(&self) -> redirect::Plan {
        let envoy = u32::try_from(USER).expect("a small number");
        redirect::Plan {
            inbound: PUBLIC_LISTENER_PORT,
            outbound: OUTBOUND_LISTENER_PORT,
            exclude_uids: std::iter::once(envoy).chain(self.uids.iter().copied()).collect(),
            exclude_inbound_ports: self.inbound_ports.clone(),
            exclude_outbound_ports: self.outbound_ports.clone(),
            exclude_outbound_cidrs: self.outbound_cidrs.clone(),
            services: self.services.iter().copied().collect(),
            dns: self.dns.then(|| SocketAddr::from((Ipv4Addr::LOCALHOST, DNS_PORT))),
        }
    }

    /// The annotation from which `connect-cni` loads the rules; `None` if an init container
    /// loads them.
    pub(crate) fn annotation(&self) -> Option<(&'static str, String)> {
        (self.by == RedirectBy::Cni).then(|| {
            let plan = serde_json::to_string(&self.plan()).expect("its keys are numbers");
            (annotation::REDIRECT, plan)
        })
    }

    /// The redirect rules as arguments of `connect-redirect`, without those that are its
    /// defaults. Excludes `$(HOST_IP)`, where the node's Consul agent listens.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let plan = self.plan();
        let mut arguments = Vec::new();
        let mut add = |flag: &str, values: Vec<String>| {
            if !values.is_empty() {
                arguments.push(format!("--{flag}={}", values.join(",")));
            }
        };
        let cidrs = texts(&plan.exclude_outbound_cidrs);
        add(
            "exclude-outbound-cidr",
            std::iter::once("$(HOST_IP)".to_owned()).chain(cidrs).collect(),
        );
        add("exclude-outbound-port", texts(&plan.exclude_outbound_ports));
        add("exclude-inbound-port", texts(&plan.exclude_inbound_ports));
        add("exclude-uid", texts(plan.exclude_uids.get(1..).unwrap_or_default()));
        let services = plan.services.iter().map(|(port, listener)| format!("{port}={listener}"));
        add("service", services.collect());
        add("consul-dns", plan.dns.iter().map(ToString::to_string).collect());
        arguments
    }

    /// User ID for `connect-redirect verify`: one whose connections are redirected.
    pub(crate) fn witness(&self) -> i64 {
        let is_redirected =
            |user: &i64| u32::try_from(*user).is_ok_and(|user| !self.uids.contains(&user));
        let candidates = (USER + 1..).take(self.uids.len() + 1);
        let mut redirected = candidates.filter(is_redirected);
        redirected.next().expect("there are more candidates than excluded users")
    }
}

impl fmt::Display for VirtualAddress {
    /// Formats the value of `connect-init --virtual`.
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
    fn the_annotation_takes_precedence_over_the_flag() {
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
    fn excluded_ports_addresses_and_users_become_arguments() {
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
        assert!(warning.contains("`baseline` and `restricted` reject"), "{warning}");
        assert!(warning.len() <= 256, "kubectl cuts it: {}", warning.len());
    }

    #[test]
    fn connect_cni_gets_the_rules_in_an_annotation() {
        let asked = |annotations: Value, policy: &Policy| {
            let (plan, warnings) = planned(&annotations, policy).unwrap();
            (plan.transparent.unwrap(), warnings)
        };
        let (on, by) = (annotation::TRANSPARENT_PROXY, annotation::TRANSPARENT_PROXY_BY);
        let by_cni = policy_of(&["--transparent-proxy-by=cni"]);
        let annotations = json!({
            on: "true", annotation::EXCLUDE_UIDS: "1000,5996", annotation::CONSUL_DNS: "true",
            annotation::EXCLUDE_OUTBOUND_CIDRS: "10.0.0.0/8",
            annotation::SERVICE: "web,web-admin", annotation::SERVICE_PORT: "8080,9102",
        });
        let (transparent, warnings) = asked(annotations, &by_cni);
        let (key, value) = transparent.annotation().unwrap();
        assert_eq!(key, annotation::REDIRECT);
        let plan: redirect::Plan = serde_json::from_str(&value).unwrap();
        assert_eq!(plan, transparent.plan());
        assert_eq!(plan.check(), Ok(()));
        assert_eq!(plan.exclude_uids, [5995, 1000, 5996]);
        assert_eq!(plan.services, [(9102, 20001)].into());
        assert_eq!(transparent.witness(), 5997);
        assert_eq!(warnings, [""; 0]);

        let (transparent, _) = asked(json!({on: "true", by: "init-container"}), &by_cni);
        assert_eq!(transparent.annotation(), None);
        let (transparent, _) = asked(json!({on: "true", by: "cni"}), &policy());
        assert!(transparent.annotation().is_some());
        assert_eq!(transparent.witness(), 5996);
    }

    #[test]
    fn a_copied_redirect_annotation_causes_a_warning() {
        for on in ["true", "false"] {
            let annotations =
                json!({annotation::TRANSPARENT_PROXY: on, annotation::REDIRECT: "{}"});
            let (_, warnings) = planned(&annotations, &policy()).unwrap();
            let said = format!("remove annotation `{}`", annotation::REDIRECT);
            assert!(warnings.iter().any(|it| it.contains(&said)), "{warnings:?}");
        }
        let by_cni = json!({annotation::TRANSPARENT_PROXY: "true", annotation::REDIRECT: "{}"});
        let (_, warnings) = planned(&by_cni, &policy_of(&["--transparent-proxy-by=cni"])).unwrap();
        assert_eq!(warnings, [""; 0]);
    }

    #[test]
    fn each_additional_service_is_redirected_to_its_own_sidecar() {
        let annotations = json!({
            annotation::TRANSPARENT_PROXY: "true",
            annotation::SERVICE: "web,web-admin", annotation::SERVICE_PORT: "8080,9102",
        });
        let (plan, _) = planned(&annotations, &policy()).unwrap();
        let arguments = plan.transparent.unwrap().arguments();
        assert_eq!(arguments[1..], ["--service=9102=20001"]);
    }

    #[test]
    fn invalid_settings_are_denied() {
        let many = vec!["1"; 257].join(",");
        for (key, value, problem) in [
            (annotation::TRANSPARENT_PROXY, "yes", "`true` or `false`"),
            (annotation::TRANSPARENT_PROXY_BY, "init", "`init-container` or `cni`"),
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
            (annotation::VIRTUAL_ADDRESS, "127.0.0.1:80", "cannot be the address"),
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
        assert!(denial.message.contains("an additional service"), "{}", denial.message);
        let twice = json!({
            annotation::TRANSPARENT_PROXY: "true",
            annotation::SERVICE: "a,b,c", annotation::SERVICE_PORT: "8080,9102,9102",
        });
        let denial = planned(&twice, &policy()).unwrap_err();
        assert!(denial.message.contains("`b` and `c` different ports"), "{}", denial.message);
    }

    /// Its redirect could not be verified, so it would never start.
    #[test]
    fn a_pod_without_outbound_redirect_needs_the_init_container() {
        let (on, by) = (annotation::TRANSPARENT_PROXY, annotation::TRANSPARENT_PROXY_BY);
        let all = |by_whom: &str| json!({on: "true", by: by_whom, annotation::EXCLUDE_OUTBOUND_CIDRS: "0.0.0.0/0"});
        let denial = planned(&all("cni"), &policy()).unwrap_err();
        assert_eq!(denial.reason, REASON);
        assert!(denial.message.contains(annotation::EXCLUDE_OUTBOUND_CIDRS), "{}", denial.message);
        assert!(planned(&all("init-container"), &policy()).is_ok());
    }

    /// The excluded port was denied only by the init container, again and again.
    #[test]
    fn a_probe_on_the_port_of_an_additional_service_is_denied_if_its_port_must_be_excluded() {
        let pod = json!({
            "metadata": {"annotations": {
                annotation::TRANSPARENT_PROXY: "true", annotation::SIDECAR_MODE: "container",
                annotation::SERVICE: "web,admin", annotation::SERVICE_PORT: "8080,9102",
            }},
            "spec": {
                "containers": [{"name": "app", "ports": [{"containerPort": 8080}, {"containerPort": 9102}]}],
                "initContainers": [{"name": "early", "restartPolicy": "Always",
                    "startupProbe": {"httpGet": {"path": "/", "port": 9102}}}],
            },
        });
        let denial = plan_in(&pod, &policy(), &Cluster::default()).unwrap_err();
        assert!(
            denial.message.contains("port 9102 is a service's and excluded"),
            "{}",
            denial.message
        );
    }

    #[test]
    fn settings_without_effect_cause_a_warning() {
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
