//! The matchConditions of a webhook. This program does not evaluate CEL: it recognizes the
//! chart's conditions by their text, and treats the result of any other as unknown.

use std::fmt;

use serde_json::{Map, Value};

use crate::annotation::{INJECT, PREFIX};
use crate::values::boolean;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// The annotation `connect-inject` asks for a sidecar.
    Asks,
    /// The pod has no annotation `connect-inject`.
    Silent,
    /// The pod has an annotation or a label under our prefix.
    Annotated,
    /// A condition that the chart does not have, by its name.
    Other(String),
}

/// The chart's expression for a pod with the annotation `connect-inject`.
const SAYS: &str = "has(object.metadata.annotations) && \
                    'consul.hashicorp.com/connect-inject' in object.metadata.annotations";

impl Condition {
    /// Reads an element of a webhook's `matchConditions`.
    pub(super) fn of(condition: &Value) -> Self {
        let text = |field: &str| condition[field].as_str().unwrap_or_default();
        let expression = text("expression");
        if expression == asks() {
            Self::Asks
        } else if expression == format!("!({SAYS})") {
            Self::Silent
        } else if expression == annotated() {
            Self::Annotated
        } else {
            Self::Other(text("name").to_owned())
        }
    }

    /// Whether the condition holds for a pod; `None` if unknown.
    pub(super) fn holds(&self, pod: &Value) -> Option<bool> {
        let metadata = &pod["metadata"];
        let says = metadata["annotations"][INJECT].as_str();
        match self {
            Self::Asks => Some(says.is_some_and(|says| boolean(says) != Some(false))),
            Self::Silent => Some(says.is_none()),
            Self::Annotated => Some(
                [&metadata["annotations"], &metadata["labels"]]
                    .into_iter()
                    .filter_map(Value::as_object)
                    .flat_map(Map::keys)
                    .any(|key| key.starts_with(PREFIX)),
            ),
            Self::Other(_) => None,
        }
    }
}

/// The rest of the chart's expression for a pod that wants a sidecar.
const NOT_FALSE: &str = "!(object.metadata.annotations['consul.hashicorp.com/connect-inject'] in \
                         ['false', 'False', 'FALSE', 'f', 'F', '0'])";

/// How the chart looks for keys under our prefix, in annotations and in labels.
const OURS: &str = ".exists(key, key.startsWith('consul.hashicorp.com/'))";

fn asks() -> String {
    format!("{SAYS} && {NOT_FALSE}")
}

fn annotated() -> String {
    let has =
        |field: &str| format!("(has(object.metadata.{field}) && object.metadata.{field}{OURS})");
    format!("{} || {}", has("annotations"), has("labels"))
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asks => "`asks`",
            Self::Silent => "`does-not-say`",
            Self::Annotated => "`is-annotated`",
            Self::Other(name) => return write!(f, "`{name}`"),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_conditions_of_the_chart_are_recognized_and_others_are_not() {
        let chart = include_str!("../../chart/templates/webhook.yaml");
        for written in [
            SAYS.to_owned(),
            format!("\"%s && {NOT_FALSE}\""),
            "\"!(%s)\"".to_owned(),
            format!("\"%s{OURS}\""),
            "\"(has(object.metadata.annotations) && %s)\"".to_owned(),
            "\"(has(object.metadata.labels) && %s)\"".to_owned(),
            "\"%s || %s\"".to_owned(),
        ] {
            assert!(chart.contains(&written), "the chart has other conditions than {written}");
        }
        let of =
            |expression: String| Condition::of(&json!({"name": "x", "expression": expression}));
        assert_eq!(of(asks()), Condition::Asks);
        assert_eq!(of(format!("!({SAYS})")), Condition::Silent);
        assert_eq!(of(annotated()), Condition::Annotated);
        assert_eq!(of("true".to_owned()), Condition::Other("x".to_owned()));
    }

    #[test]
    fn a_condition_holds_for_the_same_pods_as_in_the_api_server() {
        let pod = |annotations: Value| json!({"metadata": {"annotations": annotations}});
        for (pod, asks, silent, annotated) in [
            (json!({"metadata": {}}), false, true, false),
            (pod(json!({INJECT: "true"})), true, false, true),
            (pod(json!({INJECT: "F"})), false, false, true),
            (pod(json!({INJECT: "perhaps"})), true, false, true),
            (pod(json!({"a": "b"})), false, true, false),
            (pod(json!({"consul.hashicorp.com/connect-service": "s"})), false, true, true),
            (json!({"metadata": {"labels": {"consul.hashicorp.com/x": ""}}}), false, true, true),
        ] {
            assert_eq!(Condition::Asks.holds(&pod), Some(asks), "{pod}");
            assert_eq!(Condition::Silent.holds(&pod), Some(silent), "{pod}");
            assert_eq!(Condition::Annotated.holds(&pod), Some(annotated), "{pod}");
            assert_eq!(Condition::Other(String::new()).holds(&pod), None);
        }
    }
}
