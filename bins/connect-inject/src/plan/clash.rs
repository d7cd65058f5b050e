//! What of the pod's own would clash with what is added.

use serde_json::Value;

use super::{Service, Surroundings};
use crate::denial::Denial;
use crate::names::{INIT_CONTAINER, SIDECAR, TOKEN_VOLUME, USER, VOLUME, sidecar_of};
use crate::pod::Pod;
use crate::policy::Policy;
use crate::reason::Reason;

/// Refuses a pod whose names, ports or user are those of the injected containers.
pub(super) fn refuse(
    pod: Pod<'_>,
    around: &Surroundings<'_>,
    service: &Service,
    policy: &Policy,
) -> Result<(), Denial> {
    names(pod, around, service)?;
    ports(around)?;
    if policy.fixed_user {
        users(pod, around)?;
    }
    Ok(())
}

/// The API server would refuse the injected pod, and name two containers of
/// which the user wrote one.
fn names(pod: Pod<'_>, around: &Surroundings<'_>, service: &Service) -> Result<(), Denial> {
    let reserved = |what: &str, name: &str| {
        let message = format!(
            "the pod has a {what} named `{name}`, which the injector adds: give it another name"
        );
        Err(Denial::new(Reason::ReservedName, message))
    };
    for container in around.containers.iter().chain(&around.init_containers) {
        let is_further = |(name, _): &(&str, _)| container.name == sidecar_of(name);
        let is_sidecar =
            container.name == SIDECAR || service.each().skip(1).any(|s| is_further(&s));
        if is_sidecar || container.name == INIT_CONTAINER {
            return reserved("container", container.name);
        }
    }
    for ours in [VOLUME, TOKEN_VOLUME] {
        if pod.volume_names()?.any(|name| name == ours) {
            return reserved("volume", ours);
        }
    }
    Ok(())
}

/// Of two that listen on a port, the second fails to start.
fn ports(around: &Surroundings<'_>) -> Result<(), Denial> {
    for port in around.ports.iter().chain(&around.long_running) {
        if let Some(owner) = around.owner(port.number) {
            let (container, port) = (port.container, port.number);
            let problem =
                format!("port {port} of container `{container}` is {owner}: choose another port");
            return Err(Denial::new(Reason::ReservedPort, problem));
        }
    }
    Ok(())
}

/// An application of the sidecar's user could read what belongs to the sidecar
/// only, its ACL token for one.
fn users(pod: Pod<'_>, around: &Surroundings<'_>) -> Result<(), Denial> {
    let is_ours = |context: Option<&Value>| {
        context.and_then(|context| context.get("runAsUser")).and_then(Value::as_i64) == Some(USER)
    };
    let refused = |place: &str| {
        let message = format!(
            "`{place}` is {USER}, the user of the injected containers: choose another user"
        );
        Err(Denial::new(Reason::ReservedUser, message))
    };
    if is_ours(pod.spec("securityContext")) {
        return refused("spec.securityContext.runAsUser");
    }
    for container in around.containers.iter().chain(&around.init_containers) {
        if is_ours(container.fields.get("securityContext")) {
            return refused(&format!("securityContext.runAsUser of container {}", container.name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::decision::tests::policy;
    use crate::plan::plan;

    #[test]
    fn the_sidecars_ports_are_its_own() {
        for (port, whose) in [(20000, "public listener"), (19000, "admin port")] {
            let ports = json!([{"containerPort": 8080}, {"containerPort": port}]);
            let pod = json!({"spec": {"containers": [{"name": "a", "ports": ports}]}});
            let denial = plan(Pod::new(&pod), &policy()).unwrap_err();
            assert_eq!(denial.reason, Reason::ReservedPort);
            assert!(denial.message.contains(whose), "{}", denial.message);
        }
    }

    #[test]
    fn the_sidecars_user_is_its_own() {
        let ours = json!({"runAsUser": 5995});
        for (spec, place) in [
            (json!({"containers": [{"name": "a"}], "securityContext": ours}), "spec.security"),
            (json!({"containers": [{"name": "a", "securityContext": ours}]}), "container a"),
            (
                json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i", "securityContext": ours}]}),
                "container i",
            ),
        ] {
            let pod = json!({"spec": spec});
            let denial = plan(Pod::new(&pod), &policy()).unwrap_err();
            assert_eq!(denial.reason, Reason::ReservedUser);
            assert!(denial.message.contains(place), "{}", denial.message);
            let neutral = Policy { fixed_user: false, ..policy() };
            assert!(plan(Pod::new(&pod), &neutral).is_ok());
        }
        let pod =
            json!({"spec": {"containers": [{"name": "a", "securityContext": {"runAsUser": 0}}]}});
        assert!(plan(Pod::new(&pod), &policy()).is_ok());
    }
}
