//! A pod, its node's agent, its folder and its processes. The processes take
//! the shipped machines' steps; everything around them goes as it may in a
//! cluster, well or badly.
//!
//! An answer that comes late is not told apart from one that came at once to a
//! process that was slow to go on.
//!
//! What it takes for granted: the kernel gives back a lock when its process
//! ends; one container of the pod runs at a time, and its preStop hook ends with
//! it; the kubelet ends a container whose hook it has begun, and starts another
//! while the pod lives; others change an entry only once it was seen. One abandoned request at a time may still be on its way. With ACLs, others delete a sidecar's token
//! once at most, and the one that init has by login is good; nothing of a pod that
//! is asked to end is shown with them, no late request and no changed entry.

use lifecycle::deregister::Step as DeregisterStep;
use lifecycle::keep::Step as KeepStep;
use lifecycle::register::Ending;
use lifecycle::{Deregister, Half, Keep, Outcome, Register, TakeBack};

use crate::explore::{Step, World};

/// Which protocol: the shipped one, or it without one of its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Variant {
    AsShipped,
    /// Everybody goes on as if they had the lock.
    WithoutLock,
    /// A registration does not look for the tombstone when it is made.
    WithoutSecondLook,
    /// The tombstone is written when everything else is done.
    TombstoneLast,
    /// Only the proxy's entry is looked at.
    ServiceNotWatched,
    /// A registration that failed does not look for the tombstone.
    WithoutLookAfterFailure,
    /// The shipped one, with an ACL token by login.
    WithLogin,
    /// With it: what was made with a token that is gone is made again at once,
    /// but not another time if that fails.
    TriedAnewOnce,
    /// With it: a container that starts takes what is there as made with its token.
    TrustedAtStart,
    /// The shipped one, and another pod that registers with the same ids.
    WithNeighbour,
    /// With it: whatever has the id is taken as ours.
    TakesAllAsOurs,
}

/// A pod and all around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pod {
    variant: Variant,
    is_deleted: bool,
    container: Container,
    agent: Agent,
    /// A request that its sender has given up, but that is still on its way.
    late: Option<Request>,
    tombstone: bool,
    lock: Option<Who>,
    token: Token,
    /// Since the container began: the tombstone could not be written, or a
    /// registration that was given up has arrived. Then the lease has to do.
    is_excused: bool,
    /// Since the container began: a deregistration has begun to send.
    is_taken_back: bool,
    /// Since the container began: a deregistration was done, and no
    /// registration was on its way.
    is_gone: bool,
    wrong: Option<&'static str>,
}

/// Which of the pod's containers runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Container {
    /// None; while the pod lives, the init container is next.
    BeforeInit,
    Init(Init),
    /// None; while the pod lives, the sidecar is next.
    BeforeSidecar,
    Sidecar(Sidecar),
}

/// `connect-lifecycle run`, and the hook in its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Sidecar {
    has_begun: bool,
    keeper: Keeper,
    /// Since SIGTERM.
    ending: Option<Deregister>,
    hook: Option<Deregister>,
    /// The kubelet is about to end it.
    is_doomed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Who {
    Init,
    Keeper,
    Ending,
    Hook,
}

/// All that is in the sidecar's container.
const SIDECAR: [Who; 3] = [Who::Keeper, Who::Ending, Who::Hook];

/// What `connect-init` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Init {
    Prepare,
    Register(Register),
    Provide,
    Retract(Deregister),
    Succeeded,
    Failed,
}

/// What keeps the registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Keeper {
    Keeps(Keep),
    Registers(Keep, Register),
    /// After SIGTERM it only brings a registration to its end.
    Finishes(Register),
    Over,
}

/// What the agent has. One that is away is one that loses what it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Agent {
    service: Entry,
    proxy: Entry,
    /// The half that was made with a token that is gone, or both.
    is_old: [bool; 2],
}

