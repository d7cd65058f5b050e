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
//! - [`listener`]: whether Envoy's public listener is open
//! - [`token`]: the ACL token of the registration
//! - [`trouble`]: why it could not be maintained, and when to try again
//! - [`roots`]: follows the roots of Connect's CA
//! - [`virtual_address`]: follows the service's virtual address

pub(crate) mod application;
mod leaf;
mod listener;
pub(crate) mod roots;
pub(crate) mod stream;
mod token;
mod trouble;
pub(crate) mod virtual_address;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use consul::Agent;
use consul::agent::Renewed;
use consul::answer::AgentService;
use consul::blocking::Watch;
use envoy::Envoy;
use handoff::Record;
use lifecycle::keep::Step;
use lifecycle::{Drive, Entry, Half, Keep, Outcome, Register};
use probe::Probe;
use registration::Service;
use registration::check::{Check, Status};
use registration::pod::{Pair, VIRTUAL, application_id, destination_id, lease_id, listener_id};
use runtime::{Deadline, Exit, Failure};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::pod::Pod;
use crate::restart::Restart;
use application::Application;
use leaf::Leaf;
use listener::Listener;
use stream::Stream;
use trouble::{Trouble, Wrong};
use virtual_address::VirtualAddress;

/// A third of the TTL, so that one lost heartbeat does not let a check expire.
const RENEWAL: Duration = Duration::from_secs(10);

/// How long a registration may take, the wait for the lock included.
const REGISTER: Duration = Duration::from_secs(30);

/// How long servers may take to answer a heartbeat's requests: short enough that the TTL
/// checks don't expire.
const PATIENCE: Duration = Duration::from_secs(3);

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

/// An update of one TTL check.
struct Report {
    check: String,
    status: Status,
    output: String,
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
            listener: Listener::at(address),
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
        let mut failed = None;
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
            let done = match done {
                Ok(done) => done,
                Err(wrong) => {
                    failed = Some((now, wrong.outcome));
                    trouble.note(wrong)
                }
            };
            keep = keep.next(done);
            if !matches!(keep.step(), Step::Register(_)) {
                // Releases the lock, which the hook may be waiting for.
                self.drive = None;
                if let Some((step, outcome)) = failed.take() {
                    self.fails(step, outcome, &stop).await;
                }
            }
            match (now, keep.step()) {
                (_, Step::Watch) => trouble.is_over(),
                (Step::Watch, Step::See(_)) => trouble.is_forgotten(),
                _ => {}
            }
        }
    }

    /// Notes that a step failed.
    async fn fails(&mut self, failed: Step, outcome: Outcome, stop: &CancellationToken) {
        // An agent that restarted starts its check of the listener as critical again.
        self.listener.is_due = true;
        if failed == Step::LogIn || matches!(outcome, Outcome::NoToken | Outcome::Refused) {
            // Without the token or its rights, the agent refuses Envoy's stream, too.
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = self.look_at_stream() => {}
            }
        } else {
            // An agent that is away does not refuse Envoy's stream.
            self.stream.is_excused();
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
            // The agent lacks the check if an earlier restart of it failed halfway.
            && agent.check(&id).await?.is_none_or(|there| there.status != "passing")
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
