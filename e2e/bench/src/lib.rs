//! Benchmarks of the binaries: `scripts/bench`.
//!
//! Each case compares ours with an alternative that a user could pick (the peer) and with the
//! minimum cost of the job (the floor). They run in turn, so that all see the same load of
//! the machine. Medians are compared; nothing is asserted.
//!
//! - [`figure`]: a figure with its spread, a row of figures with its budgets
//! - [`compare`]: compares a run with a stored one
//! - [`command`]: measures commands as whole processes
//! - [`process`]: CPU time and memory of a running process
//! - [`cases`]: what is measured
//! - [`instructions`]: instruction counts, compared with the repository's
//! - [`timeline`]: the phases of one pod's start
//! - [`report`]: the table, as text, Markdown and JSON
//! - [`svg`]: the plots

pub mod cases;
pub mod command;
pub mod compare;
pub mod figure;
pub mod instructions;
pub mod process;
pub mod report;
pub mod svg;
pub mod timeline;

use std::path::PathBuf;

use figure::{Line, Row};
use harness::parts::Parts;
use timeline::Timeline;

pub use cases::{CASES, CLUSTER_CASES, Case};

/// Settings of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The programs that are measured.
    pub parts: Parts,
    /// The directory with the programs of the package `measure`.
    pub measure: PathBuf,
    /// Consul 1.8, whose command line is another peer of the pod's start.
    pub consul_1_8: Option<PathBuf>,
    /// consul-k8s, whose injector is the peer of the webhook.
    pub consul_k8s: Option<PathBuf>,
    /// The directory with criterion's results, if it ran.
    pub criterion: Option<PathBuf>,
    /// Number of runs of each command.
    pub runs: usize,
    /// Whether to measure a million reviews and 500 pods, which takes longer.
    pub full: bool,
}

/// Results of a case.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Rows of the table.
    pub rows: Vec<Row>,
    /// Growth of a measurement with a size.
    pub lines: Vec<Line>,
    /// Timelines of single pods.
    pub timelines: Vec<Timeline>,
}
