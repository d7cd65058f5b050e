//! The objects that are added to a pod.
//!
//! - [`pod`]: volumes and pull secrets
//! - [`application`]: variables, mounts and hooks of the user's containers
//! - [`init`]: the container that registers the pod
//! - [`redirect`]: the container that loads or verifies the redirect rules
//! - [`sidecar`]: the containers that run Envoy
//! - [`container`]: the type of these containers
//! - [`fields`]: what they share

mod application;
mod container;
mod fields;
mod init;
mod pod;
mod redirect;
mod sidecar;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use application::{shared_mount, sleep, variables};
pub(crate) use init::init_container;
pub(crate) use pod::{pull_secret, token_volume, volume};
pub(crate) use redirect::redirect;
pub(crate) use sidecar::sidecars;
