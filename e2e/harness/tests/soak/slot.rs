//! Runs one pod at a time, and picks a fault for each round.

use fastrand::Rng;

use crate::pod::{Dead, Ground, Identity, Pod, pause};

/// Runs one pod at a time. Its seed decides what happens.
pub(crate) struct Slot {
    number: u32,
    ground: Ground,
    rng: Rng,
    pod: Option<Pod>,
    lives: u32,
}

/// Result of a round.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) what: &'static str,
    /// The pod that ended.
    pub(crate) dead: Option<Dead>,
    /// The living pod, and its log.
    pub(crate) living: Option<(Identity, String)>,
}

// === impl Slot ===

impl Slot {
    pub(crate) fn new(number: u32, ground: Ground, seed: u64) -> Self {
        let rng = Rng::with_seed(seed.wrapping_add(u64::from(number) + 1));
        Self { number, ground, rng, pod: None, lives: 0 }
    }

    /// Runs a round.
    pub(crate) fn round(&mut self) -> Round {
        let (what, dead) = match self.pod.take() {
            None => {
                self.begin();
                ("starts", None)
            }
            Some(pod) => self.live(pod),
        };
        if self.pod.is_none() && self.rng.bool() {
            self.begin();
        }
        let living = self.pod.as_ref().map(|pod| (pod.who.clone(), pod.log()));
        Round { what, dead, living }
    }

    /// Terminates the pod as a kubelet does, if there is one.
    pub(crate) fn end(&mut self) -> Round {
        let dead = self.pod.take().map(|mut pod| {
            pod.hook();
            pod.terminate();
            let is_clean = pod.await_end();
            pod.dead(is_clean)
        });
        Round { what: "ends", dead, living: None }
    }

    /// Starts a pod. A StatefulSet's pod comes back under its name, others get a new one.
    fn begin(&mut self) {
        self.lives += 1;
        let Self { number, lives, .. } = self;
        let comes_back = self.rng.bool();
        let who = Identity {
            name: if comes_back { format!("p{number}") } else { format!("p{number}-{lives}") },
            ip: format!("10.98.{}.{}", number, 1 + *lives % 250),
            uid: format!("uid-{number}-{lives}-"),
        };
        self.pod = Some(Pod::start(&self.ground, who, &mut self.rng));
    }

    fn live(&mut self, mut pod: Pod) -> (&'static str, Option<Dead>) {
        let rng = &mut self.rng;
        let (what, is_clean) = match rng.u8(0..11) {
            0 => ("rests", None),
            1 => {
                pod.hook();
                pod.terminate();
                ("preStop, SIGTERM", Some(pod.await_end()))
            }
            2 => {
                pod.terminate();
                ("SIGTERM", Some(pod.await_end()))
            }
            3 => {
                pod.start_hook();
                pause(rng, 60);
                pod.terminate();
                ("preStop and SIGTERM", Some(pod.await_end()))
            }
            4 => {
                pod.start_hook();
                pause(rng, 60);
                pod.kill_hook();
                pod.terminate();
                ("preStop killed, SIGTERM", Some(pod.await_end()))
            }
            5 => {
                pod.kill();
                ("SIGKILL", Some(false))
            }
            6 => {
                pod.terminate();
                pause(rng, 60);
                pod.kill();
                ("SIGTERM, SIGKILL", Some(false))
            }
            7 => {
                pod.start_hook();
                pause(rng, 60);
                pod.kill();
                ("preStop, SIGKILL of all", Some(false))
            }
            8 => {
                pod.kill();
                pod.restart();
                ("SIGKILL, container restarts", None)
            }
            9 => {
                pod.hook();
                pod.terminate();
                pod.await_end();
                pod.restart();
                ("preStop, SIGTERM, container restarts", None)
            }
            _ => {
                pod.kill();
                pod.restart_from_init(rng);
                ("SIGKILL, sandbox is recreated", None)
            }
        };
        let Some(is_clean) = is_clean else {
            self.pod = Some(pod);
            return (what, None);
        };
        (what, Some(pod.dead(is_clean)))
    }
}
