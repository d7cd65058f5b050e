//! The flags of `audit`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgMatches, Command, FromArgMatches};
use flags::AgentArgs;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use runtime::Failure;

use super::{Mistakes, NO_IMAGE, PolicyArgs, given, unnamed};
use crate::audit::{self, Code, ConfigMap, Filter, Output, Repair, Settings};
use crate::kubernetes::Api;

#[derive(Debug, clap::Args)]
pub(crate) struct AuditArgs {
    /// Check only pods of this Kubernetes namespace, and what has no namespace
    #[arg(short = 'n', long = "namespace", value_name = "NAMESPACE")]
    k8s_namespace: Option<String>,
    /// Report only findings of this node, and those without a node
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Report only findings of this code; repeatable or comma-separated
    #[arg(long, value_name = "CODE", value_delimiter = ',', value_parser = audit::code)]
    only: Vec<Code>,
    /// Format of the findings
    #[arg(short = 'o', long, value_name = "FORMAT", value_enum, default_value = "table")]
    output: Output,
    /// How long a new pod may take to register before a missing registration is reported
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "2m",
        value_parser = duration::parse_length
    )]
    grace: Duration,
    /// Pause before a second look at findings that may be transient; 0s for none. The
    /// default is longer than a registration outlives its pod
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "35s",
        value_parser = duration::parse_length
    )]
    settle: Duration,
    /// Write the number of findings of each code to this existing ConfigMap, for the
    /// injector's metrics; not with --namespace or --node
    #[arg(
        long,
        value_name = "NAMESPACE/NAME",
        conflicts_with_all = ["k8s_namespace", "node"]
    )]
    results_configmap: Option<ConfigMap>,
    /// Print the required permissions, a ClusterRole and an ACL policy that only read, and
    /// exit
    #[arg(long)]
    pub(crate) print_rbac: bool,
    /// Remove registrations and ACL tokens whose pod is provably gone, after showing them
    /// and asking
    #[arg(long)]
    repair: bool,
    /// With --repair: do not ask
    #[arg(long, requires = "repair")]
    yes: bool,
    /// kubeconfig file [default: as kubectl: KUBECONFIG, ~/.kube/config or, in a pod, its
    /// service account]
    #[arg(long, value_name = "FILE", help_heading = "Kubernetes API")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig file [default: its current context]
    #[arg(long, value_name = "NAME", help_heading = "Kubernetes API")]
    context: Option<String>,
    #[command(flatten)]
    agent: ConsulArgs,
    #[command(flatten)]
    policy: PolicyArgs,
}

/// The agent's flags. `--namespace` is taken by Kubernetes, so Consul's is renamed.
#[derive(Debug)]
struct ConsulArgs(AgentArgs);

// === impl ConsulArgs ===

impl clap::Args for ConsulArgs {
    fn augment_args(command: Command) -> Command {
        AgentArgs::augment_args(command)
            .mut_arg("namespace", |namespace| namespace.long("consul-namespace"))
            .mut_arg("partition", |partition| partition.long("consul-partition"))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ConsulArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        AgentArgs::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

// === impl AuditArgs ===

impl AuditArgs {
    /// Checks the flags; the error lists everything that is wrong with them.
    pub(crate) async fn settings(self) -> Result<Settings, Failure> {
        let Self {
            k8s_namespace,
            node,
            only,
            output,
            grace,
            settle,
            results_configmap: results,
            print_rbac: _,
            repair,
            yes,
            kubeconfig,
            context,
            agent: ConsulArgs(agent),
            policy,
        } = self;
        let mut mistakes = Mistakes::default();
        let policy = mistakes.policy(policy);
        let knows_policy = policy.init_image != NO_IMAGE;
        if !knows_policy {
            tracing::warn!(
                "no --config: sidecars are not compared with the injector's current settings"
            );
        }
        let api = mistakes.note("--kubeconfig", access(kubeconfig, context).await);
        let agent = mistakes.note("the agent's flags", agent.agent(None));
        let filter = Filter { namespace: given(k8s_namespace), node: given(node), only };
        match (api, agent, mistakes.failure()) {
            (Some((api, is_in_cluster)), Some(agent), None) => Ok(Settings {
                api,
                is_in_cluster,
                agent,
                policy,
                knows_policy,
                filter,
                output,
                results,
                repair: repair.then_some(if yes { Repair::Agreed } else { Repair::Ask }),
                grace,
                settle,
            }),
            (.., failure) => Err(failure.unwrap_or_else(unnamed)),
        }
    }
}

/// The user's kubeconfig files, if any: those that KUBECONFIG names, or the default file.
fn kubeconfig() -> Option<String> {
    let named = std::env::var_os("KUBECONFIG").filter(|files| !files.is_empty());
    let default = || {
        let file = PathBuf::from(std::env::var_os("HOME")?).join(".kube/config");
        file.exists().then(|| file.into_os_string())
    };
    named.or_else(default).map(|files| files.to_string_lossy().into_owned())
}

/// Connects to the API server as kubectl would; also returns whether it uses a pod's
/// service account.
async fn access(file: Option<PathBuf>, context: Option<String>) -> Result<(Api, bool), String> {
    let kubeconfig = match &file {
        Some(file) => Some(
            Kubeconfig::read_from(file).map_err(|error| format!("{}: {error}", file.display()))?,
        ),
        None => match kubeconfig() {
            Some(files) => Some(
                Kubeconfig::read()
                    .map_err(|error| format!("cannot read the kubeconfig {files}: {error}"))?,
            ),
            None if context.is_some() => {
                return Err("--context: there is no kubeconfig to take it from".to_owned());
            }
            // In a pod.
            None => None,
        },
    };
    let is_in_cluster = kubeconfig.is_none();
    let config = match kubeconfig {
        Some(kubeconfig) => {
            let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
            Config::from_custom_kubeconfig(kubeconfig, &options)
                .await
                .map_err(|error| error.to_string())?
        }
        None => Config::incluster().map_err(|error| {
            format!(
                "cannot reach the Kubernetes API: no kubeconfig and not running in a pod: {error}"
            )
        })?,
    };
    let server = config.cluster_url.to_string();
    let client = Client::try_from(config)
        .map_err(|error| format!("cannot use the Kubernetes API {server}: {error}"))?;
    Ok((Api { client, server }, is_in_cluster))
}
