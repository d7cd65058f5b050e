//! Measures commands as whole processes.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Plan;
use super::figure::Figure;
use harness::Result;
use harness::process::run;

/// A sequence of commands, measured together.
#[derive(Clone, Debug, Default)]
pub struct Steps(Vec<Value>);

/// Measurements of several runs.
#[derive(Clone, Debug, Default)]
pub struct Taken(Vec<Usage>);

/// Measurements of one run, as `measure-command` prints them.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Usage {
    wall_us: f64,
    cpu_us: f64,
    peak_kib: f64,
    own_kib: f64,
}

// === impl Steps ===

impl Steps {
    /// Adds a command, whose output is dropped.
    #[must_use]
    pub fn then(self, args: &[&str]) -> Self {
        self.then_into(args, None)
    }

    /// Adds a command, whose output goes to a file.
    #[must_use]
    pub fn then_into(mut self, args: &[&str], file: Option<&Path>) -> Self {
        self.0.push(json!({"args": args, "stdout": file}));
        self
    }
}

// === impl Taken ===

impl Taken {
    /// Runs the commands once more, and adds the measurements.
    ///
    /// # Errors
    /// A command fails; with its output.
    pub fn add(&mut self, plan: &Plan, steps: &Steps) -> Result<()> {
        let program = plan.measure.join("measure-command");
        let output = run(&program.to_string_lossy(), &[Value::Array(steps.0.clone()).to_string()])?;
        let usage: Usage = serde_json::from_str(&output)?;
        if usage.peak_kib <= usage.own_kib {
            return Err(format!(
                "a peak of {} KiB cannot be told from that of the measuring program, {} KiB",
                usage.peak_kib, usage.own_kib
            )
            .into());
        }
        self.0.push(usage);
        Ok(())
    }

    /// Adds the measurements of other runs.
    pub fn append(&mut self, mut further: Self) {
        self.0.append(&mut further.0);
    }

    /// Wall time in milliseconds.
    pub fn wall(&self) -> Option<Figure> {
        self.figure(|usage| usage.wall_us / 1000.0)
    }

    /// CPU time, user and system, in milliseconds.
    pub fn cpu(&self) -> Option<Figure> {
        self.figure(|usage| usage.cpu_us / 1000.0)
    }

    /// The largest peak memory of any command, in MiB.
    pub fn peak(&self) -> Option<Figure> {
        self.figure(|usage| usage.peak_kib / 1024.0)
    }

    fn figure(&self, of: impl Fn(&Usage) -> f64) -> Option<Figure> {
        Figure::of(self.0.iter().map(of).collect())
    }
}
