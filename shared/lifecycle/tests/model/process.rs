//! What the pod's processes do, and every way in which an act can go.

use lifecycle::deregister::Step as DeregisterStep;
use lifecycle::register::Ending;
use lifecycle::{Deregister, Half, Keep, Outcome};

use crate::agent::{Agent, Request};
use crate::explore::Step;
use crate::machine::{Act, Machine};
use crate::pod::{Container, Pod, SIDECAR, Sidecar, Tell, Token, Who};
use crate::scene::{Rule, Scene, Variant};

/// A process that takes a step: how the act went, and what follows from it.
struct Turn<'a, M> {
    who: Who,
    machine: M,
    put: &'a dyn Fn(Pod, M) -> Pod,
    tell: Tell<'a>,
}

// === impl Pod ===

impl Pod {
    pub(crate) fn processes(self, tell: Tell<'_>) {
        match self.container {
            Container::BeforeInit | Container::BeforeSidecar => {}
            Container::Init(init) => {
                self.proceed(Who::Init, init, &|pod, init| pod.with(Container::Init(init)), tell);
            }
            Container::Sidecar(sidecar) if !sidecar.has_begun => {
                let begun = Sidecar { has_begun: true, keeper: keeper(self.variant), ..sidecar };
                let to = Self { has_file: true, ..self.unburied() };
                let to = to.with(Container::Sidecar(begun));
                let what = "takes the tombstone away";
                tell(Step { who: "sidecar", what, how: "", is_calm: true, to });
            }
            Container::Sidecar(sidecar) => self.sidecar(sidecar, tell),
        }
    }

    fn sidecar(self, sidecar: Sidecar, tell: Tell<'_>) {
        let put = |pod: Self, keeper| pod.with(Container::Sidecar(Sidecar { keeper, ..sidecar }));
        self.proceed(Who::Keeper, sidecar.keeper, &put, tell);
        if let Some(hook) = sidecar.hook {
            let put = |pod: Self, hook: Deregister| {
                let hook_runs = Some(hook).filter(|hook| !hook.is_over());
                let to = Sidecar { hook: hook_runs, ..sidecar };
                pod.told(hook).with(Container::Sidecar(to))
            };
            self.proceed(Who::Hook, hook, &put, tell);
        }
        if let Some(ending) = sidecar.ending {
            // With the sidecar go the registration under way and the hook.
            if let DeregisterStep::End { rest, .. } = ending.step() {
                for pod in self.without(&SIDECAR, &sidecar.requests()) {
                    let to = pod.closed(rest).with(Container::BeforeSidecar);
                    let what = "logs out, or not, and ends";
                    tell(Step { who: "sidecar", what, how: "", is_calm: true, to });
                }
                return;
            }
            let put = |pod: Self, ending: Deregister| {
                let to = Sidecar { ending: Some(ending), ..sidecar };
                pod.told(ending).with(Container::Sidecar(to))
            };
            self.proceed(Who::Ending, ending, &put, tell);
        }
    }