/// The pod's ACL token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Token {
    Good,
    /// Others have deleted it.
    Gone,
    /// Another one was had since the container began.
    Another,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Entry {
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
enum Request {
    Put(Half),
    Delete(Half),
    See(Half),
    Renew(Half),
}

/// What a machine wants done.
enum Act {
    Unbury,
    Lock,
    LookFirst,
    LookAgain(Ending),
    Bury,
    LogIn,
    Ask(Request),
    Watch,
    /// To wait a while; for taking back, there may be no time left for it.
    Pause {
        ends: bool,
    },
    /// To do what does not concern the registration; it may fail.
    Other(&'static str),
    Nothing,
}

/// A machine that is run by a process.
trait Machine: Copy {
    fn act(self) -> Act;
    fn after(self, outcome: Outcome) -> Self;
    /// Whether it keeps the lock, if it has it.
    fn keeps_lock(self) -> bool;
    /// The request that it waits for an answer to.
    fn request(self) -> Option<Request> {
        match self.act() {
            Act::Ask(request) => Some(request),
            _ => None,
        }
    }
    /// As it would be if it forgot what it knows.
    fn forgetful(self) -> Self {
        self
    }
}

type Tell<'a> = &'a mut dyn FnMut(Step<Pod>);

// === impl Pod ===

impl Pod {
    /// A pod that is about to start.
    pub(crate) fn new(variant: Variant) -> Self {
        Self {
            variant,
            is_deleted: false,
            container: Container::BeforeInit,
            agent: Agent::new(),
            late: None,
            tombstone: false,
            lock: None,
            token: Token::Good,
            is_excused: false,
            is_taken_back: false,
            is_gone: false,
            wrong: None,
        }
    }

    /// What the kubelet does, or a user to the pod.
    fn kubelet(self, tell: Tell<'_>) {
        let mut step =
            |what, is_calm, to| tell(Step { who: "kubelet", what, how: "", is_calm, to });
        if !self.is_deleted && !self.variant.is_of_a_pod_that_lives() {
            step("deletes the pod", false, Self { is_deleted: true, ..self });
        }
        match self.container {
            Container::BeforeInit if !self.is_deleted => {
                let init = Init::Prepare;
                step("starts init", true, self.with(Container::Init(init)));
            }
            Container::BeforeSidecar if !self.is_deleted => {
                step("starts the sidecar", true, self.with(Container::Sidecar(Sidecar::new())));
                // That init refuses ids that another pod has is not shown.
                if !self.variant.has_neighbour() {
                    step("makes the sandbox anew", false, self.with(Container::BeforeInit));
                }
            }
            Container::BeforeInit | Container::BeforeSidecar => {}
            Container::Init(init) => {
                for pod in self.without(&[Who::Init], &[init.request()]) {
                    step("kills init", self.is_deleted, pod.with(Container::BeforeInit));
                }
                match init {
                    Init::Succeeded => {
                        step("sees init succeed", true, self.with(Container::BeforeSidecar));
                    }
                    Init::Failed => {
                        step("sees init fail", true, self.with(Container::BeforeInit));
                    }
                    Init::Register(_) | Init::Provide => {
                        let retract = Init::Retract(Deregister::for_now());
                        for pod in self.without(&[Who::Init], &[init.request()]) {
                            let to = pod.with(Container::Init(retract));
                            step("ends init, or its time is over", self.is_deleted, to);
                        }
                    }
                    Init::Prepare | Init::Retract(_) => {}
                }
            }
            Container::Sidecar(_) if self.variant.shows_in_a_pod_that_lives() => {}
            Container::Sidecar(sidecar) => {
                for pod in self.without(&SIDECAR, &sidecar.requests()) {
                    step("kills the sidecar", false, pod.with(Container::BeforeSidecar));
                }
                if self.variant.is_of_a_pod_that_lives() {
                    return;
                }
                let Sidecar { has_begun, keeper, ending, hook, is_doomed } = sidecar;
                if has_begun && !is_doomed && ending.is_none() {
                    let hook = Some(Deregister::for_good());
                    let to = Sidecar { hook, is_doomed: true, ..sidecar };
                    step("starts the hook", self.is_deleted, self.with(Container::Sidecar(to)));
                }
                if let Some(hook) = hook {
                    let to = Sidecar { hook: None, ..sidecar };
                    for pod in self.without(&[Who::Hook], &[hook.request()]) {
                        step("kills the hook", false, pod.with(Container::Sidecar(to)));
                    }
                }
                if has_begun && ending.is_none() {
                    let keeper = keeper.ending();
                    let ending = Some(Deregister::for_good());
                    let to = Sidecar { keeper, ending, is_doomed: true, ..sidecar };
                    let is_calm = is_doomed || self.is_deleted;
                    step("sends SIGTERM", is_calm, self.with(Container::Sidecar(to)));
                }
            }
        }
    }

    /// What the agent does, or happens to it.
    fn agent(self, tell: Tell<'_>) {
        let mut step = |what, is_calm, agent| {
            let to = Self { agent, ..self };
            tell(Step { who: "agent", what, how: "", is_calm, to });
        };
        let agent = self.agent;
        if agent != Agent::new() {
            step("loses everything", false, Agent::new());
        }
        if let Container::Sidecar(Sidecar { has_begun: true, .. }) = self.container
            && self.variant.has_login()
            && self.token == Token::Good
        {
            let to = Self { token: Token::Gone, agent: agent.outdated(), ..self };
            let what = "has the token deleted by others";
            tell(Step { who: "agent", what, how: "", is_calm: false, to });
        }
        let mut step = |what, is_calm, agent| {
            let to = Self { agent, ..self };
            tell(Step { who: "agent", what, how: "", is_calm, to });
        };
        let keeper = match self.container {
            Container::Sidecar(sidecar) => sidecar.keeper,
            _ => Keeper::Over,
        };
        let nobody_renews = matches!(keeper, Keeper::Over | Keeper::Finishes(_));
        for half in [Half::Service, Half::Proxy] {
            match agent.entry(half) {
                Entry::None | Entry::Foreign => {}
                Entry::Passing => {
                    step("finds a lease run out", nobody_renews, agent.with(half, Entry::Critical));
                }
                Entry::Critical | Entry::Changed => {
                    step("removes an entry", nobody_renews, agent.with(half, Entry::None));
                }
            }
            let is_there = !matches!(agent.entry(half), Entry::None | Entry::Foreign);
            let is_known = matches!(keeper, Keeper::Keeps(keep) if keep.is_known());
            if is_known && is_there && !self.variant.has_login() {
                step("has an entry changed by others", false, agent.with(half, Entry::Changed));
            }
        }
        if agent.is_foreign() {
            step("loses the other pod", true, Agent::new());
        } else if self.variant.has_neighbour() && self.is_quiet() {
            step("has another pod register with these ids", false, Agent::foreign());
        }
        if let Some(late) = self.late {
            let mut step = |how, to| {
                tell(Step { who: "agent", what: late.name(), how, is_calm: true, to });
            };
            step("never arrives", Self { late: None, ..self });
            let pod = Self { agent: agent.does(late).0, late: None, ..self };
            let excused = matches!(late, Request::Put(_));
            step("arrives late", if excused { pod.excused() } else { pod });
        }
    }

    fn processes(self, tell: Tell<'_>) {
        match self.container {
            Container::BeforeInit | Container::BeforeSidecar => {}
            Container::Init(init) => {
                self.proceed(Who::Init, init, &|pod, init| pod.with(Container::Init(init)), tell);
            }
            Container::Sidecar(sidecar) if !sidecar.has_begun => {
                let keeper = Keeper::new(self.variant);
                let begun = Sidecar { has_begun: true, keeper, ..sidecar };
                let to = self.unburied().with(Container::Sidecar(begun));
                tell(Step {
                    who: "sidecar",
                    what: "takes the tombstone away",
                    how: "",
                    is_calm: true,
                    to,
                });
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
        match sidecar.ending {
            // With the sidecar go the registration under way and the hook.
            Some(ending) if ending.is_over() => {
                for pod in self.without(&SIDECAR, &sidecar.requests()) {
                    let to = pod.with(Container::BeforeSidecar);
                    tell(Step { who: "sidecar", what: "ends", how: "", is_calm: true, to });
                }
            }
            Some(ending) => {
                let put = |pod: Self, ending: Deregister| {
                    let to = Sidecar { ending: Some(ending), ..sidecar };
                    pod.told(ending).with(Container::Sidecar(to))
                };
                self.proceed(Who::Ending, ending, &put, tell);
            }
            None => {}
        }
    }

    /// Every way in which a process can go on.
    #[expect(clippy::too_many_lines, reason = "a list of acts")]
    fn proceed<M: Machine>(
        self,
        who: Who,
        machine: M,
        put: &dyn Fn(Self, M) -> Self,
        tell: Tell<'_>,
    ) {
        let mut over = |what, how, is_calm, pod: Self, outcome| {
            let mut machine = machine.after(outcome);
            if pod.variant.forgets() && outcome == Outcome::Failed {
                machine = machine.forgetful();
            }
            let mut go_on = |how, machine: M| {
                let pod = if machine.keeps_lock() { pod } else { pod.unlocked(who) };
                tell(Step { who: who.name(), what, how, is_calm, to: put(pod, machine) });
            };
            if let Act::Pause { ends } = machine.act() {
                // Nobody can tell how long it takes, so it is taken in one go.
                go_on(how, machine.after(Outcome::Done));
                if ends {
                    go_on("not done, and no time is left", machine.after(Outcome::Failed));
                }
            } else {
                go_on(how, machine);
            }
        };
        let look = if self.tombstone { Outcome::Buried } else { Outcome::Done };
        let found = if self.tombstone { "found" } else { "not there" };
        let mut request = None;
        match machine.act() {
            Act::Nothing | Act::Pause { .. } => {}
            Act::Unbury => {
                let begun = Self { token: Token::Good, ..self.unburied() };
                over("take the tombstone away", "done", true, begun, Outcome::Done);
            }
            Act::Lock if self.variant == Variant::WithoutLock => {
                over("take the lock", "left out", true, self, Outcome::Done);
            }
            Act::Lock => match self.lock {
                None => {
                    let locked = Self { lock: Some(who), ..self };
                    over("take the lock", "done", true, locked, Outcome::Done);
                }
                Some(_) => over("take the lock", "patience lost", false, self, Outcome::Failed),
            },
            Act::LookFirst => over("look for the tombstone", found, true, self, look),
            Act::LookAgain(ending) if self.variant.does_not_look(ending) => {
                over(
                    "look again for the tombstone",
                    "left out",
                    true,
                    self.registered(),
                    Outcome::Done,
                );
            }
            Act::LookAgain(_) => {
                let pod = if self.tombstone { self } else { self.registered() };
                over("look again for the tombstone", found, true, pod, look);
            }
            Act::Bury => {
                let tombstone = self.variant != Variant::TombstoneLast;
                let buried = Self { tombstone: self.tombstone || tombstone, ..self };
                over("write the tombstone", "done", true, buried, Outcome::Done);
                over("write the tombstone", "cannot", false, self.excused(), Outcome::Failed);
            }
            Act::LogIn => {
                let token = if self.token == Token::Gone { Token::Another } else { self.token };
                over("log in anew", "done", true, Self { token, ..self }, Outcome::Done);
                over("log in anew", "failed", false, self, Outcome::Failed);
            }
            Act::Other(what) => {
                over(what, "done", true, self, Outcome::Done);
                over(what, "failed", false, self, Outcome::Failed);
            }
            Act::Watch => {
                over("wait for a change", "the application changed", false, self, Outcome::Done);
                request = Some(Request::See(Half::Proxy));
            }
            Act::Ask(Request::See(Half::Service))
                if who == Who::Keeper && self.variant == Variant::ServiceNotWatched =>
            {
                over("see the service", "left out", true, self, Outcome::Ours);
            }
            Act::Ask(asked) => request = Some(asked),
        }
        let Some(request) = request else { return };
        let what = request.name();
        over(what, "lost", false, self, Outcome::Failed);
        if self.token == Token::Gone {
            over(what, "no such token", true, self, Outcome::NoToken);
            return;
        }
        if request.changes_entries() {
            over(what, "refused", false, self, Outcome::Refused);
            if self.late.is_none() && !self.variant.has_punctual_requests() {
                let pod = Self { late: Some(request), ..self };
                over(what, "given up, but on its way", false, pod, Outcome::Failed);
            }
        }
        let (agent, outcome) = self.agent.does(request);
        let is_mistaken = self.variant == Variant::TakesAllAsOurs && outcome == Outcome::Foreign;
        let outcome = if is_mistaken { Outcome::Ours } else { outcome };
        let takes_back = matches!((who, request), (Who::Hook | Who::Ending, Request::Delete(_)));
        let is_taken_back = self.is_taken_back || takes_back && !self.is_excused;
        let pod = Self { agent, is_taken_back, ..self };
        let pod = if self.touches_another(who, request) {
            Self { wrong: Some("another pod's entry was touched"), ..pod }
        } else {
            pod
        };
        over(what, "done", true, pod, outcome);
        over(what, "done, but the answer is lost", false, pod, Outcome::Failed);
    }

    /// Whether nobody is about to act on what was seen: nobody can look and act in
    /// one, and a pod that comes between the two is not shown.
    fn is_quiet(self) -> bool {
        let Container::Sidecar(sidecar) = self.container else { return false };
        let Sidecar { has_begun, keeper, ending, hook, .. } = sidecar;
        let Keeper::Keeps(keep) = keeper else { return false };
        has_begun
            && ending.is_none()
            && hook.is_none()
            && self.late.is_none()
            && matches!(keep.step(), KeepStep::Watch | KeepStep::Pause)
    }

    /// Whether a request changes another pod's entry. That init looks first is not shown.
    fn touches_another(self, who: Who, request: Request) -> bool {
        let changes = request.changes_entries() || matches!(request, Request::Renew(_));
        self.agent.is_foreign() && changes && who != Who::Init
    }

    fn with(self, container: Container) -> Self {
        Self { container, ..self }
    }

    fn unlocked(self, who: Who) -> Self {
        Self { lock: self.lock.filter(|holder| *holder != who), ..self }
    }

    /// A container begins.
    fn unburied(self) -> Self {
        Self {
            token: if self.token == Token::Another { Token::Good } else { self.token },
            tombstone: false,
            is_excused: false,
            is_taken_back: false,
            is_gone: false,
            ..self
        }
    }

    /// Nothing is promised any more.
    fn excused(self) -> Self {
        Self { is_excused: true, is_taken_back: false, is_gone: false, ..self }
    }

    /// These processes are gone, with what they sent, but for one request at
    /// most. The kernel has given back their lock.
    fn without(self, who: &[Who], requests: &[Option<Request>]) -> Vec<Self> {
        let pod = Self { lock: self.lock.filter(|holder| !who.contains(holder)), ..self };
        let late = requests.iter().flatten().filter(|request| request.changes_entries());
        let late = late
            .filter(|_| self.late.is_none() && !self.variant.has_punctual_requests())
            .map(|late| Self { late: Some(*late), ..pod });
        [pod].into_iter().chain(late).collect()
    }

    /// A registration ends well.
    fn registered(self) -> Self {
        if self.is_taken_back {
            let wrong = "a registration stands beside a deregistration that began before its end";
            return Self { wrong: Some(wrong), ..self };
        }
        self
    }

    /// A deregistration for good may have ended.
    fn told(self, machine: Deregister) -> Self {
        let DeregisterStep::End { whole } = machine.step() else { return self };
        let tombstone = self.tombstone || self.variant == Variant::TombstoneLast;
        let is_gone = whole && !self.is_excused && !matches!(self.late, Some(Request::Put(_)));
        Self { tombstone, is_gone: self.is_gone || is_gone, ..self }
    }
}

impl World for Pod {
    fn steps(&self, tell: Tell<'_>) {
        self.kubelet(tell);
        self.agent(tell);
        self.processes(tell);
    }

    fn wrong(&self) -> Option<&'static str> {
        if self.is_gone && self.agent != Agent::new() && !self.agent.is_foreign() {
            return Some("what was deregistered came back");
        }
        self.wrong
    }

    /// A pod that lives is registered; of one that is deleted nothing is left.
    fn is_good(&self) -> bool {
        match self.container {
            Container::BeforeInit | Container::BeforeSidecar => {
                self.is_deleted && (self.agent == Agent::new() || self.agent.is_foreign())
            }
            Container::Init(_) => false,
            Container::Sidecar(_) => {
                let right =
                    Agent { service: Entry::Passing, proxy: Entry::Passing, is_old: [false; 2] };
                !self.is_deleted && self.agent == right
            }
        }
    }
}

// === impl Variant ===

impl Variant {
    /// Whether its pod need not be ended to show what is wrong with it.
    fn shows_in_a_pod_that_lives(self) -> bool {
        matches!(self, Self::ServiceNotWatched | Self::TriedAnewOnce)
    }

    /// Whether its pod is never ended: what is made with a token that is gone
    /// matters while the pod lives, and without this there are too many states.
    fn is_of_a_pod_that_lives(self) -> bool {
        self.has_login() || self.shows_in_a_pod_that_lives()
    }

    /// Whether no request arrives after its sender gave up.
    fn has_punctual_requests(self) -> bool {
        self.has_login() || self.has_neighbour()
    }

    fn has_neighbour(self) -> bool {
        matches!(self, Self::WithNeighbour | Self::TakesAllAsOurs)
    }

    fn has_login(self) -> bool {
        matches!(self, Self::WithLogin | Self::TriedAnewOnce | Self::TrustedAtStart)
    }

    /// Whether a sidecar in trouble forgets what it knows.
    fn forgets(self) -> bool {
        self == Self::TriedAnewOnce
    }

    /// Whether a registration that is about to end so does not look for the
    /// tombstone before.
    fn does_not_look(self, ending: Ending) -> bool {
        match self {
            Self::WithoutSecondLook => true,
            Self::WithoutLookAfterFailure => ending == Ending::Failed,
            _ => false,
        }
    }
}

// === impl Sidecar ===

impl Sidecar {
    fn new() -> Self {
        Self { has_begun: false, keeper: Keeper::Over, ending: None, hook: None, is_doomed: false }
    }

    fn requests(&self) -> [Option<Request>; 3] {
        [
            self.keeper.request(),
            self.ending.and_then(Machine::request),
            self.hook.and_then(Machine::request),
        ]
    }
}

// === impl Machine ===

impl Machine for Register {
    fn act(self) -> Act {
        match self {
            Self::Lock => Act::Lock,
            Self::LookFirst => Act::LookFirst,
            Self::LookAgain(ending) => Act::LookAgain(ending),
            Self::Put(half) => Act::Ask(Request::Put(half)),
            Self::Undo => Act::Ask(Request::Delete(Half::Service)),
            Self::TakeBack(step) => take_back(step),
            Self::End(_) => Act::Nothing,
        }
    }

    fn after(self, outcome: Outcome) -> Self {
        self.next(refused(outcome))
    }

    fn keeps_lock(self) -> bool {
        !matches!(self, Self::End(_))
    }
}

impl Machine for Deregister {
    fn act(self) -> Act {
        match self.step() {
            DeregisterStep::Bury => Act::Bury,
            DeregisterStep::Lock => Act::Lock,
            DeregisterStep::TakeBack(step) => take_back(step),
            DeregisterStep::End { .. } => Act::Nothing,
        }
    }

    fn after(self, outcome: Outcome) -> Self {
        self.next(refused(outcome))
    }

    fn keeps_lock(self) -> bool {
        !self.is_over()
    }
}

impl Machine for Keeper {
    fn act(self) -> Act {
        match self {
            Self::Keeps(keep) => match keep.step() {
                KeepStep::Watch => Act::Watch,
                KeepStep::See(half) => Act::Ask(Request::See(half)),
                KeepStep::Look => Act::LookFirst,
                KeepStep::Renew(half) => Act::Ask(Request::Renew(half)),
                KeepStep::Pause => Act::Pause { ends: false },
                KeepStep::LogIn => Act::LogIn,
                KeepStep::Register | KeepStep::End => Act::Nothing,
            },
            Self::Registers(_, register) | Self::Finishes(register) => register.act(),
            Self::Over => Act::Nothing,
        }
    }

    fn after(self, outcome: Outcome) -> Self {
        let keep = match self {
            Self::Keeps(keep) => keep.next(outcome),
            Self::Registers(keep, register) => match register.next(refused(outcome)) {
                Register::End(ending) => keep.next(went(ending)),
                // Whatever comes of it, nothing is kept any more.
                register @ Register::TakeBack(_) => return Self::Finishes(register),
                register => return Self::Registers(keep, register),
            },
            Self::Finishes(register) => match register.next(refused(outcome)) {
                Register::End(_) => return Self::Over,
                register => return Self::Finishes(register),
            },
            Self::Over => return self,
        };
        match keep.step() {
            KeepStep::Register => Self::Registers(keep, Register::begin()),
            KeepStep::End => Self::Over,
            _ => Self::Keeps(keep),
        }
    }

    fn keeps_lock(self) -> bool {
        matches!(self, Self::Registers(..) | Self::Finishes(_))
    }

    fn forgetful(self) -> Self {
        match self {
            Self::Keeps(keep) if keep.step() == KeepStep::Pause => Self::Keeps(Keep::begin()),
            _ => self,
        }
    }
}

/// Who registers or deregisters has no use for another token: it was refused.
fn refused(outcome: Outcome) -> Outcome {
    if outcome == Outcome::NoToken { Outcome::Refused } else { outcome }
}

/// How a registration went, to who keeps it. That there was no token it hears
/// when it looks next.
fn went(ending: Ending) -> Outcome {
    match ending {
        Ending::Done => Outcome::Done,
        Ending::Buried => Outcome::Buried,
        Ending::Failed => Outcome::Failed,
    }
}

impl Machine for Init {
    fn act(self) -> Act {
        match self {
            Self::Prepare => Act::Unbury,
            Self::Register(step) => step.act(),
            Self::Provide => Act::Other("write bootstrap and record"),
            Self::Retract(machine) => machine.act(),
            Self::Succeeded | Self::Failed => Act::Nothing,
        }
    }

    fn after(self, outcome: Outcome) -> Self {
        match self {
            Self::Prepare => Self::Register(Register::begin()),
            Self::Register(step) => match step.next(refused(outcome)) {
                Register::End(Ending::Done) => Self::Provide,
                Register::End(Ending::Failed) => Self::Register(Register::begin()),
                Register::End(Ending::Buried) => Self::Retract(Deregister::for_now()),
                step => Self::Register(step),
            },
            Self::Provide if outcome == Outcome::Done => Self::Succeeded,
            Self::Provide => Self::Retract(Deregister::for_now()),
            Self::Retract(machine) => match machine.next(refused(outcome)) {
                machine if machine.is_over() => Self::Failed,
                machine => Self::Retract(machine),
            },
            Self::Succeeded | Self::Failed => self,
        }
    }

    fn keeps_lock(self) -> bool {
        match self {
            Self::Register(step) => step != Register::begin() && step.keeps_lock(),
            Self::Retract(machine) => machine.keeps_lock(),
            _ => false,
        }
    }
}

impl Keeper {
    fn new(variant: Variant) -> Self {
        let looks_no_further = matches!(variant, Variant::TriedAnewOnce | Variant::TrustedAtStart);
        let is_anew = variant.has_login() && !looks_no_further;
        Self::Keeps(if is_anew { Keep::begin_anew() } else { Keep::begin() })
    }

    fn ending(self) -> Self {
        match self {
            Self::Registers(_, register) | Self::Finishes(register) => Self::Finishes(register),
            Self::Keeps(_) | Self::Over => Self::Over,
        }
    }
}

fn take_back(step: TakeBack) -> Act {
    match step {
        TakeBack::Delete(half, _) => Act::Ask(Request::Delete(half)),
        TakeBack::Look(half, _) | TakeBack::Confirm(half, _) => Act::Ask(Request::See(half)),
        TakeBack::Pause(_) => Act::Pause { ends: true },
        TakeBack::End { .. } => Act::Nothing,
    }
}

// === impl Agent ===

impl Agent {
    fn new() -> Self {
        Self { service: Entry::None, proxy: Entry::None, is_old: [false; 2] }
    }

    /// What another pod of the same ids has registered.
    fn foreign() -> Self {
        Self { service: Entry::Foreign, proxy: Entry::Foreign, ..Self::new() }
    }

    fn is_foreign(self) -> bool {
        self == Self::foreign()
    }

    /// What is there was made with a token that is gone now.
    fn outdated(self) -> Self {
        Self { is_old: [self.service != Entry::None, self.proxy != Entry::None], ..self }
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
    fn does(self, request: Request) -> (Self, Outcome) {
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
    fn changes_entries(self) -> bool {
        matches!(self, Self::Put(_) | Self::Delete(_))
    }

    fn name(self) -> &'static str {
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

// === impl Who ===

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Keeper => "sidecar",
            Self::Ending => "SIGTERM",
            Self::Hook => "hook",
        }
    }
}
