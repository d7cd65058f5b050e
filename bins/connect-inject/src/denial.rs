//! Why a pod is denied, in words for the person who made it.

use std::fmt;

use crate::reason::Reason;
use crate::shape::{WrongShape, quoted};

/// Why a pod is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Denial {
    /// The code.
    pub(crate) reason: Reason,
    /// What is wrong and what is accepted: a sentence.
    pub(crate) message: String,
}

/// A text that quotes what users wrote, as one line of bounded length: it goes
/// into logs, into HTTP headers and to terminals.
pub(crate) fn sentence(text: &str) -> String {
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
