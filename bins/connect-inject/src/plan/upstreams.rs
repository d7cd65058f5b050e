//! The pod's upstreams.

use std::collections::HashMap;

use registration::Upstream;
use registration::upstream::{self, Context};

use super::{Surroundings, Taken};
use crate::annotation;
use crate::outcome::{Denial, Reason, Warnings};
use crate::pod::Pod;
use crate::policy::Cluster;

/// Maximum number of upstreams. Each needs a listener, and two environment variables in
/// every container.
const MOST: usize = 256;

/// Reads the upstreams from the annotation.
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
    // Before parsing, so that an overlong list costs little.
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

/// For each upstream of a list, the prefix of the variables that consul-k8s would set,
/// where it has a dot and is valid: the name as written, such as `DB.NS1`. Our own prefixes
/// have no dots, because shells can't read such variables.
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

/// Warns of upstreams that listen on all addresses: everyone in the network can use them with
/// the identity of the pod's service.
fn open_listeners(upstreams: &[Upstream], warnings: &mut Warnings) {
    for upstream in upstreams.iter().filter(|upstream| upstream.bind_address().is_unspecified()) {
        warnings.push(|| {
            format!(
                "remove `local_bind_address` of upstream `{upstream}` unless it is intended: \
                 everyone who can reach the pod can use it with the identity of the pod's service"
            )
        });
    }
}

/// Warns of upstreams with the same environment variables: their names differ only in
/// characters that variable names can't have, or only in their datacenter.
fn shared_variables(upstreams: &[Upstream], warnings: &mut Warnings) {
    let mut first: HashMap<String, &Upstream> = HashMap::new();
    for upstream in upstreams {
        let stem = upstream.variable_stem();
        if let Some(first) = first.get(&stem) {
            warnings.push(|| {
                format!(
                    "upstreams `{first}` and `{upstream}` have the same environment variables: \
                     {stem}_CONNECT_SERVICE_HOST and _PORT are those of the first"
                )
            });
        } else {
            first.insert(stem, upstream);
        }
    }
}

/// Warns of an upstream in another datacenter if neither it nor proxy-defaults says how
/// traffic gets there. It may still work, through service-defaults or directly.
pub(super) fn warn_of_missing_gateways(
    upstreams: &[Upstream],
    cluster: &Cluster,
    warnings: &mut Warnings,
) {
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

    /// Working pods were denied: with their own datacenter, with a mode in
    /// service-defaults, with routed networks.
    #[test]
    fn an_upstream_in_another_datacenter_without_gateway_mode_causes_a_warning() {
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
    fn an_upstream_on_all_addresses_causes_a_warning() {
        let warnings = warnings("a:1?local_bind_address=0.0.0.0,b:2", &Cluster::default());
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("upstream `a`"), "{warnings:?}");
    }
}
