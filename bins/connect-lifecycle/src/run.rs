//! The sidecar's main process, from Envoy's start to its end.

use std::ffi::OsString;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use envoy::Envoy;
use handoff::Handoff;
use probe::Probe;
use runtime::{Deadline, Failure, Signals, TerminationMessage};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::args::RunArgs;
use crate::child::{self, Child};
use crate::dns::Dns;
use crate::drain::{self, Busy};
use crate::end::{self, Budget};
use crate::keep::{self, Keeper};
use crate::merge::{Merge, Source};
use crate::pod::Pod;
use crate::relay::Relay;
use crate::restart::Restart;
use crate::roots;
use crate::stream::Stream;
use crate::virtual_address::VirtualAddress;

/// How long Envoy may take to connect to the agent before there is a warning.
const LATE: Duration = Duration::from_secs(10);

/// How long connections may take to end before Envoy is restarted in place.
const RESTART: Duration = Duration::from_secs(10);

/// Runs Envoy, keeps it registered, and ends it well.
///
/// Asked to end, it deregisters and drains side by side, quits Envoy and logs
/// out. The exit code is then 0, and so it is if Envoy was asked to end: by
/// `/quitquitquit` or a signal, which are its only ways to status 0. If it ends
/// by itself, the exit code is Envoy's.
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
    // First of all: where this container starts again, the application asks already.
    if let Some(dns) = Dns::listen(dns, &pod.record.agent.http_addr).await? {
        tokio::spawn(dns.serve());
    }
    if let Some(relay) = Relay::listen(relay, &pod.record.pair.service.address).await? {
        tokio::spawn(relay.serve());
    }
    pod.revive(&mut signals).await?;
    if let Some((port, application)) = merged_metrics_port.zip(service_metrics_port) {
        let source = Source { port: application.get(), path: service_metrics_path };
        let merge = Merge::listen(port.get(), pod.record.admin, source).await?;
        // Until the very end: what is drained is of interest, too.
        tokio::spawn(merge.serve());
    }
    let mut child = Child::spawn(&command)?;
    tokio::spawn(warn_of_no_stream(Envoy::at(pod.record.admin)));
    let stop = CancellationToken::new();
    let restart = Restart::default();
    let stream = Stream::new(cut_off_after, message);
    let probe = readiness_probe.map(|probe| since_start(probe, &pod.handoff));
    let keeper = Keeper::new(&pod, &restart, stream, probe, virtual_address);
    let mut keeper = Box::pin(keeper.keep(stop.clone()));
    let mut roots = Box::pin(roots::follow(&pod));
    let port = pod.record.pair.service.port;
    let busy = Busy {
        envoy: Envoy::at(pod.record.admin),
        pages: pages(&pod.handoff),
        application: (port != 0).then_some(port),
    };

    let ended = loop {
        tokio::select! {
            biased;
            status = child.end() => break Some(status),
            signal = signals.next() => {
                tracing::info!("{signal}: ending");
                break None;
            }
            () = &mut keeper => break None, // it ends only when it is told to
            never = &mut roots => match never {},
            () = restart.requested() => {}
        }
        tracing::info!("Envoy is restarted in place, so that it has the new ACL token");
        tokio::select! {
            biased;
            signal = signals.next() => {
                tracing::info!("{signal}: ending");
                break None;
            }
            _status = drain::restart(&busy, &mut child, Deadline::after(RESTART)) => {}
            () = &mut keeper => break None,
        }
        child = Child::spawn(&command)?;
        restart.is_done();
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
    let child = ended.is_none().then_some(child);
    let budget = Budget::new(&pod.handoff, drain_timeout, deregister_timeout);
    end::end(&pod, busy, child, keeper, budget, &mut signals).await;
    Ok(ExitCode::SUCCESS)
}

/// A probe with what is left of its initial delay, which begins with the pod: a
/// container that starts again finds an application that runs.
fn since_start(probe: Probe, handoff: &Handoff) -> Probe {
    let start = std::fs::metadata(handoff.record()).and_then(|record| record.modified());
    let age = start.ok().and_then(|start| start.elapsed().ok()).unwrap_or_default();
    Probe { initial_delay: probe.initial_delay.saturating_sub(age), ..probe }
}

/// Warns if Envoy has no configuration some seconds after its start: where gRPC is off on
/// the agent, Envoy itself says so much later, and in its own words.
async fn warn_of_no_stream(envoy: Envoy) {
    tokio::time::sleep(LATE).await;
    if !envoy.is_connected().await.unwrap_or(false) {
        tracing::warn!(
            "Envoy has had no connection to the agent's gRPC port for {LATE:?}: the pod is not \
             ready; hint: check that the agent runs and that gRPC is on"
        );
    }
}

/// Envoy's command, with the drain strategy by which all clients are told at once
/// to go elsewhere, unless it has one: by default Envoy tells them over ten minutes.
fn with_drain_strategy(mut command: Vec<OsString>) -> Vec<OsString> {
    let is_envoy = command.first().and_then(|program| Path::new(program).file_name());
    let is_envoy = is_envoy.is_some_and(|name| name == "envoy");
    let is_given = command.iter().any(|arg| arg.to_string_lossy().starts_with("--drain-strategy"));
    if is_envoy && !is_given {
        command.extend(["--drain-strategy".into(), "immediate".into()]);
    }
    command
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
            tracing::warn!(
                "the agent did not answer in time: clients are sent here until the TTL check expires"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients are told at once.
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
