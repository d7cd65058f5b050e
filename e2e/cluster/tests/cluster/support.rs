//! Fixtures of the tests: the cluster, objects to create, and queries about them.

use std::io::Write;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cluster::client::{Cluster, Namespace, text};
use cluster::images;
use harness::Result;
use reqwest::Method;
use serde_json::{Value, json};

/// All tests share the agent and the injector.
static SHARED: RwLock<()> = RwLock::new(());

/// For a test that needs the agent and the injector.
pub(crate) fn sharing() -> Option<(&'static Cluster, RwLockReadGuard<'static, ()>)> {
    let cluster = Cluster::find_or_skip()?;
    Some((cluster, SHARED.read().unwrap_or_else(PoisonError::into_inner)))
}

/// For a test that needs the images or programs of a cluster of `scripts/cluster`.
pub(crate) fn ours() -> Option<(&'static Cluster, RwLockReadGuard<'static, ()>)> {
    sharing().filter(|(cluster, _)| is_ours(cluster))
}

/// Whether it is a cluster of `scripts/cluster`; otherwise prints that the test is skipped.
pub(crate) fn is_ours(cluster: &Cluster) -> bool {
    let agent = cluster.agent().unwrap();
    let mut containers = agent["spec"]["containers"].as_array().into_iter().flatten();
    if containers.any(|container| container["image"] == images::CONSUL) {
        return true;
    }
    let _ = writeln!(
        std::io::stderr(),
        "skipped: this takes a cluster of scripts/cluster, and KUBECONFIG names another"
    );
    false
}

/// For a test that disturbs the agent or the injector.
pub(crate) fn alone() -> Option<(&'static Cluster, RwLockWriteGuard<'static, ()>)> {
    let cluster = Cluster::find_or_skip()?;
    Some((cluster, SHARED.write().unwrap_or_else(PoisonError::into_inner)))
}

/// A pod that asks for injection, with one container, whose name is the service's. The
/// container answers HTTP on port 8080 with `text`.
pub(crate) fn server(service: &str, text: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": service,
            "labels": {"app": service},
            "annotations": {"consul.hashicorp.com/connect-inject": "true"},
        },
        "spec": {
            "containers": [{
                "name": service,
                "image": "hashicorp/http-echo",
                "imagePullPolicy": "IfNotPresent",
                "args": [format!("-text={text}"), "-listen=:8080"],
                "ports": [{"containerPort": 8080}],
            }],
        },
    })
}

/// Like [`server`], with a shell and its tools in the container. The text is its only
/// argument.
pub(crate) fn shell_server(service: &str, text: &str) -> Value {
    // The shell is process 1, which ignores signals without a trap.
    let line = "echo \"$0\" > /tmp/index.html; trap 'exit 0' TERM; \
                httpd -f -p 8080 -h /tmp & wait";
    let mut pod = server(service, text);
    let container = &mut pod["spec"]["containers"][0];
    container["image"] = json!("busybox");
    container["command"] = json!(["sh", "-c", line]);
    container["args"] = json!([text]);
    pod
}

/// A pod that asks for injection, with a shell and curl in one container, and one upstream at
/// port 1234. Its service is `SERVICE-client`.
pub(crate) fn client(upstream: &str) -> Value {
    let name = format!("{upstream}-client");
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "annotations": {
                "consul.hashicorp.com/connect-inject": "true",
                "consul.hashicorp.com/connect-service-upstreams": format!("{upstream}:1234"),
            },
        },
        "spec": {
            "containers": [{
                "name": name,
                "image": "tutum/curl",
                "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "1000000"],
            }],
        },
    })
}

/// Like [`client`], for a Job: it sends one request to its upstream, and exits with its
/// sidecar.
pub(crate) fn one_shot_client(upstream: &str) -> Value {
    let mut pod = client(upstream);
    pod["metadata"]["annotations"]["consul.hashicorp.com/connect-inject-mount-volume"] =
        pod["metadata"]["name"].clone();
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["containers"][0]["command"] = json!([
        "/consul/connect-inject/connect-lifecycle",
        "wait",
        "--quit",
        "--",
        "sh",
        "-c",
        ASK,
    ]);
    pod
}

/// A Deployment, StatefulSet or similar, with that pod as template.
pub(crate) fn set_of(kind: &str, pod: &Value, replicas: u32) -> Value {
    let (name, labels) = (&pod["metadata"]["name"], &pod["metadata"]["labels"]);
    json!({
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "serviceName": if kind == "StatefulSet" { name.clone() } else { Value::Null },
            "template": {
                "metadata": {"labels": labels, "annotations": pod["metadata"]["annotations"]},
                "spec": pod["spec"],
            },
        },
    })
}

