//! What goes wrong, where and how often.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::Request;

/// What is asked of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Any,
    /// A service is registered.
    Register,
    Deregister,
    Service,
    /// A TTL check is set.
    Update,
    /// A central configuration entry is read.
    Config,
    /// The agent is asked for itself.
    AgentSelf,
    /// The agent is asked who leads the servers.
    Leader,
    /// The certificates of Connect's CA are read.
    Roots,
    /// The agent's checks are read.
    Checks,
    /// The servers are asked for a service's instances with their checks.
    Health,
    /// A check is registered by itself.
    RegisterCheck,
    /// A check is deregistered by itself.
    DeregisterCheck,
    /// An ACL token is made by login.
    Login,
    /// The ACL token of the request is deleted.
    Logout,
    /// The ACL token of the request is read.
    TokenSelf,
}

/// A route, perhaps for one service or check only.
#[derive(Clone, Debug)]
pub struct At {
    route: Route,
    id: Option<String>,
}

/// What goes wrong. Where nothing else is said, the request has no effect.
#[derive(Clone, Debug)]
pub enum Fault {
    /// An answer of that status with these words.
    Status(u16, &'static str),
    /// An empty list, because the ACL token may not see what is in it.
    Hidden,
    /// The request is taken and never answered.
    Hang,
    /// It has its effect, and the answer comes after a while.
    Slow(Duration),
    Reset,
    /// It has its effect, but the connection is reset before the answer.
    LostAnswer,
    /// It has its effect, but the connection is reset in the middle of the answer.
    ResetMidAnswer,
    /// It has its effect, but the answer ends before its declared length.
    Truncated,
    /// A page of some other server, with status 200.
    Garbage,
    /// An answer without end, with status 200.
    Huge,
}

/// How often it goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// That often, and then never again.
    N(u32),
    /// Until the faults are healed.
    Always,
}

/// What becomes of a request that is not simply answered.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    /// It goes wrong.
    Fault(Fault),
    /// It waits for the test, and is answered then.
    Hold(Gate),
}

/// Where held requests wait.
#[derive(Clone, Debug)]
pub(crate) struct Gate(pub(crate) Arc<Semaphore>);

/// A fault that is to come.
#[derive(Debug)]
pub(crate) struct Scripted {
    at: At,
    effect: Effect,
    times: Times,
}

// === impl Route ===

impl Route {
    /// Only where it concerns the service or check of that id.
    pub fn of(self, id: &str) -> At {
        At { route: self, id: Some(id.to_owned()) }
    }

    /// What a request asks; none if the agent has no such endpoint.
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
    /// Whether that is what a request asks.
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

    /// Whether it holds requests at that gate.
    pub(crate) fn is_by(&self, gate: &Gate) -> bool {
        matches!(&self.effect, Effect::Hold(own) if Arc::ptr_eq(&own.0, &gate.0))
    }

    /// The first that meets the request. It is used up by it.
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
