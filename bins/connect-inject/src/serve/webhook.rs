//! `POST /mutate`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::Instrument;
use tracing::field::Empty;

use super::{State, gateways};
use crate::admission::{self, Reviewed};
use crate::policy::Policy;
use crate::reason::{Outcome, Reason};

/// The most bytes of a review. An API server takes requests of 3 MiB at most.
const MOST_BYTES: usize = 8 << 20;
/// The most bytes that a review may take up once it is read.
const MOST_WEIGHT: usize = 64 << 20;
/// The most bytes of bodies that are being read, all together.
pub(super) const MOST_BYTES_OF_ALL: usize = 64 << 20;
/// The longest body that is reviewed on the thread that all connections share. A
/// longer one would hold up the others.
const SHORT: usize = 128 << 10;
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
    let span = tracing::info_span!("review", uid = Empty, namespace = Empty, pod = Empty);
    answer_logged(state, request).instrument(span).await
}

async fn answer_logged(state: Arc<State>, request: Request<Incoming>) -> Response<Full<Bytes>> {
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
        Ok((Reviewed { message, warnings, .. }, body)) => {
            for warning in &warnings {
                tracing::info!("warned: {warning}");
            }
            tracing::info!(outcome = outcome.code(), reason, ?duration, "{message}");
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
    let Arrived { bytes, share } = body(request.into_body(), &state.bodies).await?;
    let body = Bytes::from(bytes);
    let policy = state.policy();
    let (mut reviewed, mut answer) = judge(&body, &policy, &state.long).await?;
    if reviewed.needs_gateways {
        let mesh_gateways = gateways::ask(&state.agent).await;
        let policy = Arc::new(Policy { mesh_gateways, ..Policy::clone(&policy) });
        (reviewed, answer) = judge(&body, &policy, &state.long).await?;
    }
    drop(share);
    tracing::Span::current()
        .record("uid", &reviewed.uid)
        .record("namespace", &reviewed.namespace)
        .record("pod", &reviewed.pod);
    Ok((reviewed, answer))
}

/// Judges a review: a short one at once, a long one apart and in turn, because
/// it takes long and much more memory than its body.
async fn judge(
    body: &Bytes,
    policy: &Arc<Policy>,
    long: &Arc<Semaphore>,
) -> Result<(Reviewed, Bytes), Refusal> {
    if body.len() <= SHORT {
        return judged(body, policy);
    }
    let turn = Arc::clone(long).acquire_owned().await;
    let (body, policy) = (Bytes::clone(body), Arc::clone(policy));
    let job = move || {
        // To the end of the job, even if nobody waits for it any more.
        let _turn = turn;
        judged(&body, &policy)
    };
    tokio::task::spawn_blocking(job).await.unwrap_or_else(|error| {
        Err(Refusal::new(Reason::Incomplete, format!("the review was given up: {error}")))
    })
}

/// What becomes of a review, and the answer's body.
fn judged(body: &[u8], policy: &Policy) -> Result<(Reviewed, Bytes), Refusal> {
    if weight(body) > MOST_WEIGHT {
        return Err(Refusal::new(Reason::TooLarge, "the body has more parts than any pod"));
    }
    let review = admission::read(body).map_err(|error| {
        Refusal::new(
            Reason::Malformed,
            format!("the body is no AdmissionReview of admission.k8s.io/v1 or v1beta1: {error}"),
        )
    })?;
    let reviewed = review.review(policy);
    let answer = serde_json::to_vec(&reviewed.answer).expect("an answer has string keys only");
    Ok((reviewed, answer.into()))
}

/// About how many bytes the values of a body take up once they are read: much
/// more than the text if they are many and small. What stands within texts is
/// counted as well, of which a pod has little.
fn weight(body: &[u8]) -> usize {
    const OBJECT: usize = 640;
    const ELEMENT: usize = 64;
    body.iter().fold(0, |weight, byte| match byte {
        b'{' => weight + OBJECT,
        b',' | b'[' => weight + ELEMENT,
        _ => weight,
    })
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

/// A body that has arrived, and its share of the memory for bodies.
struct Arrived<'a> {
    bytes: Vec<u8>,
    share: SemaphorePermit<'a>,
}

/// Reads a body, within the memory that there is for all of them: what does not
/// fit waits for others to be done.
async fn body(body: Incoming, free: &Semaphore) -> Result<Arrived<'_>, Refusal> {
    let too_large =
        || Refusal::new(Reason::TooLarge, format!("the body is larger than {MOST_BYTES} bytes"));
    // By its own account already.
    if body.size_hint().lower() > MOST_BYTES as u64 {
        return Err(too_large());
    }
    let mut body = Limited::new(body, MOST_BYTES);
    let closed = |_| Refusal::new(Reason::Incomplete, "no more bodies are read");
    let share = free.acquire_many(0).await.map_err(closed)?;
    // Its own account again; what has not arrived yet takes no memory.
    let expected = usize::try_from(body.size_hint().lower()).unwrap_or_default();
    let mut arrived = Arrived { bytes: Vec::with_capacity(expected), share };
    let reading = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    return too_large();
                }
                Refusal::new(Reason::Incomplete, format!("the body did not arrive: {error}"))
            })?;
            let Some(data) = frame.data_ref() else { continue };
            let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
            arrived.share.merge(free.acquire_many(bytes).await.map_err(closed)?);
            arrived.bytes.extend_from_slice(data);
        }
        Ok(())
    };
    match tokio::time::timeout(BODY, reading).await {
        Ok(done) => done.map(|()| arrived),
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
