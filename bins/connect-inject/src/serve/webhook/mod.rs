//! Answers admission reviews at `POST /mutate`. Two more paths serve namespaces whose label
//! says whether pods are transparent, because a review does not carry the namespace's
//! labels.
//!
//! - [`bodies`]: reads request bodies within limits of memory
//! - [`review`]: AdmissionReviews: the API server's request and our response
//! - [`received`]: reads the pod of a review
//! - [`refusal`]: HTTP error responses

mod bodies;
mod received;
mod refusal;
mod review;

use std::sync::Arc;
use std::time::Instant;

use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use super::State;
use crate::outcome::{Outcome, Reason};
use crate::policy::{Cluster, Policy};
use bodies::Arrived;
use received::TOO_MANY_VALUES;
use refusal::Refusal;
use review::{Review, Reviewed};

pub(super) use bodies::{Bodies, MOST_SMALL};

/// Longest body in bytes that is reviewed on the event loop. A longer one would delay other
/// connections.
const SHORT: usize = 128 << 10;

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
    match reviewed {
        Ok((Reviewed { uid, namespace, pod, message, warnings, .. }, body)) => {
            // Fields, not a span, which would be formatted apart.
            for warning in &warnings {
                tracing::info!(uid, namespace, pod, "warned: {warning}");
            }
            let outcome = outcome.code();
            tracing::info!(uid, namespace, pod, outcome, reason, ?duration, "{message}");
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
        return Err(Refusal::new(Reason::MethodNotAllowed, "send reviews with POST"));
    }
    check_type(&request)?;
    let arrived = state.bodies.read(request.into_body()).await?;
    // Boxed, so that a request whose body has not arrived takes little memory.
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
        // Frees its memory, so that the next body can arrive.
        drop(arrived);
        Ok(judged(review, &policy, &cluster))
    };
    in_turn(is_long, state, job).await
}

/// Runs a short job at once. A long one, which takes more time and memory, runs on a thread
/// of its own, one at a time. Each waits until there is room for its response.
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
        // Held until the job is done, even if nobody waits for the result any more.
        let _turn = turn;
        job()
    };
    tokio::task::spawn_blocking(job).await.unwrap_or_else(|error| {
        Err(Refusal::new(Reason::Incomplete, format!("the review was aborted: {error}")))
    })
}

fn read(body: &[u8]) -> Result<Review, Refusal> {
    review::read(body).map_err(|error| {
        if error.to_string().contains(TOO_MANY_VALUES) {
            return Refusal::new(
                Reason::TooLarge,
                "the pod has more JSON values than any real pod",
            );
        }
        Refusal::new(
            Reason::Malformed,
            format!("expected an AdmissionReview of admission.k8s.io/v1 or v1beta1: {error}"),
        )
    })
}

/// Reviews the pod; returns the result and the response body.
fn judged(review: Review, policy: &Policy, cluster: &Cluster) -> (Reviewed, Bytes) {
    let reviewed = review.review(policy, cluster);
    let answer = reviewed.answer.to_json();
    (reviewed, answer.into())
}

/// Accepts JSON, with or without a charset. A missing Content-Type counts as JSON.
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
            "expected an uncompressed body of type application/json",
        ));
    }
    Ok(())
}

/// The policies, by the path of the request.
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
