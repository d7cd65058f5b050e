//! Maintains the registration on the agent for as long as the pod lives.
//!
//! The state machine [`Keep`] decides the next step; this module performs the steps. One
//! blocking query does three things: it returns at once when the proxy's entry changes or
//! disappears, so that it is registered again; it returns after [`RENEWAL`], so that the
//! TTL checks are renewed; and it fails when the agent goes away. All requests are sent
//! over one kept-alive connection, one after the other.
//!
//! - [`application`]: whether the application is ready
//! - [`stream`]: whether Envoy has its xDS stream
//! - [`leaf`]: whether Envoy has a valid certificate
//! - [`roots`]: follows the roots of Connect's CA
//! - [`virtual_address`]: follows the service's virtual address

pub(crate) mod application;
mod leaf;
pub(crate) mod roots;
pub(crate) mod stream;
pub(crate) mod virtual_address;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use consul::agent::{Renewed, Watch};
use consul::answer::AgentService;
use consul::{Agent, SetupError};
use envoy::Envoy;
use flags::Report as _;
use handoff::Record;
use handoff::record::AgentRecord;
use lifecycle::keep::Step;
use lifecycle::{
    Drive, Entry, Half, Keep, Outcome, Register, RegisterError, SessionError, session,
};
use probe::Probe;
use registration::Service;
use registration::check::{Check, Status};
use registration::pod::{Pair, VIRTUAL, application_id, destination_id, lease_id, listener_id};
use runtime::file::write_whole;
use runtime::retry::{Backoff, jitter};
use runtime::{Deadline, Exit, Failure};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::pod::Pod;
use crate::restart::Restart;
use application::Application;
use leaf::Leaf;
use stream::Stream;
use virtual_address::VirtualAddress;

/// A third of the TTL, so that one lost heartbeat does not let a check expire.
const RENEWAL: Duration = Duration::from_secs(10);

/// While the agent is away: short enough to notice its return within a second.
const AGENT_AWAY: Backoff =
    Backoff { first: Duration::from_millis(50), longest: Duration::from_millis(500) };

/// While the agent rejects the registration: an operator has to act.
const REFUSED: Duration = Duration::from_secs(10);

/// How long a registration may take, the wait for the lock included.
const REGISTER: Duration = Duration::from_secs(30);

/// How long servers may take to answer a heartbeat's requests: short enough that the TTL
/// checks don't expire.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a login may take, the wait for the servers to know the token included.
const LOG_IN: Duration = Duration::from_secs(30);

/// How long a login may take while the current token is still valid: short, so that
/// heartbeats are not delayed.
const REPLACE: Duration = Duration::from_secs(5);

/// How long the logout of a token that was replaced may take.
const LOG_OUT: Duration = Duration::from_secs(10);

/// Performs the steps of [`Keep`].
pub(crate) struct Keeper<'a> {
    pod: &'a Pod,
    /// The registration of the record, with the current virtual address.
    pair: Pair,
    /// The registration in progress, which holds the lock.
    drive: Option<Drive<'a>>,
    restart: &'a Restart,
    envoy: Envoy,
    application: Option<Application>,
    listener: Listener,
    virtual_address: VirtualAddress,
    /// The content hash of the proxy's entry when it was last read.
    hash: String,
    /// Fields that the agent stores with other values than it was sent, for service and
    /// proxy. They differed right after a registration, so registering again would not
    /// help.
    accepted: [Vec<&'static str>; 2],
    is_just_registered: [bool; 2],
    /// Reason of the next registration, for the log.
    reason: String,
    /// When to replace the ACL token; `None` if it does not expire, or if its expiry is
    /// not known yet.
    replace_at: Option<Instant>,
    is_life_known: bool,
    stream: Stream,
    leaf: Leaf,
}

/// Envoy's public listener. The agent's check of it starts as critical and runs every
/// 10 s; to save that time, we tell the agent as soon as Envoy listens.
#[derive(Debug)]
struct Listener {
    address: Option<SocketAddr>,
    /// Whether the agent's check may be critical although Envoy listens.
    is_due: bool,
    listens: bool,
}

