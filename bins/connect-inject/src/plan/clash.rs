//! Rejects pods whose containers, ports or user collide with the sidecar's.

use serde_json::Value;

use super::volumes::OURS;
use super::{Service, Surroundings, Taken};
use crate::names::{INIT_CONTAINER, REDIRECT, SIDECAR, USER, sidecar_of};
use crate::outcome::{Denial, Reason};
use crate::pod::Pod;
use crate::policy::Policy;

/// Rejects a pod with the names, ports or user of the injected containers. Then marks the
/// containers' ports as taken.
pub(super) fn refuse<'p>(
    pod: Pod<'p>,
    around: &Surroundings<'p>,
    taken: &mut Taken<'p>,
    policy: &Policy,
) -> Result<(), Denial> {
    names(pod, around)?;
    ports(around, taken)?;
    if policy.openshift {
        return Ok(());
    }
    users(pod, around)
}

/// Rejects a container with the name of an additional service's sidecar.
pub(super) fn refuse_further(around: &Surroundings<'_>, service: &Service) -> Result<(), Denial> {
    let further: Vec<String> = service.each().skip(1).map(|(name, _)| sidecar_of(name)).collect();
    let mut containers = around.containers.iter().chain(&around.init_containers);
    match containers.find(|container| further.iter().any(|name| name == container.name)) {
        Some(container) => Err(reserved("container", container.name)),
        None => Ok(()),
    }
}

/// The API server would reject the injected pod for duplicate names, of which the user
/// knows only one.
fn names(pod: Pod<'_>, around: &Surroundings<'_>) -> Result<(), Denial> {
    for container in around.containers.iter().chain(&around.init_containers) {
        if [SIDECAR, INIT_CONTAINER, REDIRECT].contains(&container.name) {
            return Err(reserved("container", container.name));
        }
    }
    for ours in OURS {
        if pod.volume_names()?.any(|name| name == ours) {
            return Err(reserved("volume", ours));
        }
    }
    Ok(())
}

fn reserved(what: &str, name: &str) -> Denial {
    let message = format!(
        "the pod has a {what} named `{name}`, which the injector adds: give it another name"
    );
    Denial::new(Reason::ReservedName, message)
}

/// Two processes can't listen on one port.
fn ports<'p>(around: &Surroundings<'p>, taken: &mut Taken<'p>) -> Result<(), Denial> {
    for port in around.ports.iter().chain(&around.long_running) {
        if let Some(owner) = taken.owner(port.number) {
            let (container, port) = (port.container, port.number);
            let problem =
                format!("port {port} of container `{container}` is {owner}: choose another port");
            return Err(Denial::new(Reason::ReservedPort, problem));
        }
    }
    taken.add_containers(&around.ports);
    taken.add_containers(&around.long_running);
    Ok(())
}

/// An application with the sidecar's user could read the sidecar's files, such as its ACL
/// token.
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
    use crate::plan::tests::plan_alone;
    use crate::policy::tests::policy;
    use crate::policy::tests::policy_of;

    #[test]
    fn the_sidecars_ports_are_reserved() {
        for (port, whose) in [(20000, "public listener"), (19000, "admin port")] {
            let ports = json!([{"containerPort": 8080}, {"containerPort": port}]);
            let pod = json!({"spec": {"containers": [{"name": "a", "ports": ports}]}});
            let denial = plan_alone(&pod, &policy()).unwrap_err();
            assert_eq!(denial.reason, Reason::ReservedPort);
            assert!(denial.message.contains(whose), "{}", denial.message);
        }
    }

    #[test]
    fn the_sidecars_user_is_reserved() {
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
            let denial = plan_alone(&pod, &policy()).unwrap_err();
            assert_eq!(denial.reason, Reason::ReservedUser);
            assert!(denial.message.contains(place), "{}", denial.message);
            let neutral = policy_of(&["--enable-openshift"]);
            assert!(plan_alone(&pod, &neutral).is_ok());
        }
        let pod =
            json!({"spec": {"containers": [{"name": "a", "securityContext": {"runAsUser": 0}}]}});
        assert!(plan_alone(&pod, &policy()).is_ok());
    }
}
