//! Envoy's metrics for Prometheus.

use registration::port;

use super::taken::Owner;
use super::{Lifecycle, Service, Surroundings, Taken, read};
use crate::annotation;
use crate::outcome::{Denial, Reason, Warnings};
use crate::pod::{Pod, Port};
use crate::policy::Policy;
use crate::values::{path, switch, unprivileged};

/// The endpoint where Prometheus scrapes Envoy's metrics.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Metrics {
    /// Port of the pod.
    pub(crate) port: u16,
    /// Name of the port.
    pub(crate) port_name: &'static str,
    pub(crate) path: String,
    /// Set if the endpoint also has the application's metrics.
    pub(crate) merging: Option<Merging>,
    /// TLS flags of `connect-init`, with their files.
    pub(crate) tls: Vec<(&'static str, String)>,
}

/// How the application's metrics are merged with Envoy's.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Merging {
    /// Loopback port on which `connect-lifecycle` serves the merged metrics.
    pub(crate) port: u16,
    /// Port on which the application serves its own metrics.
    pub(crate) service_port: u16,
    pub(crate) service_path: String,
}

/// Member of the proxy configuration for which Envoy's bootstrap gets a listener of metrics.
pub(crate) const BIND_ADDRESS: &str = "envoy_prometheus_bind_addr";

/// Name of Envoy's port, by which a PodMonitor finds it.
const PORT_NAME: &str = "prometheus";

/// The name if an application has a port [`PORT_NAME`]. The chart's PodMonitor knows both.
const OTHER_NAME: &str = "envoy-metrics";

const REASON: Reason = Reason::InvalidMetrics;

/// Reads the annotations, with the flags as defaults; `None` if metrics are off. Only if
/// they are on are the settings validated and the ports marked as taken.
pub(super) fn metrics(
    pod: Pod<'_>,
    around: &Surroundings<'_>,
    service: &Service,
    taken: &mut Taken<'_>,
    policy: &Policy,
    warnings: &mut Warnings,
) -> Result<Option<Metrics>, Denial> {
    let enabled = read(pod, annotation::METRICS, REASON, switch)?;
    if !enabled.unwrap_or(policy.metrics) {
        let idle = [annotation::METRICS_PORT, annotation::METRICS_PATH]
            .into_iter()
            .chain(MERGING)
            .chain([annotation::METRICS_MERGING]);
        without_effect(pod, idle, annotation::METRICS, warnings);
        return Ok(None);
    }
    if around.sidecars > 1 {
        let problem = "a pod of several services has several Envoys, and Prometheus scrapes only \
                       one port of a pod";
        if enabled == Some(true) {
            let key = annotation::METRICS;
            let value = pod.annotation(key)?.unwrap_or_default();
            return Err(Denial::annotation(REASON, key, value, problem));
        }
        warnings.push(|| format!("Envoy's metrics are off: {problem}"));
        return Ok(None);
    }
    let key = annotation::METRICS_PORT;
    let annotated = read(pod, key, REASON, |text| {
        let port = port::resolve(text, &around.named()).map_err(|error| error.to_string())?;
        unprivileged(port)
    })?;
    let port = annotated.unwrap_or(policy.metrics_port);
    // A container port that the annotation names is meant for Envoy's metrics.
    let may_share = |owner| annotated.is_some() && matches!(owner, Owner::Container(_));
    if let Some(owner) = taken.owner_but(port, may_share) {
        let problem = format!(
            "port {port} for Envoy's metrics is {owner}: set annotation `{key}` to another"
        );
        return Err(Denial::new(REASON, problem));
    }
    taken.add(port, Owner::Metrics);
    let path = read(pod, annotation::METRICS_PATH, REASON, path)?;
    // The pod has only one service here.
    let service_port = service.each().find_map(|(_, own)| own);
    Ok(Some(Metrics {
        port,
        port_name: PORT_NAME,
        path: path.unwrap_or_else(|| policy.metrics_path.clone()),
        merging: merging(pod, around, taken, service_port, policy, warnings)?,
        tls: tls(pod)?,
    }))
}

