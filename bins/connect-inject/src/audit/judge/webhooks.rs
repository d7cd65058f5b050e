//! Judges the webhooks that the API server calls for new pods.

use std::collections::{BTreeMap, BTreeSet};

use super::super::finding::{Code, Finding};
use super::super::snapshot::{Owner, Served, Snapshot, Webhook};
use super::{Judging, some};

const KIND: &str = "MutatingWebhookConfiguration";

/// Remaining validity, in seconds, below which a certificate is reported. The injector renews
/// its own certificate ten days before it expires.
const SOON: i64 = 3 * 24 * 3600;

pub(super) fn judge(seen: &Snapshot, by: Judging<'_>) -> Vec<Finding> {
    let Some(webhooks) = &seen.webhooks else { return Vec::new() };
    let ours: Vec<&Webhook> =
        webhooks.iter().filter(|webhook| webhook.owner == Owner::Us).collect();
    if ours.is_empty() {
        return vec![
            Finding::new(Code::WebhookMissing, KIND, "connect-inject")
                .saying("no webhook configuration calls the injector: new pods get no sidecar"),
        ];
    }
    let mut findings = trust(&ours, by.now);
    if !ours.iter().any(|webhook| webhook.fails_closed) {
        findings.push(
            Finding::new(Code::WebhookIgnoresFailures, KIND, &ours[0].configuration).saying(
                "failurePolicy is Ignore: pods that ask for a sidecar are created without one \
                 while no injector answers",
            ),
        );
    }
    findings.extend(overlaps(seen, webhooks));
    findings
}

/// Whether the API server can reach and trust the injector. Webhooks that share a problem of
/// one configuration are reported once.
fn trust(ours: &[&Webhook], now: i64) -> Vec<Finding> {
    let mut problems: BTreeMap<(&str, Code, String), Vec<String>> = BTreeMap::new();
    for webhook in ours {
        let Some((code, problem)) = problem(webhook, now) else { continue };
        let names = problems.entry((&webhook.configuration, code, problem)).or_default();
        names.push(webhook.name.clone());
    }
    problems
        .into_iter()
        .map(|((configuration, code, problem), names)| {
            Finding::new(code, KIND, configuration)
                .saying(format_args!("{problem}; webhooks: {}", some(&names)))
        })
        .collect()
}

fn problem(webhook: &Webhook, now: i64) -> Option<(Code, String)> {
    let (namespace, name, _) = webhook.service.as_ref()?;
    let service = format!("{namespace}/{name}");
    if webhook.ca_bundle.is_empty() {
        return Some((Code::WebhookUntrusted, "caBundle is empty".to_owned()));
    }
    Some(match webhook.served.as_ref()? {
        Served::Untrusted(problem) => (
            Code::WebhookUntrusted,
            format!(
                "caBundle does not verify the certificate that Service {service} shows: {problem}"
            ),
        ),
        Served::Unreachable(problem) => {
            (Code::WebhookUnreachable, format!("Service {service} is unreachable: {problem}"))
        }
        Served::Unchecked(problem) => (
            Code::WebhookUnchecked,
            format!("the certificate of Service {service} cannot be checked from here: {problem}"),
        ),
        Served::Trusted(end) if *end - now < SOON => (
            Code::WebhookCertificateEnds,
            format!(
                "the certificate that Service {service} shows expires at {}",
                certificate::rfc3339(*end)
            ),
        ),
        Served::Trusted(_) => return None,
    })
}

