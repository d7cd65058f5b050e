//! From the flags to a pod that is registered and ready to start, and back out
//! if a step fails.

use std::process::ExitCode;
use std::time::Duration;

use consul::Agent;
use definition::Format;
use flags::Report;
use handoff::{Handoff, Milestone};
use provision::Trust;
use registration::pod::Pair;
use runtime::deadline::race;
use runtime::{Deadline, Exit, Failure, Signals, stdout};

use crate::args::{Args, Output, TransparentArgs};
use crate::declare::{Said, Transparent, declare};
use crate::dry_run;
use crate::helper::Helper;
use crate::sidecar::Sidecar;
use crate::virtual_address;

/// How long taking back may take, after the work was cut short. It is part of the
/// timeout, of which it takes a quarter at most.
const TAKE_BACK: Duration = Duration::from_secs(5);

/// The timeout, and what is to be done within it.
#[derive(Clone, Copy, Debug)]
struct Budget {
    whole: Deadline,
    /// For the registration. Enough is left after it to take that back.
    work: Deadline,
}

/// The pod's label by which the injector says that it injected it. It is set but empty
/// where the label is gone.
const STATUS: &str = "CONNECT_INJECT_STATUS";

/// Registers the pod's services and provides their sidecars, all or nothing.
pub(crate) async fn run(args: Args, mut signals: Signals) -> Result<ExitCode, Failure> {
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
    let is_first = !common.has_reached(Milestone::Tried);
    let timeout = timeout.min(first_timeout.filter(|_| is_first && !dry_run).unwrap_or(timeout));
    let budget = Budget::of(timeout);
    let deadline = budget.work;
    let admin = bootstrap.admin().await?;
    let mut config = agent.config(pod.node_name.clone())?;
    let trust = if auto_encrypt { Trust::Roots } else { Trust::Given };
    trust.remember(&common, &mut config.tls);
    let login = login.login(&pod);
    let TransparentArgs { transparent, virtual_address, expose } = transparent;
    let virtual_name = virtual_address.as_ref().and_then(|given| given.name(&pod.pod_namespace));
    let virtual_address = match virtual_address {
        Some(given) => virtual_address::resolve(given, &pod.pod_namespace, pod.pod_ip).await,
        None => None,
    };
    let declared = declare(Said {
        services,
        upstreams: upstreams.into_iter().flat_map(|list| list.0).collect(),
        tags,
        meta,
        proxy_config,
        transparent: Transparent { is_on: transparent, virtual_address, virtual_name, expose },
        pod,
        consul_namespace: config.namespace.clone(),
        consul_partition: config.partition.clone(),
        admin,
    })?;
    if let Some(format) = output {
        let pairs = declared.iter().map(|declared| &declared.pair);
        let services = pairs.flat_map(|Pair { service, proxy }| [service, proxy]);
        return print(&definition::print(services, format.into()));
    }
    if !dry_run {
        refuse_a_copy()?;
    }
    let agent = Agent::new(config).map_err(Report::failure)?;
    let sidecars: Vec<Sidecar> = declared
        .into_iter()
        .map(|declared| Sidecar::new(declared, &dir, &agent, login.as_ref(), &bootstrap, trust))
        .collect();
    if dry_run {
        let telling = dry_run::tell(&sidecars, &agent, &bootstrap, &common, trust);
        return match race(deadline, &mut signals, telling).await {
            Ok(document) => print(&format!("{:#}\n", document?)),
            Err(cut) => Err(cut.failure(deadline)),
        };
    }
    if first_timeout.is_some() {
        common.note(Milestone::Tried)?;
    }
    let helper = Helper::find(helper)?;
    let tls = provision::prepare(&common, agent.config(), trust)?;
    for sidecar in &sidecars {
        sidecar.prepare()?;
    }
    let helper = helper.install(&common)?;

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
    // A pod whose init container fails does not run: nobody may be sent to it.
    // An agent that hangs on one of them must leave time for the others.
    let deadline = budget.take_back();
    for (index, sidecar) in sidecars.iter().enumerate().rev() {
        let share = deadline.left() / u32::try_from(index + 1).unwrap_or(u32::MAX);
        sidecar.take_back(Deadline::after(share)).await;
    }
    // It would be left half written.
    let _ = tokio::time::timeout(deadline.left(), helper.done()).await;
    Err(failure)
}

fn print(text: &str) -> Result<ExitCode, Failure> {
    stdout::write(text)?;
    Ok(ExitCode::SUCCESS)
}

// === impl Budget ===

impl Budget {
    fn of(timeout: Duration) -> Self {
        let whole = Deadline::after(timeout);
        Self { whole, work: whole.earlier_by(TAKE_BACK.min(timeout / 4)) }
    }

    /// Of a registration that failed now, or was cut short.
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

/// Refuses to register a copy of an injected pod. `kubectl debug --copy-to` takes labels
/// away, so that a copy gets no traffic; Consul would send it some.
fn refuse_a_copy() -> Result<(), Failure> {
    // Clap takes a variable that is empty as absent, which here it is not.
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

    /// `--timeout 4s` took 9 s, because taking back had 5 s of its own.
    #[tokio::test(start_paused = true)]
    async fn taking_back_is_within_the_timeout() {
        for (timeout, take_back) in [(4, 1), (20, 5), (120, 5)] {
            let budget = Budget::of(Duration::from_secs(timeout));
            let take_back = Duration::from_secs(take_back);
            assert_eq!(budget.take_back().left(), TAKE_BACK.min(budget.whole.left()));
            budget.work.passed().await;
            assert_eq!(budget.take_back().left(), take_back, "of {timeout} s");
            assert_eq!(budget.whole.left(), take_back, "of {timeout} s");
        }
    }
}
