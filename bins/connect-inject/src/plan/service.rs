//! The registration: names, ports, tags, meta and proxy settings.

use std::collections::BTreeMap;

use registration::{name, port};
use serde_json::{Map, Value};

use super::taken::Owner;
use super::{Surroundings, Taken, read};
use crate::annotation;
use crate::names::sidecar_of;
use crate::outcome::{Denial, Reason, Warnings};
use crate::pod::{Container, Pod};

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Service {
    pub(crate) name: String,
    /// `None` for a client, which accepts no connections.
    pub(crate) port: Option<u16>,
    /// Additional services of the pod, with their ports.
    pub(crate) more: Vec<(String, u16)>,
    pub(crate) tags: Vec<String>,
    pub(crate) meta: BTreeMap<String, String>,
    /// Opaque proxy configuration.
    pub(crate) proxy_config: Map<String, Value>,
}

/// Maximum number of services. Each has an Envoy; more should be split across pods.
const MOST: u16 = 8;

/// Reads the annotations, and marks the services' ports as taken.
pub(super) fn service(
    pod: Pod<'_>,
    around: &Surroundings<'_>,
    taken: &mut Taken<'_>,
    defaults: &mut Vec<(&'static str, String)>,
    warnings: &mut Warnings,
) -> Result<Service, Denial> {
    let mut names = names(pod, around.application(), defaults)?.into_iter();
    let ports = ports(pod, around, taken, names.len(), defaults)?;
    for port in &ports {
        taken.add(*port, Owner::Service);
    }
    let mut ports = ports.into_iter();
    Ok(Service {
        name: names.next().unwrap_or_default(),
        port: ports.next(),
        more: names.zip(ports).collect(),
        tags: tags(pod, warnings)?,
        meta: meta(pod)?,
        proxy_config: proxy_config(pod)?,
    })
}

/// Number of services of the pod.
pub(super) fn count(pod: Pod<'_>) -> Result<u16, Denial> {
    let key = annotation::SERVICE;
    let Some(value) = pod.annotation(key)? else { return Ok(1) };
    let count = value.split(',').count();
    u16::try_from(count).ok().filter(|count| *count <= MOST).ok_or_else(|| {
        let problem = format!("{count} services in one pod: at most {MOST}");
        Denial::annotation(Reason::SeveralServices, key, value, problem)
    })
}

/// Service names: from the annotation, or the name of the application's container.
fn names(
    pod: Pod<'_>,
    first: Container<'_>,
    defaults: &mut Vec<(&'static str, String)>,
) -> Result<Vec<String>, Denial> {
    let reason = Reason::InvalidService;
    let key = annotation::SERVICE;
    if let Some(value) = pod.annotation(key)? {
        let mut names: Vec<String> = Vec::new();
        for name in elements(value) {
            let deny = |problem: String| Denial::annotation(reason, key, value, problem);
            name::check(name).map_err(|error| deny(error.to_string()))?;
            if names.iter().any(|known| known == name) {
                return Err(deny(format!("`{name}` is listed twice")));
            }
            if !names.is_empty() && !is_part_of_a_containers_name(name) {
                return Err(deny(format!(
                    "`{}` is not a valid name for this service's sidecar container: expected \
                     lower-case letters, digits and `-`, or list `{name}` first",
                    sidecar_of(name)
                )));
            }
            names.push(name.to_owned());
        }
        return Ok(names);
    }
    name::check(first.name).map_err(|error| {
        let problem = format!(
            "the name of container `{}` is invalid for a service ({error}): set annotation `{key}`",
            first.name
        );
        Denial::new(reason, problem)
    })?;
    defaults.push((key, first.name.to_owned()));
    Ok(vec![first.name.to_owned()])
}

/// Whether the name of the service's sidecar container is valid.
///
/// Source: RFC 1123 label names in "Object Names and IDs" of the Kubernetes documentation.
fn is_part_of_a_containers_name(service: &str) -> bool {
    const LONGEST: usize = 63;
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    service.chars().all(legal) && sidecar_of(service).len() <= LONGEST
}

/// Service ports: from the annotation, or the first port that a container exposes. Empty
/// for a single service that is only a client.
fn ports(
    pod: Pod<'_>,
    around: &Surroundings<'_>,
    taken: &Taken<'_>,
    services: usize,
    defaults: &mut Vec<(&'static str, String)>,
) -> Result<Vec<u16>, Denial> {
    let key = annotation::SERVICE_PORT;
    let Some(value) = pod.annotation(key)? else {
        if services > 1 {
            let problem = format!(
                "{services} services require {services} ports: set annotation `{key}`, in the same order"
            );
            return Err(Denial::new(Reason::SeveralServices, problem));
        }
        let Some(first) = around.default_port() else { return Ok(Vec::new()) };
        let written = first.name.map_or_else(|| first.number.to_string(), str::to_owned);
        defaults.push((key, written));
        return Ok(vec![first.number]);
    };
    let ports = elements(value);
    if ports.len() != services {
        let problem = format!(
            "{services} {} and {} ports: one port for each name in `{}`, in the same order",
            if services == 1 { "service" } else { "services" },
            ports.len(),
            annotation::SERVICE
        );
        return Err(Denial::annotation(Reason::SeveralServices, key, value, problem));
    }
    let resolved = ports.into_iter().map(|port| {
        let port = port::resolve(port, &around.named()).map_err(|error| error.to_string())?;
        match taken.owner_but(port, |owner| matches!(owner, Owner::Container(_))) {
            Some(owner) => Err(format!("port {port} is {owner}: choose another port")),
            None => Ok(port),
        }
    });
    resolved
        .collect::<Result<_, String>>()
        .map_err(|problem| Denial::annotation(Reason::InvalidServicePort, key, value, problem))
}

/// Splits a list at commas and trims its elements. A single value is not trimmed, like the
/// other annotations.
fn elements(value: &str) -> Vec<&str> {
    if value.contains(',') { value.split(',').map(str::trim).collect() } else { vec![value] }
}

// === impl Service ===

impl Service {
    /// All services of the pod in their order, with their ports.
    pub(crate) fn each(&self) -> impl Iterator<Item = (&str, Option<u16>)> {
        let more = self.more.iter().map(|(name, port)| (name.as_str(), Some(*port)));
        std::iter::once((self.name.as_str(), self.port)).chain(more)
    }
}

/// The tags, from both names of the annotation.
fn tags(pod: Pod<'_>, warnings: &mut Warnings) -> Result<Vec<String>, Denial> {
    let mut tags = Vec::new();
    for key in [annotation::TAGS, annotation::CONNECT_TAGS] {
        if let Some(value) = pod.annotation(key)? {
            tags.extend(split_tags(value));
            if key == annotation::CONNECT_TAGS {
                warnings.push(|| {
                    format!("use `{}`: annotation `{key}` is its old name", annotation::TAGS)
                });
            }
        }
    }
    Ok(tags)
}

/// Splits at commas that follow no backslash. Trims the tags and drops empty ones.
fn split_tags(list: &str) -> Vec<String> {
    let mut tags = vec![String::new()];
    let mut rest = list;
    while let Some(at) = rest.find(',') {
        let (piece, behind) = (&rest[..at], &rest[at + 1..]);
        let escaped = piece.strip_suffix('\\');
        if let Some(tag) = tags.last_mut() {
            tag.push_str(escaped.unwrap_or(piece));
            tag.push_str(if escaped.is_some() { "," } else { "" });
        }
        if escaped.is_none() {
            tags.push(String::new());
        }
        rest = behind;
    }
    if let Some(tag) = tags.last_mut() {
        tag.push_str(rest);
    }
    tags.iter().map(|tag| tag.trim()).filter(|tag| !tag.is_empty()).map(str::to_owned).collect()
}

/// The service's meta.
///
/// Source of the limits: Consul's rules for service meta.
fn meta(pod: Pod<'_>) -> Result<BTreeMap<String, String>, Denial> {
    const OURS: [&str; 2] = ["pod-name", "k8s-namespace"];
    const MOST_PAIRS: usize = 64;
    const MOST_KEY: usize = 128;
    const MOST_VALUE: usize = 512;
    let mut meta = BTreeMap::new();
    let keys = pod.annotations().into_iter().flatten().map(|(key, _)| key);
    for annotation in keys {
        let Some(key) = annotation.strip_prefix(annotation::META).filter(|key| !key.is_empty())
        else {
            continue;
        };
        let Some(value) = pod.annotation(annotation)? else { continue };
        let deny =
            |problem: String| Denial::annotation(Reason::InvalidMeta, annotation, value, problem);
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if let Some(at) = key.chars().position(|c| !legal(c)) {
            return Err(deny(format!(
                "column {} of the key: expected letters, digits, `-` or `_`",
                at + 1
            )));
        }
        if OURS.contains(&key) || key.starts_with("consul-") {
            return Err(deny(format!("the key `{key}` is reserved: choose another")));
        }
        if key.len() > MOST_KEY || value.len() > MOST_VALUE {
            return Err(deny(format!(
                "too long: at most {MOST_KEY} bytes of key and {MOST_VALUE} of value"
            )));
        }
        meta.insert(key.to_owned(), value.to_owned());
    }
    let most = MOST_PAIRS - OURS.len();
    if meta.len() > most {
        let problem =
            format!("{} annotations `{}KEY`: at most {most}", meta.len(), annotation::META);
        return Err(Denial::new(Reason::InvalidMeta, problem));
    }
    Ok(meta)
}

fn proxy_config(pod: Pod<'_>) -> Result<Map<String, Value>, Denial> {
    let config = read(pod, annotation::PROXY_CONFIG, Reason::InvalidProxyConfig, |text| {
        serde_json::from_str(text).map_err(|error| format!("expected a JSON object: {error}"))
    })?;
    Ok(config.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::plan::tests::plan_alone;
    use crate::policy::tests::policy;

    fn planned(annotations: &Value) -> Result<Service, Denial> {
        let pod = json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "app"}]}});
        plan_alone(&pod, &policy()).map(|plan| plan.service)
    }

    #[test]
    fn tags_are_split_at_commas_without_a_backslash() {
        for (list, tags) in [
            ("", &[][..]),
            ("a", &["a"]),
            (" a , b ,, c ", &["a", "b", "c"]),
            (r"a\,b,c", &["a,b", "c"]),
            (r"\,", &[","]),
            (r"a\b,\\", &[r"a\b", r"\\"]),
            ("$POD_NAME,$(id)", &["$POD_NAME", "$(id)"]),
            ("a,a", &["a", "a"]),
        ] {
            assert_eq!(split_tags(list), tags, "{list}");
        }
        let service = planned(&json!({
            annotation::TAGS: "a", annotation::CONNECT_TAGS: "b",
        }))
        .unwrap();
        assert_eq!(service.tags, ["a", "b"]);
    }

    #[test]
    fn each_meta_annotation_becomes_a_meta_key() {
        let service = planned(&json!({
            "consul.hashicorp.com/service-meta-b": "2",
            "consul.hashicorp.com/service-meta-A_1": "x=y, \"z\"",
            "consul.hashicorp.com/service-meta-": "no key",
        }))
        .unwrap();
        let meta: Vec<_> = service.meta.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(meta, [("A_1", "x=y, \"z\""), ("b", "2")]);
    }

    /// The agent would reject the registration, and the pod would never start.
    #[test]
    fn meta_that_the_agent_rejects_is_denied() {
        for (key, value, problem) in [
            ("a.b", "x", "column 2 of the key"),
            ("pod-name", "x", "reserved"),
            ("k8s-namespace", "x", "reserved"),
            ("consul-x", "x", "reserved"),
            ("a", &"x".repeat(513), "too long"),
            (&"a".repeat(129), "x", "too long"),
        ] {
            let denial =
                planned(&json!({format!("{}{key}", annotation::META): value})).unwrap_err();
            assert_eq!(denial.reason, Reason::InvalidMeta);
            assert!(denial.message.contains(problem), "{}", denial.message);
        }
        let many: Map<_, _> =
            (0..63).map(|n| (format!("{}{n}", annotation::META), "x".into())).collect();
        assert!(planned(&Value::Object(many)).unwrap_err().message.contains("at most 62"));
    }

    #[test]
    fn the_proxy_configuration_is_a_json_object() {
        let service =
            planned(&json!({annotation::PROXY_CONFIG: r#"{"local_connect_timeout_ms": 5}"#}));
        assert_eq!(service.unwrap().proxy_config["local_connect_timeout_ms"], 5);
        for text in ["", "[]", "{", "a=b"] {
            let denial = planned(&json!({annotation::PROXY_CONFIG: text})).unwrap_err();
            assert_eq!(denial.reason, Reason::InvalidProxyConfig);
            assert!(denial.message.contains("a JSON object"), "{}", denial.message);
        }
    }

    proptest! {
        #[test]
        fn tags_are_read_as_written(tags in prop::collection::vec("[a-z,]{1,5}", 0..5)) {
            let list: Vec<_> = tags.iter().map(|tag| tag.replace(',', r"\,")).collect();
            prop_assert_eq!(split_tags(&list.join(", ")), tags);
        }
    }
}
