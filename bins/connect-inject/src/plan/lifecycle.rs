//! How the sidecar starts before the application, runs beside it and ends
//! after it.

use serde_json::Value;

use super::{Surroundings, read};
use crate::annotation;
use crate::denial::Denial;
use crate::pod::Pod;
use crate::policy::{Policy, SidecarMode, Version};
use crate::reason::Reason;

/// How the sidecar starts, runs and ends.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Lifecycle {
    /// Whether it is an init container that goes on running.
    pub(crate) native: bool,
    /// How many seconds the application is held for the proxy at most.
    pub(crate) hold: u32,
    /// How many seconds the sidecar drains at most; none: the helper's default.
    pub(crate) drain: Option<u32>,
    /// How many seconds the application goes on when the pod is to end, and the
    /// containers that do, as JSON pointers.
    pub(crate) sleep: Option<(u32, Vec<String>)>,
}

/// What `connect-lifecycle run` drains if it is not told otherwise.
const DRAIN: u32 = 20;
/// What it takes for the rest of its end.
const DEREGISTER: u32 = 5;
/// What a pod has to end if it does not say.
///
/// Source: "Pod Lifecycle" of the Kubernetes documentation.
const GRACE: i64 = 30;

const REASON: Reason = Reason::InvalidLifecycle;

/// Reads how the sidecar starts, runs and ends.
pub(super) fn lifecycle(
    pod: Pod<'_>,
    around: &Surroundings<'_>,
    policy: &Policy,
    warnings: &mut Vec<String>,
) -> Result<Lifecycle, Denial> {
    let seconds = |key| read(pod, key, REASON, annotation::seconds);
    let native = native(pod, policy)?;
    let hold = seconds(annotation::STARTUP_GRACE)?.unwrap_or(policy.startup_grace);
    let drain = seconds(annotation::SHUTDOWN_GRACE)?.or(policy.shutdown_grace);
    let grace = grace(pod);
    let sleep = sleep(pod, around, policy, grace, warnings)?;

    // A native sidecar is ended when the application has: it waits for its turn.
    let before = sleep.as_ref().filter(|_| native).map_or(0, |(seconds, _)| *seconds);
    // Several of them end one after the other.
    let turns = if native { i64::from(around.sidecars) } else { 1 };
    let needed =
        (i64::from(drain.unwrap_or(DRAIN)) + i64::from(DEREGISTER)) * turns + i64::from(before);
    if needed > grace {
        warnings.push(format!(
            "the pod has {grace} s to end and the sidecar may take {needed} s to drain: raise \
             `terminationGracePeriodSeconds` or lower `{}`",
            annotation::SHUTDOWN_GRACE
        ));
    }
    if !native
        && matches!(pod.spec("restartPolicy").and_then(Value::as_str), Some("Never" | "OnFailure"))
    {
        warnings.push(format!(
            "the sidecar goes on when the pod's other containers are done, and the pod does not \
             complete: set `{}: native` on a cluster that has native sidecars, or let \
             `connect-lifecycle wait --quit` run the application, which `{}` gives it",
            annotation::SIDECAR_MODE,
            annotation::MOUNT_VOLUME
        ));
    }
    Ok(Lifecycle { native, hold, drain, sleep })
}

/// The annotation by its new or old name, over the flag.
fn native(pod: Pod<'_>, policy: &Policy) -> Result<bool, Denial> {
    let mode = read(pod, annotation::SIDECAR_MODE, REASON, str::parse::<SidecarMode>)?;
    let old = read(pod, annotation::AS_SIDECAR, REASON, annotation::switch)?
        .map(|native| if native { SidecarMode::Native } else { SidecarMode::Container });
    let mode = match (mode, old) {
        (Some(mode), Some(old)) if mode != old => {
            let problem = format!(
                "annotations `{}` and `{}` contradict each other: remove the latter",
                annotation::SIDECAR_MODE,
                annotation::AS_SIDECAR
            );
            return Err(Denial::new(REASON, problem));
        }
        (mode, old) => mode.or(old).unwrap_or(policy.sidecar_mode),
    };
    policy.is_native(mode).map_err(|problem| Denial::new(REASON, problem))
}

/// The sleep before the application's end, for the containers that have no
/// preStop hook of their own.
fn sleep(
    pod: Pod<'_>,
    around: &Surroundings<'_>,
    policy: &Policy,
    grace: i64,
    warnings: &mut Vec<String>,
) -> Result<Option<(u32, Vec<String>)>, Denial> {
    let key = annotation::SLEEP;
    let annotated = read(pod, key, REASON, annotation::seconds)?;
    let seconds = annotated.unwrap_or(policy.application_sleep);
    if seconds == 0 {
        return Ok(None);
    }
    if policy.kubernetes.is_none_or(|version| version < Version::SLEEP) {
        if annotated.is_some() {
            warnings.push(format!(
                "annotation `{key}` has no effect: it takes Kubernetes {} or newer, and the \
                 cluster is not known to be that",
                Version::SLEEP
            ));
        }
        return Ok(None);
    }
    // The API server refuses a longer one.
    if i64::from(seconds) >= grace {
        let problem = format!(
            "the application would sleep for {seconds} s of the {grace} s that the pod has to end: \
             raise `terminationGracePeriodSeconds`"
        );
        if annotated.is_some() {
            return Err(Denial::new(REASON, format_args!("annotation `{key}`: {problem}")));
        }
        warnings.push(format!("{problem}; it does not sleep"));
        return Ok(None);
    }
    let mut without_hook = Vec::new();
    for container in &around.containers {
        if !container.has_pre_stop()? {
            without_hook.push(container.pointer());
        }
    }
    Ok(Some((seconds, without_hook)))
}

