//! How a pod ends: it is deregistered while Envoy is drained and ended; then the pod
//! logs out, if it is known to be deregistered. One budget covers all of it, from the
//! first sign (the preStop hook or SIGTERM) to the last.

use std::convert::Infallible;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use flags::Report;
use handoff::Handoff;
use lifecycle::Unused;
use runtime::{Deadline, Signals};
use tokio_util::sync::CancellationToken;

use crate::child::Child;
use crate::drain::{self, Busy};
use crate::pod::Pod;

/// What the kubelet's SIGKILL must not cut short once the drain is over: Envoy's
/// end, a deregistration that is still tried, and the logout.
const FINISH: Duration = Duration::from_secs(5);

/// The logout's share of [`FINISH`].
const LOG_OUT: Duration = Duration::from_secs(2);

/// How long a deregistration is tried at least, whatever the hook has used of its time:
/// only what `run` has seen to be gone lets it log out. It is also how long it may take
/// yet once a second signal came.
const AT_LEAST: Duration = Duration::from_secs(2);

/// Until when each part of the end may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    drain: Deadline,
    deregister: Deadline,
    total: Deadline,
}

// === impl Budget ===

impl Budget {
    /// A budget that began when the hook wrote the tombstone, or begins now.
    pub(crate) fn new(handoff: &Handoff, drain: Duration, deregister: Option<Duration>) -> Self {
        let first_sign = handoff.buried_at();
        let gone = first_sign.and_then(|at| SystemTime::now().duration_since(at).ok());
        let shares = shares(gone.unwrap_or_default(), drain, deregister);
        let [drain, deregister, total] = shares.map(Deadline::after);
        Self { drain, deregister, total }
    }
}

/// How long the drain, the deregistration and all of it may take, `gone` after the
/// first sign.
fn shares(gone: Duration, drain: Duration, deregister: Option<Duration>) -> [Duration; 3] {
    // An Envoy that ends and a logout need their time whatever the hook took.
    let total = (drain + FINISH).saturating_sub(gone).max(FINISH);
    let longest = total.saturating_sub(LOG_OUT);
    let deregister = deregister
        .map_or(longest, |whole| whole.saturating_sub(gone).max(AT_LEAST.min(whole)).min(longest));
    [drain.saturating_sub(gone), deregister, total]
}

/// Ends the pod. `keeper` has been told to stop: a registration that is under way
/// goes on meanwhile, and is taken back.
pub(crate) async fn end(
    pod: &Pod,
    busy: Busy,
    child: Option<Child>,
    mut keeper: Pin<Box<impl Future<Output = ()>>>,
    budget: Budget,
    signals: &mut Signals,
) {
    let hurry = CancellationToken::new();
    let mut both = Box::pin(async {
        tokio::select! {
            biased;
            done = async {
                tokio::join!(end_envoy(busy, child, budget, &hurry), deregister(pod, budget, &hurry))
            } => done,
            never = second_signal(signals, &hurry) => match never {},
        }
    });
    let ((), unused) = tokio::select! {
        biased;
        done = &mut both => done,
        () = &mut keeper => both.await,
    };
    // With it goes the lock, which another process may wait for.
    drop(keeper);
    pod.log_out(unused, budget.total).await;
}

/// Tells that there is a hurry when another signal comes.
async fn second_signal(signals: &mut Signals, hurry: &CancellationToken) -> Infallible {
    signals.next().await;
    hurry.cancel();
    std::future::pending().await
}

/// Drains Envoy and ends it.
async fn end_envoy(busy: Busy, child: Option<Child>, budget: Budget, hurry: &CancellationToken) {
    let Some(mut child) = child else { return };
    if drain::wait(&busy, &mut child, budget.drain, hurry.cancelled()).await {
        let status = drain::quit(busy.envoy, child).await;
        tracing::info!(%status, "Envoy ended");
    }
}

/// Takes the registration back. Returns what allows the logout, unless the agent may
/// still have something of it.
async fn deregister(pod: &Pod, budget: Budget, hurry: &CancellationToken) -> Option<Unused> {
    let Pod { handoff, record, agent, .. } = pod;
    let done = tokio::select! {
        biased;
        done = lifecycle::deregister(handoff, agent, &record.pair, budget.deregister) => done,
        () = async { hurry.cancelled().await; tokio::time::sleep(AT_LEAST).await } => {
            tracing::warn!("the registration is left on the agent until its TTL check expires");
            return None;
        }
    };
    match done {
        Ok(unused) => Some(unused),
        Err(mut leftovers) => {
            let unused = leftovers.unused.take();
            tracing::warn!("{}", leftovers.failure());
            unused
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In seconds, with the default drain timeout.
    fn seconds(gone: u64, deregister: Option<u64>) -> [u64; 3] {
        let [gone, drain] = [gone, 20].map(Duration::from_secs);
        shares(gone, drain, deregister.map(Duration::from_secs)).map(|share| share.as_secs())
    }

    /// Deregistration is tried for as long as there is time, and the logout keeps its
    /// share of it.
    #[test]
    fn deregistration_has_all_of_the_budget_but_the_logouts_share() {
        assert_eq!(seconds(0, None), [20, 23, 25]);
        assert_eq!(seconds(8, None), [12, 15, 17]);
        assert_eq!(seconds(40, None), [0, 3, 5]);
    }

    #[test]
    fn a_deregister_timeout_counts_from_the_first_sign_but_leaves_time_for_one_try() {
        assert_eq!(seconds(0, Some(5)), [20, 5, 25]);
        assert_eq!(seconds(5, Some(5)), [15, 2, 20]);
        assert_eq!(seconds(0, Some(1)), [20, 1, 25]);
        assert_eq!(seconds(0, Some(600)), [20, 23, 25]);
    }
}
