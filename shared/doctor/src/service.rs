//! Judges a registered service by the agent's health checks.

use std::collections::BTreeMap;

use consul::answer::{AgentCheck, AgentService};
use consul::{Agent, Error};
use registration::Upstream;
use registration::pod::{application_id, lease_id, listener_id};
use registration::service::Kind;

use crate::PATIENCE;
use crate::finding::{Finding, Reason, Verdict, curl, word};

#[derive(Clone, Copy, Debug)]
pub struct Registered<'a> {
    pub service: &'a AgentService,
    /// The agent's checks of that service.
    pub checks: &'a [AgentCheck],
    /// All services of the agent by ID; `None` if unknown.
    pub all: Option<&'a BTreeMap<String, AgentService>>,
    /// The agent's node; `None` if unknown.
    pub node: Option<&'a str>,
}

/// The purpose of a check. The order is the precedence: if several checks fail, the first
/// role is the likely cause of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Maintenance,
    /// The TTL check that connect-lifecycle renews.
    Heartbeat,
    Application,
    /// A check that the user defined.
    Own,
    /// The check of Envoy's public listener.
    Listener,
    /// The alias check of a proxy's destination service.
    Destination,
}

/// Where a service runs, which decides on the next command.
enum Place<'a> {
    Pod { namespace: &'a str, name: &'a str },
    Machine,
}

/// Prefix of the id of a service's maintenance check.
///
/// Source: "Enable Maintenance Mode" of Consul's agent API.
const MAINTENANCE: &str = "_service_maintenance:";

/// ID of a node's maintenance check.
const NODE_MAINTENANCE: &str = "_node_maintenance";

/// Prefix of the agent's output for an expired TTL check.
const EXPIRED: &str = "TTL expired";

/// Checks a service. The verdict is `ok` if the service is not registered.
pub async fn examine_service(agent: &Agent, id: &str) -> Finding {
    let agent = &agent.within(PATIENCE);
    let service = match agent.service(id, None).await {
        Err(error) => return Finding::unknown(SERVICE, &error).of(id),
        Ok(None) => return Finding::ok(SERVICE, "not registered yet").of(id),
        Ok(Some(service)) => service,
    };
    match agent.checks().await {
        Err(error) => Finding::unknown(SERVICE, &error).of(id),
        Ok(checks) => {
            let checks: Vec<AgentCheck> =
                checks.into_values().filter(|check| check.service_id == id).collect();
            let node = agent.config().node.as_deref();
            let service = &AgentService { id: id.to_owned(), ..service };
            judge_service(Registered { service, checks: &checks, all: None, node })
        }
    }
}

const SERVICE: &str = "service";

pub fn judge_service(registered: Registered<'_>) -> Finding {
    let Registered { service, checks, all, node } = registered;
    let id = service.id.as_str();
    let found =
        |verdict, reason, detail: String| Finding::new(SERVICE, verdict, reason, detail).of(id);
    let place = Place::of(service, node);
    let proxy = service.proxy.as_ref().filter(|_| service.kind == Kind::ConnectProxy);
    let destination = proxy.map_or("", |proxy| proxy.destination_service_id.as_str());
    if !destination.is_empty() && all.is_some_and(|all| !all.contains_key(destination)) {
        let detail = format!("registered, but its destination service `{destination}` is not");
        return found(Verdict::Wrong, Reason::NoDestination, detail)
            .hint("the service was deregistered without its proxy: deregister the proxy, or register the service again")
            .next(format!("connect-register deregister --id {}", word(id)));
    }
    let failing = checks.iter().filter(|check| check.status != "passing");
    // Only the most likely cause is described; the others are counted.
    let worst =
        failing.clone().min_by_key(|check| (check.status != "critical", role_of(service, check)));
    if let Some(check) = worst {
        return judge_check(service, check, failing.count() - 1, &place);
    }
    let is_kept = checks.iter().any(|check| check.check_id == lease_id(id));
    let has_proxy = all.is_none_or(|all| all.values().any(|other| stands_for(other, id)));
    if is_kept && service.kind == Kind::Typical && !has_proxy {
        return found(
            Verdict::Wrong,
            Reason::NoProxy,
            "registered, but its sidecar proxy is not".to_owned(),
        )
        .hint("connect-lifecycle registers both again within seconds: see its log")
        .next(place.log_of_sidecar(service));
    }
    Finding::ok(SERVICE, format!("registered, {}", passing(checks.len()))).of(id)
}

