//! The chart's alerts and its dashboard, with a real Prometheus that scrapes a real injector
//! and real sidecars.

use std::path::Path;

use harness::node::Node;
use harness::parts::Parts;
use harness::process::Process;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::{Method, Url};
use serde_json::{Value, json};

use crate::mesh::{Mesh, client, server, started, status};

const RULES: &str = include_str!("../../../../bins/connect-inject/chart/rules.yaml");
const DASHBOARD: &str = include_str!("../../../../bins/connect-inject/chart/dashboard.json");

/// Address of Prometheus.
const PROMETHEUS: &str = "10.99.0.1:9090";

/// Every expression of the alerts without its threshold and every query of the
/// dashboard has a value, so that neither a name of a metric nor of a label is wrong.
#[test]
fn every_alert_and_every_panel_has_data() {
    let Some((parts, prometheus)) = Parts::with_prometheus_or_skip() else { return };
    // The results of an audit; the cluster tests run a real one.
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results.json");
    let count = json!({"code": "registration-orphaned", "severity": "error", "count": 2});
    write(&results, &json!({"time": 1_795_615_200, "findings": [count]}).to_string());
    let flag = format!("--audit-results-file={}", results.display());
    let mesh = Mesh::start_with_injector(parts, &json!({}), &[&flag]);
    let node = &mesh.node;
    // An HTTP service and a TCP service, whose metrics have different names.
    mesh.speak("http");
    let metrics = json!({"enable-metrics": "true", "connect-service-port": "8081"});
    let api = json!({"enable-metrics": "true"});
    let api = started(node, &mesh.injector, &server("api-1", &api, &Value::Null));
    let web = started(node, &mesh.injector, &client(&metrics));

    let _prometheus = scraping(node, &prometheus, &[("api-1", &api.ip), ("web", &web.ip)]);

    // Increase the counters that alerts use.
    let traffic = || {
        let asked = json!({"consul.hashicorp.com/connect-inject": "true"});
        let pod = json!({"metadata": {"name": "a", "annotations": asked}, "spec": {"containers": [{"name": "a"}]}});
        node.admit(&mesh.injector, &pod, "shop").unwrap();
        let mut wrong = pod;
        wrong["metadata"]["annotations"]["consul.hashicorp.com/connect-service-port"] = "no".into();
        node.admit(&mesh.injector, &wrong, "shop").unwrap_err();
        let webhook = format!("https://{}:8443/mutate", node.ip());
        harness::process::run("curl", &["-sk", &webhook]).unwrap();
        status(&web, "/", &[]);
    };
    let has_data = |name: &str, query: &str| {
        let mut seen = String::new();
        let data = harness::until(name, || {
            traffic();
            match values(node, query) {
                Ok(values) => {
                    seen = format!("{values:?}");
                    values.iter().any(|value| value != "NaN")
                }
                Err(error) => {
                    seen = error;
                    false
                }
            }
        });
        data.unwrap_or_else(|error| panic!("{error}: {query}: {seen}"));
    };

    let rules: Value = serde_saphyr::from_str(RULES).unwrap();
    let mut alerts = 0;
    for rule in
        rules["groups"].as_array().unwrap().iter().flat_map(|g| g["rules"].as_array().unwrap())
    {
        let name = rule["alert"].as_str().unwrap();
        let query = without_threshold(rule["expr"].as_str().unwrap());
        let query = query.strip_prefix("absent").map_or(query.clone(), str::to_owned);
        has_data(name, &query);
        alerts += 1;
    }
    assert_eq!(alerts, 12);

    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            // As Grafana fills them in.
            has_data(title, &query.replace("$__rate_interval", "10s").replace("$namespace", ".*"));
        }
    }
    assert_eq!(panels.len(), 15);

    // Alerts with a `for` of minutes.
    for (name, expected) in [
        ("ConnectInjectDenials", "pending"),
        ("ConnectInjectBadRequests", "pending"),
        ("ConnectAuditFindings", "pending"),
        ("ConnectInjectAbsent", "inactive"),
        ("ConnectInjectCertificateEnds", "inactive"),
        ("ConnectInjectReviewsSlow", "inactive"),
        ("ConnectSidecarCertificateEnds", "inactive"),
        ("ConnectSidecarCutOff", "inactive"),
        ("ConnectSidecarUpdateRejected", "inactive"),
    ] {
        let mut seen = Value::Null;
        let state = harness::until(name, || {
            traffic();
            seen = rule(node, name);
            seen["health"] == "ok" && seen["state"] == expected
        });
        state.unwrap_or_else(|error| panic!("{error}: {seen:#}"));
    }
    kill(Pid::from_raw(mesh.injector.pid()), Signal::SIGKILL).unwrap();
    harness::until("the alert of no injector", || {
        rule(node, "ConnectInjectAbsent")["state"] == "pending"
    })
    .unwrap();
}

/// Prometheus with the chart's alerts, which scrapes the injector and these pods.
fn scraping(node: &Node, program: &Path, pods: &[(&str, &str)]) -> Process {
    let target = |address: String, namespace: &str, pod: &str| json!({"targets": [address], "labels": {"namespace": namespace, "pod": pod}});
    let pods: Vec<_> =
        pods.iter().map(|(pod, ip)| target(format!("{ip}:20200"), "shop", pod)).collect();
    let injector = target(format!("{}:9445", node.ip()), "consul", "injector");
    let config = json!({
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {"job_name": "injector", "static_configs": [injector]},
            {"job_name": "sidecars", "static_configs": pods},
        ],
    });
    let folder = node.folder("prometheus").unwrap();
    write(&folder.join("prometheus.yaml"), &config.to_string());
    write(&folder.join("rules.yaml"), RULES);
    let flag = |name: &str, value: &Path| format!("--{name}={}", value.display());
    let args = [
        flag("config.file", &folder.join("prometheus.yaml")),
        flag("storage.tsdb.path", &folder.join("data")),
        format!("--web.listen-address={PROMETHEUS}"),
    ];
    node.start(program, &args).unwrap()
}

/// The expression before its last comparison.
fn without_threshold(expression: &str) -> String {
    let words: Vec<_> = expression.split_whitespace().collect();
    let last = words.iter().rposition(|word| ["<", ">", "=="].contains(word)).unwrap();
    words[..last].join(" ")
}

/// The current values of a query.
fn values(node: &Node, query: &str) -> Result<Vec<String>, String> {
    let url = format!("http://{PROMETHEUS}/api/v1/query");
    let url = Url::parse_with_params(&url, [("query", query)]).unwrap();
    let answer =
        node.request(Method::GET, url.as_str(), None).map_err(|error| error.to_string())?;
    let found = answer["data"]["result"].as_array().cloned().unwrap_or_default();
    Ok(found.iter().filter_map(|one| one["value"][1].as_str()).map(str::to_owned).collect())
}

/// An alert, as Prometheus has it.
fn rule(node: &Node, name: &str) -> Value {
    let answer = node.request(Method::GET, &format!("http://{PROMETHEUS}/api/v1/rules"), None);
    let groups = answer.map(|mut answer| answer["data"]["groups"].take()).unwrap_or_default();
    let rules =
        groups.as_array().into_iter().flatten().filter_map(|group| group["rules"].as_array());
    rules.flatten().find(|rule| rule["name"] == name).cloned().unwrap_or_default()
}

fn write(file: &Path, text: &str) {
    #[expect(clippy::disallowed_methods, reason = "nobody reads it yet")]
    std::fs::write(file, text).unwrap();
}
