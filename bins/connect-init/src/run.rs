//! Goes from the flags to a registered pod that is ready to start, or rolls back.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use consul::{Agent, Config};
use definition::Format;
use flags::{AgentArgs, BootstrapArgs, Report};
use handoff::{Handoff, Milestone};
use provision::Trust;
use registration::pod::Pair;
use runtime::deadline::race;
use runtime::{Deadline, Exit, Failure, Signals, stdout};

use crate::args::{Args, Output, PodArgs, TransparentArgs};
use crate::declare::{Declared, Said, Transparent, declare};
use crate::dry_run;
use crate::helper::Helper;
use crate::sidecar::Sidecar;
use crate::virtual_address;

/// How long a rollback may take. Part of the timeout, and at most a quarter of it.
const TAKE_BACK: Duration = Duration::from_secs(5);

/// The deadlines of a run.
#[derive(Clone, Copy, Debug)]
struct Budget {
    whole: Deadline,
    /// Deadline of the registration, which leaves time for a rollback.
    work: Deadline,
}

/// The pod's services, ready to be registered.
struct Startup {
    sidecars: Vec<Sidecar>,
    /// The pod's directory.
    common: Handoff,
    agent: Agent,
    trust: Trust,
    budget: Budget,
    signals: Signals,
}

/// The value of the label that marks an injected pod. Set but empty if the label is gone.
const STATUS: &str = "CONNECT_INJECT_STATUS";

/// Registers all of the pod's services and prepares their sidecars, or rolls back.
pub(crate) async fn run(args: Args, signals: Signals) -> Result<ExitCode, Failure> {
    let Args {
        services,
        upstreams,
        tags,
        meta,
        proxy_config,
        transparent,
        pod,
        agent,
        auto_encrypt,
        login,
        bootstrap,
        dir,
        helper,
        timeout,
        first_timeout,
        dry_run,
        output,
        log: _,
    } = args;
    let common = Handoff::new(&dir);
    let budget = Budget::of(attempt(timeout, first_timeout.filter(|_| !dry_run), &common));
    let admin = bootstrap.admin().await?;
    let (config, trust) = config(agent, auto_encrypt, &pod, &common)?;
    let login = login.login(&pod);
    let transparent = resolve(transparent, &pod).await;
    let declared = declare(Said {
        services,
        upstreams: upstreams.into_iter().flat_map(|list| list.0).collect(),
        tags,
        meta,
        proxy_config,
        transparent,
        pod,
        consul_namespace: config.namespace.clone(),
        consul_partition: config.partition.clone(),
        admin,
    })?;
    if let Some(format) = output {
        return print(&definitions(&declared, format));
    }
    if !dry_run {
        refuse_a_copy()?;
    }
    let agent = Agent::new(config).map_err(Report::failure)?;
    let sidecars = declared
        .into_iter()
        .map(|declared| Sidecar::new(declared, &dir, &agent, login.as_ref(), &bootstrap, trust))
        .collect();
    let startup = Startup { sidecars, common, agent, trust, budget, signals };
    if dry_run {
        return startup.describe(&bootstrap).await;
    }
    if first_timeout.is_some() {
        startup.common.note(Milestone::Tried)?;
    }
    Box::pin(startup.provide(helper)).await
}

/// The timeout of this attempt: `first` if it is shorter and no attempt was made before.
fn attempt(timeout: Duration, first: Option<Duration>, common: &Handoff) -> Duration {
    match first {
        Some(first) if !common.has_reached(Milestone::Tried) => timeout.min(first),
        _ => timeout,
    }
}

/// How to reach the agent, and where its CA certificates come from.
fn config(
    agent: AgentArgs,
    auto_encrypt: bool,
    pod: &PodArgs,
    common: &Handoff,
) -> Result<(Config, Trust), Failure> {
    let mut config = agent.config(pod.node_name.clone())?;
    let trust = Trust::of(auto_encrypt);
    trust.remember(common, &mut config.tls);
    Ok((config, trust))
}

/// Resolves the virtual address.
async fn resolve(args: TransparentArgs, pod: &PodArgs) -> Transparent {
    let TransparentArgs { transparent, virtual_address, expose } = args;
    let virtual_name = virtual_address.as_ref().and_then(|given| given.name(&pod.pod_namespace));
    let virtual_address = match virtual_address {
        Some(given) => virtual_address::resolve(given, &pod.pod_namespace, pod.pod_ip).await,
        None => None,
    };
    Transparent { is_on: transparent, virtual_address, virtual_name, expose }
}

