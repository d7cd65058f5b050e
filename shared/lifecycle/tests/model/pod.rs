//! A pod, its node's agent, its directory and its processes, and what must be true of
//! them.
//!
//! What it takes for granted: the kernel gives back a lock when its process ends; one
//! container of the pod runs at a time, and its preStop hook ends with it; the kubelet
//! ends a container whose hook it has begun, and starts another while the pod lives;
//! others change an entry only once it was seen. One abandoned request at a time may
//! still be on its way, and one answer. Others delete a sidecar's token once at most,
//! and the one that init has by login is good.

use lifecycle::deregister::Step as DeregisterStep;
use lifecycle::keep::Step as KeepStep;
use lifecycle::{Deregister, Keep, Outcome, Rest, Start};

use crate::agent::{Agent, Entry, Request};
use crate::explore::{Step, World};
use crate::machine::Machine;
use crate::scene::{Rule, Scene, Variant};

/// A pod and all around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pod {
    pub(crate) variant: Variant,
    pub(crate) is_deleted: bool,
    /// The deadlines of the pod's end have passed.
    pub(crate) time_is_over: bool,
    pub(crate) container: Container,
    pub(crate) agent: Agent,
    /// Nothing listens where the agent was.
    pub(crate) agent_is_away: bool,
    /// The sidecar's connection to the agent is established, and nothing comes
    /// through it.
    pub(crate) is_silent: bool,
    /// A request that its sender has given up, but that is still on its way.
    pub(crate) late: Option<Request>,
    /// An answer that is on its way, and to whom.
    pub(crate) answer: Option<(Who, Outcome)>,
    pub(crate) tombstone: bool,
    pub(crate) lock: Option<Who>,
    pub(crate) token: Token,
    /// A token that was replaced, but not logged out yet.
    pub(crate) has_replaced: bool,
    /// There is a token in its file.
    pub(crate) has_file: bool,
    /// The pod has logged out since its container began.
    pub(crate) is_logged_out: bool,
    /// Since it was registered last, something happened for which it may be
    /// registered again.
    pub(crate) has_reason: bool,
    /// Since the container began: the tombstone could not be written, or a registration
    /// that was given up has arrived. Then the TTL check has to do.
    pub(crate) is_excused: bool,
    /// Since the container began: a deregistration has begun to send.
    pub(crate) is_taken_back: bool,
    /// Since the container began: a deregistration was done, and no
    /// registration was on its way.
    pub(crate) is_gone: bool,
    pub(crate) wrong: Option<&'static str>,
}

/// Which of the pod's containers runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Container {
    /// None; while the pod lives, the init container is next.
    BeforeInit,
    Init(Start),
    /// None; while the pod lives, the sidecar is next.
    BeforeSidecar,
    Sidecar(Sidecar),
}

/// `connect-lifecycle run`, and the hook in its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sidecar {
    pub(crate) has_begun: bool,
    pub(crate) keeper: Keep,
    /// Since SIGTERM.
    pub(crate) ending: Option<Deregister>,
    pub(crate) hook: Option<Deregister>,
    /// The kubelet is about to end it.
    pub(crate) is_doomed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    Init,
    Keeper,
    Ending,
    Hook,
}

/// All that is in the sidecar's container.
pub(crate) const SIDECAR: [Who; 3] = [Who::Keeper, Who::Ending, Who::Hook];

/// The pod's ACL token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Token {
    Good,
    /// It is good, but about to end.
    Due,
    /// It has ended, or others have deleted it.
    Gone,
    /// The token was replaced since the container started.
    Another,
}

pub(crate) type Tell<'a> = &'a mut dyn FnMut(Step<Pod>);

// === impl Pod ===

impl Pod {
    /// A pod that is about to start.
    pub(crate) fn new(variant: Variant) -> Self {
        Self {
            variant,
            is_deleted: false,
            time_is_over: false,
            container: Container::BeforeInit,
            agent: Agent::new(),
            agent_is_away: false,
            is_silent: false,
            late: None,
            answer: None,
            tombstone: false,
            lock: None,
            token: Token::Good,
            has_replaced: false,
            has_file: false,
            is_logged_out: false,
            has_reason: true,
            is_excused: false,
            is_taken_back: false,
            is_gone: false,
            wrong: None,
        }
    }

    /// Whether the agent takes requests and answers none.
    pub(crate) fn hangs(self) -> bool {
        self.variant.scene == Scene::Hanging && self.is_deleted
    }

    /// Whether nobody is about to act on what was seen: nobody can look and act in
    /// one, and a pod that comes between the two is not shown.
    pub(crate) fn is_quiet(self) -> bool {
        let Container::Sidecar(sidecar) = self.container else { return false };
        let Sidecar { has_begun, keeper, ending, hook, .. } = sidecar;
        has_begun
            && ending.is_none()
            && hook.is_none()
            && self.late.is_none()
            && matches!(keeper.step(), KeepStep::Watch | KeepStep::Pause)
    }

    pub(crate) fn with(self, container: Container) -> Self {
        Self { container, ..self }
    }

    pub(crate) fn unlocked(self, who: Who) -> Self {
        Self { lock: self.lock.filter(|holder| *holder != who), ..self }
    }

    /// A container begins.
    pub(crate) fn unburied(self) -> Self {
        Self {
            token: if self.token == Token::Another { Token::Good } else { self.token },
            has_replaced: false,
            is_logged_out: false,
            has_reason: true,
            tombstone: false,
            is_excused: false,
            is_taken_back: false,
            is_gone: false,
            ..self
        }
    }

