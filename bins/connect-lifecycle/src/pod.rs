//! The pod as connect-init left it: one of its services, and the agent that has
//! it registered.

use std::time::Duration;

use consul::Agent;
use flags::Report;
use handoff::{Handoff, Milestone, Record};
use lifecycle::{Session, Unused, session};
use registration::pod::VIRTUAL;
use runtime::deadline::race;
use runtime::{Deadline, Failure, Signals};

use crate::args::HandoffArgs;

/// How long a login may take before Envoy is started. The kubelet starts the
/// container again if it fails.
const LOG_IN: Duration = Duration::from_secs(60);

/// How long a logout may take if the login was for nothing.
const LOG_OUT: Duration = Duration::from_secs(2);

/// One service of the pod, as connect-init left it.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) handoff: Handoff,
    pub(crate) record: Record,
    pub(crate) agent: Agent,
    /// With a token by login; none if a token was given, or none is needed.
    pub(crate) session: Option<Session>,
}

// === impl Pod ===

impl Pod {
    pub(crate) fn open(args: HandoffArgs) -> Result<Self, Failure> {
        let handoff = args.handoff();
        let mut record = Record::read(&handoff).map_err(Report::failure)?;
        if let Some(address) = handoff.virtual_address() {
            let known = record.pair.proxy.tagged_addresses.entry(VIRTUAL.to_owned());
            known.or_default().address = address.to_string();
        }
        let agent = record.agent.connect().map_err(Report::failure)?;
        let session = record.login.clone().map(|login| Session::new(&agent, &handoff, login));
        Ok(Self { handoff, record, agent, session })
    }

    /// The container starts, perhaps again: its pod lives. If it was logged out
    /// when the container ended, it logs in anew. Envoy starts with the token,
    /// even if whoever logged in was killed before the bootstrap had it.
    pub(crate) async fn revive(&self, signals: &mut Signals) -> Result<(), Failure> {
        self.handoff.unbury()?;
        self.handoff.forget(Milestone::Ready)?;
        self.handoff.forget(Milestone::InService)?;
        self.handoff.note_cut_off(None)?;
        let Some(session) = &self.session else {
            // The file that it came from may have another by now.
            return match self.agent.token() {
                Some(_) => session::settle(&self.handoff, &self.agent).map_err(Report::failure),
                None => Ok(()),
            };
        };
        if self.agent.token().is_some() {
            return session.settle().map_err(Report::failure);
        }
        let deadline = Deadline::after(LOG_IN);
        let failure = match race(deadline, signals, session.renew(deadline)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error.failure(),
            Err(cut) => cut.failure(deadline),
        };
        // The token before that was logged out, and the new one registered nothing yet.
        let unused = Some(Unused::never_registered());
        self.log_out(unused, Deadline::after(LOG_OUT)).await;
        Err(failure)
    }

    /// Logs out, if it was by login that there is a token, and if the agent needs it
    /// no longer. Nothing is asked of the agent after that.
    pub(crate) async fn log_out(&self, unused: Option<Unused>, deadline: Deadline) {
        if let Some(session) = &self.session
            && let Err(error) = session.close(unused, deadline).await
        {
            tracing::warn!("{}", error.failure());
        }
    }
}