/// The definitions of services and sidecars, which `connect-register` can read.
fn definitions(declared: &[Declared], format: Output) -> String {
    let pairs = declared.iter().map(|declared| &declared.pair);
    let services = pairs.flat_map(|Pair { service, proxy }| [service, proxy]);
    definition::print(services, format.into())
}

fn print(text: &str) -> Result<ExitCode, Failure> {
    stdout::write(text)?;
    Ok(ExitCode::SUCCESS)
}

// === impl Startup ===

impl Startup {
    /// Prints what a run would do.
    async fn describe(self, flags: &BootstrapArgs) -> Result<ExitCode, Failure> {
        let Self { sidecars, common, agent, trust, budget, mut signals } = self;
        let deadline = budget.work;
        let work = dry_run::tell(&sidecars, &agent, flags, &common, trust);
        match race(deadline, &mut signals, work).await {
            Ok(document) => print(&format!("{:#}\n", document?)),
            Err(cut) => Err(cut.failure(deadline)),
        }
    }

    /// Registers the services and writes the directory's files. If a step fails, or the
    /// deadline or a signal cuts it short, deregisters all of them.
    async fn provide(self, helper: Option<PathBuf>) -> Result<ExitCode, Failure> {
        let Self { sidecars, common, agent, trust, budget, mut signals } = self;
        let helper = Helper::find(helper)?;
        let tls = provision::prepare(&common, agent.config(), trust)?;
        for sidecar in &sidecars {
            sidecar.prepare()?;
        }
        let helper = helper.install(&common)?;

        let deadline = budget.work;
        let work = async {
            for sidecar in &sidecars {
                sidecar.provide(&tls, &helper, deadline).await?;
            }
            Ok(())
        };
        let failure = match race(deadline, &mut signals, work).await {
            Ok(Ok(())) => return Ok(ExitCode::SUCCESS),
            Ok(Err(failure)) => failure,
            Err(cut) => cut.failure(deadline),
        };
        // A pod whose init container failed does not run, so clients must not be sent to it.
        // An agent that hangs on one service must leave time for the others.
        let deadline = budget.take_back();
        for (index, sidecar) in sidecars.iter().enumerate().rev() {
            let share = deadline.left() / u32::try_from(index + 1).unwrap_or(u32::MAX);
            sidecar.take_back(Deadline::after(share)).await;
        }
        // Without waiting, the copy of the helper could be incomplete.
        let _ = tokio::time::timeout(deadline.left(), helper.done()).await;
        Err(failure)
    }
}

// === impl Budget ===

impl Budget {
    fn of(timeout: Duration) -> Self {
        let whole = Deadline::after(timeout);
        Self { whole, work: whole.earlier_by(TAKE_BACK.min(timeout / 4)) }
    }

    /// Deadline of a rollback that starts now.
    fn take_back(self) -> Deadline {
        Deadline::after(TAKE_BACK.min(self.whole.left()))
    }
}

// === impl Output ===

impl From<Output> for Format {
    fn from(output: Output) -> Self {
        match output {
            Output::Hcl => Self::Hcl,
            Output::Json => Self::Json,
        }
    }
}

/// Refuses to register a copy of an injected pod. `kubectl debug --copy-to` removes labels, so
/// that Services send no traffic to the copy; Consul must not either.
fn refuse_a_copy() -> Result<(), Failure> {
    // Not a flag, because clap treats an empty variable as unset.
    if std::env::var_os(STATUS).is_none_or(|status| !status.is_empty()) {
        return Ok(());
    }
    let why = "this pod is a copy of an injected one: the label \
               consul.hashicorp.com/connect-inject-status is gone; it is not registered";
    Err(Failure::new(Exit::Usage, why).hint(
        "to start the application alone: kubectl debug --copy-to=NAME --keep-init-containers=false",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `--timeout 4s` took 9 s, because the rollback had another 5 s.
    #[tokio::test(start_paused = true)]
    async fn a_rollback_is_part_of_the_timeout() {
        for (timeout, take_back) in [(4, 1), (20, 5), (120, 5)] {
            let budget = Budget::of(Duration::from_secs(timeout));
            let take_back = Duration::from_secs(take_back);
            let most = TAKE_BACK.min(budget.whole.left());
            assert_eq!(budget.take_back().left(), most, "the rollback outlasts {timeout} s");
            budget.work.passed().await;
            assert_eq!(budget.take_back().left(), take_back, "of {timeout} s");
            assert_eq!(budget.whole.left(), take_back, "of {timeout} s");
        }
    }
}