/// Namespaces for whose pods the API server calls two injectors. matchConditions are ignored,
/// because those of the chart exclude no pod that asks for a sidecar.
fn overlaps(seen: &Snapshot, webhooks: &[Webhook]) -> Vec<Finding> {
    let Some(namespaces) = &seen.namespaces else { return Vec::new() };
    let mut overlaps: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    for (index, first) in webhooks.iter().enumerate() {
        for second in &webhooks[index + 1..] {
            let is_of_one = first.configuration == second.configuration;
            let is_theirs = first.owner == Owner::Consul && second.owner == Owner::Consul;
            if is_of_one || is_theirs {
                continue;
            }
            let both = namespaces.iter().filter(|(_, labels)| {
                first.namespaces.matches(labels) && second.namespaces.matches(labels)
            });
            let pair = (first.configuration.as_str(), second.configuration.as_str());
            overlaps.entry(pair).or_default().extend(both.map(|(name, _)| name.as_str()));
        }
    }
    overlaps
        .into_iter()
        .filter(|(_, both)| !both.is_empty())
        .map(|((first, second), both)| {
            let both: Vec<String> = both.into_iter().map(str::to_owned).collect();
            Finding::new(Code::WebhookOverlaps, KIND, first).saying(format_args!(
                "the API server calls both it and {second} for pods of the namespaces {}",
                some(&both)
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::selector::Selector;
    use super::*;
    use crate::policy::Cluster;
    use crate::policy::tests::policy_of;

    const NOW: i64 = 1_000_000;

    fn codes(seen: &Snapshot) -> Vec<Code> {
        let (policy, cluster) = (policy_of(&[]), Cluster::default());
        let by = Judging { now: NOW, ..Judging::of(&policy, &cluster) };
        judge(seen, by).into_iter().map(|finding| finding.code).collect()
    }

    fn webhook() -> Webhook {
        Webhook {
            configuration: "mesh-connect-inject".to_owned(),
            name: "mesh-connect-inject.consul.hashicorp.com".to_owned(),
            fails_closed: true,
            ca_bundle: "PEM".to_owned(),
            service: Some(("consul".to_owned(), "mesh-connect-inject".to_owned(), 443)),
            served: Some(Served::Trusted(NOW + 20 * 24 * 3600)),
            ..Webhook::default()
        }
    }

    fn with(webhooks: Vec<Webhook>) -> Snapshot {
        let labels = |name: &str| BTreeMap::from([("name".to_owned(), name.to_owned())]);
        let namespaces = ["shop", "bank"].map(|name| (name.to_owned(), labels(name)));
        Snapshot {
            webhooks: Some(webhooks),
            namespaces: Some(namespaces.into()),
            ..Snapshot::default()
        }
    }

    #[test]
    fn the_webhooks_of_the_chart_cause_no_finding() {
        let advice = Webhook { fails_closed: false, ..webhook() };
        assert_eq!(codes(&with(vec![webhook(), advice])), []);
        assert_eq!(codes(&Snapshot::default()), [], "no permission to read webhooks");
    }

    /// The serving certificate expired, caBundle was overwritten. Reported in
    /// <https://github.com/hashicorp/consul-k8s/issues/857>.
    #[test]
    fn a_webhook_that_the_api_server_cannot_call_or_trust_is_found() {
        for (changed, code) in [
            (Webhook { ca_bundle: String::new(), ..webhook() }, Code::WebhookUntrusted),
            (
                Webhook { served: Some(Served::Untrusted("x".to_owned())), ..webhook() },
                Code::WebhookUntrusted,
            ),
            (
                Webhook { served: Some(Served::Unreachable("x".to_owned())), ..webhook() },
                Code::WebhookUnreachable,
            ),
            (
                Webhook { served: Some(Served::Unchecked("x".to_owned())), ..webhook() },
                Code::WebhookUnchecked,
            ),
            (
                Webhook { served: Some(Served::Trusted(NOW + 60)), ..webhook() },
                Code::WebhookCertificateEnds,
            ),
            (Webhook { fails_closed: false, ..webhook() }, Code::WebhookIgnoresFailures),
        ] {
            assert_eq!(codes(&with(vec![changed])), [code]);
        }
        assert_eq!(codes(&with(Vec::new())), [Code::WebhookMissing]);
    }

    /// The chart creates six webhooks with one Service.
    #[test]
    fn a_problem_of_a_service_that_several_webhooks_share_is_found_once() {
        let seen = |served: Served| {
            let webhook = Webhook { served: Some(served), ..webhook() };
            let advice = Webhook { name: "advice".to_owned(), ..webhook.clone() };
            codes(&with(vec![webhook, advice]))
        };
        assert_eq!(seen(Served::Unreachable("x".to_owned())), [Code::WebhookUnreachable]);
        assert_eq!(seen(Served::Unchecked("x".to_owned())), [Code::WebhookUnchecked]);
    }

    #[test]
    fn a_second_injector_for_the_same_namespace_is_found_once() {
        let consuls = |selector| Webhook {
            configuration: "consul-connect-injector".to_owned(),
            owner: Owner::Consul,
            namespaces: Selector::of(&selector),
            ..webhook()
        };
        let seen = with(vec![webhook(), webhook(), consuls(json!({}))]);
        assert_eq!(codes(&seen), [Code::WebhookOverlaps]);
        let apart = consuls(json!({"matchLabels": {"name": "other"}}));
        assert_eq!(codes(&with(vec![webhook(), apart.clone()])), []);
        // Each injector has several webhooks.
        let seen = with(vec![webhook(), apart, consuls(json!({}))]);
        assert_eq!(codes(&seen), [Code::WebhookOverlaps]);
    }
}
