//! Effects of probes: containers restart when their liveness probe fails, and the sidecar's
//! readiness probe holds back traffic.

use std::time::Duration;

use cluster::client::text;
use serde_json::{Value, json};

use crate::helm::Release;
use crate::support::{
    ASK, annotate, await_answer, await_restarts, changes, client, deaf, in_container_mode,
    is_ready, ours, restarts, server, sharing, shell, shell_server, status,
};

#[test]
fn an_application_that_fails_its_liveness_probe_restarts_and_is_reachable_again() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("liveness").unwrap();
    let mut pod = shell_server("lively", "hello");
    pod["spec"]["containers"][0]["livenessProbe"] = json!({
        "exec": {"command": ["test", "!", "-e", "/tmp/sick"]},
        "periodSeconds": 1,
        "failureThreshold": 1,
        "timeoutSeconds": 30,
    });
    namespace.apply(&pod.to_string()).unwrap();
    namespace.apply(&client("lively").to_string()).unwrap();
    for pod in ["pod/lively", "pod/lively-client"] {
        namespace.await_condition(pod, "Ready").unwrap();
    }
    cluster.await_instances("lively", 1).unwrap();
    await_answer(&namespace, "lively-client", "hello").unwrap();

    shell(&namespace, "lively", "lively", "touch /tmp/sick").unwrap();
    assert_eq!(await_restarts(&namespace, "lively", "lively", 1).unwrap(), 1);
    cluster.await_instances("lively", 1).unwrap();
    await_answer(&namespace, "lively-client", "hello").unwrap();
    assert_eq!(restarts(&namespace, "lively", "envoy-sidecar").unwrap(), 0);
}

/// Envoy hangs, which only its probe detects.
#[test]
fn a_sidecar_that_hangs_restarts_and_is_reachable_again() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("hanging").unwrap();
    let mut pod = shell_server("hanging", "hello");
    pod["metadata"]["annotations"]["consul.hashicorp.com/sidecar-proxy-liveness-failure-seconds"] =
        json!("10");
    pod["spec"]["shareProcessNamespace"] = json!(true);
    // How long the kubelet waits for a process that can't exit.
    pod["spec"]["terminationGracePeriodSeconds"] = json!(10);
    namespace.apply(&pod.to_string()).unwrap();
    namespace.apply(&client("hanging").to_string()).unwrap();
    for pod in ["pod/hanging", "pod/hanging-client"] {
        namespace.await_condition(pod, "Ready").unwrap();
    }
    cluster.await_instances("hanging", 1).unwrap();
    await_answer(&namespace, "hanging-client", "hello").unwrap();
    let before = changes(cluster, "hanging-sidecar-proxy").unwrap();

    shell(&namespace, "hanging", "hanging", "kill -STOP $(pidof envoy)").unwrap();
    assert_eq!(await_restarts(&namespace, "hanging", "envoy-sidecar", 1).unwrap(), 1);
    harness::until("another registration", || {
        changes(cluster, "hanging-sidecar-proxy").is_ok_and(|now| now > before)
    })
    .unwrap();
    cluster.await_instances("hanging", 1).unwrap();
    await_answer(&namespace, "hanging-client", "hello").unwrap();
    assert_eq!(restarts(&namespace, "hanging", "hanging").unwrap(), 0);
}

/// A pod whose application does not listen on its service's port is not ready, and its events
/// say why; once it is ready, Consul sends traffic.
#[test]
fn a_pod_is_ready_when_consul_would_send_it_traffic() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("unheard").unwrap();
    let mut pods = [
        shell_server("unheard", "hello"),
        in_container_mode(shell_server("unheard-container", "hello")),
    ];
    for pod in &mut pods {
        annotate(pod, &[("connect-service-port", "9999")]);
        namespace.apply(&pod.to_string()).unwrap();
    }
    for name in ["unheard", "unheard-container"] {
        let mut described = String::new();
        harness::until_within(2 * harness::PATIENCE, "kubectl describe to name the port", || {
            described = namespace.kubectl(&["describe", "pod", name]).unwrap_or_default();
            described.contains("nothing in the pod listens on port 9999")
                && described.contains("connect-service-port")
        })
        .unwrap_or_else(|error| panic!("{error}: {described}"));
        let warning = || {
            let log = namespace.kubectl(&["logs", name, "--container=envoy-sidecar"]);
            log.is_ok_and(|log| log.contains("has listened on the service's port"))
        };
        harness::until("a warning in the sidecar's log", warning).unwrap();
        let of = |container: &str| status(&namespace, name, container).unwrap();
        let (sidecar, application) = (of("envoy-sidecar"), of(name));
        assert_eq!((&sidecar["started"], &sidecar["ready"]), (&json!(true), &json!(false)));
        assert_eq!(application["ready"], true, "{application:#}");
        assert!(!is_ready(&namespace.pod(name).unwrap()));
        let proxies = || cluster.passing(&format!("{name}-sidecar-proxy")).unwrap();
        assert!(proxies().is_empty(), "{:#?}", proxies());

        shell(&namespace, name, name, "httpd -p 9999 -h /tmp").unwrap();
        namespace.await_condition(&format!("pod/{name}"), "Ready").unwrap();
        assert_eq!(proxies().len(), 1, "a pod that is ready is in service");
        assert_eq!(restarts(&namespace, name, "envoy-sidecar").unwrap(), 0);
    }
}

