//! The protocol of a registration: how it is made, maintained and undone, so that it
//! never reappears after the pod has deregistered. The crate `handoff` states the two
//! rules.
//!
//! Each of these is a state machine: a step is one act, and its outcome leads to the
//! next step. The machines know no agent, directory, clock or error, so that a test can
//! explore every path through all of them together (`tests/model`); drivers perform the
//! acts and keep the errors.
//!
//! - [`register`]: registers service and proxy, [`Register`]
//! - [`take_back`]: removes both from the agent, [`TakeBack`]
//! - [`deregister`]: deregisters for good, [`Deregister`]
//! - [`keep`]: maintains the registration, [`Keep`]
//! - [`start`]: starts a service, or rolls back, [`Start`]
//! - [`entry`]: whether an entry on the agent is ours, [`Entry`]
//! - [`drive`]: performs the acts: [`register()`], [`retract`] and [`deregister()`];
//!   `connect-init` drives [`Start`] and `connect-lifecycle` [`Keep`], and with it a
//!   [`Drive`]
//! - [`logout`]: when a pod may log out, [`Unused`]
//! - [`session`]: login and logout, [`Session`]
//! - [`error`]: why an act failed

pub mod deregister;
pub mod drive;
pub mod entry;
pub mod error;
pub mod keep;
pub mod logout;
pub mod register;
pub mod session;
pub mod start;
pub mod take_back;

use registration::Service;
use registration::pod::Pair;

pub use deregister::Deregister;
pub use drive::{Drive, Registered, deregister, deregister_with_login, register, retract};
pub use entry::Entry;
pub use error::{Leftovers, RegisterError, Stays};
pub use keep::Keep;
pub use logout::{Rest, Unused};
pub use register::Register;
pub use session::{Session, SessionError};
pub use start::Start;
pub use take_back::TakeBack;

/// One of the two entries of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    Service,
    Proxy,
}

/// Outcome of an act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It succeeded, or nothing was in the way.
    Done,
    /// There is a tombstone.
    Buried,
    /// The agent has the entry as we sent it.
    Ours,
    /// The agent has the entry, but somebody changed it.
    Changed,
    /// The agent has the entry as it was registered with an ACL token that was replaced
    /// since.
    Outdated,
    /// The agent has another pod's entry under this id.
    Foreign,
    /// The agent does not have the entry or check.
    Missing,
    /// The ACL token does not exist, or the agent has not heard of it yet.
    NoToken,
    /// It failed; a retry may help.
    Failed,
    /// It was refused; a retry won't help.
    Refused,
}

// === impl Half ===

impl Half {
    /// The registration of this entry.
    pub fn of(self, pair: &Pair) -> &Service {
        match self {
            Self::Service => &pair.service,
            Self::Proxy => &pair.proxy,
        }
    }
}

// === impl Outcome ===

impl Outcome {
    /// The outcome of a failed act.
    pub fn failed(is_transient: bool) -> Self {
        if is_transient { Self::Failed } else { Self::Refused }
    }
}
