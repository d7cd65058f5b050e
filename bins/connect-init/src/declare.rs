//! What the flags declare of the service. Pure.

use std::net::SocketAddr;

use registration::pod::{Declaration, Identity, PUBLIC_LISTENER_PORT, Pair, pair};
use registration::{Upstream, upstream};
use runtime::Failure;
use serde_json::{Map, Value};

use crate::args::{PodArgs, ServiceArg};

/// What was said of the service.
pub(crate) struct Said {
    pub(crate) service: ServiceArg,
    pub(crate) upstreams: Vec<Upstream>,
    pub(crate) tags: Vec<String>,
    pub(crate) meta: Vec<(String, String)>,
    pub(crate) proxy_config: Vec<Map<String, Value>>,
    pub(crate) pod: PodArgs,
    pub(crate) consul_namespace: Option<String>,
    pub(crate) consul_partition: Option<String>,
    /// Envoy's admin listener.
    pub(crate) admin: SocketAddr,
}

/// Makes the registrations.
///
/// # Errors
/// What can't work in a pod: two listeners on one port.
pub(crate) fn declare(said: Said) -> Result<Pair, Failure> {
    let Said {
        service,
        upstreams,
        tags,
        meta,
        proxy_config,
        pod,
        consul_namespace,
        consul_partition,
        admin,
    } = said;
    let ServiceArg { name, port } = service;
    let mut taken = vec![
        (PUBLIC_LISTENER_PORT, "the sidecar's public listener".to_owned()),
        (admin.port(), "Envoy's admin listener".to_owned()),
    ];
    for (port_of_ours, what) in &taken {
        if port == Some(*port_of_ours) {
            return Err(Failure::usage(format_args!(
                "--service {name}:{port_of_ours}: that port is {what}"
            ))
            .hint("let the application listen on another port"));
        }
    }
    taken.extend(port.map(|port| (port, format!("the port of `{name}` itself"))));
    if let Some(conflict) = upstream::conflict(&upstreams, &taken) {
        return Err(Failure::usage(conflict).while_doing("--upstream"));
    }
    let identity = Identity { name: pod.pod_name, namespace: pod.pod_namespace, ip: pod.pod_ip };
    Ok(pair(
        &identity,
        Declaration {
            name,
            port,
            tags,
            meta: meta.into_iter().collect(),
            upstreams,
            proxy_config: proxy_config.into_iter().flatten().collect(),
            consul_namespace,
            consul_partition,
            ..Declaration::default()
        },
    ))
}

#[cfg(test)]
mod tests {
    use runtime::Exit;

    use super::*;
    use crate::args::UpstreamsArg;

    fn said(service: &str, upstreams: &str) -> Said {
        Said {
            service: service.parse().unwrap(),
            upstreams: upstreams.parse::<UpstreamsArg>().unwrap().0,
            tags: Vec::new(),
            meta: Vec::new(),
            proxy_config: Vec::new(),
            pod: PodArgs {
                pod_name: "web-0".to_owned(),
                pod_namespace: "shop".to_owned(),
                pod_ip: [10, 0, 0, 7].into(),
                node_name: None,
            },
            consul_namespace: None,
            consul_partition: None,
            admin: ([127, 0, 0, 1], 19000).into(),
        }
    }

    #[test]
    fn a_service_with_upstreams() {
        let pair = declare(said("web:80", "db:1234,auth:6789")).unwrap();
        assert_eq!(pair.service.id, "web-0-web");
        assert_eq!(pair.proxy.proxy.unwrap().upstreams.len(), 2);
    }

    #[test]
    fn later_settings_of_the_proxy_win() {
        let object = |text: &str| serde_json::from_str(text).unwrap();
        let proxy_config = vec![object(r#"{"a": 1, "b": 2}"#), object(r#"{"b": 3}"#)];
        let pair = declare(Said { proxy_config, ..said("web:80", "") }).unwrap();
        assert_eq!(Value::Object(pair.proxy.proxy.unwrap().config).to_string(), r#"{"a":1,"b":3}"#);
    }

    /// Pain 40: an upstream on a port that something else in the pod uses.
    #[test]
    fn two_listeners_on_one_port_are_refused() {
        for (service, upstreams, words) in [
            ("web:80", "db:80", "the port of `web` itself"),
            ("web:80", "db:20000", "public listener"),
            ("web:80", "db:19000", "admin listener"),
            ("web:80", "db:1,auth:1", "both listen on"),
            ("web:20000", "", "public listener"),
        ] {
            let failure = declare(said(service, upstreams)).unwrap_err();
            assert_eq!(failure.exit(), Exit::Usage);
            assert!(failure.to_string().contains(words), "{failure}");
        }
    }
}