/// Describes a number of checks that all pass.
fn passing(count: usize) -> String {
    match count {
        0 => "without checks".to_owned(),
        1 => "its check is passing".to_owned(),
        _ => format!("its {count} checks are passing"),
    }
}

/// Whether `other` is the proxy of the service with this ID.
fn stands_for(other: &AgentService, id: &str) -> bool {
    let proxy = other.proxy.as_ref();
    other.kind == Kind::ConnectProxy
        && proxy.is_some_and(|proxy| proxy.destination_service_id == id)
}

/// Judges a check that is not passing.
fn judge_check(
    service: &AgentService,
    check: &AgentCheck,
    others: usize,
    place: &Place<'_>,
) -> Finding {
    let AgentCheck { check_id, name, status, output, .. } = check;
    let id = word(&service.id);
    let (reason, hint, next) = match role_of(service, check) {
        Role::Maintenance => (
            Reason::Maintenance,
            "an operator took it out of service: no traffic is sent to it until maintenance is over",
            format!("consul maint -disable -service {id}"),
        ),
        Role::Heartbeat if status == "warning" => (
            Reason::CheckFailing,
            "connect-lifecycle warns of what is about to fail; the pod still gets traffic",
            place.log_of_sidecar(service),
        ),
        Role::Heartbeat => (
            Reason::NoHeartbeat,
            "connect-lifecycle renews this check while it runs: it has ended, hangs, or cannot reach the agent",
            place.log_of_sidecar(service),
        ),
        Role::Application => (
            Reason::ApplicationDown,
            "the application does not listen on the registered port: it is down, is still starting, or uses another port",
            place.application(service),
        ),
        Role::Listener => (
            Reason::EnvoyAway,
            "Envoy does not listen: it is down, gets no configuration over xDS (gRPC), or rejected the listener",
            place.envoy(service),
        ),
        Role::Destination => (
            Reason::DestinationDown,
            "the proxy's destination service is not passing: see its finding",
            format!("connect-register status {}", word(destination_of(service))),
        ),
        Role::Own if output.starts_with(EXPIRED) => (
            Reason::CheckFailing,
            "it was not renewed in time: the process that renews it has ended, or cannot reach the agent",
            all_of(&id),
        ),
        Role::Own => (
            Reason::CheckFailing,
            "a service with a critical check gets no traffic; with a warning, it still does",
            all_of(&id),
        ),
    };
    let verdict = if status == "critical" { Verdict::Wrong } else { Verdict::Warning };
    let called =
        if name.is_empty() || name == check_id { String::new() } else { format!(" ({name})") };
    let output = output.lines().next().unwrap_or_default();
    let said = if output.is_empty() { String::new() } else { format!(": {output}") };
    let more = if others == 0 { String::new() } else { format!("; {others} more not passing") };
    let detail = format!("check `{check_id}`{called} is {status}{said}{more}");
    let found = Finding::new(SERVICE, verdict, reason, detail).of(&service.id);
    Finding { check: check_id.clone(), ..found }.hint(hint).next(next)
}

fn all_of(id: &str) -> String {
    format!("connect-register status --output json {id}")
}

fn destination_of(service: &AgentService) -> &str {
    let proxy = service.proxy.as_ref();
    proxy.map_or(service.id.as_str(), |proxy| proxy.destination_service_id.as_str())
}

