//! A namespace that takes no pod but those that PodSecurity's level `restricted`
//! allows: by that admission itself from Kubernetes 1.25 on, before that by a
//! pod security policy.

use std::io::Write;

use cluster::client::{Cluster, Namespace, text};
use cluster::mesh;
use harness::pod_security::violations;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{await_answer, client, one_shot_client, server, sharing, shell_server};

const POLICIES: &str = "/apis/policy/v1beta1/podsecuritypolicies";

/// What makes a namespace restricted, for who asks as [`Restricted::user`].
/// What it has of the cluster's is taken away with it.
struct Restricted<'c> {
    cluster: &'c Cluster,
    user: Option<String>,
    policy: Option<String>,
}

impl<'c> Restricted<'c> {
    /// Has the cluster enforce it; nothing if it can't.
    fn enforce(cluster: &'c Cluster, namespace: &Namespace<'_>) -> harness::Result<Option<Self>> {
        if cluster.is_at_least(25)? {
            let label = "pod-security.kubernetes.io/enforce=restricted";
            namespace.kubectl(&["label", "namespace", &namespace.name, label])?;
            return Ok(Some(Self { cluster, user: None, policy: None }));
        }
        if cluster.get(&format!("{POLICIES}/{}", mesh::EVERYTHING)).is_err() {
            return Ok(None);
        }
        // An administrator may use any policy: pods are created by somebody who
        // may use this one only.
        let name = &namespace.name;
        cluster.request(Method::POST, POLICIES, Some(&policy(name)))?;
        let user = format!("system:serviceaccount:{name}:builder");
        let restricted = Self { cluster, user: Some(user), policy: Some(name.clone()) };
        let rbac = "rbac.authorization.k8s.io";
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            {
                "apiVersion": format!("{rbac}/v1"),
                "kind": "Role",
                "metadata": {"name": "builder"},
                "rules": [
                    {"apiGroups": [""], "resources": ["pods"], "verbs": ["create"]},
                    {
                        "apiGroups": ["policy"],
                        "resources": ["podsecuritypolicies"],
                        "resourceNames": [name],
                        "verbs": ["use"],
                    },
                ],
            },
            {
                "apiVersion": format!("{rbac}/v1"),
                "kind": "RoleBinding",
                "metadata": {"name": "builder"},
                "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "builder"},
                "subjects": [{"kind": "ServiceAccount", "name": "builder", "namespace": name}],
            },
        ]});
        namespace.apply(&objects.to_string())?;
        Ok(Some(restricted))
    }

    /// Creates a pod; the error is what kubectl says.
    fn create(&self, namespace: &Namespace<'_>, pod: &Value) -> harness::Result<()> {
        let user = self.user.as_ref().map(|user| format!("--as={user}"));
        let args: Vec<&str> =
            ["create", "--filename=-"].into_iter().chain(user.as_deref()).collect();
        let output = namespace.try_kubectl(&args, &pod.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).into())
    }
}

impl Drop for Restricted<'_> {
    fn drop(&mut self) {
        if let Some(policy) = &self.policy {
            let _ = self.cluster.request(Method::DELETE, &format!("{POLICIES}/{policy}"), None);
        }
    }
}

/// `restricted`, in the words of a pod security policy.
///
/// Source: "Pod Security Standards" of the Kubernetes documentation.
fn policy(name: &str) -> Value {
    let not_the_root_group = json!({"rule": "MustRunAs", "ranges": [{"min": 1, "max": 65535}]});
    json!({
        "metadata": {
            "name": name,
            "annotations": {
                "seccomp.security.alpha.kubernetes.io/allowedProfileNames": "runtime/default",
            },
        },
        "spec": {
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "requiredDropCapabilities": ["ALL"],
            "volumes": [
                "configMap", "downwardAPI", "emptyDir", "persistentVolumeClaim", "projected",
                "secret",
            ],
            "runAsUser": {"rule": "MustRunAsNonRoot"},
            "seLinux": {"rule": "RunAsAny"},
            "supplementalGroups": not_the_root_group,
            "fsGroup": not_the_root_group,
        },
    })
}

