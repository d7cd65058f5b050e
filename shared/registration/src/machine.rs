//! The two registrations, service and sidecar, of a definition: what
//! `connect-lifecycle` maintains on a machine without Kubernetes.
//!
//! Source of the defaults: "Sidecar service defaults" of Consul's page on registering
//! sidecar proxies.

use crate::pod::{Pair, application, destination, lease, public_listener};
use crate::service::{Kind, SidecarService};
use crate::{Check, Proxy, Service};

/// Why a definition is not a service with a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPair {
    #[error(
        "it is a proxy or gateway itself: expected an ordinary service with connect.sidecar_service"
    )]
    IsAProxy,
    #[error("it has no sidecar: expected connect.sidecar_service with a port")]
    NoSidecar,
    /// The agent would choose the sidecar's port.
    #[error(
        "connect.sidecar_service.port: expected a port, such as 20000: one that the agent picks is another after each loss"
    )]
    NoPort,
    /// Service and sidecar have ACL tokens of their own.
    #[error(
        "connect.sidecar_service.token: expected one ACL token for both, in service.token or a file"
    )]
    TwoTokens,
}

/// Makes the registrations of a service and its sidecar. Both get a TTL check, which
/// `connect-lifecycle` renews; a service without checks also gets one of its
/// application's health.
///
/// # Errors
/// The service is a proxy, or lacks what `connect-lifecycle run` needs.
pub fn pair(service: Service) -> Result<Pair, NoPair> {
    if service.kind != Kind::Typical {
        return Err(NoPair::IsAProxy);
    }
    let id = service.id().to_owned();
    let connect = service.connect.clone().unwrap_or_default();
    let sidecar = *connect.sidecar_service.ok_or(NoPair::NoSidecar)?;
    if sidecar.port == 0 {
        return Err(NoPair::NoPort);
    }
    if sidecar.token.is_some() {
        return Err(NoPair::TwoTokens);
    }
    let proxy = proxy(&service, &id, sidecar);
    let mut checks = with_ids(&id, service.checks.clone());
    let local = proxy.proxy.as_ref().map_or("", |proxy| proxy.local_service_address.as_str());
    // The check is made over loopback, by which Envoy reaches it, too.
    if checks.is_empty() && service.port != 0 && ["", "127.0.0.1", "localhost"].contains(&local) {
        checks.push(application(&id, service.port));
    }
    checks.push(lease(&id));
    Ok(Pair { service: Service { id, connect: None, checks, ..service }, proxy })
}

fn proxy(service: &Service, service_id: &str, sidecar: SidecarService) -> Service {
    let SidecarService {
        id,
        name,
        tags,
        address,
        tagged_addresses,
        port,
        meta,
        weights,
        enable_tag_override,
        proxy,
        token: _,
        checks,
        socket_path,
        locality,
        namespace: _,
        partition: _,
    } = sidecar;
    let or = |own: String, other: &str| if own.is_empty() { other.to_owned() } else { own };
    let id = or(id, &format!("{service_id}-sidecar-proxy"));
    let address = or(address, &service.address);
    let mut checks = with_ids(&id, checks);
    if checks.is_empty() {
        let listener = listener(&address, port);
        checks = vec![public_listener(&id, &listener), destination(&id, service_id)];
    }
    checks.push(lease(&id));
    Service {
        kind: Kind::ConnectProxy,
        name: or(name, &format!("{}-sidecar-proxy", service.name)),
        tags: if tags.is_empty() { service.tags.clone() } else { tags },
        address,
        tagged_addresses,
        port,
        ports: Vec::new(),
        socket_path,
        meta: if meta.is_empty() { service.meta.clone() } else { meta },
        weights,
        enable_tag_override,
        proxy: Some(in_front_of(service, service_id, proxy.unwrap_or_default())),
        connect: None,
        checks,
        locality: locality.or_else(|| service.locality.clone()),
        namespace: service.namespace.clone(),
        partition: service.partition.clone(),
        id,
    }
}

/// The proxy's settings with its service as destination.
fn in_front_of(service: &Service, service_id: &str, mut proxy: Proxy) -> Proxy {
    proxy.destination_service_name.clone_from(&service.name);
    service_id.clone_into(&mut proxy.destination_service_id);
    if proxy.local_service_socket_path.is_empty() && service.port != 0 {
        let Proxy { local_service_address, local_service_port, .. } = &mut proxy;
        if local_service_address.is_empty() {
            "127.0.0.1".clone_into(local_service_address);
        }
        if *local_service_port == 0 {
            *local_service_port = service.port;
        }
    }
    proxy
}

