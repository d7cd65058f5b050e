//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use flags::{AgentArgs, BootstrapArgs};
use handoff::Login;
use registration::proxy::ExposePath;
use registration::upstream::{self, Context, SpecError};
use registration::{Upstream, name, port};
use runtime::LogArgs;
use serde_json::{Map, Value};

use crate::virtual_address::VirtualArg;

/// Register a pod's service and its sidecar proxy with the node's Consul agent, write
/// the Envoy bootstrap, and copy connect-lifecycle into the pod
#[derive(Debug, Parser)]
#[command(version, after_help = runtime::exit::HELP)]
pub(crate) struct Args {
    /// Service, and the port on which the application listens; without a port, the
    /// service only makes requests. May be repeated: each service has its own sidecar,
    /// with ports one above those of the previous sidecar
    #[arg(
        long = "service",
        env = "CONNECT_SERVICE",
        value_name = "NAME[:PORT]",
        required = true,
        value_delimiter = ','
    )]
    pub(crate) services: Vec<ServiceArg>,

    /// Upstream of the (first) service: name:port, name:port:datacenter or
    /// prepared_query:name:port; may be repeated
    #[arg(long = "upstream", env = "CONNECT_UPSTREAMS", value_name = "SPEC")]
    pub(crate) upstreams: Vec<UpstreamsArg>,

    /// Tag of service and proxy; may be repeated
    #[arg(long = "tag", value_name = "TAG")]
    pub(crate) tags: Vec<String>,

    /// Metadata of service and proxy; may be repeated
    #[arg(long = "meta", value_name = "KEY=VALUE", value_parser = parse_meta)]
    pub(crate) meta: Vec<(String, String)>,

    /// Proxy settings as a JSON object, such as {"envoy_prometheus_bind_addr":
    /// "0.0.0.0:20200"}. May be repeated: a key's last value applies
    #[arg(long = "proxy-config", value_name = "JSON", value_parser = parse_object)]
    pub(crate) proxy_config: Vec<Map<String, Value>>,

    /// Directory that the pod's injected containers share
    #[arg(long, env = "CONNECT_DIR", default_value = handoff::DEFAULT_DIR, value_name = "DIR")]
    pub(crate) dir: PathBuf,

    /// connect-lifecycle program to copy into the directory [default: the one beside
    /// this program]
    #[arg(long, env = "CONNECT_HELPER", value_name = "FILE")]
    pub(crate) helper: Option<PathBuf>,

    /// Maximum time for everything, including the wait for an agent that is not there
    /// yet
    #[arg(long, env = "CONNECT_TIMEOUT", default_value = "2m", value_parser = duration::parse_length, value_name = "DURATION")]
    pub(crate) timeout: Duration,

    /// Maximum time for the first run in this directory, if lower than --timeout: the pod's
    /// status then shows why it failed while the container runs again
    #[arg(long, env = "CONNECT_FIRST_TIMEOUT", value_parser = duration::parse_length, value_name = "DURATION")]
    pub(crate) first_timeout: Option<Duration>,

    /// Print as JSON what would be registered, requested and written, and a diagnosis
    /// of the agent; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// With --dry-run, print a definition file instead, which connect-register and
    /// Consul's CLI can register
    #[arg(long, value_name = "FORMAT", requires = "dry_run")]
    pub(crate) output: Option<Output>,

    #[command(flatten)]
    pub(crate) transparent: TransparentArgs,

    #[command(flatten)]
    pub(crate) pod: PodArgs,

    #[command(flatten)]
    pub(crate) agent: AgentArgs,

    /// Connect's CA signs the agent's certificate (auto_encrypt): the sidecar follows
    /// the roots of that CA, and trusts the agent after each rotation
    #[arg(
        long,
        help_heading = "Consul agent",
        env = "CONNECT_AUTO_ENCRYPT",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        action = clap::ArgAction::Set,
        default_missing_value = "true",
        default_value_t = false
    )]
    pub(crate) auto_encrypt: bool,

    #[command(flatten)]
    pub(crate) login: LoginArgs,

    #[command(flatten)]
    pub(crate) bootstrap: BootstrapArgs,

    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// The format of a definition file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// HCL 1
    Hcl,
    /// JSON
    Json,
}

/// Transparent proxy of the (first) service.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Transparent proxy")]
pub(crate) struct TransparentArgs {
    /// Register the sidecar as a transparent proxy, to which connect-redirect redirects
    /// the pod's connections
    #[arg(long, env = "CONNECT_TRANSPARENT", value_name = "BOOL", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set, default_missing_value = "true", default_value_t = false)]
    pub(crate) transparent: bool,

    /// Additional address by which transparent proxies reach the service: ADDRESS:PORT,
    /// such as 10.96.0.10:80, or service:NAME for the cluster IP of a Service of the
    /// pod's namespace
    #[arg(
        long = "virtual",
        env = "CONNECT_VIRTUAL_ADDRESS",
        value_name = "ADDRESS:PORT|service:NAME"
    )]
    pub(crate) virtual_address: Option<VirtualArg>,

    /// Path of the application that the sidecar serves without mutual TLS, for probes:
    /// PATH=LISTENER:PORT, such as /healthz=20300:8080, followed by :http2 for gRPC;
    /// may be repeated
    #[arg(long = "expose", value_name = "PATH=LISTENER:PORT[:http2]", value_parser = parse_expose)]
    pub(crate) expose: Vec<ExposePath>,
}

