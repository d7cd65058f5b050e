//! The flags.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser, Subcommand};
use runtime::{Failure, LogArgs};

use crate::policy::{Mistakes, Policy, address_template, arguments, image};
use crate::serve::tls::Pair;
use crate::{documents, serve};

/// Adds a Connect sidecar to pods that ask for it
#[derive(Debug, Parser)]
#[command(name = "connect-inject", version, after_help = runtime::exit::HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) log: LogArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Answer the API server's admission reviews, as a webhook
    #[command(after_help = runtime::exit::HELP)]
    Serve(ServeArgs),
    /// Inject documents: Pods, and what has a pod template
    #[command(after_help = runtime::exit::HELP)]
    Inject(InjectArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// Where reviews are answered, over HTTPS
    #[arg(
        long,
        env = "CONNECT_INJECT_LISTEN",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:8443"
    )]
    listen: SocketAddr,
    /// Where /livez, /readyz and /metrics are answered, over HTTP
    #[arg(
        long,
        env = "CONNECT_INJECT_ADMIN_LISTEN",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:9445"
    )]
    admin_listen: SocketAddr,
    /// The certificate, with its chain, in PEM; read again when it changes
    #[arg(long, env = "CONNECT_INJECT_TLS_CERT_FILE", value_name = "FILE")]
    tls_cert_file: PathBuf,
    /// The certificate's key, in PEM; read again when it changes
    #[arg(long, env = "CONNECT_INJECT_TLS_KEY_FILE", value_name = "FILE")]
    tls_key_file: PathBuf,
    /// How long reviews are still answered after the first signal to end, while
    /// the API server learns to send them elsewhere
    #[arg(
        long,
        env = "CONNECT_INJECT_SHUTDOWN_DELAY",
        value_name = "DURATION",
        default_value = "5s",
        value_parser = duration::parse_length
    )]
    shutdown_delay: Duration,
    #[command(flatten)]
    policy: PolicyArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct InjectArgs {
    /// A file with documents, or - for standard input; repeatable
    #[arg(short = 'f', long = "filename", value_name = "FILE", default_value = "-")]
    files: Vec<PathBuf>,
    /// The namespace of documents that name none
    #[arg(
        long,
        env = "CONNECT_INJECT_K8S_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "default"
    )]
    k8s_namespace: String,
    #[command(flatten)]
    policy: PolicyArgs,
}

/// What the operator decides about pods.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Policy")]
pub(crate) struct PolicyArgs {
    /// Inject pods that don't say whether they want it
    #[arg(
        long,
        env = "CONNECT_INJECT_DEFAULT_INJECT",
        value_name = "BOOL",
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value_t = false,
        default_missing_value = "true"
    )]
    default_inject: bool,
    /// A namespace whose pods may be injected, or * for any; repeatable
    #[arg(
        long = "allow-k8s-namespace",
        env = "CONNECT_INJECT_ALLOW_K8S_NAMESPACE",
        value_name = "NAMESPACE",
        value_delimiter = ',',
        default_value = "*"
    )]
    allow_k8s_namespaces: Vec<String>,
    /// A namespace whose pods are not injected, even if it is allowed;
    /// repeatable
    #[arg(
        long = "deny-k8s-namespace",
        env = "CONNECT_INJECT_DENY_K8S_NAMESPACE",
        value_name = "NAMESPACE",
        value_delimiter = ','
    )]
    deny_k8s_namespaces: Vec<String>,
    /// The image with connect-init and connect-lifecycle
    #[arg(long, env = "CONNECT_INJECT_INIT_IMAGE", value_name = "IMAGE")]
    init_image: String,
    /// The image with Envoy
    #[arg(long, env = "CONNECT_INJECT_ENVOY_IMAGE", value_name = "IMAGE")]
    envoy_image: String,
    /// Arguments for Envoy besides the injector's, split as a shell would
    #[arg(
        long,
        env = "CONNECT_INJECT_ENVOY_EXTRA_ARGS",
        value_name = "ARGS",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    envoy_extra_args: String,
    /// The HTTP address of a pod's agent; $(HOST_IP), $(NODE_NAME), $(POD_IP),
    /// $(POD_NAME), $(POD_NAMESPACE) and $(POD_UID) are those of the pod
    #[arg(
        long,
        env = "CONNECT_INJECT_CONSUL_HTTP_ADDR_TEMPLATE",
        value_name = "TEMPLATE",
        default_value = "http://$(HOST_IP):8500"
    )]
    consul_http_addr_template: String,
    /// The gRPC address of a pod's agent, likewise
    #[arg(
        long,
        env = "CONNECT_INJECT_CONSUL_GRPC_ADDR_TEMPLATE",
        value_name = "TEMPLATE",
        default_value = "$(HOST_IP):8502"
    )]
    consul_grpc_addr_template: String,
}

