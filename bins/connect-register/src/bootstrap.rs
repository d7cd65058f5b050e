//! The subcommand `bootstrap`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use consul::Agent;
use consul::answer::AgentService;
use registration::service::Kind;
use runtime::deadline::{Deadline, race};
use runtime::{Exit, Failure, Signals, retry};

use crate::agent::{ask, cut_short, why};
use crate::args::{BootstrapCommand, WhichProxy};
use crate::output;

pub(crate) async fn run(args: BootstrapCommand, mut signals: Signals) -> Result<(), Failure> {
    let BootstrapCommand { which, envoy, reach } = args;
    let agent = reach.agent.agent(None)?;
    let deadline = Deadline::after(reach.timeout);
    let text = match race(deadline, &mut signals, text(&agent, &which, &envoy, deadline)).await {
        Ok(text) => text?,
        Err(cut) => return Err(cut_short(cut, &agent, deadline)),
    };
    output::print([text])
}

async fn text(
    agent: &Agent,
    which: &WhichProxy,
    envoy: &::flags::BootstrapArgs,
    deadline: Deadline,
) -> Result<String, Failure> {
    let id = match which {
        WhichProxy { proxy_id: Some(id), .. } => id.clone(),
        WhichProxy { gateway: Some(kind), .. } => {
            let services = ask(agent, deadline, || agent.services()).await?;
            gateway_of(*kind, &services)?
        }
        WhichProxy { sidecar_for, .. } => {
            let service = sidecar_for.as_deref().unwrap_or_default();
            // Not filtered by the agent: Consul 1.8 fails if a filter asks an ordinary
            // service for its proxy.
            let services = ask(agent, deadline, || agent.services()).await?;
            sidecar_of(service, &services)?
        }
    };
    let xds = envoy.find_xds(agent, &agent.config().tls, deadline).await?;
    // Read again by id: only that answer has the central configuration merged in.
    let proxy = ask(agent, deadline, || agent.service(&id, None)).await?;
    let proxy = proxy.ok_or_else(|| unknown(&id, agent))?;
    let mut envoy = envoy.clone();
    if let Some(kind) = which.gateway {
        if proxy.kind != kind {
            let message = format_args!(
                "service `{id}` is not of kind {}, but {}",
                word(kind),
                word(proxy.kind)
            );
            return Err(Failure::usage(message).hint("correct --gateway, or leave it out"));
        }
        if kind == Kind::IngressGateway && envoy.envoy_ready_bind_address.is_none() {
            let (address, port) = INGRESS_READY;
            envoy.envoy_ready_bind_address = Some(address);
            envoy.envoy_ready_bind_port = Some(port);
        }
    }
    let document = retry::until(deadline, retry::NODE_AGENT, is_transient, || {
        envoy.render(agent, &proxy, xds.clone())
    });
    let document = document.await.map_err(|stopped| why(stopped, agent, deadline))?;
    Ok(format!("{document:#}"))
}

/// Where an ingress gateway serves `/ready` by default.
///
/// Source: `-address` of Consul's "consul connect envoy" page.
const INGRESS_READY: (IpAddr, u16) = (IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);

/// The kind's name in the agent's API.
fn word(kind: Kind) -> String {
    let word = serde_json::to_value(kind).unwrap_or_default();
    word.as_str().filter(|word| !word.is_empty()).unwrap_or("an ordinary service").to_owned()
}

/// The id of the gateway, if exactly one of this kind is registered.
fn gateway_of(kind: Kind, services: &BTreeMap<String, AgentService>) -> Result<String, Failure> {
    let gateways = services.values().filter(|service| service.kind == kind);
    let gateways: Vec<&str> = gateways.map(|service| service.id.as_str()).collect();
    let kind = word(kind);
    match gateways[..] {
        [gateway] => Ok(gateway.to_owned()),
        [] => Err(Failure::new(
            Exit::Failure,
            format_args!("no {kind} is registered with the agent"),
        )
        .hint(format_args!(
            "register it first, with a definition file or with register --name NAME --kind {kind} --port PORT"
        ))),
        _ => Err(Failure::new(
            Exit::Failure,
            format_args!("{} services of kind {kind} are registered: {}", gateways.len(), gateways.join(", ")),
        )
        .hint("name one with --proxy-id")),
    }
}

