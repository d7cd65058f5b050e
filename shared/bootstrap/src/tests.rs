//! Whole bootstraps; the expected ones are in `tests/golden/`.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

fn input() -> Input {
    let agent = XdsAddress::Tcp(([10, 0, 0, 1], 8502).into());
    Input::new("web-sidecar-proxy", "web", agent)
}

fn with_config(config: Value) -> Input {
    let mut input = input();
    let Value::Object(config) = config else { panic!("a config is an object: {config}") };
    input.proxy.config = config;
    input
}

fn document(input: &Input) -> Value {
    render(input, &|_| None).unwrap()
}

fn error(input: &Input) -> String {
    render(input, &|_| None).unwrap_err().to_string()
}

fn names(list: &Value) -> Vec<&str> {
    let list = list.as_array().unwrap();
    list.iter().map(|item| item["name"].as_str().unwrap()).collect()
}

const AGENT: &str = "/static_resources/clusters/0";

#[test]
fn default_document() {
    let document = document(&input());
    let mut keys: Vec<_> = document.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(
        keys,
        [
            "admin",
            "dynamic_resources",
            "layered_runtime",
            "node",
            "static_resources",
            "stats_config"
        ]
    );
    assert_eq!(
        document["node"],
        json!({
            "id": "web-sidecar-proxy",
            "cluster": "web",
            "metadata": {"namespace": "default", "partition": "default"},
        })
    );
    let agent = document.pointer(AGENT).unwrap();
    assert!(agent.get("transport_socket").is_none());
    assert_eq!(
        agent["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"],
        json!({"socket_address": {"address": "10.0.0.1", "port_value": 8502}})
    );
    assert_eq!(names(&document["static_resources"]["clusters"]), ["local_agent"]);
    assert!(document["static_resources"].get("listeners").is_none());
    assert!(document["static_resources"].get("secrets").is_none());
}

/// By default Envoy's pauses between two tries grow to half a minute.
#[test]
fn envoy_is_connected_again_within_seconds_of_its_agents_return() {
    let pauses = "/dynamic_resources/ads_config/grpc_services/envoy_grpc/retry_policy/\
                  retry_back_off/max_interval";
    assert_eq!(document(&input()).pointer(pauses), Some(&json!("2s")));
}

#[test]
fn the_token_entry_is_always_there() {
    let metadata = |input: &Input| {
        document(input)["dynamic_resources"]["ads_config"]["grpc_services"]["initial_metadata"]
            .clone()
    };
    let mut input = input();
    assert_eq!(metadata(&input), json!([{"key": "x-consul-token", "value": ""}]));
    input.xds.token = Token::new("s3cret \"quoted\"");
    assert_eq!(metadata(&input), json!([{"key": "x-consul-token", "value": "s3cret \"quoted\""}]));
}

#[test]
fn node_metadata() {
    let mut input = input();
    input.proxy.node_name = Some("node-1".to_owned());
    input.proxy.namespace = Some("team".to_owned());
    input.proxy.partition = Some(String::new());
    assert_eq!(
        document(&input)["node"]["metadata"],
        json!({"node_name": "node-1", "namespace": "team", "partition": "default"})
    );
}

#[test]
fn xds_over_tls() {
    let mut input = input();
    input.xds.ca_pem = Some("-----BEGIN CERTIFICATE-----\n".to_owned());
    let document = document(&input);
    let socket = &document.pointer(AGENT).unwrap()["transport_socket"];
    assert_eq!(socket["name"], "tls");
    assert_eq!(
        socket["typed_config"]["common_tls_context"],
        json!({"validation_context": {
            "trusted_ca": {"inline_string": "-----BEGIN CERTIFICATE-----\n"},
        }})
    );

    // The key stays in its file.
    input.xds.client_certificate = Some(ClientCertificate {
        cert_file: "/c/client-cert.pem".to_owned(),
        key_file: "/c/client-key.pem".to_owned(),
    });
    let document = super::tests::document(&input);
    let socket = &document.pointer(AGENT).unwrap()["transport_socket"];
    assert_eq!(
        socket["typed_config"]["common_tls_context"]["tls_certificates"],
        json!([{
            "certificate_chain": {"filename": "/c/client-cert.pem"},
            "private_key": {"filename": "/c/client-key.pem"},
        }])
    );

    input.xds.ca_pem = Some(" \n".to_owned());
    assert_eq!(
        error(&input),
        "TLS is on for xDS, but there is no CA certificate to verify the agent with; hint: give \
         the CA file, or use a gRPC address without https://"
    );
}