/// A pod whose own readiness probe failed still got traffic.
#[test]
fn a_pod_whose_application_turns_unready_gets_no_traffic_until_it_is_back() {
    const PERIOD: Duration = Duration::from_secs(5);
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("moody").unwrap();
    for mut pod in
        [shell_server("moody", "hello"), in_container_mode(shell_server("moody-c", "hello"))]
    {
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 8080, "name": "web"}]);
        pod["spec"]["containers"][0]["readinessProbe"] = json!({
            "httpGet": {"path": "/ready", "port": "web"},
            "periodSeconds": PERIOD.as_secs(),
            "failureThreshold": 1,
        });
        let client = client(&name);
        let client_name = client["metadata"]["name"].as_str().unwrap().to_owned();
        namespace.apply(&pod.to_string()).unwrap();
        namespace.apply(&client.to_string()).unwrap();
        // The agent has a new output at once, the servers only when the status changes, too.
        let id = format!("_{name}_{name}-application");
        let is_told = || {
            let checks = cluster.consul("/v1/agent/checks").unwrap_or_default();
            let mut checks = checks.as_object().into_iter().flatten();
            checks.any(|(check, said)| {
                check.ends_with(&id) && text(&said["Output"]).contains("fails: HTTP status 404")
            })
        };
        let what = "Consul to know the application's answer";
        harness::until_within(2 * harness::PATIENCE, what, is_told).unwrap();
        assert!(cluster.passing(&format!("{name}-sidecar-proxy")).unwrap().is_empty());

        shell(&namespace, &name, &name, "touch /tmp/ready").unwrap();
        await_answer(&namespace, &client_name, "hello").unwrap();
        for _ in 0..2 {
            // By the clock of the node, and not by how long `kubectl exec` takes.
            let at = |pod: &str, line: &str| -> u64 {
                let line = format!("{line}; date +%s");
                shell(&namespace, pod, pod, &line).unwrap().trim().parse().unwrap()
            };
            // The client's Envoy has no endpoint, and closes the connection.
            let asking = format!(
                "i=0; while {ASK} >/dev/null && [ $i -lt 300 ]; do i=$((i+1)); sleep 0.1; done"
            );
            let (failed, unready) = std::thread::scope(|scope| {
                let failed = scope.spawn(|| at(&client_name, &asking));
                let unready = at(&name, "rm /tmp/ready");
                (failed.join().unwrap(), unready)
            });
            let passed = failed.checked_sub(unready).map(Duration::from_secs);
            assert!(passed.is_some_and(|passed| passed <= 2 * PERIOD), "{unready} to {failed}");
            shell(&namespace, &name, &name, "touch /tmp/ready").unwrap();
            await_answer(&namespace, &client_name, "hello").unwrap();
        }
        assert_eq!(restarts(&namespace, &name, "envoy-sidecar").unwrap(), 0);
    }
}

/// Without gRPC on the agent, Envoy never becomes ready. Either the application starts after the
/// grace period, for which the native sidecar's hook waits, or the sidecar is restarted by its
/// startup probe and the application never starts.
#[test]
fn an_envoy_that_is_never_ready_delays_the_application_or_is_restarted_as_configured() {
    let Some((cluster, _shared)) = ours() else { return };
    let home = cluster.namespace("a-held").unwrap();
    let namespace = cluster.namespace("held").unwrap();
    let release = Release::new(cluster, &home).unwrap();
    release.apply("install", &deaf()).unwrap();
    release.adopt(&namespace).unwrap();
    let start = |name: &str, key: &str| {
        let mut pod = server(name, "hello");
        annotate(&mut pod, &[(key, "8")]);
        namespace.apply(&pod.to_string()).unwrap();
    };
    start("held", "sidecar-proxy-lifecycle-startup-grace-period-seconds");
    start("given-up", "sidecar-proxy-startup-failure-seconds");

    harness::until_within(2 * harness::PATIENCE, "the application that was held", || {
        status(&namespace, "held", "held")
            .is_ok_and(|status| status["state"]["running"].is_object())
    })
    .unwrap();
    let since = |container: &str| -> Value {
        status(&namespace, "held", container).unwrap()["state"]["running"]["startedAt"].take()
    };
    let seconds = |time: &Value| {
        // RFC 3339, in UTC and to the second: `2026-01-01T12:34:56Z`.
        let parts: Vec<u32> =
            text(time)[11..19].split(':').map(|part| part.parse().unwrap()).collect();
        (parts[0] * 60 + parts[1]) * 60 + parts[2]
    };
    let (sidecar, application) = (since("envoy-sidecar"), since("held"));
    let held = (seconds(&application) + 86400 - seconds(&sidecar)) % 86400;
    assert!(held >= 7, "{sidecar} {application}");
    let sidecar = status(&namespace, "held", "envoy-sidecar").unwrap();
    assert_eq!((&sidecar["started"], &sidecar["ready"]), (&json!(true), &json!(false)));
    assert_eq!(sidecar["restartCount"], 0);
    assert!(!is_ready(&namespace.pod("held").unwrap()));

    await_restarts(&namespace, "given-up", "envoy-sidecar", 1).unwrap();
    let application = status(&namespace, "given-up", "given-up").unwrap();
    assert!(application["state"]["waiting"].is_object(), "{application:#}");
}