/// How long the pod has to end.
fn grace(pod: Pod<'_>) -> i64 {
    pod.spec("terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(GRACE)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::decision::tests::policy;
    use crate::plan::{Plan, plan};

    fn on(version: &str) -> Policy {
        Policy { kubernetes: version.parse().ok(), ..policy() }
    }

    fn planned(annotations: &Value, spec: &Value, policy: &Policy) -> Result<Plan, Denial> {
        let mut pod = json!({"metadata": {"annotations": annotations}, "spec": {"containers": [
            {"name": "app"}, {"name": "own", "lifecycle": {"preStop": {"exec": {}}}},
            {"name": "post", "lifecycle": {"postStart": {"exec": {}}, "preStop": null}},
        ]}});
        for (key, value) in spec.as_object().unwrap() {
            pod["spec"][key] = value.clone();
        }
        plan(Pod::new(&pod), policy)
    }

    #[test]
    fn the_mode_is_the_pods_or_the_policys() {
        let native = |annotations: Value, policy: &Policy| {
            planned(&annotations, &json!({}), policy).unwrap().lifecycle.native
        };
        let key = annotation::SIDECAR_MODE;
        assert!(!native(json!({}), &policy()));
        assert!(!native(json!({}), &on("1.28")));
        assert!(native(json!({}), &on("1.29")));
        assert!(!native(json!({key: "container"}), &on("1.29")));
        assert!(!native(json!({annotation::AS_SIDECAR: "false"}), &on("1.29")));
        assert!(native(json!({key: "native"}), &policy()));
        assert!(native(json!({annotation::AS_SIDECAR: "true"}), &policy()));
        assert!(!native(json!({key: "auto"}), &policy()));
    }

    #[test]
    fn what_cannot_be_is_denied() {
        for (annotations, version, problem) in [
            (json!({annotation::SIDECAR_MODE: "nativ"}), "1.30", "`auto`, `native` or"),
            (json!({annotation::SIDECAR_MODE: "native"}), "1.28", "1.29"),
            (json!({annotation::AS_SIDECAR: "on"}), "1.30", "`true` or `false`"),
            (
                json!({annotation::SIDECAR_MODE: "native", annotation::AS_SIDECAR: "false"}),
                "1.30",
                "contradict",
            ),
            (json!({annotation::STARTUP_GRACE: "30s"}), "1.30", "number of seconds"),
            (json!({annotation::SHUTDOWN_GRACE: ""}), "1.30", "number of seconds"),
            (json!({annotation::SLEEP: "-1"}), "1.30", "number of seconds"),
            (json!({annotation::SLEEP: "30"}), "1.30", "30 s of the 30 s"),
        ] {
            let denial = planned(&annotations, &json!({}), &on(version)).unwrap_err();
            assert_eq!(denial.reason, Reason::InvalidLifecycle);
            assert!(denial.message.contains(problem), "{}", denial.message);
        }
    }

    #[test]
    fn the_application_sleeps_where_the_cluster_knows_how() {
        let sleep = |annotations: Value, policy: &Policy| {
            let plan = planned(&annotations, &json!({}), policy).unwrap();
            (plan.lifecycle.sleep, plan.warnings)
        };
        let both = vec!["/spec/containers/0".to_owned(), "/spec/containers/2".to_owned()];
        assert_eq!(sleep(json!({}), &on("1.30")), (Some((5, both.clone())), vec![]));
        assert_eq!(sleep(json!({annotation::SLEEP: "4"}), &on("1.31")).0, Some((4, both)));
        assert_eq!(sleep(json!({annotation::SLEEP: "0"}), &on("1.30")), (None, vec![]));
        assert_eq!(sleep(json!({}), &policy()), (None, vec![]));
        for policy in [policy(), on("1.29")] {
            let (none, warnings) = sleep(json!({annotation::SLEEP: "4"}), &policy);
            assert!(none.is_none() && warnings[0].contains("not known to be"), "{warnings:?}");
        }
    }

    #[test]
    fn a_pod_that_ends_too_soon_is_warned_of() {
        let warnings = |annotations: Value, spec: Value| {
            planned(&annotations, &spec, &on("1.30")).unwrap().warnings
        };
        assert_eq!(warnings(json!({}), json!({})), Vec::<String>::new());
        let short = json!({"terminationGracePeriodSeconds": 29});
        assert!(warnings(json!({}), short.clone())[0].contains("30 s to drain"));
        let container = json!({annotation::SIDECAR_MODE: "container"});
        assert_eq!(warnings(container, short), Vec::<String>::new());
        let long = json!({annotation::SHUTDOWN_GRACE: "120"});
        assert!(warnings(long.clone(), json!({}))[0].contains("130 s to drain"));
        assert_eq!(
            warnings(long, json!({"terminationGracePeriodSeconds": 130})),
            Vec::<String>::new()
        );
        let tiny = warnings(json!({}), json!({"terminationGracePeriodSeconds": 0}));
        assert!(tiny[0].contains("does not sleep"), "{tiny:?}");
    }

    #[test]
    fn a_job_that_would_not_complete_is_warned_of() {
        let job = json!({"restartPolicy": "Never"});
        let warnings = planned(&json!({}), &job, &policy()).unwrap().warnings;
        assert!(warnings[0].contains("does not complete"), "{warnings:?}");
        assert!(warnings[0].contains("connect-lifecycle wait --quit"), "{warnings:?}");
        assert_eq!(planned(&json!({}), &job, &on("1.30")).unwrap().warnings, Vec::<String>::new());
    }
}
