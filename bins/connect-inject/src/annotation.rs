//! The annotations that the injector reads and writes, the forms of their
//! values, and the warnings for those that it does not know.

use serde_json::{Map, Value};

use crate::unsupported;

/// What all of ours begin with.
pub(crate) const PREFIX: &str = "consul.hashicorp.com/";

/// Makes the constants and the list of all from one table, so that they can't
/// differ.
macro_rules! annotations {
    ($($(#[doc = $doc:literal])+ $name:ident = $key:literal,)+) => {
        $($(#[doc = $doc])+ pub(crate) const $name: &str = concat!("consul.hashicorp.com/", $key);)+

        /// All that do something.
        const KNOWN: &[&str] = &[$($name),+];
    };
}

annotations! {
    /// Whether to inject.
    INJECT = "connect-inject",
    /// Written by the injector, as annotation and as label: the pod has its
    /// sidecar.
    STATUS = "connect-inject-status",
    /// Written by the injector: how `uninject` takes it all back.
    UNDO = "connect-inject-undo",
    /// The name of the service.
    SERVICE = "connect-service",
    /// The port of the service.
    SERVICE_PORT = "connect-service-port",
    /// What the pod reaches.
    UPSTREAMS = "connect-service-upstreams",
    /// Tags of the service.
    TAGS = "service-tags",
    /// The same by its old name.
    CONNECT_TAGS = "connect-service-tags",
    /// Settings of the proxy's own.
    PROXY_CONFIG = "proxy-config-map",
    /// Arguments for Envoy.
    ENVOY_ARGS = "envoy-extra-args",
    /// Envoy's worker threads.
    CONCURRENCY = "consul-envoy-proxy-concurrency",
    /// Resources of the sidecar.
    CPU_REQUEST = "sidecar-proxy-cpu-request",
    /// Resources of the sidecar.
    CPU_LIMIT = "sidecar-proxy-cpu-limit",
    /// Resources of the sidecar.
    MEMORY_REQUEST = "sidecar-proxy-memory-request",
    /// Resources of the sidecar.
    MEMORY_LIMIT = "sidecar-proxy-memory-limit",
    /// Volumes for the pod.
    USER_VOLUMES = "consul-sidecar-user-volume",
    /// Where they are in the sidecar.
    USER_MOUNTS = "consul-sidecar-user-volume-mount",
    /// The containers that get our volume.
    MOUNT_VOLUME = "connect-inject-mount-volume",
    /// Whether the sidecar has a readiness probe.
    PROXY_HEALTH = "use-proxy-health-check",
    /// How long Envoy may take to become ready before it is started again.
    STARTUP_FAILURE = "sidecar-proxy-startup-failure-seconds",
    /// How long Envoy may be unready before it is started again.
    LIVENESS_FAILURE = "sidecar-proxy-liveness-failure-seconds",
    /// Whether Prometheus can read Envoy's metrics.
    METRICS = "enable-metrics",
    /// On which port.
    METRICS_PORT = "prometheus-scrape-port",
    /// Under which path.
    METRICS_PATH = "prometheus-scrape-path",
    /// Whether the application's own are on the same page.
    METRICS_MERGING = "enable-metrics-merging",
    /// The port of loopback at which they meet.
    MERGED_METRICS_PORT = "merged-metrics-port",
    /// The application's port for its own.
    SERVICE_METRICS_PORT = "service-metrics-port",
    /// Their path.
    SERVICE_METRICS_PATH = "service-metrics-path",
    /// CA certificates for that page.
    METRICS_CA_FILE = "prometheus-ca-file",
    /// CA certificates for that page.
    METRICS_CA_PATH = "prometheus-ca-path",
    /// The certificate of that page.
    METRICS_CERT = "prometheus-cert-file",
    /// Its key.
    METRICS_KEY = "prometheus-key-file",
    /// How long the sidecar drains.
    SHUTDOWN_GRACE = "sidecar-proxy-lifecycle-shutdown-grace-period-seconds",
    /// How long the application is held for the proxy.
    STARTUP_GRACE = "sidecar-proxy-lifecycle-startup-grace-period-seconds",
    /// How long the application goes on when the pod is to end.
    SLEEP = "application-sleep-seconds",
    /// How the sidecar is run.
    SIDECAR_MODE = "sidecar-mode",
    /// The same by its old name.
    AS_SIDECAR = "enable-consul-dataplane-as-sidecar",
}

/// What the meta of the service begins with; its key is behind it.
pub(crate) const META: &str = "consul.hashicorp.com/service-meta-";

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

/// Reads a boolean, or says what one is.
pub(crate) fn switch(text: &str) -> Result<bool, String> {
    boolean(text).ok_or_else(|| format!("expected {BOOLEAN_FORMS}"))
}

/// Reads a number of seconds: a day at most.
pub(crate) fn seconds(text: &str) -> Result<u32, String> {
    const DAY: u32 = 86_400;
    number(text)
        .filter(|seconds| *seconds <= DAY)
        .ok_or_else(|| format!("expected a number of seconds from 0 to {DAY}"))
}

/// Reads a number of digits only.
pub(crate) fn number(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A warning for each annotation under our prefix that has no effect here: for
/// one of another injector's what to do instead, for one that nobody knows the
/// nearest one that we do.
pub(crate) fn without_effect(annotations: &Map<String, Value>) -> Vec<String> {
    let mut warnings: Vec<String> = annotations
        .iter()
        .filter(|(key, _)| key.starts_with(PREFIX) && !is_known(key))
        .filter_map(|(key, value)| match unsupported::instead(&key[PREFIX.len()..]) {
            // To turn off what there isn't is fine.
            Some(_) if value.as_str().and_then(boolean) == Some(false) => None,
            Some(instead) => Some(format!("annotation `{key}` has no effect: {instead}")),
            None => Some(unknown(key)),
        })
        .collect();
    let more = warnings.len().saturating_sub(MOST_WARNINGS);
    if more > 0 {
        warnings.truncate(MOST_WARNINGS);
        warnings.push(format!("{more} more annotations under {PREFIX} have no effect"));
    }
    warnings
}

/// Whether an annotation does something.
fn is_known(key: &str) -> bool {
    KNOWN.contains(&key) || key.strip_prefix(META).is_some_and(|key| !key.is_empty())
}

/// The annotations of ours among those of an object that is no pod.
pub(crate) fn ours(annotations: &Map<String, Value>) -> impl Iterator<Item = &str> {
    annotations.keys().map(String::as_str).filter(|key| is_known(key))
}

fn unknown(key: &str) -> String {
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
    use crate::decision::tests::policy;
    use crate::verdict::judge;

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
        let warnings = |value: Value| without_effect(value.as_object().unwrap());
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
        let warnings = without_effect(&many);
        assert_eq!(warnings.len(), MOST_WARNINGS + 1);
        assert!(warnings[MOST_WARNINGS].starts_with("92 more"), "{warnings:?}");
    }

    #[test]
    fn what_others_have_is_answered_with_what_to_do_instead() {
        let warnings = |value: Value| without_effect(value.as_object().unwrap());
        let found = warnings(json!({
            "consul.hashicorp.com/transparent-proxy": "true",
            "consul.hashicorp.com/consul-dns": "false",
        }));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("transparent-proxy` has no effect: "), "{found:?}");
        assert!(found[0].contains("connect-service-upstreams"), "{found:?}");
    }

    #[test]
    fn seconds_are_whole() {
        assert_eq!((seconds("0"), seconds("007"), seconds("86400")), (Ok(0), Ok(7), Ok(86_400)));
        for text in ["", "-1", "+1", "1s", "1.5", "86401", "99999999999999999999", " 1", "٣"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    /// The names between the first column's backquotes, of a section.
    fn listed(heading: &str) -> BTreeSet<&'static str> {
        include_str!("../README.md")
            .lines()
            .skip_while(|line| *line != heading)
            .skip(1)
            .take_while(|line| !line.starts_with('#'))
            .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0))
            .collect()
    }

    #[test]
    fn the_readme_lists_every_annotation() {
        let known: BTreeSet<&str> =
            KNOWN.iter().chain([&META]).map(|key| &key[PREFIX.len()..]).collect();
        let documented: BTreeSet<&str> =
            listed("## Annotations").iter().map(|name| name.trim_end_matches("KEY")).collect();
        assert_eq!(documented, known);
    }

    /// A value that is good, and one that is bad: none if every text is good.
    const EXAMPLES: &[(&str, &str, Option<&str>)] = &[
        ("connect-inject", "true", Some("yes")),
        ("connect-service", "web", Some("we b")),
        ("connect-service-port", "8080", Some("0")),
        ("connect-service-upstreams", "db:1234", Some("db")),
        ("service-tags", r"a\,b,c", None),
        ("connect-service-tags", "a", None),
        ("service-meta-KEY", "x", Some(LONG)),
        ("proxy-config-map", "{}", Some("[]")),
        ("envoy-extra-args", "-l debug", Some("'")),
        ("consul-envoy-proxy-concurrency", "0", Some("-1")),
        ("sidecar-proxy-cpu-request", "100m", Some("1 m")),
        ("sidecar-proxy-cpu-limit", "0", Some("")),
        ("sidecar-proxy-memory-request", "64Mi", Some("64MB")),
        ("sidecar-proxy-memory-limit", "1G", Some("-1")),
        ("consul-sidecar-user-volume", r#"[{"name":"a","emptyDir":{}}]"#, Some("{}")),
        ("consul-sidecar-user-volume-mount", r#"[{"name":"v","mountPath":"/v"}]"#, Some("[1]")),
        ("connect-inject-mount-volume", "app", Some("ap")),
        ("use-proxy-health-check", "true", Some("yes")),
        ("sidecar-proxy-startup-failure-seconds", "60", Some("1m")),
        ("sidecar-proxy-liveness-failure-seconds", "60", Some("-1")),
        ("sidecar-proxy-lifecycle-startup-grace-period-seconds", "0", Some("")),
        ("sidecar-proxy-lifecycle-shutdown-grace-period-seconds", "5", Some("5s")),
        ("application-sleep-seconds", "0", Some("x")),
        ("sidecar-mode", "container", Some("none")),
        ("enable-consul-dataplane-as-sidecar", "t", Some("on")),
        ("enable-metrics", "false", Some("on")),
        ("prometheus-scrape-port", "20201", Some("80")),
        ("prometheus-scrape-path", "/m", Some("m")),
        ("enable-metrics-merging", "true", Some("on")),
        ("merged-metrics-port", "20101", Some("80")),
        ("service-metrics-port", "9102", Some("0")),
        ("service-metrics-path", "/m", Some("m")),
        ("prometheus-ca-file", "/ca", Some("/only")),
        ("prometheus-ca-path", "/ca", Some("/only")),
        ("prometheus-cert-file", "/c", Some("/only")),
        ("prometheus-key-file", "/k", Some("/only")),
        ("connect-inject-status", "", None),
        ("connect-inject-undo", "x", None),
    ];
    const LONG: &str = match std::str::from_utf8(&[b'x'; 513]) {
        Ok(text) => text,
        Err(_) => "",
    };

    /// The last column of the table, held against what happens.
    #[test]
    fn a_bad_value_gets_what_the_readme_says() {
        let rows: Vec<Vec<&str>> = include_str!("../README.md")
            .lines()
            .skip_while(|line| *line != "## Annotations")
            .take_while(|line| !line.starts_with("###"))
            .filter(|line| line.starts_with("| `"))
            .map(|line| line.trim_matches(['|', ' ']).split(" | ").collect())
            .collect();
        assert_eq!(rows.len(), EXAMPLES.len());
        for (row, (name, good, bad)) in rows.iter().zip(EXAMPLES) {
            assert_eq!(row[0], format!("`{name}`"));
            let judged = |value: &str| {
                let mut annotations = json!({INJECT: "true"});
                if name.contains("-metrics-") {
                    annotations[METRICS] = "true".into();
                    annotations[METRICS_MERGING] = "true".into();
                    annotations[SERVICE_PORT] = "8080".into();
                }
                if name.starts_with("prometheus-") {
                    annotations[METRICS] = "true".into();
                    if value != "/only" {
                        let ca = if name.ends_with("ca-path") {
                            METRICS_CA_PATH
                        } else {
                            METRICS_CA_FILE
                        };
                        for key in [ca, METRICS_CERT, METRICS_KEY] {
                            annotations[key] = "/file".into();
                        }
                    }
                }
                annotations[format!("{PREFIX}{name}")] = value.into();
                let pod = json!({"metadata": {"annotations": annotations}, "spec": {
                    "volumes": [{"name": "v"}], "containers": [{"name": "app"}]}});
                judge(pod, "default", &policy())
            };
            let verdict = judged(good);
            assert!(verdict.injected.is_some(), "{name}: {}", verdict.message);
            let old_name = matches!(*name, "connect-service-tags");
            assert_eq!(verdict.warnings.len(), usize::from(old_name), "{:?}", verdict.warnings);
            let said = row[4].split([':', ' ']).next().unwrap().trim_matches('`');
            match bad {
                None => assert_eq!(said, "none", "{name}"),
                Some(bad) => {
                    let verdict = judged(bad);
                    assert_eq!(said, verdict.reason.code(), "{name}: {}", verdict.message);
                    assert!(verdict.message.contains(PREFIX), "{}", verdict.message);
                }
            }
        }
    }
}
