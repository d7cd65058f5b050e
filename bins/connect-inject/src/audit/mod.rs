//! Checks a cluster and its Consul for inconsistencies. `gather` reads both into a
//! `snapshot`, `judge` derives findings from it without I/O, `report` writes them, and
//! `repair` removes registrations and tokens whose pod is gone.

mod binding;
mod condition;
mod finding;
mod gather;
mod judge;
mod progress;
mod publish;
mod repair;
mod report;
mod rights;
mod selector;
mod sidecar;
mod snapshot;

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use consul::Agent;
use runtime::{Exit, Failure, Signals, stdout};

use crate::kubernetes::Api;
use crate::policy::{Cluster, Policy};
use finding::Finding;
use gather::Seen;
use report::Counts;
use snapshot::Snapshot;

pub(crate) use finding::{Code, Filter, code};
pub(crate) use publish::ConfigMap;
pub(crate) use repair::Repair;
pub(crate) use report::Output;

#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) api: Api,
    /// Whether the audit runs in a pod. Only there does a pod IP surely lead to that pod.
    pub(crate) is_in_cluster: bool,
    pub(crate) agent: Agent,
    pub(crate) policy: Policy,
    /// Whether the policy is the injector's, rather than the flags' defaults.
    pub(crate) knows_policy: bool,
    pub(crate) filter: Filter,
    pub(crate) output: Output,
    /// Where to write the results, from which the injector exports metrics.
    pub(crate) results: Option<ConfigMap>,
    /// `None` only reports.
    pub(crate) repair: Option<Repair>,
    /// How long a new pod may take to register.
    pub(crate) grace: Duration,
    /// Pause before the second look, which confirms findings that may be transient.
    pub(crate) settle: Duration,
}

struct Found {
    findings: Vec<Finding>,
    counts: Counts,
    snapshot: Snapshot,
    cluster: Cluster,
}

/// Reports the findings, publishes their number, and repairs them, as the settings say.
pub(crate) async fn run(settings: Settings, mut signals: Signals) -> Result<ExitCode, Failure> {
    let work = async {
        let Found { findings, counts, snapshot, cluster } = find(&settings).await?;
        stdout::write(&report::write(&findings, counts, settings.output))?;
        summarize(&findings, counts);
        if let Some(map) = &settings.results {
            publish::publish(&settings, map, &findings, now()).await?;
        }
        let mut left = findings.len();
        if let Some(repair) = settings.repair {
            let by = settings.judging(&cluster, now());
            let removed = repair::repair(&settings, &snapshot, &findings, by, repair).await?;
            left = left.saturating_sub(removed);
        }
        Ok(if left == 0 { Exit::Done } else { Exit::Failure }.into())
    };
    tokio::select! {
        done = work => done,
        _ = signals.next() => Err(Failure::new(Exit::Failure, "ended by a signal")),
    }
}

/// Prints the required permissions.
pub(crate) fn print_rights() -> Result<ExitCode, Failure> {
    stdout::write(rights::RIGHTS)?;
    Ok(Exit::Done.into())
}

/// Reads and judges everything once, and again if a finding may be transient.
async fn find(settings: &Settings) -> Result<Found, Failure> {
    let mut found = look(settings).await?;
    let unsettled = found.findings.iter().filter(|finding| finding.code.may_settle()).count();
    if unsettled > 0 && !settings.settle.is_zero() {
        let seconds = settings.settle.as_secs();
        tracing::info!(
            "looking again in {seconds} s at {unsettled} findings that may be transient"
        );
        tokio::time::sleep(settings.settle).await;
        // Dropped before the second look, so that only one snapshot is in memory at a time.
        let earlier = found.findings;
        drop(found.snapshot);
        found = look(settings).await?;
        found.findings.retain(|finding| {
            !finding.code.may_settle() || earlier.iter().any(|earlier| finding.is_again(earlier))
        });
    }
    found.findings.sort();
    found.findings.dedup();
    Ok(found)
}

async fn look(settings: &Settings) -> Result<Found, Failure> {
    let now = now();
    let Seen { snapshot, mut findings, cluster } = gather::look(settings, now).await?;
    findings.extend(judge::judge(&snapshot, settings.judging(&cluster, now)));
    findings.retain(|finding| settings.filter.keeps(finding));
    let pods = snapshot.pods.iter().flatten();
    let counts = Counts {
        pods: pods.clone().count(),
        sidecars: pods.filter(|(_, pod)| pod.sidecar.is_some()).count(),
        registrations: snapshot.registrations.len(),
    };
    Ok(Found { findings, counts, snapshot, cluster })
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Logs one line for each code, for readers of the log only.
fn summarize(findings: &[Finding], counts: Counts) {
    let Counts { pods, sidecars, registrations } = counts;
    tracing::info!(
        pods,
        sidecars,
        registrations,
        findings = findings.len(),
        "looked at the cluster"
    );
    for (code, count) in report::by_code(findings) {
        tracing::warn!(code, count, "found");
    }
}
