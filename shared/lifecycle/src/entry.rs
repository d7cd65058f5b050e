//! Whether an entry on the agent is the one that we sent. Pure.
//!
//! The agent merges central configuration into a proxy, adds tagged addresses such as
//! `consul-virtual`, and changes the content hash whenever it does. So only what we
//! sent is compared: name, address, port, tags, metadata, destination, mode, upstreams,
//! exposed paths and the address `virtual`.

use std::collections::BTreeMap;

use consul::answer::AgentService;
use registration::pod::VIRTUAL;
use registration::proxy::ExposePath;
use registration::service::TaggedAddress;
use registration::{Proxy, Service, Upstream};

/// How an entry on the agent relates to a pod's registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Equal to what we sent.
    Ours,
    /// Ours, but these fields differ.
    Changed(Vec<&'static str>),
    /// Somebody else's, such as another pod's; says whose.
    Foreign(String),
}

// === impl Entry ===

impl Entry {
    /// Compares what was sent with what the agent has.
    pub fn of(sent: &Service, there: &AgentService) -> Self {
        let own = pod(&sent.meta);
        if let Some(other) = there.meta.as_ref().and_then(pod)
            && own.as_ref().is_some_and(|own| *own != other)
        {
            return Self::Foreign(format!("pod `{other}` at {}", there.address));
        }
        if there.address != sent.address {
            return Self::Foreign(format!("a service at {}", there.address));
        }
        let no_meta = BTreeMap::new();
        let mut differ: Vec<&'static str> = [
            ("name", there.service == sent.name),
            ("port", there.port == sent.port),
            ("tags", there.tags.as_deref().unwrap_or_default() == sent.tags),
            ("meta", *there.meta.as_ref().unwrap_or(&no_meta) == sent.meta),
            ("kind", there.kind == sent.kind),
            ("tagged addresses", addresses_are_same(sent, there)),
        ]
        .into_iter()
        .filter_map(|(field, is_same)| (!is_same).then_some(field))
        .collect();
        if let Some(sent) = &sent.proxy {
            match &there.proxy {
                Some(there) => differ.extend(proxy(sent, there)),
                None => differ.push("proxy"),
            }
        }
        if differ.is_empty() { Self::Ours } else { Self::Changed(differ) }
    }
}

/// Whether the entry has each address that we sent, and no `virtual` that we did not
/// send: it would direct another service's traffic here.
fn addresses_are_same(sent: &Service, there: &AgentService) -> bool {
    let is_there = |(name, sent): (&String, &TaggedAddress)| {
        there.tagged_addresses.get(name).is_some_and(|there| {
            there.address == sent.address && (sent.port == 0 || there.port == sent.port)
        })
    };
    sent.tagged_addresses.iter().all(is_there)
        && sent.tagged_addresses.contains_key(VIRTUAL)
            == there.tagged_addresses.contains_key(VIRTUAL)
}

/// The fields of a proxy that differ. Fields that we did not send may have any value.
fn proxy(sent: &Proxy, there: &Proxy) -> Vec<&'static str> {
    let or_unset = |sent: &str, there: &str| sent.is_empty() || sent == there;
    let upstreams =
        sent.upstreams.iter().all(|sent| there.upstreams.iter().any(|there| is_same(sent, there)))
            && there
                .upstreams
                .iter()
                .filter(|there| listens(there))
                .all(|there| sent.upstreams.iter().any(|sent| is_same(sent, there)));
    [
        (
            "destination",
            sent.destination_service_name == there.destination_service_name
                && sent.destination_service_id == there.destination_service_id,
        ),
        (
            "local service",
            or_unset(&sent.local_service_address, &there.local_service_address)
                && (sent.local_service_port == 0
                    || sent.local_service_port == there.local_service_port),
        ),
        (
            "mode",
            or_unset(&sent.mode, &there.mode)
                && (sent.transparent_proxy.outbound_listener_port == 0
                    || sent.transparent_proxy.outbound_listener_port
                        == there.transparent_proxy.outbound_listener_port),
        ),
        ("upstreams", upstreams),
        ("expose", sent.expose.paths.iter().all(|sent| exposes(there, sent))),
    ]
    .into_iter()
    .filter_map(|(field, is_same)| (!is_same).then_some(field))
    .collect()
}

