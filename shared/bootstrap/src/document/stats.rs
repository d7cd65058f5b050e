//! Tags of Envoy's metrics: Envoy `config.metrics.v3.StatsConfig`.

use serde_json::{Value, json};

use self::Since::{New, NewPlain, Renamed};
use crate::{Error, Input};

/// Rules that extract tags from the names of cluster metrics, which the agent builds as
/// `HASH~SUBSET.SERVICE.NAMESPACE.PARTITION.DATACENTER.ROUTING.TRUSTDOMAIN.consul`, or
/// `SERVICE.NAMESPACE.PEER.external.TRUSTDOMAIN.consul` for peered services.
///
/// In the expressions, `S` stands for one segment, `[^.]+`. The outer group is cut from
/// the metric's name, the inner one is the tag's value.
///
/// Consul 1.9 renamed the tags from `consul.X` to `consul.destination.X`; those marked
/// `Renamed` are written under both names.
const CLUSTER_RULES: [(&str, Since, &str); 11] = [
    ("custom_hash", Renamed, r"((?:(S)~)?(?:S\.)?S\.S\.(?:S\.)?S\.S\.S\.consul\.)"),
    ("service_subset", Renamed, r"((?:S~)?(?:(S)\.)?S\.S\.(?:S\.)?S\.S\.S\.consul\.)"),
    ("service", Renamed, r"((?:S~)?(?:S\.)?(S)\.S\.(?:S\.)?S\.S\.S\.consul\.)"),
    ("namespace", Renamed, r"((?:S~)?(?:S\.)?S\.(S)\.(?:S\.)?S\.S\.S\.consul\.)"),
    ("partition", New, r"((?:S~)?(?:S\.)?S\.S\.(?:(S)\.)?S\.internal[^.]*\.S\.consul\.)"),
    ("datacenter", Renamed, r"((?:S~)?(?:S\.)?S\.S\.(?:S\.)?(S)\.internal[^.]*\.S\.consul\.)"),
    ("peer", NewPlain, r"(S\.(?:S\.)?(S)\.external\.S\.consul\.)"),
    ("routing_type", Renamed, r"((?:S~)?(?:S\.)?S\.S\.(?:S\.)?S\.(S)\.S\.consul\.)"),
    ("trust_domain", Renamed, r"((?:S~)?(?:S\.)?S\.S\.(?:S\.)?S\.S\.(S)\.consul\.)"),
    ("target", Renamed, r"(((?:S~)?(?:S\.)?S\.S\.(?:S\.)?S)\.S\.S\.consul\.)"),
    ("full_target", Renamed, r"(((?:S~)?(?:S\.)?S\.S\.(?:S\.)?S\.S\.S)\.consul\.)"),
];

/// Rules for the metrics of upstream listeners, named
/// `PROTOCOL.upstream.SERVICE.NAMESPACE.PARTITION.DATACENTER` or
/// `PROTOCOL.upstream_peered.SERVICE.NAMESPACE.PEER`.
const UPSTREAM_RULES: [(&str, &str); 5] = [
    ("service", r"upstream(?:_peered)?\.((S)(?:\.S)?(?:\.S)?\.S\.)"),
    ("datacenter", r"upstream\.(S(?:\.S)?(?:\.S)?\.(S)\.)"),
    ("peer", r"upstream_peered\.(S(?:\.S)?\.(S)\.)"),
    ("namespace", r"upstream(?:_peered)?\.(S(?:\.(S))?(?:\.S)?\.S\.)"),
    ("partition", r"upstream\.(S(?:\.S)?(?:\.(S))?\.S\.)"),
];

/// Whether a rule existed before Consul 1.9, under the shorter name.
#[derive(PartialEq)]
enum Since {
    Renamed,
    New,
    /// New, and not used for passthrough clusters.
    NewPlain,
}

/// Consul's default tags and the user's, `NAME=VALUE`, or `NAME` for the value 1. A
/// user's tag replaces a default one with a fixed value.
pub(crate) fn config(input: &Input, user_tags: &[String]) -> Result<Value, Error> {
    let user: Vec<(String, &str)> = user_tags
        .iter()
        .map(|tag| {
            let (name, value) = tag.split_once('=').unwrap_or((tag, "1"));
            if name.is_empty() {
                return Err(Error::StatsTag { tag: tag.clone() });
            }
            Ok((name.to_lowercase(), value))
        })
        .collect::<Result<_, _>>()?;

    let proxy = &input.proxy;
    let own = [
        ("local_cluster", Some(proxy.cluster.as_str())),
        ("consul.source.service", proxy.source_service.as_deref()),
        ("consul.source.namespace", Some(proxy.namespace())),
        ("consul.source.partition", Some(proxy.partition())),
        ("consul.source.datacenter", proxy.datacenter.as_deref()),
    ];

    let mut tags: Vec<Value> = user.iter().map(|(name, value)| fixed(name, value)).collect();
    tags.extend(rules(input.omit_deprecated_tags));
    tags.extend(own.into_iter().filter_map(|(name, value)| {
        let value = value.filter(|value| !value.is_empty())?;
        let overridden = user.iter().any(|(user, _)| user == name);
        (!overridden).then(|| fixed(name, value))
    }));
    Ok(json!({ "stats_tags": tags, "use_all_default_tags": true }))
}

