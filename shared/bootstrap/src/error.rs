//! Why no bootstrap can be made.

use thiserror::Error;

/// Why no bootstrap can be made. Each text names the setting, the value, what is
/// accepted and, after `hint:`, what to do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// A list or an object stands where a text belongs.
    #[error(
        "proxy config {key} is {found}, expected a text; hint: put it between quotes, JSON too"
    )]
    NotText { key: &'static str, found: &'static str },

    /// An address to listen on is not an IP address and a port.
    #[error(
        "proxy config {key} is not an address to listen on: {value}; accepted: IP:PORT with a \
         port from 1 to 65535, for example 0.0.0.0:9102 or [::]:9102; hint: Envoy does not \
         resolve host names here, write 127.0.0.1 for localhost"
    )]
    BindAddress { key: &'static str, value: String },

    /// The address of a statsd or DogStatsD server can't be understood.
    #[error(
        "proxy config {key} is not the address of a metrics server: {value}; accepted: \
         udp://IP:PORT, unix:///PATH, $NAME (an environment variable that holds one of these) \
         or udp://$HOST_IP:PORT; hint: {hint}"
    )]
    SinkUrl {
        key: &'static str,
        /// With variables replaced.
        value: String,
        hint: &'static str,
    },

    /// An environment variable that the configuration refers to is not set.
    #[error(
        "proxy config {key} refers to an environment variable that is not set: ${name}; \
         hint: set {name} where the bootstrap is written, or write the address itself"
    )]
    UnsetVariable { key: &'static str, name: String },

    /// A metric tag has no name.
    #[error(
        "proxy config envoy_stats_tags has a tag without a name: {tag:?}; accepted: NAME=VALUE, \
         or NAME for the value 1; hint: remove it or name it"
    )]
    StatsTag { tag: String },

    /// Envoy rejects the interval between flushes of metrics.
    #[error(
        "proxy config envoy_stats_flush_interval is not a flush interval: {value}; accepted: \
         seconds with the letter s, at least 0.001s and less than 300s; hint: write a minute \
         as 60s"
    )]
    FlushInterval { value: String },

    /// A setting does not contain the JSON that it should.
    #[error("{setting} is not {expected}: {problem}; hint: {hint}")]
    Json {
        setting: &'static str,
        expected: &'static str,
        /// What is wrong, and where in the text.
        problem: String,
        hint: &'static str,
    },

    /// `envoy_bootstrap_json_tpl` uses a construct of Go's templates that is not
    /// supported.
    #[error(
        "proxy config envoy_bootstrap_json_tpl cannot be rendered: {{{{ {action} }}}} {problem}; \
         accepted: fields, variables, texts, if, else, range, with, not, and, or, eq, ne, lt, le, \
         gt, ge, len and comments; fields: {fields}; hint: write the part out, or use the \
         envoy_extra_* keys instead of a template"
    )]
    Template {
        /// The text between the braces.
        action: String,
        /// What is wrong, with the construct's name.
        problem: String,
        /// The fields that exist.
        fields: String,
    },

    /// Access logs go to a file without a path.
    #[error(
        "proxy-defaults AccessLogs has Type file without a Path; hint: set Path, or Type to \
         stdout or stderr"
    )]
    AccessLogPath,

    /// Some, but not all files for serving metrics over TLS are given.
    #[error(
        "TLS for Prometheus is missing {missing}; hint: give a CA, a certificate and a key, \
         or none of them"
    )]
    PrometheusTls { missing: String },

    /// No request can match the path that Prometheus scrapes.
    #[error(
        "-prometheus-scrape-path is not a path: {value}; accepted: a path that begins with /; \
         hint: the default is /metrics"
    )]
    ScrapePath { value: String },

    /// xDS uses TLS, but there is no CA certificate to verify the agent.
    #[error(
        "TLS is on for xDS, but there is no CA certificate to verify the agent with; hint: give \
         the CA file, or use a gRPC address without https://"
    )]
    NoCa,
}
