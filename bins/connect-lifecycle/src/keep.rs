//! The registration, kept on the agent for as long as the pod lives.
//!
//! What follows what is decided by the machine [`Keep`]; here its steps are
//! taken. One long poll does three things: it ends at once when the proxy's entry
//! changes or goes, so that it is registered again; it ends after
//! [`RENEWAL`], so that the leases are renewed; and it fails when the agent
//! goes away. Requests follow each other over one kept-alive connection.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use consul::Agent;
use consul::agent::{Renewed, Watch};
use handoff::Record;
use lifecycle::keep::Step;
use lifecycle::{Half, Keep, Outcome, RegisterError, Registered};
use registration::check::Status;
use registration::pod::{Pair, application_id, lease_id, listener_id};
use runtime::retry::Backoff;
use runtime::{Deadline, Failure};
use tokio_util::sync::CancellationToken;

use crate::application::{self, Application};
use crate::pod::Pod;

/// A third of the lease, so that one lost renewal does not lose the lease.
const RENEWAL: Duration = Duration::from_secs(10);

/// While the agent is away: it is to be found within a second of its return.
const AGENT_AWAY: Backoff =
    Backoff { first: Duration::from_millis(50), longest: Duration::from_millis(500) };

/// While the agent refuses: an operator has to act.
const REFUSED: Duration = Duration::from_secs(10);

/// How long a registration may take, the wait for the lock included.
const REGISTER: Duration = Duration::from_secs(30);

/// How long a login may take, until servers know the token.
const LOG_IN: Duration = Duration::from_secs(30);

/// A registration that is kept true.
#[derive(Debug)]
pub(crate) struct Keeper<'a> {
    pod: &'a Pod,
    application: Option<Application>,
}

/// What goes wrong, and how long to wait before the next try.
struct Trouble {
    cause: Option<String>,
    is_refusal: bool,
    pauses: Box<dyn Iterator<Item = Duration>>,
}

/// What is said of one check.
struct Report {
    check: String,
    status: Status,
    output: String,
}

/// What went wrong in one step.
struct Wrong {
    failure: Failure,
    outcome: Outcome<String>,
}

// === impl Keeper ===

impl<'a> Keeper<'a> {
    pub(crate) fn new(pod: &'a Pod) -> Self {
        let port = pod.record.pair.service.port;
        let application = (port != 0).then(|| Application::on(port));
        Self { pod, application }
    }

    /// Keeps the registration until `stop`. A registration that is under way is
    /// not cut short by it: whoever deregisters next can be sure that none
    /// comes after.
    pub(crate) async fn keep(mut self, stop: CancellationToken) {
        // A login may have been followed by nothing.
        let mut keep = match self.pod.session {
            Some(_) => Keep::begin_anew(),
            None => Keep::begin(),
        };
        let mut trouble = Trouble::none();
        while !stop.is_cancelled() {
            let now = keep.step();
            let known = keep.known(Half::Proxy).map(String::as_str);
            let done = match now {
                Step::Register => self.register().await,
                Step::Pause => Ok(trouble.pause(&stop).await),
                Step::End => {
                    tracing::info!("the registration was taken back: it is kept no longer");
                    return stop.cancelled().await;
                }
                _ => tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    done = self.ask(now, known) => done,
                },
            };
            keep = keep.next(done.unwrap_or_else(|wrong| trouble.note(wrong)));
            match (now, keep.step()) {
                (_, Step::Watch) => trouble.is_over(),
                (Step::Watch, Step::See(_)) => trouble.is_forgotten(),
                _ => {}
            }
        }
    }

    /// The steps that may be cut short.
    async fn ask(&mut self, step: Step, known: Option<&str>) -> Result<Outcome<String>, Wrong> {
        let Pod { handoff, record, agent, .. } = self.pod;
        let outcome = match step {
            Step::Watch => {
                let application = self.application.as_mut();
                tokio::select! {
                    biased;
                    seen = see(agent, record, Half::Proxy, known) => seen?,
                    () = changed(application) => Outcome::Done,
                }
            }
            Step::See(half) => see(agent, record, half, None).await?,
            Step::Look if handoff.is_buried() => Outcome::Buried,
            Step::Renew(half) => self.renew(half).await?,
            Step::LogIn => self.log_in().await?,
            Step::Look | Step::Register | Step::Pause | Step::End => Outcome::Done,
        };
        Ok(outcome)
    }

    async fn register(&self) -> Result<Outcome<String>, Wrong> {
        let Pod { handoff, record, agent, .. } = self.pod;
        let pair = record.pair.known_to_be(&self.statuses().await);
        match lifecycle::register(handoff, agent, &pair, Deadline::after(REGISTER)).await? {
            Registered::Buried => Ok(Outcome::Buried),
            Registered::Done => {
                tracing::info!(
                    proxy = record.pair.proxy.id(),
                    "registered again: the agent had lost or changed it, or the ACL token is another"
                );
                Ok(Outcome::Done)
            }
        }
    }

    /// Has another token, if it is by login that there was one.
    async fn log_in(&self) -> Result<Outcome<String>, Wrong> {
        let Some(session) = &self.pod.session else { return Ok(Outcome::Refused) };
        if !session.renew(Deadline::after(LOG_IN)).await? {
            // The agent has to forget that it did not find it.
            return Ok(Outcome::Failed);
        }
        tracing::warn!(
            "logged in anew, because the ACL token was gone; Envoy keeps what it has, and hears of changes again when its container restarts"
        );
        Ok(Outcome::Done)
    }

    /// Renews the lease of one half; with the service's, says how the
    /// application is.
    async fn renew(&self, half: Half) -> Result<Outcome<String>, consul::Error> {
        for Report { check, status, output } in self.reports(half) {
            if self.pod.agent.update_check(&check, status, &output).await? == Renewed::Unknown {
                return Ok(Outcome::Missing);
            }
        }
        Ok(Outcome::Done)
    }

    /// What is to be said of one half.
    fn reports(&self, half: Half) -> Vec<Report> {
        let id = half.of(&self.pod.record.pair).id();
        let lease =
            Report { check: lease_id(id), status: Status::Passing, output: ALIVE.to_owned() };
        let mut reports = vec![lease];
        if let (Half::Service, Some(application)) = (half, &self.application) {
            let (status, output) = application.check();
            reports.push(Report { check: application_id(id), status, output });
        }
        reports
    }

    /// How the checks are that an agent would begin with critical: with the
    /// registration restored, traffic is to be, too. Envoy's listener is looked
    /// at as the agent will do, whose first look may be 10 s away.
    async fn statuses(&self) -> BTreeMap<String, Status> {
        let proxy = &self.pod.record.pair.proxy;
        let reports = [Half::Service, Half::Proxy].map(|half| self.reports(half));
        let reports = reports.into_iter().flatten();
        let mut statuses: BTreeMap<_, _> =
            reports.map(|report| (report.check, report.status)).collect();
        if let Ok(ip) = proxy.address.parse::<IpAddr>()
            && application::takes_connections((ip, proxy.port).into()).await
        {
            statuses.insert(listener_id(proxy.id()), Status::Passing);
        }
        statuses
    }
}

