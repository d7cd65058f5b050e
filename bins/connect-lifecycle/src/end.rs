//! How a pod ends: it is deregistered and drained side by side, then Envoy is
//! ended, then the pod logs out. One budget covers all of it, from the first
//! sign (the preStop hook or SIGTERM) to the last.

use std::pin::Pin;
use std::time::{Duration, SystemTime};

use flags::Report;
use handoff::Handoff;
use runtime::{Deadline, Signals};

use crate::child::Child;
use crate::drain::{self, Busy};
use crate::pod::Pod;

/// What the kubelet's SIGKILL must not cut short once the drain is over: Envoy's
/// end and the logout.
const FINISH: Duration = Duration::from_secs(5);

/// How long a deregistration may take yet when everything else is over in a hurry.
const HURRIED: Duration = Duration::from_secs(2);

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
        let gone = gone.unwrap_or_default();
        let left = |whole: Duration| Deadline::after(whole.saturating_sub(gone));
        // An Envoy that ends and a logout need their time whatever the hook took.
        let total = (drain + FINISH).saturating_sub(gone).max(FINISH);
        Self {
            drain: left(drain),
            deregister: left(deregister.unwrap_or(drain)),
            total: Deadline::after(total),
        }
    }
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
    let Pod { handoff, record, agent, .. } = pod;
    let envoy = busy.envoy;
    let (hurry, hurried) = tokio::sync::oneshot::channel();
    let drained = async {
        let mut child = child?;
        let signal = async {
            signals.next().await;
            // The deregistration may be over already.
            let _ = hurry.send(());
        };
        let is_running = drain::wait(&busy, &mut child, budget.drain, signal).await;
        is_running.then_some(child)
    };
    let deregistered = async {
        let deregistered = lifecycle::deregister(handoff, agent, &record.pair, budget.deregister);
        let in_a_hurry = async {
            match hurried.await {
                Ok(()) => tokio::time::sleep(HURRIED).await,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            done = deregistered => {
                if let Err(leftovers) = done {
                    tracing::warn!("{}", leftovers.failure());
                }
            }
            () = in_a_hurry => tracing::warn!("the registration is left to its TTL"),
        }
    };
    let mut both = Box::pin(async { tokio::join!(drained, deregistered) });
    let (child, ()) = tokio::select! {
        biased;
        done = &mut both => done,
        () = &mut keeper => both.await,
    };
    // With it goes the lock, which another process may wait for.
    drop(keeper);
    if let Some(child) = child {
        let status = drain::quit(envoy, child).await;
        tracing::info!(%status, "Envoy ended");
    }
    pod.log_out(budget.total).await;
}
