//! Takes back what is provably nobody's: registrations and tokens of pods that are gone.
//! It shows a plan, asks, and looks again right before each act.

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

/// How long the agent of a node has to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repair {
    /// At the terminal, before anything is taken back.
    Ask,
    /// Not at all: `--yes`.
    Agreed,
}

/// What is to be taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    Registration(Registration),
    Token(LoginToken, PodKey),
}

/// What became of an item, in a sentence.
enum Done {
    Taken(String),
    Left(String),
}

/// Takes back what can be, of what was found. Returns how much was.
///
/// # Errors
/// Nobody can be asked.
pub(super) async fn repair(
    settings: &Settings,
    seen: &Snapshot,
    findings: &[Finding],
    by: Judging<'_>,
    how: Repair,
) -> Result<usize, Failure> {
    let (plan, left) = plan(seen, findings);
    for (item, why) in left {
        tracing::warn!("left {item}: {why}");
    }
    if plan.is_empty() {
        tracing::info!("nothing to take back");
        return Ok(0);
    }
    if !is_agreed(&plan, how)? {
        tracing::info!("nothing was taken back");
        return Ok(0);
    }
    let again = Again { settings, seen, by };
    let mut count = 0;
    for item in plan {
        let done = match &item {
            Item::Registration(registration) => again.take_back(registration).await,
            Item::Token(token, pod) => again.delete(token, pod).await,
        };
        let done = done.unwrap_or_else(Done::Left);
        match done {
            Done::Taken(how) => {
                count += 1;
                tracing::info!("took back {item}: {how}");
            }
            Done::Left(why) => tracing::warn!("left {item}: {why}"),
        }
    }
    Ok(count)
}

/// What of the findings is provably nobody's, sidecars before their services; and why the
/// rest is not.
fn plan(seen: &Snapshot, findings: &[Finding]) -> (Vec<Item>, Vec<(Item, String)>) {
    let names = |code: Code, name: &str, namespace: &str| {
        findings.iter().any(|finding| {
            finding.code == code && finding.name == name && finding.namespace == namespace
        })
    };
    let registrations = seen.registrations.iter().filter(|registration| {
        names(Code::RegistrationOrphaned, &registration.id, &registration.pod.0)
    });
    let tokens = seen.login.iter().flat_map(|login| &login.tokens).filter_map(|token| {
        let pod = pod_of(token)?;
        names(Code::TokenOrphaned, &token.accessor_id, &pod.0).then_some((token, pod))
    });
    let (mut sure, mut left) = (Vec::new(), Vec::new());
    for registration in registrations {
        let item = Item::Registration(registration.clone());
        match why_not(seen, registration) {
            None => sure.push(item),
            Some(why) => left.push((item, why)),
        }
    }
    sure.sort_by_key(|item| !matches!(item, Item::Registration(r) if r.is_proxy));
    for (token, pod) in tokens {
        let item = Item::Token(token.clone(), pod.clone());
        match why_not_token(seen, token, &pod) {
            None => sure.push(item),
            Some(why) => left.push((item, why)),
        }
    }
    (sure, left)
}

/// Why a registration may be somebody's.
fn why_not(seen: &Snapshot, registration: &Registration) -> Option<String> {
    if !registration.is_ours() {
        return Some(
            "its id is not one that connect-init gives: somebody registered it".to_owned(),
        );
    }
    let Some(pods) = &seen.pods else { return Some("pods may not be read".to_owned()) };
    if pods.get(&registration.pod).is_some_and(|pod| !pod.ended) {
        return Some("its pod is there".to_owned());
    }
    let Some((name, node)) = seen.node_of(&registration.node) else {
        return Some("its node is not one of this cluster".to_owned());
    };
    if !node.ready {
        return Some(format!("the kubelet of {name} is away: the pod may run there yet"));
    }
    let is_renewed = registration.heartbeat.as_ref().is_some_and(|(status, _)| status == "passing");
    (is_renewed && seen.is_alive(&registration.node))
        .then(|| format!("its heartbeat is renewed: something of the pod runs on {name} yet"))
}

/// Why a token of a pod may be somebody's. Which node the pod was on, a token does not
/// say.
fn why_not_token(seen: &Snapshot, token: &LoginToken, pod: &PodKey) -> Option<String> {
    let (Some(pods), Some(nodes)) = (&seen.pods, &seen.nodes) else {
        return Some("pods and nodes may not be read".to_owned());
    };
    if !is_ownerless(token, pod, pods) {
        return Some("its pod is there".to_owned());
    }
    if let Some((name, _)) = nodes.iter().find(|(_, node)| !node.ready) {
        return Some(format!("the kubelet of {name} is away: the pod may run there yet"));
    }
    // One of its name is another's.
    let is_registered = !pods.contains_key(pod)
        && seen.registrations.iter().any(|registration| registration.pod == *pod);
    is_registered.then(|| "its pod is still registered".to_owned())
}