/// The content hash of a half's entry. If it is known, the answer comes when it
/// changes, or after [`RENEWAL`].
async fn see(
    agent: &Agent,
    record: &Record,
    half: Half,
    known: Option<&str>,
) -> Result<Outcome<String>, consul::Error> {
    let watch = known.map(|hash| Watch { hash: hash.to_owned(), wait: RENEWAL });
    let entry = agent.service(half.of(&record.pair).id(), watch.as_ref()).await?;
    Ok(entry.map_or(Outcome::Missing, |entry| Outcome::Found(entry.content_hash)))
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
    let [proxy, service] = [proxy, service].map(|each| lease_id(each.id()));
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

// === impl Trouble ===

impl Trouble {
    fn none() -> Self {
        Self { cause: None, is_refusal: false, pauses: Box::new(AGENT_AWAY.pauses()) }
    }

    /// Says each cause of a row of failures once; the next tries say the same.
    fn note(&mut self, wrong: Wrong) -> Outcome<String> {
        let Wrong { failure, outcome } = wrong;
        self.is_refusal = outcome == Outcome::Refused;
        let cause = failure.to_string();
        if self.cause.as_ref() != Some(&cause) {
            tracing::warn!("{cause}");
        }
        self.cause = Some(cause);
        outcome
    }

    /// Waits before the next try, longer each time.
    async fn pause(&mut self, stop: &CancellationToken) -> Outcome<String> {
        let pause = if self.is_refusal {
            REFUSED
        } else {
            self.pauses.next().unwrap_or(AGENT_AWAY.longest)
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
        Outcome::Done
    }

    /// The registration is true.
    fn is_over(&mut self) {
        self.is_refusal = false;
        if self.cause.take().is_some() {
            tracing::info!("the registration is true again");
        }
    }

    /// It has been true for a while: the next trouble is a new one.
    fn is_forgotten(&mut self) {
        self.pauses = Box::new(AGENT_AWAY.pauses());
    }
}

// === impl Wrong ===

impl From<RegisterError> for Wrong {
    fn from(error: RegisterError) -> Self {
        let outcome = if error.is_unknown_token() {
            Outcome::NoToken
        } else {
            Outcome::failed(error.is_transient())
        };
        Self { failure: error.into(), outcome }
    }
}

impl From<consul::Error> for Wrong {
    fn from(error: consul::Error) -> Self {
        RegisterError::from(error).into()
    }
}

impl From<Failure> for Wrong {
    /// A login that failed has been tried for a while already.
    fn from(failure: Failure) -> Self {
        Self { failure, outcome: Outcome::Refused }
    }
}
