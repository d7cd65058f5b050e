//! The Service of a webhook: whether it has ready endpoints, and which certificate they
//! serve. EndpointSlices tell which endpoints are ready; TLS handshakes with them, or with
//! the cluster IP, show the certificate. No name is resolved.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use runtime::Failure;
use serde_json::Value;

use super::super::Settings;
use super::super::snapshot::{Owner, Served, Webhook};
use super::objects::{allowed, each, get, text};
use super::{Seen, handshake};
use crate::kubernetes::Refusal;

/// Maximum number of endpoints to connect to: all replicas soon serve the same certificate.
const ASKED: usize = 10;

/// Checks the Services of our webhooks, once for each pair of Service and caBundle.
pub(super) async fn look(
    settings: &Settings,
    seen: &mut Seen,
    webhooks: &mut [Webhook],
) -> Result<(), Failure> {
    let mut known: BTreeMap<_, Option<Served>> = BTreeMap::new();
    for webhook in webhooks.iter_mut().filter(|webhook| webhook.owner == Owner::Us) {
        let Some(service) = webhook.service.clone() else { continue };
        let key = (service, webhook.ca_bundle.clone());
        if let Some(served) = known.get(&key) {
            webhook.served.clone_from(served);
            continue;
        }
        let ((namespace, name, port), ca_bundle) = &key;
        webhook.served = match addresses(settings, namespace, name, *port).await {
            Ok(Some(addresses)) => {
                let host = format!("{name}.{namespace}.svc");
                let served = served(&addresses, &host, ca_bundle);
                Some(of_this_cluster(served.await, settings.is_in_cluster))
            }
            Ok(None) => Some(Served::Unreachable("it does not exist".to_owned())),
            Err((what, refusal)) => {
                allowed(Err(refusal), seen, what)?;
                None
            }
        };
        known.insert(key, webhook.served.clone());
    }
    Ok(())
}

/// Addresses of a Service.
#[derive(Debug, Default, PartialEq, Eq)]
struct Addresses {
    /// The ready endpoints.
    endpoints: Vec<(String, u16)>,
    /// Number of endpoints that are not ready.
    unready: usize,
    /// Cluster IP and port; reachable only where kube-proxy or the like runs.
    own: Option<(String, u16)>,
}

