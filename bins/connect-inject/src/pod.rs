//! Reads a pod, or a pod template, from raw JSON.
//!
//! Reads only the fields that the injector needs, so a pod may have fields that this
//! release does not know. Null counts as absent, as in Kubernetes.

use std::fmt::Display;

use serde_json::{Map, Value};

use crate::json::{WrongShape, member};

/// A pod or a pod template.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pod<'a> {
    value: &'a Value,
    /// Looked up once, because a review reads about fifty of them.
    annotations: Option<&'a Map<String, Value>>,
    spec: Option<&'a Value>,
    /// `volumeClaimTemplates` of the pod's StatefulSet, whose controller adds a volume for
    /// each.
    claims: Option<&'a Value>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Container<'a> {
    pub(crate) fields: &'a Map<String, Value>,
    pub(crate) name: &'a str,
    /// The field of its list, and its index there.
    position: (&'static str, usize),
}

/// A TCP port that a container exposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Port<'a> {
    pub(crate) name: Option<&'a str>,
    pub(crate) number: u16,
    pub(crate) container: &'a str,
}

const CONTAINERS: &str = "containers";
const INIT_CONTAINERS: &str = "initContainers";

// === impl Pod ===

impl<'a> Pod<'a> {
    pub(crate) fn new(value: &'a Value) -> Self {
        let annotations = value.get("metadata").and_then(|metadata| metadata.get("annotations"));
        let annotations = annotations.and_then(Value::as_object);
        Self { value, annotations, spec: value.get("spec"), claims: None }
    }

    /// Adds the `volumeClaimTemplates` of the StatefulSet that the pod belongs to.
    pub(crate) fn with_claims(self, claims: Option<&'a Value>) -> Self {
        Self { claims, ..self }
    }

    /// Another state of the pod, with the same surroundings.
    pub(crate) fn with_value(self, value: &'a Value) -> Self {
        Self::new(value).with_claims(self.claims)
    }

