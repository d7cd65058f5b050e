//! `POST /mutate`, and the same for namespaces that say by their label whether pods
//! are transparent: reviews do not carry labels of namespaces.

use std::sync::Arc;
use std::time::Instant;

use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use super::State;
use super::bodies::Arrived;
use super::received::TOO_MANY_PARTS;
use super::review::{self, Review, Reviewed};
use crate::outcome::{Outcome, Reason, sentence};
use crate::policy::{Cluster, Policy};

/// The longest body that is reviewed on the thread that all connections share. A
/// longer one would hold up the others.
const SHORT: usize = 128 << 10;

/// Why a request is answered with an HTTP error. There is no review to answer
/// then, and no uid.
#[derive(Debug)]
pub(super) struct Refusal {
    reason: Reason,
    message: String,
}

/// Answers a request, logs it and counts it.
pub(crate) async fn answer(state: Arc<State>, request: Request<Incoming>) -> Response<Bytes> {
    let began = Instant::now();
    let reviewed = review(&state, request).await;
    let reason = match &reviewed {
        Ok((reviewed, _)) => reviewed.reason,
        Err(refusal) => refusal.reason,
    };
    let duration = began.elapsed();
    state.metrics.count(reason, duration);
    let (reason, outcome) = (reason.code(), reason.outcome());
    // Made when all of it is known: what is recorded later is formatted once more.
    let span = if let Ok((Reviewed { uid, namespace, pod, .. }, _)) = &reviewed {
        tracing::info_span!("review", uid, namespace, pod)
    } else {
        tracing::info_span!("review")
    };
    let _entered = span.enter();
    match reviewed {
        Ok((Reviewed { message, warnings, .. }, body)) => {
            for warning in &warnings {
                tracing::info!("warned: {warning}");
            }
            tracing::info!(outcome = outcome.code(), reason, ?duration, "{message}");
            let mut response = Response::new(body);
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
            let mut response = Response::new((refusal.message + "\n").into());
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
    let Some(policy) = state.policies.of(request.uri().path()) else {
        return Err(Refusal::new(Reason::NotFound, "not found: reviews are posted to /mutate"));
    };
    if request.method() != Method::POST {
        return Err(Refusal::new(Reason::MethodNotAllowed, "reviews are posted"));
    }
    check_type(&request)?;
    let arrived = state.bodies.read(request.into_body()).await?;
    // Apart, so that a request whose body has not arrived takes little room.
    Box::pin(judge(state, policy, arrived)).await
}

async fn judge(
    state: &State,
    policy: Arc<Policy>,
    arrived: Arrived,
) -> Result<(Reviewed, Bytes), Refusal> {
    let short = (arrived.bytes.len() <= SHORT).then(|| read(&arrived.bytes)).transpose()?;
    let is_long = short.as_ref().is_none_or(Review::is_long);
    let cluster = state.knowledge.cluster();
    let job = move || {
        let review = short.map_or_else(|| read(&arrived.bytes), Ok)?;
        // The next may arrive meanwhile.
        drop(arrived);
        Ok(judged(review, &policy, &cluster))
    };
    in_turn(is_long, state, job).await
}

/// Judges a short review at once, and a long one apart and in turn, because it
/// takes long and much more memory than its body; each when there is room for its
/// answer.
async fn in_turn<T: Send + 'static>(
    is_long: bool,
    state: &State,
    job: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    if !is_long {
        state.unread.room().await;
        return job();
    }
    let turn = Arc::clone(&state.long).acquire_owned().await;
    state.unread.room().await;
    let job = move || {
        // To the end of the job, even if nobody waits for it any more.
        let _turn = turn;
        job()
    };
    tokio::task::spawn_blocking(job).await.unwrap_or_else(|error| {
        Err(Refusal::new(Reason::Incomplete, format!("the review was given up: {error}")))
    })
}

fn read(body: &[u8]) -> Result<Review, Refusal> {
    review::read(body).map_err(|error| {
        if error.to_string().contains(TOO_MANY_PARTS) {
            return Refusal::new(Reason::TooLarge, "the pod has more parts than any pod");
        }
        Refusal::new(
            Reason::Malformed,
            format!("expected an AdmissionReview of admission.k8s.io/v1 or v1beta1: {error}"),
        )
    })
}

/// What becomes of a review, and the answer's body.
fn judged(review: Review, policy: &Policy, cluster: &Cluster) -> (Reviewed, Bytes) {
    let reviewed = review.review(policy, cluster);
    let answer = reviewed.answer.to_json();
    (reviewed, answer.into())
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

/// The policy by the path that the API server posts to.
#[derive(Debug)]
pub(super) struct Policies {
    whole: Arc<Policy>,
    transparent: Arc<Policy>,
    direct: Arc<Policy>,
}

// === impl Policies ===

impl Policies {
    pub(super) fn new(policy: Policy) -> Self {
        let [transparent, direct] = [true, false].map(|it| Arc::new(policy.of_transparency(it)));
        Self { whole: Arc::new(policy), transparent, direct }
    }

    fn of(&self, path: &str) -> Option<Arc<Policy>> {
        match path {
            "/mutate" => Some(Arc::clone(&self.whole)),
            "/mutate/transparent" => Some(Arc::clone(&self.transparent)),
            "/mutate/direct" => Some(Arc::clone(&self.direct)),
            _ => None,
        }
    }
}

// === impl Refusal ===

impl Refusal {
    pub(super) fn new(reason: Reason, message: impl AsRef<str>) -> Self {
        // It may quote what was sent, which is not to write lines of its own.
        Self { reason, message: sentence(message.as_ref()) }
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
