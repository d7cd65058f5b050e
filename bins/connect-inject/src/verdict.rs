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
    /// The pod with its sidecar, if it gets one.
    pub(crate) injected: Option<Injected>,
}

/// Judges a pod, or the template of one, of a namespace.
pub(crate) fn judge(pod: &Value, namespace: &str, policy: &Policy) -> Verdict {
    let view = Pod::new(pod);
    let mut warnings = Vec::new();
    let decided = decision::decide(view, namespace, policy).and_then(|reason| {
        // Not of a pod that is none of our business.
        if concerns_us(reason) {
            warnings.extend(view.annotations().map(annotation::unknown).unwrap_or_default());
        }
        if reason.outcome() != Outcome::Injected {
            return Ok((reason, None));
        }
        let plan = plan(view)?;
        warnings.extend(plan.warnings.iter().cloned());
        Ok((reason, Some(inject(pod, &plan, policy)?)))
    });
    let warnings = warnings.iter().map(|warning| sentence(warning)).collect();
    match decided {
        Ok((reason, injected)) => {
            Verdict { reason, message: decision::explain(reason, namespace), warnings, injected }
        }
        Err(Denial { reason, message }) => Verdict { reason, message, warnings, injected: None },
    }
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
