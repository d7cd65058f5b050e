//! Bootstrap documents by Consul's own CLI and by us: the same but for what is
//! listed here with its reason, and Envoy validates them.

use std::process::Command;

use serde_json::{Map, Value, json};

use crate::program::command;
use crate::real_agent::{RealAgent, program_or_skip};

/// What becomes of a case.
enum Expected {
    /// Both write a document; the two are the same.
    Same,
    /// Both write a document; ours has these in place of the CLI's, by path.
    Differs(&'static [&'static str], &'static str),
    /// Both refuse.
    Refused(&'static str),
    /// The CLI writes a document that Envoy refuses; we refuse to write it.
    OnlyWeRefuse(&'static str, &'static str),
    /// The CLI writes a document without what was asked for; we refuse.
    WeRefuseSilence(&'static str, &'static str),
}

use Expected::{Differs, OnlyWeRefuse, Refused, Same, WeRefuseSilence};

/// A document that is asked for.
struct Case {
    /// `proxy.config` of the registration, as HCL.
    config: &'static str,
    /// Flags in the CLI's spelling, separated by blanks; ours have two dashes.
    flags: &'static str,
    /// `NAME=VALUE`, separated by blanks.
    env: &'static str,
    expected: Expected,
}

const fn config(config: &'static str, expected: Expected) -> Case {
    Case { config, flags: "", env: "", expected }
}

const fn flags(flags: &'static str, expected: Expected) -> Case {
    Case { config: "", flags, env: "", expected }
}

const fn env(env: &'static str, expected: Expected) -> Case {
    Case { config: "", flags: "", env, expected }
}

const PROMETHEUS: &str = "envoy_prometheus_bind_addr = \"127.0.0.1:9102\"";
const CLUSTER: &str =
    "{\\\"name\\\":\\\"c1\\\",\\\"connect_timeout\\\":\\\"1s\\\",\\\"type\\\":\\\"STATIC\\\"}";

const CASES: &[Case] = &[
    config("", Same),
    config("protocol = \"http\" local_connect_timeout_ms = 1000", Same),
    config(PROMETHEUS, Same),
    config("envoy_prometheus_bind_addr = \"0.0.0.0:9102\"", Same),
    config("envoy_prometheus_bind_addr = \"[::1]:9102\"", Same),
    config("envoy_stats_bind_addr = \"127.0.0.1:9103\"", Same),
    config(
        "envoy_stats_bind_addr = \"127.0.0.1:9103\" envoy_prometheus_bind_addr = \"127.0.0.1:9102\"",
        Same,
    ),
    config("envoy_statsd_url = \"udp://127.0.0.1:8125\"", Same),
    config("envoy_dogstatsd_url = \"udp://127.0.0.1:8126\"", Same),
    config("envoy_dogstatsd_url = \"unix:///run/dog.sock\"", Same),
    config(
        "envoy_statsd_url = \"udp://127.0.0.1:8125\" envoy_dogstatsd_url = \"udp://127.0.0.1:8126\"",
        Same,
    ),
    config("envoy_stats_tags = [\"a=1\", \"b\"]", Same),
    config("envoy_stats_tags = [\"Team=Shop\", \"local_cluster=mine\"]", Same),
    config("envoy_stats_flush_interval = \"5s\"", Same),
    config("envoy_stats_flush_interval = \"0.5s\"", Same),
    config(
        "envoy_stats_config_json = \"{\\\"use_all_default_tags\\\":false,\\\"stats_tags\\\":[{\\\"tag_name\\\":\\\"x\\\",\\\"fixed_value\\\":\\\"y\\\"}]}\"",
        Same,
    ),
    config(
        "envoy_extra_stats_sinks_json = \"{\\\"name\\\":\\\"envoy.stat_sinks.statsd\\\",\\\"typed_config\\\":{\\\"@type\\\":\\\"type.googleapis.com/envoy.config.metrics.v3.StatsdSink\\\",\\\"address\\\":{\\\"socket_address\\\":{\\\"address\\\":\\\"127.0.0.1\\\",\\\"port_value\\\":9125}}}}\"",
        Same,
    ),
    config(
        "envoy_extra_static_listeners_json = \"{\\\"name\\\":\\\"l1\\\",\\\"address\\\":{\\\"socket_address\\\":{\\\"address\\\":\\\"127.0.0.1\\\",\\\"port_value\\\":9555}},\\\"filter_chains\\\":[{\\\"filters\\\":[]}]}\"",
        Same,
    ),
    config(
        "envoy_bootstrap_json_tpl = \"{\\\"node\\\":{\\\"id\\\":\\\"{{ .ProxyID }}\\\",\\\"cluster\\\":\\\"{{ .ProxyCluster }}\\\"},\\\"admin\\\":{\\\"address\\\":{\\\"socket_address\\\":{\\\"address\\\":\\\"{{ .AdminBindAddress }}\\\",\\\"port_value\\\":{{ .AdminBindPort }}}}}}\"",
        Same,
    ),
    config(
        "envoy_bootstrap_json_tpl = \"{\\\"node\\\":{\\\"id\\\":\\\"{{ .AgentPort }}\\\",\\\"cluster\\\":\\\"c\\\"}}\"",
        Same,
    ),
    config("bind_address = \"127.0.0.1\" bind_port = 20001", Same),
    config("connect_timeout_ms = 10 handshake_timeout_ms = 10 max_inbound_connections = 3", Same),
    config(
        "envoy_telemetry_collector_bind_socket_dir = \"/run/t\"",
        Differs(
            &["/static_resources/clusters", "/stats_flush_interval", "/stats_sinks"],
            "a key of Consul 1.16, which 1.14 does not read",
        ),
    ),
    config(
        "envoy_statsd_url = \"udp://stats.example:8125\"",
        OnlyWeRefuse("envoy_statsd_url", "malformed IP address"),
    ),
    config(
        "envoy_stats_flush_interval = \"1m\"",
        OnlyWeRefuse("envoy_stats_flush_interval", "Envoy reads seconds only"),
    ),
    config("envoy_prometheus_bind_addr = \"nonsense\"", Refused("envoy_prometheus_bind_addr")),
    config("envoy_stats_bind_addr = \"nonsense\"", Refused("envoy_stats_bind_addr")),
    config("envoy_statsd_url = \"http://127.0.0.1:8125\"", Refused("envoy_statsd_url")),
    config("envoy_dogstatsd_url = \"tcp://127.0.0.1:8125\"", Refused("envoy_dogstatsd_url")),
    config("envoy_bootstrap_json_tpl = \"{{ .Nothing }}\"", Refused("envoy_bootstrap_json_tpl")),
    flags("-admin-bind 127.0.0.1:19009", Same),
    flags("-admin-bind localhost:19001", Same),
    flags("-admin-bind [::1]:19000", Same),
    flags("-admin-bind 0.0.0.0:19000", Same),
    flags("-admin-access-log-path /tmp/admin.log", Same),
    flags("-no-central-config", Same),
    Case { config: PROMETHEUS, flags: "-no-central-config", env: "", expected: Same },
    flags("-omit-deprecated-tags", Same),
    flags("-grpc-addr 127.0.0.1:9502", Same),
    flags("-grpc-addr http://127.0.0.1:9502", Same),
    flags("-grpc-addr localhost:9502", Same),
    flags("-grpc-addr [::1]:9502", Same),
    flags("-grpc-addr unix:///run/consul.sock", Same),
    flags("-grpc-addr https://127.0.0.1:9503 -grpc-ca-file {CA}", Same),
    flags("-grpc-addr https://127.0.0.1:9503 -ca-file {CA}", Same),
    flags("-grpc-addr https://127.0.0.1:9503 -grpc-ca-path {CA_PATH}", Same),
    flags("-grpc-addr unix:///run/consul.sock -grpc-ca-file {CA}", Same),
    flags("-token t0ken", Same),
    flags("-token-file {TOKEN}", Same),
    flags("-token t0ken -token-file {TOKEN}", Same),
    flags("-envoy-ready-bind-address 127.0.0.1 -envoy-ready-bind-port 9104", Same),
    Case {
        config: PROMETHEUS,
        flags: "-envoy-ready-bind-address 127.0.0.1 -envoy-ready-bind-port 9104",
        env: "",
        expected: Same,
    },
    Case { config: PROMETHEUS, flags: "-prometheus-scrape-path /m", env: "", expected: Same },
    Case { config: PROMETHEUS, flags: "-prometheus-backend-port 20100", env: "", expected: Same },
    Case {
        config: PROMETHEUS,
        flags: "-prometheus-ca-file {CA} -prometheus-cert-file {CERT} -prometheus-key-file {KEY}",
        env: "",
        expected: Differs(
            &["/static_resources/listeners"],
            "ours writes `require_client_certificate: false`, which is Envoy's default",
        ),
    },
    Case { config: PROMETHEUS, flags: "-omit-deprecated-tags -token t", env: "", expected: Same },
    flags("-prometheus-ca-file {CA}", Refused("prometheus")),
    flags("-admin-bind nonsense", Refused("--admin-bind")),
    flags("-grpc-addr ftp://127.0.0.1:1", Refused("--grpc-addr")),
    flags(
        "-envoy-ready-bind-address 127.0.0.1",
        WeRefuseSilence(
            "--envoy-ready-bind-port",
            "the CLI leaves the listener out without a word",
        ),
    ),
    flags(
        "-grpc-addr https://127.0.0.1:9503",
        OnlyWeRefuse("no CA certificate", "DataSource cannot be empty"),
    ),
    env("CONSUL_HTTP_TOKEN=t0ken", Same),
    env("CONSUL_HTTP_TOKEN_FILE={TOKEN}", Same),
    env("CONSUL_HTTP_TOKEN=a CONSUL_HTTP_TOKEN_FILE={TOKEN}", Same),
    env("CONSUL_GRPC_ADDR=127.0.0.1:9502", Same),
    env("CONSUL_GRPC_ADDR=https://127.0.0.1:9503 CONSUL_GRPC_CACERT={CA}", Same),
    env("CONSUL_GRPC_ADDR=https://127.0.0.1:9503 CONSUL_GRPC_CAPATH={CA_PATH}", Same),
    env("CONSUL_GRPC_ADDR=https://127.0.0.1:9503 CONSUL_CACERT={CA}", Same),
    Case {
        config: "envoy_statsd_url = \"$STATSD_URL\"",
        flags: "",
        env: "STATSD_URL=udp://127.0.0.1:8127",
        expected: Same,
    },
    Case {
        config: "envoy_dogstatsd_url = \"$DOG_URL\"",
        flags: "",
        env: "DOG_URL=udp://127.0.0.1:8127",
        expected: Same,
    },
];

/// With these central settings, a registration of its own, and these flags.
const CENTRAL: &[(&str, &str, &str)] = &[
    ("", "", ""),
    ("envoy_prometheus_bind_addr = \"127.0.0.1:9102\"", "", ""),
    ("envoy_prometheus_bind_addr = \"127.0.0.1:9102\"", "", "-no-central-config"),
    (
        "envoy_prometheus_bind_addr = \"127.0.0.1:9102\"",
        "envoy_prometheus_bind_addr = \"127.0.0.1:9999\"",
        "",
    ),
    ("envoy_stats_tags = [\"a=1\"]", "envoy_stats_flush_interval = \"7s\"", ""),
    ("envoy_dogstatsd_url = \"udp://127.0.0.1:8125\" protocol = \"http\"", "", ""),
];

/// Runs both commands and compares what they write.
struct Parity {
    agent: RealAgent,
    envoy: String,
    files: [(&'static str, String); 5],
    count: usize,
    problems: Vec<String>,
}

/// What a command left: its document, or what it said.
type Outcome = Result<Value, String>;

// === impl Parity ===

impl Parity {
    fn start() -> Option<Self> {
        let (envoy, agent) = (program_or_skip("ENVOY_BIN")?, RealAgent::start(&json!({}))?);
        agent.wait_until("/v1/agent/connect/ca/roots", "", |roots| roots["Roots"][0].is_object());
        let roots = agent.get("/v1/agent/connect/ca/roots", "").unwrap();
        let leaf = agent.get("/v1/agent/connect/ca/leaf/parity", "").unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let files = [
            ("{CA}", agent.write("ca.pem", &text(&roots["Roots"][0]["RootCert"]))),
            ("{CA_PATH}", agent.write_in("cas", "ca.pem", &text(&roots["Roots"][0]["RootCert"]))),
            ("{TOKEN}", agent.write("token", "from-a-file\n")),
            ("{CERT}", agent.write("cert.pem", &text(&leaf["CertPEM"]))),
            ("{KEY}", agent.write("key.pem", &text(&leaf["PrivateKeyPEM"]))),
        ];
        Some(Self { agent, envoy, files, count: 0, problems: Vec::new() })
    }

    fn register(&self, config: &str) {
        let file = self.agent.write(
            "parity.hcl",
            &format!(
                "service {{ name = \"web\" port = 8080 connect {{ sidecar_service {{ port = 20000 \
                 proxy {{ config {{ {config} }} }} }} }} }}"
            ),
        );
        self.agent.cli(&["services", "register", &file]);
    }

    fn fill(&self, text: &str) -> Vec<String> {
        let fill = |word: &str| {
            self.files.iter().fold(word.to_owned(), |word, (name, path)| word.replace(name, path))
        };
        text.split_whitespace().map(fill).collect()
    }

    /// The CLI's outcome and ours.
    fn both(&self, which: &[&str], flags: &str, env: &str) -> (Outcome, Outcome) {
        let flags = self.fill(flags);
        let env = self.fill(env);
        let env: Vec<(&str, &str)> = env.iter().map(|pair| pair.split_once('=').unwrap()).collect();
        let mut cli = Command::new(self.agent.consul());
        cli.args(["connect", "envoy", "-bootstrap"]).args(which).args(&flags).env_clear();
        let ours = which.iter().copied().chain(flags.iter().map(String::as_str));
        let ours: Vec<String> = ours
            .map(|word| if word.starts_with('-') { format!("-{word}") } else { word.to_owned() })
            .collect();
        let ours: Vec<&str> =
            std::iter::once("bootstrap").chain(ours.iter().map(String::as_str)).collect();
        let mut ours = command(&ours);
        let [by_cli, by_us] = [&mut cli, &mut ours].map(|command| {
            command.env("CONSUL_HTTP_ADDR", &self.agent.http).envs(env.iter().copied());
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() {
                Ok(serde_json::from_slice(&output.stdout).expect("a document"))
            } else {
                Err(said)
            }
        });
        (by_cli, by_us)
    }

    /// What Envoy says of a document.
    fn validate(&self, document: &Value) -> Result<(), String> {
        let file = self.agent.write("bootstrap.json", &document.to_string());
        let mut envoy = Command::new(&self.envoy);
        envoy.args(["--mode", "validate", "--log-level", "error", "--config-path", &file]);
        let output = envoy.env_clear().output().unwrap();
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn check(&mut self, Case { config, flags, env, expected }: &Case) {
        self.count += 1;
        self.register(config);
        let context = format!("config {{ {config} }} flags `{flags}` environment `{env}`");
        let outcomes = self.both(&["-sidecar-for", "web"], flags, env);
        self.judge(&context, &outcomes, expected);
    }

    fn judge(&mut self, context: &str, (by_cli, by_us): &(Outcome, Outcome), expected: &Expected) {
        if let Err(problem) = self.verdict(by_cli, by_us, expected) {
            self.problems.push(format!("{context}: {problem}"));
        }
    }

    fn verdict(
        &self,
        by_cli: &Outcome,
        by_us: &Outcome,
        expected: &Expected,
    ) -> Result<(), String> {
        let cli_wrote = || by_cli.clone().map_err(|said| format!("the CLI refuses: {said}"));
        let (allowed, reason) = match expected {
            Same => (&[][..], "nothing"),
            Differs(paths, reason) => (*paths, *reason),
            Refused(words) => {
                let said = by_us.as_ref().err().ok_or("we write a document")?;
                let is_right = by_cli.is_err() && said.contains(words);
                return is_right.then_some(()).ok_or(format!("the CLI: {by_cli:?}, we: {said}"));
            }
            OnlyWeRefuse(words, reason) | WeRefuseSilence(words, reason) => {
                let is_valid = self.validate(&cli_wrote()?);
                if is_valid.is_ok() != matches!(expected, WeRefuseSilence(..)) {
                    return Err(format!("{reason}; Envoy on the CLI's document: {is_valid:?}"));
                }
                let said = by_us.as_ref().err().ok_or("we write a document")?;
                return said.contains(words).then_some(()).ok_or_else(|| said.clone());
            }
        };
        let by_cli = cli_wrote()?;
        let by_us = by_us.clone().map_err(|said| format!("we refuse: {said}"))?;
        let found = differences(by_cli.clone(), by_us.clone());
        let paths: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
        if paths != allowed {
            return Err(format!("differs in {found:#?}, expected {allowed:?}: {reason}"));
        }
        self.validate(&by_cli).map_err(|said| format!("the CLI's document: {said}"))?;
        self.validate(&by_us).map_err(|said| format!("our document: {said}"))
    }

    /// Asserts that every case was as expected.
    fn finish(self) {
        assert!(self.problems.is_empty(), "{}", self.problems.join("\n"));
    }
}

/// In what two documents differ once both are in one form, by the topmost path
/// below the top level, sorted.
fn differences(by_cli: Value, by_us: Value) -> Vec<(String, String)> {
    let (by_cli, by_us) = (in_one_form(by_cli), in_one_form(by_us));
    let mut found = Vec::new();
    compare("", &by_cli, &by_us, &mut found);
    found
}

fn compare(path: &str, left: &Value, right: &Value, found: &mut Vec<(String, String)>) {
    match (left, right) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                compare(&format!("{path}/{key}"), &left[key.as_str()], &right[key.as_str()], found);
            }
        }
        _ if left == right => {}
        _ => found.push((path.to_owned(), format!("{left}\n{right}"))),
    }
}

/// Writes a document as Consul's newest release does. The reasons for the forms
/// that differ:
///
/// - protobuf's JSON takes `typedConfig` for `typed_config`: ours are snake_case
/// - `access_log_path` and `http2_protocol_options` are deprecated in Envoy:
///   ours are the typed forms that replace them
/// - `ignore_health_on_host_removal: false` is the default, and left out
/// - keys that are empty or the default (`retry_back_off` is ours: an agent that
///   comes back is found within 2 s instead of 30)
fn in_one_form(document: Value) -> Value {
    let mut document = snake_case(document);
    if let Some(admin) = document["admin"].as_object_mut()
        && let Some(path) = admin.remove("access_log_path")
    {
        admin.insert("access_log".to_owned(), json!([{
            "name": "envoy.access_loggers.file",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                "path": path,
            },
        }]));
    }
    let clusters = document.pointer_mut("/static_resources/clusters").and_then(Value::as_array_mut);
    for cluster in clusters.into_iter().flatten() {
        let cluster = cluster.as_object_mut().expect("a cluster");
        cluster.remove("ignore_health_on_host_removal");
        let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        for (old, new) in [
            ("http2_protocol_options", "http2_protocol_options"),
            ("http_protocol_options", "http_protocol_options"),
        ] {
            if cluster.remove(old).is_some() {
                cluster.insert(
                    "typed_extension_protocol_options".to_owned(),
                    json!({options: {
                        "@type": format!("type.googleapis.com/{options}"),
                        "explicit_http_config": {new: {}},
                    }}),
                );
            }
        }
    }
    if let Some(ads) =
        document.pointer_mut("/dynamic_resources/ads_config/grpc_services/envoy_grpc")
        && let Some(ads) = ads.as_object_mut()
    {
        ads.remove("retry_policy");
    }
    document
}

