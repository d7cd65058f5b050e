//! The result of a review, in words for the author of the pod.

mod reason;

use std::fmt;

use crate::json::{WrongShape, quoted};

pub(crate) use reason::{Outcome, Reason};

/// Why a pod is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Denial {
    /// The reason code, the same in log, metric and admission response.
    pub(crate) reason: Reason,
    /// A sentence: what is wrong, and what is accepted.
    pub(crate) message: String,
}

/// Problems that do not deny a pod: the first few sentences, and the number of further
/// ones. The API server passes on at most 4,096 characters of warnings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Warnings {
    sentences: Vec<String>,
    more: usize,
}

/// Makes a message, which may quote user input, safe for logs, HTTP headers and terminals:
/// one line of limited length.
pub(crate) fn sentence(text: &str) -> String {
    const MOST: usize = 800;
    one_line(text, MOST)
}

/// Replaces control characters and cuts the text after `most` characters.
pub(crate) fn one_line(text: &str, most: usize) -> String {
    // Usually nothing has to be replaced or cut.
    if text.len() <= most && text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return text.to_owned();
    }
    text.chars()
        .take(most)
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

// === impl Denial ===

impl Denial {
    pub(crate) fn new(reason: Reason, message: impl fmt::Display) -> Self {
        Self { reason, message: sentence(&message.to_string()) }
    }

    /// Denies the value of an annotation.
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

// === impl Warnings ===

impl Warnings {
    /// Maximum number of warnings; more would not help.
    const MOST: usize = 8;
    /// Maximum length in characters, so that all fit into the API server's limit.
    const LONGEST: usize = 400;

    /// Adds a warning; the text is built only if there is room for it.
    pub(crate) fn push(&mut self, sentence: impl FnOnce() -> String) {
        if self.sentences.len() < Self::MOST {
            self.sentences.push(one_line(&sentence(), Self::LONGEST));
        } else {
            self.more += 1;
        }
    }

    /// Adds the warnings of another list.
    pub(crate) fn extend(&mut self, other: Self) {
        for sentence in other.sentences {
            self.push(|| sentence);
        }
        self.more += other.more;
    }

    /// The warnings; the last one says how many were dropped.
    pub(crate) fn into_vec(mut self) -> Vec<String> {
        if self.more > 0 {
            self.sentences
                .push(format!("{} more warnings: see `connect-inject explain`", self.more));
        }
        self.sentences
    }
}