/// The purpose of a check. The checks of connect-init have known IDs; those that the agent
/// creates for a `sidecar_service` are recognized by their type. Names are free text.
fn role_of(service: &AgentService, check: &AgentCheck) -> Role {
    let AgentCheck { check_id, kind, .. } = check;
    let id = service.id.as_str();
    if check_id.starts_with(MAINTENANCE) {
        Role::Maintenance
    } else if *check_id == lease_id(id) {
        Role::Heartbeat
    } else if *check_id == application_id(id) {
        Role::Application
    } else if *check_id == listener_id(id) {
        Role::Listener
    } else if kind == "alias" {
        Role::Destination
    } else if kind == "tcp" && service.kind == Kind::ConnectProxy {
        Role::Listener
    } else {
        Role::Own
    }
}

/// A finding for checks that could not be read.
pub fn unknown_checks(error: &Error) -> Finding {
    Finding::unknown("checks", error)
}

/// Judges a node's own checks: if one is critical, no service of the node gets traffic.
/// `None` if all pass.
pub fn judge_node_checks<'a>(checks: impl IntoIterator<Item = &'a AgentCheck>) -> Option<Finding> {
    let of_node = checks.into_iter().filter(|check| check.service_id.is_empty());
    let failing = of_node.filter(|check| check.status == "critical");
    let AgentCheck { check_id, output, .. } =
        failing.min_by_key(|check| check.check_id != NODE_MAINTENANCE)?;
    let output = output.lines().next().unwrap_or_default();
    let said = if output.is_empty() { String::new() } else { format!(": {output}") };
    let detail = format!("check `{check_id}` of the node is critical{said}");
    let (reason, hint, next) = if check_id == NODE_MAINTENANCE {
        (
            Reason::Maintenance,
            "an operator took the node out of service: none of its services gets traffic until maintenance is over",
            "consul maint -disable".to_owned(),
        )
    } else {
        (
            Reason::CheckFailing,
            "none of the node's services gets traffic until it passes",
            "consul monitor".to_owned(),
        )
    };
    let found = Finding::new("node", Verdict::Wrong, reason, detail);
    Some(Finding { check: check_id.clone(), ..found }.hint(hint).next(next))
}

/// A finding for an upstream without healthy instances; `None` if it has some, or if their
/// number is unknown.
pub fn judge_upstream(
    agent: &Agent,
    proxy: &str,
    upstream: &Upstream,
    healthy: Option<usize>,
) -> Option<Finding> {
    if healthy != Some(0) {
        return None;
    }
    let Upstream { destination_name, datacenter, destination_peer, .. } = upstream;
    let mut path = format!("/v1/health/connect/{destination_name}");
    let mut place = String::new();
    for (key, what, value) in [("dc", "datacenter", datacenter), ("peer", "peer", destination_peer)]
    {
        if !value.is_empty() {
            let mark = if path.contains('?') { '&' } else { '?' };
            path = format!("{path}{mark}{key}={value}");
            place = format!(" in {what} {value}");
        }
    }
    let detail = format!("it is an upstream of `{proxy}`, but has no healthy instance{place}");
    Some(
        Finding::new("upstream", Verdict::Warning, Reason::NoInstances, detail)
            .of(destination_name)
            .hint("requests to it fail: it is not registered with a sidecar there, or its checks fail; with ACLs on, the token may not be allowed to see it")
            .next(format!(
                "{} | jq .",
                curl("--silent", &agent.config().address.to_string(), &path)
            )),
    )
}

// === impl Place ===

impl<'a> Place<'a> {
    /// Decides by the meta that connect-init writes. On a virtual machine, `pod-name` is the
    /// name of the node.
    fn of(service: &'a AgentService, node: Option<&str>) -> Self {
        let meta = |key: &str| service.meta.as_ref()?.get(key).map(String::as_str);
        match (meta("k8s-namespace"), meta("pod-name")) {
            (Some(namespace), Some(name)) if node != Some(name) => Self::Pod { namespace, name },
            _ => Self::Machine,
        }
    }

    fn log_of_sidecar(&self, service: &AgentService) -> String {
        match self {
            Self::Pod { namespace, name } => format!(
                "kubectl --namespace {} logs {} --container envoy-sidecar",
                word(namespace),
                word(name)
            ),
            Self::Machine => {
                let unit = format!("connect-sidecar@{}", name_of(service));
                format!("journalctl --lines 50 --unit {}", word(&unit))
            }
        }
    }