    /// Every way in which a process can go on.
    fn proceed<M: Machine>(
        self,
        who: Who,
        machine: M,
        put: &dyn Fn(Self, M) -> Self,
        tell: Tell<'_>,
    ) {
        let turn = &mut Turn { who, machine, put, tell };
        if let Some((whose, outcome)) = self.answer
            && whose == who
        {
            let pod = Self { answer: None, ..self };
            if matches!(machine.act(), Act::Ask(_) | Act::Watch) {
                turn.goes("hear the answer", "late", true, pod, outcome);
                turn.gives_up("hear the answer", "given up", pod);
                return;
            }
        }
        let rule_is_left_out = |rule| self.variant.lacks(rule);
        let look = if self.tombstone { Outcome::Buried } else { Outcome::Done };
        let found = if self.tombstone { "found" } else { "not there" };
        match machine.act() {
            Act::Nothing | Act::Pause { .. } => {}
            Act::Unbury => {
                // What has arrived late with an earlier token is still there.
                let is_excused = self.is_excused && self.agent != Agent::new();
                let begun = Self { token: Token::Good, is_excused, ..self.unburied() };
                turn.goes("take the tombstone away", "done", true, begun, Outcome::Done);
            }
            Act::Open => {
                let opened = Self { has_file: true, ..self };
                turn.goes("log in", "done", true, opened, Outcome::Done);
                turn.goes("log in", "failed", false, self, Outcome::Failed);
            }
            Act::Lock => self.takes_lock(turn),
            Act::LookFirst => turn.goes("look for the tombstone", found, true, self, look),
            Act::LookAgain(ending)
                if rule_is_left_out(Rule::SecondLook)
                    || rule_is_left_out(Rule::LookAfterFailure) && ending == Ending::Failed =>
            {
                let what = "look again for the tombstone";
                turn.goes(what, "left out", true, self.registered(), Outcome::Done);
            }
            Act::LookAgain(_) => {
                let pod = if self.tombstone { self } else { self.registered() };
                turn.goes("look again for the tombstone", found, true, pod, look);
            }
            Act::Bury => {
                let what = "write the tombstone";
                let tombstone = self.tombstone || !rule_is_left_out(Rule::TombstoneFirst);
                turn.goes(what, "done", true, Self { tombstone, ..self }, Outcome::Done);
                turn.goes(what, "cannot", false, self.excused(), Outcome::Failed);
            }
            Act::Reopen => {
                turn.goes("log in to end", "done", true, self.reopened(), Outcome::Done);
                if !self.variant.scene.is_peaceful() {
                    turn.goes("log in to end", "failed", false, self, Outcome::Failed);
                }
            }
            Act::LogIn => {
                turn.goes("log in again", "done", true, self.logged_in(), Outcome::Done);
                turn.goes("log in again", "failed", false, self, Outcome::Failed);
            }
            Act::LogOut => {
                let what = "log out the replaced token";
                turn.goes(what, "done", true, self.logged_out(), Outcome::Done);
                if self.has_replaced {
                    let left = Self { has_replaced: false, ..self };
                    turn.goes(what, "failed", false, left, Outcome::Failed);
                }
            }
            Act::Close(rest) => {
                turn.goes("log out", "done", true, self.closed(rest), Outcome::Done);
                turn.goes("log out", "failed", false, self, Outcome::Failed);
            }
            Act::Other(what) => {
                turn.goes(what, "done", true, self, Outcome::Done);
                turn.goes(what, "failed", false, self, Outcome::Failed);
            }
            Act::Watch => {
                let what = "wait for a change";
                turn.goes(what, "the application changed", false, self, Outcome::Done);
                if self.token == Token::Due && !rule_is_left_out(Rule::ReplacedAhead) {
                    turn.goes(what, "the token is about to end", true, self, Outcome::NoToken);
                }
                self.asks(turn, Request::See(Half::Proxy));
            }
            Act::Ask(Request::See(Half::Service))
                if who == Who::Keeper && rule_is_left_out(Rule::ServiceWatched) =>
            {
                turn.goes("see the service", "left out", true, self, Outcome::Ours);
            }
            Act::Ask(request @ Request::Put(_))
                if machine.takes_back() && rule_is_left_out(Rule::RegisteredToDeregister) =>
            {
                turn.goes(request.name(), "left out", true, self, Outcome::Done);
            }
            Act::Ask(request) => self.asks(turn, request),
        }
    }

    fn takes_lock<M: Machine>(self, turn: &mut Turn<'_, M>) {
        let what = "take the lock";
        let pod = if turn.who == Who::Keeper { self.registers() } else { self };
        match self.lock {
            _ if self.variant.lacks(Rule::Lock) => {
                turn.goes(what, "left out", true, pod, Outcome::Done);
            }
            None => {
                let locked = Self { lock: Some(turn.who), ..pod };
                turn.goes(what, "done", true, locked, Outcome::Done);
            }
            Some(_) if self.variant.scene.is_peaceful() => {}
            Some(_) => turn.goes(what, "patience lost", self.hangs(), self, Outcome::Failed),
        }
    }

    /// A request to the agent. With a blocking query it is the same.
    fn asks<M: Machine>(self, turn: &mut Turn<'_, M>, request: Request) {
        let what = request.name();
        if self.hangs() || self.agent_is_away {
            let how = if self.agent_is_away { "refused by nobody" } else { "no answer in time" };
            turn.goes(what, how, true, self, Outcome::Failed);
            return;
        }
        if self.is_silent && turn.who == Who::Keeper {
            if !self.variant.lacks(Rule::Patience) {
                let again = Self { is_silent: false, ..self };
                turn.goes(what, "no answer in time", true, again, Outcome::Failed);
            }
            return;
        }
        let is_punctual = self.variant.scene == Scene::LateAnswers;
        let is_peaceful = self.variant.scene.is_peaceful();
        if !is_punctual {
            turn.goes(what, "lost", false, self, Outcome::Failed);
        }
        let is_hook_outdated = turn.who == Who::Hook && self.token == Token::Another;
        if self.token == Token::Gone || is_hook_outdated {
            turn.goes(what, "no such token", true, self, Outcome::NoToken);
            return;
        }
        if request.changes_entries() && !is_punctual && !is_peaceful {
            turn.goes(what, "refused", false, self, Outcome::Refused);
            if self.late.is_none() && self.variant.scene.has_late_requests() {
                let pod = Self { late: Some(request), ..self };
                turn.goes(what, "given up, but on its way", false, pod, Outcome::Failed);
            }
        }
        let (agent, outcome) = self.agent.does(request);
        let is_mistaken = self.variant.lacks(Rule::OwnersCompared) && outcome == Outcome::Foreign;
        let outcome = if is_mistaken { Outcome::Ours } else { outcome };
        let pod = Self { agent, ..self };
        // `run` has replaced the token with which it was registered.
        let is_outdated = turn.who != Who::Hook
            && turn.machine.takes_back()
            && self.has_replaced
            && matches!(outcome, Outcome::Ours | Outcome::Changed);
        let outcome = if is_outdated { Outcome::Outdated } else { outcome };
        let pod = match (turn.who, request) {
            _ if self.hides_end(request) => {
                let wrong = "the servers go on listing what was deregistered";
                Self { wrong: Some(wrong), ..pod }
            }
            (Who::Hook | Who::Ending, Request::Delete(_)) => pod.taken_back(),
            _ if self.touches_another(turn.who, request) => {
                Self { wrong: Some("another pod's entry was touched"), ..pod }
            }
            _ => pod,
        };
        turn.goes(what, "done", true, pod, outcome);
        if self.variant.scene == Scene::LateAnswers && self.answer.is_none() {
            let pod = Self { answer: Some((turn.who, outcome)), ..pod };
            turn.waits(what, "done, and the answer is on its way", pod);
        } else {
            turn.goes(what, "done, but the answer is lost", false, pod, Outcome::Failed);
        }
    }