/// Whether the agent failed, so that a retry may help.
fn is_transient(failure: &Failure) -> bool {
    matches!(failure.exit(), Exit::Unreachable | Exit::Deadline)
}

/// The id of the sidecar proxy, if the service has exactly one.
fn sidecar_of(id: &str, services: &BTreeMap<String, AgentService>) -> Result<String, Failure> {
    let destination = |service: &AgentService| match (&service.kind, &service.proxy) {
        (Kind::ConnectProxy, Some(proxy)) => Some(proxy.destination_service_id.clone()),
        _ => None,
    };
    let sidecars: Vec<&str> = services
        .values()
        .filter(|service| destination(service).as_deref() == Some(id))
        .map(|service| service.id.as_str())
        .collect();
    match sidecars[..] {
        [sidecar] => Ok(sidecar.to_owned()),
        [] => {
            let failure = Failure::new(
                Exit::Failure,
                format_args!("no sidecar proxy is registered for service `{id}`"),
            );
            let others: Vec<String> = services.values().filter_map(destination).collect();
            Err(if !services.contains_key(id) && others.is_empty() {
                failure.hint("register the service and its sidecar first; with ACLs on, the token needs service:read on both")
            } else if !services.contains_key(id) {
                failure.hint(format_args!(
                    "--sidecar-for requires the ID of a service; there are sidecars for: {}",
                    others.join(", ")
                ))
            } else {
                failure.hint("the service is registered without one: add connect.sidecar_service to its definition, or register a connect-proxy with this destination_service_id")
            })
        }
        _ => Err(Failure::new(
            Exit::Failure,
            format_args!(
                "service `{id}` has {} sidecar proxies: {}",
                sidecars.len(),
                sidecars.join(", ")
            ),
        )
        .hint("name one with --proxy-id")),
    }
}

fn unknown(id: &str, agent: &Agent) -> Failure {
    let address = &agent.config().address;
    Failure::new(
        Exit::Failure,
        format_args!("no service `{id}` is registered with the Consul agent at {address}"),
    )
    .hint("register the proxy there first, or name its own agent with --http-addr; --proxy-id requires the ID of a proxy, not its name")
}

#[cfg(test)]
mod tests {
    use registration::Proxy;

    use super::*;

    fn services(sidecars: &[(&str, &str)]) -> BTreeMap<String, AgentService> {
        let web = AgentService { id: "web-1".to_owned(), ..AgentService::default() };
        let sidecars = sidecars.iter().map(|(id, destination)| AgentService {
            kind: Kind::ConnectProxy,
            id: (*id).to_owned(),
            proxy: Some(Proxy {
                destination_service_id: (*destination).to_owned(),
                ..Proxy::default()
            }),
            ..AgentService::default()
        });
        sidecars.chain([web]).map(|service| (service.id.clone(), service)).collect()
    }

    #[test]
    fn the_only_sidecar_is_found() {
        let found = sidecar_of("web-1", &services(&[("db-p", "db-1"), ("web-p", "web-1")]));
        assert_eq!(found.unwrap(), "web-p");
    }

    #[test]
    fn what_to_do_without_one() {
        let error = |id, sidecars| sidecar_of(id, &services(sidecars)).unwrap_err().to_string();
        assert!(error("web-1", &[]).contains("add connect.sidecar_service"));
        assert!(error("db", &[]).contains("register the service and its sidecar first"));
        assert!(error("db", &[("db-p", "db-1")]).contains("there are sidecars for: db-1"));
        let several = error("web-1", &[("a", "web-1"), ("b", "web-1")]);
        assert!(several.contains("has 2 sidecar proxies: a, b; hint: name one"), "{several}");
    }
}
