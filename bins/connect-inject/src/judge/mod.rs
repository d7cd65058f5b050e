//! Decides whether and how a pod is injected, and why. The webhook and the offline commands
//! share this code, so that they can't differ.

mod decide;
mod unknown;
mod unsupported;

use serde_json::Value;

use crate::annotation;
use crate::inject::inject;
use crate::json::patch::Edit;
use crate::outcome::{Denial, Outcome, Reason, Warnings, sentence};
use crate::plan::plan;
use crate::pod::Pod;
use crate::policy::{Cluster, Policy};

pub(crate) use decide::explain;

#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) reason: Reason,
    /// The reason as a sentence, for people.
    pub(crate) message: String,
    /// Problems that don't deny the pod.
    pub(crate) warnings: Vec<String>,
    /// The edits that inject the pod; `None` if it gets no sidecar.
    pub(crate) edits: Option<Vec<Edit>>,
}

/// Judges a pod or a pod template in a namespace.
pub(crate) fn judge(pod: &Value, namespace: &str, policy: &Policy, cluster: &Cluster) -> Verdict {
    judge_pod(Pod::new(pod), namespace, policy, cluster)
}

/// Judges a pod that was read with its surroundings, such as the `volumeClaimTemplates` of its
/// StatefulSet.
pub(crate) fn judge_pod(
    view: Pod<'_>,
    namespace: &str,
    policy: &Policy,
    cluster: &Cluster,
) -> Verdict {
    let mut warnings = Warnings::default();
    let decided = decide::decide(view, namespace, policy);
    // No warnings for pods outside our namespaces, nor for injected ones.
    if decided.as_ref().map_or(true, |reason| concerns_us(*reason))
        && let Some(annotations) = view.annotations()
    {
        warnings.extend(unknown::without_effect(annotations));
    }
    if decided.as_ref().map_or(true, |reason| concerns_us(*reason))
        && let Some(labels) = view.labels()
    {
        for key in annotation::ours(labels).filter(|key| *key != annotation::STATUS) {
            warnings.push(|| format!("make `{key}` an annotation: as a label it has no effect"));
        }
    }
    let verdict = decided.and_then(|reason| {
        let explained = decide::explain(reason, namespace);
        if reason.outcome() != Outcome::Injected {
            return Ok((reason, sentence(&explained), None));
        }
        let injected = plan(view, policy, cluster, &mut warnings).and_then(|plan| {
            Ok((format!("{explained}: {plan}"), inject(view.value(), &plan, policy)?))
        });
        match injected {
            Ok((message, edits)) => Ok((reason, sentence(&message), Some(edits))),
            Err(denial) if reason == Reason::ByDefault && asks_nothing(view) => {
                let message =
                    format!("injection is on by default, but not possible: {}", denial.message);
                warnings.push(|| format!("not injected: {}", denial.message));
                Ok((Reason::CannotBeInjected, sentence(&message), None))
            }
            Err(denial) => Err(denial),
        }
    });
    let (reason, message, edits) = verdict.unwrap_or_else(|denial| {
        let Denial { reason, message } = denial;
        (reason, message, None)
    });
    Verdict { reason, message, warnings: warnings.into_vec(), edits }
}

fn concerns_us(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::SystemNamespace
            | Reason::NamespaceDenied
            | Reason::NamespaceNotAllowed
            | Reason::AlreadyInjected
    )
}

