//! The container that loads or verifies the redirect rules.

use k8s_openapi::api::core::v1::{Capabilities, Container, SecurityContext};

use super::fields::{from_field, injected, log, resources};
use crate::names::{DOWNWARD, REDIRECT};
use crate::plan::{Plan, Transparent};
use crate::policy::{Policy, RedirectBy};

/// The container that loads the redirect rules. It is the only one with a capability and,
/// because Kubernetes gives capabilities only to root, the only one that runs as root. If
/// `connect-cni` loads the rules, the container only verifies them, as an ordinary user without
/// capabilities.
pub(crate) fn redirect(transparent: &Transparent, plan: &Plan, policy: &Policy) -> Container {
    let host = DOWNWARD.iter().filter(|(name, _)| *name == "HOST_IP");
    let host = host.map(|(name, field)| from_field(name, field));
    let base = injected(REDIRECT, &policy.init_image, policy);
    let (command, user, capability) = match transparent.by {
        RedirectBy::InitContainer => ("apply", 0, Some(vec!["NET_ADMIN".to_owned()])),
        RedirectBy::Cni => ("verify", transparent.witness(), None),
    };
    Container {
        command: Some(vec!["/connect-redirect".to_owned(), command.to_owned()]),
        args: Some(transparent.arguments()),
        env: Some(host.chain(log(policy)).collect()),
        resources: resources(&plan.init_resources),
        volume_mounts: None,
        security_context: base.security_context.map(|context| SecurityContext {
            run_as_user: Some(user),
            run_as_group: Some(user),
            run_as_non_root: Some(user != 0),
            capabilities: Some(Capabilities {
                add: capability,
                drop: Some(vec!["ALL".to_owned()]),
            }),
            ..context
        }),
        ..base
    }
}