/// The pod's identity, which the downward API provides.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Pod")]
pub(crate) struct PodArgs {
    /// Pod name; part of the ids
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub(crate) pod_name: String,

    /// Pod namespace; part of the ids
    #[arg(long, env = "POD_NAMESPACE", default_value = "default", value_name = "NAME")]
    pub(crate) pod_namespace: String,

    /// Pod UID, for the description of the ACL token
    #[arg(long, env = "POD_UID", value_name = "UID")]
    pub(crate) pod_uid: Option<String>,

    /// Pod IP, at which service and proxy are registered
    #[arg(long, env = "POD_IP", value_name = "IP")]
    pub(crate) pod_ip: IpAddr,

    /// Node name, for messages
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub(crate) node_name: Option<String>,
}

/// How the pod gets its ACL token. Environment variables are those of consul-dataplane
/// ("Consul Dataplane CLI").
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "ACL login")]
pub(crate) struct LoginArgs {
    /// Auth method to log in with, instead of using a given token
    #[arg(long, env = "CONSUL_LOGIN_AUTH_METHOD", value_name = "NAME", conflicts_with_all = ["token", "token_file"])]
    pub(crate) acl_auth_method: Option<String>,

    /// File with the bearer token for --acl-auth-method, such as the token of the pod's
    /// service account
    #[arg(
        long,
        env = "CONSUL_LOGIN_BEARER_TOKEN_FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token",
        value_name = "FILE"
    )]
    pub(crate) bearer_token_file: PathBuf,
}

/// `NAME[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceArg {
    pub(crate) name: String,
    pub(crate) port: Option<u16>,
}

/// A comma-separated list of upstreams.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UpstreamsArg(pub(crate) Vec<Upstream>);

// === impl LoginArgs ===

impl LoginArgs {
    /// The login of these flags; `None` without an auth method.
    pub(crate) fn login(self, pod: &PodArgs) -> Option<Login> {
        let Self { acl_auth_method, bearer_token_file } = self;
        let auth_method = acl_auth_method.filter(|name| !name.is_empty())?;
        let PodArgs { pod_name, pod_namespace, pod_uid, .. } = pod;
        let uid = pod_uid.iter().filter(|uid| !uid.is_empty());
        let meta = [("pod".to_owned(), format!("{pod_namespace}/{pod_name}"))]
            .into_iter()
            .chain(uid.map(|uid| ("pod-uid".to_owned(), uid.clone())))
            .collect();
        Some(Login { auth_method, bearer_token_file, meta })
    }
}

// === impl ServiceArg ===

impl FromStr for ServiceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => {
                (name, Some(port::resolve(port, &[]).map_err(|error| error.to_string())?))
            }
            None => (text, None),
        };
        name::check(name).map_err(|error| error.to_string())?;
        Ok(Self { name: name.to_owned(), port })
    }
}

// === impl UpstreamsArg ===

impl FromStr for UpstreamsArg {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        upstream::parse_list(text, Context::default()).map(Self)
    }
}

fn parse_meta(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

fn parse_expose(text: &str) -> Result<ExposePath, String> {
    let read = || {
        let (path, ports) = text.rsplit_once('=')?;
        let (ports, protocol) = match ports.strip_suffix(":http2") {
            Some(ports) => (ports, "http2"),
            None => (ports, "http"),
        };
        let (listener, local) = ports.split_once(':')?;
        let port = |text| port::resolve(text, &[]).ok();
        let (listener_port, local_path_port) = (port(listener)?, port(local)?);
        path.starts_with('/').then(|| ExposePath {
            path: path.to_owned(),
            listener_port,
            local_path_port,
            protocol: protocol.to_owned(),
        })
    };
    read().ok_or_else(|| "expected a path and two ports, such as /healthz=20300:8080".to_owned())
}

fn parse_object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("expected a JSON object: {error}"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_agrees_with_its_pages() {
        testkit::agrees_with_its_pages(
            &Args::command(),
            concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"),
        );
    }

    #[test]
    fn a_service_has_a_name_and_perhaps_a_port() {
        assert_eq!("web:80".parse(), Ok(ServiceArg { name: "web".to_owned(), port: Some(80) }));
        assert_eq!("web".parse(), Ok(ServiceArg { name: "web".to_owned(), port: None }));
        for text in ["", "web:", "web:0", "web:http", ":80", "we b:80"] {
            assert!(text.parse::<ServiceArg>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_exposed_path_has_two_ports() {
        let path = parse_expose("/a=b?c=20300:8080").unwrap();
        assert_eq!((path.path.as_str(), path.listener_port), ("/a=b?c", 20300));
        assert_eq!((path.local_path_port, path.protocol.as_str()), (8080, "http"));
        assert_eq!(parse_expose("/a=1:2:http2").unwrap().protocol, "http2");
        for text in ["", "/a", "a=1:2", "/a=1:2:http3", "/a=1", "/a=0:1", "/a=1:http", "=1:2"] {
            assert!(parse_expose(text).unwrap_err().contains("/healthz=20300:8080"), "{text}");
        }
    }

    #[test]
    fn a_proxys_settings_are_an_object() {
        assert_eq!(parse_object(r#"{"a": 1}"#).unwrap()["a"], 1);
        for text in ["", "a=1", "[]", "1", "{"] {
            assert!(parse_object(text).unwrap_err().contains("a JSON object"), "{text}");
        }
    }
}
