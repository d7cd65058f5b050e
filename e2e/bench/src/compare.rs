//! Compares a run with a stored one: better, worse, or within the spread.

use std::path::Path;

use harness::Result;
use serde::Deserialize;

use super::figure::{Figure, Row, number};
use super::report::Section;

/// Tolerance for a figure without a spread: five percent.
const TOLERANCE: f64 = 0.05;

/// Verdict on a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every run is better than all runs before.
    Better,
    /// Every run is worse than all runs before.
    Worse,
    /// The spreads overlap.
    Noise,
    /// It was not measured before.
    New,
}

/// A stored run.
#[derive(Debug, Deserialize)]
pub struct Stored {
    cases: Vec<StoredCase>,
}

#[derive(Debug, Deserialize)]
struct StoredCase {
    rows: Vec<StoredRow>,
}

#[derive(Debug, Deserialize)]
struct StoredRow {
    what: String,
    unit: String,
    ours: Figure,
}

// === impl Stored ===

impl Stored {
    /// Reads the `results.json` of a run.
    ///
    /// # Errors
    /// The file can't be read or is invalid.
    pub fn read(file: &Path) -> Result<Self> {
        let unusable = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        let text = std::fs::read_to_string(file).map_err(|error| unusable(&error))?;
        Ok(serde_json::from_str(&text).map_err(|error| unusable(&error))?)
    }

    /// A line for each row of the new run: before, now, and the verdict.
    pub fn against(&self, sections: &[Section]) -> Vec<String> {
        let rows = sections.iter().flat_map(|section| &section.rows);
        rows.map(|row| self.line(row)).collect()
    }

    fn line(&self, row: &Row) -> String {
        let Row { what, unit, ours, .. } = row;
        let mut before = self.cases.iter().flat_map(|case| &case.rows);
        let Some(before) = before.find(|row| row.what == *what && row.unit == *unit) else {
            return format!("{:<6} {what}: {} {unit}", said(Verdict::New), number(ours.median));
        };
        let verdict = judge(before.ours, *ours, unit.ends_with("/s"));
        let medians = [before.ours.median, ours.median].map(number);
        format!("{:<6} {what}: {} -> {} {unit}", said(verdict), medians[0], medians[1])
    }
}

/// More is better for throughput, less for everything else.
fn judge(before: Figure, now: Figure, more_is_better: bool) -> Verdict {
    let (before, now) = (spread(before), spread(now));
    let (is_above, is_below) = (now.0 > before.1, now.1 < before.0);
    match (is_above, is_below) {
        (false, false) => Verdict::Noise,
        (above, _) if above == more_is_better => Verdict::Better,
        _ => Verdict::Worse,
    }
}

fn spread(figure: Figure) -> (f64, f64) {
    if figure.runs > 1 {
        return (figure.min, figure.max);
    }
    let tolerance = figure.median.abs() * TOLERANCE / 2.0;
    (figure.median - tolerance, figure.median + tolerance)
}

fn said(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better => "better",
        Verdict::Worse => "WORSE",
        Verdict::Noise => "noise",
        Verdict::New => "new",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Found;

    fn of(runs: &[f64]) -> Figure {
        Figure::of(runs.to_vec()).unwrap()
    }

    #[test]
    fn figures_differ_only_if_their_spreads_do_not_overlap() {
        let before = of(&[7.0, 8.0, 9.0]);
        assert_eq!(judge(before, of(&[8.5, 10.0, 12.0]), false), Verdict::Noise);
        assert_eq!(judge(before, of(&[9.5, 10.0, 12.0]), false), Verdict::Worse);
        assert_eq!(judge(before, of(&[5.0, 6.0, 6.5]), false), Verdict::Better);
        assert_eq!(judge(before, of(&[9.5, 10.0, 12.0]), true), Verdict::Better);
        assert_eq!(judge(before, of(&[5.0, 6.0, 6.5]), true), Verdict::Worse);
    }

    #[test]
    fn a_figure_without_a_spread_may_differ_a_little() {
        let exact = Figure::exact;
        assert_eq!(judge(exact(100.0), exact(104.0), false), Verdict::Noise);
        assert_eq!(judge(exact(100.0), exact(110.0), false), Verdict::Worse);
        assert_eq!(judge(exact(0.0), exact(0.0), false), Verdict::Noise);
    }

    #[test]
    fn rows_of_a_stored_run_are_matched_by_name_and_unit() {
        let folder = tempfile::tempdir().unwrap();
        let section = |ours: f64| {
            let row = |what: &str, unit| Row::new(what, unit, Figure::exact(ours));
            let rows = vec![row("start: wall", "ms"), row("webhook: rate", "/s")];
            Section::new("start", "The start", Found { rows, ..Found::default() })
        };
        super::super::report::save(folder.path(), &[section(10.0)], &[]).unwrap();
        let file = folder.path().join("results.json");
        let mut now = section(20.0);
        now.rows.push(Row::new("end: wall", "ms", Figure::exact(1.0)));
        let lines = Stored::read(&file).unwrap().against(&[now]);
        assert_eq!(
            lines,
            [
                "WORSE  start: wall: 10.0 -> 20.0 ms",
                "better webhook: rate: 10.0 -> 20.0 /s",
                "new    end: wall: 1.00 ms",
            ]
        );
        super::super::cases::start::write(&file, "[]").unwrap();
        assert!(Stored::read(&file).unwrap_err().to_string().contains("results.json"));
    }
}
