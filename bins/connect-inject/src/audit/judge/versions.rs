//! Finds incompatible releases of agents, Envoy and kubelets.

use std::collections::{BTreeMap, BTreeSet};

use consul::envoy_version;

use super::super::finding::{Code, Finding};
use super::super::snapshot::Snapshot;
use super::Judging;
use crate::values::Version;

pub(super) fn judge(seen: &Snapshot, by: Judging<'_>) -> Vec<Finding> {
    [agents(seen), envoys(seen), kubelets(seen, by)].concat()
}

/// Agents that are too old for the Envoys of the pods registered with them.
fn agents(seen: &Snapshot) -> Vec<Finding> {
    let of_pods: BTreeSet<&str> = seen
        .registrations
        .iter()
        .filter(|registration| registration.is_ours())
        .map(|registration| registration.node.as_str())
        .collect();
    let agents = seen.agents.iter().flatten();
    agents
        .filter(|(node, _)| of_pods.contains(node.as_str()))
        .filter_map(|(node, agent)| {
            let limits = envoy_version::limits_of(&agent.release)?;
            Some(Finding::new(Code::AgentTooOld, "Agent", node).on(node).saying(format_args!(
                "Consul {} {}",
                agent.release,
                limits.words()
            )))
        })
        .collect()
}

/// Envoy images that are older than every release that the agent supports. Newer releases
/// work with every agent that [`agents`] accepts.
fn envoys(seen: &Snapshot) -> Vec<Finding> {
    let supported = seen.supported_envoys.iter().filter_map(|text| envoy_version::release(text));
    let Some(oldest) = supported.min() else { return Vec::new() };
    let mut images: BTreeMap<&str, usize> = BTreeMap::new();
    let running = seen.pods.iter().flatten().filter(|(_, pod)| !pod.ended);
    for sidecar in running.filter_map(|(_, pod)| pod.sidecar.as_ref()) {
        *images.entry(&sidecar.envoy).or_default() += 1;
    }
    images
        .into_iter()
        .filter(|(image, _)| envoy_version::release(image).is_some_and(|release| release < oldest))
        .map(|(image, pods)| {
            Finding::new(Code::EnvoyUnsupported, "Image", image).saying(format_args!(
                "it is older than the oldest Envoy that the agent supports, {}.{}; pods with it: \
                 {pods}",
                oldest.0, oldest.1
            ))
        })
        .collect()
}

/// Kubelets that reject injected pods, because they don't know native sidecars.
fn kubelets(seen: &Snapshot, by: Judging<'_>) -> Vec<Finding> {
    if !by.knows_policy || by.policy.is_native(by.policy.sidecar_mode, by.cluster) != Ok(true) {
        return Vec::new();
    }
    let nodes = seen.nodes.iter().flatten();
    nodes
        .filter(|(_, node)| {
            let version: Result<Version, _> = node.kubelet.trim_start_matches('v').parse();
            version.is_ok_and(|version| version < Version::NATIVE_SIDECAR)
        })
        .map(|(name, node)| {
            Finding::new(Code::KubeletTooOld, "Node", name).on(name).saying(format_args!(
                "its kubelet is {}, but pods get native sidecars, which require {}",
                node.kubelet,
                Version::NATIVE_SIDECAR
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::snapshot::{AgentNode, Node, Pod, Registration, Sidecar};
    use super::*;
    use crate::policy::tests::{cluster, policy_of};

    fn codes(seen: &Snapshot, kubernetes: &str) -> Vec<Code> {
        let (policy, cluster) = (policy_of(&[]), cluster(kubernetes));
        let by = Judging::of(&policy, &cluster);
        judge(seen, by).into_iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn an_old_agent_is_found_if_pods_are_registered_with_it() {
        let agent = AgentNode { release: "1.11.11".to_owned(), ..AgentNode::default() };
        let mut seen = Snapshot {
            agents: Some(BTreeMap::from([("n1".to_owned(), agent)])),
            ..Snapshot::default()
        };
        assert_eq!(codes(&seen, "1.34"), []);
        seen.registrations.push(Registration {
            node: "n1".to_owned(),
            id: "shop_web-0_web".to_owned(),
            service: "web".to_owned(),
            pod: ("shop".to_owned(), "web-0".to_owned()),
            ..Registration::default()
        });
        assert_eq!(codes(&seen, "1.34"), [Code::AgentTooOld]);
    }

    #[test]
    fn an_envoy_that_is_too_old_for_the_agent_is_found_once() {
        let sidecar = |image: &str| Pod {
            sidecar: Some(Sidecar { envoy: image.to_owned(), ..Sidecar::default() }),
            ..Pod::default()
        };
        let pods = ["envoy:v1.20.0", "envoy:v1.20.0", "envoy:v1.40.0", "envoy:latest"];
        let pods = pods
            .iter()
            .enumerate()
            .map(|(n, image)| (("shop".to_owned(), n.to_string()), sidecar(image)));
        let seen = Snapshot {
            pods: Some(pods.collect()),
            supported_envoys: ["1.24.0", "1.21.5"].map(str::to_owned).into(),
            ..Snapshot::default()
        };
        assert_eq!(codes(&seen, "1.34"), [Code::EnvoyUnsupported]);
        let mut ended = seen;
        ended.pods.iter_mut().flatten().for_each(|(_, pod)| pod.ended = true);
        assert_eq!(codes(&ended, "1.34"), [], "Jobs that completed");
    }

    #[test]
    fn an_old_kubelet_is_found_where_sidecars_are_native() {
        let node = |kubelet: &str| Node { kubelet: kubelet.to_owned(), ..Node::default() };
        let seen = Snapshot {
            nodes: Some(BTreeMap::from([
                ("n1".to_owned(), node("v1.28.3")),
                ("n2".to_owned(), node("v1.34.4")),
            ])),
            ..Snapshot::default()
        };
        assert_eq!(codes(&seen, "1.34"), [Code::KubeletTooOld]);
        assert_eq!(codes(&seen, "1.28"), []);
    }
}
