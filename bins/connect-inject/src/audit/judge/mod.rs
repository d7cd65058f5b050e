//! Derives findings from a snapshot. Does no I/O, and the time is passed in.

mod acl;
mod mesh;
pub(super) mod pods;
mod registrations;
mod versions;
mod webhooks;

pub(super) use acl::{is_ownerless, pod_of};
pub(super) use mesh::is_allowed;

use super::finding::Finding;
use super::snapshot::Snapshot;
use crate::policy::{Cluster, Policy};

/// The input of the judges besides the snapshot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judging<'a> {
    pub(super) policy: &'a Policy,
    pub(super) cluster: &'a Cluster,
    /// Whether the policy is the injector's, rather than the flags' defaults.
    pub(super) knows_policy: bool,
    /// Seconds since 1970.
    pub(super) now: i64,
    /// How long a new pod may take to register, in seconds.
    pub(super) grace: i64,
    /// The Kubernetes namespace to which reading pods was limited; `None` for all.
    pub(super) namespace: Option<&'a str>,
}

#[cfg(test)]
impl<'a> Judging<'a> {
    /// At the start of 1970, of all namespaces, with a known policy and no grace.
    fn of(policy: &'a Policy, cluster: &'a Cluster) -> Self {
        Self { policy, cluster, knows_policy: true, now: 0, grace: 0, namespace: None }
    }
}

/// All findings except those about single pods, which [`pods`] judges while they are read.
pub(super) fn judge(seen: &Snapshot, by: Judging<'_>) -> Vec<Finding> {
    [
        webhooks::judge(seen, by),
        registrations::judge(seen, by),
        mesh::judge(seen),
        acl::judge(seen, by),
        versions::judge(seen, by),
    ]
    .concat()
}

/// Lists the first names and the number of further ones.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        Some(more) => format!("{shown} and {more} more"),
        None => shown,
    }
}