#[test]
fn addresses() {
    let endpoint = |input: &Input| {
        document(input).pointer(AGENT).unwrap()["load_assignment"]["endpoints"][0]["lb_endpoints"]
            [0]["endpoint"]["address"]
            .clone()
    };
    let mut input = input();
    input.xds.address = XdsAddress::Unix("/run/consul.sock".to_owned());
    assert_eq!(endpoint(&input), json!({"pipe": {"path": "/run/consul.sock"}}));

    input.xds.address = XdsAddress::Tcp("[fd00::1]:8502".parse().unwrap());
    assert_eq!(
        endpoint(&input),
        json!({"socket_address": {"address": "fd00::1", "port_value": 8502}})
    );

    input.admin.bind = "[::1]:19001".parse().unwrap();
    assert_eq!(
        document(&input)["admin"]["address"],
        json!({"socket_address": {"address": "::1", "port_value": 19001}})
    );
}

#[test]
fn listeners_share_one_cluster() {
    let mut input = with_config(json!({
        "envoy_prometheus_bind_addr": "0.0.0.0:9102",
        "envoy_stats_bind_addr": "0.0.0.0:9103",
    }));
    input.ready_bind = Some("0.0.0.0:9104".parse().unwrap());
    let listeners =
        ["envoy_prometheus_metrics_listener", "envoy_metrics_listener", "envoy_ready_listener"];
    let resources = document(&input)["static_resources"].clone();
    assert_eq!(names(&resources["listeners"]), listeners);
    assert_eq!(names(&resources["clusters"]), ["local_agent", "self_admin"]);

    input.prometheus.backend_port = Some(20100);
    let resources = document(&input)["static_resources"].clone();
    assert_eq!(names(&resources["listeners"]), listeners);
    assert_eq!(names(&resources["clusters"]), ["local_agent", "prometheus_backend", "self_admin"]);
    let address = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address";
    assert_eq!(
        resources["clusters"][1].pointer(address).unwrap(),
        &json!({"address": "127.0.0.1", "port_value": 20100})
    );
}

#[test]
fn a_cluster_of_the_user_is_not_doubled() {
    let input = with_config(json!({
        "envoy_extra_static_clusters_json": "{\"name\": \"self_admin\", \"mine\": true}",
        "envoy_stats_bind_addr": "0.0.0.0:9103",
    }));
    let clusters = document(&input)["static_resources"]["clusters"].clone();
    assert_eq!(names(&clusters), ["local_agent", "self_admin"]);
    assert_eq!(clusters[1]["mine"], true);
}

#[test]
fn prometheus_over_tls() {
    let mut input = with_config(json!({"envoy_prometheus_bind_addr": "0.0.0.0:9102"}));
    input.prometheus.scrape_path = "/scrape".to_owned();
    input.prometheus.tls = Some(PrometheusTls {
        ca: PrometheusCa::File("/tls/ca.pem".to_owned()),
        cert_file: "/tls/cert.pem".to_owned(),
        key_file: "/tls/key.pem".to_owned(),
    });
    let resources = document(&input)["static_resources"].clone();
    let chain = &resources["listeners"][0]["filter_chains"][0];
    assert_eq!(
        chain["transport_socket"]["typed_config"]["common_tls_context"],
        json!({
            "tls_certificate_sds_secret_configs": [{"name": "prometheus_cert"}],
            "validation_context_sds_secret_config": {"name": "prometheus_validation_context"},
        })
    );
    assert_eq!(chain["transport_socket"]["typed_config"]["require_client_certificate"], false);
    let route = "/filters/0/typed_config/route_config/virtual_hosts/0/routes/0";
    assert_eq!(
        chain.pointer(route).unwrap(),
        &json!({
            "match": {"path": "/scrape"},
            "route": {"cluster": "self_admin", "prefix_rewrite": "/stats/prometheus"},
        })
    );
    let validation = |input: &Input| {
        document(input)["static_resources"]["secrets"][1]["validation_context"].clone()
    };
    assert_eq!(
        resources["secrets"][0]["tls_certificate"],
        json!({
            "certificate_chain": {"filename": "/tls/cert.pem"},
            "private_key": {"filename": "/tls/key.pem"},
        })
    );
    assert_eq!(validation(&input), json!({"trusted_ca": {"filename": "/tls/ca.pem"}}));

    let tls = input.prometheus.tls.as_mut().unwrap();
    tls.ca = PrometheusCa::Path("/tls/cas".to_owned());
    assert_eq!(validation(&input), json!({"watched_directory": {"path": "/tls/cas"}}));

    // Without the listener, the secrets are not needed.
    input.proxy.config.clear();
    assert!(document(&input)["static_resources"].get("secrets").is_none());

    input.prometheus.scrape_path = "scrape".to_owned();
    assert_eq!(
        error(&input),
        "-prometheus-scrape-path is not a path: scrape; accepted: a path that begins with /; \
         hint: the default is /metrics"
    );
}

