//! What a pod is injected with: its annotations, read strictly and with their
//! defaults. What can't be understood denies the pod.

use std::collections::HashMap;

use registration::pod::{ADMIN_PORT, PUBLIC_LISTENER_PORT};
use registration::upstream::{self, Context};
use registration::{Upstream, name, port};

use crate::annotation;
use crate::denial::Denial;
use crate::names::{INIT_CONTAINER, SIDECAR, VOLUME};
use crate::pod::{Container, Pod, Port};
use crate::reason::Reason;

/// What a pod is injected with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    /// The name of its service.
    pub(crate) service: String,
    /// The port of its service; none: a client only.
    pub(crate) port: Option<u16>,
    /// What it reaches.
    pub(crate) upstreams: Vec<Upstream>,
    /// Annotations that the pod lacks and that are written into it.
    pub(crate) defaults: Vec<(&'static str, String)>,
    /// What is not wrong enough to deny the pod.
    pub(crate) warnings: Vec<String>,
}

/// Plans the injection of a pod.
pub(crate) fn plan(pod: Pod<'_>) -> Result<Plan, Denial> {
    let containers = pod.containers()?;
    let init_containers = pod.init_containers()?;
    let Some(first) = containers.first() else {
        return Err(Denial::new(Reason::NoContainers, "the pod has no containers to inject for"));
    };
    refuse_reserved_names(pod, &containers, &init_containers)?;
    let ports = exposed(containers.iter())?;
    let long_running = exposed(init_containers.iter().filter(|init| init.is_long_running()))?;

    let mut defaults = Vec::new();
    let service = service(pod, first, &mut defaults)?;
    let port = service_port(pod, &ports, &mut defaults)?;
    let upstreams = upstreams(pod, port, &ports, &long_running)?;
    if pod.annotation(annotation::DEFAULT_CONTAINER)?.is_none() {
        defaults.push((annotation::DEFAULT_CONTAINER, first.name.to_owned()));
    }
    let warnings = shared_variables(&upstreams);
    Ok(Plan { service, port, upstreams, defaults, warnings })
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

/// The API server would refuse the injected pod, and name two containers of
/// which the user wrote one.
fn refuse_reserved_names(
    pod: Pod<'_>,
    containers: &[Container<'_>],
    init_containers: &[Container<'_>],
) -> Result<(), Denial> {
    let reserved = |what: &str, name: &str| {
        let message = format!(
            "the pod has a {what} named `{name}`, which the injector adds: give it another name"
        );
        Err(Denial::new(Reason::ReservedName, message))
    };
    for container in containers.iter().chain(init_containers) {
        if [SIDECAR, INIT_CONTAINER].contains(&container.name) {
            return reserved("container", container.name);
        }
    }
    if pod.volume_names()?.any(|name| name == VOLUME) {
        return reserved("volume", VOLUME);
    }
    Ok(())
}

/// The name of the service: annotated, or that of the first container.
fn service(
    pod: Pod<'_>,
    first: &Container<'_>,
    defaults: &mut Vec<(&'static str, String)>,
) -> Result<String, Denial> {
    let reason = Reason::InvalidService;
    let key = annotation::SERVICE;
    if let Some(value) = pod.annotation(key)? {
        return name::check(value)
            .map(|()| value.to_owned())
            .map_err(|error| Denial::annotation(reason, key, value, error));
    }
    name::check(first.name).map_err(|error| {
        let problem = format!(
            "the first container's name can't be a service's ({error}): set annotation `{key}`"
        );
        Denial::new(reason, problem)
    })?;
    defaults.push((key, first.name.to_owned()));
    Ok(first.name.to_owned())
}

/// The port of the service: annotated, or the first that any container exposes.
fn service_port(
    pod: Pod<'_>,
    ports: &[Port<'_>],
    defaults: &mut Vec<(&'static str, String)>,
) -> Result<Option<u16>, Denial> {
    let reason = Reason::InvalidServicePort;
    let key = annotation::SERVICE_PORT;
    if let Some(value) = pod.annotation(key)? {
        return port::resolve(value, &named(ports))
            .map_err(|error| error.to_string())
            .and_then(|port| match owner(port) {
                Some(owner) => Err(format!("port {port} is {owner}: choose another port")),
                None => Ok(Some(port)),
            })
            .map_err(|problem| Denial::annotation(reason, key, value, problem));
    }
    let Some(first) = ports.first() else {
        return Ok(None);
    };
    if let Some(owner) = owner(first.number) {
        let (container, port) = (first.container, first.number);
        let problem =
            format!("port {port} of container `{container}` is {owner}: choose another port");
        return Err(Denial::new(reason, problem));
    }
    let written = first.name.map_or_else(|| first.number.to_string(), str::to_owned);
    defaults.push((key, written));
    Ok(Some(first.number))
}

/// What the pod reaches.
fn upstreams(
    pod: Pod<'_>,
    port: Option<u16>,
    ports: &[Port<'_>],
    long_running: &[Port<'_>],
) -> Result<Vec<Upstream>, Denial> {
    let key = annotation::UPSTREAMS;
    let Some(value) = pod.annotation(key)? else {
        return Ok(Vec::new());
    };
    let context = Context { named_ports: &named(ports), namespaces: false };
    let upstreams = upstream::parse_list(value, context)
        .map_err(|error| Denial::annotation(Reason::InvalidUpstreams, key, value, error))?;
    let taken: Vec<(u16, String)> = [PUBLIC_LISTENER_PORT, ADMIN_PORT]
        .into_iter()
        .filter_map(|port| Some((port, owner(port)?.to_owned())))
        .chain(port.map(|port| (port, "the port of the pod's own service".to_owned())))
        .chain(
            ports
                .iter()
                .chain(long_running)
                .map(|port| (port.number, format!("a port of container `{}`", port.container))),
        )
        .collect();
    match upstream::conflict(&upstreams, &taken) {
        Some(conflict) => Err(Denial::annotation(Reason::UpstreamConflict, key, value, conflict)),
        None => Ok(upstreams),
    }
}

fn named<'a>(ports: &[Port<'a>]) -> Vec<port::Named<'a>> {
    ports.iter().filter_map(|port| Some((port.name?, port.number))).collect()
}

/// What of ours listens on a port.
fn owner(port: u16) -> Option<&'static str> {
    match port {
        PUBLIC_LISTENER_PORT => Some("the sidecar's public listener"),
        ADMIN_PORT => Some("Envoy's admin port"),
        _ => None,
    }
}

/// Two upstreams whose names differ only in what can't stand in a variable's
/// name, or only in their datacenter, share their environment variables.
fn shared_variables(upstreams: &[Upstream]) -> Vec<String> {
    let mut first: HashMap<String, &Upstream> = HashMap::new();
    let mut warnings = Vec::new();
    for upstream in upstreams {
        let stem = upstream.variable_stem();
        if let Some(first) = first.get(&stem) {
            warnings.push(format!(
                "upstreams `{first}` and `{upstream}` have the same environment variables: \
                 {stem}_CONNECT_SERVICE_HOST and _PORT lead to the first"
            ));
        } else {
            first.insert(stem, upstream);
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(annotations: &Value, containers: &Value) -> Value {
        json!({"metadata": {"annotations": annotations}, "spec": {"containers": containers}})
    }

    fn app(ports: &Value) -> Value {
        json!([{"name": "app", "ports": ports}])
    }

    fn denied(pod: &Value) -> (Reason, String) {
        let Denial { reason, message } = plan(Pod::new(pod)).unwrap_err();
        (reason, message)
    }

    #[test]
    fn the_documents_defaults() {
        let ports = json!([{"containerPort": 8080, "name": "http"}, {"containerPort": 9090}]);
        let plan = plan(Pod::new(&pod(&json!({}), &app(&ports)))).unwrap();
        assert_eq!((plan.service.as_str(), plan.port), ("app", Some(8080)));
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
        let plan = plan(Pod::new(&pod(&json!({}), &containers))).unwrap();
        assert_eq!((plan.service.as_str(), plan.port), ("log", Some(8080)));
        assert_eq!(plan.defaults[1], (annotation::SERVICE_PORT, "8080".to_owned()));
    }

    #[test]
    fn annotations_win() {
        let ports = json!([{"containerPort": 8080, "name": "http"}, {"containerPort": 9090, "name": "admin"}]);
        let annotations = json!({
            annotation::SERVICE: "web", annotation::SERVICE_PORT: "admin",
            annotation::UPSTREAMS: "db:1234, auth:6789", annotation::DEFAULT_CONTAINER: "x",
        });
        let plan = plan(Pod::new(&pod(&annotations, &app(&ports)))).unwrap();
        assert_eq!((plan.service.as_str(), plan.port), ("web", Some(9090)));
        assert_eq!(plan.defaults, []);
        let locals: Vec<_> = plan.upstreams.iter().map(|u| u.local_bind_port).collect();
        assert_eq!(locals, [1234, 6789]);
    }

    #[test]
    fn a_pod_without_a_port_is_a_client() {
        for containers in [app(&json!(null)), app(&json!([]))] {
            assert_eq!(plan(Pod::new(&pod(&json!({}), &containers))).unwrap().port, None);
        }
    }

    /// Pain 40: what other injectors take silently and get wrong.
    #[test]
    fn what_cannot_work_is_denied() {
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
    fn the_services_own_port_is_taken_even_if_no_container_exposes_it() {
        let annotations = json!({annotation::SERVICE_PORT: "80", annotation::UPSTREAMS: "a:80"});
        let (reason, message) = denied(&pod(&annotations, &app(&json!(null))));
        assert_eq!(reason, Reason::UpstreamConflict);
        assert!(message.contains("own service"), "{message}");
    }

    #[test]
    fn a_native_sidecars_port_is_taken_too() {
        let mut pod = pod(&json!({annotation::UPSTREAMS: "a:15001"}), &app(&json!(null)));
        let ports = json!([{"containerPort": 15001}]);
        pod["spec"]["initContainers"] =
            json!([{"name": "other", "restartPolicy": "Always", "ports": ports}]);
        assert_eq!(denied(&pod).0, Reason::UpstreamConflict);
        pod["spec"]["initContainers"] = json!([{"name": "once", "ports": ports}]);
        assert!(plan(Pod::new(&pod)).is_ok());
    }

    #[test]
    fn names_of_ours_are_reserved() {
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
    fn shared_variables_are_warned_of() {
        let annotations = json!({annotation::UPSTREAMS: "a-b:1,a.b:2"});
        let plan = plan(Pod::new(&pod(&annotations, &app(&json!(null))))).unwrap();
        assert_eq!(plan.warnings.len(), 1);
        assert!(plan.warnings[0].contains("A_B_CONNECT_SERVICE_HOST"), "{:?}", plan.warnings);
    }
}
