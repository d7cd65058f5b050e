//! Pods with newer features of Kubernetes: user namespaces, resizing, ephemeral containers,
//! admission policies.

use std::io::Write;

use cluster::client::{Cluster, Namespace, text};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{annotate, is_ours, restarts, server, sharing, shell, shell_server, status};

/// Starts a pod, and waits until its service is healthy.
fn start(cluster: &Cluster, namespace: &Namespace<'_>, pod: &Value) {
    let name = text(&pod["metadata"]["name"]);
    namespace.apply(&pod.to_string()).unwrap();
    namespace.await_condition(&format!("pod/{name}"), "Ready").unwrap();
    cluster.await_instances(name, 1).unwrap();
}

#[test]
fn a_pod_with_a_user_namespace_is_in_the_mesh() {
    let Some((cluster, _shared)) = sharing() else { return };
    let nodes = cluster.get("/api/v1/nodes").unwrap();
    let handlers = nodes["items"][0]["status"]["runtimeHandlers"].clone();
    let mut handlers = handlers.as_array().into_iter().flatten();
    // Requires containerd 2, as in clusters of scripts/cluster.
    let has_it = handlers.any(|handler| handler["features"]["userNamespaces"] == true);
    if !has_it && !is_ours(cluster) {
        return;
    }
    let namespace = cluster.namespace("users").unwrap();
    let mut pod = shell_server("users", "hello");
    pod["spec"]["hostUsers"] = json!(false);
    start(cluster, &namespace, &pod);
    // Root in the pod is another user on the host.
    let map = shell(&namespace, "users", "users", "cat /proc/self/uid_map").unwrap();
    let host = map.split_whitespace().nth(1).unwrap();
    assert_ne!(host, "0", "{map}");
}

#[test]
fn resizing_a_pod_in_place_restarts_nothing() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("resized").unwrap();
    let mut pod = server("resized", "hello");
    annotate(
        &mut pod,
        &[("sidecar-proxy-cpu-request", "20m"), ("sidecar-proxy-memory-limit", "128Mi")],
    );
    pod["spec"]["containers"][0]["resources"] =
        json!({"requests": {"cpu": "10m"}, "limits": {"memory": "64Mi"}});
    start(cluster, &namespace, &pod);
    let ids = || {
        ["resized", "envoy-sidecar"].map(|container| {
            status(&namespace, "resized", container).unwrap()["containerID"].take()
        })
    };
    let before = ids();

    let resources = |name: &str, cpu: &str, memory: &str| {
        let resources = json!({"requests": {"cpu": cpu}, "limits": {"memory": memory}});
        json!([{"name": name, "resources": resources}])
    };
    let patch = json!({"spec": {
        "containers": resources("resized", "15m", "96Mi"),
        "initContainers": resources("envoy-sidecar", "30m", "192Mi"),
    }});
    let resize = ["patch", "pod/resized", "--subresource=resize", "--patch"];
    namespace.kubectl(&[resize.as_slice(), &[&patch.to_string()]].concat()).unwrap();
    for (container, memory) in [("resized", "96Mi"), ("envoy-sidecar", "192Mi")] {
        harness::until(&format!("the new limit of {container}"), || {
            status(&namespace, "resized", container)
                .is_ok_and(|status| status["resources"]["limits"]["memory"] == memory)
        })
        .unwrap();
    }
    assert_eq!(ids(), before);
    cluster.await_instances("resized", 1).unwrap();
}

/// Pod-level resources, smaller than the sidecar's defaults.
#[test]
fn pod_level_resources_include_the_sidecar() {
    let Some((cluster, _shared)) = sharing() else { return };
    if !cluster.is_at_least(34).unwrap() {
        let _ = writeln!(std::io::stderr(), "skipped: pod-level resources came with 1.34");
        return;
    }
    let namespace = cluster.namespace("sized").unwrap();
    let mut pod = server("sized", "hello");
    pod["spec"]["resources"] =
        json!({"requests": {"cpu": "10m", "memory": "10Mi"}, "limits": {"memory": "256Mi"}});
    start(cluster, &namespace, &pod);
    let sized = namespace.pod("sized").unwrap();
    assert_eq!(sized["spec"]["resources"]["requests"]["cpu"], "10m");

    // If the sidecar does not fit, the pod is denied, with the annotation's name.
    pod["metadata"]["name"] = json!("too-small");
    annotate(&mut pod, &[("sidecar-proxy-cpu-request", "20m")]);
    let error = namespace.apply(&pod.to_string()).unwrap_err().to_string();
    for part in ["invalid-resources", "sidecar-proxy-cpu-request", "does not fit"] {
        assert!(error.contains(part), "no `{part}` in: {error}");
    }
}

