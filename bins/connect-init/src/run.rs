//! From the flags to a pod that is registered and ready to start, and back out
//! if a step fails.

use std::cell::Cell;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use consul::Agent;
use definition::Format;
use handoff::Handoff;
use registration::pod::Pair;
use runtime::deadline::race;
use runtime::{Deadline, Exit, Failure, Signals};

use crate::args::{Args, Output};
use crate::declare::{Said, declare};
use crate::{prepare, provide, register};

/// How long taking back may take, after the deadline or a signal.
const TAKE_BACK: Duration = Duration::from_secs(5);

/// Registers the pod and provides its sidecar, all or nothing.
pub(crate) async fn run(args: Args, mut signals: Signals) -> Result<ExitCode, Failure> {
    let Args {
        service,
        upstreams,
        tags,
        meta,
        proxy_config,
        pod,
        agent,
        bootstrap,
        dir,
        helper,
        timeout,
        dry_run,
        output,
        log: _,
    } = args;
    let deadline = Deadline::after(timeout);
    let admin = bootstrap.admin().await?;
    let config = agent.config(pod.node_name.clone())?;
    let pair = declare(Said {
        service,
        upstreams: upstreams.into_iter().flat_map(|list| list.0).collect(),
        tags,
        meta,
        proxy_config,
        pod,
        consul_namespace: config.namespace.clone(),
        consul_partition: config.partition.clone(),
        admin,
    })?;
    if dry_run {
        return print(&pair, output);
    }
    let ca_pem = config.tls.ca_pem()?;
    let agent = Agent::new(config)?;
    let handoff = Handoff::new(dir);
    prepare::prepare(&handoff, helper, &ca_pem, agent.config().token.as_ref())?;

    let arrived = Cell::new(false);
    let work = async {
        register::register(&handoff, &agent, &pair, deadline, &arrived).await?;
        provide::bootstrap(&handoff, &agent, &bootstrap, &pair, deadline).await?;
        provide::record(&handoff, &agent, pair.clone(), admin, !ca_pem.is_empty())
    };
    let failure = match race(deadline, &mut signals, work).await {
        Ok(Ok(())) => return Ok(ExitCode::SUCCESS),
        Ok(Err(failure)) => failure,
        Err(cut) => cut.failure(deadline),
    };
    // An agent that was never reached has nothing to take back.
    if arrived.get() {
        take_back(&handoff, &agent, &pair).await;
    }
    Err(failure)
}

/// A pod whose init container fails does not run: nobody may be sent to it.
async fn take_back(handoff: &Handoff, agent: &Agent, pair: &Pair) {
    if let Err(leftovers) = handoff.retract(agent, pair, Deadline::after(TAKE_BACK)).await {
        tracing::warn!("{}", Failure::from(leftovers));
    }
}

fn print(pair: &Pair, output: Option<Output>) -> Result<ExitCode, Failure> {
    let services = [&pair.service, &pair.proxy];
    let text = match output {
        // Strings, numbers, lists and maps with string keys.
        None => serde_json::to_string_pretty(pair).expect("a registration is JSON") + "\n",
        Some(Output::Hcl) => definition::print(services, Format::Hcl),
        Some(Output::Json) => definition::print(services, Format::Json),
    };
    write!(std::io::stdout(), "{text}").map_err(|error| {
        Failure::new(Exit::CannotWrite, format_args!("cannot write to stdout: {error}"))
    })?;
    Ok(ExitCode::SUCCESS)
}