fn snake_case(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(snake_case).collect(),
        Value::Object(entries) => {
            let entries = entries.into_iter().map(|(key, value)| {
                let is_camel = key.starts_with(|c: char| c.is_ascii_lowercase())
                    && key.chars().all(|c| c.is_ascii_alphanumeric());
                let key = if is_camel {
                    key.chars().fold(String::new(), |key, c| match c {
                        c if c.is_ascii_uppercase() => format!("{key}_{}", c.to_ascii_lowercase()),
                        c => format!("{key}{c}"),
                    })
                } else {
                    key
                };
                (key, snake_case(value))
            });
            Value::Object(entries.collect::<Map<_, _>>())
        }
        other => other,
    }
}

#[test]
fn bootstraps_are_those_of_consuls_cli() {
    let Some(mut parity) = Parity::start() else { return };
    for case in CASES {
        parity.check(case);
    }
    // A text of HCL with quotes within is no constant.
    let clusters = [CLUSTER.to_owned(), format!("{CLUSTER},{}", CLUSTER.replace("c1", "c2"))];
    for clusters in clusters {
        parity.register(&format!("envoy_extra_static_clusters_json = \"{clusters}\""));
        let outcomes = parity.both(&["-sidecar-for", "web"], "", "");
        parity.judge(&clusters, &outcomes, &Same);
        parity.count += 1;
    }
    assert!(parity.count >= 60, "{} bootstraps", parity.count);
    parity.finish();
}