    pub(crate) fn value(self) -> &'a Value {
        self.value
    }

    /// `None` if the annotations are absent or not an object.
    pub(crate) fn annotations(self) -> Option<&'a Map<String, Value>> {
        self.annotations
    }

    /// `None` if the annotation is absent or null.
    pub(crate) fn annotation(self, key: &str) -> Result<Option<&'a str>, WrongShape> {
        // Not by the map's order: nearly all keys begin alike, so that to compare two of them
        // takes longer than to see that most differ in length.
        let found = self.annotations().into_iter().flatten().find(|(name, _)| *name == key);
        match found.map(|(_, value)| value) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => {
                let pointer = member("/metadata/annotations", key);
                Err(WrongShape::new(pointer, "a string in quotes", other))
            }
        }
    }

    /// `None` if the labels are absent or not an object.
    pub(crate) fn labels(self) -> Option<&'a Map<String, Value>> {
        self.value.get("metadata")?.get("labels")?.as_object()
    }

    /// Size of the annotations in bytes, as Kubernetes counts it: keys and values.
    pub(crate) fn annotations_size(self) -> usize {
        let of = |(key, value): (&String, &Value)| key.len() + value.as_str().map_or(0, str::len);
        self.annotations().into_iter().flatten().map(of).sum()
    }

    pub(crate) fn spec(self, field: &str) -> Option<&'a Value> {
        self.spec?.get(field)
    }

    pub(crate) fn host_network(self) -> bool {
        self.spec("hostNetwork") == Some(&Value::Bool(true))
    }

    /// Whether the pod runs on Windows; the injected containers need Linux.
    ///
    /// Source: "Windows in Kubernetes" of the Kubernetes documentation.
    pub(crate) fn is_windows(self) -> bool {
        let text = |object: &str, field: &str| self.spec(object)?.get(field)?.as_str();
        text("os", "name").or_else(|| text("nodeSelector", "kubernetes.io/os")) == Some("windows")
    }

    /// Whether this is the mirror of a static pod. The kubelet runs a static pod from a
    /// file, so containers injected into the mirror would never run.
    ///
    /// Source: "Create static Pods" of the Kubernetes documentation.
    pub(crate) fn is_mirror(self) -> bool {
        self.annotations().is_some_and(|all| all.contains_key("kubernetes.io/config.mirror"))
    }

    /// Whether the pod has pod-level requests or limits.
    ///
    /// Source: "Assign Pod-level CPU and memory resources" of the Kubernetes documentation.
    pub(crate) fn has_resources(self) -> bool {
        self.spec("resources").and_then(Value::as_object).is_some_and(|all| !all.is_empty())
    }

    /// A pod-level request or limit.
    pub(crate) fn resource(self, bound: &str, name: &str) -> Option<&'a Value> {
        self.spec("resources")?.get(bound)?.get(name)
    }

    pub(crate) fn containers(self) -> Result<Vec<Container<'a>>, WrongShape> {
        self.container_list(CONTAINERS)
    }

    pub(crate) fn init_containers(self) -> Result<Vec<Container<'a>>, WrongShape> {
        self.container_list(INIT_CONTAINERS)
    }

    fn container_list(self, field: &'static str) -> Result<Vec<Container<'a>>, WrongShape> {
        let pointer = format_args!("/spec/{field}");
        elements(self.spec(field), pointer)?
            .iter()
            .enumerate()
            .map(|(index, value)| {
                let pointer = format_args!("{pointer}/{index}");
                let fields = value
                    .as_object()
                    .ok_or_else(|| WrongShape::new(pointer, "an object", value))?;
                let name = match fields.get("name") {
                    Some(Value::String(name)) if !name.is_empty() => name,
                    other => {
                        return Err(WrongShape::new(
                            format_args!("{pointer}/name"),
                            "the name of the container",
                            other.unwrap_or(&Value::Null),
                        ));
                    }
                };
                Ok(Container { fields, name, position: (field, index) })
            })
            .collect()
    }

    pub(crate) fn volume_names(self) -> Result<impl Iterator<Item = &'a str>, WrongShape> {
        let claims = self.claims.and_then(Value::as_array).into_iter().flatten();
        let claimed = claims.filter_map(|claim| claim.get("metadata")?.get("name")?.as_str());
        Ok(self.names("volumes")?.chain(claimed))
    }

    /// Names of the pod's imagePullSecrets.
    pub(crate) fn pull_secret_names(self) -> Result<impl Iterator<Item = &'a str>, WrongShape> {
        self.names("imagePullSecrets")
    }

    fn names(self, field: &str) -> Result<impl Iterator<Item = &'a str> + use<'a>, WrongShape> {
        let list = elements(self.spec(field), format_args!("/spec/{field}"))?;
        Ok(list.iter().filter_map(|element| element.get("name")?.as_str()))
    }
}

// === impl Container ===

impl<'a> Container<'a> {
    /// JSON pointer of the container.
    pub(crate) fn pointer(self) -> String {
        let (list, index) = self.position;
        format!("/spec/{list}/{index}")
    }

    /// Whether it runs for as long as the pod: a sidecar or an application container.
    ///
    /// Source: "Sidecar Containers" of the Kubernetes documentation.
    pub(crate) fn is_long_running(self) -> bool {
        self.position.0 == CONTAINERS
            || self.fields.get("restartPolicy").and_then(Value::as_str) == Some("Always")
    }

