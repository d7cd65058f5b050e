//! The flags.

mod file;
mod kubernetes;
mod policy;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use flags::AgentArgs;
use runtime::{Failure, LogArgs};

use crate::policy::Mistakes;
use crate::serve::certificates::Certificates;
use crate::serve::self_managed::{Names, SelfManaged};
use crate::serve::tls::Pair;
use crate::{documents, serve};
use kubernetes::{Access, KubernetesArgs};
use policy::PolicyArgs;

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
    Serve(Box<ServeArgs>),
    /// Inject documents: Pods, and what has a pod template
    #[command(after_help = runtime::exit::HELP)]
    Inject(InjectArgs),
    /// Take injections of documents back
    #[command(after_help = runtime::exit::HELP)]
    Uninject(UninjectArgs),
    /// Say what would become of documents, and why
    #[command(after_help = runtime::exit::HELP)]
    Explain(InjectArgs),
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
    tls_cert_file: Option<PathBuf>,
    /// The certificate's key, in PEM; read again when it changes
    #[arg(long, env = "CONNECT_INJECT_TLS_KEY_FILE", value_name = "FILE")]
    tls_key_file: Option<PathBuf>,
    /// Instead of the files: make a certificate that all replicas share, and
    /// keep the MutatingWebhookConfiguration of that name trusting it
    #[arg(long, env = "CONNECT_INJECT_TLS_AUTO", value_name = "NAME")]
    tls_auto: Option<String>,
    /// With --tls-auto, the hosts by which API servers reach the webhook
    #[arg(
        long,
        env = "CONNECT_INJECT_TLS_AUTO_HOSTS",
        value_name = "HOSTS",
        value_delimiter = ','
    )]
    tls_auto_hosts: Vec<String>,
    #[command(flatten)]
    kubernetes: KubernetesArgs,
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
    agent: AgentArgs,
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

#[derive(Debug, clap::Args)]
pub(crate) struct UninjectArgs {
    /// A file with documents, or - for standard input; repeatable
    #[arg(short = 'f', long = "filename", value_name = "FILE", default_value = "-")]
    pub(crate) files: Vec<PathBuf>,
}

/// Reads the command line, and the file that it names.
pub(crate) fn parse() -> Result<Args, ExitCode> {
    let mut args: Args = runtime::parse()?;
    let Some(file) = args.command.policy().and_then(|policy| policy.config.clone()) else {
        return Ok(args);
    };
    let line: Vec<OsString> = std::env::args_os().collect();
    // Both were read a moment ago.
    if let Ok(matches) = Args::command().try_get_matches_from(&line) {
        let (flags, mistakes) = file::read(&file, &matches);
        if let Ok(with_file) = Args::try_parse_from(line.into_iter().chain(flags)) {
            args = with_file;
        }
        if let Some(policy) = args.command.policy() {
            policy.file_mistakes = mistakes;
        }
    }
    Ok(args)
}

// === impl Command ===

impl Command {
    fn policy(&mut self) -> Option<&mut PolicyArgs> {
        match self {
            Self::Serve(args) => Some(&mut args.policy),
            Self::Inject(args) | Self::Explain(args) => Some(&mut args.policy),
            Self::Uninject(_) => None,
        }
    }
}

// === impl ServeArgs ===

impl ServeArgs {
    /// What the flags mean, or all that is wrong with them.
    pub(crate) async fn settings(self) -> Result<serve::Settings, Failure> {
        let Self {
            listen,
            admin_listen,
            tls_cert_file,
            tls_key_file,
            tls_auto,
            tls_auto_hosts,
            kubernetes,
            shutdown_delay,
            agent,
            policy,
        } = self;
        let mut mistakes = Mistakes::default();
        let policy = policy.policy(&mut mistakes);
        let tls_auto = given(tls_auto);
        let flag = if tls_auto.is_some() { "--tls-auto" } else { "--kubeconfig" };
        let access = match kubernetes.access().await {
            // In no cluster, which is fine if nothing of it is needed.
            Err(_) if tls_auto.is_none() && !kubernetes.is_given() => None,
            access => mistakes.note(flag, access),
        };
        let tls = match (tls_auto, tls_cert_file, tls_key_file) {
            (Some(webhooks), None, None) => {
                let hosts = mistakes.note("--tls-auto-hosts", kubernetes::hosts(tls_auto_hosts));
                hosts.zip(access.clone()).map(|(hosts, Access { client, namespace })| {
                    let names = Names { webhooks, namespace, hosts };
                    Certificates::SelfManaged(Box::new(SelfManaged::new(&client, names)))
                })
            }
            (None, Some(cert_file), Some(key_file)) => mistakes
                .note("--tls-cert-file, --tls-key-file", Pair::load(cert_file, key_file))
                .map(Certificates::Files),
            _ => {
                mistakes.push(
                    "give either --tls-cert-file and --tls-key-file, or --tls-auto".to_owned(),
                );
                None
            }
        };
        let agent = mistakes.note("the agent's flags", agent.agent(None));
        match (policy, tls, agent, mistakes.failure()) {
            (Some(policy), Some(tls), Some(agent), None) => {
                let version_of =
                    access.filter(|_| policy.kubernetes.is_none()).map(|access| access.client);
                Ok(serve::Settings {
                    listen,
                    admin_listen,
                    tls,
                    shutdown_delay,
                    agent,
                    policy,
                    version_of,
                })
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

/// An empty value counts as none.
fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// A value is missing only where a mistake was noted.
fn unnamed() -> Failure {
    Failure::usage("a flag is wrong")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_readme_is_the_reference() {
        let differences =
            runtime::reference::differences(Args::command(), include_str!("../../README.md"));
        assert_eq!(differences, Vec::<String>::new());
    }

    #[test]
    fn the_readme_has_the_defaults() {
        let readme = include_str!("../../README.md");
        for command in Args::command().get_subcommands() {
            for flag in command.get_arguments() {
                let Some(name) = flag.get_long() else { continue };
                let [default] = flag.get_default_values() else { continue };
                let default = default.to_string_lossy();
                let row = readme
                    .lines()
                    .find(|line| line.starts_with("| ") && line.contains(&format!("`--{name}` |")));
                let row = row.unwrap_or_else(|| panic!("no row for --{name}"));
                let cell = row.split('|').nth(3).unwrap_or_default().trim();
                let shown = if default.is_empty() { "none".into() } else { format!("`{default}`") };
                assert_eq!(cell, shown, "--{name}");
            }
        }
    }
}
