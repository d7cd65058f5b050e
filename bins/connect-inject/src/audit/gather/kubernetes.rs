//! Reads nodes, namespaces, webhooks and pods from the Kubernetes API.

use std::collections::BTreeMap;

use runtime::Failure;
use serde_json::Value;

use super::super::Settings;
use super::super::condition::Condition;
use super::super::judge::{Judging, pods};
use super::super::progress::Progress;
use super::super::selector::Selector;
use super::super::snapshot::{Node, Owner, Pod, PodKey, Snapshot, Webhook};
use super::objects::{PATIENCE, allowed, each, get, text};
use super::{Seen, handshake, service};
use crate::kubernetes::Refusal;
use crate::values::Version;

const WEBHOOKS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

/// The API server's version; `None`, with a warning, if it can't be read.
pub(super) async fn version(settings: &Settings) -> Option<Version> {
    settings.api.version(PATIENCE).await.inspect_err(|problem| tracing::warn!("{problem}")).ok()
}

/// Reads nodes, namespaces and webhooks.
pub(super) async fn surroundings(settings: &Settings, seen: &mut Seen) -> Result<(), Failure> {
    match nodes(settings).await {
        Ok(nodes) => seen.snapshot.nodes = Some(nodes),
        Err(refusal) => {
            allowed(Err(refusal), seen, "nodes")?;
        }
    }
    let mut namespaces = BTreeMap::new();
    let read = each(settings, "/api/v1/namespaces", "list namespaces", |namespace| {
        let labels = serde_json::from_value(namespace["metadata"]["labels"].clone());
        namespaces.insert(text(&namespace["metadata"]["name"]), labels.unwrap_or_default());
    });
    seen.snapshot.namespaces = allowed(read.await, seen, "namespaces")?.then_some(namespaces);
    let mut webhooks = Vec::new();
    let read = each(settings, WEBHOOKS, "list webhook configurations", |configuration| {
        webhooks.extend(self::webhooks(&configuration));
    });
    if allowed(read.await, seen, "mutatingwebhookconfigurations")? {
        service::look(settings, seen, &mut webhooks).await?;
        seen.snapshot.webhooks = Some(webhooks);
    }
    Ok(())
}

/// Reads the pods, and judges each as it is read, so that no complete pod is kept.
pub(super) async fn pods(
    settings: &Settings,
    by: Judging<'_>,
    seen: &mut Seen,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let path = match by.namespace {
        Some(namespace) => format!("/api/v1/namespaces/{namespace}/pods"),
        None => "/api/v1/pods".to_owned(),
    };
    let mut kept = BTreeMap::new();
    let mut findings = Vec::new();
    let read = each(settings, &path, "list pods", |pod| {
        let (key, pod, finding) = pods::judge(&pod, &seen.snapshot, by);
        findings.extend(finding);
        kept.insert(key, pod);
        progress.at("pods", kept.len());
    });
    let read = read.await;
    seen.findings.append(&mut findings);
    seen.snapshot.pods = allowed(read, seen, "pods")?.then_some(kept);
    Ok(())
}

/// Reads a pod again; `None` if it is gone.
pub(in super::super) async fn pod(
    settings: &Settings,
    (namespace, name): &PodKey,
    by: Judging<'_>,
) -> Result<Option<Pod>, Refusal> {
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    let found = get(settings, &path, name, "read a pod").await?;
    Ok(found.map(|pod| pods::judge(&pod, &Snapshot::default(), by).1))
}

/// Reads a node again; `None` if it is gone.
pub(in super::super) async fn node(
    settings: &Settings,
    name: &str,
) -> Result<Option<Node>, Refusal> {
    Ok(get(settings, "/api/v1/nodes", name, "read a node").await?.as_ref().map(node_of))
}

/// Reads all nodes.
pub(in super::super) async fn nodes(
    settings: &Settings,
) -> Result<BTreeMap<String, Node>, Refusal> {
    let mut nodes = BTreeMap::new();
    each(settings, "/api/v1/nodes", "list nodes", |node| {
        nodes.insert(text(&node["metadata"]["name"]), node_of(&node));
    })
    .await?;
    Ok(nodes)
}

