//! `connect-inject serve`: starts the webhook and its admin port, and shuts them down.

mod admin;
pub(crate) mod certificates;
mod clock;
mod connection;
mod knowledge;
mod metrics;
mod open;
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
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::kubernetes::Api;
use crate::policy::Policy;
use certificates::Certificates;
use knowledge::{Knowledge, Sources};
use metrics::Metrics;
use open::Limits;
use unread::Unread;
use webhook::{Bodies, Policies};

/// Maximum time for the reviews in flight after the webhook stops accepting connections.
/// The API server's own timeout for a webhook is 30 s at most.
const DRAIN: Duration = Duration::from_secs(15);

/// Maximum number of threads that answer reviews. One answers about ten thousand per
/// second; each further one costs memory.
const MOST_THREADS: usize = 2;

/// Limits of the webhook's port. A cluster has few API servers, and each opens few
/// connections.
const WEBHOOK: Limits = Limits { all: 128, peer: 96, requests: webhook::MOST_SMALL };
/// Limits of the admin port, which the kubelet and Prometheus use.
const ADMIN: Limits = Limits { all: 32, peer: 16, requests: 64 };

pub(crate) struct Settings {
    /// Address of the webhook.
    pub(crate) listen: SocketAddr,
    /// Address of the admin port.
    pub(crate) admin_listen: SocketAddr,
    /// Certificate that the webhook serves.
    pub(crate) tls: Certificates,
    /// How long reviews are still answered after SIGTERM.
    pub(crate) shutdown_delay: Duration,
    /// Agent from which the datacenter, proxy-defaults and the roots of Connect's CA are
    /// read.
    pub(crate) agent: consul::Agent,
    pub(crate) policy: Policy,
    /// File with the results of the last audit.
    pub(crate) audit_results: Option<PathBuf>,
    /// API server to ask for its version; `None` if a flag gives the version.
    pub(crate) version_of: Option<Api>,
}

/// State that the webhook and its admin port share.
#[derive(Debug)]
struct State {
    policies: Policies,
    knowledge: Knowledge,
    tls: Arc<Certificates>,
    metrics: Metrics,
    ready: AtomicBool,
    bodies: Bodies,
    /// Held while a long review is judged: one at a time.
    long: Arc<Semaphore>,
    /// Responses of the webhook that clients have not read yet.
    unread: Unread,
}

/// The tasks of the process.
struct Tasks {
    webhook: JoinHandle<()>,
    admin: JoinHandle<()>,
    /// Keeps the certificate up to date.
    certificate: JoinHandle<()>,
    /// Keeps the knowledge of the cluster up to date.
    knowledge: JoinHandle<()>,
}

/// Builds the event loop with two threads if there are two cores, so that reviews run in
/// parallel, also those of one connection.
pub(crate) fn event_loop() -> Builder {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    if cores == 1 {
        return Builder::new_current_thread();
    }
    let mut event_loop = Builder::new_multi_thread();
    event_loop.worker_threads(cores.min(MOST_THREADS));
    event_loop
}

/// Serves until SIGTERM or SIGINT, then shuts down gracefully.
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
    let knowledge = Knowledge::new(policy.auto_encrypt, version_of.is_some());
    let state = Arc::new(State {
        policies: Policies::new(policy),
        knowledge,
        tls: Arc::new(tls),
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
    let sources = Sources { kubernetes: version_of, agent };
    let mut tasks = Tasks::start(&state, (webhook, admin), sources, &stop);
    let signal = tokio::select! {
        signal = signals.next() => signal,
        failure = tasks.ended() => return Err(failure),
    };
    tracing::info!(delay = ?shutdown_delay, "{signal}: not ready any more, still serving");
    state.ready.store(false, Ordering::Relaxed);
    tokio::select! {
        () = tokio::time::sleep(shutdown_delay) => {}
        signal = signals.next() => return Err(aborted(signal)),
    }
    stop.cancel();
    tokio::select! {
        _ = tasks.webhook => tracing::info!("ended with no reviews in flight"),
        () = tokio::time::sleep(DRAIN) => tracing::warn!(after = ?DRAIN, "ended with connections still open"),
        signal = signals.next() => return Err(aborted(signal)),
    }
    Ok(ExitCode::SUCCESS)
}

// === impl Tasks ===

impl Tasks {
    /// Starts the tasks; the webhook stops accepting connections at `stop`.
    fn start(
        state: &Arc<State>,
        (webhook, admin): (TcpListener, TcpListener),
        sources: Sources,
        stop: &CancellationToken,
    ) -> Self {
        let webhook = tokio::spawn(connection::serve(
            webhook,
            Some(Arc::clone(&state.tls)),
            (WEBHOOK, state.unread.clone()),
            {
                let state = Arc::clone(state);
                move |request| webhook::answer(Arc::clone(&state), request)
            },
            stop.clone(),
        ));
        // Runs until the process ends: during the shutdown, readiness must fail and liveness
        // must succeed.
        let admin = tokio::spawn(connection::serve(
            admin,
            None,
            (ADMIN, Unread::default()),
            {
                let state = Arc::clone(state);
                move |request| std::future::ready(admin::answer(&state, &request))
            },
            CancellationToken::new(),
        ));
        let certificate = tokio::spawn({
            let state = Arc::clone(state);
            async move { state.tls.keep().await }
        });
        let knowledge = tokio::spawn({
            let state = Arc::clone(state);
            async move {
                state.knowledge.keep(&sources).await;
                std::future::pending::<()>().await;
            }
        });
        Self { webhook, admin, certificate, knowledge }
    }

    /// Waits for the end of a task. None should end before the process does.
    async fn ended(&mut self) -> Failure {
        let task = tokio::select! {
            _ = &mut self.webhook => "webhook",
            _ = &mut self.admin => "admin port",
            _ = &mut self.certificate => "certificate",
            _ = &mut self.knowledge => "cluster",
        };
        Failure::new(Exit::Failure, format_args!("the {task}'s task ended"))
    }
}

async fn bind(flag: &str, address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::usage(format_args!("{flag}: cannot listen on {address}: {error}"))
            .hint("choose an address of this host and a port that is free")
    })
}

/// The address in use: with port 0 the system chooses the port.
fn address(listener: &TcpListener) -> String {
    listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string())
}

fn aborted(signal: runtime::signal::Signal) -> Failure {
    Failure::new(Exit::Failure, format_args!("{signal}: ended at once by a second signal"))
}
