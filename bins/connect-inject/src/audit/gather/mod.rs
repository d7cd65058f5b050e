//! Reads Kubernetes page by page, and Consul node by node.

mod consul;
mod handshake;
mod kubernetes;
mod objects;
mod service;

use runtime::Failure;

use super::Settings;
use super::finding::{Code, Finding};
use super::judge::Judging;
use super::progress::Progress;
use super::snapshot::Snapshot;
use crate::policy::Cluster;

pub(super) use consul::node as registrations_of;
pub(super) use kubernetes::{node, nodes, pod};

/// The snapshot, and the findings that reading it caused: those about single pods, and
/// missing permissions.
pub(super) struct Seen {
    pub(super) snapshot: Snapshot,
    pub(super) findings: Vec<Finding>,
    /// What the injector would know about the cluster.
    pub(super) cluster: Cluster,
}

/// Reads everything once.
///
/// # Errors
/// The API server or the agent does not answer.
pub(super) async fn look(settings: &Settings, now: i64) -> Result<Seen, Failure> {
    let cluster = Cluster { version: kubernetes::version(settings).await, ..Cluster::default() };
    let mut seen = Seen { snapshot: Snapshot::default(), findings: Vec::new(), cluster };
    let mut progress = Progress::start();
    kubernetes::surroundings(settings, &mut seen).await?;
    let cluster = seen.cluster.clone();
    let by = settings.judging(&cluster, now);
    kubernetes::pods(settings, by, &mut seen, &mut progress).await?;
    consul::services(settings, &mut seen, &mut progress).await?;
    consul::mesh(settings, &mut seen).await?;
    consul::login(settings, &mut seen).await?;
    Ok(seen)
}

impl Settings {
    pub(super) fn judging<'a>(&'a self, cluster: &'a Cluster, now: i64) -> Judging<'a> {
        Judging {
            policy: &self.policy,
            cluster,
            knows_policy: self.knows_policy,
            now,
            grace: i64::try_from(self.grace.as_secs()).unwrap_or(i64::MAX),
            namespace: self.filter.namespace.as_deref(),
        }
    }
}

impl Seen {
    /// Adds a finding about something that can't be read.
    fn unreadable(&mut self, of: &'static str, what: &str, why: impl std::fmt::Display) {
        self.findings.push(
            Finding::new(Code::Unreadable, of, what)
                .saying(format_args!("cannot check {what}: {why}")),
        );
    }
}
