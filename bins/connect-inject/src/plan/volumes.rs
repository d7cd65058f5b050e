//! Additional volumes and mounts: the user's in the sidecar, and ours in the user's
//! containers.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{Surroundings, read};
use crate::annotation;
use crate::json::quoted;
use crate::names::{FOLDER, LOG_VOLUME, TOKEN_FOLDER, TOKEN_VOLUME, VOLUME};
use crate::outcome::{Denial, Reason};
use crate::pod::Pod;

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Volumes {
    /// Volumes to add to the pod, as the annotation has them.
    pub(crate) added: Vec<Value>,
    /// Mounts of the sidecar, as the annotation has them.
    pub(crate) mounts: Vec<Value>,
    /// JSON pointers of the containers that get our volume.
    pub(crate) sharing: Vec<String>,
}

const REASON: Reason = Reason::InvalidVolumes;

pub(super) const OURS: [&str; 3] = [VOLUME, TOKEN_VOLUME, LOG_VOLUME];

/// Reads the annotations.
pub(super) fn volumes(pod: Pod<'_>, around: &Surroundings<'_>) -> Result<Volumes, Denial> {
    let mut names: BTreeSet<&str> = pod.volume_names()?.collect();
    let added = objects(pod, annotation::USER_VOLUMES)?;
    for volume in &added {
        let deny = |problem| refused(pod, annotation::USER_VOLUMES, problem);
        let name = text(volume, "name").ok_or_else(|| deny("a volume has no `name`".to_owned()))?;
        if OURS.contains(&name) || !names.insert(name) {
            return Err(deny(format!("the pod has a volume {} already", quoted(name))));
        }
    }
    let mounts = objects(pod, annotation::USER_MOUNTS)?;
    let mut paths = BTreeSet::from([FOLDER, TOKEN_FOLDER]);
    let logs = pod.annotation(annotation::ACCESS_LOGS)?.filter(|folder| !folder.is_empty());
    if let Some(folder) = logs {
        claim(folder, &mut paths)
            .map_err(|problem| refused(pod, annotation::ACCESS_LOGS, problem))?;
    }
    for mount in &mounts {
        let deny = |problem| refused(pod, annotation::USER_MOUNTS, problem);
        let name = text(mount, "name").ok_or_else(|| deny("a mount has no `name`".to_owned()))?;
        if !names.contains(name) {
            return Err(deny(format!("the pod has no volume {}", quoted(name))));
        }
        let path = text(mount, "mountPath")
            .filter(|path| path.starts_with('/'))
            .ok_or_else(|| deny("a mount has no `mountPath` that begins with `/`".to_owned()))?;
        claim(path, &mut paths).map_err(deny)?;
    }
    let objects = |list: Vec<Map<String, Value>>| list.into_iter().map(Value::Object).collect();
    let (mut added, mut mounts): (Vec<_>, Vec<_>) = (objects(added), objects(mounts));
    if let Some(folder) = logs {
        added.push(json!({"name": LOG_VOLUME, "emptyDir": {}}));
        mounts.push(json!({"name": LOG_VOLUME, "mountPath": folder}));
    }
    Ok(Volumes { sharing: sharing(pod, around)?, added, mounts })
}

/// Reserves a mount path of the sidecar, so that no other mount hides it.
fn claim<'p>(path: &'p str, paths: &mut BTreeSet<&'p str>) -> Result<(), String> {
    if !path.starts_with('/') {
        return Err("expected a path that begins with `/`".to_owned());
    }
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() {
        return Err("a mount at `/` hides the sidecar's files".to_owned());
    }
    // A different spelling of a path would escape this check.
    if trimmed.split('/').skip(1).any(|part| matches!(part, "" | "." | "..")) {
        return Err(format!("write {} without empty parts, `.` and `..`", quoted(path)));
    }
    let ours = [FOLDER, TOKEN_FOLDER]
        .iter()
        .filter_map(|folder| path.strip_prefix(folder))
        .any(|rest| rest.starts_with('/'));
    if ours || !paths.insert(trimmed) {
        return Err(format!("something is mounted at {} already", quoted(path)));
    }
    Ok(())
}

/// Reads a JSON array of objects from an annotation.
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

/// The containers that `connect-inject-mount-volume` lists, as JSON pointers.
fn sharing(pod: Pod<'_>, around: &Surroundings<'_>) -> Result<Vec<String>, Denial> {
    let key = annotation::MOUNT_VOLUME;
    let Some(list) = pod.annotation(key)? else { return Ok(Vec::new()) };
    let mut pointers = Vec::new();
    for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let Some(container) = around.containers.iter().find(|c| c.name == name) else {
            let there: Vec<_> = around.containers.iter().map(|c| c.name).collect();
            let problem =
                format!("no container is named {}: the pod has {}", quoted(name), there.join(", "));
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

    /// Access logs in a file (proxy-defaults) require a directory that Envoy may write to.
    #[test]
    fn access_logs_get_a_directory_that_envoy_may_write_to() {
        let key = annotation::ACCESS_LOGS;
        let volumes = planned(&json!({key: "/var/log/envoy"})).unwrap();
        assert_eq!(volumes.added, [json!({"name": LOG_VOLUME, "emptyDir": {}})]);
        assert_eq!(volumes.mounts, [json!({"name": LOG_VOLUME, "mountPath": "/var/log/envoy"})]);
        let mounts = r#"[{"name":"tls","mountPath":"/var/log/envoy/"}]"#;
        let both = json!({key: "/var/log/envoy", annotation::USER_MOUNTS: mounts});
        assert!(planned(&both).unwrap_err().message.contains("already"));
    }

    #[test]
    fn volumes_that_the_api_server_rejects_are_denied() {
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
            (annotation::ACCESS_LOGS, "logs", "begins with `/`"),
            (annotation::ACCESS_LOGS, "/", "hides"),
            (annotation::ACCESS_LOGS, "/consul/connect-inject", "already"),
            (annotation::MOUNT_VOLUME, "ap", "the pod has app, log, full"),
            (annotation::MOUNT_VOLUME, "full", "mounted at /consul/connect-inject already"),
        ] {
            let denial = planned(&json!({key: value})).unwrap_err();
            assert_eq!(denial.reason, Reason::InvalidVolumes);
            assert!(denial.message.contains(problem), "{value}: {}", denial.message);
        }
    }
}
