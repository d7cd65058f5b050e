//! The container that registers the pod.

use k8s_openapi::api::core::v1::Container;
use serde_json::Value;

use super::fields::{from_field, injected, literal, log, resources, variable};
use crate::names::{DOWNWARD, INIT_CONTAINER, STATUS_VARIABLE, TOKEN_FILE};
use crate::plan::{Exposed, Plan};
use crate::policy::Policy;

/// The container that registers the pod and writes the Envoy bootstrap.
pub(crate) fn init_container(plan: &Plan, policy: &Policy) -> Container {
    let identity = DOWNWARD.iter().chain([&STATUS_VARIABLE]);
    let identity = identity.map(|(name, field)| from_field(name, field));
    // After the variables that these refer to: the kubelet expands them in order.
    let agent = [
        variable("CONSUL_HTTP_ADDR".to_owned(), policy.http_addr().to_owned()),
        variable("CONSUL_GRPC_ADDR".to_owned(), policy.grpc_addr().to_owned()),
        // connect-init compares it with the Envoy releases that the agent supports.
        variable("CONNECT_ENVOY_VERSION".to_owned(), literal(&policy.envoy_image)),
    ];
    let tls = [
        ("CONSUL_CACERT_PEM", plan.agents_ca.as_deref().map(literal)),
        ("CONSUL_TLS_SERVER_NAME", policy.consul_tls_server_name.0.clone()),
        ("CONNECT_AUTO_ENCRYPT", policy.auto_encrypt.then(|| true.to_string())),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some(variable(name.to_owned(), value?)));
    Container {
        command: Some(vec!["/connect-init".to_owned()]),
        args: Some(init_arguments(plan, policy)),
        env: Some(identity.chain(agent).chain(tls).chain(log(policy)).collect()),
        resources: resources(&plan.init_resources),
        ..injected(INIT_CONTAINER, &policy.init_image, policy)
    }
}

fn init_arguments(plan: &Plan, policy: &Policy) -> Vec<String> {
    let service = &plan.service;
    let mut arguments: Vec<String> = service
        .each()
        .map(|(name, port)| match port {
            Some(port) => literal(&format!("--service={name}:{port}")),
            None => literal(&format!("--service={name}")),
        })
        .collect();
    arguments.extend(
        plan.upstreams.iter().map(|upstream| literal(&format!("--upstream={}", upstream.spec()))),
    );
    arguments.extend(service.tags.iter().map(|tag| format!("--tag={}", with_pod_name(tag))));
    arguments.extend(
        service
            .meta
            .iter()
            .map(|(key, value)| format!("--meta={}={}", literal(key), with_pod_name(value))),
    );
    if !service.proxy_config.is_empty() {
        let config = Value::Object(service.proxy_config.clone());
        arguments.push(literal(&format!("--proxy-config={config}")));
    }
    if let Some(metrics) = &plan.metrics {
        let path = [("--prometheus-scrape-path", metrics.path.clone())];
        let merged = metrics.merging.iter();
        let merged: Vec<_> =
            merged.map(|merging| ("--prometheus-backend-port", merging.port.to_string())).collect();
        let flags = path.iter().chain(&merged).chain(&metrics.tls);
        arguments.extend(flags.map(|(flag, value)| literal(&format!("{flag}={value}"))));
    }
    if let Some(transparent) = &plan.transparent {
        arguments.push("--transparent".to_owned());
        arguments.extend(transparent.virtual_address.iter().map(|it| format!("--virtual={it}")));
        for Exposed { path, listener, port, http2 } in &transparent.exposed {
            let protocol = if *http2 { ":http2" } else { "" };
            arguments.push(literal(&format!("--expose={path}={listener}:{port}{protocol}")));
        }
    }
    if let Some(method) = &*policy.acl_auth_method {
        arguments.push(literal(&format!("--acl-auth-method={method}")));
        arguments.push(format!("--bearer-token-file={TOKEN_FILE}"));
    }
    if plan.lifecycle.restarts {
        // The first run ends early, so that `kubectl describe pod` shows why it failed while the
        // next run waits for the agent.
        arguments.push("--first-timeout=30s".to_owned());
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
        result.push_str(&if is_longer { literal(NAME) } else { "$(POD_NAME)".to_owned() });
        rest = after;
    }
    result + &literal(rest)
}
