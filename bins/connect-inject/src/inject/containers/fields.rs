//! Fields that the injected containers share.

use std::borrow::Cow;
use std::sync::LazyLock;

use k8s_openapi::api::core::v1::{
    Capabilities, EnvVar, EnvVarSource, ExecAction, LifecycleHandler, ObjectFieldSelector,
    SeccompProfile, SecurityContext, VolumeMount,
};

use super::container::{Container, Fixed, Part, Requirements, Variable, fixed};
use crate::names::{DOWNWARD, FOLDER, STATUS_VARIABLE, TOKEN_FOLDER, TOKEN_VOLUME, USER, VOLUME};
use crate::policy::Policy;
use crate::values::quantity::Resources;

/// The fields that all injected containers share.
pub(super) fn injected<'p>(
    name: impl Into<Cow<'p, str>>,
    image: &'p str,
    policy: &'p Policy,
) -> Container<'p> {
    static ORDINARY: LazyLock<Fixed> = LazyLock::new(|| fixed(&security(Some(USER))));
    // The range of user ids that OpenShift assigns depends on the namespace.
    static OPENSHIFT: LazyLock<Fixed> = LazyLock::new(|| fixed(&security(None)));
    Container {
        name: name.into(),
        image,
        image_pull_policy: policy.image_pull.as_deref(),
        volume_mounts: mounts(policy),
        security_context: Some(Part::Fixed(if policy.openshift { &OPENSHIFT } else { &ORDINARY })),
        // If a failed container wrote no termination message, `kubectl describe pod` shows the
        // end of its log.
        termination_message_policy: "FallbackToLogsOnError",
        ..Container::default()
    }
}

/// A security context that passes PodSecurity level `restricted`. `user` is user and group.
///
/// Source: "Pod Security Standards" of the Kubernetes documentation.
pub(super) fn security(user: Option<i64>) -> SecurityContext {
    SecurityContext {
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
    }
}

pub(super) fn mount() -> VolumeMount {
    VolumeMount { name: VOLUME.to_owned(), mount_path: FOLDER.to_owned(), ..VolumeMount::default() }
}

/// The mounts of the injected containers. The sidecar needs the service account token, too: it
/// logs in again if its ACL token has been deleted.
fn mounts<T>(policy: &Policy) -> Vec<Part<T>> {
    static OURS: LazyLock<Fixed> = LazyLock::new(|| fixed(&mount()));
    static TOKEN: LazyLock<Fixed> = LazyLock::new(|| {
        fixed(&VolumeMount {
            name: TOKEN_VOLUME.to_owned(),
            mount_path: TOKEN_FOLDER.to_owned(),
            read_only: Some(true),
            ..VolumeMount::default()
        })
    });
    let token = policy.acl_auth_method.is_some().then_some(&TOKEN);
    [&OURS].into_iter().chain(token).map(|mount| Part::Fixed(mount)).collect()
}

/// Variables that tell a container which pod it belongs to.
pub(super) fn identity<'p>() -> impl Iterator<Item = Part<Variable<'p>>> {
    static VARIABLES: LazyLock<Vec<Fixed>> =
        LazyLock::new(|| DOWNWARD.iter().chain([&STATUS_VARIABLE]).map(from_field).collect());
    VARIABLES.iter().map(Part::Fixed)
}

/// The variable with the node's address.
pub(super) fn host_ip<'p>() -> impl Iterator<Item = Part<Variable<'p>>> {
    static VARIABLE: LazyLock<Option<Fixed>> =
        LazyLock::new(|| DOWNWARD.iter().find(|(name, _)| *name == "HOST_IP").map(from_field));
    VARIABLE.iter().map(Part::Fixed)
}

/// An environment variable that is set from a field of the pod.
fn from_field((name, field): &(&str, &str)) -> Fixed {
    fixed(&EnvVar {
        name: (*name).to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: (*field).to_owned(),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    })
}

pub(super) fn exec(command: Vec<String>) -> LifecycleHandler {
    LifecycleHandler {
        exec: Some(ExecAction { command: Some(command) }),
        ..LifecycleHandler::default()
    }
}

/// Variables that set level and format of the injected containers' logs.
pub(super) fn log(policy: &Policy) -> impl Iterator<Item = Part<Variable<'_>>> {
    [("CONNECT_LOG_LEVEL", &policy.pod_log_level), ("CONNECT_LOG_FORMAT", &policy.pod_log_format)]
        .into_iter()
        .filter_map(|(name, value)| Some(variable(name, value.as_deref()?)))
}

pub(super) fn resources(resources: &Resources) -> Option<Requirements<'_>> {
    let mut required = Requirements::default();
    for (name, bounds) in resources.each() {
        let of = [(&bounds.request, &mut required.requests), (&bounds.limit, &mut required.limits)];
        for (quantity, map) in of {
            map.extend(quantity.as_ref().map(|quantity| (name, quantity.text())));
        }
    }
    (!required.requests.is_empty() || !required.limits.is_empty()).then_some(required)
}

/// Escapes a text, so that it reaches the process unchanged: in commands, arguments and
/// variables, the kubelet expands `$(NAME)` and replaces `$$` with a single `$`.
///
/// Source: "Define a Command and Arguments for a Container" of the Kubernetes
/// documentation.
pub(super) fn literal<'t>(text: impl Into<Cow<'t, str>>) -> Cow<'t, str> {
    let text = text.into();
    if text.contains('$') { text.replace('$', "$$").into() } else { text }
}

pub(super) fn variable<'p>(
    name: &'static str,
    value: impl Into<Cow<'p, str>>,
) -> Part<Variable<'p>> {
    Part::Own(Variable { name, value: value.into() })
}