/// Reads the addresses of a Service's port; `None` if the Service does not exist.
///
/// # Errors
/// The resource that can't be read, and why.
async fn addresses(
    settings: &Settings,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<Option<Addresses>, (&'static str, Refusal)> {
    let path = format!("/api/v1/namespaces/{namespace}/services");
    let service = get(settings, &path, name, "read the injector's Service").await;
    let Some(service) = service.map_err(|refusal| ("services", refusal))? else { return Ok(None) };
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let port_name = ports
        .into_iter()
        .find(|entry| entry["port"] == port)
        .map(|entry| text(&entry["name"]))
        .unwrap_or_default();
    let mut addresses = Addresses {
        own: service["spec"]["clusterIP"]
            .as_str()
            .filter(|address| *address != "None")
            .map(|address| (address.to_owned(), port)),
        ..Addresses::default()
    };
    let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
    let read = each(settings, &path, "list the injector's endpoints", |slice| {
        if slice["metadata"]["labels"]["kubernetes.io/service-name"] == name {
            addresses.add(&slice, &port_name);
        }
    });
    read.await.map_err(|refusal| ("endpointslices", refusal))?;
    Ok(Some(addresses))
}

/// Connects to the endpoints, or to the cluster IP if no endpoint is reachable.
async fn served(addresses: &Addresses, name: &str, ca_bundle: &str) -> Served {
    if addresses.endpoints.is_empty() {
        return Served::Unreachable(match addresses.unready {
            0 => "it has no endpoints".to_owned(),
            unready => format!("no endpoint is ready ({unready} not ready)"),
        });
    }
    let ask = |addresses: Vec<(String, u16)>| async move {
        join_all(
            addresses.iter().map(|(address, port)| handshake::ask(address, *port, name, ca_bundle)),
        )
        .await
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
    };
    let endpoints = addresses.endpoints.iter().take(ASKED).cloned().collect();
    let mut answers = ask(endpoints).await;
    if !answers.iter().any(is_answer) {
        answers.extend(ask(addresses.own.clone().into_iter().collect()).await);
    }
    sum(answers)
}

/// Outside the cluster, a pod's address may belong to another machine: an unexpected
/// certificate proves nothing there.
fn of_this_cluster(served: Served, is_in_cluster: bool) -> Served {
    match served {
        Served::Untrusted(problem) if !is_in_cluster => Served::Unchecked(format!(
            "the server at its address, which may be another machine of this network, shows a \
             certificate that caBundle does not verify ({problem})"
        )),
        served => served,
    }
}

const fn is_answer(served: &Served) -> bool {
    matches!(served, Served::Trusted(_) | Served::Untrusted(_))
}

/// Combines the results: the worst of the handshakes that completed.
fn sum(answers: Vec<Served>) -> Served {
    let problem = answers.iter().find_map(|served| match served {
        Served::Unreachable(problem) | Served::Unchecked(problem) => Some(problem.clone()),
        _ => None,
    });
    let (mut untrusted, mut ends) = (None, Vec::new());
    for answer in answers {
        match answer {
            Served::Untrusted(_) => untrusted = Some(answer),
            Served::Trusted(end) => ends.push(end),
            _ => {}
        }
    }
    untrusted.or_else(|| ends.into_iter().min().map(Served::Trusted)).unwrap_or_else(|| {
        Served::Unchecked(problem.unwrap_or_else(|| "it has no address".to_owned()))
    })
}

// === impl Addresses ===

impl Addresses {
    /// Adds the endpoints of an EndpointSlice.
    fn add(&mut self, slice: &Value, port_name: &str) {
        let ports = slice["ports"].as_array().into_iter().flatten();
        let port = ports
            .into_iter()
            .find(|port| port["name"].as_str().unwrap_or_default() == port_name)
            .and_then(|port| u16::try_from(port["port"].as_u64()?).ok());
        let Some(port) = port else { return };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            // An absent `ready` means ready.
            if endpoint["conditions"]["ready"] == false {
                self.unready += 1;
                continue;
            }
            let addresses = endpoint["addresses"].as_array().into_iter().flatten();
            self.endpoints.extend(addresses.map(|address| (text(address), port)).take(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_ready_endpoints_of_the_services_port_are_read() {
        let mut addresses = Addresses::default();
        let endpoint = |address: &str, ready: Value| json!({"addresses": [address], "conditions": {"ready": ready}});
        let slice = json!({
            "ports": [{"name": "admin", "port": 9445}, {"name": "webhook", "port": 8443}],
            "endpoints": [endpoint("10.0.0.1", json!(true)), endpoint("10.0.0.2", json!(false)),
                {"addresses": ["10.0.0.3"]}],
        });
        addresses.add(&slice, "webhook");
        addresses.add(&slice, "another");
        let expected = ["10.0.0.1", "10.0.0.3"].map(|address| (address.to_owned(), 8443));
        assert_eq!((addresses.endpoints.as_slice(), addresses.unready), (&expected[..], 1));
    }

    #[test]
    fn one_endpoint_with_an_untrusted_certificate_decides() {
        let away = || Served::Unreachable("x".to_owned());
        let untrusted = || Served::Untrusted("y".to_owned());
        assert_eq!(sum(vec![Served::Trusted(7), untrusted()]), untrusted());
        assert_eq!(sum(vec![Served::Trusted(7), away(), Served::Trusted(5)]), Served::Trusted(5));
        assert_eq!(of_this_cluster(untrusted(), true), untrusted());
        assert!(matches!(of_this_cluster(untrusted(), false), Served::Unchecked(_)));
        assert_eq!(sum(vec![away()]), Served::Unchecked("x".to_owned()));
        assert_eq!(sum(Vec::new()), Served::Unchecked("it has no address".to_owned()));
    }
}
