//! Whether the sidecar is ready: a probe, and the hold on the application's start.
//!
//! At first that means that Envoy serves, has its public listener, rejected no
//! update and has its stream to the agent, and that Consul's checks of the
//! sidecar pass. Later, an agent or servers that are away make no ready pod
//! unready: Envoy goes on with what it has. Only a pod that `run` found cut off
//! is unready again.

use std::process::ExitCode;
use std::time::Duration;

use consul::Agent;
use handoff::{Handoff, Record};
use registration::pod::{Pair, application_id, lease_id, listener_id};
use runtime::deadline::{Cut, race};
use runtime::{Deadline, Exit, Failure, Signals};

use crate::args::ReadyArgs;
use crate::envoy::{self, Envoy};

/// Envoy needs some tens of milliseconds; nothing tells when it is done.
const AGAIN: Duration = Duration::from_millis(20);

/// How long the agent may take to tell of a check: a probe is short.
const PATIENCE: Duration = Duration::from_millis(800);

/// Why a sidecar is not ready.
#[derive(Debug, thiserror::Error)]
enum NotReady {
    #[error("Envoy is not ready: {0}")]
    Envoy(#[from] envoy::Error),
    #[error("{0}")]
    CutOff(String),
    #[error("Envoy rejected its configuration: {0}")]
    Rejected(String),
    #[error("Envoy has no listener on port {0}")]
    NoListener(u16),
    #[error("Envoy has no connection to the agent's gRPC port")]
    NoStream,
    #[error("the agent does not tell the sidecar's checks: {0}")]
    Agent(consul::Error),
    #[error("Consul's check `{check}` of the sidecar is {status}")]
    OutOfService { check: String, status: String },
}

/// A sidecar that is looked at.
struct Sidecar {
    handoff: Handoff,
    record: Record,
    agent: Agent,
    serving: bool,
}

pub(crate) async fn run(args: ReadyArgs, mut signals: Signals) -> Result<ExitCode, Failure> {
    let ReadyArgs { handoff, wait, serving } = args;
    let handoff = handoff.handoff();
    let record = Record::read(&handoff)?;
    let agent = record.agent.connect()?.within(PATIENCE);
    let sidecar = Sidecar { handoff, record, agent, serving };
    let Some(wait) = wait else {
        return sidecar.look().await.map(|()| ExitCode::SUCCESS).map_err(Failure::from);
    };
    let deadline = Deadline::after(wait);
    let until_ready = async {
        while sidecar.look().await.is_err() {
            tokio::time::sleep(AGAIN).await;
        }
    };
    match race(deadline, &mut signals, until_ready).await {
        Ok(()) => {}
        Err(Cut::Deadline) => {
            let look = sidecar.look().await;
            let reason = look.map_or_else(|why| why.to_string(), |()| "it is now".to_owned());
            tracing::warn!(
                "the sidecar was not ready within {deadline}, the application starts without it: {reason}"
            );
        }
        Err(Cut::Signal(signal)) => {
            return Err(Failure::new(
                Exit::Failure,
                format_args!("ended by {signal} before the sidecar was ready"),
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

// === impl Sidecar ===

impl Sidecar {
    async fn look(&self) -> Result<(), NotReady> {
        let Self { handoff, record, .. } = self;
        let envoy = Envoy::at(record.admin);
        envoy.ready().await?;
        if let Some(why) = handoff.cut_off() {
            return Err(NotReady::CutOff(why));
        }
        if handoff.was_ready() {
            return Ok(());
        }
        let port = record.pair.proxy.port;
        let rejections = envoy.rejections().await?;
        let rejections = rejected(&rejections);
        if !rejections.is_empty() {
            return Err(NotReady::Rejected(rejections.join(", ")));
        }
        if !has_listener(&envoy.listeners().await?, port) {
            return Err(NotReady::NoListener(port));
        }
        if !envoy.is_connected().await? {
            return Err(NotReady::NoStream);
        }
        self.is_in_service().await?;
        if let Err(error) = handoff.note_ready(true) {
            tracing::debug!("{}", Failure::from(error));
        }
        Ok(())
    }

    /// Whether Consul would send traffic here. The application's own check counts
    /// only where it is asked for: this holds the application's start, too.
    async fn is_in_service(&self) -> Result<(), NotReady> {
        let Pair { service, proxy } = &self.record.pair;
        let mut checks = vec![lease_id(service.id()), lease_id(proxy.id())];
        if service.port != 0 {
            checks.push(listener_id(proxy.id()));
            checks.extend(self.serving.then(|| application_id(service.id())));
        }
        for check in checks {
            match self.agent.check(&check).await.map_err(NotReady::Agent)? {
                Some(there) if there.status != "critical" => {}
                Some(there) => return Err(NotReady::OutOfService { check, status: there.status }),
                None => {
                    return Err(NotReady::OutOfService { check, status: "missing".to_owned() });
                }
            }
        }
        Ok(())
    }
}

/// Waits until Envoy is ready.
pub(crate) async fn until_ready(envoy: Envoy) {
    while envoy.ready().await.is_err() {
        tokio::time::sleep(AGAIN).await;
    }
}

/// What Envoy rejected, by its counters.
fn rejected(stats: &str) -> Vec<&str> {
    let counters = stats.lines().filter(|line| !line.trim_end().ends_with(": 0"));
    counters.map(str::trim).filter(|line| !line.is_empty()).collect()
}

/// Whether one of Envoy's listeners, each `name::address:port`, has that port.
fn has_listener(listeners: &str, port: u16) -> bool {
    let end = format!(":{port}");
    listeners.lines().any(|line| line.trim_end().ends_with(&end))
}

impl From<NotReady> for Failure {
    fn from(why: NotReady) -> Self {
        let hint = match &why {
            NotReady::Envoy(error) => advice(error),
            NotReady::CutOff(_) => "compare the agent's log, its gRPC port and the ACL token",
            NotReady::Rejected(_) => {
                "the reason is in Envoy's log: compare the proxy's settings, and Consul's release with Envoy's"
            }
            NotReady::NoListener(_) | NotReady::NoStream => {
                "check that gRPC is on, and that the agent knows the proxy"
            }
            NotReady::Agent(_) => "check that the node's agent runs",
            NotReady::OutOfService { .. } => "see the log of the sidecar container",
        };
        Self::new(Exit::Failure, why).hint(hint)
    }
}

/// What to do about an Envoy that is not ready.
pub(crate) fn advice(error: &envoy::Error) -> &'static str {
    match error {
        envoy::Error::Status { .. } => {
            "it waits for its configuration from the agent's gRPC port: check that gRPC is on, and that the agent knows the proxy"
        }
        _ => "it has not started yet, or ended: check its log",
    }
}
