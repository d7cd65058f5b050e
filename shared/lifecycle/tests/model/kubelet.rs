//! What the kubelet does, or a user to the pod.

use lifecycle::start::Step as StartStep;
use lifecycle::{Deregister, Start};

use crate::explore::Step;
use crate::machine::Machine;
use crate::pod::{Container, Pod, SIDECAR, Sidecar, Tell, Who};
use crate::scene::{Rule, Scene};

// === impl Pod ===

impl Pod {
    pub(crate) fn kubelet(self, tell: Tell<'_>) {
        let scene = self.variant.scene;
        let kills = !matches!(scene, Scene::Hanging | Scene::EndingTokens);
        let mut step =
            |what, is_calm, to| tell(Step { who: "kubelet", what, how: "", is_calm, to });
        if !self.is_deleted && scene.ends() {
            step("deletes the pod", false, Self { is_deleted: true, ..self });
        }
        if self.hangs() && !self.time_is_over {
            step("sees a deadline pass", true, Self { time_is_over: true, ..self });
        }
        match self.container {
            Container::BeforeInit if !self.is_deleted => {
                let is_sent = self.has_file && !self.variant.lacks(Rule::EarlierRunsTakenBack);
                let start = Start::begin(true, is_sent);
                step("starts init", true, self.with(Container::Init(start)));
            }
            Container::BeforeSidecar if !self.is_deleted => {
                step("starts the sidecar", true, self.with(Container::Sidecar(Sidecar::new())));
                // That init refuses ids that another pod has is not shown.
                if scene != Scene::Neighbour {
                    step("recreates the sandbox", false, self.with(Container::BeforeInit));
                }
            }
            Container::BeforeInit | Container::BeforeSidecar => {}
            Container::Init(init) => {
                if kills {
                    for pod in self.without(&[Who::Init], &[init.request()]) {
                        step("kills init", self.is_deleted, pod.with(Container::BeforeInit));
                    }
                }
                match init.step() {
                    StartStep::End { is_provided: true } => {
                        step("sees init succeed", true, self.with(Container::BeforeSidecar));
                        let cut = self.with(Container::Init(init.cut()));
                        step("sees another service of the pod fail", false, cut);
                    }
                    StartStep::End { is_provided: false } => {
                        step("sees init fail", true, self.with(Container::BeforeInit));
                    }
                    StartStep::Unbury | StartStep::TakeBack(_) | StartStep::LogOut(_) => {}
                    _ => {
                        for pod in self.without(&[Who::Init], &[init.request()]) {
                            let to = pod.with(Container::Init(init.cut()));
                            step("ends init, or its time is over", self.is_deleted, to);
                        }
                    }
                }
            }
            Container::Sidecar(sidecar) => {
                if kills {
                    for pod in self.without(&SIDECAR, &sidecar.requests()) {
                        step("kills the sidecar", false, pod.with(Container::BeforeSidecar));
                    }
                }
                if scene.ends() {
                    self.ends_the_sidecar(sidecar, kills, &mut step);
                }
            }
        }
    }

    fn ends_the_sidecar(
        self,
        sidecar: Sidecar,
        kills: bool,
        step: &mut dyn FnMut(&'static str, bool, Self),
    ) {
        let Sidecar { has_begun, keeper, ending, hook, is_doomed } = sidecar;
        if !has_begun {
            // Without a hook and a handler it would be killed.
            if self.is_deleted && !kills {
                step(
                    "ends a sidecar that has not begun",
                    true,
                    self.with(Container::BeforeSidecar),
                );
            }
            return;
        }
        if !is_doomed && ending.is_none() {
            let hook = Some(Deregister::for_good());
            let to = Sidecar { hook, is_doomed: true, ..sidecar };
            step("starts the hook", self.is_deleted, self.with(Container::Sidecar(to)));
        }
        if let Some(hook) = hook
            && kills
        {
            let to = Sidecar { hook: None, ..sidecar };
            for pod in self.without(&[Who::Hook], &[hook.request()]) {
                step("kills the hook", false, pod.with(Container::Sidecar(to)));
            }
        }
        if ending.is_none() {
            let keeper = keeper.stop();
            let ending = if self.variant.lacks(Rule::LoggedInToEnd) {
                Deregister::for_good()
            } else {
                Deregister::for_good_with_login()
            };
            let ending = Some(ending);
            let to = Sidecar { keeper, ending, is_doomed: true, ..sidecar };
            // Whatever else the keeper was doing is cut short.
            let cut = |whose: Who| whose == Who::Keeper && !keeper.keeps_lock();
            let pod = Self { answer: self.answer.filter(|(whose, _)| !cut(*whose)), ..self };
            let is_calm = is_doomed || self.is_deleted;
            step("sends SIGTERM", is_calm, pod.with(Container::Sidecar(to)));
        }
    }
}