    /// Whether the agent deregisters an entry and can't tell the servers, because they do
    /// not know the token with which it was registered.
    fn hides_end(self, request: Request) -> bool {
        let Request::Delete(half) = request else { return false };
        self.variant.scene.is_peaceful() && self.agent.is_old(half)
    }

    /// Whether a request changes another pod's entry. That init looks first is not shown.
    fn touches_another(self, who: Who, request: Request) -> bool {
        let changes = request.changes_entries() || matches!(request, Request::Renew(_));
        self.agent.is_foreign() && changes && who != Who::Init
    }
}

/// What keeps the registration when a container begins, as `run` begins it.
fn keeper(variant: Variant) -> Keep {
    if variant.scene.ends_tokens() && !variant.lacks(Rule::NothingTrustedAtStart) {
        Keep::begin_with_registration_due()
    } else {
        Keep::begin()
    }
}

// === impl Turn ===

impl<M: Machine> Turn<'_, M> {
    /// The act went so, and left the pod like this.
    fn goes(
        &mut self,
        what: &'static str,
        how: &'static str,
        is_calm: bool,
        pod: Pod,
        outcome: Outcome,
    ) {
        let mut machine = self.machine.after(outcome);
        if outcome == Outcome::Failed && pod.variant.lacks(Rule::TriedUntilDone) {
            machine = machine.forgetful();
        }
        if outcome == Outcome::Failed && pod.variant.lacks(Rule::SeenBeforeRegistered) {
            machine = machine.hasty();
        }
        let pod = self.reasons(pod, outcome);
        let Act::Pause { ends } = machine.act() else {
            return self.goes_on(what, how, is_calm, pod, machine);
        };
        // Nobody can tell how long it takes, so it is taken in one go.
        let must_end = ends && pod.time_is_over && !pod.variant.lacks(Rule::Deadline);
        if !must_end {
            self.goes_on(what, how, is_calm, pod, machine.after(Outcome::Done));
        }
        let never_ends = matches!(pod.variant.scene, Scene::Hanging | Scene::EndingTokens);
        if must_end || ends && !never_ends {
            let how = "not done, and no time is left";
            self.goes_on(what, how, is_calm, pod, machine.after(Outcome::Failed));
        }
    }

    /// The answer did not come in time.
    fn gives_up(&mut self, what: &'static str, how: &'static str, pod: Pod) {
        if pod.variant.lacks(Rule::GivenUpMayHaveArrived) {
            self.goes_on(what, how, false, pod, self.machine.after_given_up());
        } else {
            self.goes(what, how, false, pod, Outcome::Failed);
        }
    }

    /// A registration that is done needs another reason for the next; one that
    /// failed does not.
    fn reasons(&self, pod: Pod, outcome: Outcome) -> Pod {
        if self.who != Who::Keeper || pod.variant.scene != Scene::Restarts {
            return pod;
        }
        let registers = self.machine.keeps_lock();
        let has_reason = match (self.machine.act(), outcome) {
            (Act::Lock, Outcome::Done) => false,
            (_, Outcome::Failed | Outcome::Refused) if registers => true,
            _ => pod.has_reason,
        };
        Pod { has_reason, ..pod }
    }

    fn goes_on(
        &mut self,
        what: &'static str,
        how: &'static str,
        is_calm: bool,
        pod: Pod,
        machine: M,
    ) {
        let pod = if machine.keeps_lock() { pod } else { pod.unlocked(self.who) };
        let to = (self.put)(pod, machine);
        (self.tell)(Step { who: self.who.name(), what, how, is_calm, to });
    }

    /// The act is done, but nobody has heard of it yet.
    fn waits(&mut self, what: &'static str, how: &'static str, pod: Pod) {
        let to = (self.put)(pod, self.machine);
        (self.tell)(Step { who: self.who.name(), what, how, is_calm: false, to });
    }
}
