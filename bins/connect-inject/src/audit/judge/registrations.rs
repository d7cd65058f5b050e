//! Compares registrations with the pods that they name.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::super::finding::{Code, Finding};
use super::super::snapshot::{Pod, PodKey, Registration, Snapshot};
use super::{Judging, some};

const KIND: &str = "Registration";

pub(super) fn judge(seen: &Snapshot, by: Judging<'_>) -> Vec<Finding> {
    let Some(pods) = &seen.pods else { return Vec::new() };
    let by_address: HashMap<&str, &PodKey> = pods
        .iter()
        .filter(|(_, pod)| !pod.ended)
        .flat_map(|(key, pod)| pod.ips.iter().map(move |ip| (ip.as_str(), key)))
        .collect();
    let mut findings = Vec::new();
    let ours = || seen.registrations.iter().filter(|registration| registration.is_ours());
    for registration in ours().filter(|registration| by.reads(&registration.pod.0)) {
        let pod = pods.get(&registration.pod).filter(|pod| !pod.ended);
        let found = match pod {
            None => orphaned(seen, registration, &by_address),
            Some(pod) if pod.ends || by.is_young(pod) => None,
            Some(pod) => misplaced(seen, registration, pod),
        };
        findings.extend(found.map(|finding| {
            finding.within(&registration.pod.0).on(seen.name_of_node(&registration.node))
        }));
    }
    findings.extend(unregistered(seen, pods, by));
    findings.extend(shared(ours().filter(|registration| pods.contains_key(&registration.pod))));
    findings
}

impl Judging<'_> {
    fn reads(&self, namespace: &str) -> bool {
        self.namespace.is_none_or(|read| read == namespace)
    }

    fn is_young(&self, pod: &Pod) -> bool {
        self.now - pod.created < self.grace
    }
}

/// Judges a registration without a pod. Ignores nodes that are not in this cluster, because
/// another cluster may share the Consul.
fn orphaned(
    seen: &Snapshot,
    registration: &Registration,
    by_address: &HashMap<&str, &PodKey>,
) -> Option<Finding> {
    seen.node_of(&registration.node)?;
    let is_critical =
        registration.heartbeat.as_ref().is_some_and(|(status, _)| status == "critical");
    if is_critical && seen.is_alive(&registration.node) {
        // The agent is about to deregister it.
        return None;
    }
    let (namespace, pod) = &registration.pod;
    let taken = by_address.get(registration.address.as_str());
    let taken = taken.map(|(namespace, name)| {
        format!(", and its address {} now belongs to {namespace}/{name}", registration.address)
    });
    let agent =
        if seen.is_alive(&registration.node) { "" } else { "; the node's agent is unreachable" };
    Some(Finding::new(Code::RegistrationOrphaned, KIND, &registration.id).saying(format_args!(
        "its pod {namespace}/{pod} is gone{}{agent}",
        taken.unwrap_or_default()
    )))
}

/// Judges the registration of a running pod: its address, its node and its TTL check.
fn misplaced(seen: &Snapshot, registration: &Registration, pod: &Pod) -> Option<Finding> {
    let found = |code| Finding::new(code, KIND, &registration.id);
    if !pod.ips.is_empty() && !pod.ips.contains(&registration.address) {
        return Some(found(Code::RegistrationStaleAddress).saying(format_args!(
            "it has the address {}, but its pod has {}",
            registration.address,
            pod.ips.join(", ")
        )));
    }
    if let Some((node, _)) = seen.node_of(&registration.node)
        && node != pod.node
    {
        return Some(found(Code::RegistrationWrongNode).saying(format_args!(
            "it is registered with the agent of {node}, but its pod is on {}",
            pod.node
        )));
    }
    let (status, output) = registration.heartbeat.as_ref()?;
    let code = match status.as_str() {
        "critical" => Code::SidecarCritical,
        // connect-lifecycle sets this status for no other reason.
        "warning" => Code::SidecarCertificateEnds,
        _ => return None,
    };
    let is_told_once = registration.is_proxy && seen.is_alive(&registration.node);
    is_told_once.then(|| found(code).saying(format_args!("its TTL check says: {}", output.trim())))
}

