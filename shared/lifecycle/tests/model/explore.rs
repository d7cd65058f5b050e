//! Every state that a world can come to, breadth first, and what is true of all
//! of them.
//!
//! Written here because what is to be shown of the end of things is more than a
//! model checker's "eventually": from every state, whatever happened before, a
//! world left in peace comes to a good state and stays in good ones.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::{Debug, Write as _};
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// Something that goes from state to state.
pub(crate) trait World: Copy + Eq + Hash + Debug {
    /// Tells each step that can be taken from here.
    fn steps(&self, tell: &mut dyn FnMut(Step<Self>));

    /// What must never be, but is.
    fn wrong(&self) -> Option<&'static str>;

    /// Whether it is as it should be in the end.
    fn is_good(&self) -> bool;
}

/// A step from one state to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step<W> {
    pub(crate) who: &'static str,
    pub(crate) what: &'static str,
    pub(crate) how: &'static str,
    /// Whether it happens in peace, too; otherwise it is a fault.
    pub(crate) is_calm: bool,
    pub(crate) to: W,
}

#[derive(Debug)]
pub(crate) struct Space<W> {
    states: Vec<W>,
    /// By which state each was found first.
    found_by: Vec<u32>,
    /// From where calm steps lead to a state: those of state N are between the Nth and
    /// the next of the bounds.
    calm: Vec<u32>,
    bounds: Vec<u32>,
    pub(crate) steps: usize,
}

/// Millions of states are looked up, none of them hostile. They are made of flags and
/// small enums: a byte of each is taken, and eight of them are mixed at once.
#[derive(Default)]
struct Quick {
    mixed: u64,
    bytes: u64,
    count: u32,
}

impl<W: World> Space<W> {
    /// Finds all states.
    ///
    /// # Errors
    /// One in which something is wrong, with the shortest way to it.
    pub(crate) fn explore(begin: W) -> Result<Self, String> {
        let (calm, bounds) = (Vec::new(), Vec::new());
        let mut space = Self { states: vec![begin], found_by: vec![0], calm, bounds, steps: 0 };
        let mut calm: Vec<(u32, u32)> = Vec::new();
        let mut numbers = HashMap::<W, u32, BuildHasherDefault<Quick>>::default();
        numbers.insert(begin, 0);
        let mut here = 0;
        while let Some(state) = space.states.get(here as usize).copied() {
            if let Some(wrong) = state.wrong() {
                return Err(format!("{wrong}:\n{}", space.way_to(here)));
            }
            state.steps(&mut |step| {
                space.steps += 1;
                if step.to == state {
                    return;
                }
                let there = match numbers.entry(step.to) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(new) => {
                        space.states.push(step.to);
                        space.found_by.push(here);
                        *new.insert(u32::try_from(space.states.len() - 1).expect("fewer states"))
                    }
                };
                if step.is_calm {
                    calm.push((there, here));
                }
            });
            here += 1;
        }
        space.index(&calm);
        Ok(space)
    }

    /// Notes the calm steps, each as where it leads to and from where.
    fn index(&mut self, steps: &[(u32, u32)]) {
        self.bounds = vec![0; self.states.len() + 1];
        for (to, _) in steps {
            self.bounds[*to as usize + 1] += 1;
        }
        for state in 0..self.states.len() {
            self.bounds[state + 1] += self.bounds[state];
        }
        let mut free = self.bounds.clone();
        self.calm = vec![0; steps.len()];
        for (to, from) in steps {
            let free = &mut free[*to as usize];
            self.calm[*free as usize] = *from;
            *free += 1;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.states.len()
    }

    /// From every state a world left in peace comes to a good state, and all
    /// that follow are good.
    ///
    /// # Errors
    /// One from which it does not, with the shortest way to it.
    pub(crate) fn ends_well(&self) -> Result<(), String> {
        let is_good: Vec<bool> = self.states.iter().map(World::is_good).collect();
        let unsettled = self.come_to(is_good.iter().map(|is_good| !is_good).collect());
        let ends_well = self.come_to(unsettled.iter().map(|unsettled| !unsettled).collect());
        match (0..).zip(ends_well).find(|(_, ends_well)| !ends_well) {
            None => Ok(()),
            Some((state, _)) => Err(format!(
                "left in peace from here, it does not end well:\n{}",
                self.way_to(state)
            )),
        }
    }

    /// These states, and all from which calm steps can lead to one of them.
    fn come_to(&self, mut these: Vec<bool>) -> Vec<bool> {
        let mut open: Vec<u32> =
            (0..).zip(&these).filter(|(_, is_one)| **is_one).map(|(state, _)| state).collect();
        while let Some(state) = open.pop() {
            let [begin, end] = [state, state + 1].map(|state| self.bounds[state as usize] as usize);
            for from in &self.calm[begin..end] {
                if !std::mem::replace(&mut these[*from as usize], true) {
                    open.push(*from);
                }
            }
        }
        these
    }

    /// The steps that lead to a state, one a line, and the state.
    fn way_to(&self, state: u32) -> String {
        let mut way = vec![state];
        while way[way.len() - 1] != 0 {
            way.push(self.found_by[way[way.len() - 1] as usize]);
        }
        way.reverse();
        let way: Vec<W> = way.into_iter().map(|state| self.states[state as usize]).collect();
        let mut text = String::new();
        for (number, pair) in way.windows(2).enumerate() {
            let mut taken = None;
            pair[0].steps(&mut |step| {
                if step.to == pair[1] && taken.is_none() {
                    taken = Some(step);
                }
            });
            let Step { who, what, how, .. } = taken.expect("a state was found by a step");
            let _ = writeln!(text, "{:4}. {who:10} {what:34} {how}", number + 1);
        }
        let _ = write!(text, "      {:?}", way[way.len() - 1]);
        text
    }
}

impl Quick {
    fn mix(&mut self) {
        self.mixed = (self.mixed.rotate_left(5) ^ self.bytes).wrapping_mul(0x517c_c1b7_2722_0a95);
        (self.bytes, self.count) = (0, 0);
    }
}

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u8(*byte);
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.bytes = self.bytes << 8 | u64::from(value);
        self.count += 1;
        if self.count == 8 {
            self.mix();
        }
    }

    /// The variant of an enum.
    fn write_isize(&mut self, value: isize) {
        self.write_u8(value.to_le_bytes()[0]);
    }

    fn finish(&self) -> u64 {
        let mut last = Self { ..*self };
        last.mix();
        // The table goes by the lowest bits, a product is mixed in its highest.
        last.mixed.rotate_left(26)
    }
}