#[test]
fn json_keys_are_taken_over() {
    let document = document(&with_config(json!({
        "envoy_extra_static_clusters_json": "{\"name\": \"one\"}, {\"name\": \"two\"}",
        "envoy_extra_static_listeners_json": "{\"name\": \"in\"}",
        "envoy_extra_stats_sinks_json": "{\"name\": \"sink\"}",
        "envoy_stats_config_json": "{\"stats_matcher\": {\"reject_all\": true}}",
        "envoy_tracing_json": "{\"http\": {\"name\": \"zipkin\"}}",
        "envoy_stats_flush_interval": "10s",
        "envoy_statsd_url": "udp://127.0.0.1:8125",
    })));
    let resources = &document["static_resources"];
    assert_eq!(names(&resources["clusters"]), ["local_agent", "one", "two"]);
    assert_eq!(names(&resources["listeners"]), ["in"]);
    assert_eq!(names(&document["stats_sinks"]), ["envoy.stat_sinks.statsd", "sink"]);
    assert_eq!(document["stats_config"], json!({"stats_matcher": {"reject_all": true}}));
    assert_eq!(document["tracing"], json!({"http": {"name": "zipkin"}}));
    assert_eq!(document["stats_flush_interval"], "10s");
}

#[test]
fn telemetry_collector() {
    let mut input = with_config(json!({"envoy_telemetry_collector_bind_socket_dir": "/run/t"}));
    let document = document(&input);
    assert_eq!(
        names(&document["static_resources"]["clusters"]),
        ["local_agent", "consul_telemetry_collector_loopback"]
    );
    assert_eq!(names(&document["stats_sinks"]), ["envoy.stat_sinks.metrics_service"]);
    assert_eq!(document["stats_flush_interval"], "60s");

    let own = json!("5s");
    input.proxy.config.insert("envoy_stats_flush_interval".to_owned(), own.clone());
    assert_eq!(super::render(&input, &|_| None).unwrap()["stats_flush_interval"], own);
}

#[test]
fn variables_come_from_the_caller() {
    let input = with_config(json!({"envoy_dogstatsd_url": "udp://$HOST_IP:8125"}));
    let env = |name: &str| (name == "HOST_IP").then(|| "10.0.0.7".to_owned());
    let document = render(&input, &env).unwrap();
    assert_eq!(
        document["stats_sinks"][0],
        json!({
            "name": "envoy.stat_sinks.dog_statsd",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.config.metrics.v3.DogStatsdSink",
                "address": {"socket_address": {"address": "10.0.0.7", "port_value": 8125}},
            },
        })
    );
    assert!(error(&input).contains("not set: $HOST_IP"));
}

#[test]
fn a_template_replaces_the_document() {
    let mut input = with_config(json!({
        "envoy_bootstrap_json_tpl": r#"{
            "id": "{{ .ProxyID }}", "port": {{ .AgentPort }}, "tls": {{ .AgentTLS }},
            "token": "{{ .Token }}", "sinks": [{{ .StatsSinksJSON }}]
            {{- if .StaticListenersJSON }}, "listeners": [{{ .StaticListenersJSON }}]{{ end }}
        }"#,
        "envoy_extra_stats_sinks_json": "{\"name\": \"a\"}, {\"name\": \"b\"}",
    }));
    input.xds.token = Token::new("s3cret");
    assert_eq!(
        document(&input),
        json!({
            "id": "web-sidecar-proxy", "port": 8502, "tls": false,
            "token": "s3cret", "sinks": [{"name": "a"}, {"name": "b"}],
        })
    );

    let template = |text: &str| with_config(json!({"envoy_bootstrap_json_tpl": text}));
    assert_eq!(
        error(&template("{{ .ProxyID }}")),
        "envoy_bootstrap_json_tpl is not a JSON object: expected value at line 1 column 1; \
         hint: it must begin with { and end with }"
    );
    assert!(error(&template("{{ range .Nope }}")).starts_with(
        "proxy config envoy_bootstrap_json_tpl cannot be rendered: {{ range .Nope }}"
    ));
    // The other keys are still checked.
    let mut both = template("{}");
    both.proxy.config.insert("envoy_stats_bind_addr".to_owned(), json!("x"));
    assert!(error(&both).contains("envoy_stats_bind_addr"));
}