/// Annotations that have no effect without merging.
const MERGING: [&str; 3] = [
    annotation::MERGED_METRICS_PORT,
    annotation::SERVICE_METRICS_PORT,
    annotation::SERVICE_METRICS_PATH,
];

/// Warns of each of these annotations that the pod has, because the one that they need is
/// not set.
fn without_effect<'a>(
    pod: Pod<'_>,
    keys: impl IntoIterator<Item = &'a str>,
    needed: &str,
    warnings: &mut Warnings,
) {
    for key in keys.into_iter().filter(|key| matches!(pod.annotation(key), Ok(Some(_)))) {
        warnings.push(|| format!("annotation `{key}` has no effect without `{needed}: \"true\"`"));
    }
}

/// Reads the settings of merging; `None` if the application's metrics are not merged.
fn merging(
    pod: Pod<'_>,
    around: &Surroundings<'_>,
    taken: &mut Taken<'_>,
    service_port: Option<u16>,
    policy: &Policy,
    warnings: &mut Warnings,
) -> Result<Option<Merging>, Denial> {
    let enabled = read(pod, annotation::METRICS_MERGING, REASON, switch)?;
    if !enabled.unwrap_or(policy.metrics_merging) {
        without_effect(pod, MERGING, annotation::METRICS_MERGING, warnings);
        return Ok(None);
    }
    let resolve =
        |text: &str| port::resolve(text, &around.named()).map_err(|error| error.to_string());
    let key = annotation::MERGED_METRICS_PORT;
    let merged = read(pod, key, REASON, |text| unprivileged(resolve(text)?))?;
    let merged = merged.unwrap_or(policy.merged_metrics_port);
    let annotated = read(pod, annotation::SERVICE_METRICS_PORT, REASON, |text| {
        let port = resolve(text)?;
        let is_applications = |owner| matches!(owner, Owner::Container(_) | Owner::Service);
        match taken.owner_but(port, is_applications) {
            Some(owner) => {
                Err(format!("port {port} is {owner}: expected a port of the application"))
            }
            None => Ok(port),
        }
    })?;
    // consul-k8s does not deny such a pod, either.
    let Some(own) = annotated.or(service_port) else {
        if enabled == Some(true) {
            warnings.push(|| {
                format!(
                    "set annotation `{}`: the port of the application's metrics is unknown, so \
                     they are not merged with Envoy's",
                    annotation::SERVICE_METRICS_PORT
                )
            });
        }
        return Ok(None);
    };
    let is_own = (merged == own).then(|| "the port of the application's metrics".to_owned());
    if let Some(owner) = is_own.or_else(|| taken.owner(merged).map(|owner| owner.to_string())) {
        let problem = format!(
            "port {merged} for merged metrics is {owner}: set annotation `{key}` to another"
        );
        return Err(Denial::new(REASON, problem));
    }
    taken.add(merged, Owner::MergedMetrics);
    let path = read(pod, annotation::SERVICE_METRICS_PATH, REASON, path)?;
    Ok(Some(Merging {
        port: merged,
        service_port: own,
        service_path: path.unwrap_or_else(|| "/metrics".to_owned()),
    }))
}

/// Reads the TLS settings: all of them, or none.
fn tls(pod: Pod<'_>) -> Result<Vec<(&'static str, String)>, Denial> {
    let mut found = Vec::new();
    for (key, flag) in [
        (annotation::METRICS_CA_FILE, "--prometheus-ca-file"),
        (annotation::METRICS_CA_PATH, "--prometheus-ca-path"),
        (annotation::METRICS_CERT, "--prometheus-cert-file"),
        (annotation::METRICS_KEY, "--prometheus-key-file"),
    ] {
        if let Some(file) = pod.annotation(key)?.filter(|file| !file.is_empty()) {
            found.push((flag, file.to_owned()));
        }
    }
    let has = |flag: &str| found.iter().any(|(found, _)| *found == flag);
    let one_ca = has("--prometheus-ca-file") != has("--prometheus-ca-path");
    let complete = one_ca && has("--prometheus-cert-file") && has("--prometheus-key-file");
    if found.is_empty() || complete {
        return Ok(found);
    }
    let problem = format!(
        "TLS for Envoy's metrics requires annotations `{}`, `{}` and one of `{}` and `{}`",
        annotation::METRICS_CERT,
        annotation::METRICS_KEY,
        annotation::METRICS_CA_FILE,
        annotation::METRICS_CA_PATH,
    );
    Err(Denial::new(REASON, problem))
}

