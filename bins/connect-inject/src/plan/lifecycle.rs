//! How the sidecar starts before the application, runs beside it and ends after it.

use serde_json::Value;

use registration::Upstream;

use super::{Service, Surroundings, read};
use crate::annotation;
use crate::outcome::{Denial, Reason, Warnings};
use crate::pod::{Container, Pod};
use crate::policy::{Cluster, Policy, SidecarMode};
use crate::values::{Version, one_of, seconds, switch};

/// Start, run and end of the sidecar.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Lifecycle {
    /// Whether it is a native sidecar: an init container with `restartPolicy: Always`.
    pub(crate) native: bool,
    /// Whether a native sidecar precedes the user's init containers.
    pub(crate) first: bool,
    /// Maximum seconds that the application waits for Envoy.
    pub(crate) hold: u32,
    /// Maximum drain time in seconds; `None` for connect-lifecycle's default.
    pub(crate) drain: Option<u32>,
    /// Whether the kubelet restarts the init container however often it fails. In a Job, a
    /// failure fails the pod or counts towards the Job's backoff limit.
    pub(crate) restarts: bool,
    /// preStop sleep in seconds, and the JSON pointers of the containers that get it.
    pub(crate) sleep: Option<(u32, Vec<String>)>,
}

/// Default drain time of `connect-lifecycle run`, in seconds.
const DRAIN: u32 = 20;
/// Seconds for the deregistration after the drain.
const DEREGISTER: u32 = 5;
/// Default termination grace period, in seconds.
///
/// Source: "Pod Lifecycle" of the Kubernetes documentation.
const GRACE: i64 = 30;

const REASON: Reason = Reason::InvalidLifecycle;

/// Reads the annotations, with the flags as defaults.
pub(super) fn lifecycle(
    pod: Pod<'_>,
    around: &Surroundings<'_>,
    service: &Service,
    policy: &Policy,
    cluster: &Cluster,
    warnings: &mut Warnings,
) -> Result<Lifecycle, Denial> {
    let seconds = |key| read(pod, key, REASON, seconds);
    let native = native(pod, policy, cluster)?;
    let position = read(pod, annotation::POSITION, REASON, one_of(&["first", "last"]))?;
    let first = native && position.as_deref() != Some("last");
    let hold = seconds(annotation::STARTUP_GRACE)?.unwrap_or(policy.startup_grace);
    let drain = seconds(annotation::SHUTDOWN_GRACE)?.or(*policy.shutdown_grace);
    let grace = grace(pod);
    let is_server = service.each().any(|(_, port)| port.is_some());
    let sleep = sleep(pod, around, is_server, (policy, cluster), grace, warnings)?;

    // A native sidecar gets SIGTERM only after the application has ended.
    let before = sleep.as_ref().filter(|_| native).map_or(0, |(seconds, _)| *seconds);
    // The kubelet stops native sidecars one after another.
    let turns = if native { i64::from(around.sidecars) } else { 1 };
    let needed =
        (i64::from(drain.unwrap_or(DRAIN)) + i64::from(DEREGISTER)) * turns + i64::from(before);
    if needed > grace {
        warnings.push(|| {
            format!(
                "raise `terminationGracePeriodSeconds` or lower `{}`: the grace period is \
                 {grace} s, but the sidecar may need {needed} s to drain",
                annotation::SHUTDOWN_GRACE
            )
        });
    }
    let restarts =
        !matches!(pod.spec("restartPolicy").and_then(Value::as_str), Some("Never" | "OnFailure"));
    if !native && !restarts {
        warnings.push(|| {
            format!(
                "set `{}: native` if the cluster has native sidecars, or run the application with \
                 `connect-lifecycle wait --quit` (mounted by `{}`): otherwise the sidecar keeps \
                 running after the other containers, and the pod does not complete",
                annotation::SIDECAR_MODE,
                annotation::MOUNT_VOLUME
            )
        });
    }
    Ok(Lifecycle { native, first, hold, drain, restarts, sleep })
}

// === impl Lifecycle ===

impl Lifecycle {
    /// Maximum drain time of Envoy in seconds.
    pub(crate) fn drain_time(&self) -> u32 {
        self.drain.unwrap_or(DRAIN)
    }

    /// Whether Envoy runs while a user's container runs.
    pub(crate) fn has_envoy(&self, container: Container<'_>) -> bool {
        self.first || container.is_long_running()
    }

