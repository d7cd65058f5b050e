//! The containers that run Envoy.

use std::borrow::Cow;
use std::sync::LazyLock;

use k8s_openapi::api::core::v1::{ContainerPort, LifecycleHandler, Probe};

use super::container::{Container, Fixed, Hooks, Part, fixed};
use super::fields::{exec, injected, literal, log, resources};
use crate::names::{DNS_PORT, FOLDER, HELPER, SIDECAR, sidecar_of};
use crate::plan::{Envoy, Metrics, Plan, Readiness, Relay};
use crate::policy::Policy;

/// The containers that run Envoy under `connect-lifecycle`, one for each service of the pod.
pub(crate) fn sidecars<'p>(plan: &'p Plan, policy: &'p Policy) -> Vec<Container<'p>> {
    let first = sidecar(plan, Of::default(), policy);
    let further = (1..).zip(&plan.service.more);
    let further =
        further.map(|(index, (name, _))| sidecar(plan, Of { index, service: Some(name) }, policy));
    std::iter::once(first).chain(further).collect()
}

/// Identifies one of the pod's sidecars.
#[derive(Clone, Copy, Default)]
pub(super) struct Of<'p> {
    index: u16,
    /// Name of the sidecar's service; `None` for the first service, which is the default of
    /// `connect-lifecycle`.
    service: Option<&'p str>,
}

impl Of<'_> {
    /// A command of `connect-lifecycle` for this sidecar.
    fn helper(self, command: &str) -> Vec<String> {
        let service = self.service.map(|service| format!("--service={service}"));
        [HELPER.to_owned(), command.to_owned()].into_iter().chain(service).collect()
    }

    /// A part that depends on nothing else. That of the first sidecar is written once.
    fn part<T>(self, first: &'static Fixed, of: impl FnOnce(Self) -> T) -> Part<T> {
        if self.service.is_none() { Part::Fixed(first) } else { Part::Own(of(self)) }
    }
}

pub(super) fn sidecar<'p>(plan: &'p Plan, of: Of<'p>, policy: &'p Policy) -> Container<'p> {
    static DEREGISTER: LazyLock<Fixed> = LazyLock::new(|| fixed(&deregister(Of::default())));
    static READINESS: LazyLock<Fixed> = LazyLock::new(|| fixed(&readiness(Of::default())));
    let Plan { envoy, lifecycle, .. } = plan;
    let waiting = || {
        of.helper("ready").into_iter().chain(["--wait".to_owned(), format!("{}s", lifecycle.hold)])
    };
    let startup = envoy.startup_failure.map(|seconds| startup(of, seconds));
    // The kubelet starts the next container after this one's postStart hook has returned. A
    // startup probe, for which it also waits if this is a native sidecar, would take a round of
    // the kubelet longer.
    let is_probed = lifecycle.native && startup.is_some();
    let hold = (lifecycle.hold > 0 && !is_probed).then(|| exec(waiting().collect()));
    let name = of.service.map_or(SIDECAR.into(), |service| Cow::from(sidecar_of(service)));
    let mut shared = injected(name, &policy.envoy_image, policy);
    // Raw JSON, so that fields of newer Kubernetes releases are kept.
    shared.volume_mounts.extend(plan.volumes.mounts.iter().map(Part::Own));
    Container {
        command: envoy_command(plan, of),
        env: log(policy).collect(),
        lifecycle: Some(Hooks { post_start: hold, pre_stop: of.part(&DEREGISTER, deregister) }),
        startup_probe: startup,
        liveness_probe: envoy.liveness_failure.map(|seconds| liveness(of, seconds)),
        readiness_probe: envoy.readiness.then(|| of.part(&READINESS, readiness)),
        // Only a pod with a single sidecar has metrics.
        ports: plan.metrics.iter().map(port).collect(),
        restart_policy: lifecycle.native.then_some("Always"),
        resources: resources(&envoy.resources),
        ..shared
    }
}

