//! What the agent has, what it does, and what happens to it.

use lifecycle::keep::Step as KeepStep;
use lifecycle::{Half, Outcome};

use crate::explore::Step;
use crate::pod::{Container, Pod, Sidecar, Tell, Token};
use crate::scene::Scene;

/// What the agent has. One that loses what it is asked may be away for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Agent {
    pub(crate) service: Entry,
    pub(crate) proxy: Entry,
    /// The half that was made with another token than that of now, or both.
    pub(crate) is_old: [bool; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Entry {
    None,
    /// Its lease has run out, or was never renewed.
    Critical,
    Passing,
    /// As others have changed it.
    Changed,
    /// Another pod's, which has the same id.
    Foreign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    Put(Half),
    Delete(Half),
    See(Half),
    Renew(Half),
}

// === impl Pod ===

impl Pod {
    pub(crate) fn happens_to_agent(self, tell: Tell<'_>) {
        let mut step = |what, is_calm, to| tell(Step { who: "agent", what, how: "", is_calm, to });
        match self.variant.scene {
            Scene::Tokens | Scene::EndingTokens => self.tokens_end(&mut step),
            Scene::Restarts => {
                self.restarts(&mut step);
                if self.agent_is_away {
                    return;
                }
            }
            _ => {}
        }
        if self.agent != Agent::new() && !self.variant.scene.is_peaceful() {
            step("loses everything", false, self.having_lost(Agent::new()));
        }
        self.entries_change(&mut step);
        self.late_requests_arrive(tell);
    }

    /// By itself, or by what others do to it.
    fn entries_change(self, step: &mut dyn FnMut(&'static str, bool, Self)) {
        let agent = self.agent;
        let sidecar = match self.container {
            Container::Sidecar(sidecar) => Some(sidecar),
            _ => None,
        };
        let nobody_renews = sidecar.is_none_or(Sidecar::keeps_nothing);
        let is_seen = sidecar.is_some_and(|Sidecar { keeper, .. }| {
            keeper.is_known() && !matches!(keeper.step(), KeepStep::Register(_))
        });
        for half in [Half::Service, Half::Proxy] {
            let having = |entry| Self { agent: agent.with(half, entry), ..self };
            match agent.entry(half) {
                Entry::None | Entry::Foreign => continue,
                Entry::Passing => {
                    step("finds a lease run out", nobody_renews, having(Entry::Critical));
                }
                // It can't tell the servers.
                Entry::Critical | Entry::Changed
                    if self.variant.scene.is_peaceful() && agent.is_old(half) => {}
                Entry::Critical | Entry::Changed => {
                    let removed = self.having_lost(agent.with(half, Entry::None));
                    step("removes an entry", nobody_renews, removed);
                }
            }
            if is_seen && !self.variant.scene.ends_tokens() {
                let changed = self.having_lost(agent.with(half, Entry::Changed));
                step("has an entry changed by others", false, changed);
            }
        }
        if agent.is_foreign() {
            step("loses the other pod", true, Self { agent: Agent::new(), ..self });
        } else if self.variant.scene == Scene::Neighbour && self.is_quiet() {
            let foreign = Self { agent: Agent::foreign(), ..self };
            step("has another pod register with these ids", false, foreign);
        }
    }

    fn late_requests_arrive(self, tell: Tell<'_>) {
        let Some(late) = self.late else { return };
        let mut step =
            |how, to| tell(Step { who: "agent", what: late.name(), how, is_calm: true, to });
        step("never arrives", Self { late: None, ..self });
        if self.is_logged_out {
            // There is no such token.
            return;
        }
        let pod = Self { agent: self.agent.does(late).0, late: None, ..self };
        match late {
            Request::Put(_) => step("arrives late", pod.excused()),
            _ => step("arrives late", pod.having_lost(pod.agent)),
        }
    }

    fn tokens_end(self, step: &mut dyn FnMut(&'static str, bool, Self)) {
        let Container::Sidecar(Sidecar { has_begun: true, .. }) = self.container else { return };
        let gone = Self { token: Token::Gone, agent: self.agent.outdated(), ..self };
        match self.token {
            Token::Good => {
                step("has the token deleted by others", false, gone);
                step("lets the token be about to end", false, Self { token: Token::Due, ..self });
            }
            Token::Due => step("lets the token end", false, gone),
            Token::Gone | Token::Another => {}
        }
    }

    /// With what it had, or without. Those who are connected to it may hear nothing
    /// of it: another has its address, and the connection leads to nobody.
    fn restarts(self, step: &mut dyn FnMut(&'static str, bool, Self)) {
        let Container::Sidecar(Sidecar { has_begun: true, .. }) = self.container else {
            // That init waits for it is shown by requests that are lost.
            if self.agent_is_away {
                step("comes back with what it had", true, Self { agent_is_away: false, ..self });
            }
            return;
        };
        if self.agent_is_away {
            let back = Self { agent_is_away: false, ..self };
            step("comes back with what it had", true, back);
            step("comes back without what it had", false, back.having_lost(Agent::new()));
            return;
        }
        // Its connections end with it, and what is on its way to it.
        let away = Self { agent_is_away: true, is_silent: false, late: None, ..self };
        step("goes away", false, away);
        if !self.is_silent {
            let silent = Self { is_silent: true, ..self };
            step("is not heard on a connection", false, silent);
            let replaced = silent.having_lost(Agent::new());
            step("is replaced by one without what it had", false, Self { late: None, ..replaced });
        }
    }

    /// The agent has something else now, for which the pod may register again.
    fn having_lost(self, agent: Agent) -> Self {
        let has_reason = self.has_reason || self.variant.scene == Scene::Restarts;
        Self { agent, has_reason, ..self }
    }
}

// === impl Agent ===

impl Agent {
    pub(crate) fn new() -> Self {
        Self { service: Entry::None, proxy: Entry::None, is_old: [false; 2] }
    }

    /// What another pod of the same ids has registered.
    fn foreign() -> Self {
        Self { service: Entry::Foreign, proxy: Entry::Foreign, ..Self::new() }
    }

    pub(crate) fn is_foreign(self) -> bool {
        self == Self::foreign()
    }

    /// What is there was made with another token than that of now.
    pub(crate) fn outdated(self) -> Self {
        Self { is_old: [self.service != Entry::None, self.proxy != Entry::None], ..self }
    }

    pub(crate) fn is_old(self, half: Half) -> bool {
        self.is_old[half as usize]
    }

    fn entry(self, half: Half) -> Entry {
        match half {
            Half::Service => self.service,
            Half::Proxy => self.proxy,
        }
    }

    fn with(self, half: Half, entry: Entry) -> Self {
        let [service_is_old, proxy_is_old] = self.is_old;
        let is_there = entry != Entry::None;
        match half {
            Half::Service => {
                Self { service: entry, is_old: [service_is_old && is_there, proxy_is_old], ..self }
            }
            Half::Proxy => {
                Self { proxy: entry, is_old: [service_is_old, proxy_is_old && is_there], ..self }
            }
        }
    }

    /// What a request makes of it, and what it answers.
    pub(crate) fn does(self, request: Request) -> (Self, Outcome) {
        match request {
            Request::Put(half) => {
                (self.with(half, Entry::None).with(half, Entry::Critical), Outcome::Done)
            }
            Request::Delete(half) => (self.with(half, Entry::None), Outcome::Done),
            Request::See(half) => match self.entry(half) {
                Entry::None => (self, Outcome::Missing),
                Entry::Changed => (self, Outcome::Changed),
                Entry::Foreign => (self, Outcome::Foreign),
                Entry::Critical | Entry::Passing => (self, Outcome::Ours),
            },
            Request::Renew(half) => match self.entry(half) {
                Entry::None => (self, Outcome::Missing),
                Entry::Changed | Entry::Foreign => (self, Outcome::Done),
                Entry::Critical | Entry::Passing => {
                    (self.with(half, Entry::Passing), Outcome::Done)
                }
            },
        }
    }
}

// === impl Request ===

impl Request {
    /// Whether it matters when it arrives after its sender is gone.
    pub(crate) fn changes_entries(self) -> bool {
        matches!(self, Self::Put(_) | Self::Delete(_))
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Put(Half::Service) => "register the service",
            Self::Put(Half::Proxy) => "register the proxy",
            Self::Delete(Half::Service) => "deregister the service",
            Self::Delete(Half::Proxy) => "deregister the proxy",
            Self::See(Half::Service) => "see the service",
            Self::See(Half::Proxy) => "see the proxy",
            Self::Renew(Half::Service) => "renew the service's lease",
            Self::Renew(Half::Proxy) => "renew the proxy's lease",
        }
    }
}
