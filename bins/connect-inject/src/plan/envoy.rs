//! How Envoy runs: arguments, threads, resources and probes.

use super::read;
use crate::annotation;
use crate::outcome::{Denial, Reason};
use crate::pod::Pod;
use crate::policy::{Policy, Words};
use crate::values::quantity::{Quantity, Resources};
use crate::values::{seconds, switch, threads};

/// How Envoy runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Envoy {
    /// Additional arguments.
    pub(crate) extra_args: Vec<String>,
    /// Worker threads; Envoy treats 0 as 1.
    pub(crate) concurrency: u32,
    /// Requests and limits of the sidecar.
    pub(crate) resources: Resources,
    pub(crate) readiness: bool,
    /// Seconds after which a sidecar that does not become ready is restarted.
    pub(crate) startup_failure: Option<u32>,
    /// Seconds after which a sidecar that is no longer ready is restarted.
    pub(crate) liveness_failure: Option<u32>,
}

/// Reads the annotations, with the flags as defaults.
pub(super) fn envoy(pod: Pod<'_>, policy: &Policy) -> Result<Envoy, Denial> {
    let extra_args =
        read(pod, annotation::ENVOY_ARGS, Reason::InvalidEnvoyArgs, str::parse::<Words>)?;
    let concurrency = read(pod, annotation::CONCURRENCY, Reason::InvalidEnvoyArgs, threads)?;
    let failure = |key, default| {
        let seconds = read(pod, key, Reason::InvalidLifecycle, seconds)?.unwrap_or(default);
        Ok::<_, Denial>(Some(seconds).filter(|seconds| *seconds > 0))
    };
    Ok(Envoy {
        extra_args: extra_args.unwrap_or_else(|| policy.envoy_extra_args.clone()).0,
        concurrency: concurrency.unwrap_or(policy.concurrency),
        resources: resources(pod, policy)?,
        readiness: read(pod, annotation::PROXY_HEALTH, Reason::InvalidLifecycle, switch)?
            .unwrap_or(policy.proxy_health),
        startup_failure: failure(annotation::STARTUP_FAILURE, policy.startup_failure)?,
        liveness_failure: failure(annotation::LIVENESS_FAILURE, policy.liveness_failure)?,
    })
}