fn port(metrics: &Metrics) -> ContainerPort {
    ContainerPort {
        name: Some(metrics.port_name.to_owned()),
        container_port: metrics.port.into(),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

fn envoy_command<'p>(plan: &'p Plan, of: Of<'p>) -> Vec<Cow<'p, str>> {
    let Envoy { extra_args, concurrency, .. } = &plan.envoy;
    let mut command: Vec<Cow<'p, str>> = of.helper("run").into_iter().map(Into::into).collect();
    if let Some(drain) = plan.lifecycle.drain {
        command.push(format!("--drain-timeout={drain}s").into());
    }
    let readiness = plan.readiness.get(usize::from(of.index)).and_then(Option::as_ref);
    if let Some(probe) = readiness.and_then(Readiness::probe) {
        command.push(literal(format!("--readiness-probe={probe}")));
    }
    if let Some(merging) = plan.metrics.as_ref().and_then(|metrics| metrics.merging.as_ref()) {
        command.push(format!("--merged-metrics-port={}", merging.port).into());
        command.push(format!("--service-metrics-port={}", merging.service_port).into());
        command.push(literal(format!("--service-metrics-path={}", merging.service_path)));
    }
    let relay = plan.transparent.as_ref().and_then(|transparent| transparent.relay.as_ref());
    if let Some(Relay { port, probes }) = relay.filter(|_| of.index == 0) {
        command.push(format!("--probe-port={port}").into());
        command
            .extend(probes.iter().map(|(path, probe)| literal(format!("--probe={path}={probe}"))));
    }
    // The first sidecar answers DNS queries for all services of the pod.
    if of.index == 0 && plan.transparent.as_ref().is_some_and(|transparent| transparent.dns) {
        command.push(format!("--dns-port={DNS_PORT}").into());
    }
    command.extend(["--", "envoy", "--config-path"].map(Cow::from));
    command.push(match of.service {
        None => format!("{FOLDER}/envoy-bootstrap.json").into(),
        Some(service) => format!("{FOLDER}/envoy-bootstrap-{service}.json").into(),
    });
    // Envoy rejects an argument that is given twice: the user's takes precedence.
    let is_given = |argument: &str| {
        extra_args
            .iter()
            .any(|extra| extra.split_once('=').map_or(&**extra, |(o, _)| o) == argument)
    };
    // Each container runs a single Envoy process, which has no other to take over from.
    if !is_given("--disable-hot-restart") {
        command.push("--disable-hot-restart".into());
    }
    // The containers of a pod share the names of shared memory. Each Envoy derives its own names
    // from this number.
    if of.index > 0 && !is_given("--base-id") {
        command.extend(["--base-id".into(), Cow::from(of.index.to_string())]);
    }
    // By default, Envoy would close connections at random times within ten minutes.
    if !is_given("--drain-strategy") {
        command.extend(["--drain-strategy", "immediate"].map(Cow::from));
    }
    if !is_given("--drain-time-s") {
        let seconds = plan.lifecycle.drain_time().to_string();
        command.extend(["--drain-time-s".into(), Cow::from(seconds)]);
    }
    // Without it, Envoy starts a thread for each core of the node.
    if !is_given("--concurrency") {
        command.extend(["--concurrency".into(), Cow::from(concurrency.to_string())]);
    }
    command.extend(extra_args.iter().map(literal));
    command
}

/// A preStop hook that deregisters the service. Its timeout is shorter than the default: even
/// if the agent hangs, this hook, the deregistration in `run` and the drain fit into the default
/// termination grace period.
fn deregister(of: Of<'_>) -> LifecycleHandler {
    let command = of.helper("deregister").into_iter();
    exec(command.chain(["--timeout=5s".to_owned()]).collect())
}

/// A startup probe that restarts the sidecar if Envoy does not become ready within `seconds`.
fn startup(of: Of<'_>, seconds: u32) -> Probe {
    Probe {
        exec: exec(of.helper("ready")).exec,
        period_seconds: Some(1),
        timeout_seconds: Some(5),
        failure_threshold: i32::try_from(seconds).ok(),
        ..Probe::default()
    }
}

/// A readiness probe that succeeds while Consul would send the pod traffic.
///
/// To run a command in a container costs the node some 20 ms of CPU, far more than the command
/// itself. So the probe runs only every ten seconds, and the command waits up to 7 s: the pod
/// still becomes ready without delay.
///
/// An HTTP probe would be worse: its events don't say why it failed, it needs a port of the
/// pod, and a network policy may block the kubelet.
fn readiness(of: Of<'_>) -> Probe {
    let command = of.helper("ready").into_iter();
    let command = command.chain(["--serving", "--timeout=7s"].map(str::to_owned));
    Probe {
        exec: exec(command.collect()).exec,
        period_seconds: Some(10),
        timeout_seconds: Some(10),
        failure_threshold: Some(3),
        ..Probe::default()
    }
}

/// A liveness probe that restarts the sidecar if Envoy is not ready for `seconds`. If Envoy
/// hangs, each probe fails only after its timeout, so the timeout must not exceed the period:
/// otherwise it would take a multiple of `seconds` until the restart.
fn liveness(of: Of<'_>, seconds: u32) -> Probe {
    let each = (seconds / 3).clamp(1, 5);
    Probe {
        period_seconds: i32::try_from(each).ok(),
        timeout_seconds: i32::try_from(each).ok(),
        failure_threshold: i32::try_from(seconds.div_ceil(each)).ok(),
        exec: exec(of.helper("ready")).exec,
        ..Probe::default()
    }
}
