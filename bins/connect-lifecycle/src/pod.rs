//! One service of the pod, as described by connect-init's files, and the agent with which
//! it is registered.

use std::time::Duration;

use consul::Agent;
use flags::Report;
use handoff::{Handoff, Milestone, Record};
use lifecycle::{Session, Unused, session};
use registration::pod::VIRTUAL;
use runtime::deadline::race;
use runtime::{Deadline, Failure, Signals};

use crate::args::HandoffArgs;

/// How long a login may take before Envoy is started. If it fails, the kubelet restarts
/// the container.
const LOG_IN: Duration = Duration::from_secs(60);

/// How long the logout after a failed start may take.
const LOG_OUT: Duration = Duration::from_secs(2);

/// One service of the pod.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) handoff: Handoff,
    pub(crate) record: Record,
    pub(crate) agent: Agent,
    /// `None` if the pod does not log in: it was given a token, or needs none.
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

    /// Prepares a start of the container, which may be a restart: clears the tombstone,
    /// and logs in again if the pod was logged out when the container ended. Writes the
    /// token to Envoy's bootstrap, in case the process that logged in was killed before
    /// it did.
    pub(crate) async fn revive(&self, signals: &mut Signals) -> Result<(), Failure> {
        self.handoff.unbury()?;
        self.handoff.forget(Milestone::Ready)?;
        self.handoff.forget(Milestone::InService)?;
        self.handoff.note_cut_off(None)?;
        let Some(session) = &self.session else {
            // The token file may have changed.
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
        // The old token is logged out already, and the new one has registered nothing yet.
        let unused = Some(Unused::never_registered());
        self.log_out(unused, Deadline::after(LOG_OUT)).await;
        Err(failure)
    }

    /// Logs out if the pod logs in and the agent no longer needs the token. No request
    /// may follow.
    pub(crate) async fn log_out(&self, unused: Option<Unused>, deadline: Deadline) {
        if let Some(session) = &self.session
            && let Err(error) = session.close(unused, deadline).await
        {
            tracing::warn!("{}", error.failure());
        }
    }
}
