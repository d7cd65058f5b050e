//! A figure with its spread, and a row of figures with its budget.

use serde::{Deserialize, Serialize};

/// The median of several runs, with minimum and maximum.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    /// Number of runs.
    pub runs: usize,
}

/// A budget for our figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Budget {
    AtMost(f64),
    /// At most the peer's figure divided by this.
    TimesLessThanPeer(f64),
    BelowFloor,
    /// At most the floor's figure times this.
    TimesFloor(f64),
}

/// A line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Name of the measurement.
    pub what: String,
    /// Unit, such as `ms`, `MiB` or `/s`.
    pub unit: &'static str,
    pub ours: Figure,
    /// The alternative that a user could pick.
    pub peer: Option<Figure>,
    /// The minimum that the job can cost.
    pub floor: Option<Figure>,
    /// Budgets; without any, the figure is only reported.
    pub budgets: Vec<Budget>,
}

/// Growth of a measurement with a size.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Name of the measurement.
    pub what: String,
    /// Name and unit of the size.
    pub with: &'static str,
    /// Unit of the measurement.
    pub unit: &'static str,
    /// Points: size and measurement.
    pub points: Vec<(f64, f64)>,
}

// === impl Figure ===

impl Figure {
    /// The figure of several runs; `None` without runs.
    pub fn of(mut runs: Vec<f64>) -> Option<Self> {
        runs.sort_by(f64::total_cmp);
        let (min, max) = (*runs.first()?, *runs.last()?);
        let middle = runs.len() / 2;
        let median = if runs.len() % 2 == 1 {
            runs[middle]
        } else {
            f64::midpoint(runs[middle - 1], runs[middle])
        };
        Some(Self { median, min, max, runs: runs.len() })
    }

    /// The figure of a measurement that does not vary.
    pub fn exact(value: f64) -> Self {
        Self { median: value, min: value, max: value, runs: 1 }
    }
}

// === impl Row ===

impl Row {
    /// A row without peer, floor and budgets.
    pub fn new(what: impl Into<String>, unit: &'static str, ours: Figure) -> Self {
        Self { what: what.into(), unit, ours, peer: None, floor: None, budgets: Vec::new() }
    }

    /// Adds the peer.
    #[must_use]
    pub fn peer(mut self, peer: impl Into<Option<Figure>>) -> Self {
        self.peer = peer.into();
        self
    }

    /// Adds the floor.
    #[must_use]
    pub fn floor(mut self, floor: impl Into<Option<Figure>>) -> Self {
        self.floor = floor.into();
        self
    }

    #[must_use]
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budgets.push(budget);
        self
    }

    /// Ratio of the peer's figure, or else the floor's, to ours.
    pub fn ratio(&self) -> Option<f64> {
        let other = self.peer.or(self.floor)?;
        (self.ours.median > 0.0).then(|| other.median / self.ours.median)
    }

    /// Whether a budget is met; `None` if the peer or floor is missing.
    pub fn meets(&self, budget: Budget) -> Option<bool> {
        let ours = self.ours.median;
        match budget {
            Budget::AtMost(most) => Some(ours <= most),
            Budget::TimesLessThanPeer(times) => Some(ours * times <= self.peer?.median),
            Budget::BelowFloor => Some(ours < self.floor?.median),
            Budget::TimesFloor(times) => Some(ours <= times * self.floor?.median),
        }
    }

    /// Whether all budgets are met; `None` without budgets.
    pub fn met(&self) -> Option<bool> {
        let judged: Vec<bool> =
            self.budgets.iter().filter_map(|budget| self.meets(*budget)).collect();
        (!judged.is_empty()).then(|| judged.iter().all(|met| *met))
    }
}

// === impl Line ===

impl Line {
    /// The exponent of the power law nearest to the points, by least squares of their
    /// logarithms: 1 is a line, 2 a parabola. A constant part lowers it below 1.
    pub fn exponent(&self) -> Option<f64> {
        let logs: Vec<(f64, f64)> = self
            .points
            .iter()
            .filter(|(x, y)| *x > 0.0 && *y > 0.0)
            .map(|(x, y)| (x.ln(), y.ln()))
            .collect();
        let slope = slope(&logs)?;
        slope.is_finite().then_some(slope)
    }

    /// The slope, by least squares.
    pub fn slope(&self) -> Option<f64> {
        slope(&self.points)
    }
}

fn slope(points: &[(f64, f64)]) -> Option<f64> {
    if points.len() < 2 {
        return None;
    }
    let count = points.iter().map(|_| 1.0).sum::<f64>();
    let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / count;
    let both: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let square: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    Some(both / square)
}

/// Formats with three significant digits.
pub(super) fn number(value: f64) -> String {
    let digits = match value.abs() {
        value if value >= 100.0 || value == 0.0 => 0,
        value if value >= 10.0 => 1,
        value if value >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_odd_and_an_even_number_of_runs() {
        let odd = Figure::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.runs), (2.0, 3));
        let even = Figure::of(vec![4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((even.median, even.min, even.max, even.runs), (2.5, 1.0, 4.0, 4));
        assert_eq!(Figure::of(Vec::new()), None);
    }

    #[test]
    fn a_row_is_compared_with_its_budgets() {
        let row = Row::new("x", "ms", Figure::exact(5.0))
            .peer(Figure::exact(100.0))
            .floor(Figure::exact(6.0));
        assert_eq!((row.ratio(), row.met()), (Some(20.0), None));
        for (budget, met) in [
            (Budget::AtMost(5.0), true),
            (Budget::AtMost(4.9), false),
            (Budget::TimesLessThanPeer(20.0), true),
            (Budget::TimesLessThanPeer(20.1), false),
            (Budget::BelowFloor, true),
            (Budget::TimesFloor(0.9), true),
            (Budget::TimesFloor(0.8), false),
        ] {
            assert_eq!(row.clone().budget(budget).met(), Some(met), "{budget:?}");
        }
        let row = row.budget(Budget::BelowFloor).budget(Budget::AtMost(1.0));
        assert_eq!(row.met(), Some(false));
        // A missing peer does not mean that the budget is met.
        let alone = Row::new("x", "ms", Figure::exact(5.0)).budget(Budget::BelowFloor);
        assert_eq!(alone.met(), None);
    }

    #[test]
    fn a_line_and_a_parabola_have_different_exponents() {
        let line =
            |points: Vec<(f64, f64)>| Line { what: String::new(), with: "", unit: "", points };
        let near = |value: Option<f64>, expected: f64| (value.unwrap() - expected).abs() < 1e-9;
        let straight = line((1..9).map(|x| (f64::from(x), f64::from(3 * x))).collect());
        assert!(near(straight.exponent(), 1.0) && near(straight.slope(), 3.0));
        let curved = line((1..9).map(|x| (f64::from(x), f64::from(x * x))).collect());
        assert!(near(curved.exponent(), 2.0));
        assert_eq!(line(vec![(1.0, 1.0)]).exponent(), None);
    }
}
