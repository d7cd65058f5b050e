//! Native sidecars start before the application and exit after it.

use cluster::client::{Namespace, text};
use serde_json::{Value, json};

use crate::support::{
    ASK, Kept, client, in_container_mode, job_of, restarts, server, sharing, shell, status,
    terminated,
};

/// The application's first command sends a request to its upstream, and so does its last
/// one: after its preStop hook, when the pod is deregistered.
#[test]
fn the_application_can_use_its_upstreams_from_start_to_exit() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("lasting").unwrap();
    namespace.apply(&server("lasting", "hello").to_string()).unwrap();
    namespace.await_condition("pod/lasting", "Ready").unwrap();
    cluster.await_instances("lasting", 1).unwrap();
    let mut pod = client("lasting");
    let line = format!(
        "{ASK} > /tmp/asked && mv /tmp/asked /tmp/first || exit 1; \
         trap '{ASK} > /dev/termination-log; exit $?' TERM; sleep 1000000 & wait"
    );
    pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", line]);
    let kept = Kept::apply(&namespace, pod);
    namespace.await_condition("pod/lasting-client", "Ready").unwrap();
    cluster.await_instances("lasting-client", 1).unwrap();
    let mut first = String::new();
    harness::until("the answer to the first command", || {
        let read = shell(&namespace, "lasting-client", "lasting-client", "cat /tmp/first");
        first = read.unwrap_or_default();
        !first.is_empty()
    })
    .unwrap();
    assert_eq!(first.trim(), "hello");
    assert_eq!(restarts(&namespace, "lasting-client", "lasting-client").unwrap(), 0);

    let ran = |container: &str| status(&namespace, "lasting-client", container).unwrap();
    let (init, sidecar, application) =
        (ran("consul-connect-inject-init"), ran("envoy-sidecar"), ran("lasting-client"));
    // Times are RFC 3339, in UTC and to the second, so they sort as strings.
    let since = |status: &Value| text(&status["state"]["running"]["startedAt"]).to_owned();
    assert_eq!(init["state"]["terminated"]["exitCode"], 0);
    assert!(text(&init["state"]["terminated"]["finishedAt"]) <= since(&sidecar).as_str());
    assert!(since(&sidecar) <= since(&application));

    namespace.kubectl(&["delete", "pod/lasting-client", "--wait=false"]).unwrap();
    let application = terminated(&namespace, "lasting-client", "lasting-client").unwrap();
    let sidecar = terminated(&namespace, "lasting-client", "envoy-sidecar").unwrap();
    assert_eq!(application["exitCode"], 0, "{application:#}");
    assert_eq!(text(&application["message"]).trim(), "hello", "{application:#}");
    assert_eq!(sidecar["exitCode"], 0, "{sidecar:#}");
    assert!(text(&application["finishedAt"]) <= text(&sidecar["finishedAt"]));
    assert_eq!(restarts(&namespace, "lasting-client", "envoy-sidecar").unwrap(), 0);
    cluster.await_instances("lasting-client", 0).unwrap();
    drop(kept);
}

/// A Job's pod that sends a request to `jobs` and then runs a shell line.
fn worker(service: &str, line: &str) -> Value {
    let mut pod = client("jobs");
    pod["metadata"]["annotations"]["consul.hashicorp.com/connect-service"] = json!(service);
    pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", format!("{ASK} && {line}")]);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(10);
    pod["spec"]["restartPolicy"] = json!("Never");
    pod
}

fn pod_of(namespace: &Namespace<'_>, job: &str) -> String {
    let pods = namespace.pods(&format!("batch.kubernetes.io/job-name={job}")).unwrap();
    assert_eq!(pods.len(), 1, "{pods:#?}");
    text(&pods[0]["metadata"]["name"]).to_owned()
}

