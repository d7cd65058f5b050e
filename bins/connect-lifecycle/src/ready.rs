//! Whether the sidecar is ready: for the readiness probe, and for the postStart hook that
//! delays the application's start.
//!
//! To become ready, Envoy must serve, have its public listener and its xDS stream, and
//! have rejected no update; and Consul's checks of the sidecar must pass. For a readiness
//! probe, Consul must also send traffic: the application's checks pass, and the servers
//! list the proxy. A pod that is ready stays ready while agent or servers are away,
//! because Envoy keeps its configuration. Only a pod whose xDS stream the agent refuses,
//! as found by `run`, becomes unready.

use std::process::ExitCode;
use std::time::Duration;

use consul::Agent;
use envoy::Envoy;
use flags::Report;
use handoff::{Handoff, Milestone, Record};
use registration::pod::{Pair, application_id, listener_id};
use runtime::deadline::{Cut, race};
use runtime::{Deadline, Exit, Failure, Signals};

use crate::args::ReadyArgs;

/// How often to check Envoy, which needs some tens of milliseconds to start.
const AGAIN: Duration = Duration::from_millis(20);

/// How often to ask the agent: less often, because all pods of a node may start at once.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// How long the agent may take to answer: less than the probe's timeout.
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
    #[error("cannot read the sidecar's checks from the agent: {0}")]
    Agent(consul::Error),
    #[error("Consul's check `{check}` of the sidecar is {status}")]
    OutOfService { check: String, status: String },
    #[error("Consul's check `{check}` is critical: {why}")]
    NoApplication { check: String, why: String },
    #[error("cannot ask the servers whether the sidecar is healthy: {0}")]
    Servers(consul::Error),
    #[error("the servers do not list the sidecar as healthy yet")]
    NotListed,
}

struct Sidecar {
    handoff: Handoff,
    record: Record,
    agent: Agent,
    serving: bool,
}

