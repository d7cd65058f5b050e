//! Injected pods are valid by Kubernetes' own schemas, for every annotation and in every
//! mode, and pass PodSecurity `restricted`.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use harness::pod_security::violations;
use harness::python::Tools;
use harness::tutorial::{ECHO_CLIENT, ECHO_SERVER};
use serde_json::{Value, json};

/// Pods for every annotation of the reference.
const ANNOTATED: &[&[(&str, &str)]] = &[
    &[],
    &[("connect-service", "shop"), ("connect-service-port", "http")],
    &[(
        "connect-service-upstreams",
        "db:5432, prepared_query:near:1235, a.svc.dc2.dc:1236?mesh_gateway_mode=local",
    )],
    &[("service-tags", "v1,$POD_NAME"), ("connect-service-tags", "old")],
    &[("service-meta-team", "mesh $POD_NAME")],
    &[("proxy-config-map", r#"{"local_connect_timeout_ms": 500}"#)],
    &[("envoy-extra-args", "--log-level debug"), ("consul-envoy-proxy-concurrency", "0")],
    &[("sidecar-proxy-cpu-request", "0"), ("sidecar-proxy-cpu-limit", "1")],
    &[("sidecar-proxy-memory-request", "64Mi"), ("sidecar-proxy-memory-limit", "1Gi")],
    &[
        ("sidecar-proxy-ephemeral-storage-request", "64Mi"),
        ("sidecar-proxy-ephemeral-storage-limit", "1Gi"),
    ],
    &[("access-log-folder", "/var/log/envoy")],
    &[
        ("consul-sidecar-user-volume", r#"[{"name": "extra", "emptyDir": {}}]"#),
        ("consul-sidecar-user-volume-mount", r#"[{"name": "extra", "mountPath": "/extra"}]"#),
    ],
    &[("connect-inject-mount-volume", "web")],
    &[("use-proxy-health-check", "true")],
    &[
        ("sidecar-proxy-startup-failure-seconds", "30"),
        ("sidecar-proxy-liveness-failure-seconds", "30"),
    ],
    &[
        ("sidecar-proxy-lifecycle-startup-grace-period-seconds", "0"),
        ("sidecar-proxy-lifecycle-shutdown-grace-period-seconds", "5"),
    ],
    &[("application-sleep-seconds", "3")],
    &[("sidecar-mode", "container")],
    &[("sidecar-mode", "native"), ("sidecar-position", "last")],
    &[("enable-consul-dataplane-as-sidecar", "true")],
    &[
        ("enable-metrics", "true"),
        ("prometheus-scrape-port", "20300"),
        ("prometheus-scrape-path", "/stats"),
    ],
    &[
        ("enable-metrics", "true"),
        ("prometheus-ca-file", "/ca.pem"),
        ("prometheus-cert-file", "/cert.pem"),
        ("prometheus-key-file", "/key.pem"),
    ],
    &[
        ("enable-metrics", "true"),
        ("prometheus-ca-path", "/ca"),
        ("prometheus-cert-file", "/cert.pem"),
        ("prometheus-key-file", "/key.pem"),
    ],
    &[
        ("enable-metrics", "true"),
        ("enable-metrics-merging", "true"),
        ("merged-metrics-port", "20101"),
        ("service-metrics-port", "9102"),
        ("service-metrics-path", "/own"),
    ],
];

/// The annotations of a transparent pod, which PodSecurity rejects because of NET_ADMIN.
const TRANSPARENT: &[(&str, &str)] = &[
    ("transparent-proxy", "true"),
    ("transparent-proxy-exclude-inbound-ports", "9100"),
    ("transparent-proxy-exclude-outbound-ports", "5432"),
    ("transparent-proxy-exclude-outbound-cidrs", "10.0.0.0/8,fd00::/8"),
    ("transparent-proxy-exclude-uids", "1000"),
    ("transparent-proxy-overwrite-probes", "true"),
    ("transparent-proxy-virtual-address", "10.96.0.10:80"),
    ("consul-dns", "true"),
];

/// A transparent pod that `connect-cni` redirects, without a capability.
const BY_CNI: &[(&str, &str)] = &[("transparent-proxy", "true"), ("transparent-proxy-by", "cni")];

/// The injector's modes. Native sidecars and the sleep action are used only if the cluster's
/// version is known or the mode is set.
const MODES: [&[&str]; 4] = [
    &[],
    &["--oldest-kubelet-version=1.31", "--default-enable-metrics", "--pod-log-format=json"],
    &["--enable-openshift", "--init-container-memory-limit=", "--envoy-extra-args=-l debug"],
    &[
        "--sidecar-mode=native",
        "--global-image-pull-policy=Always",
        "--image-pull-secret=a,b",
        "--default-sidecar-proxy-cpu-request=100m",
        "--default-sidecar-proxy-memory-limit=128Mi",
        "--default-sidecar-proxy-lifecycle-startup-grace-period-seconds=0",
        "--pod-log-level=debug",
    ],
];

/// A pod that passes `restricted` before injection.
fn pod(annotations: &[(&str, &str)]) -> Value {
    let mut map = serde_json::Map::new();
    for (key, value) in [("connect-inject", "true")].iter().chain(annotations) {
        map.insert(format!("consul.hashicorp.com/{key}"), json!(value));
    }
    let restricted = json!({
        "allowPrivilegeEscalation": false,
        "runAsNonRoot": true,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "annotations": map},
        "spec": {
            "initContainers": [{"name": "migrate", "image": "web", "securityContext": restricted}],
            "containers": [
                {
                    "name": "web",
                    "image": "web",
                    "ports": [{"containerPort": 8080, "name": "http"}],
                    "securityContext": restricted,
                },
                {"name": "log", "image": "log", "securityContext": restricted},
            ],
        },
    })
}

/// Workloads with such a pod as template.
fn workloads() -> Vec<Value> {
    let mut template = pod(&[("connect-service-upstreams", "db:5432")]);
    let fields = template.as_object_mut().unwrap();
    fields.retain(|field, _| field == "metadata" || field == "spec");
    template["metadata"].as_object_mut().unwrap().remove("name");
    template["metadata"]["labels"] = json!({"app": "web"});
    let mut of_a_job = template.clone();
    of_a_job["spec"]["restartPolicy"] = json!("Never");
    let selector = json!({"matchLabels": {"app": "web"}});
    [
        ("apps/v1", "Deployment", json!({"selector": selector, "template": template})),
        ("apps/v1", "DaemonSet", json!({"selector": selector, "template": template})),
        ("apps/v1", "ReplicaSet", json!({"selector": selector, "template": template})),
        (
            "apps/v1",
            "StatefulSet",
            json!({"selector": selector, "template": template, "serviceName": "web"}),
        ),
        ("v1", "ReplicationController", json!({"template": template})),
        ("batch/v1", "Job", json!({"template": of_a_job})),
        (
            "batch/v1",
            "CronJob",
            json!({"schedule": "@daily", "jobTemplate": {"spec": {"template": of_a_job}}}),
        ),
    ]
    .into_iter()
    .map(|(version, kind, spec)| {
        json!({"apiVersion": version, "kind": kind, "metadata": {"name": "web"}, "spec": spec})
    })
    .collect()
}

/// The pod of a document.
fn spec(document: &Value) -> &Value {
    let spec = &document["spec"];
    [&spec["jobTemplate"]["spec"]["template"]["spec"], &spec["template"]["spec"], spec]
        .into_iter()
        .find(|spec| spec["containers"].is_array())
        .unwrap()
}

fn injected(tools: &Tools, flags: &[&str], documents: &[Value]) -> Vec<Value> {
    let mut injector = Command::new(&tools.injector)
        .args(["inject", "--init-image=init", "--envoy-image=envoy"])
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": documents});
    // No deadlock: the injector reads its whole input before it writes.
    injector.stdin.take().unwrap().write_all(list.to_string().as_bytes()).unwrap();
    let output = injector.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut list: Value = serde_json::from_slice(&output.stdout).unwrap();
    serde_json::from_value(list["items"].take()).unwrap()
}

/// The oldest version of Kubernetes that has all fields of a pod.
fn oldest(document: &Value) -> &'static str {
    let spec = spec(document);
    let is_native = |container: &Value| container["restartPolicy"] == "Always";
    if spec["containers"].to_string().contains("\"sleep\"") {
        "1.30"
    } else if spec["initContainers"].as_array().unwrap().iter().any(is_native) {
        "1.29"
    } else {
        "1.25"
    }
}

#[test]
fn every_annotation_of_the_reference_is_covered() {
    let readme = include_str!("../../../../bins/connect-inject/README.md");
    let (_, table) = readme.split_once("## Annotations").unwrap();
    let (table, _) = table.split_once("An invalid value denies").unwrap();
    let listed: BTreeSet<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        // Except those that the injector writes and the one that every pod has.
        .filter(|key| {
            let written =
                ["connect-inject-status", "connect-inject-undo", "transparent-proxy-redirect"];
            *key != "connect-inject" && !written.contains(key)
        })
        .collect();
    let here: BTreeSet<&str> = ANNOTATED
        .iter()
        .flat_map(|annotations| annotations.iter())
        .chain(TRANSPARENT)
        .chain(BY_CNI)
        .map(|(key, _)| if key.starts_with("service-meta-") { "service-meta-KEY" } else { key })
        .collect();
    assert_eq!(here, listed);
}

#[test]
fn injected_pods_are_valid_by_the_schemas_of_kubernetes() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let mut documents: Vec<Value> = ANNOTATED.iter().map(|annotations| pod(annotations)).collect();
    documents.extend(workloads());
    let own = documents.len();
    for text in [ECHO_SERVER, ECHO_CLIENT] {
        documents.push(serde_saphyr::from_str(text).unwrap());
    }
    let mut all = Vec::new();
    for flags in MODES {
        let injected = injected(&tools, flags, &documents);
        assert_eq!(injected.len(), documents.len());
        for (i, document) in injected.into_iter().enumerate() {
            let spec = spec(&document);
            let names: Vec<_> = ["initContainers", "containers"]
                .iter()
                .flat_map(|kind| spec[kind].as_array().unwrap())
                .map(|container| container["name"].as_str().unwrap().to_owned())
                .collect();
            for added in ["consul-connect-inject-init", "envoy-sidecar"] {
                assert!(names.iter().any(|name| name == added), "{flags:?} {document:#}");
                let found = violations(spec, Some(added));
                assert_eq!(found, Vec::<String>::new(), "{flags:?} {document:#}");
            }
            if i < own {
                let found = violations(spec, None);
                assert_eq!(found, Vec::<String>::new(), "{flags:?} {document:#}");
            }
            let oldest = oldest(&document);
            all.push((document, oldest));
        }
    }
    for flags in MODES.iter().filter(|flags| !flags.contains(&"--enable-openshift")) {
        let by_cni = injected(&tools, flags, &[pod(BY_CNI)]).remove(0);
        for added in
            ["consul-connect-inject-redirect", "consul-connect-inject-init", "envoy-sidecar"]
        {
            assert_eq!(violations(spec(&by_cni), Some(added)), Vec::<String>::new(), "{flags:?}");
        }
        let since = oldest(&by_cni);
        all.push((by_cni, since));
        let document = injected(&tools, flags, &[pod(TRANSPARENT)]).remove(0);
        for added in ["consul-connect-inject-init", "envoy-sidecar"] {
            assert_eq!(violations(spec(&document), Some(added)), Vec::<String>::new(), "{flags:?}");
        }
        let found = violations(spec(&document), Some("consul-connect-inject-redirect"));
        assert!(found.iter().any(|it| it.contains("capabilities")), "{found:?}");
        let oldest = oldest(&document);
        all.push((document, oldest));
    }
    // Each mode occurs.
    let versions: BTreeSet<_> = all.iter().map(|(_, oldest)| *oldest).collect();
    assert_eq!(versions, BTreeSet::from(["1.25", "1.29", "1.30"]));
    let (_, wrong) = tools.validate(&all).unwrap();
    for ((document, oldest), wrong) in all.iter().zip(wrong) {
        assert_eq!(wrong, Vec::<String>::new(), "from {oldest}: {document:#}");
    }
    // The schemas differ between versions.
    let newer: Vec<_> = all
        .into_iter()
        .filter(|(_, oldest)| *oldest != "1.25")
        .map(|(pod, _)| (pod, "1.25"))
        .collect();
    let (_, wrong) = tools.validate(&newer).unwrap();
    for (wrong, (document, _)) in wrong.iter().zip(&newer) {
        assert!(wrong.iter().any(|wrong| wrong.starts_with("1.25: ")), "{document:#}");
    }
}
