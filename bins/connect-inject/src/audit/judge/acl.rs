//! Judges the policy's auth method, its tokens and its binding rules.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use consul::catalog::LoginToken;

use super::super::binding::{Account, Selector};
use super::super::finding::{Code, Finding};
use super::super::snapshot::{Pod, PodKey, Snapshot};
use super::Judging;

/// A token is reported only when it is older than `grace` times this factor.
const YOUNG: i64 = 5;

pub(super) fn judge(seen: &Snapshot, by: Judging<'_>) -> Vec<Finding> {
    let Some(login) = &seen.login else { return Vec::new() };
    let Some(method) = &login.method else {
        return vec![
            Finding::new(Code::AuthMethodMissing, "AuthMethod", &login.name)
                .saying("pods are configured to log in with it, but it does not exist"),
        ];
    };
    let mut findings = Vec::new();
    if matches!(method.max_token_ttl.as_str(), "" | "0" | "0s") {
        findings.push(Finding::new(Code::TokensWithoutExpiry, "AuthMethod", &method.name).saying(
            "its tokens never expire: the token of a killed pod stays until somebody deletes it",
        ));
    }
    findings.extend(orphaned(seen, by));
    findings.extend(unmatched(seen));
    findings
}

/// Tokens whose pod is gone and has no registration any more.
fn orphaned(seen: &Snapshot, by: Judging<'_>) -> Vec<Finding> {
    let (Some(login), Some(pods)) = (&seen.login, &seen.pods) else { return Vec::new() };
    let registered: HashSet<&PodKey> =
        seen.registrations.iter().map(|registration| &registration.pod).collect();
    let mut findings = Vec::new();
    for token in &login.tokens {
        let Some(pod) = pod_of(token) else { continue };
        let is_young =
            token.created().is_none_or(|created| by.now - created < by.grace.saturating_mul(YOUNG));
        let is_read = by.namespace.is_none_or(|namespace| namespace == pod.0);
        if is_young || !is_read || !is_ownerless(token, &pod, pods) {
            continue;
        }
        if !pods.contains_key(&pod) && registered.contains(&pod) {
            continue;
        }
        let uid = if pods.contains_key(&pod) { ", and another pod has its name" } else { "" };
        let (namespace, name) = pod;
        findings.push(
            Finding::new(Code::TokenOrphaned, "Token", &token.accessor_id)
                .within(&namespace)
                .saying(format_args!("its pod {namespace}/{name} is gone{uid}")),
        );
    }
    findings
}

/// Whether the token's pod is gone: no pod has its name, or one with another UID does, as
/// happens in a StatefulSet.
pub(in super::super) fn is_ownerless(
    token: &LoginToken,
    pod: &PodKey,
    pods: &BTreeMap<PodKey, Pod>,
) -> bool {
    let Some(found) = pods.get(pod) else { return true };
    token.meta().get("pod-uid").is_some_and(|uid| !found.uid.is_empty() && *uid != found.uid)
}

/// The pod that a token's meta names.
pub(in super::super) fn pod_of(token: &LoginToken) -> Option<PodKey> {
    let meta = token.meta();
    let (namespace, name) = meta.get("pod")?.split_once('/')?;
    (!namespace.is_empty() && !name.is_empty()).then(|| (namespace.to_owned(), name.to_owned()))
}

