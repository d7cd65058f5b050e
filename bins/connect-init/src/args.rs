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

/// Registers a pod's service and its sidecar proxy with the node's Consul
/// agent, writes the Envoy bootstrap, and puts the lifecycle helper into the pod
#[derive(Debug, Parser)]
#[command(version, after_help = runtime::exit::HELP)]
pub(crate) struct Args {
    /// The service, and the port on which the application listens; without a
    /// port it takes no connections. Given again for further services of the
    /// pod: each has a sidecar of its own, whose ports are counted up
    #[arg(
        long = "service",
        env = "CONNECT_SERVICE",
        value_name = "NAME[:PORT]",
        required = true,
        value_delimiter = ','
    )]
    pub(crate) services: Vec<ServiceArg>,

    /// What the (first) service reaches, as name:port, name:port:datacenter or
    /// prepared_query:name:port; may be given again
    #[arg(long = "upstream", env = "CONNECT_UPSTREAMS", value_name = "SPEC")]
    pub(crate) upstreams: Vec<UpstreamsArg>,

    /// A tag of service and proxy; may be given again
    #[arg(long = "tag", value_name = "TAG")]
    pub(crate) tags: Vec<String>,

    /// Meta of service and proxy; may be given again
    #[arg(long = "meta", value_name = "KEY=VALUE", value_parser = parse_meta)]
    pub(crate) meta: Vec<(String, String)>,

    /// Settings of the proxy's own, as a JSON object, such as
    /// {"envoy_prometheus_bind_addr": "0.0.0.0:20200"}; may be given again
    #[arg(long = "proxy-config", value_name = "JSON", value_parser = parse_object)]
    pub(crate) proxy_config: Vec<Map<String, Value>>,

    #[command(flatten)]
    pub(crate) transparent: TransparentArgs,

    #[command(flatten)]
    pub(crate) pod: PodArgs,

    #[command(flatten)]
    pub(crate) agent: AgentArgs,

    #[command(flatten)]
    pub(crate) login: LoginArgs,

    #[command(flatten)]
    pub(crate) bootstrap: BootstrapArgs,

    /// The directory that the pod's injected containers share
    #[arg(long, env = "CONNECT_DIR", default_value = handoff::DEFAULT_DIR, value_name = "FOLDER")]
    pub(crate) dir: PathBuf,

    /// The lifecycle helper that is put into the directory; by default the
    /// connect-lifecycle beside this program
    #[arg(long, env = "CONNECT_HELPER", value_name = "FILE")]
    pub(crate) helper: Option<PathBuf>,

    /// How long all of it may take; an agent that is not there yet is waited for
    #[arg(long, env = "CONNECT_TIMEOUT", default_value = "2m", value_parser = duration::parse_length, value_name = "DURATION")]
    pub(crate) timeout: Duration,

    /// How long the first run in this directory may take, if that is less: a pod's
    /// status shows why it failed, while the container runs again
    #[arg(long, env = "CONNECT_FIRST_TIMEOUT", value_parser = duration::parse_length, value_name = "DURATION")]
    pub(crate) first_timeout: Option<Duration>,

    /// Print as JSON what would be registered, asked and written, and what is
    /// to be said of the agent, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// With --dry-run, print a definition file of this format instead, which
    /// connect-register and Consul's CLI can register
    #[arg(long, value_name = "FORMAT", requires = "dry_run")]
    pub(crate) output: Option<Output>,

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

/// How connections are redirected to the sidecar of the (first) service, and what
/// goes past it.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Transparent proxy")]
pub(crate) struct TransparentArgs {
    /// Register the sidecar as a transparent proxy: the pod's connections are
    /// redirected to it by connect-redirect
    #[arg(long, env = "CONNECT_TRANSPARENT", value_name = "BOOL", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set, default_missing_value = "true", default_value_t = false)]
    pub(crate) transparent: bool,

    /// The address by which transparent proxies know the service, as
    /// ADDRESS:PORT, such as 10.96.0.10:80, or as service:NAME for the cluster IP
    /// of a Service of the pod's namespace; the one that Consul allots counts besides
    #[arg(
        long = "virtual",
        env = "CONNECT_VIRTUAL_ADDRESS",
        value_name = "ADDRESS:PORT|service:NAME"
    )]
    pub(crate) virtual_address: Option<VirtualArg>,

    /// A path of the application that the sidecar serves without mutual TLS, for
    /// probes: PATH=LISTENER:PORT, such as /healthz=20300:8080, with :http2 behind
    /// it for gRPC; may be repeated
    #[arg(long = "expose", value_name = "PATH=LISTENER:PORT[:http2]", value_parser = parse_expose)]
    pub(crate) expose: Vec<ExposePath>,
}

/// Which pod it is. In a pod, the downward API gives all of it.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Pod")]
pub(crate) struct PodArgs {
    /// The pod's name
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub(crate) pod_name: String,

    /// The pod's Kubernetes namespace
    #[arg(long, env = "POD_NAMESPACE", default_value = "default", value_name = "NAME")]
    pub(crate) pod_namespace: String,

    /// The pod's UID, for the description of its ACL token
    #[arg(long, env = "POD_UID", value_name = "UID")]
    pub(crate) pod_uid: Option<String>,

    /// The pod's address
    #[arg(long, env = "POD_IP", value_name = "IP")]
    pub(crate) pod_ip: IpAddr,

    /// The name of the pod's node, for messages
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub(crate) node_name: Option<String>,
}

/// How the pod gets an ACL token of its own. Environment variables are those of
/// consul-dataplane ("Consul Dataplane CLI").
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "ACL login")]
pub(crate) struct LoginArgs {
    /// Log in with this auth method, instead of using a token that is given
    #[arg(long, env = "CONSUL_LOGIN_AUTH_METHOD", value_name = "NAME", conflicts_with_all = ["token", "token_file"])]
    pub(crate) acl_auth_method: Option<String>,

    /// The file with what proves to it who logs in: the service account's token
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

/// A list of upstreams, of one element mostly.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UpstreamsArg(pub(crate) Vec<Upstream>);

// === impl LoginArgs ===

impl LoginArgs {
    /// What these flags say; none if no auth method is named.
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
        testkit::agrees_with_its_pages(&Args::command(), include_str!("../README.md"));
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
