//! Reads Consul's catalog, config entries and ACLs.

use std::collections::{BTreeMap, BTreeSet};

use consul::Error;
use consul::answer::{AgentCheck, AgentService};
use consul::catalog::Listed;
use consul::error::Cause;
use flags::Report as _;
use registration::service::Kind;
use registration::upstream::DestinationType;
use runtime::Failure;

use super::super::Settings;
use super::super::judge::is_allowed;
use super::super::progress::Progress;
use super::super::snapshot::{AgentNode, Login, Registration};
use super::Seen;

/// The check that shows whether gossip reaches an agent.
const GOSSIP: &str = "serfHealth";

/// Kinds of config entries that define a service without instances of its own.
const VIRTUAL: [&str; 3] = ["service-resolver", "service-router", "service-splitter"];

/// Reads the nodes with their agents and registrations.
pub(super) async fn services(
    settings: &Settings,
    seen: &mut Seen,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let agent = &settings.agent;
    let Some(nodes) = allowed(agent.nodes().await, seen, "nodes")? else { return Ok(()) };
    let releases = releases(settings, seen).await?;
    let mut agents = BTreeMap::new();
    let mut is_whole = !nodes.is_filtered;
    for node in nodes.items {
        let Some((registrations, alive, is_filtered)) =
            allowed(self::node(settings, &node.node).await, seen, "services")?
        else {
            is_whole = false;
            break;
        };
        is_whole &= !is_filtered;
        seen.snapshot.registrations.extend(registrations);
        progress.at("registrations", seen.snapshot.registrations.len());
        let release = releases.get(&node.node).cloned().unwrap_or_default();
        agents.insert(node.node, AgentNode { address: node.address, alive, release });
    }
    if !is_whole {
        filtered(seen, "nodes and services");
    }
    // If ACLs hid entries, a missing registration proves nothing; one that was read does.
    seen.snapshot.all_registrations = is_whole;
    seen.snapshot.agents = Some(agents);
    Ok(())
}

/// The registrations of a node that name a pod, whether gossip reaches its agent, and whether
/// ACLs hide some entries.
pub(in super::super) async fn node(
    settings: &Settings,
    node: &str,
) -> Result<(Vec<Registration>, bool, bool), Error> {
    let services = settings.agent.services_of_node(node).await?;
    let checks = settings.agent.checks_of_node(node).await?;
    let alive =
        checks.items.iter().any(|check| check.check_id == GOSSIP && check.status == "passing");
    let registrations = services
        .items
        .into_iter()
        .filter_map(|service| registration(node, service, &checks.items))
        .collect();
    Ok((registrations, alive, services.is_filtered || checks.is_filtered))
}

fn registration(node: &str, service: AgentService, checks: &[AgentCheck]) -> Option<Registration> {
    let meta = service.meta?;
    let pod = (meta.get("k8s-namespace")?.clone(), meta.get("pod-name")?.clone());
    let lease = registration::pod::lease_id(&service.id);
    let heartbeat = checks.iter().find(|check| check.check_id == lease).map(|check| {
        let output = if check.status == "passing" { "" } else { &check.output };
        (check.status.clone(), output.to_owned())
    });
    let proxy = service.proxy.unwrap_or_default();
    let upstreams: BTreeSet<String> = proxy
        .upstreams
        .into_iter()
        .filter(|upstream| {
            upstream.destination_type == DestinationType::Service
                && upstream.destination_peer.is_empty()
                && upstream.datacenter.is_empty()
                && !upstream.destination_name.is_empty()
        })
        .map(|upstream| upstream.destination_name)
        .collect();
    Some(Registration {
        node: node.to_owned(),
        id: service.id,
        service: service.service,
        address: service.address,
        pod,
        is_proxy: service.kind == Kind::ConnectProxy,
        destination: proxy.destination_service_name,
        upstreams: upstreams.into_iter().collect(),
        heartbeat,
    })
}

