//! The service account with which a pod logs in if ACLs are enabled.

use super::Service;
use crate::annotation;
use crate::json::quoted;
use crate::outcome::{Denial, Reason};
use crate::pod::Pod;
use crate::policy::Policy;

/// Rejects a pod that could not log in for its services if ACLs are enabled: a token of an
/// auth method is valid for the service that has the account's name, so there can be only
/// one service.
pub(super) fn refuse(pod: Pod<'_>, service: &Service, policy: &Policy) -> Result<(), Denial> {
    if policy.acl_auth_method.is_none() {
        return Ok(());
    }
    let account = ["serviceAccountName", "serviceAccount"]
        .into_iter()
        .filter_map(|field| pod.spec(field)?.as_str())
        .find(|name| !name.is_empty())
        // The account of a pod that names none.
        .unwrap_or("default");
    let Some((service, _)) = service.each().find(|(name, _)| *name != account) else {
        return Ok(());
    };
    let problem = format!(
        "with ACLs, service account {} can register only the service of the same name, not {}: set \
         `serviceAccountName: {service}`, or annotation `{}`",
        quoted(account),
        quoted(service),
        annotation::SERVICE
    );
    Err(Denial::new(Reason::ServiceAccountMismatch, problem))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::tests::plan_alone;
    use crate::policy::tests::policy;
    use crate::policy::tests::policy_of;

    #[test]
    fn the_account_must_have_the_name_of_the_service() {
        let acls = policy_of(&["--acl-auth-method=k8s"]);
        let planned = |account: Value, policy: &Policy| {
            let mut pod = json!({"spec": {"containers": [{"name": "web"}]}});
            for (field, name) in account.as_object().unwrap() {
                pod["spec"][field] = name.clone();
            }
            plan_alone(&pod, policy).map_err(|denial| (denial.reason, denial.message))
        };
        for account in [
            json!({"serviceAccountName": "web"}),
            json!({"serviceAccount": "web"}),
            json!({"serviceAccountName": "web", "serviceAccount": "other"}),
        ] {
            assert!(planned(account, &acls).is_ok());
        }
        for (account, shown) in [
            (json!({}), "`default`"),
            (json!({"serviceAccountName": ""}), "`default`"),
            (json!({"serviceAccountName": "other", "serviceAccount": "web"}), "`other`"),
        ] {
            let (reason, message) = planned(account.clone(), &acls).unwrap_err();
            assert_eq!(reason, Reason::ServiceAccountMismatch);
            assert!(message.contains(shown) && message.contains("serviceAccountName: web"));
            assert!(planned(account, &policy()).is_ok(), "without ACLs");
        }
    }
}
