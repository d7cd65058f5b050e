//! The registration, kept on the agent for as long as the pod lives.
//!
//! One long poll does three things: it ends at once when the proxy's entry
//! changes or goes, so that it is registered again; it ends after
//! [`RENEWAL`], so that the leases are renewed; and it fails when the agent
//! goes away. Requests follow each other over one kept-alive connection.

use std::time::Duration;

use consul::Agent;
use consul::agent::{Renewed, Watch};
use handoff::protocol::{RegisterError, Registered};
use handoff::{Handoff, Record};
use registration::check::Status;
use registration::pod::{self, Pair};
use runtime::retry::Backoff;
use runtime::{Deadline, Failure};
use tokio_util::sync::CancellationToken;

use crate::application::Application;

/// A third of the lease, so that one lost renewal does not lose the lease.
const RENEWAL: Duration = Duration::from_secs(10);

/// While the agent is away: it is to be found within a second of its return.
const AGENT_AWAY: Backoff =
    Backoff { first: Duration::from_millis(50), longest: Duration::from_millis(500) };

/// While the agent refuses: an operator has to act.
const REFUSED: Duration = Duration::from_secs(10);

/// How long a registration may take, the wait for the lock included.
const REGISTER: Duration = Duration::from_secs(30);

/// A registration that is kept true.
#[derive(Debug)]
pub(crate) struct Keeper<'a> {
    agent: &'a Agent,
    handoff: &'a Handoff,
    record: &'a Record,
    application: Option<Application>,
}

/// What a turn left behind.
enum Turn {
    /// All is well. With the content hash of the proxy's entry, by which the
    /// next turn waits for a change; without one, it asks at once.
    Kept(Option<String>),
    /// The registration was taken back for good.
    Buried,
}

// === impl Keeper ===

impl<'a> Keeper<'a> {
    pub(crate) fn new(agent: &'a Agent, handoff: &'a Handoff, record: &'a Record) -> Self {
        let port = record.pair.service.port;
        let application = (port != 0).then(|| Application::on(port));
        Self { agent, handoff, record, application }
    }

    /// Keeps the registration until `stop`. A registration that is under way is
    /// not cut short by it: whoever deregisters next can be sure that none
    /// comes after.
    pub(crate) async fn keep(mut self, stop: CancellationToken) {
        let mut known = None;
        let mut pauses = AGENT_AWAY.pauses();
        let mut trouble: Option<String> = None;
        while !stop.is_cancelled() {
            let error = match self.turn(known.take(), &stop).await {
                Ok(Turn::Kept(hash)) => {
                    known = hash;
                    if trouble.take().is_some() {
                        tracing::info!("the registration is true again");
                        pauses = AGENT_AWAY.pauses();
                    }
                    continue;
                }
                Ok(Turn::Buried) => {
                    tracing::info!("the registration was taken back: it is kept no longer");
                    return stop.cancelled().await;
                }
                Err(error) => error,
            };
            let pause = if error.is_transient() {
                pauses.next().unwrap_or(AGENT_AWAY.longest)
            } else {
                REFUSED
            };
            // Each cause of a row of failures once; the next tries say the same.
            let cause = Failure::from(error).to_string();
            if trouble.as_ref() != Some(&cause) {
                tracing::warn!("{cause}");
            }
            trouble = Some(cause);
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Waits for something to do, and does it: registers what is gone or was
    /// changed, renews the leases, reports the application.
    async fn turn(
        &mut self,
        known: Option<String>,
        stop: &CancellationToken,
    ) -> Result<Turn, RegisterError> {
        let seen = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Turn::Kept(None)),
            seen = watch(self.agent, self.record, known.as_deref()) => seen?,
            // What is known stays known; if nothing is, that comes first.
            () = changed(self.application.as_mut()) => match known {
                Some(hash) => Some(hash),
                None => return Ok(Turn::Kept(None)),
            },
        };
        if seen.is_none() && self.register().await? == Registered::Buried {
            return Ok(Turn::Buried);
        }
        // What was taken back and is still there, because the agent was away, is
        // not kept alive: its lease runs out.
        if self.handoff.is_buried() {
            return Ok(Turn::Buried);
        }
        let renewed = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Turn::Kept(None)),
            renewed = self.report() => renewed?,
        };
        match renewed {
            Renewed::Done => Ok(Turn::Kept(seen)),
            // The service is gone, though its proxy is there.
            Renewed::Unknown => match self.register().await? {
                Registered::Done => Ok(Turn::Kept(None)),
                Registered::Buried => Ok(Turn::Buried),
            },
        }
    }

    async fn register(&self) -> Result<Registered, RegisterError> {
        let registered =
            self.handoff.register(self.agent, &self.record.pair, Deadline::after(REGISTER)).await?;
        if registered == Registered::Done {
            tracing::info!(
                proxy = self.record.pair.proxy.id(),
                "registered again: the agent had lost or changed it"
            );
        }
        Ok(registered)
    }

    /// Renews both leases and says how the application is.
    async fn report(&self) -> Result<Renewed, consul::Error> {
        let Pair { service, proxy } = &self.record.pair;
        let mut reports = vec![
            (pod::lease_id(service.id()), Status::Passing, ALIVE.to_owned()),
            (pod::lease_id(proxy.id()), Status::Passing, ALIVE.to_owned()),
        ];
        if let Some(application) = &self.application {
            let (status, output) = application.check();
            reports.push((pod::application_id(service.id()), status, output));
        }
        for (check, status, output) in reports {
            if self.agent.update_check(&check, status, &output).await? == Renewed::Unknown {
                return Ok(Renewed::Unknown);
            }
        }
        Ok(Renewed::Done)
    }
}

/// The content hash of the proxy's entry, if it is there and as it was known.
/// If it was known, the answer comes when that changes, or after [`RENEWAL`].
async fn watch(
    agent: &Agent,
    record: &Record,
    known: Option<&str>,
) -> Result<Option<String>, consul::Error> {
    let watch = known.map(|hash| Watch { hash: hash.to_owned(), wait: RENEWAL });
    let entry = agent.service(record.pair.proxy.id(), watch.as_ref()).await?;
    Ok(entry.map(|entry| entry.content_hash).filter(|hash| known.is_none_or(|known| known == hash)))
}

/// The same words at each renewal: a change would be written to the catalog.
const ALIVE: &str = "connect-lifecycle runs";

/// Tells the agent at once that there is no proxy any more, without waiting for
/// the lease to run out.
pub(crate) async fn report_death(
    agent: &Agent,
    record: &Record,
    output: &str,
) -> Result<(), consul::Error> {
    let Pair { service, proxy } = &record.pair;
    let [proxy, service] = [proxy, service].map(|each| pod::lease_id(each.id()));
    // Each is tried, even if the other fails.
    let first = agent.update_check(&proxy, Status::Critical, output).await;
    let second = agent.update_check(&service, Status::Critical, output).await;
    first.and(second).map(drop)
}

async fn changed(application: Option<&mut Application>) {
    match application {
        Some(application) => application.changed().await,
        None => std::future::pending().await,
    }
}
