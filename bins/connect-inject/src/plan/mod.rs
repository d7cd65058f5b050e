//! Plans the injection of a pod from its annotations, with the flags as defaults. An
//! annotation that can't be parsed denies the pod.

mod account;
mod clash;
mod envoy;
mod lifecycle;
mod metrics;
mod pod_level;
mod probes;
mod readiness;
mod service;
mod taken;
mod transparent;
pub(crate) mod upstreams;
mod volumes;

use std::fmt::{self, Display};

use registration::{Upstream, port};

use crate::annotation;
use crate::outcome::{Denial, Reason, Warnings};
use crate::pod::{Container, Pod, Port};
use crate::policy::{Cluster, Policy};
use crate::values::quantity::Resources;
use taken::Taken;

pub(crate) use envoy::Envoy;
pub(crate) use lifecycle::Lifecycle;
pub(crate) use metrics::{BIND_ADDRESS, Metrics};
pub(crate) use readiness::Readiness;
pub(crate) use service::Service;
pub(crate) use transparent::{Exposed, Relay, Transparent};
pub(crate) use volumes::Volumes;

/// Maximum size of a pod's annotations in bytes: `TotalAnnotationSizeLimitB` in Kubernetes.
pub(crate) const LARGEST_ANNOTATIONS: usize = 256 << 10;

/// Everything that injection adds to a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) service: Service,
    pub(crate) upstreams: Vec<Upstream>,
    /// For each upstream, the second prefix of its environment variables, if the upstream's
    /// name has a dot: see [`upstreams::dotted_stems`].
    pub(crate) dotted_stems: Vec<Option<String>>,
    /// CA certificates of the pod's agent in PEM; `None` without TLS.
    pub(crate) agents_ca: Option<String>,
    pub(crate) envoy: Envoy,
    /// `None` if Envoy's metrics are not exposed to Prometheus.
    pub(crate) metrics: Option<Metrics>,
    /// `None` if the pod's connections are not redirected to the sidecar.
    pub(crate) transparent: Option<Transparent>,
    pub(crate) lifecycle: Lifecycle,
    /// For each service, the probe that decides whether Consul sends it traffic.
    pub(crate) readiness: Vec<Option<Readiness>>,
    /// Volumes and mounts from the annotations.
    pub(crate) volumes: Volumes,
    /// Requests and limits of the init containers.
    pub(crate) init_resources: Resources,
    /// Annotations to add, because the pod lacks them.
    pub(crate) defaults: Vec<(&'static str, String)>,
}

/// The pod's own containers and their ports.
struct Surroundings<'p> {
    containers: Vec<Container<'p>>,
    init_containers: Vec<Container<'p>>,
    /// TCP ports of the containers.
    ports: Vec<Port<'p>>,
    /// TCP ports of the init containers that run as long as the pod: native sidecars.
    long_running: Vec<Port<'p>>,
    /// Index of the application's container: the pod's default container, or its first.
    application: usize,
    /// Number of sidecars to inject: one for each service.
    sidecars: u16,
}

/// Plans the injection of a pod.
pub(crate) fn plan(
    pod: Pod<'_>,
    policy: &Policy,
    cluster: &Cluster,
    warnings: &mut Warnings,
) -> Result<Plan, Denial> {
    refuse_large_annotations(pod)?;
    let around = Surroundings::of(pod)?;
    let mut defaults = Vec::new();
    let mut taken = Taken::of_sidecars(around.sidecars);
    let is_transparent = transparent::is_wanted(pod, policy, &mut taken, warnings)?;
    clash::refuse(pod, &around, &mut taken, policy)?;
    let mut service = service::service(pod, &around, &mut taken, &mut defaults, warnings)?;
    clash::refuse_further(&around, &service)?;
    account::refuse(pod, &service, policy)?;
    let metrics = metrics::metrics(pod, &around, &service, &mut taken, policy, warnings)?;
    if let Some(metrics) = &metrics {
        metrics.announce(pod, &mut service, &mut defaults, warnings)?;
    }
    let lifecycle = lifecycle::lifecycle(pod, &around, &service, policy, cluster, warnings)?;
    let metrics = metrics.map(|metrics| metrics.named(&around, &lifecycle, warnings));
    let transparent = is_transparent
        .then(|| {
            let own = (&service, metrics.as_ref(), &lifecycle);
            transparent::transparent(pod, &around, own, &mut taken, policy, warnings)
        })
        .transpose()?;
    let upstreams = upstreams::upstreams(pod, &around, &taken, warnings)?;
    if is_transparent {
        transparent::warn_of_upstreams(&upstreams, warnings);
    }
    upstreams::warn_of_missing_gateways(&upstreams, cluster, warnings);
    let envoy = envoy::envoy(pod, policy)?;
    pod_level::refuse(pod, &around, &envoy.resources)?;
    lifecycle.warn_of_early_containers(&around, &upstreams, warnings);
    if let Some(transparent) = &transparent {
        transparent::warn_of_early_containers(transparent, &around, &lifecycle, warnings);
    }
    let readiness = readiness::readiness(&around, &service, warnings)?;
    let volumes = volumes::volumes(pod, &around)?;
    if pod.annotation(annotation::DEFAULT_CONTAINER)?.is_none() {
        defaults.push((annotation::DEFAULT_CONTAINER, around.application().name.to_owned()));
    }
    let written = pod.annotation(annotation::UPSTREAMS)?.unwrap_or_default();
    let dotted_stems = upstreams::dotted_stems(written);
    let init_resources = pod_level::init_resources(pod, &around, policy, &envoy.resources);
    Ok(Plan {
        service,
        upstreams,
        dotted_stems,
        agents_ca: policy.agents_ca(cluster),
        envoy,
        metrics,
        transparent,
        lifecycle,
        readiness,
        volumes,
        init_resources,
        defaults,
    })
}