fn node_of(node: &Value) -> Node {
    let status = &node["status"];
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let addresses = status["addresses"].as_array().into_iter().flatten();
    Node {
        addresses: addresses.map(|address| text(&address["address"])).collect(),
        ready: conditions
            .into_iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True"),
        kubelet: text(&status["nodeInfo"]["kubeletVersion"]),
    }
}

/// The webhooks of a configuration that belong to a known injector and are called for new
/// pods.
fn webhooks(configuration: &Value) -> Vec<Webhook> {
    let metadata = &configuration["metadata"];
    let is_ours = metadata["labels"]["app.kubernetes.io/name"] == "connect-inject";
    let each = configuration["webhooks"].as_array().into_iter().flatten();
    each.filter(|webhook| is_about_new_pods(webhook))
        .filter_map(|webhook| {
            let name = text(&webhook["name"]);
            let owner = if is_ours || name.ends_with("connect-inject.consul.hashicorp.com") {
                Owner::Us
            } else if name.contains("connect-injector") {
                Owner::Consul
            } else {
                return None;
            };
            let client = &webhook["clientConfig"];
            let service = client.get("service").map(|service| {
                let port = service["port"].as_u64().and_then(|port| u16::try_from(port).ok());
                (text(&service["namespace"]), text(&service["name"]), port.unwrap_or(443))
            });
            let conditions = webhook["matchConditions"].as_array();
            Some(Webhook {
                configuration: text(&metadata["name"]),
                name,
                owner,
                fails_closed: webhook["failurePolicy"] != "Ignore",
                ca_bundle: handshake::decoded(&client["caBundle"]),
                service,
                namespaces: Selector::of(&webhook["namespaceSelector"]),
                objects: Selector::of(&webhook["objectSelector"]),
                conditions: conditions.into_iter().flatten().map(Condition::of).collect(),
                served: None,
            })
        })
        .collect()
}

fn is_about_new_pods(webhook: &Value) -> bool {
    let lists = |rule: &Value, field: &str, wanted: &[&str]| {
        let list = rule[field].as_array().into_iter().flatten().filter_map(Value::as_str);
        list.into_iter().any(|item| wanted.contains(&item))
    };
    webhook["rules"].as_array().into_iter().flatten().any(|rule| {
        lists(rule, "apiGroups", &["", "*"])
            && lists(rule, "operations", &["CREATE", "*"])
            && lists(rule, "resources", &["pods", "*", "*/*"])
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn webhooks_of_both_injectors_are_read_and_others_are_ignored() {
        let rules = json!([{"apiGroups": [""], "operations": ["CREATE"], "resources": ["pods"]}]);
        let webhook = |name: &str, policy: &str| {
            json!({"name": name, "rules": rules, "failurePolicy": policy, "clientConfig": {
                "caBundle": "UEVN", "service": {"name": "s", "namespace": "n", "path": "/mutate"}}})
        };
        let of = |label: &str, hooks: Value| {
            webhooks(
                &json!({"metadata": {"name": "c", "labels": {"app.kubernetes.io/name": label}},
                "webhooks": hooks}),
            )
        };
        let ours =
            of("connect-inject", json!([webhook("x.example", "Fail"), webhook("y", "Ignore")]));
        assert_eq!(ours.len(), 2);
        assert_eq!(ours[0].ca_bundle, "PEM");
        assert_eq!((ours[0].fails_closed, ours[1].fails_closed), (true, false));
        assert_eq!(ours[0].service, Some(("n".to_owned(), "s".to_owned(), 443)));
        let consuls =
            of("", json!([webhook("consul-connect-injector.consul.hashicorp.com", "Fail")]));
        assert_eq!(consuls[0].owner, Owner::Consul);
        assert_eq!(of("", json!([webhook("sidecar.istio.io", "Fail")])), []);
        let mut other = webhook("x.example", "Fail");
        other["rules"][0]["resources"] = json!(["services"]);
        assert_eq!(of("connect-inject", json!([other])), []);
    }

    #[test]
    fn a_node_is_ready_only_if_its_condition_is_true() {
        let node = |status: &str| {
            node_of(&json!({"status": {
                "conditions": [{"type": "Ready", "status": status}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.34.4"},
            }}))
        };
        assert!(node("True").ready);
        assert!(!node("Unknown").ready && !node("False").ready && !node_of(&json!({})).ready);
        assert_eq!(node("True").addresses, ["10.0.0.1"]);
    }
}
