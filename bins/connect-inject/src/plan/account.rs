//! The service account, by which a pod logs in if there are ACLs.

use super::Service;
use crate::annotation;
use crate::json::quoted;
use crate::outcome::{Denial, Reason};
use crate::pod::Pod;

/// Refuses a pod that could not log in for its services: an auth method gives a
/// token for the service that is named as the account. So there can be only one.
pub(super) fn refuse(pod: Pod<'_>, service: &Service) -> Result<(), Denial> {
    let account = ["serviceAccountName", "serviceAccount"]
        .into_iter()
        .filter_map(|field| pod.spec(field)?.as_str())
        .find(|name| !name.is_empty())
        // That of a pod that names none.
        .unwrap_or("default");
    let Some((service, _)) = service.each().find(|(name, _)| *name != account) else {
        return Ok(());
    };
    let problem = format!(
        "the pod's service account {} is not named as its service {}, and with ACLs on its token \
         is good for no other: set `serviceAccountName: {service}`, or annotation `{}`",
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
    use crate::policy::Policy;
    use crate::policy::tests::policy;
    use crate::policy::tests::policy_of;

    #[test]
    fn the_account_is_named_as_the_service() {
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