fn refuse_large_annotations(pod: Pod<'_>) -> Result<(), Denial> {
    let size = pod.annotations_size();
    if size <= LARGEST_ANNOTATIONS {
        return Ok(());
    }
    Err(Denial::new(
        Reason::PodTooLarge,
        format_args!(
            "the annotations have {size} bytes: Kubernetes accepts at most {LARGEST_ANNOTATIONS}"
        ),
    ))
}

impl fmt::Display for Plan {
    /// The services and upstreams, with ports as numbers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, port)) in self.service.each().enumerate() {
            let before = if index == 0 { "service" } else { ", service" };
            match port {
                Some(port) => write!(f, "{before} `{name}` on port {port}")?,
                None => write!(f, "{before} `{name}` without a port, only as a client")?,
            }
            if let Some(Some(readiness)) = self.readiness.get(index) {
                write!(f, ", {readiness}")?;
            }
        }
        for (index, upstream) in self.upstreams.iter().enumerate() {
            let before = if index == 0 { "; the pod reaches " } else { ", " };
            write!(f, "{before}`{upstream}` on port {}", upstream.local_bind_port)?;
        }
        if self.transparent.is_some() {
            f.write_str("; the pod's connections are redirected to the sidecar")?;
        }
        Ok(())
    }
}

/// Reads an annotation; `None` if it is absent.
fn read<'p, T, E: Display>(
    pod: Pod<'p>,
    key: &str,
    reason: Reason,
    parse: impl FnOnce(&'p str) -> Result<T, E>,
) -> Result<Option<T>, Denial> {
    pod.annotation(key)?
        .map(|value| {
            parse(value).map_err(|problem| Denial::annotation(reason, key, value, problem))
        })
        .transpose()
}

// === impl Surroundings ===

impl<'p> Surroundings<'p> {
    fn of(pod: Pod<'p>) -> Result<Self, Denial> {
        let containers = pod.containers()?;
        let init_containers = pod.init_containers()?;
        let ports = exposed(containers.iter())?;
        let long_running = exposed(init_containers.iter().filter(|init| init.is_long_running()))?;
        if containers.is_empty() {
            let problem = "the pod has no containers";
            return Err(Denial::new(Reason::NoContainers, problem));
        }
        let default = pod.annotation(annotation::DEFAULT_CONTAINER)?;
        let application = containers.iter().position(|container| Some(container.name) == default);
        let sidecars = service::count(pod)?;
        let application = application.unwrap_or_default();
        Ok(Self { containers, init_containers, ports, long_running, application, sidecars })
    }

    /// The container from which defaults are taken. It may not be the first, because another
    /// injector may have put its sidecar in front.
    fn application(&self) -> Container<'p> {
        self.containers[self.application]
    }

    /// The first TCP port of the application's container, or else of any container.
    fn default_port(&self) -> Option<Port<'p>> {
        let own = self.ports.iter().find(|port| port.container == self.application().name);
        own.or(self.ports.first()).copied()
    }

    /// The named ports, to which annotations may refer by name.
    fn named(&self) -> Vec<port::Named<'p>> {
        let ports = self.ports.iter().chain(&self.long_running);
        ports.filter_map(|port| Some((port.name?, port.number))).collect()
    }
}

