//! Removes registrations and ACL tokens whose pod is provably gone. Shows the plan, asks for
//! confirmation, and checks each of them again right before removing it.

use std::fmt;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::net::IpAddr;
use std::time::Duration;

use consul::agent::Deregistered;
use consul::catalog::LoginToken;
use consul::{Address, Agent, Config};
use runtime::Failure;

use super::finding::{Code, Finding};
use super::judge::{Judging, is_ownerless, pod_of};
use super::snapshot::{AgentNode, PodKey, Registration, Snapshot};
use super::{Settings, gather};
use crate::kubernetes::Refusal;

/// Timeout of each request to the agent of a node.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repair {
    /// Ask on the terminal before anything is removed.
    Ask,
    /// `--yes`: don't ask.
    Agreed,
}

/// A candidate for removal.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    Registration(Registration),
    Token(LoginToken, PodKey),
}

/// The result for an item: how it was removed, or why it was kept.
enum Done {
    Removed(String),
    Kept(String),
}

/// Removes the registrations and tokens of the findings whose pod is provably gone. Returns
/// the number of removed items.
///
/// # Errors
/// `--yes` is not set, and there is no terminal to ask on.
pub(super) async fn repair(
    settings: &Settings,
    seen: &Snapshot,
    findings: &[Finding],
    by: Judging<'_>,
    how: Repair,
) -> Result<usize, Failure> {
    let (plan, kept) = plan(seen, findings);
    for (item, why) in kept {
        tracing::warn!("kept {item}: {why}");
    }
    if plan.is_empty() {
        tracing::info!("nothing to remove");
        return Ok(0);
    }
    if !is_agreed(&plan, how)? {
        tracing::info!("nothing was removed");
        return Ok(0);
    }
    let again = Again { settings, seen, by };
    let mut count = 0;
    for item in plan {
        let done = match &item {
            Item::Registration(registration) => again.deregister(registration).await,
            Item::Token(token, pod) => again.delete(token, pod).await,
        };
        let done = done.unwrap_or_else(Done::Kept);
        match done {
            Done::Removed(how) => {
                count += 1;
                tracing::info!("removed {item}: {how}");
            }
            Done::Kept(why) => tracing::warn!("kept {item}: {why}"),
        }
    }
    Ok(count)
}

/// The items to remove, sidecars before their services; and the items to keep, with the
/// reason.
fn plan(seen: &Snapshot, findings: &[Finding]) -> (Vec<Item>, Vec<(Item, String)>) {
    let names = |code: Code, name: &str, namespace: &str, node: &str| {
        findings.iter().any(|finding| {
            finding.code == code
                && finding.name == name
                && finding.namespace == namespace
                && finding.node == node
        })
    };
    let registrations = seen.registrations.iter().filter(|registration| {
        let Registration { id, pod, node, .. } = registration;
        names(Code::RegistrationOrphaned, id, &pod.0, seen.name_of_node(node))
    });
    let tokens = seen.login.iter().flat_map(|login| &login.tokens).filter_map(|token| {
        let pod = pod_of(token)?;
        names(Code::TokenOrphaned, &token.accessor_id, &pod.0, "").then_some((token, pod))
    });
    let (mut sure, mut kept) = (Vec::new(), Vec::new());
    for registration in registrations {
        let item = Item::Registration(registration.clone());
        match why_not(seen, registration) {
            None => sure.push(item),
            Some(why) => kept.push((item, why)),
        }
    }
    sure.sort_by_key(|item| !matches!(item, Item::Registration(r) if r.is_proxy));
    for (token, pod) in tokens {
        let item = Item::Token(token.clone(), pod.clone());
        match why_not_token(seen, token, &pod) {
            None => sure.push(item),
            Some(why) => kept.push((item, why)),
        }
    }
    (sure, kept)
}

/// Why a registration may still belong to something; `None` if it provably doesn't.
fn why_not(seen: &Snapshot, registration: &Registration) -> Option<String> {
    if !registration.is_ours() {
        return Some(
            "its ID is not in the form of connect-init: something else registered it".to_owned(),
        );
    }
    let Some(pods) = &seen.pods else { return Some("pods cannot be read".to_owned()) };
    if pods.get(&registration.pod).is_some_and(|pod| !pod.ended) {
        return Some("its pod exists".to_owned());
    }
    let Some((name, node)) = seen.node_of(&registration.node) else {
        return Some("its node is not one of this cluster".to_owned());
    };
    if !node.ready {
        return Some(format!("the kubelet of {name} is unreachable: the pod may still run there"));
    }
    let is_renewed =
        registration.heartbeat.as_ref().is_some_and(|(status, _)| status != "critical");
    (is_renewed && seen.is_alive(&registration.node))
        .then(|| format!("its TTL check has not expired: the pod may still run on {name}"))
}

