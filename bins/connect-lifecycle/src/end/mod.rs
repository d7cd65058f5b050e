//! Shuts the pod down: deregisters while Envoy drains, stops Envoy, and then logs out if
//! the agent and the servers have confirmed the deregistration. A pod whose ACL token no
//! longer exists logs in again to deregister. One budget covers all of this, starting with
//! the preStop hook or SIGTERM, whichever is first.
//!
//! - [`drain`]: drains connections, then stops Envoy

pub(crate) mod drain;

use std::convert::Infallible;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use flags::Report;
use handoff::Handoff;
use lifecycle::{Unused, deregister_with_login};
use runtime::{Deadline, Signals};
use tokio_util::sync::CancellationToken;

use crate::child::Child;
use crate::pod::Pod;
use drain::Busy;

/// Time between the end of the drain and the kubelet's SIGKILL, for stopping Envoy, a
/// deregistration that is still being retried, and the logout.
const FINISH: Duration = Duration::from_secs(5);

/// The logout's share of [`FINISH`]. The servers may take half of it to confirm a
/// deregistration that the agent has confirmed in the last moment.
const LOG_OUT: Duration = Duration::from_secs(2);

/// Minimum time for the deregistration, even if the hook has used all of it: `run` may
/// log out only after it has seen itself that the entries are gone. Also the time that
/// is left to it after a second signal.
const AT_LEAST: Duration = Duration::from_secs(2);

/// Deadline of each part of the shutdown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    drain: Deadline,
    deregister: Deadline,
    total: Deadline,
}

// === impl Budget ===

impl Budget {
    /// Starts when the hook wrote the tombstone or, without one, now.
    pub(crate) fn new(handoff: &Handoff, drain: Duration, deregister: Option<Duration>) -> Self {
        let first_sign = handoff.buried_at();
        // The hook may have begun longer ago than the whole budget: a native sidecar gets
        // SIGTERM only when the application has ended, which may take the whole grace period.
        let gone = first_sign.and_then(|at| SystemTime::now().duration_since(at).ok());
        let shares = shares(gone.unwrap_or_default(), drain, deregister);
        let [drain, deregister, total] = shares.map(Deadline::after);
        Self { drain, deregister, total }
    }
}

/// Time left for the drain, the deregistration and the whole shutdown, when `gone` has
/// already passed.
fn shares(gone: Duration, drain: Duration, deregister: Option<Duration>) -> [Duration; 3] {
    // Stopping Envoy and logging out need their time, however long the hook took.
    let total = (drain + FINISH).saturating_sub(gone).max(FINISH);
    let longest = total.saturating_sub(LOG_OUT);
    let deregister = deregister
        .map_or(longest, |whole| whole.saturating_sub(gone).max(AT_LEAST.min(whole)).min(longest));
    [drain.saturating_sub(gone), deregister, total]
}

/// Shuts the pod down. `keeper` has been told to stop; if it is registering right now, it
/// finishes first, and its entries are deregistered.
pub(crate) async fn end(
    pod: &Pod,
    busy: Busy,
    child: Option<Child>,
    mut keeper: Pin<Box<impl Future<Output = ()>>>,
    budget: Budget,
    signals: &mut Signals,
) {
    let hurry = CancellationToken::new();
    // If Envoy ended by itself, the kubelet's SIGTERM is yet to come.
    let is_told = child.is_some();
    let mut both = Box::pin(async {
        tokio::select! {
            biased;
            done = async {
                tokio::join!(end_envoy(busy, child, budget, &hurry), deregister(pod, budget, &hurry))
            } => done,
            never = second_signal(is_told, signals, &hurry) => match never {},
        }
    });
    let ((), unused) = tokio::select! {
        biased;
        done = &mut both => done,
        () = &mut keeper => both.await,
    };
    // Releases the lock, which another process may be waiting for.
    drop(keeper);
    pod.log_out(unused, budget.total).await;
}

/// Cancels `hurry` when a signal arrives after the one that began the shutdown, if there
/// was one.
async fn second_signal(
    is_told: bool,
    signals: &mut Signals,
    hurry: &CancellationToken,
) -> Infallible {
    if !is_told {
        signals.next().await;
    }
    signals.next().await;
    hurry.cancel();
    std::future::pending().await
}

/// Drains and stops Envoy.
async fn end_envoy(busy: Busy, child: Option<Child>, budget: Budget, hurry: &CancellationToken) {
    let Some(mut child) = child else { return };
    if drain::wait(&busy, &mut child, budget.drain, hurry.cancelled()).await {
        let status = drain::quit(busy.envoy, child).await;
        tracing::info!(%status, "Envoy exited");
    }
}

/// Deregisters. Returns the proof that allows the logout, unless the agent may still have
/// one of the entries, or the servers have not heard of the deregistration.
async fn deregister(pod: &Pod, budget: Budget, hurry: &CancellationToken) -> Option<Unused> {
    let Pod { handoff, record, agent, session } = pod;
    let (pair, deadline) = (&record.pair, budget.deregister);
    let deregistration = async {
        match session {
            Some(session) => deregister_with_login(handoff, session, agent, pair, deadline).await,
            None => lifecycle::deregister(handoff, agent, pair, deadline).await,
        }
    };
    let mut hurried = Box::pin(async {
        hurry.cancelled().await;
        tokio::time::sleep(AT_LEAST).await;
    });
    let done = tokio::select! {
        biased;
        done = deregistration => done,
        () = &mut hurried => {
            tracing::warn!("the registration is left on the agent until its TTL check expires");
            return None;
        }
    };
    let unused = match done {
        Ok(unused) => unused,
        Err(mut leftovers) => {
            let unused = leftovers.unused.take();
            tracing::warn!("{}", leftovers.failure());
            unused?
        }
    };
    if session.is_none() {
        return Some(unused);
    }
    let heard = unused.heard(agent, pair, budget.total.earlier_by(LOG_OUT / 2));
    tokio::select! {
        biased;
        unused = heard => unused,
        () = hurried => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shares in seconds, with the default drain timeout.
    fn seconds(gone: u64, deregister: Option<u64>) -> [u64; 3] {
        let [gone, drain] = [gone, 20].map(Duration::from_secs);
        shares(gone, drain, deregister.map(Duration::from_secs)).map(|share| share.as_secs())
    }

    #[test]
    fn deregistration_may_take_the_whole_budget_except_the_logouts_share() {
        assert_eq!(seconds(0, None), [20, 23, 25]);
        assert_eq!(seconds(8, None), [12, 15, 17]);
        assert_eq!(seconds(40, None), [0, 3, 5]);
    }

    #[test]
    fn a_deregister_timeout_counts_from_the_hook_on_but_leaves_time_for_one_attempt() {
        assert_eq!(seconds(0, Some(5)), [20, 5, 25]);
        assert_eq!(seconds(5, Some(5)), [15, 2, 20]);
        assert_eq!(seconds(0, Some(1)), [20, 1, 25]);
        assert_eq!(seconds(0, Some(600)), [20, 23, 25]);
    }
}
