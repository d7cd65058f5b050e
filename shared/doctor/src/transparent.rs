//! Checks transparent proxies: virtual addresses that several services claim or that an
//! upstream hides, and connections that leave in plain text.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use consul::Agent;
use consul::answer::AgentService;
use registration::Upstream;
use registration::pod::VIRTUAL;
use registration::service::Kind;
use registration::upstream::DestinationType;
use serde::Deserialize;

use crate::PATIENCE;
use crate::finding::{Finding, Reason, Verdict, curl, word};

/// Limits of the search in the catalog, which sends a request for each proxy: total time, and
/// number of proxies.
const LOOKING: Duration = Duration::from_secs(5);
const MOST_NAMES: usize = 300;

const WHAT: &str = "transparent proxy";

/// The config entry `mesh`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct MeshEntry {
    transparent_proxy: MeshTransparentProxy,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct MeshTransparentProxy {
    mesh_destinations_only: bool,
}

/// Checks the agent's transparent proxies.
pub async fn examine_transparent(
    agent: &Agent,
    services: &BTreeMap<String, AgentService>,
) -> Vec<Finding> {
    let agent = &agent.within(PATIENCE);
    let mut findings: Vec<Finding> = services.values().filter_map(judge_upstreams).collect();
    let mut claims = claims(services.values());
    findings.extend(look_in_catalog(agent, &mut claims).await);
    let url = agent.config().address.to_string();
    findings.extend(claims.iter().filter_map(|(address, names)| judge_claim(&url, address, names)));
    if services.values().any(is_transparent) {
        findings.extend(match agent.config_entry::<MeshEntry>("mesh", "mesh").await {
            Ok(entry) => judge_mesh(&entry.unwrap_or_default()),
            Err(error) => Some(Finding::unknown(WHAT, &error)),
        });
    }
    findings
}

fn is_transparent(service: &AgentService) -> bool {
    service.proxy.as_ref().is_some_and(|proxy| proxy.mode == "transparent")
}

/// The virtual addresses of proxies, with the services that claim them.
fn claims<'s>(
    services: impl Iterator<Item = &'s AgentService>,
) -> BTreeMap<String, BTreeSet<String>> {
    let mut claims = BTreeMap::<String, BTreeSet<String>>::new();
    for service in services.filter(|service| service.kind == Kind::ConnectProxy) {
        let Some(claimed) = service.tagged_addresses.get(VIRTUAL) else { continue };
        let name = service.proxy.as_ref().map(|proxy| proxy.destination_service_name.clone());
        claims.entry(claimed.address.clone()).or_default().extend(name);
    }
    claims
}

/// Adds the claims of the catalog, most of which are on other nodes.
async fn look_in_catalog(
    agent: &Agent,
    claims: &mut BTreeMap<String, BTreeSet<String>>,
) -> Option<Finding> {
    if claims.is_empty() {
        return None;
    }
    let names = match agent.catalog_names().await {
        Ok(names) => names,
        Err(error) => return Some(Finding::unknown(WHAT, &error)),
    };
    let until = Instant::now() + LOOKING;
    let proxies =
        names.iter().filter_map(|name| Some((name, name.strip_suffix("-sidecar-proxy")?)));
    for (name, service) in proxies.take(MOST_NAMES) {
        for (address, claimants) in &mut *claims {
            if claimants.contains(service) || Instant::now() > until {
                continue;
            }
            match agent.catalog_claims(name, VIRTUAL, address).await {
                Ok(found) if found.is_empty() => {}
                Ok(_) => {
                    claimants.insert(service.to_owned());
                }
                Err(error) => return Some(Finding::unknown(WHAT, &error)),
            }
        }
    }
    None
}

fn judge_claim(agent: &str, address: &str, names: &BTreeSet<String>) -> Option<Finding> {
    if names.len() < 2 {
        return None;
    }
    let all: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    let detail = format!("{} claim the same virtual address", all.join(" and "));
    Some(
        Finding::new(WHAT, Verdict::Wrong, Reason::SharedAddress, detail)
            .of(address)
            .hint("the Envoy of every client of both rejects its new outbound listener and keeps the previous one: give each service an address of its own (annotation transparent-proxy-virtual-address)")
            .next(format!(
                "{} | jq '.[].ServiceTaggedAddresses'",
                curl(
                    "--silent",
                    agent,
                    &format!("/v1/catalog/service/{}-sidecar-proxy", names.first()?)
                )
            )),
    )
}

