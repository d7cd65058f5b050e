//! HTTP error responses.

use hyper::StatusCode;

use crate::outcome::{Reason, sentence};

/// An HTTP error response: there is no valid review, hence no uid to answer.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) reason: Reason,
    pub(super) message: String,
}

// === impl Refusal ===

impl Refusal {
    pub(super) fn new(reason: Reason, message: impl AsRef<str>) -> Self {
        // The message may quote the request, which must not be able to add lines to the
        // log.
        Self { reason, message: sentence(message.as_ref()) }
    }

    pub(super) fn status(&self) -> StatusCode {
        match self.reason {
            Reason::NotFound => StatusCode::NOT_FOUND,
            Reason::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Reason::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Reason::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Reason::Incomplete => StatusCode::REQUEST_TIMEOUT,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}
