//! What is done with a pod and why: the one answer that the webhook and the
//! offline commands are both given.

use serde_json::Value;

use crate::denial::{Denial, sentence};
use crate::edit::{Injected, inject};
use crate::plan::plan;
use crate::pod::Pod;
use crate::policy::Policy;
use crate::reason::{Outcome, Reason};
use crate::{annotation, decision};

/// What is done with a pod and why.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// Why.
    pub(crate) reason: Reason,
    /// The same for people: a sentence.
    pub(crate) message: String,
    /// What is not wrong enough to deny the pod.
    pub(crate) warnings: Vec<String>,
    /// Whether it depends on Consul's central configuration, and nobody asked.
    pub(crate) needs_gateways: bool,
    /// The pod with its sidecar, if it gets one.
    pub(crate) injected: Option<Injected>,
}

/// Judges a pod, or the template of one, of a namespace.
pub(crate) fn judge(pod: Value, namespace: &str, policy: &Policy) -> Verdict {
    let mut warnings = Vec::new();
    let mut needs_gateways = false;
    let decided = decision::decide(Pod::new(&pod), namespace, policy).and_then(|reason| {
        let view = Pod::new(&pod);
        // Not of a pod that is none of our business.
        if concerns_us(reason) {
            warnings.extend(view.annotations().map(annotation::without_effect).unwrap_or_default());
        }
        let explained = decision::explain(reason, namespace);
        if reason.outcome() != Outcome::Injected {
            return Ok((reason, explained, None));
        }
        let plan = plan(view, policy)?;
        warnings.extend(plan.warnings.iter().cloned());
        needs_gateways = plan.needs_gateways;
        Ok((reason, format!("{explained}: {plan}"), Some(inject(pod, &plan, policy)?)))
    });
    let warnings = warnings.iter().map(|warning| sentence(warning)).collect();
    let (reason, message, injected) = match decided {
        Ok((reason, message, injected)) => (reason, sentence(&message), injected),
        Err(Denial { reason, message }) => (reason, message, None),
    };
    Verdict { reason, message, warnings, needs_gateways, injected }
}

fn concerns_us(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::SystemNamespace
            | Reason::NamespaceDenied
            | Reason::NamespaceNotAllowed
            | Reason::AlreadyInjected
    )
}
