//! Whole documents, compared with the files in `tests/golden/`.
//!
//! `UPDATE_GOLDEN=1 cargo test -p bootstrap` writes the files again; read the
//! difference before it is committed. `tests/envoy.rs` gives them to Envoy.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use bootstrap::{AccessLogs, Input, Token, XdsAddress, render};
use serde_json::{Value, json};

fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden"].iter().collect()
}

fn input() -> Input {
    let agent = XdsAddress::Tcp(([10, 0, 0, 1], 8502).into());
    let mut input = Input::new("web-0-web-sidecar-proxy", "web", agent);
    input.proxy.datacenter = Some("dc1".to_owned());
    input
}

fn with(change: impl FnOnce(&mut Input)) -> Input {
    let mut input = input();
    change(&mut input);
    input
}

fn with_config(config: Value) -> Input {
    with(|input| input.proxy.config = serde_json::from_value(config).expect("an object"))
}

fn access_logs(json: Value) -> Input {
    let logs: AccessLogs = serde_json::from_value(json).expect("Consul's JSON");
    with(|input| input.admin.access_logs = logs)
}

/// Every golden file and what it is rendered from.
#[expect(clippy::too_many_lines, reason = "a list")]
fn cases() -> Vec<(&'static str, Input)> {
    vec![
        ("default", input()),
        (
            "token",
            with(|input| input.xds.token = Token::new("00000000-0000-0000-0000-000000000001")),
        ),
        (
            "enterprise",
            with(|input| {
                input.proxy.namespace = Some("team".to_owned());
                input.proxy.partition = Some("west".to_owned());
                input.proxy.node_name = Some("node-1".to_owned());
            }),
        ),
        (
            "unix_socket",
            with(|input| {
                input.xds.address = XdsAddress::Unix("/run/consul/grpc.sock".to_owned());
            }),
        ),
        (
            "ipv6",
            with(|input| {
                input.xds.address = XdsAddress::Tcp("[fd00::1]:8502".parse().expect("an address"));
                input.admin.bind = "[::1]:19000".parse().expect("an address");
                input.ready_bind = Some("[::]:20200".parse().expect("an address"));
            }),
        ),
        ("tags_of_consul_1_9", with(|input| input.omit_deprecated_tags = true)),
        (
            "tags_of_user",
            with_config(json!({
                "envoy_stats_tags": ["Team=web", "canary", "consul.source.service=other"],
            })),
        ),
        (
            "statsd",
            with_config(json!({
                "envoy_statsd_url": "udp://$HOST_IP:8125",
                "envoy_dogstatsd_url": "unix:///run/dogstatsd.sock",
                "envoy_stats_flush_interval": "10s",
            })),
        ),
        ("pages", {
            let mut input = with_config(json!({
                "envoy_prometheus_bind_addr": "0.0.0.0:9102",
                "envoy_stats_bind_addr": "0.0.0.0:9103",
            }));
            input.ready_bind = Some(([0, 0, 0, 0], 20200).into());
            input
        }),
        ("prometheus_backend", {
            let mut input = with_config(json!({"envoy_prometheus_bind_addr": "0.0.0.0:20200"}));
            input.prometheus.backend_port = Some(20100);
            input.prometheus.scrape_path = String::from("/scrape");
            input.ready_bind = Some(([0, 0, 0, 0], 20300).into());
            input
        }),
        (
            "telemetry_collector",
            with_config(json!({
                "envoy_telemetry_collector_bind_socket_dir": "/consul/connect-inject",
            })),
        ),
        (
            "extra",
            with_config(json!({
                "envoy_extra_static_clusters_json":
                    "{\"name\": \"one\", \"type\": \"STATIC\"}, {\"name\": \"two\", \"type\": \"STATIC\"}",
                "envoy_extra_static_listeners_json":
                    "{\"name\": \"extra\", \"address\": {\"pipe\": {\"path\": \"/run/extra.sock\"}},
                      \"filter_chains\": [{}]}",
                "envoy_extra_stats_sinks_json":
                    "{\"name\": \"envoy.stat_sinks.statsd\", \"typed_config\": {
                    \"@type\": \"type.googleapis.com/envoy.config.metrics.v3.StatsdSink\",
                    \"tcp_cluster_name\": \"one\"}}",
                "envoy_stats_config_json": "{\"stats_matcher\": {\"reject_all\": true}}",
            })),
        ),
        (
            "tracing",
            with_config(json!({
                "envoy_tracing_json":
                    "{\"http\": {\"name\": \"envoy.tracers.zipkin\", \"typed_config\": {
                    \"@type\": \"type.googleapis.com/envoy.config.trace.v3.ZipkinConfig\",
                    \"collector_cluster\": \"zipkin\", \"collector_endpoint\": \"/api/v2/spans\"}}}",
                "envoy_extra_static_clusters_json": "{\"name\": \"zipkin\", \"type\": \"STATIC\"}",
            })),
        ),
        (
            "template",
            with_config(json!({
                "envoy_bootstrap_json_tpl": r#"{
                "node": {"id": "{{ .ProxyID }}", "cluster": "{{ .ProxyCluster }}"},
                "static_resources": {
                    "clusters": [{
                        "name": "{{ .LocalAgentClusterName }}", "type": "STATIC",
                        "load_assignment": {"cluster_name": "{{ .LocalAgentClusterName }}"}
                    }
                    {{- if .StaticClustersJSON }}, {{ .StaticClustersJSON }}{{ end }}]
                },
                "stats_config": {{ .StatsConfigJSON }}
            }"#,
                "envoy_extra_static_clusters_json": "{\"name\": \"one\", \"type\": \"STATIC\"}",
            })),
        ),
        ("access_log_stdout", access_logs(json!({"Enabled": true}))),
        (
            "access_log_stderr",
            access_logs(json!({
                "Enabled": true, "Type": "stderr", "JSONFormat": "{\"method\": \"%REQ(:METHOD)%\"}",
            })),
        ),
        (
            "access_log_file",
            access_logs(json!({
                "Enabled": true, "Type": "file", "Path": "/dev/null", "TextFormat": "%START_TIME%",
            })),
        ),
    ]
}

#[test]
fn documents_are_as_recorded() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    for (name, input) in cases() {
        let env = |name: &str| (name == "HOST_IP").then(|| "10.0.0.1".to_owned());
        let rendered = render(&input, &env).unwrap();
        let path = folder().join(format!("{name}.json"));
        if update {
            let mut file = File::create(&path).unwrap();
            writeln!(file, "{rendered:#}").unwrap();
        }
        let recorded = fs::read(&path).unwrap_or_else(|error| {
            panic!("{}: {error}; UPDATE_GOLDEN=1 writes it", path.display())
        });
        let recorded: Value = serde_json::from_slice(&recorded).unwrap();
        assert!(
            rendered == recorded,
            "{name}: rendered {rendered:#}\nis not as recorded in {}",
            path.display()
        );
    }
}

#[test]
fn no_file_is_left_over() {
    let files: BTreeSet<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let cases: BTreeSet<String> =
        cases().into_iter().map(|(name, _)| format!("{name}.json")).collect();
    let unused: Vec<_> = files.difference(&cases).collect();
    assert!(unused.is_empty(), "no test renders {unused:?}");
}