    /// Warns of init containers that end before Envoy starts: they can't reach upstreams.
    pub(super) fn warn_of_early_containers(
        &self,
        around: &Surroundings<'_>,
        upstreams: &[Upstream],
        warnings: &mut Warnings,
    ) {
        let early = around.init_containers.iter().find(|init| !self.has_envoy(**init));
        if let Some(early) = early.filter(|_| !upstreams.is_empty()) {
            let how = if self.native {
                format!("remove annotation `{}`", annotation::POSITION)
            } else {
                format!("set annotation `{}: native`", annotation::SIDECAR_MODE)
            };
            warnings.push(|| {
                format!(
                    "{how} if init container `{}` needs an upstream: it runs before Envoy, and gets no \
                     upstream variables",
                    early.name
                )
            });
        }
    }
}

/// The annotation, under its new or old name, with the flag as default.
fn native(pod: Pod<'_>, policy: &Policy, cluster: &Cluster) -> Result<bool, Denial> {
    let mode = read(pod, annotation::SIDECAR_MODE, REASON, str::parse::<SidecarMode>)?;
    let old = read(pod, annotation::AS_SIDECAR, REASON, switch)?
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
    policy.is_native(mode, cluster).map_err(|problem| Denial::new(REASON, problem))
}

/// Returns the preStop sleep, and the containers without a preStop hook, which get it.
fn sleep(
    pod: Pod<'_>,
    around: &Surroundings<'_>,
    is_server: bool,
    (policy, cluster): (&Policy, &Cluster),
    grace: i64,
    warnings: &mut Warnings,
) -> Result<Option<(u32, Vec<String>)>, Denial> {
    let key = annotation::SLEEP;
    let annotated = read(pod, key, REASON, seconds)?;
    // A pod without a service port receives no connections that the sleep could protect.
    let default = if is_server { policy.application_sleep } else { 0 };
    let seconds = annotated.unwrap_or(default);
    if seconds == 0 {
        return Ok(None);
    }
    if !policy.kubelets_have(Version::SLEEP, cluster) {
        if annotated.is_some() {
            warnings.push(|| {
                format!(
                    "annotation `{key}` has no effect: it requires kubelets of Kubernetes {} or \
                     newer, and the cluster may have older ones",
                    Version::SLEEP
                )
            });
        }
        return Ok(None);
    }
    // The API server rejects a sleep longer than the grace period.
    if i64::from(seconds) >= grace {
        let problem = format!(
            "a preStop sleep of {seconds} s does not fit into the grace period of {grace} s: raise \
             `terminationGracePeriodSeconds`"
        );
        if annotated.is_some() {
            return Err(Denial::new(REASON, format_args!("annotation `{key}`: {problem}")));
        }
        warnings.push(|| format!("{problem}; no sleep was added"));
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

/// Termination grace period in seconds.
fn grace(pod: Pod<'_>) -> i64 {
    pod.spec("terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(GRACE)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plan::Plan;
    use crate::plan::tests::plan_in;
    use crate::policy::tests::policy;
    use crate::policy::tests::{cluster, policy_of};

    fn planned(
        annotations: &Value,
        spec: &Value,
        version: &str,
    ) -> Result<(Plan, Vec<String>), Denial> {
        let mut pod = json!({"metadata": {"annotations": annotations}, "spec": {"containers": [
            {"name": "app", "ports": [{"containerPort": 8080}]},
            {"name": "own", "lifecycle": {"preStop": {"exec": {}}}},
            {"name": "post", "lifecycle": {"postStart": {"exec": {}}, "preStop": null}},
        ]}});
        for (key, value) in spec.as_object().unwrap() {
            pod["spec"][key] = value.clone();
        }
        plan_in(&pod, &policy(), &cluster(version))
    }

    #[test]
    fn the_mode_comes_from_the_annotation_or_the_flag() {
        let native = |annotations: Value, version: &str| {
            planned(&annotations, &json!({}), version).unwrap().0.lifecycle.native
        };
        let key = annotation::SIDECAR_MODE;
        assert!(!native(json!({}), ""));
        assert!(!native(json!({}), "1.31"), "kubelets may be older");
        assert!(native(json!({}), "1.32"));
        assert!(!native(json!({key: "container"}), "1.32"));
        assert!(!native(json!({annotation::AS_SIDECAR: "false"}), "1.32"));
        assert!(native(json!({key: "native"}), ""));
        assert!(native(json!({key: "native"}), "1.29"));
        assert!(native(json!({annotation::AS_SIDECAR: "true"}), ""));
        assert!(!native(json!({key: "auto"}), ""));
    }

    /// A database migration in an init container got the variables of its upstream, but no
    /// Envoy ran.
    #[test]
    fn init_containers_reach_upstreams_after_a_native_sidecar() {
        let spec = json!({"initContainers": [{"name": "migrate"}, {"name": "n", "restartPolicy": "Always"}]});
        let plan = |mode: &str, position: Option<&str>| {
            let mut annotations =
                json!({annotation::UPSTREAMS: "db:1", annotation::SIDECAR_MODE: mode});
            if let Some(position) = position {
                annotations[annotation::POSITION] = position.into();
            }
            let (plan, warnings) = planned(&annotations, &spec, "1.34").unwrap();
            (plan.lifecycle.first, warnings)
        };
        assert_eq!(plan("native", None), (true, vec![]));
        let (first, warnings) = plan("native", Some("last"));
        assert!(!first && warnings[0].contains("init container `migrate`"), "{warnings:?}");
        let (first, warnings) = plan("container", None);
        assert!(!first && warnings[0].contains("sidecar-mode: native"), "{warnings:?}");
    }

    #[test]
    fn invalid_settings_are_denied() {
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
            (json!({annotation::SLEEP: "-1"}), "1.33", "number of seconds"),
            (json!({annotation::SLEEP: "30"}), "1.33", "30 s does not fit"),
            (json!({annotation::POSITION: "middle"}), "1.33", "first, last"),
        ] {
            let denial = planned(&annotations, &json!({}), version).unwrap_err();
            assert_eq!(denial.reason, Reason::InvalidLifecycle);
            assert!(denial.message.contains(problem), "{}", denial.message);
        }
    }

    #[test]
    fn the_application_sleeps_where_all_kubelets_support_it() {
        let sleep = |annotations: Value, version: &str| {
            let (plan, warnings) = planned(&annotations, &json!({}), version).unwrap();
            (plan.lifecycle.sleep, warnings)
        };
        let both = vec!["/spec/containers/0".to_owned(), "/spec/containers/2".to_owned()];
        assert_eq!(sleep(json!({}), "1.33"), (Some((5, both.clone())), vec![]));
        assert_eq!(sleep(json!({annotation::SLEEP: "4"}), "1.34").0, Some((4, both.clone())));
        assert_eq!(sleep(json!({annotation::SLEEP: "0"}), "1.33"), (None, vec![]));
        assert_eq!(sleep(json!({}), ""), (None, vec![]));
        for version in ["", "1.32"] {
            let (none, warnings) = sleep(json!({annotation::SLEEP: "4"}), version);
            assert!(none.is_none() && warnings[0].contains("may have older ones"), "{warnings:?}");
        }
        let known = policy_of(&["--oldest-kubelet-version=1.30"]);
        let pod = json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 1}]}]}});
        assert!(plan_in(&pod, &known, &cluster("")).unwrap().0.lifecycle.sleep.is_some());
        // A pod without a service port receives no connections.
        let client = json!({"spec": {"containers": [{"name": "a"}]}});
        assert!(plan_in(&client, &known, &cluster("")).unwrap().0.lifecycle.sleep.is_none());
    }

    #[test]
    fn a_grace_period_shorter_than_the_drain_causes_a_warning() {
        let warnings =
            |annotations: Value, spec: Value| planned(&annotations, &spec, "1.33").unwrap().1;
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
        assert!(tiny[0].contains("no sleep was added"), "{tiny:?}");
    }

    #[test]
    fn a_job_that_would_not_complete_causes_a_warning() {
        let job = json!({"restartPolicy": "Never"});
        let warnings = planned(&json!({}), &job, "").unwrap().1;
        assert!(warnings[0].contains("does not complete"), "{warnings:?}");
        assert!(warnings[0].contains("connect-lifecycle wait --quit"), "{warnings:?}");
        assert_eq!(planned(&json!({}), &job, "1.33").unwrap().1, Vec::<String>::new());
    }
}