/// The current failure, and how long to wait before the next attempt.
struct Trouble {
    cause: Option<String>,
    is_refusal: bool,
    pauses: Box<dyn Iterator<Item = Duration>>,
}

/// An update of one TTL check.
struct Report {
    check: String,
    status: Status,
    output: String,
}

/// Why a step failed.
struct Wrong {
    failure: Failure,
    outcome: Outcome,
}

// === impl Keeper ===

impl<'a> Keeper<'a> {
    pub(crate) fn new(
        pod: &'a Pod,
        restart: &'a Restart,
        stream: Stream,
        probe: Option<Probe>,
        virtual_address: VirtualAddress,
    ) -> Self {
        let Pair { service, proxy } = &pod.record.pair;
        let check = |service: &Service, id: &str| {
            service.checks.iter().find(|check| check.check_id == id).cloned()
        };
        // A definition file may declare other checks instead.
        let application = check(service, &application_id(service.id()));
        let application = application.map(|_| {
            // In a definition file, the address may be a name. It only goes into the
            // probe's Host header: connections are made to loopback.
            let ip = service.address.parse().unwrap_or(Ipv4Addr::LOCALHOST.into());
            Application::on(service.port, probe, ip)
        });
        let listener = check(proxy, &listener_id(proxy.id()));
        let address = listener.and_then(|check| check.tcp.parse().ok());
        Self {
            pod,
            pair: pod.record.pair.clone(),
            drive: None,
            restart,
            envoy: Envoy::at(pod.record.admin),
            application,
            listener: Listener { address, is_due: true, listens: false },
            virtual_address,
            hash: String::new(),
            accepted: Default::default(),
            is_just_registered: [false; 2],
            reason: String::new(),
            replace_at: None,
            is_life_known: false,
            stream,
            leaf: Leaf::default(),
        }
    }

    /// Maintains the registration until `stop`. A registration in progress is finished
    /// first, so that none can follow the deregistration.
    pub(crate) async fn keep(mut self, stop: CancellationToken) {
        // The token may have changed since the registration: the container may have been
        // killed right after a login, or somebody may have written another token file.
        let Pod { session, record, .. } = self.pod;
        let mut keep = if session.is_some() || record.agent.token_source.is_some() {
            Keep::begin_with_registration_due()
        } else {
            Keep::begin()
        };
        "its ACL token may have changed".clone_into(&mut self.reason);
        let mut trouble = Trouble::none();
        loop {
            if stop.is_cancelled() {
                keep = keep.stop();
            }
            let now = keep.step();
            let done = match now {
                Step::Register(register) => self.register(register).await,
                Step::LogOut => Ok(self.is_registered().await),
                Step::Pause => Ok(trouble.pause(&stop).await),
                Step::End if stop.is_cancelled() => return,
                Step::End => {
                    tracing::info!("the pod was deregistered: no longer maintaining it");
                    return stop.cancelled().await;
                }
                _ => tokio::select! {
                    biased;
                    () = stop.cancelled() => continue,
                    done = self.ask(now) => done,
                },
            };
            let done = done.unwrap_or_else(|wrong| {
                // An agent that restarted starts its check of the listener as critical
                // again; and an agent that is away does not refuse Envoy's stream.
                self.listener.is_due = true;
                self.stream.is_excused();
                trouble.note(wrong)
            });
            keep = keep.next(done);
            if !matches!(keep.step(), Step::Register(_)) {
                self.drive = None;
            }
            match (now, keep.step()) {
                (_, Step::Watch) => trouble.is_over(),
                (Step::Watch, Step::See(_)) => trouble.is_forgotten(),
                _ => {}
            }
        }
    }

    /// Performs the steps that may be cancelled.
    async fn ask(&mut self, step: Step) -> Result<Outcome, Wrong> {
        match step {
            Step::Watch => self.watch().await,
            Step::See(half) => {
                let there = self.entry(half, None).await?;
                self.judge(half, there)
            }
            Step::Look if self.pod.handoff.is_buried() => Ok(Outcome::Buried),
            Step::Renew(half) => self.renew(half).await,
            Step::LogIn => self.log_in().await,
            Step::Look | Step::Register(_) | Step::LogOut | Step::Pause | Step::End => {
                Ok(Outcome::Done)
            }
        }
    }