/// A Job with that pod as template, and without retries.
pub(crate) fn job_of(name: &str, pod: &Value) -> Value {
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "backoffLimit": if pod["spec"]["restartPolicy"] == "OnFailure" { 3 } else { 0 },
            "template": {
                "metadata": {"annotations": pod["metadata"]["annotations"]},
                "spec": pod["spec"],
            },
        },
    })
}

/// Annotates a pod with keys under `consul.hashicorp.com/`.
pub(crate) fn annotate(pod: &mut Value, annotations: &[(&str, &str)]) {
    for (key, value) in annotations {
        pod["metadata"]["annotations"][format!("consul.hashicorp.com/{key}")] = json!(value);
    }
}

/// The pod with an ordinary container as sidecar, as before Kubernetes 1.29.
pub(crate) fn in_container_mode(mut pod: Value) -> Value {
    annotate(&mut pod, &[("sidecar-mode", "container")]);
    pod
}

/// A pod whose object stays after its end, with its containers' status. Released on drop.
pub(crate) struct Kept<'n, 'c> {
    namespace: &'n Namespace<'c>,
    pod: String,
}

impl<'n, 'c> Kept<'n, 'c> {
    pub(crate) fn apply(namespace: &'n Namespace<'c>, mut pod: Value) -> Self {
        pod["metadata"]["finalizers"] = json!(["tests.example.com/kept"]);
        namespace.apply(&pod.to_string()).unwrap();
        let pod = format!("pod/{}", pod["metadata"]["name"].as_str().unwrap());
        Self { namespace, pod }
    }
}

impl Drop for Kept<'_, '_> {
    fn drop(&mut self) {
        let patch = r#"{"metadata": {"finalizers": null}}"#;
        let _ = self.namespace.kubectl(&["patch", &self.pod, "--type=merge", "--patch", patch]);
    }
}

/// Waits until a pod's container has terminated. Returns its terminated state.
pub(crate) fn terminated(namespace: &Namespace<'_>, pod: &str, container: &str) -> Result<Value> {
    let mut ended = Value::Null;
    harness::until(&format!("the end of {container} of {pod}"), || {
        status(namespace, pod, container).is_ok_and(|mut status| {
            ended = status["state"]["terminated"].take();
            ended.is_object()
        })
    })?;
    Ok(ended)
}

/// Runs a shell line in the first container that the user gave a pod.
pub(crate) fn shell(
    namespace: &Namespace<'_>,
    pod: &str,
    container: &str,
    line: &str,
) -> Result<String> {
    namespace.kubectl(&["exec", pod, "--container", container, "--", "sh", "-c", line])
}

/// Status of a pod's container.
///
/// # Errors
/// The API does not answer, or the pod has no status of such a container, perhaps not yet.
pub(crate) fn status(namespace: &Namespace<'_>, pod: &str, container: &str) -> Result<Value> {
    let status = namespace.pod(pod)?["status"].take();
    // A native sidecar is an init container.
    let lists = ["containerStatuses", "initContainerStatuses"];
    let mut all = lists.into_iter().filter_map(|list| status[list].as_array()).flatten();
    let found = all.find(|status| status["name"] == container).cloned();
    found.ok_or_else(|| format!("no container {container} in the status of {pod}").into())
}

/// Whether a pod is ready.
pub(crate) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|each| each["type"] == "Ready" && each["status"] == "True")
}

/// The values of a release whose pods' agent has no gRPC.
pub(crate) fn deaf() -> Value {
    json!({"replicas": 1, "agent": {"grpcAddr": "$(HOST_IP):8599"}})
}

/// Restart count of a pod's container.
///
/// # Errors
/// Those of [`status`].
pub(crate) fn restarts(namespace: &Namespace<'_>, pod: &str, container: &str) -> Result<u64> {
    let count = status(namespace, pod, container)?["restartCount"].as_u64();
    count.ok_or_else(|| format!("no restart count of {container} in {pod}").into())
}

/// Waits until a pod's container has been restarted at least so many times. Returns how many.
pub(crate) fn await_restarts(
    namespace: &Namespace<'_>,
    pod: &str,
    container: &str,
    count: u64,
) -> Result<u64> {
    let mut seen = Ok(0);
    // Some wait for a probe to fail several times, and then for the end of a grace period.
    harness::until_within(2 * harness::PATIENCE, "a restart", || {
        seen = restarts(namespace, pod, container);
        seen.as_ref().is_ok_and(|seen| *seen >= count)
    })
    .map_err(|error| format!("{error} of {container} in {pod}: {seen:?}"))?;
    seen
}

/// Raft index of the last change of a service's checks: it is greater after a check failed
/// and passed again.
pub(crate) fn changes(cluster: &Cluster, service: &str) -> Result<u64> {
    let checks = cluster.consul(&format!("/v1/health/checks/{service}"))?;
    let indexes = checks.as_array().into_iter().flatten();
    let last = indexes.filter_map(|check| check["ModifyIndex"].as_u64()).max();
    last.ok_or_else(|| format!("{service} has no checks").into())
}