#[test]
fn bootstraps_by_central_configuration_are_those_of_consuls_cli() {
    let Some(mut parity) = Parity::start() else { return };
    for (central, own, flags) in CENTRAL {
        let file = parity.agent.write(
            "defaults.hcl",
            &format!("Kind = \"proxy-defaults\"\nName = \"global\"\nConfig {{ {central} }}\n"),
        );
        parity.agent.cli(&["config", "write", &file]);
        parity.register(own);
        let outcomes = parity.both(&["-proxy-id", "web-sidecar-proxy"], flags, "");
        let context = format!("proxy-defaults {{ {central} }} config {{ {own} }} flags `{flags}`");
        parity.judge(&context, &outcomes, &Same);
    }
    parity.finish();
}

#[test]
fn bootstraps_of_gateways_and_by_environment_are_those_of_consuls_cli() {
    let Some(mut parity) = Parity::start() else { return };
    for kind in ["mesh-gateway", "terminating-gateway", "ingress-gateway"] {
        let file = parity.agent.write(
            "gateway.hcl",
            &format!("service {{ name = \"{kind}\" kind = \"{kind}\" port = 8443 }}"),
        );
        parity.agent.cli(&["services", "register", &file]);
        let outcomes = parity.both(&["-proxy-id", kind], "", "");
        parity.judge(kind, &outcomes, &Same);
    }
    for gateway in ["mesh", "terminating", "ingress"] {
        let outcomes = parity.both(&["-gateway", gateway], "", "");
        parity.judge(gateway, &outcomes, &Same);
    }
    // The CLI is silent about a gateway of another kind.
    let outcomes = parity.both(&["-gateway", "mesh", "-proxy-id", "ingress-gateway"], "", "");
    parity.judge(
        "another kind",
        &outcomes,
        &WeRefuseSilence("is not of kind mesh-gateway", "silence"),
    );
    let outcomes = parity.both(&["-gateway", "bogus"], "", "");
    parity.judge("bogus", &outcomes, &Refused("expected mesh, terminating, ingress or api"));
    let second = "service { name = \"second\" kind = \"mesh-gateway\" port = 8444 }";
    let file = parity.agent.write("second.hcl", second);
    parity.agent.cli(&["services", "register", &file]);
    let outcomes = parity.both(&["-gateway", "mesh"], "", "");
    parity.judge("two gateways", &outcomes, &Refused("2 services of kind mesh-gateway"));
    parity.register("");
    for variable in ["CONNECT_SIDECAR_FOR=web", "CONNECT_PROXY_ID=web-sidecar-proxy"] {
        let outcomes = parity.both(&[], "", variable);
        parity.judge(variable, &outcomes, &Same);
    }
    for (which, words) in [
        (["-proxy-id", "nope"], "no service `nope`"),
        (["-proxy-id", "web"], "is not a Connect proxy"),
        (["-sidecar-for", "nope"], "no sidecar proxy is registered"),
    ] {
        let outcomes = parity.both(&which, "", "");
        parity.judge(words, &outcomes, &Refused(words));
    }
    let outcomes = parity.both(&[], "", "");
    parity.judge("no proxy", &outcomes, &Refused("--proxy-id"));
    parity.finish();
}
