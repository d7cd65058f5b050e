//! What is counted and measured.

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

/// What is counted and measured.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    reviews: Family<Review, Counter>,
    duration: Histogram,
    not_after: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Review {
    outcome: &'static str,
    reason: &'static str,
}

// === impl Metrics ===

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("connect_inject");
        let reviews = Family::default();
        registry.register(
            "reviews",
            "Requests on the webhook's port, each counted once",
            reviews.clone(),
        );
        // From 0.1 ms to 3.3 s.
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
        Self { registry, reviews, duration, not_after }
    }

    /// Counts a request.
    pub(crate) fn count(&self, reason: Reason, duration: Duration) {
        let review = Review { outcome: reason.outcome().code(), reason: reason.code() };
        self.reviews.get_or_create(&review).inc();
        self.duration.observe(duration.as_secs_f64());
    }

    /// All of it as Prometheus reads it.
    pub(crate) fn text(&self, not_after: Option<i64>) -> Result<String, std::fmt::Error> {
        self.not_after.set(not_after.unwrap_or_default());
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_the_readme() {
        let metrics = Metrics::new();
        metrics.count(Reason::OptedOut, Duration::from_micros(150));
        let text = metrics.text(Some(1_795_305_600)).unwrap();
        for line in [
            "connect_inject_reviews_total{outcome=\"skipped\",reason=\"opted-out\"} 1",
            "connect_inject_review_duration_seconds_bucket{le=\"0.0001\"} 0",
            "connect_inject_review_duration_seconds_bucket{le=\"0.0002\"} 1",
            "connect_inject_certificate_not_after_timestamp_seconds 1795305600",
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