    fn application(&self, service: &AgentService) -> String {
        match self {
            Self::Pod { namespace, name } => format!(
                "kubectl --namespace {} logs {} --all-containers --tail 50",
                word(namespace),
                word(name)
            ),
            Self::Machine => {
                format!("ss --listening --tcp --numeric --processes 'sport = :{}'", service.port)
            }
        }
    }

    fn envoy(&self, service: &AgentService) -> String {
        match self {
            Self::Pod { .. } => self.log_of_sidecar(service),
            Self::Machine => format!(
                "connect-register status --admin-bind 127.0.0.1:19000 {}",
                word(&service.id)
            ),
        }
    }
}

/// The name of a service, or of a proxy's destination.
fn name_of(service: &AgentService) -> &str {
    let proxy = service.proxy.as_ref().map(|proxy| proxy.destination_service_name.as_str());
    proxy.filter(|name| !name.is_empty()).unwrap_or(&service.service)
}

#[cfg(test)]
mod tests {
    use registration::Proxy;

    use super::*;

    fn check(id: &str, status: &str) -> AgentCheck {
        AgentCheck { check_id: id.to_owned(), status: status.to_owned(), ..AgentCheck::default() }
    }

    fn service(id: &str) -> AgentService {
        AgentService {
            id: id.to_owned(),
            service: "web".to_owned(),
            port: 8080,
            ..AgentService::default()
        }
    }

    fn proxy(id: &str, destination: &str) -> AgentService {
        AgentService {
            kind: Kind::ConnectProxy,
            proxy: Some(Proxy {
                destination_service_id: destination.to_owned(),
                destination_service_name: "web".to_owned(),
                ..Proxy::default()
            }),
            ..service(id)
        }
    }

    fn judge(service: &AgentService, checks: &[AgentCheck]) -> Finding {
        judge_service(Registered { service, checks, all: None, node: Some("n1") })
    }

    /// A check's name is free text: a user's own check may be called `Pod Lease`.
    #[test]
    fn a_check_is_recognized_by_its_id() {
        let named =
            |id: &str, name: &str| AgentCheck { name: name.to_owned(), ..check(id, "critical") };
        for (check, reason) in [
            (named("web-1-lease", "other"), Reason::NoHeartbeat),
            (named("web-1-application", "other"), Reason::ApplicationDown),
            (named("mine", "Pod Lease"), Reason::CheckFailing),
            (named("web-2-lease", "Pod Lease"), Reason::CheckFailing),
            (named("_service_maintenance:web-1", "x"), Reason::Maintenance),
        ] {
            let found = judge(&service("web-1"), std::slice::from_ref(&check));
            assert_eq!((found.verdict, found.reason), (Verdict::Wrong, Some(reason)), "{found:?}");
            assert_eq!(found.check, check.check_id);
            assert!(found.hint.is_some() && found.next.is_some(), "{found:?}");
        }
    }

    #[test]
    fn a_ttl_check_with_a_warning_counts_as_renewed() {
        let found = judge(&service("web-1"), &[check("web-1-lease", "warning")]);
        assert_eq!((found.verdict, found.reason), (Verdict::Warning, Some(Reason::CheckFailing)));
    }

    /// Checks that the agent makes for a `sidecar_service` have ids such as
    /// `service:ID:1`.
    #[test]
    fn a_proxys_check_that_the_agent_created_is_recognized_by_its_type() {
        let typed = |kind: &str| AgentCheck {
            kind: kind.to_owned(),
            ..check("service:web-1-p:1", "critical")
        };
        let of = |service: &AgentService, kind| judge(service, &[typed(kind)]);
        let away = of(&proxy("web-1-p", "web-1"), "tcp");
        assert_eq!(away.reason, Some(Reason::EnvoyAway));
        assert!(away.next.unwrap().ends_with("--admin-bind 127.0.0.1:19000 web-1-p"));
        let down = of(&proxy("web-1-p", "web-1"), "alias");
        assert_eq!(down.reason, Some(Reason::DestinationDown));
        assert_eq!(down.next.unwrap(), "connect-register status web-1");
        assert_eq!(of(&service("web-1"), "tcp").reason, Some(Reason::CheckFailing));
    }