/// `kubectl debug` with the sidecar as target.
#[test]
fn an_ephemeral_container_sees_the_sidecar_and_disturbs_nothing() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("debugged").unwrap();
    start(cluster, &namespace, &server("debugged", "hello"));
    let look = "pidof envoy && wget -q -O - http://127.0.0.1:19000/ready";
    let debug = ["debug", "debugged", "--image=busybox", "--image-pull-policy=IfNotPresent"];
    let target = ["--target=envoy-sidecar", "--container=look", "--", "sh", "-c", look];
    namespace.kubectl(&[debug.as_slice(), &target].concat()).unwrap();
    let mut ended = Value::Null;
    harness::until("the end of the ephemeral container", || {
        let pod = namespace.pod("debugged").unwrap_or_default();
        ended = pod["status"]["ephemeralContainerStatuses"][0]["state"]["terminated"].clone();
        ended.is_object()
    })
    .unwrap();
    let said = namespace.kubectl(&["logs", "debugged", "--container=look"]).unwrap();
    assert_eq!(ended["exitCode"], 0, "{said}");
    assert!(said.contains("LIVE"), "{said}");
    assert_eq!(restarts(&namespace, "debugged", "envoy-sidecar").unwrap(), 0);
    cluster.await_instances("debugged", 1).unwrap();
}

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";

/// A cluster-scoped policy for a namespace's pods, removed on drop.
struct Policy<'c> {
    cluster: &'c Cluster,
    name: String,
}

impl<'c> Policy<'c> {
    fn create(namespace: &Namespace<'_>, cluster: &'c Cluster, expression: &str) -> Self {
        let policy = Self { cluster, name: namespace.name.clone() };
        let selector = json!({"matchLabels": {"kubernetes.io/metadata.name": policy.name}});
        let rule = json!({
            "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
            "resources": ["pods"],
        });
        let body = json!({
            "metadata": {"name": policy.name},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [rule], "namespaceSelector": selector},
                "validations": [{"expression": expression}],
            },
        });
        cluster.request(Method::POST, POLICIES, Some(&body)).unwrap();
        let body = json!({
            "metadata": {"name": policy.name},
            "spec": {"policyName": policy.name, "validationActions": ["Deny"]},
        });
        cluster.request(Method::POST, BINDINGS, Some(&body)).unwrap();
        policy
    }
}

impl Drop for Policy<'_> {
    fn drop(&mut self) {
        for list in [BINDINGS, POLICIES] {
            let path = format!("{list}/{}", self.name);
            let _ = self.cluster.request(Method::DELETE, &path, None);
        }
    }
}

/// The API server validates the pod after injection.
#[test]
fn a_validating_admission_policy_accepts_injected_pods() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("policed").unwrap();
    let _policy = Policy::create(
        &namespace,
        cluster,
        "(object.spec.containers + object.spec.?initContainers.orValue([])).all(container, \
         container.?securityContext.readOnlyRootFilesystem.orValue(false) \
         && container.?securityContext.runAsNonRoot.orValue(false) \
         && container.?securityContext.capabilities.drop.orValue([]) == ['ALL'] \
         && !container.image.endsWith(':latest'))",
    );
    let mut pod = server("policed", "hello");
    let path = format!("/api/v1/namespaces/{}/pods?dryRun=All", namespace.name);
    harness::until("a refusal by the policy", || {
        let asked = cluster.request(Method::POST, &path, Some(&pod));
        asked.is_err_and(|error| error.to_string().contains("ValidatingAdmissionPolicy"))
    })
    .unwrap();
    pod["spec"]["containers"][0]["securityContext"] = json!({
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "runAsUser": 1000,
        "capabilities": {"drop": ["ALL"]},
    });
    start(cluster, &namespace, &pod);
}

