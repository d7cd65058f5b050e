//! `POST /mutate`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use super::State;
use crate::admission::{self, Reviewed};
use crate::reason::{Outcome, Reason};

/// The most bytes of a review. An API server takes requests of 3 MiB at most.
const MOST_BYTES: usize = 8 << 20;
/// How long a body may take to arrive. The API server itself waits for 10 s, if
/// it is not told otherwise.
const BODY: Duration = Duration::from_secs(10);

/// Why a request is answered with an HTTP error. There is no review to answer
/// then, and no uid.
#[derive(Debug)]
struct Refusal {
    reason: Reason,
    message: String,
}

/// Answers a request, logs it and counts it.
pub(crate) async fn answer(state: Arc<State>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let began = Instant::now();
    let reviewed = review(&state, request).await;
    let reason = match &reviewed {
        Ok((reviewed, _)) => reviewed.reason,
        Err(refusal) => refusal.reason,
    };
    let duration = began.elapsed();
    state.metrics.count(reason, duration);
    let (reason, outcome) = (reason.code(), reason.outcome());
    match reviewed {
        Ok((Reviewed { uid, namespace, pod, message, .. }, body)) => {
            let outcome = outcome.code();
            tracing::info!(uid, namespace, pod, outcome, reason, ?duration, "{message}");
            let mut response = Response::new(Full::new(body));
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(refusal) => {
            debug_assert_eq!(outcome, Outcome::Refused);
            let status = refusal.status();
            tracing::info!(
                outcome = outcome.code(),
                reason,
                status = status.as_u16(),
                "{}",
                refusal.message
            );
            let mut response = Response::new(Full::new((refusal.message + "\n").into()));
            *response.status_mut() = status;
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            if status == StatusCode::METHOD_NOT_ALLOWED {
                response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            }
            response
        }
    }
}

async fn review(state: &State, request: Request<Incoming>) -> Result<(Reviewed, Bytes), Refusal> {
    if request.uri().path() != "/mutate" {
        return Err(Refusal::new(Reason::NotFound, "nothing here: reviews are posted to /mutate"));
    }
    if request.method() != Method::POST {
        return Err(Refusal::new(Reason::MethodNotAllowed, "reviews are posted"));
    }
    check_type(&request)?;
    let body = body(request.into_body()).await?;
    let review = admission::read(&body).map_err(|error| {
        Refusal::new(
            Reason::Malformed,
            format!("the body is no AdmissionReview of admission.k8s.io/v1 or v1beta1: {error}"),
        )
    })?;
    let reviewed = review.review(&state.policy);
    let answer = serde_json::to_vec(&reviewed.answer).expect("an answer has string keys only");
    Ok((reviewed, answer.into()))
}

/// Without a type it is read as JSON, and with a charset as well.
fn check_type(request: &Request<Incoming>) -> Result<(), Refusal> {
    let header =
        |name| request.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let media_type = header(CONTENT_TYPE).unwrap_or("application/json".into());
    let is_json = media_type
        .split(';')
        .next()
        .is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"));
    let encoding = header(CONTENT_ENCODING).unwrap_or("identity".into());
    if !is_json || !encoding.eq_ignore_ascii_case("identity") {
        return Err(Refusal::new(
            Reason::UnsupportedMediaType,
            "the body is not of the type application/json, or it is compressed",
        ));
    }
    Ok(())
}

async fn body(body: Incoming) -> Result<Bytes, Refusal> {
    let too_large =
        || Refusal::new(Reason::TooLarge, format!("the body is larger than {MOST_BYTES} bytes"));
    // By its own account already.
    if body.size_hint().lower() > MOST_BYTES as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY, Limited::new(body, MOST_BYTES).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => {
            Err(Refusal::new(Reason::Incomplete, format!("the body did not arrive: {error}")))
        }
        Err(_) => Err(Refusal::new(Reason::Incomplete, "the body did not arrive in time")),
    }
}

// === impl Refusal ===

impl Refusal {
    fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    fn status(&self) -> StatusCode {
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
