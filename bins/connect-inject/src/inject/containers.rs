//! The objects that are added to a pod: volumes, init containers, sidecars and environment
//! variables.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, ExecAction,
    Lifecycle, LifecycleHandler, LocalObjectReference, ObjectFieldSelector, Probe,
    ProjectedVolumeSource, ResourceRequirements, SeccompProfile, SecurityContext,
    ServiceAccountTokenProjection, SleepAction, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;

use crate::names::{
    DNS_PORT, DOWNWARD, FOLDER, HELPER, INIT_CONTAINER, REDIRECT, SIDECAR, STATUS_VARIABLE,
    TOKEN_FILE, TOKEN_FOLDER, TOKEN_VOLUME, USER, VARIABLE, VOLUME, sidecar_of,
};
use crate::plan::{Envoy, Exposed, Plan, Readiness, Relay, Transparent};
use crate::policy::{Policy, RedirectBy};
use crate::values::quantity::Resources;

/// The volume that the injected containers share. It is in memory, because it holds secrets.
pub(crate) fn volume() -> Volume {
    Volume {
        name: VOLUME.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".to_owned()),
            // The files need a few MiB. Without a limit, they could fill half of the node's memory.
            size_limit: Some(Quantity("32Mi".to_owned())),
            ..EmptyDirVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// The volume with a token of the pod's service account, which the pod needs to log in. The
/// token that Kubernetes mounts by default is missing if the pod has disabled
/// `automountServiceAccountToken`.
pub(crate) fn token_volume() -> Volume {
    /// Lifetime of a token. The kubelet replaces the token before it expires.
    const SECONDS: i64 = 3600;
    let token = ServiceAccountTokenProjection {
        expiration_seconds: Some(SECONDS),
        path: "token".to_owned(),
        ..ServiceAccountTokenProjection::default()
    };
    let source =
        VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() };
    Volume {
        name: TOKEN_VOLUME.to_owned(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(vec![source]),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// The container that registers the pod and writes the Envoy bootstrap.
pub(crate) fn init_container(plan: &Plan, policy: &Policy) -> Container {
    let identity = DOWNWARD.iter().chain([&STATUS_VARIABLE]);
    let identity = identity.map(|(name, field)| from_field(name, field));
    // After the variables that these refer to: the kubelet expands them in order.
    let agent = [
        variable("CONSUL_HTTP_ADDR".to_owned(), policy.http_addr().to_owned()),
        variable("CONSUL_GRPC_ADDR".to_owned(), policy.grpc_addr().to_owned()),
        // connect-init compares it with the Envoy releases that the agent supports.
        variable("CONNECT_ENVOY_VERSION".to_owned(), literal(&policy.envoy_image)),
    ];
    let tls = [
        ("CONSUL_CACERT_PEM", plan.agents_ca.as_deref().map(literal)),
        ("CONSUL_TLS_SERVER_NAME", policy.consul_tls_server_name.0.clone()),
        ("CONNECT_AUTO_ENCRYPT", policy.auto_encrypt.then(|| true.to_string())),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some(variable(name.to_owned(), value?)));
    Container {
        command: Some(vec!["/connect-init".to_owned()]),
        args: Some(init_arguments(plan, policy)),
        env: Some(identity.chain(agent).chain(tls).chain(log(policy)).collect()),
        resources: resources(&plan.init_resources),
        ..injected(INIT_CONTAINER, &policy.init_image, policy)
    }
}

fn init_arguments(plan: &Plan, policy: &Policy) -> Vec<String> {
    let service = &plan.service;
    let mut arguments: Vec<String> = service
        .each()
        .map(|(name, port)| match port {
            Some(port) => literal(&format!("--service={name}:{port}")),
            None => literal(&format!("--service={name}")),
        })
        .collect();
    arguments.extend(
        plan.upstreams.iter().map(|upstream| literal(&format!("--upstream={}", upstream.spec()))),
    );
    arguments.extend(service.tags.iter().map(|tag| format!("--tag={}", with_pod_name(tag))));
    arguments.extend(
        service
            .meta
            .iter()
            .map(|(key, value)| format!("--meta={}={}", literal(key), with_pod_name(value))),
    );
    if !service.proxy_config.is_empty() {
        let config = Value::Object(service.proxy_config.clone());
        arguments.push(literal(&format!("--proxy-config={config}")));
    }
    if let Some(metrics) = &plan.metrics {
        let path = [("--prometheus-scrape-path", metrics.path.clone())];
        let merged = metrics.merging.iter();
        let merged: Vec<_> =
            merged.map(|merging| ("--prometheus-backend-port", merging.port.to_string())).collect();
        let flags = path.iter().chain(&merged).chain(&metrics.tls);
        arguments.extend(flags.map(|(flag, value)| literal(&format!("{flag}={value}"))));
    }
    if let Some(transparent) = &plan.transparent {
        arguments.push("--transparent".to_owned());
        arguments.extend(transparent.virtual_address.iter().map(|it| format!("--virtual={it}")));
        for Exposed { path, listener, port, http2 } in &transparent.exposed {
            let protocol = if *http2 { ":http2" } else { "" };
            arguments.push(literal(&format!("--expose={path}={listener}:{port}{protocol}")));
        }
    }
    if let Some(method) = &*policy.acl_auth_method {
        arguments.push(literal(&format!("--acl-auth-method={method}")));
        arguments.push(format!("--bearer-token-file={TOKEN_FILE}"));
    }
    if plan.lifecycle.restarts {
        // The first run ends early, so that `kubectl describe pod` shows why it failed while the
        // next run waits for the agent.
        arguments.push("--first-timeout=30s".to_owned());
    }
    arguments
}

/// The container that loads the redirect rules. It is the only one with a capability and,
/// because Kubernetes gives capabilities only to root, the only one that runs as root. If
/// `connect-cni` loads the rules, the container only verifies them, as an ordinary user without
/// capabilities.
pub(crate) fn redirect(transparent: &Transparent, plan: &Plan, policy: &Policy) -> Container {
    let host = DOWNWARD.iter().filter(|(name, _)| *name == "HOST_IP");
    let host = host.map(|(name, field)| from_field(name, field));
    let base = injected(REDIRECT, &policy.init_image, policy);
    let (command, user, capability) = match transparent.by {
        RedirectBy::InitContainer => ("apply", 0, Some(vec!["NET_ADMIN".to_owned()])),
        RedirectBy::Cni => ("verify", transparent.witness(), None),
    };
    Container {
        command: Some(vec!["/connect-redirect".to_owned(), command.to_owned()]),
        args: Some(transparent.arguments()),
        env: Some(host.chain(log(policy)).collect()),
        resources: resources(&plan.init_resources),
        volume_mounts: None,
        security_context: base.security_context.map(|context| SecurityContext {
            run_as_user: Some(user),
            run_as_group: Some(user),
            run_as_non_root: Some(user != 0),
            capabilities: Some(Capabilities {
                add: capability,
                drop: Some(vec!["ALL".to_owned()]),
            }),
            ..context
        }),
        ..base
    }
}

/// An environment variable that is set from a field of the pod.
fn from_field(name: &str, field: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: field.to_owned(),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

/// The containers that run Envoy under `connect-lifecycle`, one for each service of the pod.
pub(crate) fn sidecars(plan: &Plan, policy: &Policy) -> Vec<Container> {
    let first = sidecar(plan, Of::default(), policy);
    let further = (1..).zip(&plan.service.more);
    let further =
        further.map(|(index, (name, _))| sidecar(plan, Of { index, service: Some(name) }, policy));
    std::iter::once(first).chain(further).collect()
}

/// Identifies one of the pod's sidecars.
#[derive(Clone, Copy, Default)]
struct Of<'p> {
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
}

fn sidecar(plan: &Plan, of: Of<'_>, policy: &Policy) -> Container {
    let Plan { envoy, lifecycle, .. } = plan;
    let waiting = || {
        of.helper("ready").into_iter().chain(["--wait".to_owned(), format!("{}s", lifecycle.hold)])
    };
    // Shorter than the default timeout: even if the agent hangs, this hook, the deregistration
    // in `run` and the drain fit into the default termination grace period.
    let deregister = of.helper("deregister").into_iter().chain(["--timeout=5s".to_owned()]);
    let startup = envoy.startup_failure.map(|seconds| startup(of, seconds));
    // The kubelet starts the next container after this one's postStart hook has returned. A
    // startup probe, for which it also waits if this is a native sidecar, would take a round of
    // the kubelet longer.
    let is_probed = lifecycle.native && startup.is_some();
    let hold = (lifecycle.hold > 0 && !is_probed).then(|| exec(waiting().collect()));
    let name = of.service.map_or_else(|| SIDECAR.to_owned(), sidecar_of);
    Container {
        command: Some(envoy_command(plan, of)),
        env: Some(log(policy).collect()).filter(|variables: &Vec<_>| !variables.is_empty()),
        lifecycle: Some(Lifecycle {
            post_start: hold,
            pre_stop: Some(exec(deregister.collect())),
            ..Lifecycle::default()
        }),
        startup_probe: startup,
        liveness_probe: envoy.liveness_failure.map(|seconds| liveness(of, seconds)),
        readiness_probe: envoy.readiness.then(|| readiness(of)),
        // A PodMonitor finds the port by name. Only a pod with a single sidecar has metrics.
        ports: plan.metrics.as_ref().map(|metrics| {
            vec![ContainerPort {
                name: Some("prometheus".to_owned()),
                container_port: metrics.port.into(),
                protocol: Some("TCP".to_owned()),
                ..ContainerPort::default()
            }]
        }),
        restart_policy: lifecycle.native.then(|| "Always".to_owned()),
        resources: resources(&envoy.resources),
        ..injected(&name, &policy.envoy_image, policy)
    }
}

fn envoy_command(plan: &Plan, of: Of<'_>) -> Vec<String> {
    let Envoy { extra_args, concurrency, .. } = &plan.envoy;
    let mut command = of.helper("run");
    if let Some(drain) = plan.lifecycle.drain {
        command.push(format!("--drain-timeout={drain}s"));
    }
    let readiness = plan.readiness.get(usize::from(of.index)).and_then(Option::as_ref);
    if let Some(probe) = readiness.and_then(Readiness::probe) {
        command.push(literal(&format!("--readiness-probe={probe}")));
    }
    if let Some(merging) = plan.metrics.as_ref().and_then(|metrics| metrics.merging.as_ref()) {
        command.push(format!("--merged-metrics-port={}", merging.port));
        command.push(format!("--service-metrics-port={}", merging.service_port));
        command.push(literal(&format!("--service-metrics-path={}", merging.service_path)));
    }
    let relay = plan.transparent.as_ref().and_then(|transparent| transparent.relay.as_ref());
    if let Some(Relay { port, probes }) = relay.filter(|_| of.index == 0) {
        command.push(format!("--probe-port={port}"));
        command
            .extend(probes.iter().map(|(path, probe)| literal(&format!("--probe={path}={probe}"))));
    }
    // The first sidecar answers DNS queries for all services of the pod.
    if of.index == 0 && plan.transparent.as_ref().is_some_and(|transparent| transparent.dns) {
        command.push(format!("--dns-port={DNS_PORT}"));
    }
    command.extend(["--", "envoy", "--config-path"].map(str::to_owned));
    command.push(match of.service {
        None => format!("{FOLDER}/envoy-bootstrap.json"),
        Some(service) => format!("{FOLDER}/envoy-bootstrap-{service}.json"),
    });
    // Envoy rejects an argument that is given twice: the user's takes precedence.
    let is_given = |argument: &str| {
        extra_args
            .iter()
            .any(|extra| extra.split_once('=').map_or(&**extra, |(o, _)| o) == argument)
    };
    // Each container runs a single Envoy process, which has no other to take over from.
    if !is_given("--disable-hot-restart") {
        command.push("--disable-hot-restart".to_owned());
    }
    // The containers of a pod share the names of shared memory. Each Envoy derives its own names
    // from this number.
    if of.index > 0 && !is_given("--base-id") {
        command.extend(["--base-id".to_owned(), of.index.to_string()]);
    }
    // By default, Envoy would close connections at random times within ten minutes.
    if !is_given("--drain-strategy") {
        command.extend(["--drain-strategy", "immediate"].map(str::to_owned));
    }
    if !is_given("--drain-time-s") {
        command.extend(["--drain-time-s".to_owned(), plan.lifecycle.drain_time().to_string()]);
    }
    // Without it, Envoy starts a thread for each core of the node.
    if !is_given("--concurrency") {
        command.extend(["--concurrency".to_owned(), concurrency.to_string()]);
    }
    command.extend(extra_args.iter().map(|argument| literal(argument)));
    command
}

/// A preStop hook that sleeps, for an application's container.
pub(crate) fn sleep(seconds: u32) -> LifecycleHandler {
    LifecycleHandler {
        sleep: Some(SleepAction { seconds: seconds.into() }),
        ..LifecycleHandler::default()
    }
}

/// The read-only mount of our volume in an application's container.
pub(crate) fn shared_mount() -> VolumeMount {
    VolumeMount { read_only: Some(true), ..mount() }
}

pub(crate) fn pull_secret(name: &str) -> LocalObjectReference {
    LocalObjectReference { name: name.to_owned() }
}

fn exec(command: Vec<String>) -> LifecycleHandler {
    LifecycleHandler {
        exec: Some(ExecAction { command: Some(command) }),
        ..LifecycleHandler::default()
    }
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

/// Variables that set level and format of the injected containers' logs.
fn log(policy: &Policy) -> impl Iterator<Item = EnvVar> {
    [("CONNECT_LOG_LEVEL", &policy.pod_log_level), ("CONNECT_LOG_FORMAT", &policy.pod_log_format)]
        .into_iter()
        .filter_map(|(name, value)| Some(variable(name.to_owned(), value.0.clone()?)))
}

fn resources(resources: &Resources) -> Option<ResourceRequirements> {
    let mut requests = BTreeMap::new();
    let mut limits = BTreeMap::new();
    for (name, bounds) in resources.each() {
        for (quantity, map) in [(&bounds.request, &mut requests), (&bounds.limit, &mut limits)] {
            if let Some(quantity) = quantity {
                map.insert(name.to_owned(), Quantity(quantity.text().to_owned()));
            }
        }
    }
    let some = |map: BTreeMap<_, _>| Some(map).filter(|map| !map.is_empty());
    let (requests, limits) = (some(requests), some(limits));
    (requests.is_some() || limits.is_some()).then(|| ResourceRequirements {
        requests,
        limits,
        ..ResourceRequirements::default()
    })
}

/// Variables with the address and port of each upstream, for the application. If two upstreams
/// have the same variables, the first takes precedence.
pub(crate) fn variables(plan: &Plan) -> Vec<EnvVar> {
    let mut variables: Vec<EnvVar> = Vec::new();
    for (i, upstream) in plan.upstreams.iter().enumerate() {
        let dotted = plan.dotted_stems.get(i).cloned().flatten();
        let host = match upstream.bind_address() {
            IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            address => address,
        };
        for stem in std::iter::once(upstream.variable_stem()).chain(dotted) {
            for (name, value) in [
                (format!("{stem}{VARIABLE}HOST"), host.to_string()),
                (format!("{stem}{VARIABLE}PORT"), upstream.local_bind_port.to_string()),
            ] {
                if variables.iter().all(|earlier| earlier.name != name) {
                    variables.push(variable(name, value));
                }
            }
        }
    }
    variables
}

/// Escapes a text, so that it reaches the process unchanged: in commands, arguments and
/// variables, the kubelet expands `$(NAME)` and replaces `$$` with a single `$`.
///
/// Source: "Define a Command and Arguments for a Container" of the Kubernetes
/// documentation.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

/// Like [`literal`], but the kubelet replaces `$POD_NAME` with the pod's name, which is unknown
/// during admission. No other variable is replaced, such as `$POD_NAMESPACE`.
fn with_pod_name(text: &str) -> String {
    const NAME: &str = "$POD_NAME";
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(NAME) {
        result.push_str(&literal(before));
        let is_longer = after.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        result.push_str(&if is_longer { literal(NAME) } else { "$(POD_NAME)".to_owned() });
        rest = after;
    }
    result + &literal(rest)
}

fn variable(name: String, value: String) -> EnvVar {
    EnvVar { name, value: Some(value), ..EnvVar::default() }
}

fn mount() -> VolumeMount {
    VolumeMount { name: VOLUME.to_owned(), mount_path: FOLDER.to_owned(), ..VolumeMount::default() }
}

/// The mounts of the injected containers. The sidecar needs the service account token, too: it
/// logs in again if its ACL token has been deleted.
fn mounts(policy: &Policy) -> Vec<VolumeMount> {
    let token = policy.acl_auth_method.is_some().then(|| VolumeMount {
        name: TOKEN_VOLUME.to_owned(),
        mount_path: TOKEN_FOLDER.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    });
    [mount()].into_iter().chain(token).collect()
}

/// The fields that all injected containers share. The security context passes PodSecurity
/// level `restricted`.
///
/// Source: "Pod Security Standards" of the Kubernetes documentation.
fn injected(name: &str, image: &str, policy: &Policy) -> Container {
    let user = (!policy.openshift).then_some(USER);
    Container {
        name: name.to_owned(),
        image: Some(image.to_owned()),
        image_pull_policy: policy.image_pull.0.clone(),
        volume_mounts: Some(mounts(policy)),
        security_context: Some(SecurityContext {
            run_as_user: user,
            run_as_group: user,
            run_as_non_root: Some(true),
            read_only_root_filesystem: Some(true),
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                ..SeccompProfile::default()
            }),
            ..SecurityContext::default()
        }),
        // If a failed container wrote no termination message, `kubectl describe pod` shows the
        // end of its log.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::plan::upstreams::dotted_stems;
    use proptest::prelude::*;
    use registration::upstream::{Context, parse_list};

    use super::*;
    use crate::plan::{Lifecycle, Metrics, Service};
    use crate::policy::Cluster;
    use crate::policy::tests::{policy, policy_of};
    use crate::values::Optional;

    /// Expands an argument as the kubelet does: replaces `$(NAME)` with the value of a known
    /// variable and `$$` with `$`, and leaves the rest.
    ///
    /// Source: `k8s.io/kubernetes/third_party/forked/golang/expansion`.
    pub(crate) fn expanded(argument: &str) -> String {
        let mut result = String::new();
        let mut rest = argument;
        while let Some((before, from)) = rest.split_once('$') {
            result.push_str(before);
            if let Some(after) = from.strip_prefix('$') {
                result.push('$');
                rest = after;
            } else if let Some((_, after)) = from.strip_prefix('(').and_then(|r| r.split_once(')'))
            {
                result.push_str("web-0");
                rest = after;
            } else {
                result.push('$');
                rest = from;
            }
        }
        result + rest
    }

    fn plan(upstreams: &str) -> Plan {
        let service = Service { name: "web".to_owned(), port: Some(8080), ..Service::default() };
        Plan {
            service,
            upstreams: parse_list(upstreams, Context::default()).unwrap(),
            dotted_stems: dotted_stems(upstreams),
            ..Plan::default()
        }
    }

    /// Text from annotations was run by a shell or a template. Reported in
    /// <https://github.com/hashicorp/consul-k8s/pull/115>.
    #[test]
    fn hostile_annotations_reach_the_process_unchanged() {
        for hostile in
            ["$(POD_NAME)", "$$(POD_NAME)", "`id`", "'\"; rm -rf /", "--timeout=0", "$", "é\n"]
        {
            let list = format!("prepared_query:{hostile}:1234");
            let container = init_container(&plan(&list), &policy());
            let args = container.args.unwrap();
            let name = hostile.trim();
            assert_eq!(expanded(&args[1]), format!("--upstream=prepared_query:{name}:1234"));
            assert_eq!(args.len(), 2);
            assert_eq!(container.command.unwrap(), ["/connect-init"]);
        }
        let mut plan = plan("");
        plan.envoy.extra_args = vec!["$(HOME) x".to_owned()];
        let command = sidecar(&plan, Of::default(), &policy()).command.unwrap();
        assert_eq!(expanded(command.last().unwrap()), "$(HOME) x");
    }

    #[test]
    fn the_metrics_port_is_named_prometheus() {
        let metrics =
            Metrics { port: 20200, path: "/metrics".to_owned(), merging: None, tls: Vec::new() };
        let plan = Plan { metrics: Some(metrics), ..plan("") };
        let port = &sidecar(&plan, Of::default(), &policy()).ports.unwrap()[0];
        assert_eq!((port.name.as_deref(), port.container_port), (Some("prometheus"), 20200));
    }

    /// Consul's own injector also replaces only this variable.
    #[test]
    fn only_pod_name_is_replaced() {
        for (text, reached) in [
            ("$POD_NAME", "web-0"),
            ("a-$POD_NAME,$POD_NAME", "a-web-0,web-0"),
            ("$POD_NAMESPACE", "$POD_NAMESPACE"),
            ("$POD_NAMES $POD_NAME", "$POD_NAMES web-0"),
            ("$(POD_NAME) ${POD_NAME} $$POD", "$(POD_NAME) ${POD_NAME} $$POD"),
            ("$$POD_NAME", "$web-0"),
            ("`id` $(id) $HOME", "`id` $(id) $HOME"),
        ] {
            assert_eq!(expanded(&with_pod_name(text)), reached, "{text}");
        }
    }

    #[test]
    fn settings_become_arguments_of_connect_init() {
        let mut plan = plan("db:1");
        plan.service.tags = vec!["v1".to_owned(), "$POD_NAME".to_owned()];
        plan.service.meta = [("k".to_owned(), "a=$POD_NAME".to_owned())].into();
        plan.service.proxy_config.insert("a".to_owned(), "$x".into());
        plan.metrics = Some(Metrics {
            port: 20200,
            path: "/metrics".to_owned(),
            merging: None,
            tls: vec![("--prometheus-ca-file", "/ca".to_owned())],
        });
        assert_eq!(
            init_container(&plan, &policy()).args.unwrap(),
            [
                "--service=web:8080",
                "--upstream=db:1",
                "--tag=v1",
                "--tag=$(POD_NAME)",
                "--meta=k=a=$(POD_NAME)",
                r#"--proxy-config={"a":"$$x"}"#,
                "--prometheus-scrape-path=/metrics",
                "--prometheus-ca-file=/ca",
            ]
        );
    }

    /// connect-init and connect-lifecycle need them to log in and to trust the agent.
    #[test]
    fn injected_containers_get_the_login_token_and_the_agents_ca() {
        let policy = Policy {
            consul_ca_cert: Optional(Some("PEM $(HOST_IP)\n".to_owned())),
            consul_tls_server_name: Optional(Some("client.$(NODE_NAME)".to_owned())),
            acl_auth_method: Optional(Some("k8s $(id)".to_owned())),
            ..policy()
        };
        let with_ca = Plan { agents_ca: policy.agents_ca(&Cluster::default()), ..plan("") };
        let container = init_container(&with_ca, &policy);
        let args = container.args.unwrap();
        assert_eq!(
            args[1..],
            ["--acl-auth-method=k8s $$(id)", "--bearer-token-file=/consul/service-account/token"]
        );
        let value = |name: &str| {
            let variables = container.env.as_ref().unwrap();
            variables.iter().find(|variable| variable.name == name)?.value.clone()
        };
        assert_eq!(expanded(&value("CONSUL_CACERT_PEM").unwrap()), "PEM $(HOST_IP)\n");
        assert_eq!(value("CONSUL_TLS_SERVER_NAME").unwrap(), "client.$(NODE_NAME)");
        let mounted = |container: Container| {
            let mounts = container.volume_mounts.unwrap();
            mounts.into_iter().map(|mount| (mount.name, mount.mount_path)).collect::<Vec<_>>()
        };
        let token = (token_volume().name, "/consul/service-account".to_owned());
        assert!(mounted(init_container(&plan(""), &policy)).contains(&token));
        assert!(mounted(sidecar(&plan(""), Of::default(), &policy)).contains(&token));
        let without = Policy { acl_auth_method: Optional(None), ..policy };
        assert!(!mounted(sidecar(&plan(""), Of::default(), &without)).contains(&token));
    }

    #[test]
    fn each_service_gets_a_sidecar() {
        let mut plan = plan("db:1");
        plan.service.more = vec![("web-admin".to_owned(), 9090)];
        plan.envoy.readiness = true;
        plan.lifecycle.hold = 5;
        let args = init_container(&plan, &policy()).args.unwrap();
        assert_eq!(args, ["--service=web:8080", "--service=web-admin:9090", "--upstream=db:1"]);
        let [first, second] = &sidecars(&plan, &policy())[..] else { panic!() };
        assert_eq!((&*first.name, &*second.name), ("envoy-sidecar", "envoy-sidecar-web-admin"));
        assert!(!first.command.as_ref().unwrap().iter().any(|word| word.starts_with("--service")));
        let helper = "/consul/connect-inject/connect-lifecycle";
        let service = "--service=web-admin";
        assert_eq!(
            second.command.as_ref().unwrap()[..],
            [
                helper,
                "run",
                service,
                "--",
                "envoy",
                "--config-path",
                "/consul/connect-inject/envoy-bootstrap-web-admin.json",
                "--disable-hot-restart",
                "--base-id",
                "1",
                "--drain-strategy",
                "immediate",
                "--drain-time-s",
                "20",
                "--concurrency",
                "0",
            ]
        );
        let lifecycle = second.lifecycle.as_ref().unwrap();
        let words = |handler: &Option<LifecycleHandler>| {
            handler.as_ref().unwrap().exec.as_ref().unwrap().command.clone().unwrap()
        };
        assert_eq!(words(&lifecycle.pre_stop), [helper, "deregister", service, "--timeout=5s"]);
        assert_eq!(words(&lifecycle.post_start), [helper, "ready", service, "--wait", "5s"]);
        let probe = second.readiness_probe.as_ref().unwrap().exec.as_ref().unwrap();
        let ready = [helper, "ready", service, "--serving", "--timeout=7s"];
        assert_eq!(probe.command.as_ref().unwrap()[..], ready);
    }

    #[test]
    fn the_users_envoy_arguments_take_precedence() {
        let command = |extra: &[&str], concurrency| {
            let mut plan = plan("");
            plan.envoy.extra_args = extra.iter().map(|word| (*word).to_owned()).collect();
            plan.envoy.concurrency = concurrency;
            plan.lifecycle.drain = Some(7);
            let mut command = sidecar(&plan, Of::default(), &policy()).command.unwrap();
            assert_eq!(command[2], "--drain-timeout=7s");
            command.split_off(7)
        };
        let drain = ["--drain-strategy", "immediate", "--drain-time-s", "7"];
        let with =
            |before: &[&'static str], after: &[&'static str]| [before, &drain, after].concat();
        let ours = ["--disable-hot-restart"];
        assert_eq!(command(&[], 2), with(&ours, &["--concurrency", "2"]));
        assert_eq!(command(&[], 0), with(&ours, &["--concurrency", "0"]));
        assert_eq!(command(&["--concurrency", "9"], 2), with(&ours, &["--concurrency", "9"]));
        assert_eq!(command(&["--concurrency=9"], 2), with(&ours, &["--concurrency=9"]));
        assert_eq!(
            command(&["--disable-hot-restart"], 2),
            with(&[], &["--concurrency", "2", "--disable-hot-restart"])
        );
        assert_eq!(
            command(&["--drain-time-s=1", "--drain-strategy=gradual"], 2),
            [
                "--disable-hot-restart",
                "--concurrency",
                "2",
                "--drain-time-s=1",
                "--drain-strategy=gradual"
            ]
        );
    }

    #[test]
    fn the_application_waits_for_envoy_by_a_hook_or_a_startup_probe() {
        let lifecycle = Lifecycle { native: true, hold: 30, ..Lifecycle::default() };
        let mut plan = Plan { lifecycle, ..plan("") };
        let native = sidecar(&plan, Of::default(), &policy());
        assert_eq!(native.restart_policy.as_deref(), Some("Always"));
        assert!(native.startup_probe.is_none());
        let hook = native.lifecycle.unwrap().post_start.unwrap();
        assert_eq!(hook.exec.unwrap().command.unwrap()[1..], ["ready", "--wait", "30s"]);

        plan.envoy.startup_failure = Some(60);
        let probed = sidecar(&plan, Of::default(), &policy());
        let startup = probed.startup_probe.unwrap();
        assert_eq!((startup.period_seconds, startup.failure_threshold), (Some(1), Some(60)));
        assert!(probed.lifecycle.unwrap().post_start.is_none());

        plan.lifecycle.native = false;
        let container = sidecar(&plan, Of::default(), &policy());
        assert!(container.startup_probe.is_some());
        assert!(container.lifecycle.unwrap().post_start.is_some());
        plan.lifecycle.hold = 0;
        let container = sidecar(&plan, Of::default(), &policy());
        assert!(container.restart_policy.is_none());
        assert!(container.lifecycle.unwrap().post_start.is_none(), "the application must not wait");
    }

    /// `kubectl describe pod` soon shows that the agent is unreachable. Not in Jobs, which the
    /// first failure could fail.
    #[test]
    fn the_first_run_of_the_init_container_is_short_if_the_kubelet_restarts_it() {
        let mut plan = plan("");
        for (restarts, last) in [(true, "--first-timeout=30s"), (false, "--service=web:8080")] {
            plan.lifecycle.restarts = restarts;
            let args = init_container(&plan, &policy()).args.unwrap();
            assert_eq!(args.last().unwrap(), last);
        }
    }

    #[test]
    fn an_envoy_that_hangs_is_restarted_as_soon_as_one_that_fails() {
        for (seconds, rounds) in [(1, (1, 1)), (3, (1, 3)), (10, (3, 4)), (60, (5, 12))] {
            let mut plan = plan("");
            plan.envoy.liveness_failure = Some(seconds);
            let probe = sidecar(&plan, Of::default(), &policy()).liveness_probe.unwrap();
            assert_eq!(probe.period_seconds, probe.timeout_seconds, "{seconds}");
            let found = (probe.period_seconds, probe.failure_threshold);
            assert_eq!(found, (Some(rounds.0), Some(rounds.1)), "{seconds}");
        }
    }

    #[test]
    fn flags_set_pull_policy_user_and_log_level_of_the_containers() {
        let policy = policy_of(&[
            "--enable-openshift",
            "--global-image-pull-policy=Always",
            "--pod-log-level=debug",
        ]);
        let mut plan = plan("");
        plan.init_resources.memory.limit = "0".parse().ok();
        for container in [init_container(&plan, &policy), sidecar(&plan, Of::default(), &policy)] {
            assert_eq!(container.image_pull_policy.as_deref(), Some("Always"));
            let security = container.security_context.unwrap();
            assert_eq!((security.run_as_user, security.run_as_group), (None, None));
            assert_eq!(security.run_as_non_root, Some(true));
            let level = container.env.unwrap().pop().unwrap();
            assert_eq!(
                (level.name.as_str(), level.value.as_deref()),
                ("CONNECT_LOG_LEVEL", Some("debug"))
            );
        }
        let limits = init_container(&plan, &policy).resources.unwrap().limits.unwrap();
        assert_eq!(limits["memory"].0, "0");
        assert!(sidecar(&plan, Of::default(), &policy).resources.is_none());
    }

    #[test]
    fn a_client_is_registered_without_a_port() {
        let mut plan = plan("");
        plan.service.port = None;
        assert_eq!(init_container(&plan, &policy()).args.unwrap(), ["--service=web"]);
    }

    /// Reported in <https://github.com/hashicorp/consul-k8s/issues/224>.
    #[test]
    fn upstreams_of_every_form_have_variables() {
        let upstreams = plan(
            "db:1,v1.my-db:2:dc2, prepared_query:near:3,3scale:4,far.svc.dc2.dc:7,ip:5?local_bind_address=127.0.0.2,any:6?local_bind_address=::",
        );
        let variables: Vec<_> = variables(&upstreams)
            .into_iter()
            .map(|variable| format!("{}={}", variable.name, variable.value.unwrap()))
            .collect();
        assert_eq!(
            variables,
            [
                "DB_CONNECT_SERVICE_HOST=127.0.0.1",
                "DB_CONNECT_SERVICE_PORT=1",
                "V1_MY_DB_CONNECT_SERVICE_HOST=127.0.0.1",
                "V1_MY_DB_CONNECT_SERVICE_PORT=2",
                // Consul's own injector sets these.
                "V1.MY_DB_CONNECT_SERVICE_HOST=127.0.0.1",
                "V1.MY_DB_CONNECT_SERVICE_PORT=2",
                "NEAR_CONNECT_SERVICE_HOST=127.0.0.1",
                "NEAR_CONNECT_SERVICE_PORT=3",
                "_3SCALE_CONNECT_SERVICE_HOST=127.0.0.1",
                "_3SCALE_CONNECT_SERVICE_PORT=4",
                "FAR_CONNECT_SERVICE_HOST=127.0.0.1",
                "FAR_CONNECT_SERVICE_PORT=7",
                "FAR.SVC.DC2.DC_CONNECT_SERVICE_HOST=127.0.0.1",
                "FAR.SVC.DC2.DC_CONNECT_SERVICE_PORT=7",
                "IP_CONNECT_SERVICE_HOST=127.0.0.2",
                "IP_CONNECT_SERVICE_PORT=5",
                "ANY_CONNECT_SERVICE_HOST=::1",
                "ANY_CONNECT_SERVICE_PORT=6",
            ]
        );
    }

    proptest! {
        #[test]
        fn arguments_reach_the_process_unchanged(text in any::<String>()) {
            prop_assert_eq!(expanded(&literal(&text)), text);
        }

        #[test]
        fn no_text_but_pod_name_is_replaced(text in "[$()A_]{0,12}(POD_NAME)?[$()A_{}]{0,4}") {
            let filled = expanded(&with_pod_name(&text));
            if !text.contains("$POD_NAME") {
                prop_assert_eq!(filled, text);
            }
        }

        #[test]
        fn dollars_reach_the_process_unchanged(text in "[$()A]{0,12}") {
            prop_assert_eq!(expanded(&literal(&text)), text);
        }
    }
}
