//! The keys of `Proxy.Config` that change the bootstrap, decoded as loosely as Consul
//! does.

use std::net::SocketAddr;

use serde_json::{Map, Value};

use crate::Error;

/// The part of `Proxy.Config` that concerns the bootstrap. Like Consul, treats an empty
/// text as absent.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) statsd_url: Option<String>,
    pub(crate) dogstatsd_url: Option<String>,
    pub(crate) stats_tags: Vec<String>,
    pub(crate) stats_bind: Option<SocketAddr>,
    pub(crate) prometheus_bind: Option<SocketAddr>,
    pub(crate) stats_flush_interval: Option<String>,
    pub(crate) telemetry_collector_dir: Option<String>,
    pub(crate) template: Option<String>,
    pub(crate) extra_clusters: Vec<Value>,
    pub(crate) extra_listeners: Vec<Value>,
    pub(crate) extra_sinks: Vec<Value>,
    pub(crate) stats_override: Option<Value>,
    pub(crate) tracing: Option<Value>,
}

pub(crate) const STATSD_URL: &str = "envoy_statsd_url";
pub(crate) const DOGSTATSD_URL: &str = "envoy_dogstatsd_url";
pub(crate) const TEMPLATE: &str = "envoy_bootstrap_json_tpl";
const STATS_TAGS: &str = "envoy_stats_tags";

impl Config {
    pub(crate) fn decode(config: &Map<String, Value>) -> Result<Self, Error> {
        Ok(Self {
            statsd_url: text(config, STATSD_URL)?,
            dogstatsd_url: text(config, DOGSTATSD_URL)?,
            stats_tags: texts(config, STATS_TAGS)?,
            stats_bind: bind_address(config, "envoy_stats_bind_addr")?,
            prometheus_bind: bind_address(config, "envoy_prometheus_bind_addr")?,
            stats_flush_interval: flush_interval(config)?,
            telemetry_collector_dir: text(config, "envoy_telemetry_collector_bind_socket_dir")?,
            template: text(config, TEMPLATE)?,
            extra_clusters: objects(config, "envoy_extra_static_clusters_json")?,
            extra_listeners: objects(config, "envoy_extra_static_listeners_json")?,
            extra_sinks: objects(config, "envoy_extra_stats_sinks_json")?,
            stats_override: object(config, "envoy_stats_config_json")?,
            tracing: object(config, "envoy_tracing_json")?,
        })
    }
}

/// Parses JSON that must be an object; errors name `setting`.
pub(crate) fn parse_object(setting: &'static str, json: &str) -> Result<Value, Error> {
    serde_json::from_str(json).map(Value::Object).map_err(|error| Error::Json {
        setting,
        expected: "a JSON object",
        problem: error.to_string(),
        hint: "it must begin with { and end with }",
    })
}

/// The value of a key, ignoring case if there is no exact match.
fn find<'a>(config: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    config.get(key).or_else(|| {
        config.iter().find_map(|(name, value)| name.eq_ignore_ascii_case(key).then_some(value))
    })
}

fn text(config: &Map<String, Value>, key: &'static str) -> Result<Option<String>, Error> {
    let text = match find(config, key) {
        None => return Ok(None),
        Some(value) => weak_text(key, value)?,
    };
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// A list of texts; a single value is a list of one.
fn texts(config: &Map<String, Value>, key: &'static str) -> Result<Vec<String>, Error> {
    match find(config, key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(values)) => values.iter().map(|value| weak_text(key, value)).collect(),
        Some(value) => Ok(vec![weak_text(key, value)?]),
    }
}

/// A value as text, as Consul decodes it: `true` is `1`, null is empty.
fn weak_text(key: &'static str, value: &Value) -> Result<String, Error> {
    let not_text = |found| Err(Error::NotText { key, found });
    match value {
        Value::Null => Ok(String::new()),
        Value::Bool(value) => Ok(u8::from(*value).to_string()),
        // JSON may contain 5 as 5.0; as text it is 5.
        Value::Number(number) => Ok(match number.as_f64() {
            Some(float) if number.is_f64() => float.to_string(),
            _ => number.to_string(),
        }),
        Value::String(text) => Ok(text.clone()),
        Value::Array(_) => not_text("a list"),
        Value::Object(_) => not_text("an object"),
    }
}

fn bind_address(
    config: &Map<String, Value>,
    key: &'static str,
) -> Result<Option<SocketAddr>, Error> {
    let Some(value) = text(config, key)? else {
        return Ok(None);
    };
    match value.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(Some(address)),
        _ => Err(Error::BindAddress { key, value }),
    }
}

fn object(config: &Map<String, Value>, key: &'static str) -> Result<Option<Value>, Error> {
    text(config, key)?.map(|json| parse_object(key, &json)).transpose()
}

/// Parses one or more objects separated by commas.
fn objects(config: &Map<String, Value>, key: &'static str) -> Result<Vec<Value>, Error> {
    let Some(json) = text(config, key)? else {
        return Ok(Vec::new());
    };
    // The bracket gets a line of its own so that an error's column is right.
    let objects: Result<Vec<Map<String, Value>>, _> =
        serde_json::from_str(&format!("[\n{json}\n]"));
    match objects {
        Ok(objects) => Ok(objects.into_iter().map(Value::Object).collect()),
        Err(error) => {
            let problem = error.to_string();
            let (problem, _) = problem.split_once(" at line ").unwrap_or((&problem, ""));
            // If the text ends too early, the error points to our own bracket.
            let line = (error.line() - 1).clamp(1, json.lines().count().max(1));
            Err(Error::Json {
                setting: key,
                expected: "JSON objects with commas between them",
                problem: format!("{problem} at line {line} column {}", error.column()),
                hint: "leave out brackets around the list",
            })
        }
    }
}

