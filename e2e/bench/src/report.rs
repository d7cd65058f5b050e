//! The table, as text, Markdown and JSON.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use serde_json::json;

use super::cases::start::write;
use super::figure::{Budget, Figure, Line, Row, number};
use super::timeline::Timeline;
use super::{CASES, CLUSTER_CASES, Case, Found, svg};
use harness::Result;

/// A case and its results.
#[derive(Clone, Debug, Serialize)]
pub struct Section {
    /// Name on the command line.
    pub name: &'static str,
    /// Title.
    pub title: &'static str,
    /// The table's rows.
    pub rows: Vec<Row>,
    /// Growth of measurements.
    pub lines: Vec<Line>,
    /// What happened to one of many.
    pub timelines: Vec<Timeline>,
}

const HEAD: [&str; 7] = ["what", "ours", "peer", "floor", "ratio", "budget", "met"];

// === impl Section ===

impl Section {
    /// Of a case.
    pub fn new(name: &'static str, title: &'static str, found: Found) -> Self {
        let Found { rows, lines, timelines } = found;
        Self { name, title, rows, lines, timelines }
    }
}

/// The table for a terminal.
pub fn table(sections: &[Section]) -> String {
    let rows: Vec<[String; 7]> = std::iter::once(HEAD.map(str::to_owned))
        .chain(sections.iter().flat_map(|section| &section.rows).map(cells))
        .collect();
    let widths: Vec<usize> = (0..HEAD.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let padded: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "{}", padded.join("  ").trim_end());
    }
    text
}

/// The table in Markdown, with the machine.
pub fn markdown(sections: &[Section], machine: &[(String, String)]) -> String {
    let mut text = String::new();
    for (name, value) in machine {
        let _ = writeln!(text, "- {name}: {value}");
    }
    let _ = writeln!(text, "\n| {} |\n|{}", HEAD.join(" | "), "---|".repeat(HEAD.len()));
    for row in sections.iter().flat_map(|section| &section.rows) {
        let _ = writeln!(text, "| {} |", cells(row).join(" | "));
    }
    text
}

/// Writes `results.json`, `results.md` and a plot of each case.
///
/// # Errors
/// The directory can't be written to.
pub fn save(folder: &Path, sections: &[Section], machine: &[(String, String)]) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let machine_object: serde_json::Map<_, _> =
        machine.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    let document = json!({"machine": machine_object, "cases": sections});
    write(&folder.join("results.json"), &format!("{document:#}\n"))?;
    write(&folder.join("results.md"), &markdown(sections, machine))?;
    for section in sections {
        write(
            &folder.join(format!("{}.svg", section.name)),
            &svg::bars(section.title, &section.rows),
        )?;
        for (index, line) in section.lines.iter().enumerate() {
            let name = format!("{}-growth-{}.svg", section.name, index + 1);
            write(&folder.join(name), &svg::line(line))?;
        }
        for (index, timeline) in section.timelines.iter().enumerate() {
            let name = format!("{}-timeline-{}.svg", section.name, index + 1);
            write(&folder.join(name), &svg::timeline(timeline))?;
        }
    }
    Ok(())
}

/// Replaces the figures of a Markdown file, between two comments.
///
/// # Errors
/// The file can't be read or written, or lacks the comments.
pub fn rewrite(
    file: &Path,
    place: Place,
    sections: &[Section],
    machine: &[(String, String)],
) -> Result<()> {
    let text = std::fs::read_to_string(file)?;
    let begin = place.begin();
    let text = between(&text, begin, &markdown(sections, machine))
        .ok_or_else(|| format!("{} lacks `{begin}` or `{END}`", file.display()))?;
    write(file, &text)
}

/// Which figures of a Markdown file are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Those of processes.
    Machine,
    /// Those of a cluster, which are measured by themselves.
    Cluster,
}

impl Place {
    /// The figures that these cases replace.
    ///
    /// # Errors
    /// Figures of other cases stand there, too, and would be lost.
    pub fn of(names: &[&str]) -> Result<Self> {
        let are = |cases: &[Case]| {
            cases.len() == names.len() && cases.iter().all(|case| names.contains(&case.name))
        };
        if are(CASES) {
            Ok(Self::Machine)
        } else if are(CLUSTER_CASES) {
            Ok(Self::Cluster)
        } else {
            Err("--write replaces the figures of all cases: name no case, or only pods".into())
        }
    }

