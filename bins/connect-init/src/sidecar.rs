//! One service of the pod with its sidecar: provided completely, or rolled back.

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use consul::{Agent, TlsFiles};
use flags::{BootstrapArgs, Report, XdsServer};
use handoff::{Handoff, Login, Milestone, Record};
use lifecycle::start::Step;
use lifecycle::{Drive, Leftovers, Outcome, Session, Start, Unused};
use provision::{Trust, Watched};
use registration::pod::Pair;
use runtime::file::write_whole;
use runtime::{Deadline, Failure};
use secrecy::ExposeSecret;

use crate::declare::Declared;
use crate::helper::Installing;
use crate::register;

pub(crate) struct Sidecar {
    pub(crate) declared: Declared,
    pub(crate) handoff: Handoff,
    pub(crate) agent: Agent,
    /// If the token comes from a login.
    pub(crate) session: Option<Session>,
    pub(crate) bootstrap: BootstrapArgs,
    watched: Watched,
    /// Progress.
    start: Cell<Start>,
}

/// Time limit for deregistering what an earlier run registered.
const EARLIER: Duration = Duration::from_secs(5);

// === impl Sidecar ===

impl Sidecar {
    pub(crate) fn new(
        declared: Declared,
        dir: &Path,
        agent: &Agent,
        login: Option<&Login>,
        bootstrap: &BootstrapArgs,
        trust: Trust,
    ) -> Self {
        let handoff = match declared.index {
            0 => Handoff::new(dir),
            _ => Handoff::of_further(dir, &declared.pair.service.name),
        };
        // Each service has its own token, because each ends by itself.
        let agent = agent.apart();
        let session = login.map(|login| Session::new(&agent, &handoff, login.clone()));
        let watched = Watched::by(bootstrap.envoy_version.as_deref(), trust);
        let bootstrap = BootstrapArgs {
            admin_bind: declared.admin.to_string(),
            envoy_ready_bind_port: bootstrap
                .envoy_ready_bind_port
                .map(|port| port.saturating_add(declared.index)),
            // All sidecars of the pod run the same Envoy: check its version once.
            envoy_version: bootstrap.envoy_version.clone().filter(|_| declared.index == 0),
            ..bootstrap.clone()
        };
        // An earlier run may have registered with the token in the file.
        let has_token = session.is_some() && handoff.token().exists();
        let is_sent = has_token || handoff.record().exists();
        let start = Cell::new(Start::begin(session.is_some(), is_sent));
        Self { declared, handoff, agent, session, bootstrap, watched, start }
    }

    /// Prepares the files, before anything is registered.
    pub(crate) fn prepare(&self) -> Result<(), Failure> {
        if let Some(token) = self.agent.token() {
            write_whole(&self.handoff.token(), 0o600, token.expose_secret().as_bytes())?;
        }
        self.handoff.forget(Milestone::Listed)?;
        self.handoff.note_virtual_address(None)?;
        self.went(self.handoff.unbury().map_err(Failure::from))
    }

    /// Logs in, registers, and writes the files. `tls` is for the pod's other
    /// containers.
    pub(crate) async fn provide(
        &self,
        tls: &TlsFiles,
        helper: &Installing,
        deadline: Deadline,
    ) -> Result<(), Failure> {
        let Self { declared, handoff, agent, session, start, .. } = self;
        let xds = self.went(self.open(tls, deadline).await)?;
        let pair = &declared.pair;
        register::register(handoff, agent, pair, session.as_ref(), deadline, start).await?;
        self.went(self.write(&xds, tls, helper, deadline).await)
    }

    /// Logs in, and finds the agent's xDS address: if there is none, nothing is
    /// registered.
    async fn open(&self, tls: &TlsFiles, deadline: Deadline) -> Result<XdsServer, Failure> {
        let Self { declared, agent, session, bootstrap, .. } = self;
        if let Some(session) = session {
            session.open(deadline).await.map_err(Report::failure)?;
        }
        let id = declared.pair.service.id();
        bootstrap
            .find_xds(agent, tls, deadline)
            .await
            .map_err(|failure| failure.while_doing(format_args!("cannot register service `{id}`")))
    }