/// A protobuf duration within the limits of Envoy's
/// `config.bootstrap.v3.Bootstrap.stats_flush_interval`.
fn flush_interval(config: &Map<String, Value>) -> Result<Option<String>, Error> {
    const MILLISECOND: u64 = 1_000_000;
    const LIMIT: u64 = 300_000 * MILLISECOND;
    let Some(value) = text(config, "envoy_stats_flush_interval")? else {
        return Ok(None);
    };
    match duration_nanos(&value) {
        Some(MILLISECOND..LIMIT) => Ok(Some(value)),
        _ => Err(Error::FlushInterval { value }),
    }
}

/// Nanoseconds of a protobuf duration, such as `1.5s`; `None` if invalid.
fn duration_nanos(text: &str) -> Option<u64> {
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let seconds = text.strip_suffix('s')?;
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, "0"));
    if whole.is_empty() || !digits(whole) || !(1..=9).contains(&fraction.len()) || !digits(fraction)
    {
        return None;
    }
    let nanos: u64 = format!("{fraction:0<9}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(nanos)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn decode(config: &Value) -> Result<Config, Error> {
        Config::decode(config.as_object().expect("tests pass objects"))
    }

    fn error(config: &Value) -> String {
        decode(config).unwrap_err().to_string()
    }

    #[test]
    fn values_are_decoded_weakly() {
        let config = decode(&json!({
            "envoy_stats_tags": ["a=b", 1, 2.0, true, 1.5],
            "Envoy_Statsd_URL": "udp://127.0.0.1:8125",
            "envoy_dogstatsd_url": null,
            "envoy_tracing_json": "",
            "envoy_telemetry_collector_bind_socket_dir": false,
            "protocol": {"unknown": "keys are ignored"},
        }))
        .unwrap();
        assert_eq!(config.stats_tags, ["a=b", "1", "2", "1", "1.5"]);
        assert_eq!(config.statsd_url.unwrap(), "udp://127.0.0.1:8125");
        assert_eq!(config.dogstatsd_url, None);
        assert_eq!(config.tracing, None);
        assert_eq!(config.telemetry_collector_dir.unwrap(), "0");

        let single = decode(&json!({"envoy_stats_tags": "canary"})).unwrap();
        assert_eq!(single.stats_tags, ["canary"]);
    }

    #[test]
    fn the_exact_key_wins_over_one_in_another_case() {
        let config = decode(&json!({
            "ENVOY_STATSD_URL": "udp://1.1.1.1:1",
            "envoy_statsd_url": "udp://2.2.2.2:2",
        }));
        assert_eq!(config.unwrap().statsd_url.unwrap(), "udp://2.2.2.2:2");
    }

    #[test]
    fn lists_and_objects_are_not_texts() {
        assert_eq!(
            error(&json!({"envoy_tracing_json": {"http": {}}})),
            "proxy config envoy_tracing_json is an object, expected a text; \
             hint: put it between quotes, JSON too"
        );
        assert!(error(&json!({"envoy_stats_tags": [[]]})).contains("is a list"));
    }

    #[test]
    fn bind_addresses_are_ip_and_port() {
        for good in ["0.0.0.0:9102", "127.0.0.1:1", "[::]:9102", "[fd00::1]:65535"] {
            let config = decode(&json!({"envoy_prometheus_bind_addr": good})).unwrap();
            assert_eq!(config.prometheus_bind.unwrap().to_string(), good);
        }
        for bad in [
            json!("nonsense"),
            json!(":9102"),
            json!("localhost:9102"),
            json!("0.0.0.0:0"),
            json!("::9102"),
            json!(9102),
        ] {
            let text = error(&json!({"envoy_stats_bind_addr": bad}));
            assert!(
                text.starts_with("proxy config envoy_stats_bind_addr is not an address to"),
                "{bad}: {text}"
            );
        }
    }

    #[test]
    fn flush_intervals_are_those_of_envoy() {
        for good in ["1s", "0.001s", "1.25s", "299.999999999s"] {
            let config = decode(&json!({"envoy_stats_flush_interval": good})).unwrap();
            assert_eq!(config.stats_flush_interval.unwrap(), good);
        }
        for bad in ["0s", "0.0009s", "300s", "1m", "10", "-1s", "s", ".5s", "1.s", "1.0000000001s"]
        {
            let text = error(&json!({"envoy_stats_flush_interval": bad}));
            assert!(text.contains(&format!("flush interval: {bad};")), "{text}");
        }
    }

    #[test]
    fn objects_are_separated_by_commas() {
        let config = decode(&json!({"envoy_extra_static_clusters_json": "{\"name\":\"a\"},\n{}"}));
        assert_eq!(config.unwrap().extra_clusters, [json!({"name": "a"}), json!({})]);
    }

    #[test]
    fn json_errors_say_where() {
        let clusters = |json: &str| error(&json!({"envoy_extra_static_clusters_json": json}));
        assert_eq!(
            clusters("{\"name\": nope}"),
            "envoy_extra_static_clusters_json is not JSON objects with commas between them: \
             expected ident at line 1 column 11; hint: leave out brackets around the list"
        );
        assert!(clusters("{},\n{").contains("at line 2 column"));
        assert!(clusters("[{}]").contains("invalid type: sequence"));
        assert!(clusters("{}],[{}").contains("trailing"));
        assert_eq!(
            error(&json!({"envoy_tracing_json": "[]"})),
            "envoy_tracing_json is not a JSON object: invalid type: sequence, expected a map \
             at line 1 column 0; hint: it must begin with { and end with }"
        );
    }
}