fn unregistered(seen: &Snapshot, pods: &BTreeMap<PodKey, Pod>, by: Judging<'_>) -> Vec<Finding> {
    // If ACLs hide some registrations, a missing one proves nothing.
    if !seen.all_registrations {
        return Vec::new();
    }
    let ids: HashSet<&str> =
        seen.registrations.iter().map(|registration| registration.id.as_str()).collect();
    let mut findings = Vec::new();
    for (key, pod) in pods {
        let Some(sidecar) = &pod.sidecar else { continue };
        if pod.ends || pod.ended || pod.ips.is_empty() || by.is_young(pod) {
            continue;
        }
        let (namespace, name) = key;
        let missing: Vec<String> = sidecar
            .services
            .iter()
            .filter(|service| {
                let id = format!("{namespace}_{name}_{service}");
                let proxy = format!("{id}-sidecar-proxy");
                !ids.contains(id.as_str()) || !ids.contains(proxy.as_str())
            })
            .cloned()
            .collect();
        if !missing.is_empty() {
            findings.push(
                Finding::new(Code::PodUnregistered, "Pod", name)
                    .within(namespace)
                    .on(&pod.node)
                    .saying(format_args!("no agent has its service {}", some(&missing))),
            );
        }
    }
    findings
}

/// Services with instances in several Kubernetes namespaces.
fn shared<'a>(registrations: impl Iterator<Item = &'a Registration>) -> Vec<Finding> {
    let mut namespaces: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for registration in registrations.filter(|registration| !registration.is_proxy) {
        namespaces.entry(&registration.service).or_default().insert(&registration.pod.0);
    }
    namespaces
        .into_iter()
        .filter(|(_, namespaces)| namespaces.len() > 1)
        .map(|(service, namespaces)| {
            let namespaces: Vec<String> = namespaces.into_iter().map(str::to_owned).collect();
            Finding::new(Code::ServiceShared, "Service", service).saying(format_args!(
                "pods of the namespaces {} are instances of it: each gets traffic meant for the \
                 others",
                some(&namespaces)
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::snapshot::{AgentNode, Node, Sidecar};
    use super::*;
    use crate::policy::Cluster;
    use crate::policy::tests::policy_of;

    const NOW: i64 = 10_000;

    fn judged(seen: &Snapshot) -> Vec<Code> {
        findings(seen).into_iter().map(|finding| finding.code).collect()
    }

    fn findings(seen: &Snapshot) -> Vec<Finding> {
        let (policy, cluster) = (policy_of(&[]), Cluster::default());
        let by = Judging { now: NOW, grace: 120, ..Judging::of(&policy, &cluster) };
        judge(seen, by)
    }

    fn key(name: &str) -> PodKey {
        ("shop".to_owned(), name.to_owned())
    }

    fn pair(pod: &str, address: &str, node: &str) -> [Registration; 2] {
        let service = Registration {
            node: node.to_owned(),
            id: format!("shop_{pod}_web"),
            service: "web".to_owned(),
            address: address.to_owned(),
            pod: key(pod),
            heartbeat: Some(("passing".to_owned(), String::new())),
            ..Registration::default()
        };
        let proxy = Registration {
            id: format!("shop_{pod}_web-sidecar-proxy"),
            service: "web-sidecar-proxy".to_owned(),
            is_proxy: true,
            destination: "web".to_owned(),
            ..service.clone()
        };
        [service, proxy]
    }

    /// Two nodes, and a pod with its two registrations (service and sidecar).
    fn healthy() -> Snapshot {
        let node = |address: &str| Node {
            addresses: vec![address.to_owned()],
            ready: true,
            ..Node::default()
        };
        let agent = |address: &str| AgentNode {
            address: address.to_owned(),
            alive: true,
            ..AgentNode::default()
        };
        let pod = Pod {
            node: "n1".to_owned(),
            ips: vec!["10.1.0.7".to_owned()],
            created: NOW - 1000,
            sidecar: Some(Sidecar { services: vec!["web".to_owned()], ..Sidecar::default() }),
            ..Pod::default()
        };
        Snapshot {
            pods: Some(BTreeMap::from([(key("web-0"), pod)])),
            nodes: Some(BTreeMap::from([
                ("n1".to_owned(), node("10.0.0.1")),
                ("n2".to_owned(), node("10.0.0.2")),
            ])),
            agents: Some(BTreeMap::from([
                ("n1".to_owned(), agent("10.1.0.2")),
                ("agent-2".to_owned(), agent("10.0.0.2")),
            ])),
            registrations: pair("web-0", "10.1.0.7", "n1").into(),
            all_registrations: true,
            ..Snapshot::default()
        }
    }

    fn pod(seen: &mut Snapshot) -> &mut Pod {
        seen.pods.as_mut().unwrap().get_mut(&key("web-0")).unwrap()
    }

    #[test]
    fn a_healthy_pod_causes_no_finding() {
        assert_eq!(judged(&healthy()), []);
    }

    /// Dead pods stayed registered. Reported in
    /// <https://github.com/hashicorp/consul-k8s/issues/2491>.
    #[test]
    fn a_registration_whose_pod_is_gone_is_found() {
        let mut seen = healthy();
        seen.registrations.extend(pair("web-1", "10.1.0.7", "agent-2"));
        let found = findings(&seen);
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|finding| finding.code == Code::RegistrationOrphaned));
        assert!(
            found[0].detail.contains("10.1.0.7 now belongs to shop/web-0"),
            "{}",
            found[0].detail
        );
        // The agent is about to deregister it.
        for registration in &mut seen.registrations[2..] {
            registration.heartbeat = Some(("critical".to_owned(), "TTL expired".to_owned()));
        }
        assert_eq!(judged(&seen), []);
        // An unreachable agent deregisters nothing.
        seen.agents.as_mut().unwrap().get_mut("agent-2").unwrap().alive = false;
        assert_eq!(judged(&seen), [Code::RegistrationOrphaned; 2]);
    }

    /// Another Kubernetes cluster may share the Consul.
    #[test]
    fn a_registration_on_a_node_of_another_cluster_is_ignored() {
        let mut seen = healthy();
        let other =
            AgentNode { address: "10.9.0.1".to_owned(), alive: true, ..AgentNode::default() };
        seen.agents.as_mut().unwrap().insert("elsewhere".to_owned(), other);
        seen.registrations.extend(pair("web-1", "10.1.0.9", "elsewhere"));
        assert_eq!(judged(&seen), []);
    }

    /// Somebody registered it by hand, or another injector did.
    #[test]
    fn a_registration_with_our_meta_but_another_form_of_id_is_ignored() {
        let mut seen = healthy();
        let [mut service, _] = pair("web-1", "10.1.0.9", "n1");
        service.id = "web-1-web".to_owned();
        seen.registrations.push(service);
        assert_eq!(judged(&seen), []);
    }

    #[test]
    fn a_wrong_address_or_node_or_a_failing_ttl_check_is_found() {
        let mut seen = healthy();
        pod(&mut seen).ips = vec!["10.1.0.8".to_owned()];
        assert_eq!(judged(&seen), [Code::RegistrationStaleAddress; 2]);
        let mut seen = healthy();
        seen.registrations = pair("web-0", "10.1.0.7", "agent-2").into();
        assert_eq!(judged(&seen), [Code::RegistrationWrongNode; 2]);
        for (status, code) in
            [("critical", Code::SidecarCritical), ("warning", Code::SidecarCertificateEnds)]
        {
            let mut seen = healthy();
            for registration in &mut seen.registrations {
                registration.heartbeat = Some((status.to_owned(), "cut off".to_owned()));
            }
            let found = findings(&seen);
            assert_eq!(found.len(), 1);
            assert_eq!(
                (found[0].code, found[0].detail.as_str()),
                (code, "its TTL check says: cut off")
            );
        }
    }

    #[test]
    fn an_unregistered_pod_is_found_unless_it_is_starting_or_ending() {
        let mut seen = healthy();
        seen.registrations.pop();
        assert_eq!(judged(&seen), [Code::PodUnregistered]);
        for exempt in [
            |pod: &mut Pod| pod.created = NOW - 10,
            |pod: &mut Pod| pod.ends = true,
            |pod: &mut Pod| pod.ended = true,
            |pod: &mut Pod| pod.ips.clear(),
        ] {
            let mut seen = seen.clone();
            seen.registrations.clear();
            exempt(pod(&mut seen));
            assert_eq!(judged(&seen), []);
        }
        // The ACL token does not see all registrations.
        seen.all_registrations = false;
        assert_eq!(judged(&seen), []);
    }

    #[test]
    fn a_service_in_two_namespaces_is_found_once() {
        let mut seen = healthy();
        let other = ("bank".to_owned(), "web-0".to_owned());
        let theirs = pod(&mut seen).clone();
        seen.pods.as_mut().unwrap().insert(other.clone(), theirs);
        for mut registration in pair("web-0", "10.1.0.7", "n1") {
            registration.id = registration.id.replace("shop_", "bank_");
            registration.pod = other.clone();
            seen.registrations.push(registration);
        }
        let found = findings(&seen);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(found[0].code, Code::ServiceShared);
        assert!(found[0].detail.contains("bank, shop"), "{}", found[0].detail);
    }
}
