//! Resources of the pod as a whole, into which those of the sidecar have to fit: the
//! API server refuses the pod else, and names none of the annotations.
//!
//! Source: "Assign Pod-level CPU and memory resources" of the Kubernetes
//! documentation.

use serde_json::Value;

use super::Surroundings;
use crate::annotation;
use crate::outcome::{Denial, Reason};
use crate::pod::{Container, Pod};
use crate::values::quantity::{Bounds, Quantity, Resources};

/// Refuses a sidecar whose request is, with those of the pod's containers, above the
/// pod's, or whose limit is above the pod's.
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
        // A container without a request has its limit for one.
        if let (Some(own), Some(whole)) = (request.as_ref().or(limit.as_ref()), whole("requests")) {
            let others: u128 = around
                .containers
                .iter()
                .chain(around.init_containers.iter().filter(|init| init.is_long_running()))
                .filter_map(|container| request_of(*container, name))
                .fold(0, |sum, request| sum.saturating_add(request.billionths()));
            let sidecars = own.billionths().saturating_mul(u128::from(around.sidecars));
            if others.saturating_add(sidecars) > whole.billionths() {
                return Err(too_small("requests", name, own, &whole, keys[0]));
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

fn request_of(container: Container<'_>, name: &str) -> Option<Quantity> {
    let of = |bound| quantity(container.resource(bound, name));
    of("requests").or_else(|| of("limits"))
}

/// What is no quantity is the API server's to refuse.
fn quantity(value: Option<&Value>) -> Option<Quantity> {
    match value? {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

fn too_small(bound: &str, name: &str, own: &Quantity, whole: &Quantity, key: &str) -> Denial {
    let with = if bound == "requests" { ", with those of the other containers," } else { "" };
    let problem = format!(
        "`spec.resources.{bound}.{name}` is `{}`, and `{}` of annotation `{key}`{with} does not fit \
         into it: raise the one or lower the other",
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

    /// The API server refused such a pod, and the injector had let it pass.
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
                ["requests.memory` is `1999`", "other containers"],
            ),
        ] {
            let denial = planned(annotations, resources).unwrap_err();
            assert_eq!(denial.reason, Reason::InvalidResources);
            assert!(parts.iter().all(|part| denial.message.contains(part)), "{}", denial.message);
        }
    }
}