/// Why a pod's token may still be in use; `None` if it provably isn't. A token does not name
/// the pod's node, so all kubelets must be reachable.
fn why_not_token(seen: &Snapshot, token: &LoginToken, pod: &PodKey) -> Option<String> {
    let (Some(pods), Some(nodes)) = (&seen.pods, &seen.nodes) else {
        return Some("pods and nodes cannot be read".to_owned());
    };
    if !is_ownerless(token, pod, pods) {
        return Some("its pod exists".to_owned());
    }
    if let Some((name, _)) = nodes.iter().find(|(_, node)| !node.ready) {
        return Some(format!("the kubelet of {name} is unreachable: the pod may still run there"));
    }
    // If a pod of that name exists, the registration is that pod's.
    let is_registered = !pods.contains_key(pod)
        && seen.registrations.iter().any(|registration| registration.pod == *pod);
    is_registered.then(|| "its pod is still registered".to_owned())
}

/// Shows the plan and asks for confirmation.
fn is_agreed(plan: &[Item], how: Repair) -> Result<bool, Failure> {
    let mut stderr = std::io::stderr();
    for item in plan {
        // Nothing can be done about a closed stderr.
        let _ = writeln!(stderr, "would remove {item}");
    }
    if how == Repair::Agreed {
        return Ok(true);
    }
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::usage("--repair: no terminal to ask for confirmation on")
            .hint("check the list above, and add --yes"));
    }
    let _ = write!(stderr, "Remove these {}? [y/N] ", plan.len());
    let mut answer = String::new();
    let read = stdin.lock().read_line(&mut answer);
    Ok(read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Deregisters at the agent of the registration's node; `None` if the agent does not have it.
async fn at_the_agent(
    agent: &Agent,
    planned: &Registration,
) -> Result<Option<Done>, consul::Error> {
    let Some(held) = agent.service(&planned.id, None).await? else { return Ok(None) };
    let meta = held.meta.unwrap_or_default();
    let is_it = meta.get("pod-name") == Some(&planned.pod.1)
        && meta.get("k8s-namespace") == Some(&planned.pod.0)
        && held.address == planned.address;
    if !is_it {
        return Ok(Some(Done::Kept("the agent has another service with this ID".to_owned())));
    }
    Ok(match agent.deregister(&planned.id).await? {
        Deregistered::Gone => {
            Some(Done::Removed(format!("deregistered at the agent of {}", planned.node)))
        }
        Deregistered::WasUnknown => None,
    })
}

/// Checks each item again and removes it.
struct Again<'a> {
    settings: &'a Settings,
    /// The snapshot of the findings.
    seen: &'a Snapshot,
    by: Judging<'a>,
}

// === impl Again ===

