//! Errors as the [CNI specification](https://www.cni.dev/docs/spec/#error) requires: a
//! JSON document on stdout, and exit code 1.

use std::fmt;

use serde::Serialize;

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Code,
    message: String,
    /// What to do next.
    hint: &'static str,
}

/// Error codes: those of the specification up to 99, ours from 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// The configuration's `cniVersion` is unsupported.
    Version = 1,
    /// An environment variable is missing or invalid.
    Environment = 4,
    /// A file can't be opened, or stdin can't be read.
    Io = 5,
    /// The input can't be decoded.
    Decode = 6,
    /// The configuration is invalid.
    Config = 7,
    /// The pod's annotation is invalid.
    Annotation = 100,
    /// The kernel refused the rules.
    Rules = 101,
    /// The pod's rules differ from the annotation.
    Different = 102,
}

// === impl Failure ===

impl Failure {
    /// `message` says what failed and why, `hint` what to do next.
    pub(crate) fn new(code: Code, message: impl fmt::Display, hint: &'static str) -> Self {
        Self { code, message: format!("connect-cni: {message}"), hint }
    }

    /// The error document. Runtimes print `msg` and `details` after each other.
    pub(crate) fn document(&self, version: &str) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Document<'a> {
            cni_version: &'a str,
            code: u32,
            msg: &'a str,
            details: String,
        }
        let Self { code, message, hint } = self;
        let document = Document {
            cni_version: version,
            code: *code as u32,
            msg: message,
            details: format!("hint: {hint}"),
        };
        serde_json::to_string(&document).expect("its keys are strings")
    }
}
