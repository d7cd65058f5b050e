//! `connect-inject serve`: the webhook, its admin port and their end.

mod admin;
mod bodies;
pub(crate) mod certificates;
mod clock;
mod connection;
mod knowledge;
mod metrics;
mod open;
mod received;
mod review;
pub(crate) mod self_managed;
pub(crate) mod tls;
mod unread;
mod webhook;

use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use runtime::{Exit, Failure, Signals};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::kubernetes::Api;
use crate::policy::Policy;
use bodies::Bodies;
use certificates::Certificates;
use knowledge::{Knowledge, Sources};
use metrics::Metrics;
use open::Limits;
use unread::Unread;

/// How long reviews in flight may take once no new ones are accepted. It fits
/// into the API server's own timeout for a webhook, which is 30 s at most.
const DRAIN: Duration = Duration::from_secs(15);

/// The most threads that answer reviews. Each answers some ten thousand a second, and
/// keeps memory for itself.
const MOST_THREADS: usize = 2;

/// Connections of the webhook. API servers are few, and keep few each.
const WEBHOOK: Limits = Limits { all: 128, peer: 96, requests: bodies::MOST_SMALL };
/// Connections of the admin port, which are the kubelet's and Prometheus's.
const ADMIN: Limits = Limits { all: 32, peer: 16, requests: 64 };

/// What to serve, and by what rules.
pub(crate) struct Settings {
    /// Where reviews are answered.
    pub(crate) listen: SocketAddr,
    /// Where the kubelet and Prometheus are answered.
    pub(crate) admin_listen: SocketAddr,
    /// The certificate that the webhook shows.
    pub(crate) tls: Certificates,
    /// How long reviews are still answered after the first signal.
    pub(crate) shutdown_delay: Duration,
    /// The agent that is asked for Consul's central configuration.
    pub(crate) agent: consul::Agent,
    /// What the operator decided.
    pub(crate) policy: Policy,
    /// Where the results of the last audit are.
    pub(crate) audit_results: Option<PathBuf>,
    /// The Kubernetes API, if it is asked for the cluster's version.
    pub(crate) version_of: Option<Api>,
}

/// What the webhook and its admin port share.
#[derive(Debug)]
struct State {
    policies: webhook::Policies,
    knowledge: Knowledge,
    tls: Arc<Certificates>,
    metrics: Metrics,
    ready: AtomicBool,
    bodies: Bodies,
    /// The turn of long reviews.
    long: Arc<Semaphore>,
    /// The webhook's answers.
    unread: Unread,
}

/// The event loop, of two threads where there are two cores: a review does not wait for
/// each other one, nor those of one connection for each other.
pub(crate) fn event_loop() -> Builder {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    if cores == 1 {
        return Builder::new_current_thread();
    }
    let mut event_loop = Builder::new_multi_thread();
    event_loop.worker_threads(cores.min(MOST_THREADS));
    event_loop
}

/// Serves until it is asked to end.
pub(crate) async fn run(settings: Settings, mut signals: Signals) -> Result<ExitCode, Failure> {
    let Settings {
        listen,
        admin_listen,
        tls,
        shutdown_delay,
        agent,
        policy,
        audit_results,
        version_of,
    } = settings;
    let tls = Arc::new(tls);
    let knowledge = Knowledge::new(policy.auto_encrypt, version_of.is_some());
    let state = Arc::new(State {
        policies: webhook::Policies::new(policy),
        knowledge,
        tls: Arc::clone(&tls),
        metrics: Metrics::new(audit_results),
        ready: AtomicBool::new(true),
        bodies: Bodies::new(),
        long: Arc::new(Semaphore::new(1)),
        unread: Unread::default(),
    });
    let webhook = bind("--listen", listen).await?;
    let admin = bind("--admin-listen", admin_listen).await?;
    tracing::info!(address = %address(&webhook), "answering reviews over HTTPS");
    tracing::info!(address = %address(&admin), "answering /livez, /readyz and /metrics over HTTP");

    let stop = CancellationToken::new();
    let mut serving = tokio::spawn(connection::serve(
        webhook,
        Some(tls),
        (WEBHOOK, state.unread.clone()),
        {
            let state = Arc::clone(&state);
            move |request| webhook::answer(Arc::clone(&state), request)
        },
        stop.clone(),
    ));
    // Until the very end: readiness has to be seen false, and liveness true.
    let watched = tokio::spawn(connection::serve(
        admin,
        None,
        (ADMIN, Unread::default()),
        {
            let state = Arc::clone(&state);
            move |request| std::future::ready(admin::answer(&state, &request))
        },
        CancellationToken::new(),
    ));

    let mut kept = tokio::spawn({
        let state = Arc::clone(&state);
        async move { state.tls.keep().await }
    });

    let mut asked = tokio::spawn({
        let state = Arc::clone(&state);
        let sources = Sources { kubernetes: version_of, agent };
        async move {
            state.knowledge.keep(&sources).await;
            std::future::pending::<()>().await;
        }
    });

    let signal = tokio::select! {
        signal = signals.next() => signal,
        _ = &mut serving => return Err(Failure::new(Exit::Failure, "the webhook's task ended")),
        _ = watched => return Err(Failure::new(Exit::Failure, "the admin port's task ended")),
        _ = &mut asked => return Err(Failure::new(Exit::Failure, "the cluster's task ended")),
        _ = &mut kept => return Err(Failure::new(Exit::Failure, "the certificate's task ended")),
    };
    tracing::info!(delay = ?shutdown_delay, "{signal}: not ready any more, still serving");
    state.ready.store(false, Ordering::Relaxed);
    tokio::select! {
        () = tokio::time::sleep(shutdown_delay) => {}
        signal = signals.next() => return Err(aborted(signal)),
    }
    stop.cancel();
    tokio::select! {
        _ = serving => tracing::info!("ended with nothing in flight"),
        () = tokio::time::sleep(DRAIN) => tracing::warn!(after = ?DRAIN, "ended with connections still open"),
        signal = signals.next() => return Err(aborted(signal)),
    }
    Ok(ExitCode::SUCCESS)
}

async fn bind(flag: &str, address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::usage(format_args!("{flag}: cannot listen on {address}: {error}"))
            .hint("choose an address of this host and a port that is free")
    })
}

/// Where a listener really listens: the port may have been left to the system.
fn address(listener: &TcpListener) -> String {
    listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string())
}

fn aborted(signal: runtime::signal::Signal) -> Failure {
    Failure::new(Exit::Failure, format_args!("{signal}: a second signal, ended at once"))
}