// === impl ServeArgs ===

impl ServeArgs {
    /// What the flags mean, or all that is wrong with them.
    pub(crate) fn settings(self) -> Result<serve::Settings, Failure> {
        let Self { listen, admin_listen, tls_cert_file, tls_key_file, shutdown_delay, policy } =
            self;
        let mut mistakes = Mistakes::default();
        let policy = policy.policy(&mut mistakes);
        let tls = mistakes
            .note("--tls-cert-file, --tls-key-file", Pair::load(tls_cert_file, tls_key_file));
        match (policy, tls, mistakes.failure()) {
            (Some(policy), Some(tls), None) => {
                Ok(serve::Settings { listen, admin_listen, tls, shutdown_delay, policy })
            }
            (.., failure) => Err(failure.unwrap_or_else(unnamed)),
        }
    }
}

// === impl InjectArgs ===

impl InjectArgs {
    /// What the flags mean, or all that is wrong with them.
    pub(crate) fn settings(self) -> Result<documents::Settings, Failure> {
        let Self { files, k8s_namespace, policy } = self;
        let mut mistakes = Mistakes::default();
        match (policy.policy(&mut mistakes), mistakes.failure()) {
            (Some(policy), None) => {
                Ok(documents::Settings { files, namespace: k8s_namespace, policy })
            }
            (_, failure) => Err(failure.unwrap_or_else(unnamed)),
        }
    }
}

/// A value is missing only where a mistake was noted.
fn unnamed() -> Failure {
    Failure::usage("a flag is wrong")
}

// === impl PolicyArgs ===

impl PolicyArgs {
    /// What the flags mean; none if one is wrong.
    fn policy(self, mistakes: &mut Mistakes) -> Option<Policy> {
        let Self {
            default_inject,
            allow_k8s_namespaces,
            deny_k8s_namespaces,
            init_image,
            envoy_image,
            envoy_extra_args,
            consul_http_addr_template,
            consul_grpc_addr_template,
        } = self;
        let init_image = mistakes.note("--init-image", image(init_image));
        let envoy_image = mistakes.note("--envoy-image", image(envoy_image));
        let envoy_extra_args = mistakes.note("--envoy-extra-args", arguments(&envoy_extra_args));
        let consul_http_addr = mistakes
            .note("--consul-http-addr-template", address_template(consul_http_addr_template));
        let consul_grpc_addr = mistakes
            .note("--consul-grpc-addr-template", address_template(consul_grpc_addr_template));
        Some(Policy {
            default_inject,
            allow_namespaces: allow_k8s_namespaces.into_iter().collect(),
            deny_namespaces: deny_k8s_namespaces.into_iter().collect(),
            init_image: init_image?,
            envoy_image: envoy_image?,
            envoy_extra_args: envoy_extra_args?,
            consul_http_addr: consul_http_addr?,
            consul_grpc_addr: consul_grpc_addr?,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn flags_are_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_readme_is_the_reference() {
        let differences =
            runtime::reference::differences(Args::command(), include_str!("../README.md"));
        assert_eq!(differences, Vec::<String>::new());
    }
}
