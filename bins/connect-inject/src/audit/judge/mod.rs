//! From what was seen to findings. Pure: no I/O, and the time is passed in.

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

/// What decides beside what was seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judging<'a> {
    pub(super) policy: &'a Policy,
    pub(super) cluster: &'a Cluster,
    /// Whether the policy is the injector's, not only the flags' defaults.
    pub(super) knows_policy: bool,
    /// Seconds since 1970.
    pub(super) now: i64,
    /// For how many seconds a pod may be on its way.
    pub(super) grace: i64,
    /// The only Kubernetes namespace whose pods were read, if it is one.
    pub(super) namespace: Option<&'a str>,
}

/// All that does not add up but for single pods, which [`pods`] judges as they are read.
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

/// A few names, and how many more there are.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        Some(more) => format!("{shown} and {more} more"),
        None => shown,
    }
}