/// Reads the sidecar's resources; each annotation replaces one flag.
fn resources(pod: Pod<'_>, policy: &Policy) -> Result<Resources, Denial> {
    let mut resources =
        if pod.has_resources() { Resources::default() } else { policy.sidecar_resources() };
    for (key, slot) in [
        (annotation::CPU_REQUEST, &mut resources.cpu.request),
        (annotation::CPU_LIMIT, &mut resources.cpu.limit),
        (annotation::MEMORY_REQUEST, &mut resources.memory.request),
        (annotation::MEMORY_LIMIT, &mut resources.memory.limit),
        (annotation::STORAGE_REQUEST, &mut resources.ephemeral_storage.request),
        (annotation::STORAGE_LIMIT, &mut resources.ephemeral_storage.limit),
    ] {
        if let Some(quantity) = read(pod, key, Reason::InvalidResources, str::parse::<Quantity>)? {
            *slot = Some(quantity);
        }
    }
    resources.check().map_err(|problem| {
        let problem =
            format!("the sidecar's resources (annotations and flags combined): {problem}");
        Denial::new(Reason::InvalidResources, problem)
    })?;
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::tests::plan_alone;
    use crate::policy::tests::policy;
    use crate::policy::tests::policy_of;

    fn planned(annotations: &Value, policy: &Policy) -> Result<Envoy, Denial> {
        let pod = json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "app"}]}});
        plan_alone(&pod, policy).map(|plan| plan.envoy)
    }

    #[test]
    fn the_annotation_replaces_the_flag() {
        let policy = policy_of(&["--envoy-extra-args=-l"]);
        let args = |annotations| planned(&annotations, &policy).unwrap().extra_args;
        assert_eq!(args(json!({})), ["-l"]);
        assert_eq!(args(json!({annotation::ENVOY_ARGS: ""})), Vec::<String>::new());
        assert_eq!(args(json!({annotation::ENVOY_ARGS: "-l 'a b'"})), ["-l", "a b"]);
        let threads = |value| planned(&json!({annotation::CONCURRENCY: value}), &policy).unwrap();
        assert_eq!(threads("4").concurrency, 4);
        // Envoy starts one thread then; consul-k8s passes 0 as well.
        assert_eq!(threads("0").concurrency, 0);
        assert_eq!(planned(&json!({}), &policy).unwrap().concurrency, 2);
    }

    #[test]
    fn probes_come_from_the_annotations_or_the_flags() {
        let policy = policy_of(&[
            "--default-sidecar-proxy-startup-failure-seconds=60",
            "--default-sidecar-proxy-liveness-failure-seconds=90",
        ]);
        let probes = |annotations| {
            let envoy = planned(&annotations, &policy).unwrap();
            (envoy.startup_failure, envoy.liveness_failure)
        };
        assert_eq!(probes(json!({})), (Some(60), Some(90)));
        let own = json!({annotation::STARTUP_FAILURE: "30", annotation::LIVENESS_FAILURE: "0"});
        assert_eq!(probes(own), (Some(30), None));
    }

    /// A pod is ready when Consul would send it traffic.
    #[test]
    fn the_readiness_probe_depends_on_annotation_and_flag() {
        let probed = |annotations: Value, flags: &[&str]| {
            planned(&annotations, &policy_of(flags)).unwrap().readiness
        };
        let off = "--default-use-proxy-health-check=false";
        assert!(probed(json!({}), &[]));
        assert!(!probed(json!({}), &[off]));
        assert!(!probed(json!({annotation::PROXY_HEALTH: "false"}), &[]));
        assert!(probed(json!({annotation::PROXY_HEALTH: "true"}), &[off]));
    }

    #[test]
    fn each_resource_comes_from_the_annotation_or_the_flag() {
        let policy = policy_of(&[
            "--default-sidecar-proxy-cpu-request=100m",
            "--default-sidecar-proxy-memory-request=",
            "--default-sidecar-proxy-memory-limit=64Mi",
        ]);
        let annotations = json!({annotation::CPU_REQUEST: "0", annotation::CPU_LIMIT: "1"});
        let resources = planned(&annotations, &policy).unwrap().resources;
        let text = |quantity: &Option<Quantity>| quantity.as_ref().map(|q| q.text().to_owned());
        assert_eq!(text(&resources.cpu.request).as_deref(), Some("0"));
        assert_eq!(text(&resources.cpu.limit).as_deref(), Some("1"));
        assert_eq!(text(&resources.memory.request), None);
        assert_eq!(text(&resources.memory.limit).as_deref(), Some("64Mi"));

        let denial = planned(&json!({annotation::MEMORY_REQUEST: "65Mi"}), &policy).unwrap_err();
        assert_eq!(denial.reason, Reason::InvalidResources);
        assert!(denial.message.ends_with("request `65Mi` is above the memory limit `64Mi`"));
        let denial = planned(&json!({annotation::CPU_LIMIT: "1 core"}), &policy).unwrap_err();
        assert!(denial.message.contains("column 2"), "{}", denial.message);
    }

    #[test]
    fn settings_that_keep_envoy_from_starting_are_denied() {
        for (key, value, problem) in [
            (annotation::ENVOY_ARGS, "-l 'debug", "column 4"),
            (annotation::ENVOY_ARGS, "--config-path x", "set by the injector"),
            (annotation::ENVOY_ARGS, "-c x", "set by the injector"),
            (annotation::CONCURRENCY, "-1", "number of threads"),
            (annotation::CONCURRENCY, "two", "number of threads"),
        ] {
            let denial = planned(&json!({key: value}), &policy()).unwrap_err();
            assert_eq!(denial.reason, Reason::InvalidEnvoyArgs);
            assert!(denial.message.contains(problem), "{}", denial.message);
        }
    }
}
