//! The container that loads or verifies the redirect rules.

use k8s_openapi::api::core::v1::{Capabilities, SecurityContext};

use super::container::{Container, Part};
use super::fields::{host_ip, injected, log, resources, security};
use crate::names::REDIRECT;
use crate::plan::{Plan, Transparent};
use crate::policy::{Policy, RedirectBy};

/// The container that loads the redirect rules. It is the only one with a capability and,
/// because Kubernetes gives capabilities only to root, the only one that runs as root. If
/// `connect-cni` loads the rules, the container only verifies them, as an ordinary user without
/// capabilities.
pub(crate) fn redirect<'p>(
    transparent: &Transparent,
    plan: &'p Plan,
    policy: &'p Policy,
) -> Container<'p> {
    let (command, user, capability) = match transparent.by {
        RedirectBy::InitContainer => ("apply", 0, Some(vec!["NET_ADMIN".to_owned()])),
        RedirectBy::Cni => ("verify", transparent.witness(), None),
    };
    let base = security(Some(user));
    Container {
        command: vec!["/connect-redirect".into(), command.into()],
        args: transparent.arguments().into_iter().map(Into::into).collect(),
        env: host_ip().chain(log(policy)).collect(),
        resources: resources(&plan.init_resources),
        volume_mounts: Vec::new(),
        security_context: Some(Part::Own(SecurityContext {
            run_as_non_root: Some(user != 0),
            capabilities: base
                .capabilities
                .map(|capabilities| Capabilities { add: capability, ..capabilities }),
            ..base
        })),
        ..injected(REDIRECT, &policy.init_image, policy)
    }
}