    fn begin(self) -> &'static str {
        match self {
            Self::Machine => "<!-- figures: written by scripts/bench --write -->\n",
            Self::Cluster => "<!-- figures: written by scripts/bench --write pods -->\n",
        }
    }
}

const END: &str = "<!-- end of figures -->\n";

fn between(text: &str, begin: &str, figures: &str) -> Option<String> {
    let (before, rest) = text.split_once(begin)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{begin}\n{figures}\n{END}{after}"))
}

fn cells(row: &Row) -> [String; 7] {
    let cell =
        |found: Option<Figure>| found.map(|found| figure(found, row.unit)).unwrap_or_default();
    let budgets: Vec<String> = row.budgets.iter().map(|budget| said(*budget, row.unit)).collect();
    [
        row.what.clone(),
        figure(row.ours, row.unit),
        cell(row.peer),
        cell(row.floor),
        row.ratio().map(|ratio| format!("{}x", number(ratio))).unwrap_or_default(),
        budgets.join(", "),
        match row.met() {
            Some(true) => "yes".to_owned(),
            Some(false) => "NO".to_owned(),
            None => String::new(),
        },
    ]
}

/// The median, and the spread if there was one.
fn figure(figure: Figure, unit: &str) -> String {
    let Figure { median, min, max, runs } = figure;
    let median = number(median);
    let spread =
        if runs > 1 { format!(" ({}-{})", number(min), number(max)) } else { String::new() };
    let space = if unit.is_empty() { "" } else { " " };
    format!("{median}{space}{unit}{spread}")
}

fn said(budget: Budget, unit: &str) -> String {
    match budget {
        Budget::AtMost(most) => format!("<= {} {unit}", number(most)).trim_end().to_owned(),
        Budget::TimesLessThanPeer(times) => format!("peer / {}", number(times)),
        Budget::BelowFloor => "< floor".to_owned(),
        Budget::TimesFloor(times) => format!("<= {} x floor", number(times)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_figure_is_lost() {
        let all: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        assert_eq!(Place::of(&all).unwrap(), Place::Machine);
        assert_eq!(Place::of(&["pods"]).unwrap(), Place::Cluster);
        for some in [&all[1..], &["start"], &["start", "pods"]] {
            assert!(Place::of(some).is_err(), "{some:?}");
        }
    }

    #[test]
    fn figures_are_replaced_and_the_rest_stays() {
        let [machine, cluster] = [Place::Machine, Place::Cluster].map(Place::begin);
        let text = format!("# Title\n{machine}old\n{END}{cluster}older\n{END}the rest\n");
        let once = between(&text, machine, "new\n").unwrap();
        let rest = format!("{END}{cluster}older\n{END}the rest\n");
        assert_eq!(once, format!("# Title\n{machine}\nnew\n\n{rest}"));
        assert_eq!(between(&once, machine, "new\n").unwrap(), once);
        assert!(between(&once, cluster, "newer\n").unwrap().contains("\nnewer\n\n"));
        assert_eq!(between("# Title\n", machine, "new\n"), None);
    }

    #[test]
    fn a_row_shows_which_budgets_are_met() {
        let ours = Figure::of(vec![16.0, 17.25, 30.0]).unwrap();
        let row = Row::new("start", "ms", ours)
            .peer(Figure::exact(222.0))
            .budget(Budget::TimesLessThanPeer(20.0));
        let found = Found { rows: vec![row], ..Found::default() };
        let section = Section::new("start", "The start", found);
        let table = table(std::slice::from_ref(&section));
        let expected = "start  17.2 ms (16.0-30.0)  222 ms         12.9x  peer / 20.0  NO";
        assert_eq!(table.lines().nth(1), Some(expected), "{table}");
        let markdown = markdown(&[section], &[("cores".to_owned(), "2".to_owned())]);
        assert!(markdown.starts_with("- cores: 2\n\n| what |"), "{markdown}");
    }
}