    /// Waits for a change of the proxy's entry, or for something else to do.
    async fn watch(&mut self) -> Result<Outcome, Wrong> {
        let Pod { record, agent, .. } = self.pod;
        let id = record.pair.proxy.id();
        let watch = Watch { hash: self.hash.clone(), wait: RENEWAL };
        let is_blocking = !self.hash.is_empty();
        let changes = async {
            if !is_blocking {
                // Without a content hash there is no blocking query: a proxy in front of
                // the agent may strip it.
                tokio::time::sleep(RENEWAL).await;
            }
            agent.service(id, is_blocking.then_some(&watch)).await
        };
        let replace_at = self.replace_at;
        let is_due = async {
            match replace_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let there = tokio::select! {
            biased;
            there = changes => there?,
            () = changed(self.application.as_mut()) => return Ok(Outcome::Done),
            () = self.listener.opens() => return Ok(Outcome::Done),
            () = self.restart.changed() => return Ok(Outcome::Done),
            () = is_due => return Ok(Outcome::NoToken),
            address = self.virtual_address.changed() => return Ok(self.take_address(address)),
        };
        self.judge(Half::Proxy, there)
    }

    /// Makes the virtual address part of the registration.
    fn take_address(&mut self, address: Ipv4Addr) -> Outcome {
        if let Err(error) = self.pod.handoff.note_virtual_address(Some(address)) {
            tracing::warn!("{}", Failure::from(error));
        }
        let there = self.pair.proxy.tagged_addresses.entry(VIRTUAL.to_owned());
        there.or_default().address = address.to_string();
        self.reason = format!("its virtual address is {address} now");
        Outcome::Changed
    }

    async fn entry(
        &self,
        half: Half,
        watch: Option<&Watch>,
    ) -> Result<Option<AgentService>, consul::Error> {
        self.pod.agent.service(half.of(&self.pod.record.pair).id(), watch).await
    }

    /// Compares an entry on the agent with the registration.
    fn judge(&mut self, half: Half, there: Option<AgentService>) -> Result<Outcome, Wrong> {
        let sent = half.of(&self.pair);
        let Some(there) = there else {
            "the agent had lost it".clone_into(&mut self.reason);
            return Ok(Outcome::Missing);
        };
        let is_first = std::mem::take(&mut self.is_just_registered[half as usize]);
        let accepted = &mut self.accepted[half as usize];
        let outcome = match Entry::of(sent, &there) {
            Entry::Ours => Outcome::Ours,
            Entry::Changed(fields) if is_first => {
                tracing::warn!(
                    service = sent.id(),
                    "the agent stores other values than it was sent for: {}",
                    fields.join(", ")
                );
                *accepted = fields;
                Outcome::Ours
            }
            Entry::Changed(fields) if fields == *accepted => Outcome::Ours,
            Entry::Changed(fields) => {
                self.reason = format!("somebody changed its {}", fields.join(", "));
                Outcome::Changed
            }
            Entry::Foreign(whose) => {
                let failure = Failure::new(
                    Exit::Refused,
                    format_args!(
                        "id `{}` belongs to {whose}: this pod is not registered",
                        sent.id()
                    ),
                )
                .hint("rename one of the two, or schedule them on different nodes");
                return Err(Wrong { failure, outcome: Outcome::Foreign });
            }
        };
        if half == Half::Proxy {
            self.hash = there.content_hash;
        }
        Ok(outcome)
    }

    /// Performs one step of a registration.
    async fn register(&mut self, step: Register) -> Result<Outcome, Wrong> {
        let mut drive = if let Some(drive) = self.drive.take() {
            drive
        } else {
            let Pod { handoff, agent, session, .. } = self.pod;
            let statuses = self.statuses().await;
            let pair = self.pair.known_to_be(&statuses);
            Drive::new(handoff, agent, pair, Deadline::after(REGISTER))
                .with_session(session.as_ref())
        };
        let done = drive.act(step).await;
        self.drive = Some(drive);
        Ok(done?)
    }

    /// After a registration, logs out the tokens that were replaced: the agent no longer
    /// uses them.
    async fn is_registered(&mut self) -> Outcome {
        let Pod { record, session, .. } = self.pod;
        tracing::info!(proxy = record.pair.proxy.id(), "registered again: {}", self.reason);
        self.is_just_registered = [true; 2];
        self.listener.is_due = true;
        if let Some(session) = session {
            session.log_out_replaced(Deadline::after(LOG_OUT)).await;
        }
        Outcome::Done
    }

    /// Gets another token: by login if the pod logs in, else from the token file, which
    /// somebody may have rewritten.
    async fn log_in(&mut self) -> Result<Outcome, Wrong> {
        let Pod { handoff, record, agent, session } = self.pod;
        let is_due = self.replace_at.is_some_and(|at| at <= Instant::now());
        if let Some(session) = session {
            let deadline = Deadline::after(LOG_IN);
            if is_due {
                // If the login fails, the current token is valid for some time yet.
                self.replace_at = Some(Instant::now() + RENEWAL);
                session.replace(Deadline::after(REPLACE)).await.map_err(|error| Wrong {
                    failure: error.failure(),
                    outcome: Outcome::Failed,
                })?;
                "its ACL token was about to expire".clone_into(&mut self.reason);
            } else if session.renew(deadline).await? {
                "its ACL token no longer existed".clone_into(&mut self.reason);
            } else {
                // The servers know the token; the agent caches that it was not found.
                return Ok(Outcome::Failed);
            }
        } else {
            let token = record.agent.token()?;
            if same(token.as_ref(), agent.token().as_ref()) {
                let AgentRecord { token_source, token_file, .. } = &record.agent;
                let hint = match token_source.as_ref().or(token_file.as_ref()) {
                    Some(file) => format!(
                        "it was deleted or has expired: write a new one to {}",
                        file.display()
                    ),
                    None => "ACLs are enabled: give the pod a token".to_owned(),
                };
                let failure = Failure::new(Exit::Denied, "the ACL token does not exist").hint(hint);
                return Err(Wrong { failure, outcome: Outcome::Refused });
            }
            if let Some(token) = &token {
                // For processes of the pod that can't read the original file.
                let copy = write_whole(&handoff.token(), 0o600, token.expose_secret().as_bytes());
                copy.map_err(SessionError::from)?;
            }
            agent.set_token(token);
            session::settle(handoff, agent)?;
            "its ACL token changed".clone_into(&mut self.reason);
        }
        if session.is_some() {
            tracing::info!("logged in again: {}", self.reason);
        }
        self.replace_at = None;
        self.is_life_known = false;
        if !handoff.has_envoy_token() {
            // Envoy still uses the old token, which the agent will reject.
            self.restart.request();
        }
        Ok(Outcome::Done)
    }

    /// Sends the heartbeats of service or proxy. The service's come with the application's
    /// status and a check of the token; the proxy's with a check of Envoy's listener, its
    /// xDS stream and its leaf certificate.
    async fn renew(&mut self, half: Half) -> Result<Outcome, Wrong> {
        match half {
            Half::Service => {
                if self.look_at_token().await == Outcome::NoToken {
                    return Ok(Outcome::NoToken);
                }
            }
            Half::Proxy => {
                self.virtual_address.look();
                self.look_at_stream().await;
                self.leaf.look(self.envoy, now()).await;
                // Optional: the agent's own check runs within 10 s.
                if let Err(error) = self.say_that_envoy_listens().await {
                    tracing::debug!("cannot tell the agent that Envoy listens: {error}");
                }
            }
        }
        for Report { check, status, output } in self.reports(half) {
            if self.pod.agent.update_check(&check, status, &output).await? == Renewed::Unknown {
                "the agent had lost it".clone_into(&mut self.reason);
                return Ok(Outcome::Missing);
            }
        }
        Ok(Outcome::Done)
    }

    /// Whether the token exists, and until when. Asks the servers, because the agent caches
    /// tokens for half a minute. Nothing happens while the servers are away.
    async fn look_at_token(&mut self) -> Outcome {
        let Pod { record, agent, session, .. } = self.pod;
        if session.is_none() {
            let token = record.agent.token().ok().flatten();
            let is_another = token.is_some() && !same(token.as_ref(), agent.token().as_ref());
            return if is_another { Outcome::NoToken } else { Outcome::Done };
        }
        match agent.within(PATIENCE).own_token().await {
            Ok(None) => return Outcome::NoToken,
            Ok(Some(token)) if !self.is_life_known => {
                self.is_life_known = true;
                // At about two thirds of its lifetime, with jitter, so that pods that
                // started together don't log in together.
                self.replace_at = token.life(SystemTime::now()).map(|(life, left)| {
                    Instant::now() + left.saturating_sub(life / 3 + jitter(life / 10))
                });
            }
            Ok(Some(_)) => {}
            Err(error) => tracing::debug!("cannot read the ACL token: {error}"),
        }
        Outcome::Done
    }

    /// Checks whether Envoy has its xDS stream; the agent has just answered a request. If
    /// not, asks for the servers' leader, too: while there is none, the agent can't check
    /// Envoy's token.
    async fn look_at_stream(&mut self) {
        let Pod { handoff, agent, .. } = self.pod;
        match self.envoy.is_connected().await {
            Ok(true) => self.stream.is_connected(),
            Ok(false) if self.restart.is_under_way() => self.stream.is_excused(),
            Ok(false) => match agent.within(PATIENCE).leader().await {
                Ok(leader) if !leader.address.is_empty() => self.stream.is_refused(),
                Ok(_) | Err(_) => self.stream.is_excused(),
            },
            Err(error) => return tracing::debug!("{error}"),
        }
        let cut_off = self.stream.cut_off();
        if handoff.cut_off().as_deref() != cut_off
            && let Err(error) = handoff.note_cut_off(cut_off)
        {
            tracing::warn!("{}", Failure::from(error));
        }
    }

    /// Makes the check of the public listener pass if Envoy listens and the agent's own
    /// check has not run yet.
    async fn say_that_envoy_listens(&mut self) -> Result<(), consul::Error> {
        if !self.listener.is_due || !self.listener.look().await {
            return Ok(());
        }
        let Pod { record, agent, .. } = self.pod;
        let proxy = &record.pair.proxy;
        let id = listener_id(proxy.id());
        if let Some(check) = proxy.checks.iter().find(|check| check.check_id == id)
            && agent.check(&id).await?.is_some_and(|there| there.status != "passing")
        {
            let passing = Check { status: Some(Status::Passing), ..check.clone() };
            agent.restart_check(proxy.id(), &passing).await?;
            tracing::info!(check = id, "told the agent that Envoy listens");
        }
        self.listener.is_due = false;
        Ok(())
    }

    /// The updates of the TTL checks of service or proxy.
    fn reports(&mut self, half: Half) -> Vec<Report> {
        let id = half.of(&self.pod.record.pair).id();
        let (status, output) = if self.restart.is_under_way() {
            (Status::Critical, "Envoy is being restarted with a new ACL token".to_owned())
        } else if let Some(why) = self.stream.cut_off() {
            (Status::Critical, why.to_owned())
        } else if let Some(warning) = self.leaf.warning(now()) {
            (Status::Warning, warning)
        } else {
            (Status::Passing, ALIVE.to_owned())
        };
        let mut reports = vec![Report { check: lease_id(id), status, output }];
        if let (Half::Service, Some(application)) = (half, &mut self.application)
            && let Some((status, output)) = application.check()
        {
            reports.push(Report { check: application_id(id), status, output });
        }
        reports
    }

    /// Initial statuses for the checks that an agent would start as critical, so that
    /// traffic returns together with the registration. Envoy's listener is checked here,
    /// because the agent's first check may be 10 s away.
    async fn statuses(&mut self) -> BTreeMap<String, Status> {
        let reports = [Half::Service, Half::Proxy].map(|half| self.reports(half));
        let reports = reports.into_iter().flatten();
        let mut statuses: BTreeMap<_, _> =
            reports.map(|report| (report.check, report.status)).collect();
        if self.listener.look().await {
            statuses.insert(listener_id(self.pod.record.pair.proxy.id()), Status::Passing);
        }
        // On an agent with many registrations at once, an alias check that started as
        // critical was seen to stay critical for a minute although the service's checks
        // passed.
        let service = self.reports(Half::Service);
        let is_looked_at =
            self.application.as_mut().is_none_or(|application| application.check().is_some());
        if is_looked_at && service.iter().all(|report| report.status != Status::Critical) {
            statuses.insert(destination_id(self.pod.record.pair.proxy.id()), Status::Passing);
        }
        statuses
    }
}

// === impl Listener ===

impl Listener {
    async fn look(&mut self) -> bool {
        self.listens = match self.address {
            Some(address) => application::takes_connections(address).await,
            None => false,
        };
        self.listens
    }

