//! Fields that the injected containers share.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, EnvVar, EnvVarSource, ExecAction, LifecycleHandler,
    ObjectFieldSelector, ResourceRequirements, SeccompProfile, SecurityContext, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::names::{FOLDER, TOKEN_FOLDER, TOKEN_VOLUME, USER, VOLUME};
use crate::policy::Policy;
use crate::values::quantity::Resources;

/// The fields that all injected containers share. The security context passes PodSecurity
/// level `restricted`.
///
/// Source: "Pod Security Standards" of the Kubernetes documentation.
pub(super) fn injected(name: &str, image: &str, policy: &Policy) -> Container {
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

pub(super) fn mount() -> VolumeMount {
    VolumeMount { name: VOLUME.to_owned(), mount_path: FOLDER.to_owned(), ..VolumeMount::default() }
}

/// The mounts of the injected containers. The sidecar needs the service account token, too: it
/// logs in again if its ACL token has been deleted.
pub(super) fn mounts(policy: &Policy) -> Vec<VolumeMount> {
    let token = policy.acl_auth_method.is_some().then(|| VolumeMount {
        name: TOKEN_VOLUME.to_owned(),
        mount_path: TOKEN_FOLDER.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    });
    [mount()].into_iter().chain(token).collect()
}

/// An environment variable that is set from a field of the pod.
pub(super) fn from_field(name: &str, field: &str) -> EnvVar {
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

pub(super) fn exec(command: Vec<String>) -> LifecycleHandler {
    LifecycleHandler {
        exec: Some(ExecAction { command: Some(command) }),
        ..LifecycleHandler::default()
    }
}

/// Variables that set level and format of the injected containers' logs.
pub(super) fn log(policy: &Policy) -> impl Iterator<Item = EnvVar> {
    [("CONNECT_LOG_LEVEL", &policy.pod_log_level), ("CONNECT_LOG_FORMAT", &policy.pod_log_format)]
        .into_iter()
        .filter_map(|(name, value)| Some(variable(name.to_owned(), value.0.clone()?)))
}

pub(super) fn resources(resources: &Resources) -> Option<ResourceRequirements> {
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

/// Escapes a text, so that it reaches the process unchanged: in commands, arguments and
/// variables, the kubelet expands `$(NAME)` and replaces `$$` with a single `$`.
///
/// Source: "Define a Command and Arguments for a Container" of the Kubernetes
/// documentation.
pub(super) fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

pub(super) fn variable(name: String, value: String) -> EnvVar {
    EnvVar { name, value: Some(value), ..EnvVar::default() }
}
