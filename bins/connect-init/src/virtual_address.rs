//! The address by which transparent clients know the service: as it is given, or that
//! of a Kubernetes Service.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::str::FromStr;
use std::time::Duration;

/// What `--virtual` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VirtualArg {
    Address(SocketAddrV4),
    /// A Service of the pod's namespace.
    Service(String),
}

/// How long the name of a Service may take to be resolved.
const PATIENCE: Duration = Duration::from_secs(5);

// === impl VirtualArg ===

impl VirtualArg {
    /// The name in the cluster's DNS whose address it is, if it is a name's.
    pub(crate) fn name(&self, namespace: &str) -> Option<String> {
        match self {
            Self::Address(_) => None,
            Self::Service(name) => Some(host(name, namespace)),
        }
    }
}

fn host(service: &str, namespace: &str) -> String {
    format!("{service}.{namespace}.svc")
}

impl FromStr for VirtualArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "expected ADDRESS:PORT of IPv4, such as 10.96.0.10:80, or service:NAME";
        match text.strip_prefix("service:") {
            Some(name) if is_label(name) => Ok(Self::Service(name.to_owned())),
            Some(_) => Err(form.to_owned()),
            None => text.parse().map(Self::Address).map_err(|_| form.to_owned()),
        }
    }
}

/// Source: RFC 1035 label names in "Object Names and IDs" of the Kubernetes
/// documentation.
fn is_label(name: &str) -> bool {
    let legal = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(legal) && !name.starts_with('-')
}

/// The address. That a Service has none keeps nobody from starting: clients then know
/// the service by the address that Consul allots.
pub(crate) async fn resolve(
    given: VirtualArg,
    namespace: &str,
    pod: IpAddr,
) -> Option<SocketAddrV4> {
    let name = match given {
        VirtualArg::Address(address) => return Some(address),
        VirtualArg::Service(name) => name,
    };
    let host = host(&name, namespace);
    let lookup = async {
        let found = tokio::time::timeout(PATIENCE, tokio::net::lookup_host((host.as_str(), 0)));
        match found.await {
            Ok(Ok(found)) => Ok(found.collect()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {PATIENCE:?}")),
        }
    };
    // The kubelet's, whose names are those of Services: no flags.
    let variable = |name: &str| std::env::var_os(name)?.into_string().ok();
    let found = address_of(&name, pod, variable, lookup).await;
    match found {
        Ok(address) => {
            tracing::info!(service = name, %address, "found the virtual address");
            Some(address)
        }
        Err(why) => {
            tracing::warn!(
                "Service `{name}` gives no virtual address: {why}; hint: the service is known by \
                 Consul's own only, until connect-lifecycle finds one"
            );
            None
        }
    }
}

/// By the kubelet's variables, else by DNS.
async fn address_of(
    name: &str,
    pod: IpAddr,
    variable: impl Fn(&str) -> Option<String>,
    lookup: impl Future<Output = Result<Vec<SocketAddr>, String>>,
) -> Result<SocketAddrV4, String> {
    let stem = name.to_ascii_uppercase().replace('-', "_");
    let port = variable(&format!("{stem}_SERVICE_PORT")).and_then(|port| port.parse().ok());
    let host: Option<Ipv4Addr> =
        variable(&format!("{stem}_SERVICE_HOST")).and_then(|host| host.parse().ok());
    if let Some(host) = host {
        return Ok(SocketAddrV4::new(host, port.unwrap_or_default()));
    }
    let mut found: Vec<Ipv4Addr> = lookup
        .await?
        .into_iter()
        .filter_map(|address| match address.ip() {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    match found[..] {
        [] => Err("its name has no IPv4 address".to_owned()),
        // Of a headless Service, each pod is an address.
        [one] if IpAddr::V4(one) == pod => Err("it is headless: its address is this pod's".into()),
        [one] => Ok(SocketAddrV4::new(one, port.unwrap_or_default())),
        _ => Err(format!("it is headless: it has {} addresses", found.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_or_the_name_of_a_service() {
        let address = "10.96.0.10:80";
        assert_eq!(address.parse(), Ok(VirtualArg::Address(address.parse().unwrap())));
        assert_eq!("service:web-1".parse(), Ok(VirtualArg::Service("web-1".to_owned())));
        let long = format!("service:{}", "a".repeat(64));
        for text in ["", "10.96.0.10", "[fd00::1]:80", "service:", "service:a.b", "web", &long] {
            assert!(text.parse::<VirtualArg>().unwrap_err().contains("service:NAME"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_service_is_known_by_its_variables_or_by_its_name() {
        let pod = IpAddr::from([10, 0, 0, 7]);
        let kubelets = |name: &str| match name {
            "MY_WEB_SERVICE_HOST" => Some("10.96.0.10".to_owned()),
            "MY_WEB_SERVICE_PORT" => Some("80".to_owned()),
            _ => None,
        };
        let none = async { Err("not asked".to_owned()) };
        let found = address_of("my-web", pod, kubelets, none).await;
        assert_eq!(found, Ok("10.96.0.10:80".parse().unwrap()));
        for (answer, expected) in [
            (vec!["10.96.0.11:0"], Ok("10.96.0.11:0")),
            (vec!["10.96.0.11:0", "10.96.0.11:0", "[fd00::1]:0"], Ok("10.96.0.11:0")),
            (vec![], Err("no IPv4 address")),
            (vec!["[fd00::1]:0"], Err("no IPv4 address")),
            (vec!["10.0.0.7:0"], Err("headless")),
            (vec!["10.0.0.7:0", "10.0.0.8:0"], Err("headless")),
        ] {
            let answer = answer.into_iter().map(|text| text.parse().unwrap()).collect();
            let found = address_of("web", pod, kubelets, async { Ok(answer) }).await;
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.to_string(), expected),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
                (found, expected) => panic!("{found:?}, not {expected:?}"),
            }
        }
        let refused = async { Err("no such name".to_owned()) };
        let found = address_of("web", pod, kubelets, refused).await;
        assert_eq!(found, Err("no such name".to_owned()));
    }
}
