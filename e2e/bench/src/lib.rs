//! What the binaries cost, measured: `scripts/bench`.
//!
//! Everything is a comparison in one run: ours, then what a user would pick
//! instead (the peer), then the least that it can cost (the floor), in
//! alternation, so that a busy machine is equally busy for all. Medians are
//! compared; nothing is asserted.
//!
//! - [`figure`]: a figure with its spread, a row of figures with its budget
//! - [`compare`]: a run against one that was stored
//! - [`command`]: commands that are measured as whole processes
//! - [`process`]: what a process that runs has taken so far
//! - [`start`]: the pod's start
//! - [`end`]: the pod's end
//! - [`footprint`]: bytes, and a helper at rest
//! - [`webhook`]: the injector under load
//! - [`scale`]: many pods on one node
//! - [`redirect`]: the redirect rules of a transparent pod
//! - [`parsers`]: what criterion found of the parsers
//! - [`instructions`]: how many instructions a job takes, against a noted number
//! - [`report`]: the table, as text, Markdown and JSON
//! - [`svg`]: the plots

pub mod command;
pub mod compare;
pub mod end;
pub mod figure;
pub mod footprint;
pub mod instructions;
pub mod parsers;
pub mod process;
pub mod redirect;
pub mod report;
pub mod scale;
pub mod start;
pub mod svg;
pub mod webhook;

use std::path::PathBuf;

use figure::{Line, Row};
use harness::Result;
use harness::parts::Parts;

/// What is measured, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The programs that are measured.
    pub parts: Parts,
    /// The folder with the programs of the package `measure`.
    pub measure: PathBuf,
    /// Where criterion left its results, if it ran.
    pub criterion: Option<PathBuf>,
    /// How often each command is run.
    pub runs: usize,
    /// Take the time that it takes: a million reviews, 500 pods.
    pub full: bool,
}

/// What a case found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// For the table.
    pub rows: Vec<Row>,
    /// How something grows with something else.
    pub lines: Vec<Line>,
}

/// A case, by its name.
pub struct Case {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it measures.
    pub title: &'static str,
    run: fn(&Plan) -> Result<Found>,
}

/// All cases, in the order in which they run.
pub const CASES: &[Case] = &[
    Case { name: "start", title: "The pod's start", run: start::run },
    Case { name: "end", title: "The pod's end", run: end::run },
    Case { name: "footprint", title: "Footprint", run: footprint::run },
    Case { name: "webhook", title: "The webhook", run: webhook::run },
    Case { name: "scale", title: "Many pods on one node", run: scale::run },
    Case { name: "redirect", title: "The redirect rules", run: redirect::run },
    Case { name: "parsers", title: "The parsers", run: parsers::run },
];

// === impl Case ===

impl Case {
    /// Measures it, on a node of its own: a node's network is its thread's.
    ///
    /// # Errors
    /// Something did not work; nothing is measured of what fails.
    pub fn measure(&self, plan: &Plan) -> Result<Found> {
        let run = self.run;
        std::thread::scope(|scope| scope.spawn(|| run(plan)).join())
            .unwrap_or_else(|_| Err("the case panicked".into()))
    }
}