fn rules(omit_deprecated: bool) -> Vec<Value> {
    let mut rules = Vec::new();
    for (name, since, expression) in &CLUSTER_RULES {
        let passthrough = if *since == NewPlain { "" } else { "(?:passthrough~)?" };
        rules.push(rule(
            &format!("consul.destination.{name}"),
            &format!(r"^cluster\.{passthrough}{expression}"),
        ));
    }
    for (name, expression) in UPSTREAM_RULES {
        rules.push(rule(
            &format!("consul.upstream.{name}"),
            &format!(r"^(?:tcp|http)\.{expression}"),
        ));
    }
    if !omit_deprecated {
        for (name, _, expression) in CLUSTER_RULES.iter().filter(|rule| rule.1 == Renamed) {
            rules.push(rule(&format!("consul.{name}"), &format!(r"^cluster\.{expression}")));
        }
    }
    rules
}

fn rule(name: &str, expression: &str) -> Value {
    json!({ "tag_name": name, "regex": expression.replace('S', "[^.]+") })
}

fn fixed(name: &str, value: &str) -> Value {
    json!({ "tag_name": name, "fixed_value": value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::XdsAddress;

    fn tags(input: &Input, user: &[&str]) -> Vec<Value> {
        let user: Vec<String> = user.iter().map(|&tag| tag.to_owned()).collect();
        let config = config(input, &user).unwrap();
        assert_eq!(config["use_all_default_tags"], true);
        config["stats_tags"].as_array().unwrap().clone()
    }

    fn input() -> Input {
        Input::new("web-proxy", "web", XdsAddress::Unix("/s".to_owned()))
    }

    fn value<'a>(tags: &'a [Value], name: &str) -> Option<&'a Value> {
        let tag = tags.iter().find(|tag| tag["tag_name"] == name);
        tag.map(|tag| &tag["fixed_value"])
    }

    #[test]
    fn expressions_are_those_of_consul() {
        let tags = tags(&input(), &[]);
        let regex = |name: &str| {
            let tag = tags.iter().find(|tag| tag["tag_name"] == name).unwrap();
            tag["regex"].as_str().unwrap()
        };
        assert_eq!(
            regex("consul.destination.datacenter"),
            r"^cluster\.(?:passthrough~)?((?:[^.]+~)?(?:[^.]+\.)?[^.]+\.[^.]+\.(?:[^.]+\.)?([^.]+)\.internal[^.]*\.[^.]+\.consul\.)"
        );
        assert_eq!(
            regex("consul.destination.peer"),
            r"^cluster\.([^.]+\.(?:[^.]+\.)?([^.]+)\.external\.[^.]+\.consul\.)"
        );
        assert_eq!(
            regex("consul.upstream.namespace"),
            r"^(?:tcp|http)\.upstream(?:_peered)?\.([^.]+(?:\.([^.]+))?(?:\.[^.]+)?\.[^.]+\.)"
        );
        assert_eq!(
            regex("consul.service"),
            r"^cluster\.((?:[^.]+~)?(?:[^.]+\.)?([^.]+)\.[^.]+\.(?:[^.]+\.)?[^.]+\.[^.]+\.[^.]+\.consul\.)"
        );
    }

    #[test]
    fn deprecated_tags_can_be_left_out() {
        let mut input = input();
        let all = tags(&input, &[]);
        input.omit_deprecated_tags = true;
        let new = tags(&input, &[]);
        assert_eq!(all.len() - new.len(), 9);
        assert!(value(&all, "consul.service").is_some());
        assert!(value(&new, "consul.service").is_none());
        assert!(value(&new, "consul.destination.service").is_some());
    }

    #[test]
    fn user_tags_come_first_and_replace_fixed_ones() {
        let tags = tags(&input(), &["Env=prod=eu", "canary", "local_cluster=mine"]);
        assert_eq!(tags[0], json!({"tag_name": "env", "fixed_value": "prod=eu"}));
        assert_eq!(tags[1], json!({"tag_name": "canary", "fixed_value": "1"}));
        let clusters: Vec<_> = tags.iter().filter(|t| t["tag_name"] == "local_cluster").collect();
        assert_eq!(clusters, [&json!({"tag_name": "local_cluster", "fixed_value": "mine"})]);
    }

    #[test]
    fn a_tag_needs_a_name() {
        let error = config(&input(), &["=x".to_owned()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "proxy config envoy_stats_tags has a tag without a name: \"=x\"; accepted: \
             NAME=VALUE, or NAME for the value 1; hint: remove it or name it"
        );
    }

    #[test]
    fn own_tags_are_skipped_when_unknown() {
        let mut input = input();
        input.proxy.source_service = None;
        let without = tags(&input, &[]);
        assert_eq!(value(&without, "consul.source.service"), None);
        assert_eq!(value(&without, "consul.source.datacenter"), None);
        assert_eq!(value(&without, "consul.source.namespace").unwrap(), "default");

        input.proxy.source_service = Some("web".to_owned());
        input.proxy.datacenter = Some("dc1".to_owned());
        input.proxy.partition = Some("west".to_owned());
        let with = tags(&input, &[]);
        assert_eq!(value(&with, "consul.source.service").unwrap(), "web");
        assert_eq!(value(&with, "consul.source.datacenter").unwrap(), "dc1");
        assert_eq!(value(&with, "consul.source.partition").unwrap(), "west");
    }
}
