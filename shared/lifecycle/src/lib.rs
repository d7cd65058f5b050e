//! How a registration is made, kept and taken back, so that it never comes back
//! after it was taken back: see the two rules of the crate `handoff`.
//!
//! Each of these is a machine: every step of it is one act, and how the act
//! went leads to the next step. The machines know no agent, no folder, no clock
//! and no errors, so that a test can walk every path through them together
//! (`tests/model`); who does the acts keeps the errors.
//!
//! - [`register`]: service and proxy are registered, [`Register`]
//! - [`take_back`]: both are taken off the agent, [`TakeBack`]
//! - [`deregister`]: the registration is taken back, [`Deregister`]
//! - [`keep`]: the registration is kept, [`Keep`]
//! - [`start`]: a service is started, or taken back, [`Start`]
//! - [`entry`]: whether an entry on the agent is ours, [`Entry`]
//! - [`drive`]: the acts, done: [`register()`], [`retract`] and [`deregister()`];
//!   `connect-init` drives [`Start`] and `connect-lifecycle` [`Keep`], and with it a [`Drive`]
//! - [`logout`]: when a pod may log out, [`Unused`]
//! - [`session`]: the ACL token of a registration: login and logout, [`Session`]
//! - [`error`]: why one of them was not done

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
pub use drive::{Drive, Registered, deregister, register, retract};
pub use entry::Entry;
pub use error::{Leftovers, RegisterError, Stays};
pub use keep::Keep;
pub use logout::{Rest, Unused};
pub use register::Register;
pub use session::{Session, SessionError};
pub use start::Start;
pub use take_back::TakeBack;

/// One of the two entries that a registration has on the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// The service itself.
    Service,
    /// Its sidecar proxy.
    Proxy,
}

/// How an act went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It is done, or nothing was in the way.
    Done,
    /// There is a tombstone.
    Buried,
    /// The agent has the entry as we sent it.
    Ours,
    /// The agent has the entry, but others have changed it.
    Changed,
    /// The agent has another pod's entry under this id.
    Foreign,
    /// The agent has no such entry, or no such check.
    Missing,
    /// There is no such ACL token, or the agent has not heard of it yet.
    NoToken,
    /// It failed, and may work another time.
    Failed,
    /// It was refused, and would be again.
    Refused,
}

// === impl Half ===

impl Half {
    /// What this half is registered as.
    pub fn of(self, pair: &Pair) -> &Service {
        match self {
            Self::Service => &pair.service,
            Self::Proxy => &pair.proxy,
        }
    }
}

// === impl Outcome ===

impl Outcome {
    /// How an act went that failed.
    pub fn failed(is_transient: bool) -> Self {
        if is_transient { Self::Failed } else { Self::Refused }
    }
}
