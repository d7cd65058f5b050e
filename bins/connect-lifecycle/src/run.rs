//! The sidecar's main process, from Envoy's start to its end.

use std::pin::pin;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use handoff::Handoff;
use runtime::{Deadline, Failure, Signals};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::args::RunArgs;
use crate::child::{self, Child};
use crate::drain::{self, Busy};
use crate::envoy::Envoy;
use crate::keep::{self, Keeper};
use crate::merge::{Merge, Source};
use crate::pod::Pod;

/// Runs Envoy, keeps it registered, and ends it well.
///
/// Asked to end, it deregisters early, drains late, quits last and logs out. The exit code
/// is then 0, and so it is if Envoy was asked to end: by `/quitquitquit` or a
/// signal, which are its only ways to status 0. If it ends by itself, the exit
/// code is Envoy's.
pub(crate) async fn run(args: RunArgs, mut signals: Signals) -> Result<ExitCode, Failure> {
    let RunArgs {
        handoff,
        drain_timeout,
        deregister_timeout,
        merged_metrics_port,
        service_metrics_port,
        service_metrics_path,
        command,
    } = args;
    let pod = Pod::open(handoff)?;
    pod.revive(&mut signals).await?;
    if let Some((port, application)) = merged_metrics_port.zip(service_metrics_port) {
        let source = Source { port: application.get(), path: service_metrics_path };
        let merge = Merge::listen(port.get(), pod.record.admin, source).await?;
        // Until the very end: what is drained is of interest, too.
        tokio::spawn(merge.serve());
    }
    let mut child = Child::spawn(&command)?;
    let stop = CancellationToken::new();
    let mut keeper = Box::pin(Keeper::new(&pod).keep(stop.clone()));

    let ended = tokio::select! {
        biased;
        status = child.end() => Some(status),
        signal = signals.next() => {
            tracing::info!("{signal}: ending");
            None
        }
        () = &mut keeper => None, // it ends only when it is told to
    };
    match ended {
        Some(status) if status.success() => tracing::info!("Envoy was asked to end: ending"),
        Some(status) => {
            report_death(&pod, status).await;
            return Ok(child::exit_code(status));
        }
        None => {}
    }
    stop.cancel();
    let Pod { handoff, record, agent, .. } = &pod;
    let deadline = Deadline::after(deregister_timeout);
    let mut deregister = pin!(lifecycle::deregister(handoff, agent, &record.pair, deadline));
    // A registration that is under way is brought to its end meanwhile: it has the lock.
    let deregistered = tokio::select! {
        done = &mut deregister => done,
        () = &mut keeper => deregister.await,
    };
    // With it goes the lock, which another process may wait for.
    drop(keeper);
    if let Err(leftovers) = deregistered {
        tracing::warn!("{}", Failure::from(leftovers));
    }
    if ended.is_none() {
        let hurry = async {
            signals.next().await;
        };
        let port = record.pair.service.port;
        let busy = Busy {
            envoy: Envoy::at(record.admin),
            pages: pages(handoff),
            application: (port != 0).then_some(port),
        };
        let status = drain::end(busy, &mut child, Deadline::after(drain_timeout), hurry).await;
        tracing::info!(%status, "Envoy ended");
    }
    pod.log_out().await;
    Ok(ExitCode::SUCCESS)
}

/// The ports of the pages that Envoy serves itself, such as its metrics, by the
/// names that they have in its bootstrap.
fn pages(handoff: &Handoff) -> Vec<u16> {
    let bootstrap = std::fs::read(handoff.bootstrap()).unwrap_or_default();
    let bootstrap: Value = serde_json::from_slice(&bootstrap).unwrap_or_default();
    let listeners = bootstrap.pointer("/static_resources/listeners").and_then(Value::as_array);
    listeners
        .into_iter()
        .flatten()
        .filter(|listener| PAGES.iter().any(|page| listener["name"] == *page))
        .filter_map(|listener| listener.pointer("/address/socket_address/port_value")?.as_u64())
        .filter_map(|port| u16::try_from(port).ok())
        .collect()
}

const PAGES: [&str; 3] =
    ["envoy_prometheus_metrics_listener", "envoy_metrics_listener", "envoy_ready_listener"];

/// The container restarts in a moment, or the pod is lost: until then no client
/// is to be sent to a proxy that is not there.
async fn report_death(pod: &Pod, status: ExitStatus) {
    tracing::error!(%status, "Envoy ended by itself");
    let output = format!("Envoy ended: {status}");
    let report = keep::report_death(&pod.agent, &pod.record, &output);
    match tokio::time::timeout(Duration::from_secs(2), report).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!("{error}"),
        Err(_) => {
            tracing::warn!("the agent did not answer in time: the lease runs out in its place");
        }
    }
}
