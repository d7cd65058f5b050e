//! Faults: what goes wrong, where and how often.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::request::Request;

/// An endpoint of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Any,
    Register,
    Deregister,
    Service,
    /// Set the status of a TTL check.
    Update,
    /// Read a config entry.
    Config,
    /// Read the agent's description of itself.
    AgentSelf,
    /// Read the servers' leader.
    Leader,
    /// Read the roots of Connect's CA.
    Roots,
    /// Read the agent's checks.
    Checks,
    /// Read a service's instances with their checks.
    Health,
    /// Register a check.
    RegisterCheck,
    /// Deregister a check.
    DeregisterCheck,
    /// Create an ACL token by login.
    Login,
    /// Delete the request's ACL token.
    Logout,
    /// Read the request's ACL token.
    TokenSelf,
}

/// A route, for all services and checks or for one.
#[derive(Clone, Debug)]
pub struct At {
    route: Route,
    id: Option<String>,
}

/// A fault. Unless stated otherwise, the request has no effect.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answers with this status and body.
    Status(u16, &'static str),
    /// Answers with an empty list that the ACL token may not see.
    Hidden,
    /// Accepts the request and never answers.
    Hang,
    /// Takes effect, and answers after a while.
    Slow(Duration),
    Reset,
    /// Takes effect, but resets the connection before the answer.
    LostAnswer,
    /// Takes effect, but resets the connection in the middle of the answer.
    ResetMidAnswer,
    /// Takes effect, but the answer is shorter than its declared length.
    Truncated,
    /// Answers with another server's page and status 200.
    Garbage,
    /// Answers without end and with status 200.
    Huge,
}

/// How often a fault happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// A number of times.
    N(u32),
    /// Until the faults are healed.
    Always,
}

/// What happens to a request that is not answered normally.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    Fault(Fault),
    /// It is held, and answered when the test releases it.
    Hold(Gate),
}

/// Blocks held requests.
#[derive(Clone, Debug)]
pub(crate) struct Gate(pub(crate) Arc<Semaphore>);

/// A scripted fault.
#[derive(Debug)]
pub(crate) struct Scripted {
    at: At,
    effect: Effect,
    times: Times,
}

// === impl Route ===

impl Route {
    /// The same, for the service or check with this id only.
    pub fn of(self, id: &str) -> At {
        At { route: self, id: Some(id.to_owned()) }
    }

    /// The route of a request; `None` if the agent has no such endpoint.
    pub fn asked_by(request: &Request) -> Option<Self> {
        let segments: Vec<&str> = request.path.split('/').skip(1).collect();
        match (request.method.as_str(), segments.as_slice()) {
            ("PUT", ["v1", "agent", "service", "register"]) => Some(Self::Register),
            ("PUT", ["v1", "agent", "service", "deregister", _]) => Some(Self::Deregister),
            ("GET", ["v1", "agent", "service", _]) => Some(Self::Service),
            ("PUT", ["v1", "agent", "check", "update", _]) => Some(Self::Update),
            ("PUT", ["v1", "agent", "check", "register"]) => Some(Self::RegisterCheck),
            ("PUT", ["v1", "agent", "check", "deregister", _]) => Some(Self::DeregisterCheck),
            ("GET", ["v1", "config", _, _]) => Some(Self::Config),
            ("GET", ["v1", "agent", "self"]) => Some(Self::AgentSelf),
            ("GET", ["v1", "status", "leader"]) => Some(Self::Leader),
            ("GET", ["v1", "agent", "connect", "ca", "roots"]) => Some(Self::Roots),
            ("GET", ["v1", "agent", "checks"]) => Some(Self::Checks),
            ("GET", ["v1", "health", "service", _]) => Some(Self::Health),
            ("POST", ["v1", "acl", "login"]) => Some(Self::Login),
            ("POST", ["v1", "acl", "logout"]) => Some(Self::Logout),
            ("GET", ["v1", "acl", "token", "self"]) => Some(Self::TokenSelf),
            _ => None,
        }
    }
}

impl From<Route> for At {
    fn from(route: Route) -> Self {
        Self { route, id: None }
    }
}

// === impl At ===

impl At {
    /// Whether a request matches.
    pub fn is(&self, request: &Request) -> bool {
        (self.route == Route::Any || Route::asked_by(request) == Some(self.route))
            && self.id.as_deref().is_none_or(|id| request.id().as_deref() == Some(id))
    }
}

// === impl Scripted ===

impl Scripted {
    pub(crate) fn new(at: At, effect: Effect, times: Times) -> Self {
        Self { at, effect, times }
    }

    /// Whether it holds requests at this gate.
    pub(crate) fn is_by(&self, gate: &Gate) -> bool {
        matches!(&self.effect, Effect::Hold(own) if Arc::ptr_eq(&own.0, &gate.0))
    }

    /// The first fault that matches the request, which uses it up.
    pub(crate) fn meet(script: &mut Vec<Self>, request: &Request) -> Option<Effect> {
        let place = script.iter().position(|scripted| scripted.at.is(request))?;
        let scripted = &mut script[place];
        let effect = scripted.effect.clone();
        match &mut scripted.times {
            Times::Always => {}
            Times::N(left) => {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    script.remove(place);
                }
            }
        }
        Some(effect)
    }
}
