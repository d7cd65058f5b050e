//! What does not add up in a cluster and its Consul. `gather` reads, `judge` decides
//! without I/O, `report` writes, `repair` takes back what is nobody's.

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

/// What to look at, and how.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) api: Api,
    /// Whether it runs in a pod, so that an address of the cluster is what it says.
    pub(crate) is_in_cluster: bool,
    pub(crate) agent: Agent,
    pub(crate) policy: Policy,
    /// Whether the policy is the injector's, not only the flags' defaults.
    pub(crate) knows_policy: bool,
    pub(crate) filter: Filter,
    pub(crate) output: Output,
    /// Where the injector's metrics have the results from.
    pub(crate) results: Option<ConfigMap>,
    /// Whether to take back what is nobody's, and how.
    pub(crate) repair: Option<Repair>,
    /// How long a pod may be on its way.
    pub(crate) grace: Duration,
    /// After how long a second look decides about what may be on its way.
    pub(crate) settle: Duration,
}

struct Found {
    findings: Vec<Finding>,
    counts: Counts,
    snapshot: Snapshot,
    cluster: Cluster,
}

/// Looks, and says what does not add up; and takes back what is nobody's, if asked to.
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
            left -= repair::repair(&settings, &snapshot, &findings, by, repair).await?;
        }
        Ok(if left == 0 { Exit::Done } else { Exit::Failure }.into())
    };
    tokio::select! {
        done = work => done,
        _ = signals.next() => Err(Failure::new(Exit::Failure, "ended by a signal")),
    }
}

/// Writes the rights that are needed.
pub(crate) fn print_rights() -> Result<ExitCode, Failure> {
    stdout::write(rights::RIGHTS)?;
    Ok(Exit::Done.into())
}

/// What does not add up: seen twice, if it may have been on its way.
async fn find(settings: &Settings) -> Result<Found, Failure> {
    let mut found = look(settings).await?;
    let unsettled = found.findings.iter().filter(|finding| finding.code.may_settle()).count();
    if unsettled > 0 && !settings.settle.is_zero() {
        let seconds = settings.settle.as_secs();
        tracing::info!("looks again in {seconds} s at {unsettled} that may be on their way");
        tokio::time::sleep(settings.settle).await;
        // Only one snapshot at a time is in memory.
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

/// One line a code, for those who read logs.
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
