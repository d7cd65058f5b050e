//! The sidecar's main process, from Envoy's start to its exit.

use std::ffi::OsString;
use std::num::NonZeroU16;
use std::path::Path;
use std::pin::Pin;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use envoy::Envoy;
use handoff::Handoff;
use probe::Probe;
use runtime::{Deadline, Failure, Signals, TerminationMessage};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::args::{DnsArgs, RelayArgs, RunArgs};
use crate::child::{self, Child};
use crate::end::drain::{self, Busy};
use crate::end::{self, Budget};
use crate::keep::roots;
use crate::keep::stream::Stream;
use crate::keep::virtual_address::VirtualAddress;
use crate::keep::{self, Keeper};
use crate::pod::Pod;
use crate::restart::Restart;
use crate::serve::dns::Dns;
use crate::serve::merge::{Merge, Source};
use crate::serve::relay::Relay;

/// How long Envoy may take to connect to the agent before a warning is logged.
const LATE: Duration = Duration::from_secs(10);

/// How long connections are drained before Envoy is restarted in place.
const RESTART: Duration = Duration::from_secs(10);

/// Runs Envoy, keeps it registered, and shuts it down gracefully.
///
/// On SIGTERM it deregisters and drains at the same time, then stops Envoy and logs out.
/// The exit code is then 0. It is 0, too, if Envoy was told to exit, by `/quitquitquit`
/// or a signal: Envoy has no other way to status 0. If Envoy crashes, the exit code is
/// Envoy's, also if the pod has been deregistered before: then the shutdown goes on without
/// Envoy.
pub(crate) async fn run(
    args: RunArgs,
    message: TerminationMessage,
    mut signals: Signals,
) -> Result<ExitCode, Failure> {
    let RunArgs {
        handoff,
        drain_timeout,
        deregister_timeout,
        cut_off_after,
        readiness_probe,
        merged_metrics_port,
        service_metrics_port,
        service_metrics_path,
        relay,
        dns,
        command,
    } = args;
    let command = with_drain_strategy(command);
    let pod = Pod::open(handoff)?;
    let virtual_address = VirtualAddress::of(&pod, dns.resolv_conf.clone());
    // First of all: if this container restarts, the application is already running and
    // sends queries.
    serve_dns_and_probes(dns, relay, &pod).await?;
    pod.revive(&mut signals).await?;
    if let Some((port, application)) = merged_metrics_port.zip(service_metrics_port) {
        let source = Source { port: application.get(), path: service_metrics_path };
        serve_metrics(port, source, &pod).await?;
    }
    let mut child = Child::spawn(&command)?;
    tokio::spawn(warn_of_no_stream(Envoy::at(pod.record.admin)));
    let stop = CancellationToken::new();
    let restart = Restart::default();
    let stream = Stream::new(cut_off_after, message);
    let probe = readiness_probe.map(|probe| since_start(probe, &pod.handoff));
    let keeper = Keeper::new(&pod, &restart, stream, probe, virtual_address);
    let mut keeper = Box::pin(keeper.keep(stop.clone()));
    let busy = busy(&pod);
    let ended =
        supervise(&command, &mut child, keeper.as_mut(), &pod, &restart, &busy, &mut signals)
            .await?;
    if let Some(status) = ended {
        if status.success() {
            tracing::info!("Envoy was told to exit: shutting down");
        } else if pod.handoff.is_buried() {
            // The kubelet does not restart a container of a pod that ends: nobody else would
            // retry the deregistration or log out.
            tracing::error!(%status, "Envoy exited unexpectedly while the pod was ending");
        } else {
            report_death(&pod, status).await;
            return Ok(child::exit_code(status));
        }
    }
    stop.cancel();
    let child = ended.is_none().then_some(child);
    let budget = Budget::new(&pod.handoff, drain_timeout, deregister_timeout);
    end::end(&pod, busy, child, keeper, budget, &mut signals).await;
    Ok(ended.map_or(ExitCode::SUCCESS, child::exit_code))
}

async fn serve_dns_and_probes(dns: DnsArgs, relay: RelayArgs, pod: &Pod) -> Result<(), Failure> {
    if let Some(dns) = Dns::listen(dns, &pod.record.agent.http_addr).await? {
        tokio::spawn(dns.serve());
    }
    if let Some(relay) = Relay::listen(relay, &pod.record.pair.service.address).await? {
        tokio::spawn(relay.serve());
    }
    Ok(())
}

