//! An injected container as JSON. Most of it is the same in every pod: that is written once
//! ([`Part::Fixed`]). The rest is borrowed. The types of `k8s_openapi` own each string, and to
//! fill and write them took an eighth of a review's time.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerPort, LifecycleHandler, Probe, SecurityContext};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

/// The fields of a container that the injector sets.
///
/// Source: `Container` of the Kubernetes API reference.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Container<'p> {
    pub(super) name: Cow<'p, str>,
    pub(super) image: &'p str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) image_pull_policy: Option<&'p str>,
    pub(super) command: Vec<Cow<'p, str>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) args: Vec<Cow<'p, str>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) env: Vec<Part<Variable<'p>>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) ports: Vec<ContainerPort>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resources: Option<Requirements<'p>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) volume_mounts: Vec<Part<&'p Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lifecycle: Option<Hooks>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) startup_probe: Option<Probe>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) liveness_probe: Option<Probe>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) readiness_probe: Option<Part<Probe>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) restart_policy: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) security_context: Option<Part<SecurityContext>>,
    pub(super) termination_message_policy: &'static str,
}

/// Part of a container.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Part<T> {
    /// The same in every pod.
    Fixed(&'static Fixed),
    Own(T),
}

/// JSON that is the same in every pod.
pub(super) type Fixed = Box<RawValue>;

/// Writes JSON that is the same in every pod.
pub(super) fn fixed(value: &impl Serialize) -> Fixed {
    to_raw_value(value).expect("the types of Kubernetes have string keys only")
}

/// Commands at a container's start and end.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Hooks {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) post_start: Option<LifecycleHandler>,
    pub(super) pre_stop: Part<LifecycleHandler>,
}

/// An environment variable.
#[derive(Debug, Serialize)]
pub(super) struct Variable<'p> {
    pub(super) name: &'static str,
    pub(super) value: Cow<'p, str>,
}

/// Resources by name.
#[derive(Debug, Default, Serialize)]
pub(super) struct Requirements<'p> {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) limits: BTreeMap<&'static str, &'p str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) requests: BTreeMap<&'static str, &'p str>,
}