/// Binding rules that match no service account of a pod with a sidecar.
fn unmatched(seen: &Snapshot) -> Vec<Finding> {
    let (Some(login), Some(pods)) = (&seen.login, &seen.pods) else { return Vec::new() };
    let accounts: BTreeSet<(&str, &str)> = pods
        .iter()
        .filter_map(|((namespace, _), pod)| {
            Some((namespace.as_str(), pod.sidecar.as_ref()?.service_account.as_str()))
        })
        .collect();
    if accounts.is_empty() {
        return Vec::new();
    }
    login
        .rules
        .iter()
        .filter_map(|rule| {
            let selector = Selector::of(&rule.selector)?;
            let excludes = |(namespace, name): &(&str, &str)| {
                selector.matches(&Account { namespace, name }) == Some(false)
            };
            accounts.iter().all(excludes).then(|| {
                Finding::new(Code::BindingRuleUnmatched, "BindingRule", &rule.id).saying(
                    format_args!(
                        "its selector `{}` matches the service account of no pod with a sidecar",
                        rule.selector
                    ),
                )
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use consul::catalog::{AuthMethod, BindingRule};

    use super::super::super::snapshot::{Login, Registration, Sidecar};
    use super::*;
    use crate::policy::Cluster;
    use crate::policy::tests::policy_of;

    /// 2026-11-25T14:00:00Z.
    const NOW: i64 = 1_795_615_200;

    fn codes(seen: &Snapshot) -> Vec<Code> {
        let (policy, cluster) = (policy_of(&[]), Cluster::default());
        let by = Judging { now: NOW, grace: 120, ..Judging::of(&policy, &cluster) };
        judge(seen, by).into_iter().map(|finding| finding.code).collect()
    }

    fn token(description: &str, created: &str) -> LoginToken {
        LoginToken {
            accessor_id: "a".to_owned(),
            description: description.to_owned(),
            create_time: created.to_owned(),
            ..LoginToken::default()
        }
    }

    fn seen() -> Snapshot {
        let sidecar = Sidecar { service_account: "web".to_owned(), ..Sidecar::default() };
        let pod = Pod { sidecar: Some(sidecar), ..Pod::default() };
        let method = AuthMethod { max_token_ttl: "1h0m0s".to_owned(), ..AuthMethod::default() };
        Snapshot {
            pods: Some(BTreeMap::from([(("shop".to_owned(), "web-0".to_owned()), pod)])),
            login: Some(Login {
                name: "k8s".to_owned(),
                method: Some(method),
                tokens: vec![token(
                    r#"token created via login: {"pod":"shop/web-0"}"#,
                    "2026-11-25T10:00:00Z",
                )],
                rules: Vec::new(),
            }),
            ..Snapshot::default()
        }
    }

    /// ACL tokens piled up. Reported in
    /// <https://github.com/hashicorp/consul-k8s/issues/845>.
    #[test]
    fn a_token_whose_pod_is_gone_is_found() {
        let mut seen = seen();
        assert_eq!(codes(&seen), []);
        let gone = r#"token created via login: {"pod":"shop/web-1"}"#;
        let login = seen.login.as_mut().unwrap();
        for kept in [
            token(gone, "2026-11-25T13:55:00Z"),
            token("token created via login: {}", "2026-11-25T10:00:00Z"),
            token("mine", "2026-11-25T10:00:00Z"),
            token(gone, "?"),
        ] {
            login.tokens.push(kept);
        }
        assert_eq!(codes(&seen), [], "young, created by hand, or with an unreadable time");
        seen.login.as_mut().unwrap().tokens.push(token(gone, "2026-11-25T10:00:00Z"));
        assert_eq!(codes(&seen), [Code::TokenOrphaned]);
        // Its registration is still there.
        let registration = Registration {
            pod: ("shop".to_owned(), "web-1".to_owned()),
            ..Registration::default()
        };
        seen.registrations.push(registration);
        assert_eq!(codes(&seen), []);
    }

    /// A StatefulSet gives the next pod the name of the previous one.
    #[test]
    fn a_token_of_an_earlier_pod_with_the_same_name_is_found() {
        let mut seen = seen();
        let of = |uid: &str| {
            let meta =
                format!(r#"token created via login: {{"pod":"shop/web-0","pod-uid":"{uid}"}}"#);
            token(&meta, "2026-11-25T10:00:00Z")
        };
        seen.pods.as_mut().unwrap().values_mut().for_each(|pod| pod.uid = "new".to_owned());
        seen.login.as_mut().unwrap().tokens = vec![of("new")];
        assert_eq!(codes(&seen), []);
        seen.login.as_mut().unwrap().tokens.push(of("old"));
        assert_eq!(codes(&seen), [Code::TokenOrphaned]);
    }

    #[test]
    fn an_auth_method_that_is_missing_or_whose_tokens_never_expire_is_found() {
        let mut seen = seen();
        seen.login.as_mut().unwrap().method.as_mut().unwrap().max_token_ttl = "0s".to_owned();
        assert_eq!(codes(&seen), [Code::TokensWithoutExpiry]);
        seen.login.as_mut().unwrap().method = None;
        assert_eq!(codes(&seen), [Code::AuthMethodMissing]);
    }

    #[test]
    fn a_binding_rule_that_matches_no_pod_is_found_if_its_selector_is_evaluated() {
        for (selector, is_found) in [
            ("", false),
            ("serviceaccount.name!=default", false),
            ("serviceaccount.name == \"web\" and serviceaccount.namespace==shop", false),
            ("serviceaccount.name==webb", true),
            ("serviceaccount.namespace==`bank`", true),
            ("serviceaccount.name==a or serviceaccount.name==b", true),
            ("serviceaccount.uid==x", false),
            ("serviceaccount.name matches `a.*`", false),
            ("serviceaccount.name==a and serviceaccount.uid==x", true),
            ("no selector", false),
        ] {
            let mut seen = seen();
            let rule = BindingRule { selector: selector.to_owned(), ..BindingRule::default() };
            seen.login.as_mut().unwrap().rules.push(rule);
            let found = codes(&seen) == [Code::BindingRuleUnmatched];
            assert_eq!(found, is_found, "{selector}");
        }
    }
}