/// A pod whose own containers keep to the rules.
fn careful(mut pod: Value) -> Value {
    pod["spec"]["securityContext"] = json!({
        "runAsNonRoot": true,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "fsGroup": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    for container in pod["spec"]["containers"].as_array_mut().into_iter().flatten() {
        container["securityContext"] =
            json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    }
    pod
}

fn annotate(pod: &mut Value, annotations: &[(&str, &str)]) {
    for (key, value) in annotations {
        pod["metadata"]["annotations"][format!("consul.hashicorp.com/{key}")] = json!(value);
    }
}

/// Pods in all the shapes that injection gives them.
fn shapes() -> Vec<Value> {
    let plain = server("plain", "hello");
    let upstreams = client("plain");
    let mut several = server("first", "first");
    let mut second = several["spec"]["containers"][0].clone();
    second["name"] = json!("second");
    second["args"] = json!(["-text=second", "-listen=:9090"]);
    second["ports"] = json!([{"containerPort": 9090}]);
    several["spec"]["containers"].as_array_mut().unwrap().push(second);
    annotate(
        &mut several,
        &[("connect-service", "first,second"), ("connect-service-port", "8080,9090")],
    );
    let mut metrics = server("measured", "requests 1");
    annotate(&mut metrics, &[("enable-metrics", "true"), ("enable-metrics-merging", "true")]);
    let mut probed = shell_server("probed", "hello");
    annotate(
        &mut probed,
        &[
            ("use-proxy-health-check", "true"),
            ("sidecar-proxy-liveness-failure-seconds", "60"),
            ("sidecar-proxy-startup-failure-seconds", "60"),
            ("sidecar-proxy-memory-limit", "128Mi"),
        ],
    );
    let mut job = one_shot_client("plain");
    job["metadata"]["name"] = json!("job");
    annotate(&mut job, &[("connect-service", "job")]);
    [plain, upstreams, several, metrics, probed, job].map(careful).into()
}

#[test]
fn a_restricted_namespace_takes_every_injected_pod() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("restricted").unwrap();
    namespace.kubectl(&["create", "serviceaccount", "builder"]).unwrap();
    let restricted = Restricted::enforce(cluster, &namespace).unwrap();

    if let Some(restricted) = &restricted {
        // It is on: what the injector adds is not all that is looked at.
        let error = restricted.create(&namespace, &server("careless", "hello")).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("violates PodSecurity") || error.contains("PodSecurityPolicy"),
            "{error}"
        );
    } else {
        let _ = writeln!(
            std::io::stderr(),
            "skipped in part: this cluster enforces neither PodSecurity (1.25) nor a policy of \
             the tests': pods are only held against the rules"
        );
    }
    let path = format!("/api/v1/namespaces/{}/pods?dryRun=All", namespace.name);
    for pod in shapes() {
        let name = text(&pod["metadata"]["name"]);
        if name == "job" {
            // It asks another one, once.
            await_answer(&namespace, "plain-client", "hello").unwrap();
        }
        // As an administrator has it: a policy would fill in what is missing.
        let shown = cluster.request(Method::POST, &path, Some(&pod)).unwrap();
        let all = [&shown["spec"]["initContainers"], &shown["spec"]["containers"]];
        let count = all.map(|list| list.as_array().map_or(0, Vec::len)).iter().sum::<usize>();
        let own = pod["spec"]["containers"].as_array().map_or(0, Vec::len);
        assert!(count >= own + 2, "{name}: {shown:#}");
        assert_eq!(violations(&shown["spec"], None), Vec::<String>::new(), "{name}");
        match &restricted {
            Some(restricted) => restricted.create(&namespace, &pod).unwrap(),
            None => drop(namespace.apply(&pod.to_string()).unwrap()),
        }
        let created = namespace.pod(name).unwrap();
        assert_eq!(violations(&created["spec"], None), Vec::<String>::new(), "{name}");
        if let Some(policy) = restricted.as_ref().and_then(|restricted| restricted.policy.as_ref())
        {
            let by = &created["metadata"]["annotations"]["kubernetes.io/psp"];
            assert_eq!(by, policy.as_str(), "{name}");
        }
    }

    // They run, too.
    for service in ["plain", "plain-client", "first", "second", "measured", "probed"] {
        cluster.await_instances(service, 1).unwrap();
    }
    harness::until("the end of the job's pod", || {
        namespace.pod("job").is_ok_and(|pod| pod["status"]["phase"] == "Succeeded")
    })
    .unwrap();
}
