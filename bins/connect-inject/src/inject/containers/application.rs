//! What the user's containers get.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::{EnvVar, LifecycleHandler, SleepAction, VolumeMount};

use super::fields::mount;
use crate::names::VARIABLE;
use crate::plan::Plan;

/// Variables with the address and port of each upstream, for the application. If two upstreams
/// have the same variables, the first takes precedence.
pub(crate) fn variables(plan: &Plan) -> Vec<EnvVar> {
    let mut variables: Vec<EnvVar> = Vec::new();
    for (i, upstream) in plan.upstreams.iter().enumerate() {
        let dotted = plan.dotted_stems.get(i).cloned().flatten();
        let host = match upstream.bind_address() {
            IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            address => address,
        };
        for stem in std::iter::once(upstream.variable_stem()).chain(dotted) {
            for (name, value) in [
                (format!("{stem}{VARIABLE}HOST"), host.to_string()),
                (format!("{stem}{VARIABLE}PORT"), upstream.local_bind_port.to_string()),
            ] {
                if variables.iter().all(|earlier| earlier.name != name) {
                    variables.push(EnvVar { name, value: Some(value), ..EnvVar::default() });
                }
            }
        }
    }
    variables
}

/// The read-only mount of our volume in an application's container.
pub(crate) fn shared_mount() -> VolumeMount {
    VolumeMount { read_only: Some(true), ..mount() }
}

/// A preStop hook that sleeps, for an application's container.
pub(crate) fn sleep(seconds: u32) -> LifecycleHandler {
    LifecycleHandler {
        sleep: Some(SleepAction { seconds: seconds.into() }),
        ..LifecycleHandler::default()
    }
}
