//! How a registration is made and taken back, so that it never comes back
//! after it was taken back: see the two rules of this crate.

use std::fmt;
use std::time::Duration;

use consul::{Agent, Error};
use registration::pod::Pair;
use runtime::{Deadline, Exit, Failure, retry};

use crate::Handoff;
use crate::lock::LockError;

/// What became of an attempt to register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registered {
    /// Service and proxy are on the agent.
    Done,
    /// They were taken back for good: nothing was registered.
    Buried,
}

/// Why service and proxy are not both registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The agent did not take the service.
    #[error("{0}")]
    Agent(#[from] Error),
    /// The agent took the service, but not its proxy.
    #[error("its sidecar proxy: {0}")]
    Proxy(Error),
    /// Another process was in the way.
    #[error("{0}")]
    Lock(#[from] LockError),
}

impl RegisterError {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Agent(error) | Self::Proxy(error) => error.is_transient(),
            Self::Lock(LockError::Held(_)) => true,
            Self::Lock(LockError::File(_)) => false,
        }
    }

    /// Whether the cause is that there is no such ACL token, or that the agent
    /// has not heard of it yet.
    pub fn is_unknown_token(&self) -> bool {
        match self {
            Self::Agent(error) | Self::Proxy(error) => error.is_unknown_token(),
            Self::Lock(_) => false,
        }
    }

    /// Whether the agent may have something of it.
    pub fn may_have_arrived(&self) -> bool {
        match self {
            Self::Agent(error) => error.may_have_arrived(),
            Self::Proxy(_) => true,
            Self::Lock(_) => false,
        }
    }
}

/// What could not be taken back, each with its cause.
#[derive(Debug)]
pub struct Leftovers {
    services: Vec<(String, Stays)>,
    others: Vec<Failure>,
}

/// Why a service is still on the agent.
#[derive(Debug, thiserror::Error)]
enum Stays {
    #[error("{0}")]
    Agent(#[from] Error),
    #[error(
        "the agent said that it is gone, but it is still there: the ACL token may lack service:write on it"
    )]
    StillThere,
    #[error("the agent did not answer in time")]
    Unanswered,
}

// === impl Handoff ===

impl Handoff {
    /// Registers a service and its proxy: the service first, because the
    /// proxy's alias check needs it. If the proxy is refused, the service is
    /// taken back.
    pub async fn register(
        &self,
        agent: &Agent,
        pair: &Pair,
        deadline: Deadline,
    ) -> Result<Registered, RegisterError> {
        let _lock = self.lock(deadline).await?;
        if self.is_buried() {
            return Ok(Registered::Buried);
        }
        agent.register(&pair.service).await?;
        if let Err(error) = agent.register(&pair.proxy).await {
            if !error.is_transient() {
                let id = pair.service.id();
                match agent.deregister(id).await {
                    Ok(_) => {
                        tracing::info!(service = id, "taken back, because its proxy was refused");
                    }
                    Err(error) => tracing::warn!(service = id, "cannot be taken back: {error}"),
                }
            }
            return Err(RegisterError::Proxy(error));
        }
        // Whoever took it back meanwhile may have lost patience with the lock.
        if self.is_buried() {
            for (id, error) in deregister_both(agent, pair, deadline).await {
                tracing::warn!(service = id, "cannot be taken back: {error}");
            }
            return Ok(Registered::Buried);
        }
        Ok(Registered::Done)
    }

    /// Takes a proxy and its service back, but not for good: the pod may be
    /// registered again.
    pub async fn retract(
        &self,
        agent: &Agent,
        pair: &Pair,
        deadline: Deadline,
    ) -> Result<(), Leftovers> {
        self.take_back(agent, pair, deadline, Vec::new()).await
    }

    /// Takes a proxy and its service back for good. Each step is tried even if
    /// the one before failed, and again until the deadline; what the agent does
    /// not know is gone.
    pub async fn deregister(
        &self,
        agent: &Agent,
        pair: &Pair,
        deadline: Deadline,
    ) -> Result<(), Leftovers> {
        let others = self.bury().err().map(Failure::from).into_iter().collect();
        self.take_back(agent, pair, deadline, others).await
    }

