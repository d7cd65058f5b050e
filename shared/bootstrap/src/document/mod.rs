//! The bootstrap as a whole.
//!
//! - [`cluster`]: Envoy's static clusters
//! - [`listener`]: listeners that each expose one endpoint of Envoy's admin server
//! - [`sink`], [`stats`], [`telemetry`]: destinations and tags of its metrics
//! - [`template`]: a bootstrap from a user's template
//! - [`token`], [`ca`]: the ACL token and the agent's CA, also in files that Envoy watches

pub(crate) mod ca;
mod cluster;
mod listener;
mod sink;
mod stats;
mod telemetry;
mod template;
pub(crate) mod token;

use serde_json::{Value, json};

use crate::input::config::{self, Config};
use crate::{Error, Input, XdsAddress};
use cluster::LOCAL_AGENT;
use template::Field;
use token::METADATA_KEY;

/// Renders the bootstrap.
///
/// `env` looks up environment variables, which `envoy_statsd_url` and
/// `envoy_dogstatsd_url` may refer to (mostly `HOST_IP`). Nothing else of the
/// environment is read. The result contains the ACL token: the caller must restrict the
/// permissions of its file.
///
/// # Errors
/// The error names the setting that can't be honoured. No setting is ignored silently.
pub fn render(input: &Input, env: &dyn Fn(&str) -> Option<String>) -> Result<Value, Error> {
    let config = Config::decode(&input.proxy.config)?;
    let template = config.template.clone();
    let parts = Parts::new(input, config, env)?;
    match template {
        None => Ok(document(input, parts)),
        Some(template) => {
            let text = template::render(&template, &fields(input, &parts))?;
            config::parse_object(config::TEMPLATE, &text)
        }
    }
}

/// Parts of the bootstrap that the configuration changes.
struct Parts {
    admin_access_log: Vec<Value>,
    /// Static clusters besides the agent's.
    clusters: Vec<Value>,
    listeners: Vec<Value>,
    secrets: Vec<Value>,
    stats_sinks: Vec<Value>,
    stats_config: Value,
    stats_flush_interval: Option<String>,
    tracing: Option<Value>,
}

/// The bootstrap, without absent values and empty lists.
fn document(input: &Input, parts: Parts) -> Value {
    let proxy = &input.proxy;
    let mut clusters = vec![cluster::local_agent(&input.xds)];
    clusters.extend(parts.clusters);

    without_empty(json!({
        "admin": {
            "access_log": parts.admin_access_log,
            "address": cluster::address(input.admin.bind),
        },
        "node": {
            "cluster": proxy.cluster,
            "id": proxy.id,
            "metadata": without_empty(json!({
                "node_name": proxy.node_name,
                "namespace": proxy.namespace(),
                "partition": proxy.partition(),
            })),
        },
        "layered_runtime": {
            "layers": [{
                "name": "base",
                // The agent's regular expressions in routes and intentions may be
                // larger than Envoy's default limit.
                "static_layer": { "re2.max_program_size.error_level": 1_048_576 },
            }],
        },
        "static_resources": without_empty(json!({
            "clusters": clusters,
            "listeners": parts.listeners,
            "secrets": parts.secrets,
        })),
        "stats_sinks": parts.stats_sinks,
        "stats_config": parts.stats_config,
        "stats_flush_interval": parts.stats_flush_interval,
        "tracing": parts.tracing,
        "dynamic_resources": {
            "lds_config": from_ads(),
            "cds_config": from_ads(),
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": {
                    // Present even without a token, as Consul writes it.
                    "initial_metadata": [
                        { "key": METADATA_KEY, "value": input.xds.token.expose() },
                    ],
                    "envoy_grpc": {
                        "cluster_name": LOCAL_AGENT,
                        // Envoy reconnects within seconds after the agent is back: by
                        // default its pauses grow to half a minute.
                        "retry_policy": {
                            "retry_back_off": { "base_interval": "0.2s", "max_interval": "2s" },
                        },
                    },
                },
            },
        },
    }))
}

/// Resources arrive over the one aggregated stream, and Envoy waits for the first of
/// them without a time limit: if it started without its listeners, it would look
/// healthy.
fn from_ads() -> Value {
    json!({
        "ads": {},
        "initial_fetch_timeout": "0s",
        "resource_api_version": "V3",
    })
}

/// Removes members that are null, "" or [].
fn without_empty(mut object: Value) -> Value {
    if let Some(members) = object.as_object_mut() {
        members.retain(|_, value| match value {
            Value::Null => false,
            Value::String(text) => !text.is_empty(),
            Value::Array(list) => !list.is_empty(),
            _ => true,
        });
    }
    object
}

// === impl Parts ===

