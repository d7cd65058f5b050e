//! Reads criterion's results for the parsers: their speed, and how their time grows with the
//! length of the text.

use std::fs::{read_dir, read_to_string};

use serde_json::Value;

use crate::figure::{Budget, Figure, Line, Row};
use crate::{Found, Plan};
use harness::Result;

/// # Errors
/// Criterion did not run.
pub(super) fn run(plan: &Plan) -> Result<Found> {
    let folder = plan.criterion.as_ref().ok_or("criterion did not run: scripts/bench runs it")?;
    let floor = points(&folder.join("parse").join("value"))?;
    let mut found = Found::default();
    for (name, what) in [("hcl", "HCL definitions"), ("json", "JSON definitions")] {
        let points = points(&folder.join("parse").join(name))?;
        let fastest =
            |points: &[(f64, f64)]| points.last().map(|(bytes, nanos)| bytes / nanos * 1000.0);
        let rate = fastest(&points).ok_or("no points")?;
        found.rows.push(
            Row::new(format!("parser: {what}"), "MB/s", Figure::exact(rate))
                .floor(fastest(&floor).map(Figure::exact)),
        );
        let line = Line {
            what: format!("{what} parsed"),
            with: "KiB",
            unit: "ms",
            points: points.iter().map(|(bytes, nanos)| (bytes / 1024.0, nanos / 1e6)).collect(),
        };
        let exponent = line.exponent().ok_or("no points")?;
        let what = format!("parser: {what}, time grows with length to the power of");
        found.rows.push(Row::new(what, "", Figure::exact(exponent)).budget(Budget::AtMost(1.15)));
        found.lines.push(line);
    }
    Ok(found)
}

/// Bytes and nanoseconds, sorted by bytes.
fn points(folder: &std::path::Path) -> Result<Vec<(f64, f64)>> {
    let mut points = Vec::new();
    let entries = read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    for entry in entries {
        let results = entry?.path().join("new");
        if !results.is_dir() {
            continue;
        }
        let read = |name: &str| -> Result<Value> {
            Ok(serde_json::from_str(&read_to_string(results.join(name))?)?)
        };
        let bytes = read("benchmark.json")?["throughput"]["Bytes"].as_f64();
        let nanos = read("estimates.json")?["median"]["point_estimate"].as_f64();
        points.push(bytes.zip(nanos).ok_or("criterion's results have another form")?);
    }
    points.sort_by(|one, other| one.0.total_cmp(&other.0));
    Ok(points)
}
