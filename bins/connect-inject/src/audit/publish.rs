//! Writes the number of findings to a ConfigMap, from which the injector exports metrics.

use std::str::FromStr;
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube::core::Request;
use runtime::{Exit, Failure};
use serde_json::{Value, json};

use super::Settings;
use super::finding::{Code, Filter, Finding};
use crate::kubernetes::Refusal;
use crate::results::{Found, KEY, Results};

/// Timeout of the request.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigMap {
    namespace: String,
    name: String,
}

impl FromStr for ConfigMap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').filter(|(namespace, name)| {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
            [namespace, name].iter().all(|part| !part.is_empty() && part.chars().all(is_plain))
        });
        let (namespace, name) = parts.ok_or("expected NAMESPACE/NAME")?;
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// Writes the results to the ConfigMap, which must exist.
pub(super) async fn publish(
    settings: &Settings,
    map: &ConfigMap,
    findings: &[Finding],
    time: i64,
) -> Result<(), Failure> {
    let ConfigMap { namespace, name } = map;
    let results = serde_json::to_string(&results(&settings.filter, findings, time))
        .expect("results have string keys only");
    let patch = Patch::Merge(json!({"data": {KEY: results}}));
    let request = Request::new(format!("/api/v1/namespaces/{namespace}/configmaps"))
        .patch(name, &PatchParams::default(), &patch)
        .map_err(kube::Error::BuildRequest);
    let written = settings.api.read::<Value>(PATIENCE, "write the results", request).await;
    written.map(drop).map_err(|refusal| {
        let failure = Failure::new(
            Exit::Failure,
            match refusal {
                Refusal::Denied(problem) | Refusal::Failed(problem) => problem,
                Refusal::Missing => format!("ConfigMap {namespace}/{name} does not exist"),
            },
        );
        failure.hint(
            "set connectInject.audit.metrics: the chart then creates the ConfigMap and grants the \
             permission to patch it",
        )
    })
}

/// The number of findings of each code that the filter includes, even if 0.
fn results(filter: &Filter, findings: &[Finding], time: i64) -> Results {
    let looked_for = |code: &&Code| filter.only.is_empty() || filter.only.contains(code);
    let count = |code: &Code| Found {
        code: code.word().to_owned(),
        severity: code.severity().word().to_owned(),
        count: u32::try_from(findings.iter().filter(|finding| finding.code == *code).count())
            .unwrap_or(u32::MAX),
    };
    Results { time, findings: Code::ALL.iter().filter(looked_for).map(count).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_that_the_filter_includes_is_counted() {
        let findings = [Finding::new(Code::TokenOrphaned, "Token", "a")];
        let all = results(&Filter::default(), &findings, 7);
        assert_eq!((all.time, all.findings.len()), (7, Code::ALL.len()));
        let found: Vec<_> = all.findings.iter().filter(|count| count.count > 0).collect();
        assert_eq!((found.len(), found[0].code.as_str()), (1, "token-orphaned"));
        assert_eq!(found[0].severity, "warning");
        let only = Filter { only: vec![Code::PodExcluded], ..Filter::default() };
        assert_eq!(results(&only, &findings, 7).findings.len(), 1);
    }

    #[test]
    fn a_configmap_is_parsed_from_namespace_and_name() {
        let map = ConfigMap { namespace: "consul".to_owned(), name: "a.b-c".to_owned() };
        assert_eq!("consul/a.b-c".parse(), Ok(map));
        for text in ["", "a", "/a", "a/", "a/b/c", "a/b?c"] {
            assert!(text.parse::<ConfigMap>().is_err(), "{text}");
        }
    }
}
