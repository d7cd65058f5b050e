//! The command line: turns flags, environment variables and the file of `--config` into
//! settings. No other module reads these sources.

mod audit;
mod config;
mod kubernetes;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use flags::AgentArgs;
use runtime::{Exit, Failure, LogArgs};

use crate::kubernetes::Api;
use crate::policy::Policy;
use crate::serve::certificates::Certificates;
use crate::serve::self_managed::{Names, SelfManaged};
use crate::serve::tls::Pair;
use crate::{documents, serve};
use audit::AuditArgs;
use kubernetes::{Access, KubernetesArgs};

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
    /// Inject manifests: Pods and workloads
    #[command(after_help = runtime::exit::HELP)]
    Inject(InjectArgs),
    /// Remove the injected sidecar from manifests
    #[command(after_help = runtime::exit::HELP)]
    Uninject(UninjectArgs),
    /// Check a running cluster and its Consul for inconsistencies
    #[command(after_help = runtime::exit::HELP)]
    Audit(Box<AuditArgs>),
    /// Show whether and why each manifest would be injected
    #[command(after_help = runtime::exit::HELP)]
    Explain(InjectArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// Address of the webhook (HTTPS)
    #[arg(
        long,
        env = "CONNECT_INJECT_LISTEN",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:8443"
    )]
    listen: SocketAddr,
    /// Address of /livez, /readyz and /metrics (HTTP)
    #[arg(
        long,
        env = "CONNECT_INJECT_ADMIN_LISTEN",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:9445"
    )]
    admin_listen: SocketAddr,
    /// PEM file with the webhook's certificate chain; read again when it changes
    #[arg(long, env = "CONNECT_INJECT_TLS_CERT_FILE", value_name = "FILE")]
    tls_cert_file: Option<PathBuf>,
    /// PEM file with the private key of --tls-cert-file; read again when it changes
    #[arg(long, env = "CONNECT_INJECT_TLS_KEY_FILE", value_name = "FILE")]
    tls_key_file: Option<PathBuf>,
    /// Generate the certificate, share it in Secret NAME-tls, and patch caBundle of the
    /// MutatingWebhookConfiguration NAME
    #[arg(long, env = "CONNECT_INJECT_TLS_AUTO", value_name = "NAME")]
    tls_auto: Option<String>,
    /// With --tls-auto: hosts by which API servers reach the webhook, comma-separated
    #[arg(
        long,
        env = "CONNECT_INJECT_TLS_AUTO_HOSTS",
        value_name = "HOSTS",
        value_delimiter = ','
    )]
    tls_auto_hosts: Vec<String>,
    /// Serve the results of the last audit in /metrics: the file that
    /// `audit --results-configmap` leaves
    #[arg(long, env = "CONNECT_INJECT_AUDIT_RESULTS_FILE", value_name = "FILE")]
    audit_results_file: Option<PathBuf>,
    /// Keep serving this long after SIGTERM, while the API server learns to send reviews
    /// elsewhere
    #[arg(
        long,
        env = "CONNECT_INJECT_SHUTDOWN_DELAY",
        value_name = "DURATION",
        default_value = "5s",
        value_parser = duration::parse_length
    )]
    shutdown_delay: Duration,
    #[command(flatten)]
    kubernetes: KubernetesArgs,
    #[command(flatten)]
    agent: AgentArgs,
    #[command(flatten)]
    policy: PolicyArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct InjectArgs {
    /// Manifest file, or - for standard input; repeatable
    #[arg(short = 'f', long = "filename", value_name = "FILE", default_value = "-")]
    files: Vec<PathBuf>,
    /// Default namespace for manifests without one
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
    /// Manifest file, or - for standard input; repeatable
    #[arg(short = 'f', long = "filename", value_name = "FILE", default_value = "-")]
    pub(crate) files: Vec<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct PolicyArgs {
    /// YAML file with values of these flags, keyed by flag name without dashes. Flags and
    /// environment variables take precedence
    #[arg(long, env = "CONNECT_INJECT_CONFIG", value_name = "FILE", help_heading = "Policy")]
    config: Option<PathBuf>,
    #[command(flatten)]
    policy: Policy,
}

/// Reads the command line and the file of `--config`.
///
/// # Errors
/// The exit code; help, version or error is already printed.
pub(crate) fn parse() -> Result<Args, ExitCode> {
    runtime::command::write_pages(&Args::command())?;
    read(std::env::args_os().collect()).map_err(|error| {
        // Nothing can be done about a closed stdout or stderr.
        let _ = error.print();
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Done.into(),
            _ => Exit::Usage.into(),
        }
    })
}