/// Whether the path is exposed. Central configuration may expose more.
fn exposes(there: &Proxy, sent: &ExposePath) -> bool {
    there.expose.paths.iter().any(|there| {
        (&there.path, there.listener_port, there.local_path_port)
            == (&sent.path, sent.listener_port, sent.local_path_port)
            && (sent.protocol.is_empty() || sent.protocol == there.protocol)
    })
}

/// Whether the upstream has a listener: central configuration adds some without.
fn listens(upstream: &Upstream) -> bool {
    upstream.local_bind_port != 0 || !upstream.local_bind_socket_path.is_empty()
}

/// Whether both connect the same local address to the same destination, whatever
/// settings central configuration adds.
fn is_same(sent: &Upstream, there: &Upstream) -> bool {
    let or_unset = |sent: &str, there: &str| sent.is_empty() || sent == there;
    sent.destination_type == there.destination_type
        && sent.destination_name == there.destination_name
        && or_unset(&sent.destination_namespace, &there.destination_namespace)
        && or_unset(&sent.destination_partition, &there.destination_partition)
        && sent.destination_peer == there.destination_peer
        && sent.datacenter == there.datacenter
        && or_unset(&sent.local_bind_address, &there.local_bind_address)
        && sent.local_bind_port == there.local_bind_port
        && sent.local_bind_socket_path == there.local_bind_socket_path
}

/// The entry's pod by its metadata, if any.
fn pod(meta: &BTreeMap<String, String>) -> Option<String> {
    Some(format!("{}/{}", meta.get("k8s-namespace")?, meta.get("pod-name")?))
}

#[cfg(test)]
mod tests {
    use registration::pod::{Declaration, Identity, Pair, pair};
    use serde_json::{Value, json};

    use super::*;

    fn sent() -> Pair {
        let pod = Identity {
            name: "web-0".to_owned(),
            namespace: "shop".to_owned(),
            ip: [10, 0, 0, 7].into(),
        };
        let upstream = Upstream {
            destination_name: "db".to_owned(),
            local_bind_port: 1234,
            ..Upstream::default()
        };
        let declared = Declaration {
            name: "web".to_owned(),
            port: Some(80),
            tags: vec!["v1".to_owned()],
            upstreams: vec![upstream],
            ..Declaration::default()
        };
        pair(&pod, declared)
    }

    /// The proxy in an agent's answer, with this change.
    fn proxy_but(change: impl FnOnce(&mut Value)) -> Entry {
        let Pair { proxy, .. } = sent();
        let mut there = serde_json::to_value(&proxy).unwrap();
        there["Service"] = proxy.name.clone().into();
        change(&mut there);
        Entry::of(&proxy, &serde_json::from_value(there).unwrap())
    }

    /// What made every sidecar of a cluster register itself again.
    #[test]
    fn what_the_agent_merges_into_an_entry_leaves_it_ours() {
        assert_eq!(proxy_but(|_| {}), Entry::Ours);
        let merged = proxy_but(|there| {
            there["ContentHash"] = "other".into();
            there["TaggedAddresses"] =
                json!({"consul-virtual": {"Address": "240.0.0.2", "Port": 20000}});
            there["Proxy"]["Config"] = json!({"protocol": "http"});
            there["Proxy"]["Mode"] = "transparent".into();
            there["Proxy"]["MeshGateway"] = json!({"Mode": "local"});
            there["Proxy"]["Upstreams"][0]["Config"] = json!({"connect_timeout_ms": 1000});
            there["Proxy"]["Upstreams"][0]["DestinationNamespace"] = "default".into();
            there["Proxy"]["Upstreams"].as_array_mut().unwrap().push(
                json!({"DestinationType": "service", "DestinationName": "*", "Config": {"protocol": "tcp"}}),
            );
        });
        assert_eq!(merged, Entry::Ours);
    }

