//! Prometheus metrics of the injector.

use std::path::PathBuf;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::outcome::Reason;
use crate::results::{Found, Results};

#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    reviews: Family<Review, Counter>,
    duration: Histogram,
    not_after: Gauge,
    audit: Audit,
}

/// Gauges of the last audit.
#[derive(Debug)]
struct Audit {
    file: Option<PathBuf>,
    findings: Family<Finding, Gauge>,
    time: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Finding {
    code: String,
    severity: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Review {
    outcome: &'static str,
    reason: &'static str,
}

// === impl Metrics ===

impl Metrics {
    /// `audit_results`: file with the results of the last audit.
    pub(crate) fn new(audit_results: Option<PathBuf>) -> Self {
        let mut registry = Registry::with_prefix("connect_inject");
        let reviews = Family::default();
        registry.register(
            "reviews",
            "Requests on the webhook's port, each counted once",
            reviews.clone(),
        );
        // Buckets from 0.1 ms to 3.3 s.
        let duration = Histogram::new(exponential_buckets(0.0001, 2.0, 16));
        registry.register(
            "review_duration_seconds",
            "Time from a request's header to its answer",
            duration.clone(),
        );
        let not_after = Gauge::<i64>::default();
        registry.register(
            "certificate_not_after_timestamp_seconds",
            "When the certificate in use ends, or 0 if that is unknown",
            not_after.clone(),
        );
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The release that runs", build);
        let audit = Audit::registered(&mut registry, audit_results);
        Self { registry, reviews, duration, not_after, audit }
    }

    /// Counts a request and its duration.
    pub(crate) fn count(&self, reason: Reason, duration: Duration) {
        let review = Review { outcome: reason.outcome().code(), reason: reason.code() };
        self.reviews.get_or_create(&review).inc();
        self.duration.observe(duration.as_secs_f64());
    }

    /// All metrics in the OpenMetrics text format.
    pub(crate) fn text(&self, not_after: Option<i64>) -> Result<String, std::fmt::Error> {
        self.not_after.set(not_after.unwrap_or_default());
        self.audit.read();
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

// === impl Audit ===

impl Audit {
    fn registered(registry: &mut Registry, file: Option<PathBuf>) -> Self {
        let (findings, time) = (Family::default(), Gauge::default());
        registry.register(
            "audit_findings",
            "What the last audit found, by its code",
            findings.clone(),
        );
        registry.register(
            "audit_timestamp_seconds",
            "When the last audit looked, or 0 if that is unknown",
            time.clone(),
        );
        Self { file, findings, time }
    }

    /// Reads the audit's results again; a file that can't be read leaves the gauges empty.
    fn read(&self) {
        let Some(file) = &self.file else { return };
        let results = Results::read(file).unwrap_or_else(|problem| {
            tracing::warn!("cannot read {}: {problem}", file.display());
            None
        });
        self.findings.clear();
        let Results { time, findings } = results.unwrap_or_default();
        self.time.set(time);
        for Found { code, severity, count } in findings {
            self.findings.get_or_create(&Finding { code, severity }).set(count.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_lists_every_metric() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("results.json");
        let metrics = Metrics::new(Some(file.clone()));
        assert!(!metrics.text(None).unwrap().contains("connect_inject_audit_findings{"));
        let results = r#"{"time": 1795305601, "findings": [
            {"code": "unreadable", "severity": "warning", "count": 2}]}"#;
        runtime::file::write_whole(&file, 0o600, results.as_bytes()).unwrap();
        metrics.count(Reason::OptedOut, Duration::from_micros(150));
        let text = metrics.text(Some(1_795_305_600)).unwrap();
        for line in [
            "connect_inject_reviews_total{outcome=\"skipped\",reason=\"opted-out\"} 1",
            "connect_inject_review_duration_seconds_bucket{le=\"0.0001\"} 0",
            "connect_inject_review_duration_seconds_bucket{le=\"0.0002\"} 1",
            "connect_inject_certificate_not_after_timestamp_seconds 1795305600",
            "connect_inject_audit_findings{code=\"unreadable\",severity=\"warning\"} 2",
            "connect_inject_audit_timestamp_seconds 1795305601",
            concat!("connect_inject_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let readme = include_str!("../../README.md");
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let name = line.split(' ').next().unwrap();
            assert!(readme.contains(&format!("`{name}")), "{name}");
        }
    }
}