    /// Nothing is promised any more.
    pub(crate) fn excused(self) -> Self {
        Self { is_excused: true, is_taken_back: false, is_gone: false, ..self }
    }

    /// A deregistration for good sends something.
    pub(crate) fn taken_back(self) -> Self {
        Self { is_taken_back: self.is_taken_back || !self.is_excused, ..self }
    }

    /// The login returned a token.
    pub(crate) fn logged_in(self) -> Self {
        match self.token {
            Token::Gone => Self { token: Token::Another, has_replaced: true, ..self },
            Token::Due => {
                let agent = self.agent.outdated();
                let pod = Self { token: Token::Another, has_replaced: true, agent, ..self };
                let pod = Self { has_reason: true, ..pod };
                if self.variant.lacks(Rule::LoggedOutLast) { pod.logged_out() } else { pod }
            }
            Token::Good | Token::Another => self,
        }
    }

    /// A process that ends has a token that the servers know.
    pub(crate) fn reopened(self) -> Self {
        if self.token == Token::Gone { self.logged_in() } else { self }
    }

    /// The token that was replaced is logged out.
    pub(crate) fn logged_out(self) -> Self {
        let is_used = self.has_replaced && self.agent.is_old != [false; 2];
        let wrong = "a token was logged out with which something is registered";
        Self { has_replaced: false, wrong: self.wrong.or(is_used.then_some(wrong)), ..self }
    }

    /// The pod logs out, if what it was told of its deregistration allows that.
    pub(crate) fn closed(self, rest: Rest) -> Self {
        let is_unused = rest.unused().is_some() || self.variant.lacks(Rule::LoggedOutWhenUnused);
        let logs_out = is_unused && self.has_file;
        Self { is_logged_out: logs_out, has_file: self.has_file && !logs_out, ..self }
    }

    /// These processes are gone, with what they sent, but for one request at most. The
    /// kernel has released their lock.
    pub(crate) fn without(self, who: &[Who], requests: &[Option<Request>]) -> Vec<Self> {
        let pod = Self {
            lock: self.lock.filter(|holder| !who.contains(holder)),
            answer: self.answer.filter(|(whose, _)| !who.contains(whose)),
            is_silent: self.is_silent && !who.contains(&Who::Keeper),
            ..self
        };
        let late = requests.iter().flatten().filter(|request| request.changes_entries());
        let late = late
            .filter(|_| {
                self.late.is_none() && self.variant.scene.has_late_requests() && !self.agent_is_away
            })
            .map(|late| Self { late: Some(*late), ..pod });
        [pod].into_iter().chain(late).collect()
    }

    /// A registration ends well.
    pub(crate) fn registered(self) -> Self {
        if self.is_taken_back {
            let wrong = "a registration stands beside a deregistration that began before its end";
            return Self { wrong: Some(wrong), ..self };
        }
        self
    }

    /// A registration begins.
    pub(crate) fn registers(self) -> Self {
        if self.variant.scene == Scene::Restarts && !self.has_reason {
            let wrong = "it is registered again, but nothing was lost or changed";
            return Self { wrong: Some(wrong), ..self };
        }
        self
    }

    /// A deregistration for good may have ended.
    pub(crate) fn told(self, machine: Deregister) -> Self {
        let DeregisterStep::End { whole, .. } = machine.step() else { return self };
        let tombstone = self.tombstone || self.variant.lacks(Rule::TombstoneFirst);
        let is_gone = whole && !self.is_excused && !matches!(self.late, Some(Request::Put(_)));
        Self { tombstone, is_gone: self.is_gone || is_gone, ..self }
    }
}

impl World for Pod {
    fn steps(&self, tell: Tell<'_>) {
        self.kubelet(tell);
        self.happens_to_agent(tell);
        self.processes(tell);
    }

    fn wrong(&self) -> Option<&'static str> {
        if self.is_gone && self.agent != Agent::new() && !self.agent.is_foreign() {
            return Some("what was deregistered came back");
        }
        // A registration that was given up may arrive at any time.
        let is_excused = self.is_excused && self.variant.scene.has_late_requests();
        let is_there = self.agent != Agent::new() && !self.agent.is_foreign();
        if self.is_logged_out && is_there && !is_excused {
            return Some("an entry is on the agent whose token the pod has logged out");
        }
        self.wrong
    }

    /// A pod that lives is registered, with a token that lasts; of one that is
    /// deleted nothing is left.
    fn is_good(&self) -> bool {
        match self.container {
            Container::BeforeInit | Container::BeforeSidecar => {
                self.is_deleted && (self.agent == Agent::new() || self.agent.is_foreign())
            }
            Container::Init(_) => false,
            Container::Sidecar(_) => {
                let right =
                    Agent { service: Entry::Passing, proxy: Entry::Passing, is_old: [false; 2] };
                !self.is_deleted && self.agent == right && self.token != Token::Due
            }
        }
    }
}

// === impl Sidecar ===

impl Sidecar {
    pub(crate) fn new() -> Self {
        let keeper = Keep::begin().stop();
        Self { has_begun: false, keeper, ending: None, hook: None, is_doomed: false }
    }

    /// Whether nobody keeps the registration any more.
    pub(crate) fn keeps_nothing(self) -> bool {
        self.ending.is_some() || self.keeper.step() == KeepStep::End
    }

    pub(crate) fn requests(&self) -> [Option<Request>; 3] {
        [
            self.keeper.request(),
            self.ending.and_then(Machine::request),
            self.hook.and_then(Machine::request),
        ]
    }
}

// === impl Who ===

impl Who {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Keeper => "sidecar",
            Self::Ending => "SIGTERM",
            Self::Hook => "hook",
        }
    }
}