    #[test]
    fn what_others_changed_is_named() {
        type Change = fn(&mut Value);
        let changes: [(&str, Change); 7] = [
            ("name", |there| there["Service"] = "other".into()),
            ("port", |there| there["Port"] = 1.into()),
            ("tags", |there| there["Tags"] = Value::Null),
            ("meta", |there| there["Meta"]["team"] = "b".into()),
            ("destination", |there| there["Proxy"]["DestinationServiceID"] = "x".into()),
            ("local service", |there| there["Proxy"]["LocalServicePort"] = 1.into()),
            ("upstreams", |there| there["Proxy"]["Upstreams"] = Value::Null),
        ];
        for (field, change) in changes {
            assert_eq!(proxy_but(change), Entry::Changed(vec![field]));
        }
    }

    /// The same for a transparent pod.
    fn transparent_but(change: impl FnOnce(&mut Value)) -> Entry {
        let pod = Identity {
            name: "web-0".to_owned(),
            namespace: "shop".to_owned(),
            ip: [10, 0, 0, 7].into(),
        };
        let declared = Declaration {
            name: "web".to_owned(),
            port: Some(80),
            transparent: true,
            virtual_address: Some(TaggedAddress { address: "10.96.0.10".to_owned(), port: 80 }),
            expose: vec![ExposePath {
                path: "/healthz".to_owned(),
                listener_port: 20300,
                local_path_port: 80,
                protocol: String::new(),
            }],
            ..Declaration::default()
        };
        let Pair { proxy, .. } = pair(&pod, declared);
        let mut there = serde_json::to_value(&proxy).unwrap();
        there["Service"] = proxy.name.clone().into();
        change(&mut there);
        Entry::of(&proxy, &serde_json::from_value(there).unwrap())
    }

    #[test]
    fn what_others_changed_of_a_transparent_proxy_is_named() {
        type Change = fn(&mut Value);
        let merged = transparent_but(|there| {
            there["TaggedAddresses"]["consul-virtual"] = json!({"Address": "240.0.0.2"});
            there["TaggedAddresses"]["lan_ipv4"] = json!({"Address": "10.0.0.7", "Port": 20000});
            there["Proxy"]["TransparentProxy"]["DialedDirectly"] = true.into();
            there["Proxy"]["Expose"]["Paths"][0]["Protocol"] = "http".into();
            there["Proxy"]["Expose"]["Paths"]
                .as_array_mut()
                .unwrap()
                .push(json!({"Path": "/metrics", "ListenerPort": 21000, "LocalPathPort": 9102}));
        });
        assert_eq!(merged, Entry::Ours);
        let changes: [(&str, Change); 5] = [
            ("mode", |there| there["Proxy"]["Mode"] = "direct".into()),
            ("mode", |there| {
                there["Proxy"]["TransparentProxy"]["OutboundListenerPort"] = 1.into();
            }),
            ("expose", |there| there["Proxy"]["Expose"] = json!({})),
            ("tagged addresses", |there| there["TaggedAddresses"] = Value::Null),
            ("tagged addresses", |there| {
                there["TaggedAddresses"]["virtual"]["Address"] = "10.96.0.11".into();
            }),
        ];
        for (field, change) in changes {
            assert_eq!(transparent_but(change), Entry::Changed(vec![field]));
        }
        let claimed = proxy_but(|there| {
            there["TaggedAddresses"] = json!({"virtual": {"Address": "10.96.0.10", "Port": 80}});
        });
        assert_eq!(claimed, Entry::Changed(vec!["tagged addresses"]));
    }

    /// Two pods of one name in two namespaces. Reported in
    /// <https://github.com/hashicorp/consul-k8s/issues/690>.
    #[test]
    fn an_entry_with_another_pods_meta_or_address_is_foreign() {
        let other = proxy_but(|there| there["Meta"]["k8s-namespace"] = "other".into());
        assert_eq!(other, Entry::Foreign("pod `other/web-0` at 10.0.0.7".to_owned()));
        let elsewhere = proxy_but(|there| there["Address"] = "10.0.0.8".into());
        assert_eq!(elsewhere, Entry::Foreign("a service at 10.0.0.8".to_owned()));
    }
}