fn exposed<'a, 'p: 'a>(
    containers: impl Iterator<Item = &'a Container<'p>>,
) -> Result<Vec<Port<'p>>, Denial> {
    let mut ports = Vec::new();
    for container in containers {
        ports.extend(container.ports()?);
    }
    Ok(ports)
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::names::{INIT_CONTAINER, SIDECAR, VOLUME};
    use crate::policy::tests::policy;

    /// Plans without any knowledge of the cluster.
    pub(crate) fn plan_alone(pod: &Value, policy: &Policy) -> Result<Plan, Denial> {
        plan_in(pod, policy, &Cluster::default()).map(|(plan, _)| plan)
    }

    /// Returns the plan and its warnings.
    pub(crate) fn plan_in(
        pod: &Value,
        policy: &Policy,
        cluster: &Cluster,
    ) -> Result<(Plan, Vec<String>), Denial> {
        let mut warnings = Warnings::default();
        let plan = plan(Pod::new(pod), policy, cluster, &mut warnings)?;
        Ok((plan, warnings.into_vec()))
    }

    fn planned(pod: &Value) -> Plan {
        plan_alone(pod, &policy()).unwrap_or_else(|denial| panic!("{}", denial.message))
    }

    fn pod(annotations: &Value, containers: &Value) -> Value {
        json!({"metadata": {"annotations": annotations}, "spec": {"containers": containers}})
    }

    fn app(ports: &Value) -> Value {
        json!([{"name": "app", "ports": ports}])
    }

    fn denied(pod: &Value) -> (Reason, String) {
        let Denial { reason, message } = plan_alone(pod, &policy()).unwrap_err();
        (reason, message)
    }

    #[test]
    fn service_and_port_default_to_the_first_container_and_its_first_port() {
        let ports = json!([{"containerPort": 8080, "name": "http"}, {"containerPort": 9090}]);
        let plan = planned(&pod(&json!({}), &app(&ports)));
        assert_eq!((plan.service.name.as_str(), plan.service.port), ("app", Some(8080)));
        assert_eq!(
            plan.defaults,
            [
                (annotation::SERVICE, "app".to_owned()),
                (annotation::SERVICE_PORT, "http".to_owned()),
                (annotation::DEFAULT_CONTAINER, "app".to_owned()),
            ]
        );
        assert_eq!(plan.upstreams, []);
    }

    #[test]
    fn the_default_port_is_the_first_of_any_container() {
        let containers = json!([
            {"name": "log"},
            {"name": "dns", "ports": [{"containerPort": 53, "protocol": "UDP", "name": "dns"}]},
            {"name": "app", "ports": [{"containerPort": 8080}]},
        ]);
        let plan = planned(&pod(&json!({}), &containers));
        assert_eq!((plan.service.name.as_str(), plan.service.port), ("log", Some(8080)));
        assert_eq!(plan.defaults[1], (annotation::SERVICE_PORT, "8080".to_owned()));
    }

    #[test]
    fn annotations_take_precedence_over_defaults() {
        let ports = json!([{"containerPort": 8080, "name": "http"}, {"containerPort": 9090, "name": "admin"}]);
        let annotations = json!({
            annotation::SERVICE: "web", annotation::SERVICE_PORT: "admin",
            annotation::UPSTREAMS: "db:1234, auth:6789", annotation::DEFAULT_CONTAINER: "x",
        });
        let plan = planned(&pod(&annotations, &app(&ports)));
        assert_eq!((plan.service.name.as_str(), plan.service.port), ("web", Some(9090)));
        assert_eq!(plan.defaults, []);
        let locals: Vec<_> = plan.upstreams.iter().map(|u| u.local_bind_port).collect();
        assert_eq!(locals, [1234, 6789]);
    }

    #[test]
    fn a_pod_without_a_port_is_only_a_client() {
        for containers in [app(&json!(null)), app(&json!([]))] {
            assert_eq!(planned(&pod(&json!({}), &containers)).service.port, None);
        }
    }

    /// Other injectors accept such values silently and get them wrong. Reported in
    /// <https://github.com/hashicorp/consul-k8s/issues/224>.
    #[test]
    fn annotations_that_cannot_work_are_denied() {
        let ports = json!([{"containerPort": 8080, "name": "http"}, {"containerPort": 9090}]);
        for (key, value, reason, problem) in [
            (annotation::SERVICE, "", Reason::InvalidService, "the service name is empty"),
            (annotation::SERVICE, "we b", Reason::InvalidService, "column 3"),
            (annotation::SERVICE, "$(id)", Reason::InvalidService, "column 1"),
            (annotation::SERVICE_PORT, "0", Reason::InvalidServicePort, "out of range"),
            (annotation::SERVICE_PORT, "grpc", Reason::InvalidServicePort, "there are: http"),
            (annotation::SERVICE_PORT, "20000", Reason::InvalidServicePort, "public listener"),
            (annotation::UPSTREAMS, "db", Reason::InvalidUpstreams, "no local port"),
            (annotation::UPSTREAMS, "db:1234, auth:0", Reason::InvalidUpstreams, "column 15"),
            (annotation::UPSTREAMS, "db:1234,", Reason::InvalidUpstreams, "empty element"),
            (annotation::UPSTREAMS, "a:1,b:1", Reason::UpstreamConflict, "127.0.0.1:1"),
            (annotation::UPSTREAMS, "a:20000", Reason::UpstreamConflict, "public listener"),
            (annotation::UPSTREAMS, "a:19000", Reason::UpstreamConflict, "admin port"),
            (annotation::UPSTREAMS, "a:9090", Reason::UpstreamConflict, "container `app`"),
        ] {
            let (found, message) = denied(&pod(&json!({key: value}), &app(&ports)));
            assert_eq!(found, reason, "{message}");
            assert!(message.contains(problem), "{message}");
            assert!(message.contains(key) && message.contains(value), "{message}");
        }
    }

    #[test]
    fn an_upstream_cannot_use_the_services_port_even_if_no_container_exposes_it() {
        let annotations = json!({annotation::SERVICE_PORT: "80", annotation::UPSTREAMS: "a:80"});
        let (reason, message) = denied(&pod(&annotations, &app(&json!(null))));
        assert_eq!(reason, Reason::UpstreamConflict);
        assert!(message.contains("own service"), "{message}");
    }

    #[test]
    fn an_upstream_cannot_use_a_native_sidecars_port() {
        let mut pod = pod(&json!({annotation::UPSTREAMS: "a:15001"}), &app(&json!(null)));
        let ports = json!([{"containerPort": 15001}]);
        pod["spec"]["initContainers"] =
            json!([{"name": "other", "restartPolicy": "Always", "ports": ports}]);
        assert_eq!(denied(&pod).0, Reason::UpstreamConflict);
        pod["spec"]["initContainers"] = json!([{"name": "once", "ports": ports}]);
        planned(&pod);
    }

    /// Its container is part of the pod for as long as the pod runs.
    #[test]
    fn the_service_can_have_the_named_port_of_a_native_sidecar() {
        let mut pod = pod(&json!({annotation::SERVICE_PORT: "http"}), &app(&json!(null)));
        let ports = json!([{"containerPort": 8080, "name": "http"}]);
        pod["spec"]["initContainers"] = json!([{"name": "once", "ports": ports}]);
        assert_eq!(denied(&pod).0, Reason::InvalidServicePort);
        pod["spec"]["initContainers"][0]["restartPolicy"] = "Always".into();
        assert_eq!(planned(&pod).service.port, Some(8080));
    }

    #[test]
    fn a_pod_can_have_several_services() {
        let ports = json!([{"containerPort": 8080, "name": "http"}, {"containerPort": 9090}]);
        let annotations = json!({
            annotation::SERVICE: "web, web-admin", annotation::SERVICE_PORT: "http,9090",
            annotation::UPSTREAMS: "db:1234",
        });
        let plan = planned(&pod(&annotations, &app(&ports)));
        let each: Vec<_> = plan.service.each().collect();
        assert_eq!(each, [("web", Some(8080)), ("web-admin", Some(9090))]);
        assert_eq!(plan.defaults, [(annotation::DEFAULT_CONTAINER, "app".to_owned())]);
        assert!(plan.to_string().starts_with(
            "service `web` on port 8080, service `web-admin` on port 9090; the pod reaches `db`"
        ));
    }

    #[test]
    fn several_services_that_cannot_work_are_denied() {
        let several = |names: &str, ports: &str, more: (&str, &str)| {
            let annotations = json!({
                annotation::SERVICE: names, annotation::SERVICE_PORT: ports, more.0: more.1,
            });
            let containers = json!([
                {"name": "envoy-sidecar-taken"}, {"name": "b", "ports": [{"containerPort": 20002}]},
            ]);
            denied(&pod(&annotations, &containers))
        };
        let up = annotation::UPSTREAMS;
        let nothing = ("x", "y");
        for (names, ports, more, reason, problem) in [
            ("a,b", "1", nothing, Reason::SeveralServices, "2 services"),
            ("a", "1,2", nothing, Reason::SeveralServices, "2 ports"),
            ("a,b", "1,2,3", nothing, Reason::SeveralServices, "3 ports"),
            (
                "a,b,c,d,e,f,g,h,i",
                "1,2,3,4,5,6,7,8,9",
                nothing,
                Reason::SeveralServices,
                "at most 8",
            ),
            ("a,", "1,2", nothing, Reason::InvalidService, "is empty"),
            ("a,b c", "1,2", nothing, Reason::InvalidService, "column 2"),
            ("a,a", "1,2", nothing, Reason::InvalidService, "`a` is listed twice"),
            ("a,B", "1,2", nothing, Reason::InvalidService, "sidecar container"),
            ("a,b_c", "1,2", nothing, Reason::InvalidService, "sidecar container"),
            ("a,taken", "1,2", nothing, Reason::ReservedName, "`envoy-sidecar-taken`"),
            ("a,b", "1,", nothing, Reason::InvalidServicePort, "is empty"),
            ("a,b", "1,20001", nothing, Reason::InvalidServicePort, "public listener"),
            ("a,b", "19001,1", nothing, Reason::InvalidServicePort, "admin port"),
            ("a,b,c", "1,2,3", nothing, Reason::ReservedPort, "20002"),
            ("a,b", "1,2", (up, "x:20001"), Reason::UpstreamConflict, "public listener"),
            ("a,b", "1,2", (up, "x:19001"), Reason::UpstreamConflict, "admin port"),
            ("a,b", "1,2", (up, "x:2"), Reason::UpstreamConflict, "own service"),
            (
                "a,b",
                "1,2",
                (annotation::METRICS, "true"),
                Reason::InvalidMetrics,
                "several services",
            ),
        ] {
            let (found, message) = several(names, ports, more);
            assert_eq!(found, reason, "{message}");
            assert!(message.contains(problem), "{message}");
        }
        let annotations = json!({annotation::SERVICE: "a,b"});
        let (reason, message) = denied(&pod(&annotations, &app(&json!([{"containerPort": 1}]))));
        assert_eq!(reason, Reason::SeveralServices);
        assert!(message.contains(annotation::SERVICE_PORT), "{message}");
        // A pod with one sidecar may use these ports.
        planned(&pod(&json!({annotation::UPSTREAMS: "x:20001,y:19001"}), &app(&json!(null))));
    }

    #[test]
    fn a_container_or_volume_with_an_injected_name_is_denied() {
        let denied = |spec: Value| denied(&json!({"spec": spec})).0;
        assert_eq!(denied(json!({"containers": [{"name": SIDECAR}]})), Reason::ReservedName);
        let app = json!([{"name": "app"}]);
        assert_eq!(
            denied(json!({"containers": app, "initContainers": [{"name": INIT_CONTAINER}]})),
            Reason::ReservedName
        );
        assert_eq!(
            denied(json!({"containers": app, "volumes": [{"name": VOLUME}]})),
            Reason::ReservedName
        );
    }

    #[test]
    fn a_pod_without_containers_is_denied() {
        for spec in [json!({}), json!({"containers": []}), json!({"containers": null})] {
            assert_eq!(denied(&json!({"spec": spec})).0, Reason::NoContainers);
        }
    }

    #[test]
    fn upstreams_with_the_same_variables_cause_a_warning() {
        let annotations = json!({annotation::UPSTREAMS: "a-b:1,a.b:2"});
        let pod = pod(&annotations, &app(&json!(null)));
        let (_, warnings) = plan_in(&pod, &policy(), &Cluster::default()).unwrap();
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("A_B_CONNECT_SERVICE_HOST"), "{warnings:?}");
    }

    /// The sidecar of another injector was registered as the service.
    #[test]
    fn the_service_is_that_of_the_default_container() {
        let containers = json!([
            {"name": "istio-proxy", "ports": [{"containerPort": 15090}]},
            {"name": "app", "ports": [{"containerPort": 8080}]},
        ]);
        let annotations = json!({annotation::DEFAULT_CONTAINER: "app"});
        let plan = planned(&pod(&annotations, &containers));
        assert_eq!((plan.service.name.as_str(), plan.service.port), ("app", Some(8080)));
        let elsewhere = json!({annotation::DEFAULT_CONTAINER: "gone"});
        assert_eq!(planned(&pod(&elsewhere, &containers)).service.name, "istio-proxy");
    }

    /// Ports in use were in three lists, and some conflicts went unnoticed.
    #[test]
    fn a_port_in_use_cannot_be_used_again() {
        let metrics = [(annotation::METRICS, "true"), (annotation::METRICS_MERGING, "true")];
        let app = app(&json!([{"containerPort": 8080}, {"containerPort": 9102, "name": "own"}]));
        let native =
            json!([{"name": "n", "restartPolicy": "Always", "ports": [{"containerPort": 7000}]}]);
        for (further, problem) in [
            (&[(annotation::UPSTREAMS, "a:20100")][..], "merged metrics"),
            (&[(annotation::UPSTREAMS, "a:20200")], "Envoy's metrics"),
            (&[(annotation::UPSTREAMS, "a:7000")], "container `n`"),
            (&[(annotation::MERGED_METRICS_PORT, "7000")], "container `n`"),
            (&[(annotation::MERGED_METRICS_PORT, "9102")], "container `app`"),
            (&[(annotation::SERVICE_METRICS_PORT, "20000")], "public listener"),
            (&[(annotation::SERVICE_METRICS_PORT, "20200")], "Envoy's metrics"),
            (&[(annotation::SERVICE_PORT, "20200")], "own service"),
            (&[(annotation::SERVICE_PORT, "20100")], "application's metrics"),
        ] {
            let mut annotations = json!({});
            for (key, value) in metrics.iter().chain(further) {
                annotations[*key] = (*value).into();
            }
            let mut pod = pod(&annotations, &app);
            pod["spec"]["initContainers"] = native.clone();
            let (_, message) = denied(&pod);
            assert!(message.contains(problem), "{further:?}: {message}");
        }
        // A container may share the metrics port only if the annotation names it.
        let annotations = json!({annotation::METRICS: "true"});
        let taken = json!([{"name": "a", "ports": [{"containerPort": 20200}]}]);
        let (reason, message) = denied(&pod(&annotations, &taken));
        assert_eq!(reason, Reason::InvalidMetrics);
        assert!(message.contains("a port of container `a`"), "{message}");
    }

    /// A CPU limit slows the pod's start down: <https://github.com/istio/istio/issues/11534>.
    #[test]
    fn the_init_container_has_a_cpu_limit_only_in_a_guaranteed_pod() {
        let policy = crate::policy::tests::policy_of(&[]);
        let limits = |memory: &str| {
            let limits = json!({"limits": {"cpu": "1", "memory": memory}});
            json!([{"name": "app", "resources": limits}, {"name": "b", "resources": limits}])
        };
        let equal = json!({
            annotation::CPU_REQUEST: "1", annotation::CPU_LIMIT: "1000m",
            annotation::MEMORY_REQUEST: "1Mi", annotation::MEMORY_LIMIT: "1Mi",
        });
        for (annotations, containers, limit) in [
            (&json!({}), limits("1Mi"), None),
            (&equal, app(&json!(null)), None),
            (&equal, limits("much"), None),
            (&equal, limits("1Mi"), Some("50m")),
        ] {
            let plan = plan_alone(&pod(annotations, &containers), &policy).unwrap();
            assert_eq!(plan.init_resources.cpu.limit, limit.map(|limit| limit.parse().unwrap()));
            assert!(plan.init_resources.cpu.request.is_some());
            assert_eq!(plan.init_resources.is_equal(), limit.is_some());
        }
    }

    /// The requests of all containers together may not exceed the pod's.
    #[test]
    fn a_pod_with_pod_level_resources_gets_no_default_resources() {
        let policy = crate::policy::tests::policy_of(&[]);
        let mut pod = pod(&json!({}), &app(&json!(null)));
        let plan = plan_alone(&pod, &policy).unwrap();
        assert!(plan.envoy.resources.cpu.request.is_some());
        assert!(plan.init_resources.memory.request.is_some());
        pod["spec"]["resources"] = json!({"limits": {"cpu": "1"}});
        pod["metadata"]["annotations"][annotation::CPU_LIMIT] = "100m".into();
        let plan = plan_alone(&pod, &policy).unwrap();
        assert_eq!(plan.init_resources, Resources::default());
        assert!(plan.envoy.resources.cpu.request.is_none());
        assert!(plan.envoy.resources.cpu.limit.is_some(), "an annotation still applies");
    }
}