/// The agents' Consul releases by node name.
async fn releases(
    settings: &Settings,
    seen: &mut Seen,
) -> Result<BTreeMap<String, String>, Failure> {
    let Some(members) = allowed(settings.agent.members().await, seen, "agents")? else {
        return Ok(BTreeMap::new());
    };
    let release = |build: &String| build.split(':').next().unwrap_or_default().to_owned();
    let members = members.items.into_iter();
    Ok(members
        .filter_map(|member| Some((member.name, member.tags.get("build").map(release)?)))
        .collect())
}

/// Reads the names of services, the intentions, and the Envoy releases that the agent supports.
pub(super) async fn mesh(settings: &Settings, seen: &mut Seen) -> Result<(), Failure> {
    let agent = &settings.agent;
    if let Some(about) = allowed(agent.agent_self().await, seen, "the agent itself")? {
        seen.snapshot.supported_envoys = about.supported_envoys().to_vec();
    }
    if let Some(datacenters) = allowed(agent.datacenters().await, seen, "datacenters")? {
        seen.snapshot.is_only_datacenter = datacenters.len() < 2;
    }
    let mut is_whole = true;
    for kind in VIRTUAL {
        match allowed(agent.config_entry_names(kind).await, seen, "config entries")? {
            Some(names) => {
                is_whole &= !names.is_filtered;
                seen.snapshot.virtual_services.extend(names.items);
            }
            None => is_whole = false,
        }
    }
    if let Some(services) = allowed(agent.service_names().await, seen, "service names")? {
        let is_whole = is_whole && !services.is_filtered;
        if is_whole {
            seen.snapshot.services = Some(services.items.into_keys().collect());
        } else {
            filtered(seen, "service names");
        }
    }
    if let Some(Listed { items, is_filtered }) =
        allowed(agent.intentions().await, seen, "intentions")?
    {
        if is_filtered {
            filtered(seen, "intentions");
        } else {
            seen.snapshot.intentions = Some(items);
            default(settings, seen).await?;
        }
    }
    Ok(())
}

/// Finds out whether Consul allows connections that no intention matches, by asking about the
/// first such pair of service and upstream.
async fn default(settings: &Settings, seen: &mut Seen) -> Result<(), Failure> {
    let intentions = seen.snapshot.intentions.as_deref().unwrap_or_default();
    let mut pairs = seen.snapshot.registrations.iter().flat_map(|registration| {
        registration.upstreams.iter().map(|upstream| (&registration.destination, upstream))
    });
    let free = pairs
        .find(|(source, upstream)| is_allowed(intentions, source, upstream).is_none())
        .map(|(source, upstream)| (source.clone(), upstream.clone()));
    if let Some((source, upstream)) = free {
        let answer = settings.agent.allows(&source, &upstream).await;
        seen.snapshot.default_allows = allowed(answer, seen, "intentions")?;
    }
    Ok(())
}

/// Reads the policy's auth method with its tokens and binding rules.
pub(super) async fn login(settings: &Settings, seen: &mut Seen) -> Result<(), Failure> {
    let Some(name) = &*settings.policy.acl_auth_method else { return Ok(()) };
    let agent = &settings.agent;
    let Some(method) = allowed(agent.auth_method(name).await, seen, "auth methods")? else {
        return Ok(());
    };
    let mut login = Login { name: name.clone(), method, ..Login::default() };
    if login.method.is_some() {
        let tokens = allowed(agent.tokens_of(name).await, seen, "ACL tokens")?;
        login.tokens = tokens.unwrap_or_default();
        let rules = allowed(agent.binding_rules(name).await, seen, "binding rules")?;
        login.rules = rules.unwrap_or_default();
    }
    seen.snapshot.login = Some(login);
    Ok(())
}

/// Turns a denied request into a finding; the result is `None` then.
fn allowed<T>(answer: Result<T, Error>, seen: &mut Seen, what: &str) -> Result<Option<T>, Failure> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if matches!(error.cause, Cause::Denied(_)) && !error.is_unknown_token() => {
            seen.unreadable("Consul", what, &error);
            Ok(None)
        }
        Err(error) => Err(error.failure()),
    }
}

fn filtered(seen: &mut Seen, what: &str) {
    seen.unreadable("Consul", what, "the ACL token can read only some of them");
}
