//! Formats findings for people and for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::finding::{Code, Finding};

/// Format of the findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// A line for each finding, followed by what to do about each code
    Table,
    /// One JSON object, for programs
    Json,
}

/// The number of objects that were checked. The field names are part of the JSON interface.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Counts {
    pub(super) pods: usize,
    pub(super) sidecars: usize,
    pub(super) registrations: usize,
}

pub(super) fn write(findings: &[Finding], counts: Counts, output: Output) -> String {
    match output {
        Output::Table => table(findings),
        Output::Json => json(findings, counts),
    }
}

/// The number of findings of each code.
pub(super) fn by_code(findings: &[Finding]) -> BTreeMap<&'static str, usize> {
    let mut counted = BTreeMap::new();
    for finding in findings {
        *counted.entry(finding.code.word()).or_default() += 1;
    }
    counted
}

fn json(findings: &[Finding], counts: Counts) -> String {
    #[derive(Serialize)]
    struct Report<'a> {
        findings: &'a [Finding],
        by_code: BTreeMap<&'static str, usize>,
        seen: Counts,
    }
    let report = Report { findings, by_code: by_code(findings), seen: counts };
    let text = serde_json::to_string_pretty(&report).expect("findings have string keys only");
    text + "\n"
}

fn table(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return String::new();
    }
    let rows: Vec<[String; 5]> = findings.iter().map(row).collect();
    let titles = ["SEVERITY", "CODE", "OBJECT", "NODE", "WHAT"].map(str::to_owned);
    let width = |column: usize| {
        let cells = rows.iter().chain([&titles]).map(|row| row[column].chars().count());
        cells.max().unwrap_or_default()
    };
    let widths = [width(0), width(1), width(2), width(3)];
    let mut text = String::new();
    for row in std::iter::once(&titles).chain(&rows) {
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a string can't fail.
            let _ = write!(text, "{cell:width$}  ");
        }
        text.push_str(&row[4]);
        text.push('\n');
    }
    let advices: BTreeMap<Code, &str> =
        findings.iter().map(|finding| (finding.code, finding.advice.as_str())).collect();
    text.push_str("\nWhat to do:\n");
    for (code, advice) in advices {
        let _ = writeln!(text, "  {}: {advice}", code.word());
    }
    text
}

fn row(finding: &Finding) -> [String; 5] {
    let node = if finding.node.is_empty() { "-" } else { &finding.node };
    [
        finding.severity.word().to_owned(),
        finding.code.word().to_owned(),
        finding.object(),
        node.to_owned(),
        finding.detail.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn findings() -> Vec<Finding> {
        let pod = Finding::new(Code::PodWithoutSidecar, "Pod", "web-0").within("shop").on("n1");
        let hook = Finding::new(Code::WebhookMissing, "MutatingWebhookConfiguration", "x");
        vec![pod.saying("it has none"), hook.saying("there is none")]
    }

    #[test]
    fn a_table_has_aligned_columns_and_gives_each_advice_once() {
        let text = write(&findings(), Counts::default(), Output::Table);
        let lines: Vec<&str> = text.lines().collect();
        let column = lines[0].find("WHAT").unwrap();
        assert!(lines[1][column..].starts_with("it has none"), "{text}");
        assert!(lines[2][column..].starts_with("there is none"), "{text}");
        assert!(lines[1].contains("Pod shop/web-0") && lines[2].contains("-  "), "{text}");
        assert_eq!(text.matches("pod-without-sidecar:").count(), 1);
        assert_eq!(write(&[], Counts::default(), Output::Table), "");
    }

    #[test]
    fn json_has_stable_fields() {
        let report: Value =
            serde_json::from_str(&write(&findings(), Counts::default(), Output::Json)).unwrap();
        let pod = &report["findings"][0];
        let fields: Vec<&String> = pod.as_object().unwrap().keys().collect();
        let expected =
            ["advice", "code", "detail", "kind", "name", "namespace", "node", "severity"];
        assert!(fields.iter().all(|field| expected.contains(&field.as_str())), "{fields:?}");
        assert_eq!(fields.len(), expected.len());
        assert_eq!(
            (&pod["code"], &pod["severity"]),
            (&"pod-without-sidecar".into(), &"error".into())
        );
        assert!(report["findings"][1].get("namespace").is_none());
        assert_eq!(report["by_code"]["webhook-missing"], 1);
        assert_eq!(report["seen"]["pods"], 0);
    }
}
