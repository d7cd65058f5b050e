//! Counts the requests that an agent received, with the agent's own metrics.
//!
//! An agent at log level debug logs each request and, at each change, every unchanged
//! service and check: with hundreds of pods that takes most of its time. These settings
//! turn that off, as on production nodes.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::Result;
use crate::node::Node;

/// Requests of the harness itself.
const OURS: [&str; 4] = [
    "GET_v1_agent_checks",
    "GET_v1_agent_metrics",
    "GET_v1_status_leader",
    "GET_v1_connect_ca_roots",
];

/// Settings of an agent that counts its requests.
pub fn settings() -> Value {
    json!({"log_level": "info", "telemetry": {"prometheus_retention_time": "1h"}})
}

/// Number of requests since the agent started, by kind, without those of the harness.
///
/// # Errors
/// The agent does not answer, or has other [`settings`].
pub fn by_kind(node: &Node) -> Result<BTreeMap<String, u32>> {
    let page = node.get("/v1/agent/metrics?format=prometheus")?;
    Ok(counts(page.as_str().ok_or("the agent's metrics are no text")?))
}

/// Total number of requests.
///
/// # Errors
/// As [`by_kind`].
pub fn in_all(node: &Node) -> Result<u32> {
    Ok(by_kind(node)?.values().sum())
}

/// Reads lines such as
/// `consul_api_http_count{method="PUT",path="v1_agent_service_register"} 2`.
fn counts(page: &str) -> BTreeMap<String, u32> {
    let count = |line: &str| {
        let labels = line.strip_prefix("consul_api_http_count{method=\"")?;
        let (method, rest) = labels.split_once("\",path=\"")?;
        let (path, count) = rest.split_once("\"} ")?;
        let kind = format!("{method}_{}", path.trim_end_matches('_'));
        (!OURS.contains(&kind.as_str())).then_some((kind, count.parse().ok()?))
    };
    page.lines().filter_map(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_metrics_tells_what_was_asked() {
        let page = "# TYPE consul_api_http summary\n\
            consul_api_http{method=\"GET\",path=\"v1_agent_service_\",quantile=\"0.5\"} 0.4\n\
            consul_api_http_sum{method=\"GET\",path=\"v1_agent_service_\"} 0.9\n\
            consul_api_http_count{method=\"GET\",path=\"v1_agent_service_\"} 3\n\
            consul_api_http_count{method=\"GET\",path=\"v1_agent_checks\"} 70\n";
        let expected = BTreeMap::from([("GET_v1_agent_service".to_owned(), 3)]);
        assert_eq!(counts(page), expected);
    }
}