fn read(line: Vec<OsString>) -> Result<Args, clap::Error> {
    let mut command = Args::command()
        .mut_subcommands(without_empty_variables)
        // The decision does not depend on the images.
        .mut_subcommand("explain", without_images)
        .mut_subcommand("audit", without_images);
    if let Some(file) = config_file(&command, &line) {
        let mut mistakes = Vec::new();
        command = command.mut_subcommands(|subcommand| {
            if !has_config(&subcommand) {
                return subcommand;
            }
            config::apply(subcommand.clone(), &file).unwrap_or_else(|found| {
                mistakes = found;
                subcommand
            })
        });
        if !mistakes.is_empty() {
            let name = format!("--config {}: ", file.display());
            let lines: Vec<String> =
                mistakes.iter().map(|mistake| name.clone() + mistake).collect();
            return Err(command.error(ErrorKind::InvalidValue, lines.join("\n")));
        }
    }
    Args::from_arg_matches_mut(&mut command.try_get_matches_from(line)?)
}

/// Stands for the images where none are given.
const NO_IMAGE: &str = "none";

/// Makes the image flags of a command optional.
fn without_images(command: clap::Command) -> clap::Command {
    ["init_image", "envoy_image"].iter().fold(command, |command, image| {
        command.mut_arg(image, |image| image.required(false).default_value(NO_IMAGE))
    })
}

/// The file of `--config` or its environment variable, found even if other flags are wrong
/// or missing.
fn config_file(command: &clap::Command, line: &[OsString]) -> Option<PathBuf> {
    let lenient = command.clone().mut_subcommands(|subcommand| {
        subcommand.mut_args(|arg| arg.required(false)).ignore_errors(true)
    });
    let matches = lenient.ignore_errors(true).try_get_matches_from(line).ok()?;
    let (name, flags): (&str, &ArgMatches) = matches.subcommand()?;
    command.find_subcommand(name).filter(|subcommand| has_config(subcommand))?;
    flags.get_one::<PathBuf>("config").cloned()
}

fn has_config(command: &clap::Command) -> bool {
    command.get_arguments().any(|arg| arg.get_id() == "config")
}

/// Ignores environment variables that are set but empty.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| {
        let is_empty = arg
            .get_env()
            .is_some_and(|name| std::env::var_os(name).is_some_and(|value| value.is_empty()));
        if is_empty { arg.env(None::<&str>) } else { arg }
    })
}

/// Errors in a command line, collected so that one run reports all of them.
#[derive(Debug, Default)]
struct Mistakes(Vec<String>);

// === impl Mistakes ===

impl Mistakes {
    /// Returns the value, or records the error under the flag's name.
    fn note<T, E: std::fmt::Display>(&mut self, flag: &str, value: Result<T, E>) -> Option<T> {
        value.map_err(|error| self.0.push(format!("{flag}: {error}"))).ok()
    }

    fn policy(&mut self, args: PolicyArgs) -> Policy {
        self.0.extend(args.policy.contradictions());
        args.policy
    }

    /// Combines the errors into one failure; `None` if there are none.
    fn failure(self) -> Option<Failure> {
        (!self.0.is_empty()).then(|| {
            Failure::usage(self.0.join("; "))
                .hint("`connect-inject COMMAND --help` says what each flag accepts")
        })
    }
}

// === impl ServeArgs ===