/// A template with all constructs of Consul's own default, which used to be rejected,
/// renders the same as no template.
#[test]
fn a_template_with_the_constructs_of_consuls_own_is_rendered() {
    let template = r#"{
      "admin": {
        {{- if (not .AdminAccessLogConfig) }} "access_log_path": "{{ .AdminAccessLogPath }}", {{- end}}
        {{- if .AdminAccessLogConfig }}
        "access_log": [
        {{- range $index, $element := .AdminAccessLogConfig}}
          {{if $index}},{{end}} {{$element}}
        {{end}}],
        {{- end}}
        "address": {"socket_address": {"address": "{{ .AdminBindAddress }}", "port_value": {{ .AdminBindPort }}}}
      },
      "node": {
        "id": "{{ .ProxyID }}",
        "namespace": "{{if ne .Namespace ""}}{{ .Namespace }}{{else}}default{{end}}",
        "tls": {{ .GRPC.AgentTLS }},
        "cluster": "{{ with .ProxyCluster }}{{ . }}{{ end }}"
      }
      {{- if and .StatsConfigJSON (eq .Token "s3cret") }}, "stats_config": {{ .StatsConfigJSON }}{{ end }}
    }"#;
    let mut input = with_config(json!({"envoy_bootstrap_json_tpl": template}));
    input.xds.token = Token::new("s3cret");
    let rendered = document(&input);
    input.proxy.config.clear();
    let plain = document(&input);
    assert_eq!(rendered["admin"], plain["admin"]);
    assert_eq!(rendered["stats_config"], plain["stats_config"]);
    assert_eq!(
        rendered["node"],
        json!({
            "id": plain["node"]["id"], "namespace": "default", "tls": false,
            "cluster": plain["node"]["cluster"],
        })
    );
}

/// Every key with values close to valid ones.
fn any_config() -> impl Strategy<Value = Map<String, Value>> {
    let key = prop::sample::select(vec![
        "envoy_bootstrap_json_tpl",
        "envoy_dogstatsd_url",
        "envoy_extra_static_clusters_json",
        "envoy_extra_static_listeners_json",
        "envoy_extra_stats_sinks_json",
        "envoy_prometheus_bind_addr",
        "envoy_stats_bind_addr",
        "envoy_stats_config_json",
        "envoy_stats_flush_interval",
        "envoy_stats_tags",
        "envoy_statsd_url",
        "envoy_telemetry_collector_bind_socket_dir",
        "envoy_tracing_json",
        "protocol",
    ]);
    let text = prop_oneof![
        any::<String>(),
        r"[0-9]{0,22}\.?[0-9]{0,10}[sm]?",
        r#"[\[\]{},:" \na0]{0,12}"#,
        r"(udp|unix)://?/?[$\{\}\[\]A-Z0-9.:_/]{0,16}",
        r"(\$\{?)?HOST_IP\}?",
        r"(\{\{-? ?(if )?\.(ProxyID|Token|AgentTLS) -?\}\}|[ {}]){0,4}",
        Just("0.0.0.0:9102".to_owned()),
        Just("{\"name\": \"self_admin\"}".to_owned()),
        Just("{\"name\": 1}, {}".to_owned()),
    ];
    let leaf = prop_oneof![
        8 => text.prop_map(Value::from),
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
    ];
    let value = prop_oneof![
        6 => leaf.clone(),
        1 => prop::collection::vec(leaf.clone(), 0..3).prop_map(Value::from),
        1 => prop::collection::btree_map(any::<String>(), leaf, 0..2)
            .prop_map(|map| Value::Object(map.into_iter().collect())),
    ];
    prop::collection::btree_map(key.prop_map(str::to_owned), value, 0..6)
        .prop_map(|map| map.into_iter().collect())
}

proptest! {
    #[test]
    fn no_config_panics(config in any_config()) {
        let mut input = input();
        input.xds.token = Token::new("s3cret");
        input.proxy.config = config;
        input.ready_bind = Some(([0, 0, 0, 0], 9104).into());
        match render(&input, &|_| Some("10.0.0.7".to_owned())) {
            Ok(document) => prop_assert!(document.is_object()),
            Err(error) => {
                let error = error.to_string();
                prop_assert!(error.contains("; hint: "), "{}", error);
                prop_assert!(!error.contains("s3cret"), "{}", error);
            }
        }
    }
}