/// Shows the plan and asks.
fn is_agreed(plan: &[Item], how: Repair) -> Result<bool, Failure> {
    let mut stderr = std::io::stderr();
    for item in plan {
        // Nothing can be done about a closed stderr.
        let _ = writeln!(stderr, "would take back {item}");
    }
    if how == Repair::Agreed {
        return Ok(true);
    }
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::usage("--repair: there is no terminal to ask at")
            .hint("look at the list above, and add --yes"));
    }
    let _ = write!(stderr, "Take back these {}? [y/N] ", plan.len());
    let mut answer = String::new();
    let read = stdin.lock().read_line(&mut answer);
    Ok(read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Takes a registration back at the agent of its node; none if the agent does not have it.
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
        return Ok(Some(Done::Left("the agent has another of that id".to_owned())));
    }
    Ok(match agent.deregister(&planned.id).await? {
        Deregistered::Gone => Some(Done::Taken(format!("at the agent of {}", planned.node))),
        Deregistered::WasUnknown => None,
    })
}

/// Looks again, and acts.
struct Again<'a> {
    settings: &'a Settings,
    /// What was seen at first.
    seen: &'a Snapshot,
    by: Judging<'a>,
}

// === impl Again ===

impl Again<'_> {
    /// Takes a registration back at the agent that holds it or, if that can't be reached,
    /// in the catalog.
    ///
    /// # Errors
    /// Why it was left.
    async fn take_back(&self, planned: &Registration) -> Result<Done, String> {
        let seen = self.look(planned).await?;
        let Some(now) = seen.registrations.iter().find(|now| now.id == planned.id) else {
            return Err("it is gone by now".to_owned());
        };
        if now.pod != planned.pod || now.address != planned.address {
            return Err("it was replaced meanwhile".to_owned());
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
                    tracing::debug!("the agent of {node} can't be reached: {error}");
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        let taken = self.settings.agent.deregister_from_catalog(node, &planned.id).await;
        taken.map_err(|error| error.to_string())?;
        Ok(Done::Taken(format!(
            "out of the catalog; if the agent of {node} still holds it, it puts it back"
        )))
    }

    /// What matters of a registration, as it is now.
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

    /// The agent of a registration's node, as pods of that node reach it; none if that is
    /// not known.
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
    /// Why it was left.
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
            None => return Err("it is gone by now".to_owned()),
            Some(now) if now.description != planned.description => {
                return Err("it is another token now".to_owned());
            }
            Some(_) => {}
        }
        agent.delete_token(&planned.accessor_id).await.map_err(|error| error.to_string())?;
        Ok(Done::Taken("deleted".to_owned()))
    }
}

/// Why something can't be looked at again.
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

    /// A pod that is gone, with a registration and a token.
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
    fn a_registration_of_a_pod_that_is_gone_is_nobodys() {
        assert_eq!(guarded(|_| {}), "");
        let ended = Pod { ended: true, ..Pod::default() };
        assert_eq!(guarded(|seen| seen.pods = Some([(pod(), ended)].into())), "");
    }

    #[test]
    fn a_registration_that_may_be_somebodys_is_left() {
        let there = |seen: &mut Snapshot| seen.pods = Some([(pod(), Pod::default())].into());
        assert_eq!(guarded(there), "its pod is there");
        let away = |seen: &mut Snapshot| {
            seen.nodes.as_mut().unwrap().get_mut("n1").unwrap().ready = false;
        };
        assert!(guarded(away).contains("kubelet of n1 is away"));
        let by_hand = |seen: &mut Snapshot| seen.registrations[0].id = "web".to_owned();
        assert!(guarded(by_hand).contains("somebody registered it"));
        let elsewhere = |seen: &mut Snapshot| seen.nodes = Some(BTreeMap::new());
        assert_eq!(guarded(elsewhere), "its node is not one of this cluster");
        let renewed = |seen: &mut Snapshot| {
            seen.registrations[0].heartbeat = Some(("passing".to_owned(), String::new()));
        };
        assert!(guarded(renewed).contains("heartbeat is renewed"));
        assert_eq!(guarded(|seen| seen.pods = None), "pods may not be read");
        // An agent that is away says passing for ever.
        let stale = |seen: &mut Snapshot| {
            renewed(seen);
            seen.agents.as_mut().unwrap().get_mut("n1").unwrap().alive = false;
        };
        assert_eq!(guarded(stale), "");
    }

    #[test]
    fn a_token_that_may_be_somebodys_is_left() {
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
            "its pod is there"
        );
        assert!(
            guarded(&|seen| seen.nodes.as_mut().unwrap().get_mut("n1").unwrap().ready = false)
                .contains("kubelet of n1 is away")
        );
        assert_eq!(
            guarded(&|seen| seen.registrations.push(registration())),
            "its pod is still registered"
        );
    }

    #[test]
    fn only_what_was_found_is_planned_sidecars_first() {
        let mut seen = seen();
        seen.registrations.push(Registration {
            id: "shop_web-0_web-sidecar-proxy".to_owned(),
            is_proxy: true,
            destination: "web".to_owned(),
            ..registration()
        });
        assert_eq!(plan(&seen, &[]), (Vec::new(), Vec::new()));
        let found = |code, name: &str| Finding::new(code, "x", name).within("shop");
        let findings = [
            found(Code::RegistrationOrphaned, "shop_web-0_web"),
            found(Code::RegistrationOrphaned, "shop_web-0_web-sidecar-proxy"),
            found(Code::TokenOrphaned, "a"),
        ];
        let (sure, left) = plan(&seen, &findings);
        let names: Vec<String> = sure.iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "registration shop_web-0_web-sidecar-proxy of node n1",
                "registration shop_web-0_web of node n1",
            ]
        );
        assert_eq!(left.len(), 1, "the token, whose pod is still registered");
    }
}