/// `kubectl debug --copy-to` removes labels, so that Services send no traffic to the copy. It
/// also removes annotations, except with the profile that was the default for long. Consul
/// must send no traffic either: connect-init does not register the copy, and logs why.
#[test]
fn a_copy_of_a_pod_for_debugging_gets_no_traffic() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("copied").unwrap();
    start(cluster, &namespace, &server("copied", "hello"));
    let copy = |name: &str, flags: &[&str]| {
        let copy_to = format!("--copy-to={name}");
        let debug = ["debug", "copied", &copy_to, "--container=copied"];
        let command = ["--image=busybox", "--image-pull-policy=IfNotPresent", "--", "sleep", "99"];
        namespace.kubectl(&[&debug, flags, &command].concat()).unwrap();
    };
    copy("by-default", &[]);
    copy("general", &["--profile=general"]);
    copy("application", &["--profile=general", "--keep-init-containers=false"]);
    namespace.await_condition("pod/application", "Ready").unwrap();
    for pod in ["pod/by-default", "pod/general"] {
        harness::until("the advice in kubectl describe", || {
            let described = namespace.kubectl(&["describe", pod]).unwrap_or_default();
            described.contains("--keep-init-containers=false")
        })
        .unwrap();
    }
    cluster.await_instances("copied", 1).unwrap();
}

/// A ResourceQuota rejects containers without requests, a LimitRange those with a limit above
/// its maximum. Injected containers comply by default. A HorizontalPodAutoscaler by CPU
/// utilization needs these requests, too.
#[test]
fn a_namespace_with_a_quota_and_a_limit_range_accepts_injected_pods() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("limited").unwrap();
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "limited"},
            "spec": {"hard": {"requests.cpu": "2", "requests.memory": "1Gi"}},
        },
        {
            "apiVersion": "v1",
            "kind": "LimitRange",
            "metadata": {"name": "limited"},
            "spec": {"limits": [{"type": "Container", "max": {"memory": "100Mi"}}]},
        },
    ]});
    namespace.apply(&objects.to_string()).unwrap();
    let mut pod = server("limited", "hello");
    // Both are in force, the quota once somebody has counted: they refuse this container.
    annotate(&mut pod, &[("connect-inject", "false")]);
    let path = format!("/api/v1/namespaces/{}/pods?dryRun=All", namespace.name);
    let refused = |pod: &Value| match cluster.request(Method::POST, &path, Some(pod)) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    };
    for (resources, words) in [
        (json!({"limits": {"memory": "200Mi"}}), "maximum memory usage per Container is 100Mi"),
        (json!({"limits": {"memory": "50Mi"}}), "must specify requests.cpu"),
    ] {
        pod["spec"]["containers"][0]["resources"] = resources;
        let mut said = String::new();
        harness::until(words, || {
            said = refused(&pod);
            said.contains(words)
        })
        .unwrap_or_else(|error| panic!("{error}; {said}"));
    }
    annotate(&mut pod, &[("connect-inject", "true")]);
    pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "10m"}});
    start(cluster, &namespace, &pod);
}

#[test]
fn a_guaranteed_pod_stays_guaranteed_if_its_sidecar_has_limits() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("guaranteed").unwrap();
    let mut pod = server("guaranteed", "hello");
    let (cpu, memory) = ("50m", "128Mi");
    pod["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": cpu, "memory": memory}});
    annotate(
        &mut pod,
        &[
            ("sidecar-proxy-cpu-request", cpu),
            ("sidecar-proxy-cpu-limit", cpu),
            ("sidecar-proxy-memory-request", memory),
            ("sidecar-proxy-memory-limit", memory),
        ],
    );
    let path = format!("/api/v1/namespaces/{}/pods?dryRun=All", namespace.name);
    let shown = cluster.request(Method::POST, &path, Some(&pod)).unwrap();
    assert_eq!(shown["status"]["qosClass"], "Guaranteed", "{:#}", shown["spec"]);
}