impl Again<'_> {
    /// Deregisters at the agent of the registration's node or, if the agent can't be reached,
    /// in the catalog.
    ///
    /// # Errors
    /// Why the registration was kept.
    async fn deregister(&self, planned: &Registration) -> Result<Done, String> {
        let seen = self.look(planned).await?;
        let Some(now) = seen.registrations.iter().find(|now| now.id == planned.id) else {
            return Err("it no longer exists".to_owned());
        };
        if now.pod != planned.pod || now.address != planned.address {
            return Err("it was replaced in the meantime".to_owned());
        }
        if let Some(why) = why_not(&seen, now) {
            return Err(why);
        }
        let node = &planned.node;
        if let Some(agent) = self.agent_of(&seen, planned) {
            match at_the_agent(&agent, planned).await {
                Ok(Some(done)) => return Ok(done),
                Ok(None) => {}
                Err(error) if error.is_no_answer() => {
                    tracing::debug!("the agent of {node} cannot be reached: {error}");
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        let removed = self.settings.agent.deregister_from_catalog(node, &planned.id).await;
        removed.map_err(|error| error.to_string())?;
        Ok(Done::Removed(format!(
            "deregistered from the catalog; if the agent of {node} still has it, the agent \
             registers it again"
        )))
    }

    /// The current state of everything that decides about a registration.
    async fn look(&self, planned: &Registration) -> Result<Snapshot, String> {
        let Some((name, _)) = self.seen.node_of(&planned.node) else {
            return Err("its node is not one of this cluster".to_owned());
        };
        let pod = gather::pod(self.settings, &planned.pod, self.by).await.map_err(words)?;
        let node = gather::node(self.settings, name).await.map_err(words)?;
        let (registrations, alive, _) = gather::registrations_of(self.settings, &planned.node)
            .await
            .map_err(|error| error.to_string())?;
        let agents = self.seen.agents.as_ref();
        let known = agents.and_then(|agents| agents.get(&planned.node)).cloned();
        let agent = AgentNode { alive, ..known.unwrap_or_default() };
        Ok(Snapshot {
            pods: Some(pod.map(|pod| (planned.pod.clone(), pod)).into_iter().collect()),
            nodes: Some(node.map(|node| (name.to_owned(), node)).into_iter().collect()),
            agents: Some([(planned.node.clone(), agent)].into()),
            registrations,
            ..Snapshot::default()
        })
    }

    /// The agent of a registration's node, at the address that pods of that node use; `None`
    /// if the address is unknown.
    fn agent_of(&self, seen: &Snapshot, planned: &Registration) -> Option<Agent> {
        let (name, node) = seen.node_of(&planned.node)?;
        let host = node.addresses.iter().find_map(|address| address.parse::<IpAddr>().ok())?;
        let host = if host.is_ipv6() { format!("[{host}]") } else { host.to_string() };
        let address = self.settings.policy.http_addr();
        let address = address.replace("$(HOST_IP)", &host).replace("$(NODE_NAME)", name);
        let config = Config {
            address: address.parse::<Address>().ok()?,
            token: self.settings.agent.token(),
            node: Some(name.to_owned()),
            ..self.settings.agent.config().clone()
        };
        Some(Agent::new(config).ok()?.within(PATIENCE))
    }

    /// Deletes a token.
    ///
    /// # Errors
    /// Why the token was kept.
    async fn delete(&self, planned: &LoginToken, key: &PodKey) -> Result<Done, String> {
        let agent = &self.settings.agent;
        let pod = gather::pod(self.settings, key, self.by).await.map_err(words)?;
        let nodes = gather::nodes(self.settings).await.map_err(words)?;
        let seen = Snapshot {
            pods: Some(pod.map(|pod| (key.clone(), pod)).into_iter().collect()),
            nodes: Some(nodes),
            ..Snapshot::default()
        };
        if let Some(why) = why_not_token(&seen, planned, key) {
            return Err(why);
        }
        let now = agent.login_token(&planned.accessor_id).await;
        match now.map_err(|error| error.to_string())? {
            None => return Err("it no longer exists".to_owned()),
            Some(now) if now.description != planned.description => {
                return Err("its description changed in the meantime".to_owned());
            }
            Some(_) => {}
        }
        agent.delete_token(&planned.accessor_id).await.map_err(|error| error.to_string())?;
        Ok(Done::Removed("deleted".to_owned()))
    }
}

/// Why something can't be read again.
fn words(refusal: Refusal) -> String {
    match refusal {
        Refusal::Denied(problem) | Refusal::Failed(problem) => problem,
        Refusal::Missing => "the API server does not know it".to_owned(),
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registration(Registration { id, node, .. }) => {
                write!(f, "registration {id} of node {node}")
            }
            Self::Token(token, (namespace, pod)) => {
                write!(f, "ACL token {} of pod {namespace}/{pod}", token.accessor_id)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::snapshot::{Login, Node, Pod};
    use super::*;

    fn pod() -> PodKey {
        ("shop".to_owned(), "web-0".to_owned())
    }

    fn registration() -> Registration {
        Registration {
            node: "n1".to_owned(),
            id: "shop_web-0_web".to_owned(),
            service: "web".to_owned(),
            pod: pod(),
            ..Registration::default()
        }
    }

    /// A registration and a token of a pod that is gone.
    fn seen() -> Snapshot {
        let ready = Node { ready: true, ..Node::default() };
        let alive = AgentNode { alive: true, ..AgentNode::default() };
        let token = LoginToken {
            accessor_id: "a".to_owned(),
            description: r#"token created via login: {"pod":"shop/web-0"}"#.to_owned(),
            ..LoginToken::default()
        };
        Snapshot {
            pods: Some(BTreeMap::new()),
            nodes: Some([("n1".to_owned(), ready)].into()),
            agents: Some([("n1".to_owned(), alive)].into()),
            registrations: vec![registration()],
            login: Some(Login { tokens: vec![token], ..Login::default() }),
            ..Snapshot::default()
        }
    }

    fn guarded(change: impl FnOnce(&mut Snapshot)) -> String {
        let mut seen = seen();
        change(&mut seen);
        why_not(&seen, &seen.registrations[0]).unwrap_or_default()
    }

    #[test]
    fn a_registration_whose_pod_is_gone_may_be_removed() {
        assert_eq!(guarded(|_| {}), "");
        let ended = Pod { ended: true, ..Pod::default() };
        assert_eq!(guarded(|seen| seen.pods = Some([(pod(), ended)].into())), "");
    }

    #[test]
    fn a_registration_that_may_be_in_use_is_kept() {
        let there = |seen: &mut Snapshot| seen.pods = Some([(pod(), Pod::default())].into());
        assert_eq!(guarded(there), "its pod exists");
        let away = |seen: &mut Snapshot| {
            seen.nodes.as_mut().unwrap().get_mut("n1").unwrap().ready = false;
        };
        assert!(guarded(away).contains("kubelet of n1 is unreachable"));
        let by_hand = |seen: &mut Snapshot| seen.registrations[0].id = "web".to_owned();
        assert!(guarded(by_hand).contains("something else registered it"));
        let elsewhere = |seen: &mut Snapshot| seen.nodes = Some(BTreeMap::new());
        assert_eq!(guarded(elsewhere), "its node is not one of this cluster");
        let renewed_as = |seen: &mut Snapshot, status: &str| {
            seen.registrations[0].heartbeat = Some((status.to_owned(), String::new()));
        };
        let renewed = |seen: &mut Snapshot| renewed_as(seen, "passing");
        assert!(guarded(renewed).contains("TTL check has not expired"));
        let warned = guarded(|seen| renewed_as(seen, "warning"));
        assert!(warned.contains("TTL check has not expired"), "{warned}");
        assert_eq!(guarded(|seen| seen.pods = None), "pods cannot be read");
        // Without its agent, a TTL check stays passing in the catalog.
        let stale = |seen: &mut Snapshot| {
            renewed(seen);
            seen.agents.as_mut().unwrap().get_mut("n1").unwrap().alive = false;
        };
        assert_eq!(guarded(stale), "");
    }

    #[test]
    fn a_token_that_may_be_in_use_is_kept() {
        let guarded = |change: &dyn Fn(&mut Snapshot)| {
            let mut seen = seen();
            seen.registrations.clear();
            change(&mut seen);
            let token = seen.login.as_ref().unwrap().tokens[0].clone();
            why_not_token(&seen, &token, &pod()).unwrap_or_default()
        };
        assert_eq!(guarded(&|_| {}), "");
        assert_eq!(
            guarded(&|seen| seen.pods = Some([(pod(), Pod::default())].into())),
            "its pod exists"
        );
        assert!(
            guarded(&|seen| seen.nodes.as_mut().unwrap().get_mut("n1").unwrap().ready = false)
                .contains("kubelet of n1 is unreachable")
        );
        assert_eq!(
            guarded(&|seen| seen.registrations.push(registration())),
            "its pod is still registered"
        );
    }

    #[test]
    fn only_findings_are_planned_and_sidecars_come_first() {
        let mut seen = seen();
        seen.registrations.push(Registration {
            id: "shop_web-0_web-sidecar-proxy".to_owned(),
            is_proxy: true,
            destination: "web".to_owned(),
            ..registration()
        });
        assert_eq!(plan(&seen, &[]), (Vec::new(), Vec::new()));
        // The pod has moved: its IDs are on another node, too.
        seen.nodes.as_mut().unwrap().insert("n2".to_owned(), Node::default());
        seen.registrations.push(Registration { node: "n2".to_owned(), ..registration() });
        let found = |code, name: &str| Finding::new(code, "x", name).within("shop");
        let findings = [
            found(Code::RegistrationOrphaned, "shop_web-0_web").on("n1"),
            found(Code::RegistrationOrphaned, "shop_web-0_web-sidecar-proxy").on("n1"),
            found(Code::TokenOrphaned, "a"),
        ];
        let (sure, kept) = plan(&seen, &findings);
        let names: Vec<String> = sure.iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "registration shop_web-0_web-sidecar-proxy of node n1",
                "registration shop_web-0_web of node n1",
            ]
        );
        assert_eq!(kept.len(), 1, "the token, whose pod is still registered");
    }
}
