//! Compares upstreams and intentions with the services that exist.

use std::collections::{BTreeMap, BTreeSet};

use consul::catalog::Intention;

use super::super::finding::{Code, Finding};
use super::super::snapshot::Snapshot;
use super::some;

const ANY: &str = "*";

pub(super) fn judge(seen: &Snapshot) -> Vec<Finding> {
    let mut sources: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for registration in seen.registrations.iter().filter(|registration| {
        registration.is_ours()
            && seen.pods.as_ref().is_none_or(|pods| pods.contains_key(&registration.pod))
    }) {
        for upstream in &registration.upstreams {
            sources.entry(upstream).or_default().insert(&registration.destination);
        }
    }
    let mut findings = Vec::new();
    if let Some(services) = &seen.services {
        let is_known = |name: &str| services.contains(name) || seen.virtual_services.contains(name);
        for (upstream, sources) in sources.iter().filter(|(upstream, _)| !is_known(upstream)) {
            let sources: Vec<String> = sources.iter().map(|source| (*source).to_owned()).collect();
            findings.push(Finding::new(Code::UpstreamUnserved, "Service", *upstream).saying(
                format_args!("it is an upstream of {}, but nobody registers it", some(&sources)),
            ));
        }
        // Intentions are for all datacenters, and only this one's services were read.
        if seen.is_only_datacenter {
            findings.extend(unmatched(seen.intentions.as_deref().unwrap_or_default(), is_known));
        }
    }
    if let Some(intentions) = &seen.intentions {
        // Of a virtual service, the intentions of the services to which it leads decide.
        let real = sources.iter().filter(|(name, _)| !seen.virtual_services.contains(**name));
        for (upstream, sources) in real {
            for source in sources.iter().filter(|source| {
                is_allowed(intentions, source, upstream).or(seen.default_allows) == Some(false)
            }) {
                let name = format!("{source} -> {upstream}");
                findings.push(Finding::new(Code::UpstreamDenied, "Upstream", name).saying(
                    format_args!(
                        "`{upstream}` is an upstream of `{source}`, but intentions deny it"
                    ),
                ));
            }
        }
    }
    findings
}

/// Intentions that name a service which nobody registers.
fn unmatched(intentions: &[Intention], is_known: impl Fn(&str) -> bool) -> Vec<Finding> {
    let lacks = |name: &str| name != ANY && !is_known(name);
    let mut findings = Vec::new();
    for intention in intentions {
        let Intention { source_name, source_peer, destination_name, .. } = intention;
        let source = Some(source_name).filter(|name| source_peer.is_empty() && lacks(name));
        let missing: Vec<String> = source
            .into_iter()
            .chain(Some(destination_name).filter(|name| lacks(name)))
            .cloned()
            .collect();
        if !missing.is_empty() {
            let name = format!("{source_name} -> {destination_name}");
            findings.push(
                Finding::new(Code::IntentionUnmatched, "Intention", name)
                    .saying(format_args!("nobody registers {}", missing.join(" or "))),
            );
        }
    }
    findings
}

/// Whether one service may connect to another: the most specific intention decides, in the
/// precedence of Consul's page "Service intentions". `None` if no intention matches.
pub(in super::super) fn is_allowed(
    intentions: &[Intention],
    source: &str,
    destination: &str,
) -> Option<bool> {
    let matches = |name: &str, wanted: &str| name == wanted || name == ANY;
    let decides = intentions
        .iter()
        .filter(|intention| {
            intention.source_peer.is_empty()
                && matches(&intention.source_name, source)
                && matches(&intention.destination_name, destination)
        })
        .max_by_key(|intention| {
            (intention.destination_name != ANY, intention.source_name != ANY)
        })?;
    // An intention without an action has permissions, which may allow some requests.
    Some(decides.action != "deny")
}

#[cfg(test)]
mod tests {
    use super::super::super::snapshot::{Pod, Registration};
    use super::*;

    fn intention(source: &str, destination: &str, action: &str) -> Intention {
        Intention {
            source_name: source.to_owned(),
            destination_name: destination.to_owned(),
            action: action.to_owned(),
            ..Intention::default()
        }
    }

    /// A pod of `web` with the upstreams `db` and `auth`.
    fn seen(intentions: Vec<Intention>) -> Snapshot {
        let pod = ("shop".to_owned(), "web-0".to_owned());
        let proxy = Registration {
            id: "shop_web-0_web-sidecar-proxy".to_owned(),
            pod: pod.clone(),
            is_proxy: true,
            destination: "web".to_owned(),
            upstreams: vec!["auth".to_owned(), "db".to_owned()],
            ..Registration::default()
        };
        Snapshot {
            pods: Some(BTreeMap::from([(pod, Pod::default())])),
            registrations: vec![proxy],
            services: Some(["web", "db", "auth"].map(str::to_owned).into()),
            intentions: Some(intentions),
            is_only_datacenter: true,
            ..Snapshot::default()
        }
    }

    fn codes(seen: &Snapshot) -> Vec<(Code, String)> {
        judge(seen).into_iter().map(|finding| (finding.code, finding.name)).collect()
    }

    #[test]
    fn an_upstream_that_nobody_registers_is_found() {
        let mut seen = seen(Vec::new());
        assert_eq!(codes(&seen), []);
        seen.services.as_mut().unwrap().remove("db");
        assert_eq!(codes(&seen), [(Code::UpstreamUnserved, "db".to_owned())]);
        seen.virtual_services.insert("db".to_owned());
        assert_eq!(codes(&seen), []);
        seen.virtual_services.clear();
        seen.pods = Some(BTreeMap::new());
        assert_eq!(codes(&seen), [], "the pod is gone");
    }

    #[test]
    fn an_upstream_that_intentions_deny_is_found() {
        let denied = (Code::UpstreamDenied, "web -> db".to_owned());
        let all = intention("*", "*", "deny");
        let some = |more: &[Intention]| seen([&[intention("web", "auth", "allow")], more].concat());
        assert_eq!(codes(&some(std::slice::from_ref(&all))), *std::slice::from_ref(&denied));
        assert_eq!(codes(&some(&[all.clone(), intention("*", "db", "allow")])), []);
        let specific = [intention("*", "db", "allow"), intention("web", "db", "deny")];
        assert_eq!(codes(&some(&specific)), *std::slice::from_ref(&denied));
        // It depends on the request, so nothing is reported.
        assert_eq!(codes(&some(&[all, intention("web", "db", "")])), []);
        // No intention matches, so Consul's default decides.
        let mut by_default = some(&[]);
        by_default.default_allows = Some(false);
        assert_eq!(codes(&by_default), [denied]);
        by_default.default_allows = Some(true);
        assert_eq!(codes(&by_default), []);
        // A service-resolver may lead to another service, whose intentions decide.
        by_default.default_allows = Some(false);
        by_default.virtual_services.insert("db".to_owned());
        assert_eq!(codes(&by_default), []);
    }

    #[test]
    fn an_intention_for_a_service_that_nobody_registers_is_found() {
        let mut seen = seen(vec![intention("web", "dbb", "allow"), intention("*", "web", "allow")]);
        assert_eq!(codes(&seen), [(Code::IntentionUnmatched, "web -> dbb".to_owned())]);
        let found = &judge(&seen)[0];
        assert_eq!(found.detail, "nobody registers dbb");
        seen.is_only_datacenter = false;
        assert_eq!(codes(&seen), [], "another datacenter may have it");
    }
}
