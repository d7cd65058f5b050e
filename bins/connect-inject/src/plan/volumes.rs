//! Volumes and mounts besides our own: the user's in the sidecar, and ours in
//! the user's containers.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{Surroundings, read};
use crate::annotation;
use crate::json::quoted;
use crate::names::{FOLDER, TOKEN_FOLDER, TOKEN_VOLUME, VOLUME};
use crate::outcome::{Denial, Reason};
use crate::pod::Pod;

/// Volumes and mounts besides our own.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Volumes {
    /// Volumes for the pod, as they were written.
    pub(crate) added: Vec<Value>,
    /// Mounts for the sidecar, as they were written.
    pub(crate) mounts: Vec<Value>,
    /// The containers that get our volume, as JSON pointers.
    pub(crate) sharing: Vec<String>,
}

const REASON: Reason = Reason::InvalidVolumes;

/// Reads the volumes and mounts.
pub(super) fn volumes(pod: Pod<'_>, around: &Surroundings<'_>) -> Result<Volumes, Denial> {
    let mut names: BTreeSet<&str> = pod.volume_names()?.collect();
    let added = objects(pod, annotation::USER_VOLUMES)?;
    for volume in &added {
        let deny = |problem| refused(pod, annotation::USER_VOLUMES, problem);
        let name = text(volume, "name").ok_or_else(|| deny("a volume has no `name`".to_owned()))?;
        if [VOLUME, TOKEN_VOLUME].contains(&name) || !names.insert(name) {
            return Err(deny(format!("the pod has a volume {} already", quoted(name))));
        }
    }
    let mounts = objects(pod, annotation::USER_MOUNTS)?;
    let mut paths = BTreeSet::from([FOLDER, TOKEN_FOLDER]);
    for mount in &mounts {
        let deny = |problem| refused(pod, annotation::USER_MOUNTS, problem);
        let name = text(mount, "name").ok_or_else(|| deny("a mount has no `name`".to_owned()))?;
        if !names.contains(name) {
            return Err(deny(format!("the pod has no volume {}", quoted(name))));
        }
        let path = text(mount, "mountPath")
            .filter(|path| path.starts_with('/'))
            .ok_or_else(|| deny("a mount has no `mountPath` that begins with `/`".to_owned()))?;
        // Another way to write the same place would hide what is mounted there.
        let is_detour = |part: &str| matches!(part, "" | "." | "..");
        if path.trim_end_matches('/').split('/').skip(1).any(is_detour) {
            return Err(deny(format!("write {} without empty parts, `.` and `..`", quoted(path))));
        }
        if path.trim_end_matches('/').is_empty() {
            return Err(deny("a mount at `/` hides the sidecar's files".to_owned()));
        }
        let ours = [FOLDER, TOKEN_FOLDER]
            .iter()
            .filter_map(|folder| path.strip_prefix(folder))
            .any(|rest| rest.starts_with('/'));
        if ours || !paths.insert(path.trim_end_matches('/')) {
            return Err(deny(format!("something is mounted at {} already", quoted(path))));
        }
    }
    let objects = |list: Vec<Map<String, Value>>| list.into_iter().map(Value::Object).collect();
    Ok(Volumes { sharing: sharing(pod, around)?, added: objects(added), mounts: objects(mounts) })
}

/// An annotation's list of objects.
fn objects(pod: Pod<'_>, key: &str) -> Result<Vec<Map<String, Value>>, Denial> {
    let list = read(pod, key, REASON, |text| {
        serde_json::from_str(text)
            .map_err(|error| format!("expected a JSON array of objects: {error}"))
    })?;
    Ok(list.unwrap_or_default())
}

fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
}

fn refused(pod: Pod<'_>, key: &str, problem: String) -> Denial {
    match pod.annotation(key) {
        Ok(value) => Denial::annotation(REASON, key, value.unwrap_or_default(), problem),
        Err(error) => error.into(),
    }
}