/// Whether a pod has none of our annotations, and so doesn't rely on a sidecar.
fn asks_nothing(pod: Pod<'_>) -> bool {
    pod.annotations().is_none_or(|all| annotation::ours(all).next().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::annotation::*;
    use crate::json::patch::patch;
    use crate::policy::tests::{policy, policy_of};

    /// `--default-inject` used to deny such pods, although they don't ask for a sidecar.
    #[test]
    fn a_pod_without_annotations_that_cannot_be_injected_is_skipped_with_a_warning() {
        let policy = policy_of(&["--default-inject"]);
        let app = |more: Value| {
            let mut app = json!({"name": "app"});
            app.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"metadata": {}, "spec": {"containers": [app]}})
        };
        for mut pod in [
            app(json!({"ports": [{"containerPort": 19000}]})),
            app(json!({"securityContext": {"runAsUser": 5995}})),
            app(json!({"name": "envoy-sidecar"})),
            json!({"metadata": {}, "spec": {"containers": []}}),
        ] {
            let verdict = judge(&pod, "default", &policy, &Cluster::default());
            assert_eq!(verdict.reason, Reason::CannotBeInjected, "{}", verdict.message);
            assert!(verdict.edits.is_none());
            assert!(verdict.warnings[0].starts_with("not injected: "), "{:?}", verdict.warnings);
            // A pod that relies on the sidecar is denied instead.
            pod["metadata"]["annotations"][UPSTREAMS] = "db:1".into();
            let verdict = judge(&pod, "default", &policy, &Cluster::default());
            assert_eq!(verdict.reason.outcome(), Outcome::Denied);
        }
    }

    /// Such a label used to be ignored silently.
    #[test]
    fn an_annotation_written_as_a_label_causes_a_warning() {
        let pod = json!({"metadata": {"labels": {INJECT: "true", STATUS: "x", "app": "a"}}});
        let verdict = judge(&pod, "default", &policy(), &Cluster::default());
        assert_eq!(verdict.reason, Reason::NotRequested);
        assert_eq!(verdict.warnings.len(), 1, "{:?}", verdict.warnings);
        assert!(verdict.warnings[0].contains(INJECT), "{:?}", verdict.warnings);
    }

    /// A pod of 9 KiB used to get a patch of hundreds of megabytes.
    #[test]
    fn a_pod_that_would_become_too_large_is_denied_before_it_is_built() {
        let pod = |upstreams: usize, containers: usize| {
            let upstreams: Vec<_> = (0..upstreams).map(|n| format!("u{n}:{}", 1024 + n)).collect();
            let containers: Vec<_> =
                (0..containers).map(|n| json!({"name": format!("c{n}")})).collect();
            json!({"metadata": {"annotations": {INJECT: "true", UPSTREAMS: upstreams.join(",")}},
                "spec": {"containers": containers}})
        };
        let judged = |pod: &Value| judge(pod, "default", &policy(), &Cluster::default());
        let verdict = judged(&pod(256, 2));
        assert_eq!(verdict.reason, Reason::Requested, "{}", verdict.message);
        let verdict = judged(&pod(257, 1));
        assert_eq!(verdict.reason, Reason::InvalidUpstreams);
        assert!(verdict.message.contains("257 upstreams: at most 256"), "{}", verdict.message);
        for (upstreams, containers) in [(250, 40), (256, 30_000)] {
            let verdict = judged(&pod(upstreams, containers));
            assert_eq!(verdict.reason, Reason::PodTooLarge, "{}", verdict.message);
        }
        let mut large = pod(1, 1);
        large["metadata"]["annotations"]["other"] = "x".repeat(256 << 10).into();
        let verdict = judged(&large);
        assert_eq!(verdict.reason, Reason::PodTooLarge, "{}", verdict.message);
        assert!(verdict.message.contains("annotations"), "{}", verdict.message);
    }

    /// A pod used to cause thousands of warnings and log lines.
    #[test]
    fn warnings_are_few_and_short() {
        let upstreams: Vec<_> = (0..250)
            .map(|n| {
                format!("a{}b:{}", if n % 2 == 0 { "." } else { "-" }.repeat(1 + n / 2), 1024 + n)
            })
            .collect();
        let mut pod = json!({"metadata": {"annotations": {INJECT: "true"}}, "spec": {"containers": [{"name": "app"}]}});
        pod["metadata"]["annotations"][UPSTREAMS] = upstreams.join(",").into();
        for n in 0..10_000 {
            pod["metadata"]["annotations"][format!("{PREFIX}{n}{}", "x".repeat(12))] = "".into();
        }
        let verdict = judge(&pod, "default", &policy(), &Cluster::default());
        assert_eq!(verdict.warnings.len(), 9, "{:?}", verdict.warnings);
        assert!(verdict.warnings.iter().map(String::len).sum::<usize>() < 4096);
        assert!(verdict.warnings[8].contains("more warnings"), "{:?}", verdict.warnings);
    }

    /// Annotation values of any kind and length.
    fn texts() -> impl Strategy<Value = String> {
        let parts =
            "a:1|,|;|\\{|\\}|\\[|\\]|\"|'|\\\\| |--x|\\$\\(A\\)|8080|0|-1|1Mi|true|/a|\\?a=b&|\\PC";
        prop_oneof![
            4 => prop::collection::vec(parts, 0..12).prop_map(|parts| parts.concat()),
            2 => any::<String>(),
            1 => (parts, 1..20_000_usize).prop_map(|(part, count)| part.repeat(count)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::cases(2048)))]

        /// Whatever the annotations hold, messages stay short and the patch stays small.
        #[test]
        fn any_annotations_are_judged_within_bounds(
            pairs in prop::collection::vec((prop::sample::select(KNOWN), texts()), 0..6),
            meta in texts(),
            containers in 1..40_usize,
        ) {
            let mut annotations = json!({INJECT: "true", format!("{META}{meta}"): meta});
            for (key, value) in pairs {
                annotations[key] = value.into();
            }
            let containers: Vec<_> = (0..containers).map(|n| json!({"name": format!("c{n}")})).collect();
            let pod = json!({"metadata": {"annotations": annotations}, "spec": {"containers": containers}});
            let began = std::time::Instant::now();
            let verdict = judge(&pod, "default", &policy(), &Cluster::default());
            // Far below the time after which an API server gives up, even on a busy machine.
            prop_assert!(began.elapsed().as_secs() < 10);
            prop_assert!(verdict.message.chars().count() <= 800);
            prop_assert!(verdict.warnings.iter().map(|text| text.chars().count()).sum::<usize>() < 4096);
            if let Some(edits) = verdict.edits {
                prop_assert!(patch(&edits).len() < 1 << 20);
            }
        }
    }

    /// Annotation, a valid value, and an invalid one; `None` if every value is valid.
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
        ("sidecar-proxy-ephemeral-storage-request", "1Mi", Some("x")),
        ("sidecar-proxy-ephemeral-storage-limit", "1Gi", Some("x")),
        ("access-log-folder", "/var/log/envoy", Some("logs")),
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
        ("sidecar-position", "last", Some("middle")),
        ("enable-consul-dataplane-as-sidecar", "t", Some("on")),
        ("transparent-proxy", "true", Some("yes")),
        ("transparent-proxy-by", "init-container", Some("init")),
        ("transparent-proxy-redirect", "x", None),
        ("transparent-proxy-exclude-inbound-ports", "9102, 9103", Some("0")),
        ("transparent-proxy-exclude-outbound-ports", "5432", Some("80,")),
        ("transparent-proxy-exclude-outbound-cidrs", "10.0.0.0/8,fd00::1", Some("10.0.0.0/33")),
        ("transparent-proxy-exclude-uids", "1000", Some("root")),
        ("transparent-proxy-overwrite-probes", "false", Some("no")),
        ("transparent-proxy-virtual-address", "10.96.0.10:80", Some("10.96.0.10")),
        ("consul-dns", "true", Some("on")),
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

    /// Compares the last column of the README's table with the reason of the verdict.
    #[test]
    fn an_invalid_value_gets_the_reason_that_the_readme_lists() {
        let rows: Vec<Vec<&str>> = include_str!("../../README.md")
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
                if name.starts_with("transparent-") || *name == "consul-dns" {
                    annotations[TRANSPARENT_PROXY] = "true".into();
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
                judge(&pod, "default", &policy(), &Cluster::default())
            };
            let verdict = judged(good);
            assert!(verdict.edits.is_some(), "{name}: {}", verdict.message);
            // A warning: the annotation has a newer name, or PodSecurity may reject the pod.
            let is_told = matches!(*name, "connect-service-tags" | "consul-dns")
                || name.starts_with("transparent-");
            // A warning: the injector itself writes this annotation.
            let told = usize::from(is_told) + usize::from(*name == "transparent-proxy-redirect");
            assert_eq!(verdict.warnings.len(), told, "{:?}", verdict.warnings);
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