impl Parts {
    fn new(
        input: &Input,
        config: Config,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Error> {
        check(input)?;
        let mut sinks = sink::statsd(&config, env)?;
        sinks.extend(config.extra_sinks);
        let mut parts = Self {
            admin_access_log: vec![input.admin.access_log()?],
            clusters: config.extra_clusters,
            listeners: config.extra_listeners,
            secrets: Vec::new(),
            stats_sinks: sinks,
            stats_config: match config.stats_override {
                Some(own) => own,
                None => stats::config(input, &config.stats_tags)?,
            },
            stats_flush_interval: config.stats_flush_interval,
            tracing: config.tracing,
        };

        if let Some(bind) = config.prometheus_bind {
            let prometheus = &input.prometheus;
            let cluster = if let Some(port) = prometheus.backend_port {
                let merged = (input.admin.bind.ip(), port).into();
                parts.add_cluster(cluster::http("prometheus_backend", merged))
            } else {
                parts.add_cluster(cluster::self_admin(&input.admin))
            };
            let page = listener::prometheus(bind, prometheus, &cluster);
            parts.listeners.push(page);
            parts.secrets = prometheus.tls.iter().flat_map(listener::secrets).collect();
        }
        if let Some(bind) = config.stats_bind {
            let cluster = parts.add_cluster(cluster::self_admin(&input.admin));
            parts.listeners.push(listener::stats(bind, &cluster));
        }
        if let Some(bind) = input.ready_bind {
            let cluster = parts.add_cluster(cluster::self_admin(&input.admin));
            parts.listeners.push(listener::ready(bind, &cluster));
        }
        if let Some(dir) = &config.telemetry_collector_dir {
            parts.add_cluster(telemetry::cluster(&telemetry::socket(dir, &input.proxy)));
            parts.stats_sinks.push(telemetry::sink());
            // Metrics are pushed in full: every five seconds would be too much.
            parts.stats_flush_interval.get_or_insert_with(|| "60s".to_owned());
        }
        Ok(parts)
    }

    /// Adds a cluster unless one of that name exists (the user's, or one that an
    /// earlier listener needed), and returns its name: Envoy rejects duplicates.
    fn add_cluster(&mut self, cluster: Value) -> String {
        let name = cluster["name"].as_str().unwrap_or_default().to_owned();
        if !self.clusters.iter().any(|other| other["name"] == cluster["name"]) {
            self.clusters.push(cluster);
        }
        name
    }
}

/// Rejects input whose bootstrap Envoy would accept although it can't work.
fn check(input: &Input) -> Result<(), Error> {
    if input.xds.ca_pem.as_ref().is_some_and(|pem| pem.trim().is_empty()) {
        return Err(Error::NoCa);
    }
    let scrape_path = &input.prometheus.scrape_path;
    if !scrape_path.starts_with('/') {
        return Err(Error::ScrapePath { value: scrape_path.clone() });
    }
    Ok(())
}

// === Template ===

/// The fields that `envoy_bootstrap_json_tpl` may use: the names of Consul's
/// `BootstrapTplArgs`, as `consul connect envoy` fills them.
fn fields(input: &Input, parts: &Parts) -> Vec<(&'static str, Field)> {
    use Field::{Flag, Json, List, Text};

    let Input { proxy, xds, admin, prometheus, .. } = input;
    let (agent_address, agent_port, agent_socket) = match &xds.address {
        XdsAddress::Tcp(address) => {
            (address.ip().to_string(), address.port().to_string(), String::new())
        }
        XdsAddress::Unix(path) => (String::new(), String::new(), path.clone()),
    };
    let given = |value: &Option<String>| value.clone().unwrap_or_default();
    let (ca_file, ca_path, cert_file, key_file) = match &prometheus.tls {
        None => Default::default(),
        Some(tls) => {
            let (file, path) = match &tls.ca {
                crate::PrometheusCa::File(file) => (file.clone(), String::new()),
                crate::PrometheusCa::Path(path) => (String::new(), path.clone()),
            };
            (file, path, tls.cert_file.clone(), tls.key_file.clone())
        }
    };
    vec![
        ("AdminAccessLogConfig", List(parts.admin_access_log.clone())),
        ("AdminAccessLogPath", Text(admin.access_log_path.clone())),
        ("AdminBindAddress", Text(admin.bind.ip().to_string())),
        ("AdminBindPort", Text(admin.bind.port().to_string())),
        ("AgentAddress", Text(agent_address)),
        ("AgentCAPEM", Text(given(&xds.ca_pem))),
        ("AgentPort", Text(agent_port)),
        ("AgentSocket", Text(agent_socket)),
        ("AgentTLS", Flag(xds.ca_pem.is_some())),
        ("Datacenter", Text(given(&proxy.datacenter))),
        ("LocalAgentClusterName", Text(LOCAL_AGENT.to_owned())),
        ("Namespace", Text(given(&proxy.namespace))),
        ("NodeName", Text(given(&proxy.node_name))),
        ("Partition", Text(given(&proxy.partition))),
        (
            "PrometheusBackendPort",
            Text(prometheus.backend_port.map(|port| port.to_string()).unwrap_or_default()),
        ),
        ("PrometheusCAFile", Text(ca_file)),
        ("PrometheusCAPath", Text(ca_path)),
        ("PrometheusCertFile", Text(cert_file)),
        ("PrometheusKeyFile", Text(key_file)),
        ("PrometheusScrapePath", Text(prometheus.scrape_path.clone())),
        ("ProxyCluster", Text(proxy.cluster.clone())),
        ("ProxyID", Text(proxy.id.clone())),
        ("ProxySourceService", Text(given(&proxy.source_service))),
        ("StaticClustersJSON", Json(parts.clusters.clone())),
        ("StaticListenersJSON", Json(parts.listeners.clone())),
        ("StaticSecretsJSON", Json(parts.secrets.clone())),
        ("StatsConfigJSON", Json(vec![parts.stats_config.clone()])),
        ("StatsFlushInterval", Text(given(&parts.stats_flush_interval))),
        ("StatsSinksJSON", Json(parts.stats_sinks.clone())),
        ("Token", Text(xds.token.expose().to_owned())),
        ("TracingConfigJSON", Json(parts.tracing.iter().cloned().collect())),
    ]
}
