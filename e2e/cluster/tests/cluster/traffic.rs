//! Requests that go on while pods come and go.

use std::process::{Command, Stdio};

use serde_json::json;

use crate::support::{ASK, await_answer, client, set_of, sharing, shell, shell_server};

/// A Deployment is rolled out twice while clients ask without a pause, and no
/// request fails. The application goes on serving for a few seconds after it is
/// told to end, which from Kubernetes 1.30 on the injector sees to by itself.
#[test]
fn no_request_fails_in_a_rollout() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("rolled").unwrap();
    let mut pod = shell_server("rolled", "one");
    pod["spec"]["containers"][0]["lifecycle"] =
        json!({"preStop": {"exec": {"command": ["sleep", "10"]}}});
    let mut deployment = set_of("Deployment", &pod, 2);
    deployment["spec"]["strategy"] = json!({"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}});
    // A pod is ready when its sidecar is: give Consul's checks time to pass.
    deployment["spec"]["minReadySeconds"] = json!(3);
    namespace.apply(&deployment.to_string()).unwrap();
    namespace.apply(&client("rolled").to_string()).unwrap();
    namespace.await_rollout("deployment/rolled").unwrap();
    namespace.await_condition("pod/rolled-client", "Ready").unwrap();
    cluster.await_instances("rolled", 2).unwrap();
    await_answer(&namespace, "rolled-client", "one").unwrap();

    let load = format!(
        "good=0; while [ ! -e /tmp/end ]; do \
         if {ASK} > /dev/null; then good=$((good + 1)); else echo \"curl: $?\"; fi; done; \
         echo \"good: $good\""
    );
    let clients: Vec<_> = (0..2)
        .map(|_| {
            Command::new("kubectl")
                .args(["--namespace", &namespace.name, "exec", "rolled-client"])
                .args(["--container", "rolled-client", "--", "sh", "-c", &load])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let rolled = ["two", "three"].iter().try_for_each(|text| {
        deployment["spec"]["template"]["spec"]["containers"][0]["args"][0] = json!(text);
        namespace.apply(&deployment.to_string())?;
        namespace.await_rollout("deployment/rolled")?;
        // The old ones are gone, and the last requests with them.
        cluster.await_instances("rolled", 2)?;
        await_answer(&namespace, "rolled-client", text)
    });
    shell(&namespace, "rolled-client", "rolled-client", "touch /tmp/end").unwrap();
    for client in clients {
        let output = client.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let good = said.trim().strip_prefix("good: ").and_then(|count| count.parse::<u32>().ok());
        assert!(good.is_some_and(|good| good > 0), "{said}{:?}", output.stderr);
    }
    rolled.unwrap();
}
