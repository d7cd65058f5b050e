//! Deserializes a pod. Keeps only what the injector reads, and limits its size in memory.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::names::{FOLDER, VARIABLE};

/// Maximum memory of a pod in bytes.
const MOST: usize = 4 << 20;
/// Estimated memory of a value in bytes: an object is allocated with room for eleven
/// members, an array for four elements. A growing array is in memory twice for a moment.
const OBJECT: usize = 640;
const ELEMENT: usize = 96;
const ARRAY: usize = 128;

/// Text by which this error is recognized.
pub(super) const TOO_MANY_VALUES: &str = "more JSON values than any real pod";

/// Which part of a value is kept.
#[derive(Clone, Copy)]
enum Keep {
    All,
    Pod,
    Metadata,
    Spec,
    Containers,
    Container,
    /// Only the names of a list's elements.
    Names,
    /// Only environment variables whose name one of ours may have.
    Variables,
    Variable,
    /// Null if the name can't be one of ours.
    VariableName,
    /// Only mounts at our mount path.
    Mounts,
    Name,
}

/// A member's key; yields what to keep of its value, or `None` to skip it.
struct Key(Keep);

/// A value.
#[derive(Clone, Copy)]
struct Seed<'b> {
    keep: Keep,
    /// Bytes of memory that are left.
    left: &'b Cell<usize>,
}

pub(super) fn pod<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    let left = Cell::new(MOST);
    let value = Seed { keep: Keep::Pod, left: &left }.deserialize(deserializer)?;
    Ok(Some(value).filter(|value| !value.is_null()))
}

// === impl Keep ===

impl Keep {
    /// What to keep of a member; `None` to skip it.
    fn member(self, key: &str) -> Option<Self> {
        match (self, key) {
            (Self::All, _)
            | (Self::Metadata, "annotations" | "labels" | "name" | "generateName")
            | (
                Self::Spec,
                "hostNetwork"
                | "os"
                | "nodeSelector"
                | "resources"
                | "serviceAccountName"
                | "serviceAccount"
                | "restartPolicy"
                | "terminationGracePeriodSeconds"
                | "securityContext",
            )
            | (
                Self::Container,
                "name"
                | "restartPolicy"
                | "ports"
                | "lifecycle"
                | "securityContext"
                | "resources"
                // A probe that the sidecar runs is replaced as a whole.
                | "livenessProbe"
                | "readinessProbe"
                | "startupProbe",
            )
            | (Self::Name, "name" | "mountPath") => Some(Self::All),
            (Self::Pod, "metadata") => Some(Self::Metadata),
            (Self::Pod, "spec") => Some(Self::Spec),
            (Self::Spec, "containers" | "initContainers") => Some(Self::Containers),
            (Self::Spec, "volumes" | "imagePullSecrets") => Some(Self::Names),
            (Self::Container, "env") => Some(Self::Variables),
            (Self::Variable, "name") => Some(Self::VariableName),
            (Self::Container, "volumeMounts") => Some(Self::Mounts),
            _ => None,
        }
    }

    /// What to keep of an element.
    fn element(self) -> Self {
        match self {
            Self::Containers => Self::Container,
            Self::Variables => Self::Variable,
            Self::Names | Self::Mounts => Self::Name,
            _ => Self::All,
        }
    }

    /// Whether to keep an element once it is read; of some lists, almost none is kept.
    fn holds(self, element: &Value) -> bool {
        let text = |key| element.get(key).and_then(Value::as_str).unwrap_or_default();
        match self {
            Self::Variables => text("name").contains(VARIABLE),
            Self::Mounts => text("mountPath").trim_end_matches('/') == FOLDER,
            _ => true,
        }
    }
}

// === impl Key ===

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Option<(Cow<'de, str>, Keep)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Option<(Cow<'de, str>, Keep)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E: Error>(self, key: &'de str) -> Result<Self::Value, E> {
        Ok(self.0.member(key).map(|keep| (key.into(), keep)))
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.member(key).map(|keep| (key.to_owned().into(), keep)))
    }
}