/// Whether an upstream of this proxy listens on the virtual address of its service.
fn judge_upstreams(proxy: &AgentService) -> Option<Finding> {
    let listens = |upstream: &&Upstream| {
        let is_here = upstream.datacenter.is_empty() && upstream.destination_peer.is_empty();
        upstream.local_bind_port != 0
            && is_here
            && upstream.destination_type == DestinationType::Service
    };
    let upstreams = &proxy.proxy.as_ref().filter(|_| is_transparent(proxy))?.upstreams;
    let names: Vec<String> = upstreams
        .iter()
        .filter(listens)
        .map(|upstream| format!("`{}`", upstream.destination_name))
        .collect();
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "its upstreams hide the virtual addresses of {}: only the upstreams' local ports lead there",
        names.join(", ")
    );
    Some(
        Finding::new(WHAT, Verdict::Warning, Reason::UpstreamHidesAddress, detail)
            .of(&proxy.id)
            .hint("remove the upstream (connect-service-upstreams) to call the service by its virtual address")
            .next(format!("connect-register status --output json {}", word(&proxy.id))),
    )
}

fn judge_mesh(entry: &MeshEntry) -> Option<Finding> {
    if entry.transparent_proxy.mesh_destinations_only {
        return None;
    }
    let detail = "MeshDestinationsOnly is off: connections of a client that an intention denies, \
                  or to a service without instances, pass through Envoy in plain text";
    Some(
        Finding::new(WHAT, Verdict::Warning, Reason::PlainText, detail)
            .hint("write a config entry of kind mesh with TransparentProxy { MeshDestinationsOnly = true }, and exclude the destinations outside the mesh")
            .next("consul config read -kind mesh -name mesh"),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn proxy(service: &str, address: &str, upstreams: &serde_json::Value) -> AgentService {
        serde_json::from_value(json!({
            "Kind": "connect-proxy", "ID": format!("{service}-1-sidecar-proxy"),
            "TaggedAddresses": {"virtual": {"Address": address, "Port": 80}},
            "Proxy": {
                "Mode": "transparent", "DestinationServiceName": service, "Upstreams": upstreams,
            },
        }))
        .unwrap()
    }

    #[test]
    fn two_services_with_one_address_are_named() {
        let all = [
            proxy("web", "10.96.0.10", &json!(null)),
            proxy("web", "10.96.0.10", &json!(null)),
            proxy("db", "10.96.0.11", &json!(null)),
        ];
        let judged = |all: &[AgentService]| {
            let claims = claims(all.iter());
            claims.iter().find_map(|(address, names)| judge_claim("http://a:1", address, names))
        };
        assert_eq!(judged(&all), None);
        let mut all = all.to_vec();
        all.push(proxy("api", "10.96.0.10", &json!(null)));
        let found = judged(&all).unwrap();
        assert_eq!((found.verdict, found.reason), (Verdict::Wrong, Some(Reason::SharedAddress)));
        assert_eq!(
            (found.id.as_str(), found.detail.contains("`api` and `web`")),
            ("10.96.0.10", true)
        );
        let next = "curl --silent http://a:1/v1/catalog/service/api-sidecar-proxy | jq '.[].ServiceTaggedAddresses'";
        assert_eq!(found.next.as_deref(), Some(next));
    }

    #[test]
    fn an_upstream_that_hides_a_virtual_address_is_named() {
        let found = |upstreams| judge_upstreams(&proxy("web", "", &upstreams));
        let taken = found(json!([{"DestinationName": "db", "LocalBindPort": 1234}])).unwrap();
        assert!(taken.detail.contains("hide the virtual addresses of `db`"), "{}", taken.detail);
        for other in [
            json!([]),
            json!([{"DestinationName": "*"}]),
            json!([{"DestinationName": "db", "LocalBindPort": 1, "Datacenter": "dc2"}]),
            json!([{"DestinationName": "db", "LocalBindPort": 1, "DestinationPeer": "a"}]),
        ] {
            assert_eq!(found(other), None);
        }
        let mut direct = proxy("web", "", &json!([{"DestinationName": "d", "LocalBindPort": 1}]));
        direct.proxy.as_mut().unwrap().mode = "direct".to_owned();
        assert_eq!(judge_upstreams(&direct), None);
    }

    #[test]
    fn passing_through_in_plain_text_causes_a_finding() {
        let judged = |entry| judge_mesh(&serde_json::from_value(entry).unwrap());
        let on = json!({"Kind": "mesh", "TransparentProxy": {"MeshDestinationsOnly": true}});
        assert_eq!(judged(on), None);
        for off in [json!({}), json!({"TransparentProxy": {"MeshDestinationsOnly": false}})] {
            assert_eq!(judged(off).unwrap().reason, Some(Reason::PlainText));
        }
    }
}
