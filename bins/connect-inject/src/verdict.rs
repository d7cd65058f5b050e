//! What is done with a pod and why: the one answer that the webhook and the
//! offline commands are both given.

use std::fmt;

use serde_json::Value;

use crate::edit::{Injected, inject};
use crate::plan::plan;
use crate::pod::{Pod, WrongShape, quoted};
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

/// Why a pod is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Denial {
    /// The code.
    pub(crate) reason: Reason,
    /// What is wrong and what is accepted: a sentence.
    pub(crate) message: String,
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

/// A text that quotes what users wrote, as one line of bounded length: it goes
/// into logs, into HTTP headers and to terminals.
fn sentence(text: &str) -> String {
    const MOST: usize = 800;
    text.chars()
        .take(MOST)
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

// === impl Denial ===

impl Denial {
    pub(crate) fn new(reason: Reason, message: impl fmt::Display) -> Self {
        Self { reason, message: sentence(&message.to_string()) }
    }

    /// What is wrong with an annotation's value.
    pub(crate) fn annotation(
        reason: Reason,
        key: &str,
        value: &str,
        problem: impl fmt::Display,
    ) -> Self {
        Self::new(
            reason,
            format_args!("annotation `{key}` with value {}: {problem}", quoted(value)),
        )
    }
}

impl From<WrongShape> for Denial {
    fn from(error: WrongShape) -> Self {
        Self::new(Reason::InvalidPod, error)
    }
}
