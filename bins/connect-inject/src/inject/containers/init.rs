//! The container that registers the pod.

use std::borrow::Cow;

use serde_json::Value;

use super::container::Container;
use super::fields::{identity, injected, literal, log, resources, variable};
use crate::names::{INIT_CONTAINER, TOKEN_FILE};
use crate::plan::{Exposed, Plan};
use crate::policy::Policy;

/// The container that registers the pod and writes the Envoy bootstrap.
pub(crate) fn init_container<'p>(plan: &'p Plan, policy: &'p Policy) -> Container<'p> {
    // After the variables that these refer to: the kubelet expands them in order.
    let agent = [
        variable("CONSUL_HTTP_ADDR", policy.http_addr()),
        variable("CONSUL_GRPC_ADDR", policy.grpc_addr()),
        // connect-init compares it with the Envoy releases that the agent supports.
        variable("CONNECT_ENVOY_VERSION", literal(&policy.envoy_image)),
    ];
    let tls = [
        ("CONSUL_CACERT_PEM", plan.agents_ca.as_deref().map(literal)),
        ("CONSUL_TLS_SERVER_NAME", policy.consul_tls_server_name.as_deref().map(Cow::from)),
        ("CONNECT_AUTO_ENCRYPT", policy.auto_encrypt.then_some("true".into())),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some(variable(name, value?)));
    Container {
        command: vec!["/connect-init".into()],
        args: init_arguments(plan, policy),
        env: identity().chain(agent).chain(tls).chain(log(policy)).collect(),
        resources: resources(&plan.init_resources),
        ..injected(INIT_CONTAINER, &policy.init_image, policy)
    }
}

fn init_arguments<'p>(plan: &'p Plan, policy: &'p Policy) -> Vec<Cow<'p, str>> {
    let service = &plan.service;
    let mut arguments: Vec<Cow<'p, str>> = service
        .each()
        .map(|(name, port)| match port {
            Some(port) => literal(format!("--service={name}:{port}")),
            None => literal(format!("--service={name}")),
        })
        .collect();
    arguments.extend(
        plan.upstreams.iter().map(|upstream| literal(format!("--upstream={}", upstream.spec()))),
    );
    arguments.extend(service.tags.iter().map(|tag| format!("--tag={}", with_pod_name(tag)).into()));
    arguments.extend(
        service
            .meta
            .iter()
            .map(|(key, value)| format!("--meta={}={}", literal(key), with_pod_name(value)).into()),
    );
    if !service.proxy_config.is_empty() {
        let config = Value::Object(service.proxy_config.clone());
        arguments.push(literal(format!("--proxy-config={config}")));
    }
    if let Some(metrics) = &plan.metrics {
        let path = [("--prometheus-scrape-path", metrics.path.clone())];
        let merged = metrics.merging.iter();
        let merged: Vec<_> =
            merged.map(|merging| ("--prometheus-backend-port", merging.port.to_string())).collect();
        let flags = path.iter().chain(&merged).chain(&metrics.tls);
        arguments.extend(flags.map(|(flag, value)| literal(format!("{flag}={value}"))));
    }
    if let Some(transparent) = &plan.transparent {
        arguments.push("--transparent".into());
        arguments
            .extend(transparent.virtual_address.iter().map(|it| format!("--virtual={it}").into()));
        for Exposed { path, listener, port, http2 } in &transparent.exposed {
            let protocol = if *http2 { ":http2" } else { "" };
            arguments.push(literal(format!("--expose={path}={listener}:{port}{protocol}")));
        }
    }
    if let Some(method) = &*policy.acl_auth_method {
        arguments.push(literal(format!("--acl-auth-method={method}")));
        arguments.push(format!("--bearer-token-file={TOKEN_FILE}").into());
    }
    if plan.lifecycle.restarts {
        // The first run ends early, so that `kubectl describe pod` shows why it failed while the
        // next run waits for the agent.
        arguments.push("--first-timeout=30s".into());
    }
    arguments
}

/// Like [`literal`], but the kubelet replaces `$POD_NAME` with the pod's name, which is unknown
/// during admission. No other variable is replaced, such as `$POD_NAMESPACE`.
pub(super) fn with_pod_name(text: &str) -> String {
    const NAME: &str = "$POD_NAME";
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(NAME) {
        result.push_str(&literal(before));
        let is_longer = after.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        result.push_str(&if is_longer { literal(NAME) } else { "$(POD_NAME)".into() });
        rest = after;
    }
    result + &literal(rest)
}