// === impl Seed ===

impl Seed<'_> {
    fn take<E: Error>(&self, bytes: usize) -> Result<(), E> {
        let left = self.left.get().checked_sub(bytes).ok_or_else(|| E::custom(TOO_MANY_VALUES))?;
        self.left.set(left);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a part of a pod")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        // There may be thousands of variables: allocate nothing for names that can't be
        // ours.
        if matches!(self.keep, Keep::VariableName) && !value.contains(VARIABLE) {
            return Ok(Value::Null);
        }
        self.take(value.len())?;
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        let seed = Self { keep: self.keep.element(), ..self };
        loop {
            let before = self.left.get();
            let Some(element) = elements.next_element_seed(seed)? else { break };
            if !self.keep.holds(&element) {
                self.left.set(before);
                continue;
            }
            self.take(if array.is_empty() { ARRAY } else { ELEMENT })?;
            array.push(element);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        self.take(OBJECT)?;
        let mut object = Map::new();
        while let Some(key) = members.next_key_seed(Key(self.keep))? {
            if let Some((key, keep)) = key {
                // More than the members for which an object is allocated.
                self.take(key.len() + if object.len() < 11 { 0 } else { OBJECT / 6 })?;
                let value = members.next_value_seed(Self { keep, ..self })?;
                if matches!((keep, &value), (Keep::VariableName, Value::Null)) {
                    // Of duplicate keys, the last one counts.
                    object.remove(&*key);
                } else {
                    object.insert(key.into_owned(), value);
                }
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::annotation;
    use crate::inject::generated::{generous, pods};
    use crate::json::patch::patch;
    use crate::judge::judge;
    use crate::policy::{Cluster, Policy};

    fn received(text: &str) -> Result<Option<Value>, serde_json::Error> {
        pod(&mut serde_json::Deserializer::from_str(text))
    }

    #[test]
    fn fields_that_are_not_read_are_not_kept() {
        let text = json!({"metadata": {"uid": "x", "name": "a"}, "status": {"big": [1, 2]},
            "spec": {"x": [[]], "containers": [{"name": "a", "image": "b",
                "livenessProbe": {"periodSeconds": 1, "httpGet": {"port": 1, "httpHeaders": []}},
                "env": [{"name": "DB_CONNECT_SERVICE_PORT", "value": "b"}, {"name": "A"}, 5,
                    {"name": ["A_CONNECT_SERVICE_HOST"]}],
                "volumeMounts": [{"name": "a", "mountPath": "/consul/connect-inject/"},
                    {"name": "b", "mountPath": "/b"}]}]}});
        let kept = json!({"metadata": {"name": "a"},
            "spec": {"containers": [{"name": "a", "env": [{"name": "DB_CONNECT_SERVICE_PORT"}],
                "livenessProbe": {"periodSeconds": 1, "httpGet": {"port": 1, "httpHeaders": []}},
                "volumeMounts": [{"name": "a", "mountPath": "/consul/connect-inject/"}]}]}});
        assert_eq!(received(&text.to_string()).unwrap(), Some(kept));
        let twice = |first: &str, last: &str| {
            let variable = format!(r#"{{"name":{first},"\u006eame":{last}}}"#);
            received(&format!(r#"{{"spec":{{"containers":[{{"env":[{variable}]}}]}}}}"#))
                .unwrap()
                .unwrap()["spec"]["containers"][0]["env"]
                .clone()
        };
        let ours = r#""A_CONNECT_SERVICE_HOST""#;
        assert_eq!(twice(ours, r#""A""#), json!([]));
        assert_eq!(twice(r#""A""#, ours), json!([{"name": "A_CONNECT_SERVICE_HOST"}]));
        assert_eq!(received("null").unwrap(), None);
        assert_eq!(received("[]").unwrap(), Some(json!([])));
    }

    /// A small text can be a large value in memory.
    #[test]
    fn a_pod_of_more_json_values_than_any_real_pod_is_an_error() {
        for (before, part, after) in [
            (r#"{"metadata":{"annotations":["#, r#"{"a":1},"#, "1]}}"),
            (r#"{"metadata":{"annotations":["#, "[],", "1]}}"),
            (r#"{"spec":{"containers":["#, r#"{"name":"a"},"#, "1]}}"),
            (r#"{"spec":{"volumes":["#, "{},", "1]}}"),
            (r#"{"spec":{"containers":[{"name":"a","ports":["#, "{},", "1]}]}}"),
        ] {
            let text = before.to_owned() + &part.repeat((3 << 20) / part.len()) + after;
            let error = received(&text).unwrap_err().to_string();
            assert!(error.contains(TOO_MANY_VALUES), "{error}");
        }
        // The largest possible pods are accepted.
        let annotations: Vec<_> = (0..20_000).map(|n| format!(r#""a/{n}":"x","#)).collect();
        let annotations = annotations.concat();
        assert!(
            received(&format!(r#"{{"metadata":{{"annotations":{{{annotations}"a":""}}}}}}"#))
                .is_ok()
        );
        let container = r#"{"name":"a","resources":{"requests":{"cpu":"1"},"limits":{}},"ports":[{"containerPort":1}]},"#;
        let containers = container.repeat(1000);
        assert!(received(&format!(r#"{{"spec":{{"containers":[{containers}{{}}]}}}}"#)).is_ok());
        let variable = r#"{"name":"NAME","valueFrom":{"secretKeyRef":{"name":"n","key":"k"}}},"#;
        let variables = variable.repeat(1_500_000 / variable.len());
        assert!(
            received(&format!(r#"{{"spec":{{"containers":[{{"env":[{variables}1]}}]}}}}"#)).is_ok()
        );
    }

    /// A probe that the sidecar runs is replaced as a whole: its timing must not be lost.
    #[test]
    fn a_probe_run_by_the_sidecar_keeps_its_timing() {
        let startup = json!({"tcpSocket": {"port": 8080}, "failureThreshold": 60,
            "periodSeconds": 5});
        let annotations =
            json!({annotation::INJECT: "true", annotation::TRANSPARENT_PROXY: "true"});
        let pod = json!({"metadata": {"annotations": annotations}, "spec": {"serviceAccountName": "web",
            "containers": [{"name": "web", "startupProbe": startup, "ports": [{"containerPort": 8080}]}]}});
        let pod = received(&pod.to_string()).unwrap().unwrap();
        let judged = judge(&pod, "default", &generous(), &Cluster::default());
        let patch: Value = serde_json::from_slice(&patch(&judged.edits.unwrap())).unwrap();
        let rewritten = json!({"httpGet": {"path": "/web/startupProbe", "port": 20700},
            "failureThreshold": 60, "periodSeconds": 5});
        let mut operations = patch.as_array().unwrap().iter();
        assert!(operations.any(|operation| operation["value"] == rewritten), "{patch:#}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::cases(2048)))]

        /// What is not kept makes no difference to the result.
        #[test]
        fn a_received_pod_is_judged_as_the_whole(pod in pods()) {
            let text = pod.to_string();
            // Parsed once, so that numbers are as serde_json reads them.
            let pod: Value = serde_json::from_str(&text).unwrap();
            let kept = received(&text).unwrap().unwrap_or_default();
            let policy = Policy { default_inject: true, ..generous() };
            let judged = |pod: &Value| judge(pod, "default", &policy, &Cluster::default());
            let (whole, kept) = (judged(&pod), judged(&kept));
            prop_assert_eq!(whole.edits, kept.edits);
            prop_assert_eq!((whole.reason, whole.message), (kept.reason, kept.message));
            prop_assert_eq!(whole.warnings, kept.warnings);
        }
    }
}