    async fn take_back(
        &self,
        agent: &Agent,
        pair: &Pair,
        deadline: Deadline,
        mut others: Vec<Failure>,
    ) -> Result<(), Leftovers> {
        // A registration under way is waited for, but not until no time is left.
        let lock = self.lock(Deadline::after(deadline.left() / 2)).await;
        let _lock = lock.map_err(|error| others.push(error.into())).ok();
        let services = deregister_both(agent, pair, deadline).await;
        if services.is_empty() && others.is_empty() {
            Ok(())
        } else {
            Err(Leftovers { services, others })
        }
    }
}

/// Deregisters the proxy, then the service, until both are gone; what is left
/// when the deadline passes is returned with its cause.
async fn deregister_both(agent: &Agent, pair: &Pair, deadline: Deadline) -> Vec<(String, Stays)> {
    let mut left = vec![(pair.proxy.id(), None), (pair.service.id(), None)];
    let mut given_up = Vec::new();
    let mut pauses = retry::NODE_AGENT.pauses();
    loop {
        let mut failed = Vec::new();
        let mut remaining = left.len();
        for (id, before) in left {
            // An agent that hangs on one must leave time for the other.
            let share = deadline.left() / u32::try_from(remaining).unwrap_or(1);
            remaining -= 1;
            match gone(agent, id, share).await {
                Ok(()) => tracing::info!(service = id, "deregistered"),
                // A try that was cut short says less than the one before it.
                Err(Stays::Unanswered) => failed.push((id, before.unwrap_or(Stays::Unanswered))),
                Err(error) if error.is_transient() => failed.push((id, error)),
                Err(error) => given_up.push((id.to_owned(), error)),
            }
        }
        if failed.is_empty() {
            return given_up;
        }
        tokio::select! {
            biased;
            () = deadline.passed() => {
                given_up.extend(failed.into_iter().map(|(id, error)| (id.to_owned(), error)));
                return given_up;
            }
            () = tokio::time::sleep(pauses.next().unwrap_or(retry::NODE_AGENT.longest)) => {}
        }
        left = failed.into_iter().map(|(id, error)| (id, Some(error))).collect();
    }
}

/// Deregisters one and makes sure that it is gone: with ACLs, an older agent
/// says that it did without doing it.
async fn gone(agent: &Agent, id: &str, within: Duration) -> Result<(), Stays> {
    let attempt = async {
        agent.deregister(id).await?;
        match agent.service(id, None).await? {
            None => Ok(()),
            Some(_) => Err(Stays::StillThere),
        }
    };
    tokio::time::timeout(within, attempt).await.unwrap_or(Err(Stays::Unanswered))
}

// === impl Leftovers ===

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let services =
            self.services.iter().map(|(id, error)| format!("{id} is left on the agent: {error}"));
        let all: Vec<String> =
            services.chain(self.others.iter().map(ToString::to_string)).collect();
        f.write_str(&all.join("; "))
    }
}

impl std::error::Error for Leftovers {}

impl From<Leftovers> for Failure {
    fn from(leftovers: Leftovers) -> Self {
        let agent = leftovers.services.iter().find_map(|(_, stays)| match stays {
            Stays::Agent(error) => Some(error.exit()),
            Stays::StillThere | Stays::Unanswered => None,
        });
        let other = leftovers.others.first().map(Self::exit);
        Self::new(agent.or(other).unwrap_or(Exit::Deadline), leftovers)
            .hint("what is left becomes critical when its lease runs out, and the agent removes it a minute later")
    }
}

impl From<RegisterError> for Failure {
    fn from(error: RegisterError) -> Self {
        match error {
            RegisterError::Agent(error) => error.into(),
            RegisterError::Proxy(error) => Self::from(error).while_doing("its sidecar proxy"),
            RegisterError::Lock(error) => error.into(),
        }
    }
}

// === impl Stays ===

impl Stays {
    /// Whether trying again may help.
    fn is_transient(&self) -> bool {
        match self {
            Self::Agent(error) => error.is_transient(),
            Self::StillThere | Self::Unanswered => true,
        }
    }
}