// === impl Metrics ===

impl Metrics {
    /// Names the port [`OTHER_NAME`] if a Service's `targetPort` of the usual name would lead to
    /// it instead of to a port of the pod's own: Kubernetes takes the first container with such
    /// a port, and searches init containers last.
    pub(super) fn named(
        self,
        around: &Surroundings<'_>,
        lifecycle: &Lifecycle,
        warnings: &mut Warnings,
    ) -> Self {
        let Lifecycle { native, first, .. } = *lifecycle;
        let containers = if native { &[][..] } else { &around.ports[..] };
        let init_containers = if native && !first { &[][..] } else { &around.long_running[..] };
        let mut behind = containers.iter().chain(init_containers);
        // A port that the application declares for Envoy leads to Envoy either way.
        let is_taken = |own: &&Port<'_>| own.name == Some(PORT_NAME) && own.number != self.port;
        let Some(own) = behind.find(is_taken) else { return self };
        warnings.push(|| {
            format!(
                "the port of Envoy's metrics is named `{OTHER_NAME}`, not `{PORT_NAME}`: \
                 container `{}` has a port of that name",
                own.container
            )
        });
        Self { port_name: OTHER_NAME, ..self }
    }

    /// Configures the proxy, and adds the annotations that Prometheus reads, unless the pod
    /// has its own.
    pub(super) fn announce(
        &self,
        pod: Pod<'_>,
        service: &mut Service,
        defaults: &mut Vec<(&'static str, String)>,
        warnings: &mut Warnings,
    ) -> Result<(), Denial> {
        let address = format!("0.0.0.0:{}", self.port);
        service.proxy_config.insert(BIND_ADDRESS.to_owned(), address.into());
        for (key, value) in [
            ("prometheus.io/scrape", "true".to_owned()),
            ("prometheus.io/port", self.port.to_string()),
            ("prometheus.io/path", self.path.clone()),
        ] {
            match pod.annotation(key)? {
                None => defaults.push((key, value)),
                Some(own) if own != value => warnings.push(|| {
                    format!(
                        "annotation `{key}` stays as it is: to scrape Envoy's metrics, it must be \
                         `{value}`"
                    )
                }),
                Some(_) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::Plan;
    use crate::plan::tests::plan_in;
    use crate::policy::Cluster;
    use crate::policy::tests::{cluster, policy, policy_of};

    fn planned(annotations: &Value) -> Result<Plan, Denial> {
        warned(annotations).map(|(plan, _)| plan)
    }

    fn warned(annotations: &Value) -> Result<(Plan, Vec<String>), Denial> {
        let ports = json!([{"containerPort": 8080}, {"containerPort": 9102, "name": "envoy"}]);
        let pod = json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "app", "ports": ports}]}});
        plan_in(&pod, &policy(), &Cluster::default())
    }

    #[test]
    fn prometheus_finds_the_metrics_by_annotations() {
        let plan = planned(&json!({annotation::METRICS: "true"})).unwrap();
        let metrics = plan.metrics.unwrap();
        assert_eq!((metrics.port, metrics.path.as_str()), (20200, "/metrics"));
        assert_eq!(plan.service.proxy_config["envoy_prometheus_bind_addr"], "0.0.0.0:20200");
        let written: Vec<_> =
            plan.defaults.iter().filter(|(key, _)| key.starts_with("prometheus")).collect();
        assert_eq!(written.len(), 3);

        let (plan, warnings) = warned(&json!({
            annotation::METRICS: "true", annotation::METRICS_PORT: "envoy",
            annotation::METRICS_PATH: "/envoy", "prometheus.io/port": "8080",
            annotation::PROXY_CONFIG: r#"{"envoy_prometheus_bind_addr": "x", "a": 1}"#,
        }))
        .unwrap();
        assert_eq!(plan.metrics.unwrap().port, 9102);
        assert_eq!(plan.service.proxy_config["envoy_prometheus_bind_addr"], "0.0.0.0:9102");
        assert_eq!(plan.service.proxy_config["a"], 1);
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("`prometheus.io/port` stays"), "{warnings:?}");
    }

    /// A Service's `targetPort: prometheus` led to Envoy's metrics instead of the application's.
    #[test]
    fn the_port_does_not_have_a_name_that_would_lead_a_service_away_from_the_pods_own_port() {
        let own = json!([{"containerPort": 9102, "name": "prometheus"}]);
        let app = json!({"name": "app", "ports": own});
        let native = json!({"name": "n", "restartPolicy": "Always", "ports": own});
        let portless = json!({"name": "app"});
        let once = json!({"name": "once", "ports": own});
        let of_envoy = json!({"name": "app", "ports": [
            {"containerPort": 8080}, {"containerPort": 20200, "name": "prometheus"},
        ]});
        let last = json!({annotation::POSITION: "last"});
        let by_name = json!({annotation::METRICS_PORT: "prometheus"});
        for (containers, init, mode, more, is_usual) in [
            (json!([portless]), json!([once]), "container", json!({}), true),
            (json!([portless, app]), json!([]), "container", json!({}), false),
            (json!([portless]), json!([native]), "container", json!({}), false),
            // Kubernetes searches the application's containers before a native sidecar.
            (json!([portless, app]), json!([]), "native", json!({}), true),
            (json!([portless]), json!([native]), "native", json!({}), false),
            (json!([portless]), json!([native]), "native", last, true),
            (json!([of_envoy]), json!([]), "container", by_name, true),
        ] {
            let mut annotations =
                json!({annotation::METRICS: "true", annotation::SIDECAR_MODE: mode});
            annotations.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let pod = json!({"metadata": {"annotations": annotations},
                "spec": {"containers": containers, "initContainers": init}});
            let (plan, warnings) = plan_in(&pod, &policy(), &cluster("1.34")).unwrap();
            assert_eq!(plan.metrics.unwrap().port_name == PORT_NAME, is_usual, "{pod}");
            let warned = warnings.iter().any(|warning| warning.contains(OTHER_NAME));
            assert_eq!(warned, !is_usual, "{warnings:?}");
        }
    }

    /// Other injectors deny a pod with invalid metrics settings even if metrics are off.
    #[test]
    fn settings_of_metrics_that_are_off_only_cause_a_warning() {
        let (plan, warnings) = warned(&json!({annotation::METRICS_PORT: "99999"})).unwrap();
        assert_eq!(plan.metrics, None);
        assert!(warnings[0].contains("has no effect without"), "{warnings:?}");
    }

    #[test]
    fn invalid_settings_are_denied() {
        for (key, value, problem) in [
            (annotation::METRICS, "yes", "`true` or `false`"),
            (annotation::METRICS_PORT, "80", "1024 to 65535"),
            (annotation::METRICS_PORT, "8080", "own service"),
            (annotation::METRICS_PORT, "20000", "public listener"),
            (annotation::METRICS_PORT, "grpc", "there are: envoy"),
            (annotation::METRICS_PATH, "metrics", "such as `/metrics`"),
            (annotation::METRICS_CERT, "/tls.crt", "requires annotations"),
        ] {
            let mut annotations = json!({annotation::METRICS: "true"});
            annotations[key] = value.into();
            let denial = planned(&annotations).unwrap_err();
            assert_eq!(denial.reason, Reason::InvalidMetrics);
            assert!(denial.message.contains(problem), "{}", denial.message);
        }
        let both = json!({annotation::METRICS: "true", annotation::UPSTREAMS: "db:20200"});
        let denial = planned(&both).unwrap_err();
        assert_eq!(denial.reason, Reason::UpstreamConflict);
        assert!(denial.message.contains("Envoy's metrics"), "{}", denial.message);
    }

    #[test]
    fn the_applications_metrics_are_merged() {
        let on = json!({annotation::METRICS: "true", annotation::METRICS_MERGING: "true"});
        let with = |further: Value| {
            let mut annotations = on.clone();
            annotations.as_object_mut().unwrap().extend(further.as_object().unwrap().clone());
            planned(&annotations)
        };
        let merging = |further| with(further).unwrap().metrics.unwrap().merging.unwrap();
        let of = |port, service_port, service_path: &str| Merging {
            port,
            service_port,
            service_path: service_path.to_owned(),
        };
        assert_eq!(merging(json!({})), of(20100, 8080, "/metrics"));
        let all = json!({
            annotation::MERGED_METRICS_PORT: "20101", annotation::SERVICE_METRICS_PORT: "envoy",
            annotation::SERVICE_METRICS_PATH: "/own",
        });
        assert_eq!(merging(all), of(20101, 9102, "/own"));
        for (key, value, problem) in [
            (annotation::MERGED_METRICS_PORT, "80", "1024 to 65535"),
            (annotation::MERGED_METRICS_PORT, "19000", "admin port"),
            (annotation::MERGED_METRICS_PORT, "20200", "Envoy's metrics"),
            (annotation::MERGED_METRICS_PORT, "8080", "application's metrics"),
            (annotation::MERGED_METRICS_PORT, "9102", "container `app`"),
            (annotation::SERVICE_METRICS_PORT, "0", "0"),
            (annotation::SERVICE_METRICS_PATH, "own", "such as `/metrics`"),
        ] {
            let denial = with(json!({key: value})).unwrap_err();
            assert_eq!(denial.reason, Reason::InvalidMetrics);
            assert!(denial.message.contains(problem), "{}", denial.message);
        }
        let alone = json!({annotation::METRICS: "true", annotation::SERVICE_METRICS_PATH: "/own"});
        let (plan, warnings) = warned(&alone).unwrap();
        assert_eq!(plan.metrics.unwrap().merging, None);
        assert!(warnings[0].contains(annotation::METRICS_MERGING), "{warnings:?}");
    }

    /// The flags, and the treatment of a pod without a port, are those of consul-k8s.
    #[test]
    fn merging_comes_from_the_annotations_or_the_flags() {
        let policy = policy_of(&[
            "--default-enable-metrics",
            "--default-enable-metrics-merging",
            "--default-merged-metrics-port=20102",
        ]);
        let planned = |annotations: Value, ports: Value| {
            let pod = json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "app", "ports": ports}]}});
            let (plan, warnings) = plan_in(&pod, &policy, &Cluster::default()).unwrap();
            (plan.metrics.unwrap().merging, warnings)
        };
        let with_port = || json!([{"containerPort": 8080}]);
        let merging = |annotations| planned(annotations, with_port()).0;
        assert_eq!(merging(json!({})).unwrap().port, 20102);
        let own = json!({annotation::MERGED_METRICS_PORT: "20103"});
        assert_eq!(merging(own).unwrap().port, 20103);
        assert_eq!(merging(json!({annotation::METRICS_MERGING: "false"})), None);
        assert_eq!(planned(json!({}), json!([])), (None, vec![]));
        let asked = json!({annotation::METRICS_MERGING: "true"});
        let (merging, warnings) = planned(asked, json!([]));
        assert_eq!(merging, None);
        assert!(warnings[0].contains(annotation::SERVICE_METRICS_PORT), "{warnings:?}");
    }

    #[test]
    fn tls_is_all_or_nothing() {
        let mut annotations = json!({
            annotation::METRICS: "true", annotation::METRICS_CERT: "/c",
            annotation::METRICS_KEY: "/k", annotation::METRICS_CA_FILE: "/a",
        });
        let tls = planned(&annotations).unwrap().metrics.unwrap().tls;
        assert_eq!(tls.len(), 3);
        assert_eq!(tls[0], ("--prometheus-ca-file", "/a".to_owned()));
        annotations[annotation::METRICS_CA_PATH] = "/b".into();
        assert_eq!(planned(&annotations).unwrap_err().reason, Reason::InvalidMetrics);
    }
}
