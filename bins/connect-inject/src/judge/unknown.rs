//! Warns of annotations under our prefix that have no effect.

use serde_json::{Map, Value};

use super::unsupported;
use crate::annotation::{KNOWN, PREFIX, is_known};
use crate::outcome::Warnings;
use crate::values::{boolean, nearest};

/// Warns of each annotation under our prefix that has no effect. The warning about an
/// annotation of consul-k8s says what to do instead; the one about an unknown annotation
/// suggests the closest known name.
pub(crate) fn without_effect(annotations: &Map<String, Value>) -> Warnings {
    let mut warnings = Warnings::default();
    for (key, value) in annotations {
        let Some(name) = key.strip_prefix(PREFIX).filter(|_| !is_known(key)) else { continue };
        match unsupported::instead(name) {
            // Disabling a feature that we don't have is harmless.
            Some(_) if value.as_str().and_then(boolean) == Some(false) => {}
            Some(instead) => {
                warnings.push(|| format!("{instead}: annotation `{key}` has no effect"));
            }
            None => warnings.push(|| unknown(key)),
        }
    }
    warnings
}

fn unknown(key: &str) -> String {
    match nearest(key, KNOWN.iter().copied()) {
        Some(known) => format!("did you mean `{known}`? Unknown annotation `{key}` is ignored"),
        None => format!("unknown annotation `{key}` is ignored"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Typos were ignored silently. Reported in
    /// <https://github.com/hashicorp/consul-k8s/issues/1584>.
    #[test]
    fn the_warning_about_an_unknown_annotation_suggests_the_nearest_name() {
        let warnings = |value: Value| without_effect(value.as_object().unwrap()).into_vec();
        assert_eq!(
            warnings(json!({
                "consul.hashicorp.com/connect-servce": "x",
                "consul.hashicorp.com/connect-service": "x",
                "example.com/connect-servce": "x",
            })),
            ["did you mean `consul.hashicorp.com/connect-service`? Unknown annotation \
              `consul.hashicorp.com/connect-servce` is ignored"]
        );
        assert_eq!(
            warnings(json!({"consul.hashicorp.com/something-else": 1})),
            ["unknown annotation `consul.hashicorp.com/something-else` is ignored"]
        );
        let many: Map<_, _> = (0..100).map(|n| (format!("{PREFIX}{n}"), Value::Null)).collect();
        let warnings = without_effect(&many).into_vec();
        assert_eq!(warnings.len(), 9);
        assert_eq!(warnings[8], "92 more warnings: see `connect-inject explain`");
    }

    #[test]
    fn the_warning_about_an_annotation_of_consul_k8s_says_what_to_do_instead() {
        let warnings = |value: Value| without_effect(value.as_object().unwrap()).into_vec();
        let found = warnings(json!({
            "consul.hashicorp.com/service-ignore": "true",
            "consul.hashicorp.com/mesh-inject": "false",
        }));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("service-ignore` has no effect"), "{found:?}");
        assert!(found[0].contains("set `connect-inject` to"), "{found:?}");
    }
}