    /// Waits until Envoy listens, if the agent has to be told.
    async fn opens(&mut self) {
        if !self.is_due || self.listens || self.address.is_none() {
            return std::future::pending().await;
        }
        while !self.look().await {
            tokio::time::sleep(OPENING).await;
        }
    }
}

/// How often to check a listener that is not open yet: Envoy needs some hundreds of
/// milliseconds.
const OPENING: Duration = Duration::from_millis(50);

fn same(one: Option<&SecretString>, other: Option<&SecretString>) -> bool {
    one.map(SecretString::expose_secret) == other.map(SecretString::expose_secret)
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// The same output with each heartbeat, because the agent writes a changed output to the
/// catalog.
const ALIVE: &str = "connect-lifecycle runs";

/// Makes the TTL checks critical at once, without waiting for them to expire.
pub(crate) async fn report_death(
    agent: &Agent,
    record: &Record,
    output: &str,
) -> Result<(), consul::Error> {
    let Pair { service, proxy } = &record.pair;
    let [proxy, service] = [proxy, service].map(|each| lease_id(each.id()));
    // Send both, even if the first fails.
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

    /// Logs a failure unless it has the same cause as the one before.
    fn note(&mut self, wrong: Wrong) -> Outcome {
        let Wrong { failure, outcome } = wrong;
        self.is_refusal = matches!(outcome, Outcome::Refused | Outcome::Foreign);
        let cause = failure.to_string();
        if self.cause.as_ref() != Some(&cause) {
            tracing::warn!("{cause}");
        }
        self.cause = Some(cause);
        outcome
    }

    /// Waits before the next attempt, longer each time.
    async fn pause(&mut self, stop: &CancellationToken) -> Outcome {
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

    /// Called when the registration is complete and correct.
    fn is_over(&mut self) {
        self.is_refusal = false;
        if self.cause.take().is_some() {
            tracing::info!("registration restored");
        }
    }

    /// Called when the registration has been correct for a while: the pauses start short
    /// again.
    fn is_forgotten(&mut self) {
        self.pauses = Box::new(AGENT_AWAY.pauses());
    }
}

// === impl Wrong ===

impl From<RegisterError> for Wrong {
    fn from(error: RegisterError) -> Self {
        Self { outcome: error.outcome(), failure: error.failure() }
    }
}

impl From<consul::Error> for Wrong {
    fn from(error: consul::Error) -> Self {
        RegisterError::from(error).into()
    }
}

impl From<SessionError> for Wrong {
    /// `Refused`, because a failed login has been retried for a while already.
    fn from(error: SessionError) -> Self {
        Self { failure: error.failure(), outcome: Outcome::Refused }
    }
}

impl From<SetupError> for Wrong {
    fn from(error: SetupError) -> Self {
        Self { failure: error.failure(), outcome: Outcome::Refused }
    }
}