impl ServeArgs {
    /// Checks the flags; the error lists everything that is wrong with them.
    pub(crate) async fn settings(self) -> Result<serve::Settings, Failure> {
        let Self {
            listen,
            admin_listen,
            tls_cert_file,
            tls_key_file,
            tls_auto,
            tls_auto_hosts,
            kubernetes,
            audit_results_file: audit_results,
            shutdown_delay,
            agent,
            policy,
        } = self;
        let mut mistakes = Mistakes::default();
        let policy = mistakes.policy(policy);
        let tls_auto = given(tls_auto);
        let flag = if tls_auto.is_some() { "--tls-auto" } else { "--kubeconfig" };
        let access = match kubernetes.access().await {
            // Outside a cluster, which is fine if no flag needs the API.
            Err(_) if tls_auto.is_none() && !kubernetes.is_given() => None,
            access => mistakes.note(flag, access),
        };
        let tls = match (tls_auto, tls_cert_file, tls_key_file) {
            (Some(webhooks), None, None) => {
                let hosts = mistakes.note("--tls-auto-hosts", kubernetes::hosts(tls_auto_hosts));
                hosts.zip(access.clone()).map(|(hosts, Access { api, namespace })| {
                    let names = Names { webhooks, namespace, hosts };
                    Certificates::SelfManaged(Box::new(SelfManaged::new(api, names)))
                })
            }
            (None, Some(cert_file), Some(key_file)) => mistakes
                .note("--tls-cert-file, --tls-key-file", Pair::load(cert_file, key_file))
                .map(Certificates::Files),
            _ => {
                let problem = "give either --tls-cert-file and --tls-key-file, or --tls-auto";
                mistakes.0.push(problem.to_owned());
                None
            }
        };
        let agent = mistakes.note("the agent's flags", agent.agent(None));
        match (tls, agent, mistakes.failure()) {
            (Some(tls), Some(agent), None) => {
                let is_told = policy.kubernetes_version.is_some();
                let version_of: Option<Api> = access.filter(|_| !is_told).map(|access| access.api);
                Ok(serve::Settings {
                    listen,
                    admin_listen,
                    tls,
                    shutdown_delay,
                    agent,
                    policy,
                    audit_results,
                    version_of,
                })
            }
            (.., failure) => Err(failure.unwrap_or_else(unnamed)),
        }
    }
}

// === impl InjectArgs ===

impl InjectArgs {
    /// The settings of a command that writes manifests, which must contain the CA that pods
    /// trust.
    pub(crate) fn settings_to_write(self) -> Result<documents::Settings, Failure> {
        let settings = self.settings()?;
        if settings.policy.auto_encrypt {
            let problem = "--enable-auto-encrypt: this command works offline and cannot read the \
                           roots of Connect's CA";
            return Err(Failure::usage(problem).hint(
                "set --enable-auto-encrypt=false, and --consul-ca-cert to a file with the \
                 certificates of /v1/connect/ca/roots",
            ));
        }
        Ok(settings)
    }

    /// Checks the flags; the error lists everything that is wrong with them.
    pub(crate) fn settings(self) -> Result<documents::Settings, Failure> {
        let Self { files, k8s_namespace, policy } = self;
        let mut mistakes = Mistakes::default();
        let policy = mistakes.policy(policy);
        match mistakes.failure() {
            None => Ok(documents::Settings { files, namespace: k8s_namespace, policy }),
            Some(failure) => Err(failure),
        }
    }
}

/// An empty value counts as absent.
fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// Unreachable in practice: a value is missing only if an error was recorded.
fn unnamed() -> Failure {
    Failure::usage("a flag is wrong")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_agrees_with_its_pages() {
        testkit::agrees_with_readme(&Args::command(), include_str!("../../README.md"));
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
                // The README says in words what an empty default means.
                if default.is_empty() {
                    assert!(!cell.is_empty() && !cell.starts_with("`\""), "--{name}");
                    continue;
                }
                assert_eq!(cell, format!("`{default}`"), "--{name}");
            }
        }
    }
}