pub(crate) async fn run(args: ReadyArgs, mut signals: Signals) -> Result<ExitCode, Failure> {
    let ReadyArgs { handoff, wait, timeout, serving } = args;
    let handoff = handoff.handoff();
    let record = Record::read(&handoff).map_err(Report::failure)?;
    let agent = record.agent.connect().map_err(Report::failure)?.within(PATIENCE);
    let sidecar = Sidecar { handoff, record, agent, serving };
    let Some(wait) = wait else {
        let looking = sidecar.look_until(Deadline::after(timeout.unwrap_or_default()));
        let ended = |signal| {
            Failure::new(
                Exit::Failure,
                format_args!("ended by {signal} before the sidecar was ready"),
            )
        };
        return tokio::select! {
            biased;
            looked = looking => looked.map(|()| ExitCode::SUCCESS).map_err(Failure::from),
            signal = signals.next() => Err(ended(signal)),
        };
    };
    let deadline = Deadline::after(wait);
    match race(deadline, &mut signals, sidecar.until_ready()).await {
        Ok(()) => {}
        Err(Cut::Deadline) => {
            let look = sidecar.look().await;
            let reason = look.map_or_else(|why| why.to_string(), |()| "it is ready now".to_owned());
            tracing::warn!(
                "the sidecar was not ready within {deadline}, the application starts anyway: {reason}"
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
    async fn until_ready(&self) {
        while let Err(why) = self.look().await {
            tokio::time::sleep(why.pause()).await;
        }
    }

    /// Repeats the check until the sidecar is ready or no time is left; then fails with
    /// the last reason.
    async fn look_until(&self, deadline: Deadline) -> Result<(), NotReady> {
        loop {
            let Err(why) = self.look().await else { return Ok(()) };
            if deadline.left() <= why.pause() {
                return Err(why);
            }
            tokio::time::sleep(why.pause()).await;
        }
    }

    async fn look(&self) -> Result<(), NotReady> {
        let Self { handoff, record, .. } = self;
        let envoy = Envoy::at(record.admin);
        envoy.ready().await?;
        if let Some(why) = handoff.cut_off() {
            return Err(NotReady::CutOff(why));
        }
        let milestone = if self.serving { Milestone::InService } else { Milestone::Ready };
        if handoff.has_reached(milestone) {
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
        self.passes_on_agent().await?;
        if self.serving {
            self.is_listed().await?;
        }
        self.note(milestone);
        Ok(())
    }

    /// Whether the agent has the sidecar's checks, and none is critical. The application's
    /// checks count only with `--serving`: the application starts after the postStart hook.
    /// The listener's check does not count for a service without a port, which gets no
    /// traffic.
    async fn passes_on_agent(&self) -> Result<(), NotReady> {
        let Pair { service, proxy } = &self.record.pair;
        let (application, listener) = (application_id(service.id()), listener_id(proxy.id()));
        let there = self.agent.checks_of(&[service.id(), proxy.id()]).await;
        let there = there.map_err(NotReady::Agent)?;
        for check in service.checks.iter().chain(&proxy.checks) {
            let id = &check.check_id;
            let is_of_application = *id == application || !check.alias_service.is_empty();
            if (is_of_application && !self.serving) || (*id == listener && service.port == 0) {
                continue;
            }
            let there = there.get(id);
            let status = there.map_or("missing", |there| there.status.as_str());
            let check = id.clone();
            match status {
                "critical" if check == application => {
                    // Until `run` has checked once, there is no output.
                    let why = there.map(|there| there.output.clone());
                    let why = why.filter(|why| !why.is_empty());
                    let why = why.unwrap_or_else(|| "it was not checked yet".to_owned());
                    return Err(NotReady::NoApplication { check, why });
                }
                "critical" | "missing" => {
                    return Err(NotReady::OutOfService { check, status: status.to_owned() });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the servers list the proxy as healthy: the agent sends them a registration
    /// a moment later, or when they are back. A container that restarts was listed before,
    /// so it is ready without servers, too.
    async fn is_listed(&self) -> Result<(), NotReady> {
        let Pair { service, proxy } = &self.record.pair;
        if service.port == 0 || self.handoff.has_reached(Milestone::Listed) {
            return Ok(());
        }
        match self.agent.is_listed(proxy).await.map_err(NotReady::Servers)? {
            Some(false) => return Err(NotReady::NotListed),
            Some(true) => {}
            None => tracing::debug!("the ACL token may not read what the servers list"),
        }
        self.note(Milestone::Listed);
        Ok(())
    }

    fn note(&self, milestone: Milestone) {
        if let Err(error) = self.handoff.note(milestone) {
            tracing::debug!("{}", Failure::from(error));
        }
    }
}

// === impl NotReady ===

impl NotReady {
    /// How long to wait before the next check. The agent is asked only once Envoy is ready.
    fn pause(&self) -> Duration {
        match self {
            Self::Agent(_)
            | Self::OutOfService { .. }
            | Self::NoApplication { .. }
            | Self::Servers(_)
            | Self::NotListed => ASK_AGAIN,
            _ => AGAIN,
        }
    }
}

pub(crate) async fn until_ready(envoy: Envoy) {
    while envoy.ready().await.is_err() {
        tokio::time::sleep(AGAIN).await;
    }
}

/// The names of Envoy's counters of rejected updates that are not 0. Without their values,
/// so that the message stays the same and the kubelet merges its events.
fn rejected(stats: &str) -> Vec<&str> {
    let counters = stats.lines().filter_map(|line| line.trim().split_once(": "));
    counters.filter(|(_, count)| *count != "0").map(|(name, _)| name).collect()
}

/// Whether one of Envoy's listeners, each `name::address:port`, is on that port.
fn has_listener(listeners: &str, port: u16) -> bool {
    let end = format!(":{port}");
    listeners.lines().any(|line| line.trim_end().ends_with(&end))
}

impl From<NotReady> for Failure {
    fn from(why: NotReady) -> Self {
        let hint = match &why {
            NotReady::Envoy(error) => advice(error),
            NotReady::CutOff(_) => "check the agent's log, its gRPC port and the ACL token",
            NotReady::Rejected(_) => {
                "see Envoy's log for the reason; check the proxy's settings, and that Consul's release supports Envoy's"
            }
            NotReady::NoListener(_) | NotReady::NoStream => {
                "check that gRPC is enabled, and that the agent knows the proxy"
            }
            NotReady::Agent(_) => "check that the node's agent runs",
            NotReady::OutOfService { .. } => "see the log of the sidecar container",
            NotReady::NoApplication { .. } => {
                "see the application's log; if it listens on another port than its service's, name it in the annotation consul.hashicorp.com/connect-service-port"
            }
            NotReady::Servers(_) | NotReady::NotListed => {
                "see the log of the node's agent, which sends the pod's checks to the servers"
            }
        };
        Self::new(Exit::Failure, why).hint(hint)
    }
}

/// The hint for an Envoy that is not ready.
pub(crate) fn advice(error: &envoy::Error) -> &'static str {
    match error {
        envoy::Error::Status { .. } => {
            "it waits for its configuration from the agent's gRPC port: check that gRPC is enabled, and that the agent knows the proxy"
        }
        _ => "it has not started yet, or it exited: check its log",
    }
}