    /// Writes the files that the sidecar starts from.
    async fn write(
        &self,
        xds: &XdsServer,
        tls: &TlsFiles,
        helper: &Installing,
        deadline: Deadline,
    ) -> Result<(), Failure> {
        let Self { declared, handoff, agent, session, bootstrap, watched, .. } = self;
        let Declared { pair, admin, virtual_name, .. } = declared;
        // On the heap, because it rarely runs.
        Box::pin(self.take_back_earlier(deadline)).await;
        provision::bootstrap(handoff, agent, bootstrap, pair, xds, *watched, deadline).await?;
        // Last: a reader of the record must find all other files.
        helper.done().await?;
        let login = session.as_ref().map(|session| session.login().clone());
        let agent = provision::agent_record(handoff, agent, tls);
        let mut record = Record::new(pair.clone(), agent, *admin, login);
        record.virtual_name.clone_from(virtual_name);
        record.write(handoff)?;
        Ok(())
    }

    /// Continues with the next step, or with the rollback.
    fn went<T>(&self, result: Result<T, Failure>) -> Result<T, Failure> {
        let outcome = if result.is_ok() { Outcome::Done } else { Outcome::Refused };
        self.start.set(self.start.get().next(outcome));
        result
    }

    /// Deregisters what an earlier run registered under other ids; entries with the
    /// same ids were replaced. If it fails, their TTL checks expire.
    async fn take_back_earlier(&self, deadline: Deadline) {
        let Some(earlier) = self.earlier() else { return };
        let deadline = Deadline::after(EARLIER.min(deadline.left()));
        if self.retract(&earlier, deadline).await.is_some() {
            tracing::info!(service = earlier.service.id(), "deregistered the earlier ids");
        }
    }

    /// Deregisters what the agent may have, and then logs out, unless the agent still
    /// needs the token for a leftover.
    pub(crate) async fn take_back(&self, deadline: Deadline) {
        let Self { declared, handoff, agent, session, start, .. } = self;
        // An agent that hangs on one must leave time for the other.
        let share = if session.is_some() { deadline.left() / 2 } else { deadline.left() };
        let share = Deadline::after(share);
        let mut unused = Some(Unused::never_registered());
        if let Some(earlier) = self.earlier() {
            let half = Deadline::after(share.left() / 2);
            unused = unused.zip(self.retract(&earlier, half).await).map(|(a, b)| a.and(b));
        }
        let mut drive =
            Drive::new(handoff, agent, declared.pair.clone(), share).with_session(session.as_ref());
        let mut now = start.get().cut();
        let was_sent = matches!(now.step(), Step::TakeBack(_));
        while let Step::TakeBack(machine) = now.step() {
            now = now.next(drive.act_back(machine.step()).await);
        }
        if let Step::LogOut(rest) = now.step() {
            let own = said(drive.taken_back(rest));
            unused = unused.zip(own).map(|(a, b)| a.and(b));
        }
        let Some(session) = session else { return };
        let own = was_sent.then(|| declared.pair.clone());
        for pair in self.earlier().into_iter().chain(own) {
            let Some(proof) = unused else { break };
            let share = Deadline::after(deadline.left() / 2);
            unused = proof.heard(agent, &pair, share).await;
        }
        if let Err(error) = session.close(unused, deadline).await {
            tracing::warn!("{}", error.failure());
        }
    }

    async fn retract(&self, pair: &Pair, deadline: Deadline) -> Option<Unused> {
        said(lifecycle::retract(&self.handoff, &self.agent, pair, deadline).await)
    }

    /// Registrations that an earlier run, such as one of another release, recorded in
    /// this directory under other ids.
    fn earlier(&self) -> Option<Pair> {
        let Record { pair, .. } = Record::read(&self.handoff).ok()?;
        (pair.proxy.id() != self.declared.pair.proxy.id()).then_some(pair)
    }
}

/// Logs what could not be deregistered. Returns the permission to log out, unless the
/// agent still needs the token.
fn said(taken_back: Result<Unused, Leftovers>) -> Option<Unused> {
    match taken_back {
        Ok(unused) => Some(unused),
        Err(mut leftovers) => {
            let unused = leftovers.unused.take();
            tracing::warn!("{}", leftovers.failure());
            unused
        }
    }
}
