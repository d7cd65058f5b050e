//! Reads request bodies. Each is admitted by its announced length before a byte is read, so
//! that all of them fit into memory and none is left half-read, waiting for memory.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::refusal::Refusal;
use crate::outcome::Reason;

/// Maximum length of a review in bytes. An API server accepts requests of at most 3 MiB.
const MOST_BYTES: usize = 4 << 20;
/// Timeout of a body. The API server itself waits 10 s by default.
const BODY: Duration = Duration::from_secs(10);
/// How long a body may stall while others wait for memory. An API server sends a whole body
/// within milliseconds.
const SILENT: Duration = Duration::from_secs(1);

/// Longest body, in bytes, that counts as small and so needs no share of [`MOST_LARGE`].
const SMALL: usize = 32 << 10;
/// Maximum number of small bodies: as many as requests, so none of them waits.
pub(crate) const MOST_SMALL: usize = 256;
/// Memory for large bodies in KiB. They are judged one at a time; meanwhile the next one
/// arrives.
const MOST_LARGE: usize = 6 << 10;

#[derive(Debug)]
pub(crate) struct Bodies {
    small: Class,
    large: Class,
}

/// Bodies that share a memory limit.
#[derive(Debug)]
struct Class {
    free: Arc<Semaphore>,
    /// The bodies that are arriving.
    arriving: Mutex<VecDeque<Arriving>>,
    next: AtomicU64,
}

/// A body that is arriving; it may be aborted in favour of another.
#[derive(Clone, Debug)]
struct Arriving {
    id: u64,
    since: Instant,
    /// When its last data arrived, in milliseconds after `since`.
    last: Arc<AtomicU64>,
    given_up: CancellationToken,
}

/// A body that has arrived. Dropping it frees its memory for others.
pub(super) struct Arrived {
    pub(super) bytes: Vec<u8>,
    _place: OwnedSemaphorePermit,
}

// === impl Bodies ===

impl Bodies {
    pub(crate) fn new() -> Self {
        Self { small: Class::new(MOST_SMALL), large: Class::new(MOST_LARGE) }
    }

    pub(super) async fn read(&self, body: Incoming) -> Result<Arrived, Refusal> {
        let announced = body.size_hint();
        // A chunked body has no announced length and may be as long as the limit.
        let most = announced.upper().and_then(|most| usize::try_from(most).ok());
        let most = most.unwrap_or(MOST_BYTES);
        if most > MOST_BYTES {
            return Err(too_large());
        }
        let (class, share) =
            if most <= SMALL { (&self.small, 1) } else { (&self.large, most.div_ceil(1 << 10)) };
        match timeout(BODY, class.read(body, most, share)).await {
            Ok(done) => done,
            Err(_) => Err(Refusal::new(Reason::Incomplete, "the body did not arrive in time")),
        }
    }
}

// === impl Class ===

impl Class {
    fn new(places: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(places)),
            arriving: Mutex::default(),
            next: AtomicU64::new(0),
        }
    }

    async fn read(&self, body: Incoming, most: usize, share: usize) -> Result<Arrived, Refusal> {
        let place = self.place(share).await?;
        let arriving = Arriving {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            since: Instant::now(),
            last: Arc::default(),
            given_up: CancellationToken::new(),
        };
        self.with(|all| all.push_back(arriving.clone()));
        let _guard = Guard(self, &arriving);
        let bytes = tokio::select! {
            bytes = collect(body, most, &arriving) => bytes?,
            () = arriving.given_up.cancelled() => {
                let problem = "the body arrived too slowly while others waited for its place";
                return Err(Refusal::new(Reason::Incomplete, problem));
            }
        };
        Ok(Arrived { bytes, _place: place })
    }

    /// Waits for memory for a body. If there is none, bodies that have stalled are aborted.
    async fn place(&self, share: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        let waiting = Arc::clone(&self.free).acquire_many_owned(share);
        tokio::select! {
            biased;
            place = waiting => {
                place.map_err(|_| Refusal::new(Reason::Incomplete, "shutting down"))
            }
            never = self.give_up_silent() => never,
        }
    }

    /// Aborts stalled bodies one by one, until the caller stops waiting.
    async fn give_up_silent<T>(&self) -> T {
        loop {
            let silent = self.with(|all| all.iter().max_by_key(|one| one.silence()).cloned());
            let silence = silent.as_ref().map_or(Duration::ZERO, Arriving::silence);
            let left = SILENT.saturating_sub(silence);
            if left.is_zero()
                && let Some(silent) = silent
            {
                self.leave(&silent);
                silent.given_up.cancel();
                // Its task frees the memory when it is polled, perhaps by another thread.
                sleep(Duration::from_millis(1)).await;
            } else {
                sleep(left.max(Duration::from_millis(10))).await;
            }
        }
    }

    fn leave(&self, arriving: &Arriving) {
        self.with(|all| all.retain(|other| other.id != arriving.id));
    }

    fn with<T>(&self, look: impl FnOnce(&mut VecDeque<Arriving>) -> T) -> T {
        look(&mut self.arriving.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

// === impl Arriving ===

impl Arriving {
    fn progress(&self) {
        let now = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// How long no data has arrived.
    fn silence(&self) -> Duration {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.since.elapsed().saturating_sub(last)
    }
}

/// Removes a body from the list in any case.
struct Guard<'a>(&'a Class, &'a Arriving);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.leave(self.1);
    }
}

async fn collect(body: Incoming, most: usize, arriving: &Arriving) -> Result<Vec<u8>, Refusal> {
    // Allocate nothing before the first data arrives.
    let mut bytes = Vec::new();
    let mut body = Limited::new(body, most);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            if error.is::<LengthLimitError>() {
                return too_large();
            }
            Refusal::new(Reason::Incomplete, format!("the body did not arrive: {error}"))
        })?;
        if let Some(data) = frame.data_ref() {
            arriving.progress();
            if bytes.is_empty() {
                // Allocate exactly: growing step by step would take twice the memory.
                bytes.reserve_exact(most);
            }
            bytes.extend_from_slice(data);
        }
    }
    Ok(bytes)
}

fn too_large() -> Refusal {
    Refusal::new(Reason::TooLarge, format!("the body is larger than {MOST_BYTES} bytes"))
}
