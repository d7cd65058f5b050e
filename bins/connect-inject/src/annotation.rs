//! The annotations that the injector reads and writes, and the warning for one
//! that it does not know.

use serde_json::{Map, Value};

/// What all of ours begin with.
const PREFIX: &str = "consul.hashicorp.com/";

/// Whether to inject.
pub(crate) const INJECT: &str = "consul.hashicorp.com/connect-inject";
/// Written by the injector, as annotation and as label: the pod has its sidecar.
pub(crate) const STATUS: &str = "consul.hashicorp.com/connect-inject-status";
/// The name of the service.
pub(crate) const SERVICE: &str = "consul.hashicorp.com/connect-service";
/// The port of the service.
pub(crate) const SERVICE_PORT: &str = "consul.hashicorp.com/connect-service-port";
/// What the pod reaches.
pub(crate) const UPSTREAMS: &str = "consul.hashicorp.com/connect-service-upstreams";

/// All of ours.
const KNOWN: [&str; 5] = [INJECT, STATUS, SERVICE, SERVICE_PORT, UPSTREAMS];

/// The value of [`STATUS`].
pub(crate) const INJECTED: &str = "injected";

/// The container that `kubectl logs` and `kubectl exec` take when none is named.
///
/// Source: "Well-Known Labels, Annotations and Taints" of the Kubernetes
/// documentation.
pub(crate) const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// More warnings than these help nobody; the API server cuts them off, too.
const MOST_WARNINGS: usize = 8;

/// The forms that [`boolean`] takes, for errors.
pub(crate) const BOOLEAN_FORMS: &str = "`true` or `false`";

/// Reads a boolean. The forms are those of `strconv.ParseBool` in Go's standard
/// library, because that is what the users' manifests were written against.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// A warning for each annotation under our prefix that we don't know, with the
/// nearest one that we do.
pub(crate) fn unknown(annotations: &Map<String, Value>) -> Vec<String> {
    let mut unknown =
        annotations.keys().filter(|key| key.starts_with(PREFIX) && !KNOWN.contains(&key.as_str()));
    let mut warnings: Vec<String> =
        unknown.by_ref().take(MOST_WARNINGS).map(|key| warning(key)).collect();
    let more = unknown.count();
    if more > 0 {
        warnings.push(format!("{more} more unknown annotations under {PREFIX}"));
    }
    warnings
}

fn warning(key: &str) -> String {
    // So far apart as a typo, not as another word.
    const NEAR: usize = 3;
    let nearest = KNOWN
        .iter()
        .map(|known| (distance(key, known), known))
        .filter(|(distance, _)| *distance <= NEAR)
        .min();
    match nearest {
        Some((_, known)) => {
            format!("unknown annotation `{key}` is ignored: did you mean `{known}`?")
        }
        None => format!("unknown annotation `{key}` is ignored"),
    }
}

/// How many characters have to be inserted, deleted or replaced to get from one
/// text to the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    #[test]
    fn booleans_are_those_of_go() {
        for text in ["1", "t", "T", "true", "TRUE", "True"] {
            assert_eq!(boolean(text), Some(true), "{text}");
        }
        for text in ["0", "f", "F", "false", "FALSE", "False"] {
            assert_eq!(boolean(text), Some(false), "{text}");
        }
        for text in ["", "yes", "on", " true", "true ", "tRUE", "2"] {
            assert_eq!(boolean(text), None, "{text}");
        }
    }

    #[test]
    fn distances() {
        for (a, b, expected) in
            [("", "", 0), ("a", "", 1), ("", "ab", 2), ("kitten", "sitting", 3), ("é", "e", 1)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }

    /// Pain 41: typos that are silently ignored.
    #[test]
    fn an_unknown_annotation_is_answered_with_the_nearest() {
        let warnings = |value: Value| unknown(value.as_object().unwrap());
        assert_eq!(
            warnings(json!({
                "consul.hashicorp.com/connect-servce": "x",
                "consul.hashicorp.com/connect-service": "x",
                "example.com/connect-servce": "x",
            })),
            ["unknown annotation `consul.hashicorp.com/connect-servce` is ignored: \
              did you mean `consul.hashicorp.com/connect-service`?"]
        );
        assert_eq!(
            warnings(json!({"consul.hashicorp.com/something-else": 1})),
            ["unknown annotation `consul.hashicorp.com/something-else` is ignored"]
        );
        let many: Map<_, _> = (0..100).map(|n| (format!("{PREFIX}{n}"), Value::Null)).collect();
        let warnings = unknown(&many);
        assert_eq!(warnings.len(), MOST_WARNINGS + 1);
        assert!(warnings[MOST_WARNINGS].starts_with("92 more"), "{warnings:?}");
    }

    #[test]
    fn the_readme_lists_every_annotation() {
        let documented: BTreeSet<String> = include_str!("../README.md")
            .lines()
            .skip_while(|line| *line != "## Annotations")
            .skip(1)
            .take_while(|line| !line.starts_with("## "))
            .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
            .map(|(name, _)| format!("{PREFIX}{name}"))
            .collect();
        assert_eq!(documented, KNOWN.map(str::to_owned).into());
    }
}
