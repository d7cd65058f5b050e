//! The readiness probe that decides whether Consul sends a service traffic.

use std::fmt;

use probe::{NotRun, Probe};

use super::{Service, Surroundings};
use crate::outcome::{Denial, Warnings};
use crate::pod::{Container, Port};

/// The readiness probe of a service.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Readiness {
    container: String,
    /// The probe, or why the sidecar can't run it.
    probe: Result<Probe, NotRun>,
}

/// Finds the probe of each service: that of the container that exposes the service's port,
/// or else of the application's container. `None` for a service without a port, which gets
/// no traffic, and for a container without a probe.
pub(super) fn readiness(
    around: &Surroundings<'_>,
    service: &Service,
    warnings: &mut Warnings,
) -> Result<Vec<Option<Readiness>>, Denial> {
    let mut found = Vec::new();
    for (_, port) in service.each() {
        let readiness = port.map(|port| of(around.owner(port))).transpose()?.flatten();
        if let Some(Readiness { container, probe: Err(why) }) = &readiness
            // Exec probes are common, and users have nothing to fix.
            && *why != NotRun::Exec
        {
            warnings.push(|| {
                format!(
                    "the readiness probe of container `{container}` cannot be run by the sidecar \
                     ({why}): Consul sends traffic as soon as the service's port accepts connections"
                )
            });
        }
        found.push(readiness);
    }
    Ok(found)
}

fn of(container: Container<'_>) -> Result<Option<Readiness>, Denial> {
    let Some(probe) = container.readiness_probe() else { return Ok(None) };
    let ports = container.ports()?;
    let named: Vec<_> = ports.iter().filter_map(|port| Some((port.name?, port.number))).collect();
    let probe = Probe::of(probe, &named);
    Ok(Some(Readiness { container: container.name.to_owned(), probe }))
}

// === impl Surroundings ===

impl<'p> Surroundings<'p> {
    /// The container that exposes a port, or else the application's container.
    fn owner(&self, number: u16) -> Container<'p> {
        let exposes = |port: &&Port<'_>| port.number == number;
        let owner = self.ports.iter().chain(&self.long_running).find(exposes);
        let all = || self.containers.iter().chain(&self.init_containers);
        let owner = owner.and_then(|port| all().find(|each| each.name == port.container));
        owner.copied().unwrap_or_else(|| self.application())
    }
}

// === impl Readiness ===

impl Readiness {
    /// The probe, if the sidecar can run it.
    pub(crate) fn probe(&self) -> Option<&Probe> {
        self.probe.as_ref().ok()
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { container, probe } = self;
        match probe {
            Ok(_) => {
                write!(f, "healthy while the readiness probe of container `{container}` succeeds")
            }
            Err(why) => write!(
                f,
                "healthy while the port accepts connections, since the sidecar cannot run the \
                 readiness probe of container `{container}`: {why}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::annotation;
    use crate::plan::tests::plan_in;
    use crate::policy::Cluster;
    use crate::policy::tests::policy;

    /// For each service: the probe as JSON, its description, and the warnings.
    fn planned(annotations: &Value, containers: &Value) -> (Vec<String>, String, Vec<String>) {
        let pod = json!({"metadata": {"annotations": annotations}, "spec": {
            "containers": containers,
            "initContainers": [{"name": "native", "restartPolicy": "Always",
                "ports": [{"containerPort": 7000}], "readinessProbe": {"grpc": {"port": 7001}}}],
        }});
        let (plan, warnings) = plan_in(&pod, &policy(), &Cluster::default()).unwrap();
        let probe = |each: &Option<Readiness>| Some(each.as_ref()?.probe()?.to_string());
        let probes = plan.readiness.iter().map(|each| probe(each).unwrap_or_default()).collect();
        (probes, plan.to_string(), warnings)
    }

    /// A pod that was not ready got traffic.
    #[test]
    fn the_probe_is_that_of_the_container_that_exposes_the_port() {
        let containers = json!([
            {"name": "log", "readinessProbe": {"tcpSocket": {"port": 1}}},
            {"name": "app", "ports": [{"containerPort": 8080, "name": "http"}, {"containerPort": 9090, "name": "admin"}],
             "readinessProbe": {"httpGet": {"path": "/ready", "port": "admin"}, "periodSeconds": 2}},
        ]);
        let of_app = r#"{"httpGet":{"path":"/ready","port":9090},"periodSeconds":2}"#;
        let (probes, words, warnings) = planned(&json!({}), &containers);
        assert_eq!((probes, warnings), (vec![of_app.to_owned()], vec![]));
        assert!(
            words.ends_with(
                "port 8080, healthy while the readiness probe of container `app` succeeds"
            ),
            "{words}"
        );
        // A port that no container exposes counts as the application's.
        let (probes, ..) = planned(&json!({annotation::SERVICE_PORT: "5000"}), &containers);
        assert_eq!(probes, [r#"{"tcpSocket":{"port":1}}"#]);
        let several =
            json!({annotation::SERVICE: "a,b,c", annotation::SERVICE_PORT: "8080,7000,5000"});
        let (probes, ..) = planned(&several, &containers);
        assert_eq!(probes, [of_app, r#"{"grpc":{"port":7001}}"#, r#"{"tcpSocket":{"port":1}}"#]);
    }

    #[test]
    fn a_probe_that_the_sidecar_cannot_run_causes_a_warning() {
        let app = |probe: Value| json!([{"name": "app", "ports": [{"containerPort": 80}], "readinessProbe": probe}]);
        let (probes, words, warnings) =
            planned(&json!({}), &app(json!({"exec": {"command": ["true"]}})));
        assert_eq!((probes, warnings), (vec![String::new()], vec![]));
        assert!(
            words.ends_with("readiness probe of container `app`: it runs a command"),
            "{words}"
        );
        let elsewhere = json!({"httpGet": {"port": 80, "host": "10.0.0.1"}});
        let (_, _, warnings) = planned(&json!({}), &app(elsewhere));
        assert!(warnings[0].contains("its host is `10.0.0.1`"), "{warnings:?}");
        let long = json!({"httpGet": {"port": 80, "host": "x".repeat(10_000)}});
        assert!(planned(&json!({}), &app(long)).1.len() < 400);
        for none in
            [app(Value::Null), json!([{"name": "client", "readinessProbe": {"grpc": {"port": 1}}}])]
        {
            let (probes, words, warnings) = planned(&json!({}), &none);
            assert_eq!((probes, warnings), (vec![String::new()], vec![]));
            assert!(!words.contains("healthy"), "{words}");
        }
    }
}
