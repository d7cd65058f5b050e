//! What a pod's review comes to, in words for the person who made the pod.

mod reason;

use std::fmt;

use crate::json::{WrongShape, quoted};

pub(crate) use reason::{Outcome, Reason};

/// Why a pod is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Denial {
    /// The reason code, the same in log, metric and admission response.
    pub(crate) reason: Reason,
    /// What is wrong and what is accepted: a sentence.
    pub(crate) message: String,
}

/// What is not wrong enough to deny a pod: the first few sentences, and how many
/// more there were. The API server passes on 4,096 characters in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Warnings {
    sentences: Vec<String>,
    more: usize,
}

/// A text that quotes what users wrote, as one line of bounded length: it goes
/// into logs, into HTTP headers and to terminals.
pub(crate) fn sentence(text: &str) -> String {
    const MOST: usize = 800;
    one_line(text, MOST)
}

/// A text as one line of at most so many characters.
pub(crate) fn one_line(text: &str, most: usize) -> String {
    // Nearly all are so.
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

// === impl Warnings ===

impl Warnings {
    /// More help nobody.
    const MOST: usize = 8;
    /// So that all fit into what the API server passes on.
    const LONGEST: usize = 400;

    /// Adds a sentence, which is only written if it is kept.
    pub(crate) fn push(&mut self, sentence: impl FnOnce() -> String) {
        if self.sentences.len() < Self::MOST {
            self.sentences.push(one_line(&sentence(), Self::LONGEST));
        } else {
            self.more += 1;
        }
    }

    /// Adds all of another's.
    pub(crate) fn extend(&mut self, other: Self) {
        for sentence in other.sentences {
            self.push(|| sentence);
        }
        self.more += other.more;
    }

    /// The sentences, the last of which says how many there are no room for.
    pub(crate) fn into_vec(mut self) -> Vec<String> {
        if self.more > 0 {
            self.sentences
                .push(format!("{} more warnings: see `connect-inject explain`", self.more));
        }
        self.sentences
    }
}
