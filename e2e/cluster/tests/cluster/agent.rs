//! The node's agent loses everything that it knew.

use crate::support::{alone, await_answer, client, server, set_of};

/// Pain 5: the agent's container ends and starts anew, with nothing of what was
/// registered. Nobody touches a pod, and all is there again.
#[test]
fn a_wiped_agent_has_its_registrations_back() {
    let Some((cluster, _alone)) = alone() else { return };
    let namespace = cluster.namespace("wiped").unwrap();
    namespace.apply(&set_of("Deployment", &server("wiped", "hello"), 2).to_string()).unwrap();
    namespace.apply(&client("wiped").to_string()).unwrap();
    namespace.await_rollout("deployment/wiped").unwrap();
    namespace.await_condition("pod/wiped-client", "Ready").unwrap();
    cluster.await_instances("wiped", 2).unwrap();
    await_answer(&namespace, "wiped-client", "hello").unwrap();

    let starts = || {
        let agent = cluster.agent()?;
        let statuses = agent["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let consul = statuses.iter().find(|status| status["name"] == "consul").cloned();
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(
            consul.and_then(|status| status["restartCount"].as_u64()).unwrap_or_default(),
        )
    };
    let before = starts().unwrap();
    let agent = cluster.agent().unwrap();
    let (home, name) = (&agent["metadata"]["namespace"], &agent["metadata"]["name"]);
    let (home, name) = (home.as_str().unwrap(), name.as_str().unwrap());
    // Its data are in the container's own layer, which ends with it.
    let end = ["--namespace", home, "exec", name, "--container", "consul", "--", "kill", "1"];
    cluster.kubectl(&end, "").unwrap();
    harness::until("the agent's restart", || starts().is_ok_and(|now| now > before)).unwrap();

    cluster.await_instances("wiped", 2).unwrap();
    cluster.await_instances("wiped-client", 1).unwrap();
    await_answer(&namespace, "wiped-client", "hello").unwrap();
    for pod in namespace.pods("app=wiped").unwrap() {
        for status in pod["status"]["containerStatuses"].as_array().unwrap() {
            assert_eq!(status["restartCount"], 0, "{status:#}");
        }
    }
}
