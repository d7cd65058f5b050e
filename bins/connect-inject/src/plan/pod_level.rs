//! Resources of the pod as a whole: pod-level resources, which limit those of the sidecar
//! (otherwise the API server rejects the pod, in an error that names no annotation), and the
//! QoS class.
//!
//! Source: "Assign Pod-level CPU and memory resources" and "Configure Quality of Service for
//! Pods" of the Kubernetes documentation.

use serde_json::Value;

use super::Surroundings;
use crate::annotation;
use crate::outcome::{Denial, Reason};
use crate::pod::{Container, Pod};
use crate::policy::Policy;
use crate::values::quantity::{Bounds, Quantity, Resources};

/// Rejects a sidecar whose request, added to those of the pod's containers, exceeds the
/// pod's request, or whose limit exceeds the pod's limit.
pub(super) fn refuse(
    pod: Pod<'_>,
    around: &Surroundings<'_>,
    sidecar: &Resources,
) -> Result<(), Denial> {
    for (name, Bounds { request, limit }, keys) in [
        ("cpu", &sidecar.cpu, [annotation::CPU_REQUEST, annotation::CPU_LIMIT]),
        ("memory", &sidecar.memory, [annotation::MEMORY_REQUEST, annotation::MEMORY_LIMIT]),
    ] {
        let whole = |bound| quantity(pod.resource(bound, name));
        // A container without a request gets its limit as request.
        let requested = match (request, limit) {
            (Some(request), _) => Some((request, keys[0])),
            (None, limit) => limit.as_ref().map(|limit| (limit, keys[1])),
        };
        if let (Some((own, key)), Some(whole)) = (requested, whole("requests")) {
            let others: u128 = around
                .containers
                .iter()
                .chain(around.init_containers.iter().filter(|init| init.is_long_running()))
                .filter_map(|container| request_of(*container, name))
                .fold(0, |sum, request| sum.saturating_add(request.billionths()));
            let sidecars = own.billionths().saturating_mul(u128::from(around.sidecars));
            if others.saturating_add(sidecars) > whole.billionths() {
                return Err(too_small("requests", name, own, &whole, key));
            }
        }
        if let (Some(own), Some(whole)) = (limit, whole("limits"))
            && own.billionths() > whole.billionths()
        {
            return Err(too_small("limits", name, own, &whole, keys[1]));
        }
    }
    Ok(())
}

/// The resources of the init containers, beside a sidecar with the given resources.
pub(super) fn init_resources(
    pod: Pod<'_>,
    around: &Surroundings<'_>,
    policy: &Policy,
    sidecar: &Resources,
) -> Resources {
    // Pod-level resources cover the injected containers, too. Default requests could exceed
    // them, and the API server would reject the pod.
    let mut resources =
        if pod.has_resources() { Resources::default() } else { policy.init_resources() };
    // Only where the QoS class needs it: a small limit throttles the start of a container.
    let Bounds { request, limit } = &mut resources.cpu;
    if limit.is_none() && sidecar.is_equal() && is_guaranteed(around) {
        limit.clone_from(request);
    }
    resources
}

/// Whether the pod's own containers have what the QoS class Guaranteed requires.
fn is_guaranteed(around: &Surroundings<'_>) -> bool {
    around.containers.iter().chain(&around.init_containers).all(|container| {
        ["cpu", "memory"].into_iter().all(|name| {
            let of = |bound| quantity(container.resource(bound, name)).map(|of| of.billionths());
            // A container without a request gets its limit as request.
            of("limits").is_some_and(|limit| of("requests").unwrap_or(limit) == limit)
        })
    })
}

fn request_of(container: Container<'_>, name: &str) -> Option<Quantity> {
    let of = |bound| quantity(container.resource(bound, name));
    of("requests").or_else(|| of("limits"))
}

/// Invalid quantities are left for the API server to reject.
fn quantity(value: Option<&Value>) -> Option<Quantity> {
    match value? {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

fn too_small(bound: &str, name: &str, own: &Quantity, whole: &Quantity, key: &str) -> Denial {
    let with = if bound == "requests" { ", added to those of the other containers," } else { "" };
    let problem = format!(
        "`spec.resources.{bound}.{name}` is `{}`, and `{}` from annotation `{key}`{with} does not \
         fit into it: raise the former or lower the latter",
        whole.text(),
        own.text(),
    );
    Denial::new(Reason::InvalidResources, problem)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plan::tests::plan_alone;
    use crate::policy::tests::policy;

    /// The injector accepted such a pod, and the API server rejected it.
    #[test]
    fn a_sidecar_that_does_not_fit_into_the_pods_resources_is_denied() {
        let planned = |annotations: &Value, resources: Value| {
            let pod = json!({"metadata": {"annotations": annotations}, "spec": {
                "resources": resources,
                "containers": [
                    {"name": "a", "resources": {"requests": {"cpu": "60m"}, "limits": {"memory": 1000}}},
                    {"name": "b"},
                ],
                "initContainers": [
                    {"name": "once", "resources": {"requests": {"cpu": "1"}}},
                    {"name": "n", "restartPolicy": "Always", "resources": {"requests": {"cpu": "0.01"}}},
                ],
            }});
            plan_alone(&pod, &policy())
        };
        let cpu = json!({annotation::CPU_REQUEST: "30m"});
        let memory = json!({annotation::MEMORY_LIMIT: "1k"});
        for (annotations, resources) in [
            (&cpu, json!({"requests": {"cpu": "100m"}})),
            (&cpu, json!({"limits": {"cpu": "1m"}})),
            (&cpu, json!({"requests": {"memory": "1"}})),
            (&memory, json!({"requests": {"memory": "2k"}, "limits": {"memory": "1k"}})),
            (&json!({}), json!({"requests": {"cpu": "1m"}})),
            (&cpu, json!({"requests": {"cpu": "much"}})),
            (&cpu, json!({"requests": [1]})),
        ] {
            let planned = planned(annotations, resources);
            assert!(planned.is_ok(), "{}", planned.unwrap_err().message);
        }
        for (annotations, resources, parts) in [
            (
                &cpu,
                json!({"requests": {"cpu": "99m"}}),
                ["requests.cpu` is `99m`", "proxy-cpu-request"],
            ),
            (
                &memory,
                json!({"limits": {"memory": 999}}),
                ["limits.memory` is `999`", "proxy-memory-limit"],
            ),
            (
                &memory,
                json!({"requests": {"memory": "1999"}}),
                ["requests.memory` is `1999`", "proxy-memory-limit`, added"],
            ),
        ] {
            let denial = planned(annotations, resources).unwrap_err();
            assert_eq!(denial.reason, Reason::InvalidResources);
            assert!(parts.iter().all(|part| denial.message.contains(part)), "{}", denial.message);
        }
    }
}
