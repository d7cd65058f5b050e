//! What the pod reaches.

use std::collections::HashMap;

use registration::Upstream;
use registration::upstream::{self, Context};

use super::{Service, Surroundings};
use crate::annotation;
use crate::denial::Denial;
use crate::pod::Pod;
use crate::policy::{MeshGateways, Policy};
use crate::reason::Reason;

/// What the pod reaches.
pub(super) fn upstreams(
    pod: Pod<'_>,
    around: &Surroundings<'_>,
    service: &Service,
    metrics: Option<u16>,
    warnings: &mut Vec<String>,
) -> Result<Vec<Upstream>, Denial> {
    let key = annotation::UPSTREAMS;
    let Some(value) = pod.annotation(key)? else {
        return Ok(Vec::new());
    };
    let context = Context { named_ports: &around.named(), namespaces: false };
    let upstreams = upstream::parse_list(value, context)
        .map_err(|error| Denial::annotation(Reason::InvalidUpstreams, key, value, error))?;
    let own = service.each().filter_map(|(_, port)| port);
    let taken: Vec<(u16, String)> = around
        .reserved()
        .map(|(port, owner)| (port, owner.to_owned()))
        .chain(own.map(|port| (port, "the port of the pod's own service".to_owned())))
        .chain(metrics.map(|port| (port, "the port of Envoy's metrics".to_owned())))
        .chain(
            around
                .ports
                .iter()
                .chain(&around.long_running)
                .map(|port| (port.number, format!("a port of container `{}`", port.container))),
        )
        .collect();
    if let Some(conflict) = upstream::conflict(&upstreams, &taken) {
        return Err(Denial::annotation(Reason::UpstreamConflict, key, value, conflict));
    }
    warnings.extend(shared_variables(&upstreams));
    Ok(upstreams)
}

/// Two upstreams whose names differ only in what can't stand in a variable's
/// name, or only in their datacenter, share their environment variables.
fn shared_variables(upstreams: &[Upstream]) -> Vec<String> {
    let mut first: HashMap<String, &Upstream> = HashMap::new();
    let mut warnings = Vec::new();
    for upstream in upstreams {
        let stem = upstream.variable_stem();
        if let Some(first) = first.get(&stem) {
            warnings.push(format!(
                "upstreams `{first}` and `{upstream}` have the same environment variables: \
                 {stem}_CONNECT_SERVICE_HOST and _PORT lead to the first"
            ));
        } else {
            first.insert(stem, upstream);
        }
    }
    warnings
}

/// An upstream in another datacenter goes through mesh gateways or nowhere. If
/// neither it nor Consul's central configuration says so, the pod is denied; if
/// nobody has asked Consul, it is warned of, and that is returned.
pub(super) fn gateways(
    pod: Pod<'_>,
    upstreams: &[Upstream],
    policy: &Policy,
    warnings: &mut Vec<String>,
) -> Result<bool, Denial> {
    const HOW: &str = "set MeshGateway.Mode in the proxy-defaults config entry, or add \
                       `?mesh_gateway_mode=local` to the upstream";
    let undecided = upstreams
        .iter()
        .find(|upstream| !upstream.datacenter.is_empty() && upstream.mesh_gateway.mode.is_empty());
    let Some(upstream) = undecided else { return Ok(false) };
    match policy.mesh_gateways {
        Some(MeshGateways::Used) => Ok(false),
        Some(MeshGateways::Unused) => {
            let key = annotation::UPSTREAMS;
            let value = pod.annotation(key)?.unwrap_or_default();
            let problem = format!("no mesh gateway leads to `{upstream}`: {HOW}");
            Err(Denial::annotation(Reason::NoMeshGateway, key, value, problem))
        }
        None => {
            warnings.push(format!("`{upstream}` is reached through mesh gateways only: {HOW}"));
            Ok(true)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::decision::tests::policy;
    use crate::plan::plan;

    /// Others let it through, and the traffic goes nowhere.
    #[test]
    fn an_upstream_in_another_datacenter_takes_a_gateway() {
        let planned = |upstreams: &str, mesh_gateways| {
            let annotations = json!({annotation::UPSTREAMS: upstreams});
            let pod = json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "a"}]}});
            plan(Pod::new(&pod), &Policy { mesh_gateways, ..policy() })
        };
        for upstreams in ["db:1", "db:1:dc2?mesh_gateway_mode=remote", "prepared_query:db:1"] {
            let plan = planned(upstreams, Some(MeshGateways::Unused)).unwrap();
            assert!(!plan.needs_gateways && plan.warnings.is_empty(), "{upstreams}");
        }
        let plan = planned("a:1,db:2:dc2", Some(MeshGateways::Used)).unwrap();
        assert!(!plan.needs_gateways && plan.warnings.is_empty());
        let plan = planned("a:1,db:2:dc2", None).unwrap();
        assert!(plan.needs_gateways && plan.warnings[0].contains("`db (datacenter dc2)`"));
        let denial = planned("a:1,db:2:dc2", Some(MeshGateways::Unused)).unwrap_err();
        assert_eq!(denial.reason, Reason::NoMeshGateway);
        assert!(denial.message.contains("?mesh_gateway_mode=local"), "{}", denial.message);
    }
}