/// These pods need no change for a sidecar: no wrapper, no command that stops it.
#[test]
fn jobs_complete_with_their_commands_and_leave_no_service() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("jobs").unwrap();
    namespace.apply(&server("jobs", "hello").to_string()).unwrap();
    namespace.await_condition("pod/jobs", "Ready").unwrap();
    cluster.await_instances("jobs", 1).unwrap();

    let done = worker("done", "exit 0");
    let mut retried = worker("retried", "if [ ! -e /kept/1 ]; then touch /kept/1; exit 1; fi");
    retried["spec"]["restartPolicy"] = json!("OnFailure");
    retried["spec"]["volumes"] = json!([{"name": "kept", "emptyDir": {}}]);
    retried["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "kept", "mountPath": "/kept"}]);
    let mut late = job_of("late", &worker("late", "trap 'exit 0' TERM; sleep 1000000 & wait"));
    late["spec"]["activeDeadlineSeconds"] = json!(30);
    let cron = json!({
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "cron"},
        "spec": {
            "schedule": "* * * * *",
            "concurrencyPolicy": "Forbid",
            "jobTemplate": {"spec": job_of("cron", &worker("cron", "exit 0"))["spec"]},
        },
    });
    let jobs = json!({"apiVersion": "v1", "kind": "List", "items": [
        job_of("done", &done),
        job_of("failed", &worker("failed", "exit 42")),
        job_of("retried", &retried),
        late,
        cron,
    ]});
    namespace.apply(&jobs.to_string()).unwrap();

    for (job, condition) in
        [("done", "Complete"), ("failed", "Failed"), ("retried", "Complete"), ("late", "Failed")]
    {
        namespace.await_condition(&format!("job/{job}"), condition).unwrap();
    }
    let ended = |job: &str, container: &str| {
        terminated(&namespace, &pod_of(&namespace, job), container).unwrap()["exitCode"].clone()
    };
    for (job, code) in [("done", 0), ("failed", 42), ("retried", 0)] {
        assert_eq!(ended(job, "jobs-client"), code, "{job}");
        assert_eq!(ended(job, "envoy-sidecar"), 0, "{job}");
    }
    let pod = pod_of(&namespace, "retried");
    assert_eq!(restarts(&namespace, &pod, "jobs-client").unwrap(), 1);
    assert_eq!(restarts(&namespace, &pod, "envoy-sidecar").unwrap(), 0);

    // A CronJob starts at the next full minute.
    let made = "--for=jsonpath={.status.lastSuccessfulTime}";
    namespace.kubectl(&["wait", "cronjob/cron", made, "--timeout=120s"]).unwrap();
    namespace.kubectl(&["delete", "cronjob/cron"]).unwrap();
    for service in ["done", "failed", "retried", "late", "cron"] {
        cluster.await_instances(service, 0).unwrap();
    }
}

/// For example, a database migration. The sidecar starts before the user's init containers.
#[test]
fn an_init_container_can_use_its_upstreams() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("migrated").unwrap();
    namespace.apply(&server("database", "hello").to_string()).unwrap();
    namespace.await_condition("pod/database", "Ready").unwrap();
    cluster.await_instances("database", 1).unwrap();
    let mut pod = client("database");
    let line = "curl --silent --fail http://$DATABASE_CONNECT_SERVICE_HOST:$DATABASE_CONNECT_SERVICE_PORT/";
    pod["spec"]["initContainers"] = json!([{
        "name": "migrate",
        "image": "tutum/curl",
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", line],
    }]);
    namespace.apply(&pod.to_string()).unwrap();
    namespace.await_condition("pod/database-client", "Ready").unwrap();
    let said = namespace.kubectl(&["logs", "database-client", "--container=migrate"]).unwrap();
    assert_eq!(said.trim(), "hello");
    assert_eq!(restarts(&namespace, "database-client", "migrate").unwrap(), 0);

    // In container mode Envoy starts after it, and the admission returns a warning.
    let pod = in_container_mode(pod).to_string();
    let create = ["create", "--filename=-", "--dry-run=server"];
    let said = namespace.try_kubectl(&create, &pod.replace("database-client", "early")).unwrap();
    let said = String::from_utf8_lossy(&said.stderr);
    assert!(said.contains("Warning: ") && said.contains("migrate"), "{said}");
}
