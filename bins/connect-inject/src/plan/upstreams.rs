//! What the pod reaches.

use std::collections::HashMap;

use registration::Upstream;
use registration::upstream::{self, Context};

use super::{Surroundings, Taken};
use crate::annotation;
use crate::outcome::{Denial, Reason, Warnings};
use crate::pod::Pod;
use crate::policy::Cluster;

/// The most upstreams of a pod. Each is a listener, and two variables in every
/// container.
const MOST: usize = 256;

/// What the pod reaches.
pub(super) fn upstreams(
    pod: Pod<'_>,
    around: &Surroundings<'_>,
    taken: &Taken<'_>,
    warnings: &mut Warnings,
) -> Result<Vec<Upstream>, Denial> {
    let key = annotation::UPSTREAMS;
    let Some(value) = pod.annotation(key)? else {
        return Ok(Vec::new());
    };
    // Before they are read.
    let elements = value.split(',').count();
    if elements > MOST {
        let problem = format!("{elements} upstreams: at most {MOST}");
        return Err(Denial::annotation(Reason::InvalidUpstreams, key, value, problem));
    }
    let context = Context { named_ports: &around.named(), namespaces: false };
    let upstreams = upstream::parse_list(value, context)
        .map_err(|error| Denial::annotation(Reason::InvalidUpstreams, key, value, error))?;
    if let Some(conflict) = upstream::conflict(&upstreams, &taken.list()) {
        return Err(Denial::annotation(Reason::UpstreamConflict, key, value, conflict));
    }
    shared_variables(&upstreams, warnings);
    open_listeners(&upstreams, warnings);
    Ok(upstreams)
}

/// For each upstream of a list the stem of its variables with Consul's own injector,
/// where that has a dot and a container can have such a variable: the first part as it
/// is written, such as `DB.NS1`. Ours has no dots, which shells can't read.
pub(crate) fn dotted_stems(list: &str) -> Vec<Option<String>> {
    let stem = |element: &str| {
        let name = element.split(':').next().unwrap_or_default().trim();
        let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        (is_name && name.contains('.') && name.chars().all(is_valid))
            .then(|| name.replace('-', "_").to_ascii_uppercase())
    };
    list.split(',').map(stem).collect()
}

/// An upstream on all addresses lets the whole network use the pod's identity.
fn open_listeners(upstreams: &[Upstream], warnings: &mut Warnings) {
    for upstream in upstreams.iter().filter(|upstream| upstream.bind_address().is_unspecified()) {
        warnings.push(|| {
            format!(
                "remove `local_bind_address` of upstream `{upstream}` unless it is meant: whoever \
                 reaches the pod's address can use it in the name of the pod's service"
            )
        });
    }
}

/// Two upstreams whose names differ only in what can't stand in a variable's
/// name, or only in their datacenter, share their environment variables.
fn shared_variables(upstreams: &[Upstream], warnings: &mut Warnings) {
    let mut first: HashMap<String, &Upstream> = HashMap::new();
    for upstream in upstreams {
        let stem = upstream.variable_stem();
        if let Some(first) = first.get(&stem) {
            warnings.push(|| {
                format!(
                    "upstreams `{first}` and `{upstream}` have the same environment variables: \
                     {stem}_CONNECT_SERVICE_HOST and _PORT lead to the first"
                )
            });
        } else {
            first.insert(stem, upstream);
        }
    }
}

/// Warns of an upstream in another datacenter, if neither it nor proxy-defaults
/// says how traffic gets there. It may be routed all the same: by
/// service-defaults, or directly.
pub(super) fn gateways(upstreams: &[Upstream], cluster: &Cluster, warnings: &mut Warnings) {
    if cluster.mesh_gateways {
        return;
    }
    let elsewhere = |upstream: &&Upstream| {
        !upstream.datacenter.is_empty()
            && cluster.datacenter.as_ref() != Some(&upstream.datacenter)
            && upstream.mesh_gateway.mode.is_empty()
    };
    if let Some(upstream) = upstreams.iter().find(elsewhere) {
        warnings.push(|| {
            format!(
                "add `?mesh_gateway_mode=local` to upstream `{upstream}`, or set \
                 MeshGateway.Mode in proxy-defaults, unless its datacenter is reached without \
                 mesh gateways"
            )
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plan::tests::plan_in;
    use crate::policy::tests::policy;

    fn warnings(upstreams: &str, cluster: &Cluster) -> Vec<String> {
        let annotations = json!({annotation::UPSTREAMS: upstreams});
        let pod = json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "a"}]}});
        plan_in(&pod, &policy(), cluster).unwrap().1
    }

    /// Pods that work were denied: with the own datacenter, with a mode of
    /// service-defaults, with routed networks.
    #[test]
    fn an_upstream_in_another_datacenter_is_warned_of_if_nothing_says_how_to_get_there() {
        let unknown = Cluster::default();
        let used = Cluster { mesh_gateways: true, ..Cluster::default() };
        let own = Cluster { datacenter: Some("dc2".to_owned()), ..Cluster::default() };
        for upstreams in ["db:1", "db:1:dc2?mesh_gateway_mode=remote", "prepared_query:db:1"] {
            assert_eq!(warnings(upstreams, &unknown), Vec::<String>::new(), "{upstreams}");
        }
        assert_eq!(warnings("a:1,db:2:dc2", &used), Vec::<String>::new());
        assert_eq!(warnings("a:1,db:2:dc2", &own), Vec::<String>::new());
        for cluster in
            [&unknown, &Cluster { datacenter: Some("dc1".to_owned()), ..unknown.clone() }]
        {
            let warnings = warnings("a:1,db:2:dc2", cluster);
            assert_eq!(warnings.len(), 1);
            assert!(warnings[0].contains("?mesh_gateway_mode=local"), "{warnings:?}");
            assert!(warnings[0].contains("`db (datacenter dc2)`"), "{warnings:?}");
        }
    }

    #[test]
    fn an_upstream_on_all_addresses_is_warned_of() {
        let warnings = warnings("a:1?local_bind_address=0.0.0.0,b:2", &Cluster::default());
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("upstream `a`"), "{warnings:?}");
    }
}