/// Where the agent reaches the public listener: on its own machine if the sidecar has no
/// address.
fn listener(address: &str, port: u16) -> String {
    match address {
        "" => format!("127.0.0.1:{port}"),
        ip if ip.contains(':') => format!("[{ip}]:{port}"),
        host => format!("{host}:{port}"),
    }
}

/// Gives each check without an id the one that the agent would give it, so that an
/// additional check does not change them.
fn with_ids(service_id: &str, mut checks: Vec<Check>) -> Vec<Check> {
    let is_only = checks.len() == 1;
    for (index, check) in checks.iter_mut().enumerate() {
        if check.check_id.is_empty() {
            check.check_id = if is_only {
                format!("service:{service_id}")
            } else {
                format!("service:{service_id}:{}", index + 1)
            };
        }
    }
    checks
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::service::Connect;

    fn service(sidecar: SidecarService) -> Service {
        Service {
            name: "web".to_owned(),
            port: 8080,
            tags: vec!["v1".to_owned()],
            connect: Some(Connect {
                sidecar_service: Some(Box::new(sidecar)),
                ..Connect::default()
            }),
            ..Service::default()
        }
    }

    fn on(port: u16) -> SidecarService {
        SidecarService { port, ..SidecarService::default() }
    }

    #[test]
    fn a_service_and_its_sidecar_are_two_registrations_with_heartbeats() {
        let Pair { service, proxy } = pair(service(on(20001))).unwrap();
        assert_eq!(
            serde_json::to_value(&service).unwrap(),
            json!({
                "ID": "web", "Name": "web", "Port": 8080, "Tags": ["v1"],
                "Checks": [
                    {"CheckID": "web-application", "Name": "Application Health", "TTL": "30s",
                     "Notes": "Set by connect-lifecycle, which asks the readiness probe over loopback, or else connects to port 8080.",
                     "Status": "critical"},
                    {"CheckID": "web-lease", "Name": "Pod Lease", "TTL": "30s",
                     "Notes": "Renewed by connect-lifecycle for as long as the pod lives.",
                     "DeregisterCriticalServiceAfter": "1m0s"},
                ],
            })
        );
        let proxy = serde_json::to_value(&proxy).unwrap();
        assert_eq!(
            (&proxy["ID"], &proxy["Kind"]),
            (&json!("web-sidecar-proxy"), &json!("connect-proxy"))
        );
        assert_eq!((&proxy["Port"], &proxy["Tags"]), (&json!(20001), &json!(["v1"])));
        assert_eq!(
            proxy["Proxy"],
            json!({"DestinationServiceName": "web", "DestinationServiceID": "web",
                "LocalServiceAddress": "127.0.0.1", "LocalServicePort": 8080})
        );
        let checks = proxy["Checks"].as_array().unwrap().iter();
        let checks: Vec<_> = checks.map(|check| check["CheckID"].as_str().unwrap()).collect();
        let expected = ["listener", "destination", "lease"];
        assert_eq!(checks, expected.map(|check| format!("web-sidecar-proxy-{check}")));
        assert_eq!(proxy["Checks"][0]["TCP"], "127.0.0.1:20001");
    }

    #[test]
    fn checks_of_its_own_keep_the_ids_that_the_agent_gives() {
        let check = |tcp: &str| Check { tcp: tcp.to_owned(), ..Check::default() };
        let ids = |checks: Vec<Check>| {
            let service = Service { checks, ..service(on(20000)) };
            let checks = pair(service).unwrap().service.checks;
            checks.into_iter().map(|check| check.check_id).collect::<Vec<_>>()
        };
        assert_eq!(ids(vec![check("a:1")]), ["service:web", "web-lease"]);
        assert_eq!(
            ids(vec![check("a:1"), check("b:1")]),
            ["service:web:1", "service:web:2", "web-lease"]
        );
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let refused = |service| pair(service).unwrap_err();
        assert_eq!(refused(service(on(0))), NoPair::NoPort);
        let bare = Service { connect: None, ..service(on(1)) };
        assert_eq!(refused(bare), NoPair::NoSidecar);
        let gateway = Service { kind: Kind::MeshGateway, ..service(on(1)) };
        assert_eq!(refused(gateway), NoPair::IsAProxy);
        let token = Some(crate::Token::new("t".into()));
        assert_eq!(refused(service(SidecarService { token, ..on(1) })), NoPair::TwoTokens);
    }
}