async fn serve_metrics(port: NonZeroU16, source: Source, pod: &Pod) -> Result<(), Failure> {
    let merge = Merge::listen(port.get(), pod.record.admin, source).await?;
    // Until the very end, so that the drain shows in the metrics.
    tokio::spawn(merge.serve());
    Ok(())
}

fn busy(pod: &Pod) -> Busy {
    let port = pod.record.pair.service.port;
    Busy {
        envoy: Envoy::at(pod.record.admin),
        pages: pages(&pod.handoff),
        application: (port != 0).then_some(port),
    }
}

/// Restarts Envoy in place when requested. Returns Envoy's status if it exits by itself, and
/// `None` after a signal.
async fn supervise(
    command: &[OsString],
    child: &mut Child,
    mut keeper: Pin<&mut impl Future<Output = ()>>,
    pod: &Pod,
    restart: &Restart,
    busy: &Busy,
    signals: &mut Signals,
) -> Result<Option<ExitStatus>, Failure> {
    let mut roots = Box::pin(roots::follow(pod));
    loop {
        tokio::select! {
            biased;
            status = child.end() => return Ok(Some(status)),
            signal = signals.next() => {
                tracing::info!("received {signal}: shutting down");
                return Ok(None);
            }
            () = &mut keeper => return Ok(None), // it returns only when it is told to stop
            never = &mut roots => match never {},
            () = restart.requested() => {}
        }
        tracing::info!("restarting Envoy in place so that it uses the new ACL token");
        tokio::select! {
            biased;
            signal = signals.next() => {
                tracing::info!("received {signal}: shutting down");
                return Ok(None);
            }
            _status = drain::restart(busy, child, Deadline::after(RESTART)) => {}
            () = &mut keeper => return Ok(None),
        }
        *child = Child::spawn(command)?;
        restart.is_done();
    }
}

/// The probe with the rest of its initial delay. The delay begins with the pod, because
/// the application keeps running when only this container restarts.
fn since_start(probe: Probe, handoff: &Handoff) -> Probe {
    let start = std::fs::metadata(handoff.record()).and_then(|record| record.modified());
    let age = start.ok().and_then(|start| start.elapsed().ok()).unwrap_or_default();
    Probe { initial_delay: probe.initial_delay.saturating_sub(age), ..probe }
}

/// Warns if Envoy has no xDS stream some seconds after its start. If gRPC is disabled on
/// the agent, Envoy's own log says so much later and less clearly.
async fn warn_of_no_stream(envoy: Envoy) {
    tokio::time::sleep(LATE).await;
    if !envoy.is_connected().await.unwrap_or(false) {
        tracing::warn!(
            "Envoy could not connect to the agent's gRPC port for {LATE:?}: the pod is not \
             ready; hint: check that the agent runs and that gRPC is enabled"
        );
    }
}

/// Adds `--drain-strategy immediate` to Envoy's command unless it has a drain strategy.
/// By default, Envoy spreads the closing of connections over ten minutes.
fn with_drain_strategy(mut command: Vec<OsString>) -> Vec<OsString> {
    let is_envoy = command.first().and_then(|program| Path::new(program).file_name());
    let is_envoy = is_envoy.is_some_and(|name| name == "envoy");
    let is_given = command.iter().any(|arg| arg.to_string_lossy().starts_with("--drain-strategy"));
    if is_envoy && !is_given {
        command.extend(["--drain-strategy".into(), "immediate".into()]);
    }
    command
}

/// The ports of the listeners in Envoy's bootstrap on which Envoy answers itself, such as
/// the one for metrics.
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

/// Makes the TTL checks critical at once: until the container restarts, clients must not
/// be sent to a proxy that isn't running.
async fn report_death(pod: &Pod, status: ExitStatus) {
    tracing::error!(%status, "Envoy exited unexpectedly");
    let output = format!("Envoy exited: {status}");
    let report = keep::report_death(&pod.agent, &pod.record, &output);
    match tokio::time::timeout(Duration::from_secs(2), report).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!("{error}"),
        Err(_) => {
            tracing::warn!(
                "the agent did not answer in time: clients are sent here until the TTL check expires"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoy_drains_at_once_unless_its_command_says_otherwise() {
        let with = |command: &str| {
            let words = command.split(' ').map(OsString::from).collect();
            let words = with_drain_strategy(words);
            let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
            words.join(" ")
        };
        assert_eq!(with("/bin/envoy -c f"), "/bin/envoy -c f --drain-strategy immediate");
        for command in
            ["envoy --drain-strategy gradual", "envoy --drain-strategy=gradual", "sh -c x"]
        {
            assert_eq!(with(command), command);
        }
    }
}