/// Shell command to request a URL, without the URL.
const GET: &str = "curl --silent --fail --max-time 5";

/// Shell command to send a request to a client's upstream.
pub(crate) const ASK: &str = "curl --silent --fail --max-time 5 http://127.0.0.1:1234/";

/// Waits until a client's upstream answers with that text.
pub(crate) fn await_answer(namespace: &Namespace<'_>, client: &str, text: &str) -> Result<()> {
    let mut seen = String::new();
    harness::until("an answer of the upstream", || {
        seen = match shell(namespace, client, client, ASK) {
            Ok(answer) => answer,
            Err(error) => error.to_string(),
        };
        seen.trim() == text
    })
    .map_err(|error| format!("{error}; last seen: {seen}").into())
}

/// Requests of a client to its upstream, about fifty per second, sent from inside of its pod,
/// so that they don't depend on API server or kubelet.
pub(crate) struct Load<'n, 'c> {
    namespace: &'n Namespace<'c>,
    client: String,
}

impl<'n, 'c> Load<'n, 'c> {
    pub(crate) fn start(namespace: &'n Namespace<'c>, client: &str) -> Self {
        Self::start_at(namespace, client, "http://127.0.0.1:1234/")
    }

    /// Starts a client's requests to that URL.
    pub(crate) fn start_at(namespace: &'n Namespace<'c>, client: &str, url: &str) -> Self {
        let ask = format!(
            "while [ ! -e /tmp/end ]; do usleep 20000; \
             if {GET} {url} > /dev/null; then echo >> /tmp/good; \
             else echo \"curl: $?, $(date)\" >> /tmp/bad; fi; done"
        );
        let line = format!(
            "touch /tmp/bad; {{ {{ {ask}; }} & {{ {ask}; }} & wait; touch /tmp/ended; }} \
             > /dev/null 2>&1 &"
        );
        shell(namespace, client, client, &line).unwrap();
        Self { namespace, client: client.to_owned() }
    }

    /// Stops, and asserts that no request failed.
    pub(crate) fn end(self) {
        let said = self.stop().unwrap();
        let good = said.trim().parse::<u32>();
        assert!(good.is_ok_and(|good| good > 0), "good requests, then those that failed: {said}");
    }

    /// Stops. Returns the number of successful requests, and a line for each that failed.
    pub(crate) fn stop(self) -> Result<String> {
        let Self { namespace, client } = self;
        let line = "touch /tmp/end; until [ -e /tmp/ended ]; do sleep 0.1; done; \
                    wc -l < /tmp/good; cat /tmp/bad";
        shell(namespace, &client, &client, line)
    }
}

/// Does something while pods are created continuously, and asserts that each is admitted and
/// injected.
pub(crate) fn all_are_injected(
    cluster: &Cluster,
    namespace: &Namespace<'_>,
    meanwhile: impl FnOnce() -> Result<()> + Send,
) {
    let pod = server("hello", "hello");
    let mut created = 0;
    std::thread::scope(|scope| {
        let meanwhile = scope.spawn(meanwhile);
        // Dry runs: they pass admission like others, and start nothing.
        let path = format!("/api/v1/namespaces/{}/pods?dryRun=All", namespace.name);
        let mut refused: Option<String> = None;
        while !meanwhile.is_finished() && refused.is_none() {
            match cluster.request(Method::POST, &path, Some(&pod)) {
                Ok(pod) if is_injected(&pod) => created += 1,
                Ok(pod) => refused = Some(format!("a pod was not injected: {pod:#}")),
                Err(error) => refused = Some(error.to_string()),
            }
            // Leave processor time to the other tests.
            std::thread::sleep(Duration::from_millis(20));
        }
        meanwhile.join().unwrap().unwrap();
        assert_eq!(refused, None, "after {created} pods");
    });
    assert!(created > 0);
}

/// Whether a pod has our sidecar.
pub(crate) fn is_injected(pod: &Value) -> bool {
    ["containers", "initContainers"].into_iter().any(|list| {
        let containers = pod["spec"][list].as_array();
        containers.is_some_and(|list| list.iter().any(|each| each["name"] == "envoy-sidecar"))
    })
}

/// The caBundle of a webhook configuration, in PEM.
pub(crate) fn trusted(cluster: &Cluster, webhook: &str) -> Result<String> {
    let path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
    let webhooks = cluster.get(&format!("{path}/{webhook}"))?;
    decoded(&webhooks["webhooks"][0]["clientConfig"]["caBundle"])
}

/// A value of a Secret or similar object.
pub(crate) fn decoded(value: &Value) -> Result<String> {
    Ok(String::from_utf8(BASE64_STANDARD.decode(text(value))?)?)
}