/// The containers that get our volume.
fn sharing(pod: Pod<'_>, around: &Surroundings<'_>) -> Result<Vec<String>, Denial> {
    let key = annotation::MOUNT_VOLUME;
    let Some(list) = pod.annotation(key)? else { return Ok(Vec::new()) };
    let mut pointers = Vec::new();
    for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let Some(container) = around.containers.iter().find(|c| c.name == name) else {
            let there: Vec<_> = around.containers.iter().map(|c| c.name).collect();
            let problem =
                format!("no container is named {}: there are {}", quoted(name), there.join(", "));
            return Err(refused(pod, key, problem));
        };
        if container.mounts_at(FOLDER)? {
            let problem = format!("container `{name}` has something mounted at {FOLDER} already");
            return Err(refused(pod, key, problem));
        }
        let pointer = container.pointer();
        if !pointers.contains(&pointer) {
            pointers.push(pointer);
        }
    }
    Ok(pointers)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plan::tests::plan_alone;
    use crate::policy::tests::policy;

    fn planned(annotations: &Value) -> Result<Volumes, Denial> {
        let pod = json!({"metadata": {"annotations": annotations}, "spec": {
            "volumes": [{"name": "tls"}],
            "containers": [
                {"name": "app"}, {"name": "log"},
                {"name": "full", "volumeMounts": [{"name": "tls", "mountPath": "/consul/connect-inject/"}]},
            ],
        }});
        plan_alone(&pod, &policy()).map(|plan| plan.volumes)
    }

    #[test]
    fn volumes_and_mounts_are_passed_on_as_they_are() {
        let volume = json!({"name": "more", "ephemeral": {"of a later release": 1}});
        let mount = json!({"name": "more", "mountPath": "/more", "recursiveReadOnly": "Enabled"});
        let volumes = planned(&json!({
            annotation::USER_VOLUMES: json!([volume]).to_string(),
            annotation::USER_MOUNTS: json!([mount, {"name": "tls", "mountPath": "/tls"}]).to_string(),
            annotation::MOUNT_VOLUME: "log, app,app",
        }))
        .unwrap();
        assert_eq!(volumes.added, [volume]);
        assert_eq!(volumes.mounts[0], mount);
        assert_eq!(volumes.sharing, ["/spec/containers/1", "/spec/containers/0"]);
    }

    #[test]
    fn what_the_api_server_refuses_is_denied() {
        for (key, value, problem) in [
            (annotation::USER_VOLUMES, "", "a JSON array"),
            (annotation::USER_VOLUMES, "[1]", "a JSON array"),
            (annotation::USER_VOLUMES, "[{}]", "has no `name`"),
            (annotation::USER_VOLUMES, r#"[{"name":"tls"}]"#, "volume `tls` already"),
            (annotation::USER_VOLUMES, r#"[{"name":"a"},{"name":"a"}]"#, "volume `a` already"),
            (annotation::USER_VOLUMES, r#"[{"name":"consul-connect-inject-data"}]"#, "already"),
            (annotation::USER_MOUNTS, "{}", "a JSON array"),
            (annotation::USER_MOUNTS, r#"[{"mountPath":"/a"}]"#, "has no `name`"),
            (annotation::USER_MOUNTS, r#"[{"name":"x","mountPath":"/a"}]"#, "no volume `x`"),
            (annotation::USER_MOUNTS, r#"[{"name":"tls"}]"#, "no `mountPath`"),
            (annotation::USER_MOUNTS, r#"[{"name":"tls","mountPath":"a"}]"#, "no `mountPath`"),
            (annotation::USER_MOUNTS, r#"[{"name":"tls","mountPath":"/"}]"#, "hides"),
            (
                annotation::USER_MOUNTS,
                r#"[{"name":"tls","mountPath":"/consul/connect-inject/x"}]"#,
                "already",
            ),
            (
                annotation::USER_MOUNTS,
                r#"[{"name":"tls","mountPath":"/consul/service-account/"}]"#,
                "already",
            ),
            (
                annotation::USER_MOUNTS,
                r#"[{"name":"tls","mountPath":"/consul//connect-inject"}]"#,
                "without empty parts",
            ),
            (
                annotation::USER_MOUNTS,
                r#"[{"name":"tls","mountPath":"/x/../consul/connect-inject"}]"#,
                "without empty parts",
            ),
            (
                annotation::USER_MOUNTS,
                r#"[{"name":"tls","mountPath":"/a"},{"name":"tls","mountPath":"/a/"}]"#,
                "at `/a/` already",
            ),
            (annotation::MOUNT_VOLUME, "ap", "there are app, log, full"),
            (annotation::MOUNT_VOLUME, "full", "mounted at /consul/connect-inject already"),
        ] {
            let denial = planned(&json!({key: value})).unwrap_err();
            assert_eq!(denial.reason, Reason::InvalidVolumes);
            assert!(denial.message.contains(problem), "{value}: {}", denial.message);
        }
    }
}