    #[test]
    fn the_most_likely_cause_is_reported() {
        let alias = AgentCheck { kind: "alias".to_owned(), ..check("a", "critical") };
        let checks = [
            alias,
            check("w", "warning"),
            check("web-1-p-listener", "critical"),
            check("web-1-p-lease", "critical"),
            check("p", "passing"),
        ];
        let found = judge(&proxy("web-1-p", "web-1"), &checks);
        assert_eq!(found.detail, "check `web-1-p-lease` is critical; 3 more not passing");
        let found = judge(&service("web-1"), &[check("w", "warning")]);
        assert_eq!((found.verdict, found.check.as_str()), (Verdict::Warning, "w"));
        let found = judge(&service("web-1"), &[check("p", "passing"), check("q", "passing")]);
        assert_eq!(found.detail, "registered, its 2 checks are passing");
        assert_eq!((found.verdict, found.reason, found.next), (Verdict::Ok, None, None));
    }

    #[test]
    fn a_service_without_its_proxy_or_a_proxy_without_its_service_is_found() {
        let judge = |service: &AgentService, checks: &[AgentCheck], all: &[AgentService]| {
            let all = all.iter().map(|each| (each.id.clone(), each.clone())).collect();
            judge_service(Registered { service, checks, all: Some(&all), node: None })
        };
        let (web, sidecar) = (service("web-1"), proxy("web-1-p", "web-1"));
        let lease = [check("web-1-lease", "passing")];
        let both = [web.clone(), sidecar.clone()];
        assert_eq!(judge(&web, &lease, &both).verdict, Verdict::Ok);
        assert_eq!(judge(&sidecar, &[], &both).verdict, Verdict::Ok);
        assert_eq!(judge(&web, &lease, &both[..1]).reason, Some(Reason::NoProxy));
        // Without a sidecar and a TTL check, it is an ordinary service.
        assert_eq!(judge(&web, &[], &both[..1]).verdict, Verdict::Ok);
        let dangling = judge(&sidecar, &[], &both[1..]);
        assert_eq!(dangling.reason, Some(Reason::NoDestination));
        assert_eq!(dangling.next.unwrap(), "connect-register deregister --id web-1-p");
    }

    #[test]
    fn the_next_command_depends_on_where_the_service_runs() {
        let meta = [("pod-name", "web-0"), ("k8s-namespace", "shop")];
        let meta = meta.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let pod = AgentService { meta: Some(meta), ..service("web-1") };
        let next = |service: &AgentService, node, id| {
            let checks = [check(id, "critical")];
            let found = judge_service(Registered { service, checks: &checks, all: None, node });
            found.next.unwrap()
        };
        assert_eq!(
            next(&pod, Some("n1"), "web-1-lease"),
            "kubectl --namespace shop logs web-0 --container envoy-sidecar"
        );
        // A machine: `pod-name` is the node's name.
        assert_eq!(
            next(&pod, Some("web-0"), "web-1-lease"),
            "journalctl --lines 50 --unit connect-sidecar@web"
        );
        assert_eq!(
            next(&service("web-1"), None, "web-1-application"),
            "ss --listening --tcp --numeric --processes 'sport = :8080'"
        );
    }

    #[test]
    fn a_critical_check_of_the_node_is_found_and_maintenance_comes_first() {
        let node = |id, status| check(id, status);
        let of_service = AgentCheck { service_id: "web".to_owned(), ..check("x", "critical") };
        assert_eq!(judge_node_checks(&[of_service, node("disk", "warning")]), None);
        let found = judge_node_checks(&[node("disk", "critical")]).unwrap();
        assert_eq!(found.reason, Some(Reason::CheckFailing));
        let both = [node("disk", "critical"), node("_node_maintenance", "critical")];
        let found = judge_node_checks(&both).unwrap();
        assert_eq!(found.reason, Some(Reason::Maintenance));
        assert_eq!(found.next.unwrap(), "consul maint -disable");
    }
}