    /// The container's request or limit of a resource.
    pub(crate) fn resource(self, bound: &str, name: &str) -> Option<&'a Value> {
        self.fields.get("resources")?.get(bound)?.get(name)
    }

    pub(crate) fn variable_names(self) -> impl Iterator<Item = &'a str> {
        let variables = self.fields.get("env").and_then(Value::as_array);
        variables.into_iter().flatten().filter_map(|variable| variable.get("name")?.as_str())
    }

    pub(crate) fn readiness_probe(self) -> Option<&'a Value> {
        self.fields.get("readinessProbe").filter(|probe| !probe.is_null())
    }

    pub(crate) fn has_pre_stop(self) -> Result<bool, WrongShape> {
        match self.fields.get("lifecycle") {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Object(hooks)) => Ok(hooks.get("preStop").is_some_and(|h| !h.is_null())),
            Some(other) => {
                let pointer = format_args!("{}/lifecycle", self.pointer());
                Err(WrongShape::new(pointer, "an object", other))
            }
        }
    }

    pub(crate) fn mounts_at(self, path: &str) -> Result<bool, WrongShape> {
        let (list, index) = self.position;
        let pointer = format_args!("/spec/{list}/{index}/volumeMounts");
        let mounts = elements(self.fields.get("volumeMounts"), pointer)?;
        let mut paths = mounts.iter().filter_map(|mount| mount.get("mountPath")?.as_str());
        Ok(paths.any(|mounted| mounted.trim_end_matches('/') == path))
    }

    /// The container's TCP ports; Connect supports no other protocol.
    pub(crate) fn ports(self) -> Result<Vec<Port<'a>>, WrongShape> {
        let (list, index) = self.position;
        let pointer = format_args!("/spec/{list}/{index}/ports");
        let mut ports = Vec::new();
        for (index, value) in elements(self.fields.get("ports"), pointer)?.iter().enumerate() {
            let pointer = format_args!("{pointer}/{index}");
            let field = |name| value.get(name).unwrap_or(&Value::Null);
            if !value.is_object() {
                return Err(WrongShape::new(pointer, "an object", value));
            }
            if !matches!(field("protocol").as_str(), None | Some("" | "TCP")) {
                continue;
            }
            let number = field("containerPort");
            let number = number
                .as_u64()
                .and_then(|number| u16::try_from(number).ok())
                .filter(|number| *number > 0)
                .ok_or_else(|| {
                    let pointer = format_args!("{pointer}/containerPort");
                    WrongShape::new(pointer, "a number from 1 to 65535", number)
                })?;
            let name = match field("name") {
                Value::Null => None,
                Value::String(name) => Some(name.as_str()).filter(|name| !name.is_empty()),
                other => {
                    return Err(WrongShape::new(format_args!("{pointer}/name"), "a string", other));
                }
            };
            ports.push(Port { name, number, container: self.name });
        }
        Ok(ports)
    }
}

/// The elements of an array; empty if it is absent. `pointer` is only written for an error.
fn elements(value: Option<&Value>, pointer: impl Display) -> Result<&[Value], WrongShape> {
    match value {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(elements)) => Ok(elements),
        Some(other) => Err(WrongShape::new(pointer, "an array", other)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_tcp_ports_count() {
        let pod = json!({"spec": {"containers": [{"name": "app", "ports": [
            {"containerPort": 53, "protocol": "UDP"},
            {"containerPort": 8080, "name": "http"},
            {"containerPort": 9090, "protocol": "TCP", "name": ""},
        ]}]}});
        let containers = Pod::new(&pod).containers().unwrap();
        assert_eq!(
            containers[0].ports().unwrap(),
            [
                Port { name: Some("http"), number: 8080, container: "app" },
                Port { name: None, number: 9090, container: "app" },
            ]
        );
    }

    #[test]
    fn a_wrong_type_is_an_error_with_its_field() {
        for (pod, message) in [
            (
                json!({"spec": {"containers": 5}}),
                "`spec.containers`: expected an array, found the number 5",
            ),
            (
                json!({"spec": {"containers": ["x"]}}),
                "`spec.containers[0]`: expected an object, found the string `x`",
            ),
            (
                json!({"spec": {"containers": [{}]}}),
                "`spec.containers[0].name`: expected the name of the container, found nothing",
            ),
        ] {
            assert_eq!(Pod::new(&pod).containers().unwrap_err().to_string(), message);
        }
        let pod = json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 0}]}]}});
        assert_eq!(
            Pod::new(&pod).containers().unwrap()[0].ports().unwrap_err().to_string(),
            "`spec.containers[0].ports[0].containerPort`: expected a number from 1 to 65535, found the number 0"
        );
    }

    /// `true` and `"true"`. Reported in
    /// <https://github.com/hashicorp/consul-k8s/issues/1584>.
    #[test]
    fn an_annotation_is_a_string() {
        let pod = json!({"metadata": {"annotations": {"a/b": true, "c": null, "d": "e"}}});
        let pod = Pod::new(&pod);
        assert_eq!(
            pod.annotation("a/b").unwrap_err().to_string(),
            "`metadata.annotations.a/b`: expected a string in quotes, found the boolean true"
        );
        assert_eq!(pod.annotation("c"), Ok(None));
        assert_eq!(pod.annotation("d"), Ok(Some("e")));
    }
}
