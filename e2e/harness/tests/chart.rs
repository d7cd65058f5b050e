//! The injector's chart: Kubernetes, PodSecurity and the injector itself accept what Helm
//! renders.

#![expect(clippy::unwrap_used, reason = "fixtures are tests, too: the panic is the report")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use harness::pod_security::violations;
use harness::process::Process;
use harness::python::{CHART, Objects, Release, Rendered, Tools};
use harness::tutorial::ECHO_SERVER;
use serde_json::{Value, json};

/// A PEM certificate in base64, which Helm does not check.
const BUNDLE: &str = "LS0tLS1CRUdJTg==";

fn release(values: &Value) -> Release {
    Release { name: "mesh", namespace: "consul", values: with_images(values) }
}

/// The required values.
fn with_images(values: &Value) -> Value {
    let mut all = json!({"connectInject": {
        "image": "registry.example/connect-inject:1", "imageInit": "registry.example/connect-init:1",
    }});
    // Not a JSON merge patch, because null is a value in Helm.
    for (key, value) in values.as_object().unwrap() {
        match (key.as_str(), value.as_object()) {
            ("connectInject", Some(own)) => {
                all[key].as_object_mut().unwrap().extend(own.clone());
            }
            _ => all[key] = value.clone(),
        }
    }
    all
}

fn values_of(settings: &[(&str, Value)]) -> Value {
    let mut values = json!({});
    for (path, value) in settings {
        let mut place = &mut values;
        for key in path.split('.') {
            place = &mut place[key];
        }
        *place = value.clone();
    }
    values
}

/// The chart with these settings, one release for each.
fn render(tools: &Tools, settings: &[Value]) -> Rendered {
    let releases: Vec<_> = settings.iter().map(release).collect();
    tools.render(&releases).unwrap()
}

fn rendered(tools: &Tools, settings: &[(&str, Value)]) -> Objects {
    render(tools, &[values_of(settings)]).releases.remove(0).unwrap()
}

fn in_files_mode() -> [(&'static str, Value); 2] {
    [
        ("connectInject.certs.secretName", json!("serving")),
        ("connectInject.certs.caBundle", json!(BUNDLE)),
    ]
}

/// The injector's container.
fn container(objects: &Objects) -> &Value {
    &objects.one("Deployment")["spec"]["template"]["spec"]["containers"][0]
}

fn config(objects: &Objects) -> &str {
    let maps = objects.all("ConfigMap");
    maps.iter().find_map(|map| map["data"]["config.yaml"].as_str()).unwrap()
}

/// Validates every object against the schemas of every version.
fn is_valid(tools: &Tools, objects: &[Objects]) {
    let distinct: BTreeMap<String, &Value> = objects
        .iter()
        .flat_map(|objects| &objects.documents)
        // Kubernetes has no schemas for objects of the Prometheus operator.
        .filter(|document| document["apiVersion"] != "monitoring.coreos.com/v1")
        .map(|document| (document.to_string(), document))
        .collect();
    let documents: Vec<_> = distinct
        .values()
        .map(|document| {
            let is_conditional = document["webhooks"][0].get("matchConditions").is_some();
            ((*document).clone(), if is_conditional { "1.28" } else { "1.25" })
        })
        .collect();
    let (versions, wrong) = tools.validate(&documents).unwrap();
    assert_eq!((versions[0].as_str(), versions.last().unwrap().as_str()), ("1.25", "1.37"));
    assert_eq!(versions.len(), 13);
    for ((document, _), wrong) in documents.iter().zip(&wrong) {
        assert_eq!(wrong, &Vec::<String>::new(), "{document:#}");
    }
    for document in distinct.values().filter(|document| document["kind"] == "Deployment") {
        let spec = &document["spec"]["template"]["spec"];
        // PodSecurity forbids these in any case.
        if spec["hostNetwork"] == true {
            continue;
        }
        assert_eq!(violations(spec, None), Vec::<String>::new(), "{spec:#}");
    }
}

#[test]
fn the_defaults_render_the_documented_objects() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let mut rendered = render(&tools, &[json!({})]);
    assert_eq!(rendered.lint, Ok(()));
    assert_eq!(rendered.metadata["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(rendered.metadata["appVersion"], env!("CARGO_PKG_VERSION"));
    let objects = rendered.releases.remove(0).unwrap();
    is_valid(&tools, std::slice::from_ref(&objects));

    let webhooks = objects.one("MutatingWebhookConfiguration");
    // One webhook each for namespaces whose label says yes, no or nothing.
    assert_eq!(webhooks["webhooks"].as_array().unwrap().len(), 3);
    let webhook = &webhooks["webhooks"][0];
    for (field, expected) in [
        // The webhook gets every pod, so an outage must not stop the cluster.
        ("failurePolicy", json!("Ignore")),
        ("sideEffects", json!("None")),
        ("timeoutSeconds", json!(5)),
        ("matchPolicy", json!("Equivalent")),
        ("reinvocationPolicy", json!("IfNeeded")),
        ("matchConditions", json!(null)),
    ] {
        assert_eq!(webhook[field], expected, "{field}");
    }
    assert_eq!(webhook["rules"][0]["operations"], json!(["CREATE"]));
    assert_eq!(webhook["rules"][0]["resources"], json!(["pods"]));
    let left_out = &webhook["objectSelector"]["matchExpressions"][0];
    let deployment = objects.one("Deployment");
    let pod = &deployment["spec"]["template"];
    assert_eq!(left_out["key"], "app.kubernetes.io/name");
    assert_eq!(left_out["values"], json!([pod["metadata"]["labels"]["app.kubernetes.io/name"]]));

    // References between objects.
    let service = objects.one("Service");
    let to = &webhook["clientConfig"]["service"];
    assert_eq!(to["name"], service["metadata"]["name"]);
    assert_eq!(to["namespace"], service["metadata"]["namespace"]);
    assert_eq!(to["path"], "/mutate");
    assert_eq!(to["port"], service["spec"]["ports"][0]["port"]);
    let port = &service["spec"]["ports"][0]["targetPort"];
    let ports = container(&objects)["ports"].as_array().unwrap();
    assert!(ports.iter().any(|found| found["name"] == *port && found["containerPort"] == 8443));
    for probe in ["livenessProbe", "readinessProbe"] {
        let port = &container(&objects)[probe]["httpGet"]["port"];
        assert!(ports.iter().any(|found| found["name"] == *port && found["containerPort"] == 9445));
    }
    let budget = objects.one("PodDisruptionBudget");
    for selector in [
        &service["spec"]["selector"],
        &deployment["spec"]["selector"]["matchLabels"],
        &budget["spec"]["selector"]["matchLabels"],
        &pod["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ] {
        for (key, value) in selector.as_object().unwrap() {
            assert_eq!(pod["metadata"]["labels"][key], *value, "{key}");
        }
    }

    assert_eq!(deployment["spec"]["replicas"], 2);
    assert_eq!(budget["spec"]["maxUnavailable"], 1);
    // Has room for 5 s of answering and 15 s of finishing.
    assert!(pod["spec"]["terminationGracePeriodSeconds"].as_u64() > Some(20));
    assert_eq!(pod["spec"]["securityContext"]["runAsUser"], 5995);
    assert_eq!(container(&objects)["securityContext"]["readOnlyRootFilesystem"], true);
    assert!(container(&objects)["resources"]["limits"].get("cpu").is_none());
}

#[test]
fn the_injectors_own_certificate_requires_minimal_rights() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let objects = rendered(&tools, &[]);
    let name = objects.one("MutatingWebhookConfiguration")["metadata"]["name"].clone();
    let args = &container(&objects)["args"];
    let arg = |name: &str| {
        let mut flags = args.as_array().unwrap().iter().filter_map(Value::as_str);
        flags.find_map(|arg| arg.strip_prefix(name)?.strip_prefix('=')).unwrap().to_owned()
    };
    assert_eq!(json!(arg("--tls-auto")), name);
    let service = objects.one("Service")["metadata"]["name"].as_str().unwrap();
    assert!(arg("--tls-auto-hosts").split(',').any(|host| host == format!("{service}.consul.svc")));

    let secret = objects.one("Secret");
    assert_eq!(secret["metadata"]["name"], format!("{}-tls", name.as_str().unwrap()));
    // An upgrade would overwrite what the injector wrote.
    assert!(secret.get("data").is_none() && secret.get("stringData").is_none());
    assert_eq!(
        objects.one("Role")["rules"],
        json!([{
            "apiGroups": [""],
            "resources": ["secrets"],
            "resourceNames": [secret["metadata"]["name"]],
            "verbs": ["get", "update"],
        }])
    );
    assert_eq!(
        objects.one("ClusterRole")["rules"],
        json!([{
            "apiGroups": ["admissionregistration.k8s.io"],
            "resources": ["mutatingwebhookconfigurations"],
            "resourceNames": [name],
            "verbs": ["get", "patch", "watch"],
        }])
    );
    let account = &objects.one("ServiceAccount")["metadata"];
    let pod = &objects.one("Deployment")["spec"]["template"]["spec"];
    assert_eq!(pod["serviceAccountName"], account["name"]);
    assert_eq!(pod["automountServiceAccountToken"], true);
    for (binding, role) in [("RoleBinding", "Role"), ("ClusterRoleBinding", "ClusterRole")] {
        let binding = objects.one(binding);
        assert_eq!(binding["roleRef"]["kind"], role);
        assert_eq!(binding["roleRef"]["name"], objects.one(role)["metadata"]["name"]);
        assert_eq!(
            binding["subjects"],
            json!([{"kind": "ServiceAccount", "name": account["name"], "namespace": "consul"}])
        );
    }
    // Written by the injector, not managed by Helm.
    let webhook = &objects.one("MutatingWebhookConfiguration")["webhooks"][0];
    assert!(webhook["clientConfig"].get("caBundle").is_none());
}

#[test]
fn with_a_certificate_in_files_there_is_no_access_to_the_api() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let with_bundle = rendered(&tools, &in_files_mode());
    let annotation = json!({"cert-manager.io/inject-ca-from": "consul/serving"});
    let with_cert_manager = rendered(
        &tools,
        &[
            ("connectInject.certs.secretName", json!("serving")),
            ("connectInject.webhookAnnotations", annotation.clone()),
        ],
    );
    for objects in [&with_bundle, &with_cert_manager] {
        for document in &objects.documents {
            let is_access = document["apiVersion"].as_str().unwrap().starts_with("rbac.");
            assert!(!is_access && document["kind"] != "Secret", "{document:#}");
        }
        let pod = &objects.one("Deployment")["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(objects.one("ServiceAccount")["automountServiceAccountToken"], false);
        let args = container(objects)["args"].to_string();
        assert!(!args.contains("--tls-auto"), "{args}");
        let volumes = pod["volumes"].as_array().unwrap();
        assert!(volumes.iter().any(|volume| volume["secret"]["secretName"] == "serving"));
    }
    let bundle = |objects: &Objects| {
        let webhooks = objects.one("MutatingWebhookConfiguration");
        webhooks["webhooks"][0]["clientConfig"]["caBundle"].clone()
    };
    assert_eq!(bundle(&with_bundle), BUNDLE);
    assert_eq!(bundle(&with_cert_manager), Value::Null);
    let webhooks = with_cert_manager.one("MutatingWebhookConfiguration");
    assert_eq!(webhooks["metadata"]["annotations"], annotation);
    is_valid(&tools, &[with_bundle, with_cert_manager]);
}

/// The path of a value, and the value.
type Setting = (&'static str, Value);

/// For each path, a value other than the default.
fn plain() -> Vec<Setting> {
    vec![
        ("enabled", json!(false)),
        ("global.name", json!("other")),
        ("global.imagePullPolicy", json!("Always")),
        ("global.imagePullSecrets", json!([{"name": "registry"}, "other"])),
        ("global.logLevel", json!("debug")),
        ("global.logJSON", json!(true)),
        ("global.extraLabels", json!({"team": "mesh"})),
        ("global.openshift.enabled", json!(true)),
        ("global.metrics.enabled", json!(true)),
        ("fullnameOverride", json!("injector")),
        ("connectInject.enabled", json!(false)),
        ("connectInject.default", json!(true)),
        ("connectInject.replicas", json!(3)),
        ("connectInject.disruptionBudget.enabled", json!(false)),
        ("connectInject.disruptionBudget.maxUnavailable", json!("50%")),
        ("connectInject.disruptionBudget.minAvailable", json!(1)),
        ("connectInject.image", json!("registry.example/injector:1")),
        ("connectInject.imageInit", json!("registry.example/init@sha256:00")),
        ("connectInject.imageEnvoy", json!("registry.example/envoy:1")),
        ("connectInject.k8sAllowNamespaces", json!(["shop", "till"])),
        ("connectInject.k8sDenyNamespaces", json!(["vault"])),
        ("connectInject.namespaceSelector", json!("matchLabels:\n  mesh: {{ .Release.Name }}\n")),
        ("connectInject.failurePolicy", json!("Fail")),
        ("connectInject.timeoutSeconds", json!(10)),
        ("connectInject.webhookAnnotations", json!({"a": "b"})),
        ("connectInject.kubernetesVersion", json!("v1.31.2-gke.1")),
        ("connectInject.oldestKubeletVersion", json!("1.30")),
        ("connectInject.agent.httpAddr", json!("http://$(NODE_NAME):8500")),
        ("connectInject.agent.grpcAddr", json!("$(NODE_NAME):8502")),
        ("connectInject.agent.caCert.secretName", json!("consul-ca-cert")),
        ("connectInject.agent.tlsServerName", json!("client.dc1.consul")),
        ("connectInject.overrideAuthMethodName", json!("consul-k8s-auth-method")),
        ("connectInject.logLevel", json!("warn")),
        ("connectInject.listenAddress", json!("[::]")),
        ("connectInject.port", json!(10250)),
        ("connectInject.hostNetwork", json!(true)),
        ("connectInject.dnsPolicy", json!("Default")),
        ("connectInject.revisionHistoryLimit", json!(2)),
        ("connectInject.networkPolicy.enabled", json!(true)),
        ("connectInject.monitoring.serviceMonitor.enabled", json!(true)),
        ("connectInject.monitoring.podMonitor.enabled", json!(true)),
        ("connectInject.monitoring.prometheusRule.enabled", json!(true)),
        ("connectInject.monitoring.dashboard.enabled", json!(true)),
        ("connectInject.resources.requests.cpu", json!("1")),
        ("connectInject.resources.requests.memory", json!("64Mi")),
        ("connectInject.resources.limits.memory", json!("1Gi")),
        ("connectInject.nodeSelector", json!({"kubernetes.io/arch": "amd64"})),
        ("connectInject.tolerations", json!("- operator: Exists\n")),
        (
            "connectInject.affinity",
            json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname"}
            ]}}),
        ),
        (
            "connectInject.topologySpreadConstraints",
            json!([{"topologyKey": "rack", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}]),
        ),
        ("connectInject.priorityClassName", json!("high")),
        ("connectInject.annotations", json!({"a": "b"})),
        ("connectInject.extraLabels", json!({"a": "b"})),
        ("connectInject.serviceAccount.annotations", json!({"a": "b"})),
        ("connectInject.metrics.defaultEnabled", json!(true)),
        ("connectInject.metrics.defaultEnableMerging", json!(true)),
        ("connectInject.metrics.defaultMergedMetricsPort", json!(20101)),
        ("connectInject.metrics.defaultPrometheusScrapePort", json!(20300)),
        ("connectInject.metrics.defaultPrometheusScrapePath", json!("/stats")),
        ("connectInject.transparentProxy.defaultEnabled", json!(true)),
        ("connectInject.transparentProxy.defaultOverwriteProbes", json!(false)),
        ("connectInject.transparentProxy.defaultConsulDNS", json!(true)),
        ("connectInject.cni.enabled", json!(true)),
        ("connectInject.envoyExtraArgs", json!("--log-level debug --component-log-level 'a:b'")),
        ("connectInject.sidecarProxy.mode", json!("container")),
        ("connectInject.sidecarProxy.concurrency", json!(0)),
        ("connectInject.sidecarProxy.logLevel", json!("error")),
        ("connectInject.sidecarProxy.imagePullSecrets", json!([{"name": "a"}, {"name": "b"}])),
        ("connectInject.sidecarProxy.resources.requests.cpu", json!(0.5)),
        ("connectInject.sidecarProxy.resources.requests.memory", json!(134_217_728)),
        ("connectInject.sidecarProxy.resources.limits.cpu", json!("1")),
        ("connectInject.sidecarProxy.resources.limits.memory", json!("1Gi")),
        ("connectInject.sidecarProxy.defaultStartupFailureSeconds", json!(60)),
        ("connectInject.sidecarProxy.defaultLivenessFailureSeconds", json!(60)),
        ("connectInject.sidecarProxy.defaultUseProxyHealthCheck", json!(false)),
        ("connectInject.sidecarProxy.lifecycle.defaultStartupGracePeriodSeconds", json!(0)),
        ("connectInject.sidecarProxy.lifecycle.defaultShutdownGracePeriodSeconds", json!(0)),
        ("connectInject.sidecarProxy.lifecycle.defaultApplicationSleepSeconds", json!(0)),
        ("connectInject.initContainer.resources.requests.cpu", json!("10m")),
        ("connectInject.initContainer.resources.requests.memory", json!("10Mi")),
        ("connectInject.initContainer.resources.limits.cpu", json!("1")),
        // Removed.
        ("connectInject.initContainer.resources.limits.memory", json!(null)),
    ]
}

/// The same, with the other values that each requires.
fn samples() -> Vec<(Setting, Vec<Setting>)> {
    let version = ("connectInject.kubernetesVersion", json!("1.28"));
    let files = || in_files_mode().to_vec();
    let ca = ("connectInject.agent.caCert.secretName", json!("consul-ca-cert"));
    let auto = || vec![ca.clone(), ("connectInject.agent.autoEncrypt.enabled", json!(true))];
    let by_global = ("connectInject.enabled", json!("-"));
    let policy = || vec![("connectInject.networkPolicy.enabled", json!(true))];
    let on = |what| {
        vec![match what {
            "serviceMonitor" => ("connectInject.monitoring.serviceMonitor.enabled", json!(true)),
            "podMonitor" => ("connectInject.monitoring.podMonitor.enabled", json!(true)),
            "prometheusRule" => ("connectInject.monitoring.prometheusRule.enabled", json!(true)),
            _ => ("connectInject.monitoring.dashboard.enabled", json!(true)),
        }]
    };
    let audit = || vec![("connectInject.audit.enabled", json!(true))];
    let cni = || vec![("connectInject.cni.enabled", json!(true))];
    let audit_token = ("connectInject.audit.aclToken.secretName", json!("token"));
    let of_audit_token = [
        audit(),
        vec![audit_token.clone(), ("connectInject.audit.aclToken.secretKey", json!("token"))],
    ]
    .concat();
    let token = ("connectInject.aclInjectToken.secretName", json!("token"));
    let of_token = vec![token.clone(), ("connectInject.aclInjectToken.secretKey", json!("token"))];
    let mut samples: Vec<_> = plain().into_iter().map(|setting| (setting, Vec::new())).collect();
    samples.extend([
        (("global.enabled", json!(false)), vec![by_global]),
        (("connectInject.cni.cniBinDir", json!("/var/lib/cni/bin")), cni()),
        (("connectInject.cni.cniNetDir", json!("/var/lib/cni/net.d")), cni()),
        (("connectInject.cni.logLevel", json!("debug")), cni()),
        (("connectInject.cni.nodeSelector", json!({"mesh": "on"})), cni()),
        (("connectInject.cni.tolerations", json!([{"key": "a", "operator": "Exists"}])), cni()),
        (("connectInject.cni.priorityClassName", json!("")), cni()),
        (("connectInject.cni.resources.requests.cpu", json!("1m")), cni()),
        (("connectInject.cni.resources.requests.memory", json!("8Mi")), cni()),
        (("connectInject.cni.resources.limits.memory", json!("64Mi")), cni()),
        (("connectInject.networkPolicy.metricsFrom", json!([{"podSelector": {}}])), policy()),
        (("connectInject.networkPolicy.egress", json!([{"ports": [{"port": 6443}]}])), policy()),
        (
            ("connectInject.monitoring.serviceMonitor.labels", json!({"a": "b"})),
            on("serviceMonitor"),
        ),
        (("connectInject.monitoring.serviceMonitor.interval", json!("15s")), on("serviceMonitor")),
        (("connectInject.monitoring.podMonitor.labels", json!({"a": "b"})), on("podMonitor")),
        (("connectInject.monitoring.podMonitor.interval", json!("15s")), on("podMonitor")),
        (
            ("connectInject.monitoring.prometheusRule.labels", json!({"a": "b"})),
            on("prometheusRule"),
        ),
        (
            ("connectInject.monitoring.dashboard.labels.grafana_dashboard", json!("2")),
            on("dashboard"),
        ),
        (("connectInject.monitoring.dashboard.annotations", json!({"a": "b"})), on("dashboard")),
        (("connectInject.onlyAnnotatedPods", json!(false)), vec![version]),
        (("connectInject.agent.autoEncrypt.enabled", json!(true)), vec![ca.clone()]),
        (("connectInject.agent.autoEncrypt.serverAddr", json!("https://s:8501")), auto()),
        (("connectInject.agent.autoEncrypt.serverName", json!("server.dc2.consul")), auto()),
        (("connectInject.agent.caCert.secretKey", json!("ca.pem")), vec![ca.clone()]),
        (("connectInject.certs.secretName", json!("other")), files()),
        (("connectInject.certs.caBundle", json!("QQ==")), files()),
        (("connectInject.certs.certName", json!("serving.pem")), files()),
        (("connectInject.certs.keyName", json!("serving.key")), files()),
        (("connectInject.audit.enabled", json!(true)), Vec::new()),
        (("connectInject.audit.schedule", json!("*/5 * * * *")), audit()),
        (("connectInject.audit.only", json!(["token-orphaned"])), audit()),
        (("connectInject.audit.metrics", json!(false)), audit()),
        ((audit_token.0, json!("other")), of_audit_token.clone()),
        (("connectInject.audit.aclToken.secretKey", json!("other")), of_audit_token),
        ((token.0, json!("other")), of_token.clone()),
        (("connectInject.aclInjectToken.secretKey", json!("other")), of_token),
    ]);
    samples
}

/// The paths of values.yaml.
fn paths(values: &Value, prefix: &str) -> BTreeSet<String> {
    match values.as_object() {
        Some(values) if !values.is_empty() => values
            .iter()
            .flat_map(|(key, value)| paths(value, &format!("{prefix}.{key}")))
            .collect(),
        _ => BTreeSet::from([prefix.trim_start_matches('.').to_owned()]),
    }
}

#[test]
fn every_value_has_an_effect_that_the_injector_accepts() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let samples = samples();
    let releases: Vec<_> = samples
        .iter()
        .flat_map(|(setting, needs)| {
            let with = [needs.as_slice(), std::slice::from_ref(setting)].concat();
            [values_of(needs), values_of(&with)]
        })
        .collect();
    let rendered = render(&tools, &releases);
    let set: BTreeSet<_> = samples.iter().map(|((path, _), _)| (*path).to_owned()).collect();
    assert_eq!(set, paths(&rendered.values, ""));

    let releases: Vec<_> = rendered.releases.into_iter().map(Result::unwrap).collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let mut configs = BTreeSet::new();
    for (((path, _), _), pair) in samples.iter().zip(releases.chunks(2)) {
        assert!(pair[0].documents != pair[1].documents, "{path}");
        if !pair[1].documents.is_empty() && configs.insert(config(&pair[1]).to_owned()) {
            let log = explained(&tools, &file, config(&pair[1]));
            assert_eq!(log, Ok(()), "{path}");
        }
    }
    assert!(configs.len() > 20);
    is_valid(&tools, &releases);

    let refused = explained(&tools, &file, "init-image: a\nenvoy-image: b\nnothing: 1\n");
    assert!(refused.unwrap_err().contains("`nothing`: unknown setting"));
}

/// Whether the injector accepts a policy, or its error.
#[expect(clippy::disallowed_methods, reason = "nobody reads it meanwhile")]
fn explained(tools: &Tools, file: &Path, config: &str) -> Result<(), String> {
    let ca = file.with_file_name("ca.pem");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&ca, made.cert.pem()).unwrap();
    // With this machine's path.
    let config = config
        .replace("/consul/ca/tls.crt", ca.to_str().unwrap())
        .replace("/consul/ca/ca.pem", ca.to_str().unwrap());
    std::fs::write(file, config).unwrap();
    let output = Command::new(&tools.injector)
        .args(["explain", "--filename", "/dev/null", "--config"])
        .arg(file)
        .output()
        .unwrap();
    match output.status.code() {
        Some(0) => Ok(()),
        _ => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn the_chart_sets_every_flag_of_the_policy_with_its_default() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let readme = include_str!("../../../bins/connect-inject/README.md");
    let policy = readme.split("### Policy\n").nth(1).unwrap().split("\n### ").next();
    let flags: BTreeMap<&str, &str> = policy
        .unwrap()
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `--")?.split('|').map(str::trim);
            Some((cells.next()?.trim_end_matches('`'), cells.nth(1)?))
        })
        .filter(|(flag, _)| *flag != "config")
        .collect();
    let settings = [
        ("connectInject.sidecarProxy.lifecycle.defaultShutdownGracePeriodSeconds", json!(1)),
        ("connectInject.kubernetesVersion", json!("1.31")),
        ("connectInject.oldestKubeletVersion", json!("1.30")),
        ("connectInject.agent.httpAddr", json!("https://$(HOST_IP):8501")),
        ("connectInject.agent.grpcAddr", json!("https://$(HOST_IP):8502")),
        ("connectInject.agent.caCert.secretName", json!("consul-ca-cert")),
        ("connectInject.agent.tlsServerName", json!("client.dc1.consul")),
    ];
    let keys = |objects: &Objects| -> BTreeMap<String, Value> {
        serde_saphyr::from_str(config(objects)).unwrap()
    };
    let every = keys(&rendered(&tools, &settings));
    assert_eq!(every.keys().collect::<Vec<_>>(), flags.keys().collect::<Vec<_>>());
    for (flag, value) in keys(&rendered(&tools, &[])) {
        let shown = match &value {
            Value::String(text) if text.is_empty() => "none".to_owned(),
            Value::String(text) => format!("`{text}`"),
            Value::Array(list) if list.is_empty() => "none".to_owned(),
            Value::Array(list) => format!("`{}`", list[0].as_str().unwrap()),
            value => format!("`{value}`"),
        };
        let default = flags[flag.as_str()];
        let is_default = shown == default || shown == "none" && default == "Kubernetes'";
        assert!(is_default || default == "required", "{flag}: {shown}, not {default}");
    }
}

#[test]
fn the_real_injector_starts_with_the_deployments_arguments() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let objects = rendered(&tools, &in_files_mode());
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        #[expect(clippy::disallowed_methods, reason = "nobody reads it yet")]
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let config = file("config.yaml", config(&objects));
    let cert = file("tls.crt", &made.cert.pem());
    let key = file("tls.key", &made.signing_key.serialize_pem());
    let container = container(&objects);
    let args: Vec<String> = container["args"]
        .as_array()
        .unwrap()
        .iter()
        .map(|arg| {
            let arg = arg.as_str().unwrap();
            // With this machine's files and ports.
            arg.replace("/config/config.yaml", &config)
                .replace("/tls/tls.crt", &cert)
                .replace("/tls/tls.key", &key)
                .replace("0.0.0.0:8443", "127.0.0.1:0")
                .replace("0.0.0.0:9445", "127.0.0.1:0")
        })
        .collect();
    let env: Vec<_> = container["env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variable| {
            let value = variable["value"].as_str().unwrap_or("10.0.0.1");
            let value = value.replace("$(HOST_IP)", "10.0.0.1");
            (variable["name"].as_str().unwrap().to_owned(), value)
        })
        .collect();
    let env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let log = folder.path().join("log");
    let mut injector = Process::start("injector", log, &tools.injector, &args, &env).unwrap();
    injector.await_output("answering reviews over HTTPS").unwrap();
    injector.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    injector.await_output("not ready any more, still serving").unwrap();
    injector.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    injector.wait().unwrap();
}

#[test]
fn without_certificate_files_the_real_injector_fails_only_for_lack_of_a_cluster() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let objects = rendered(&tools, &[]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    assert_eq!(explained(&tools, &file, config(&objects)), Ok(()));
    let args =
        container(&objects)["args"].as_array().unwrap().iter().map(|arg| {
            arg.as_str().unwrap().replace("/config/config.yaml", file.to_str().unwrap())
        });
    let output = Command::new(&tools.injector)
        .args(args)
        .env_remove("KUBECONFIG")
        .env_remove("KUBERNETES_SERVICE_HOST")
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{log}");
    let (before, _) = log.split_once("--tls-auto: cannot reach the Kubernetes API").unwrap();
    assert!(!before.contains("--"), "another mistake: {log}");
}

#[test]
fn invalid_values_are_rejected_with_the_reason() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let cases = [
        ("connectInject.replica", json!(2), "replica"),
        ("sevrer.replicas", json!(1), "sevrer"),
        ("connectInject.default", json!("yes"), "boolean"),
        ("connectInject.replicas", json!(0), "minimum"),
        ("connectInject.image", json!("two words"), "pattern"),
        ("connectInject.failurePolicy", json!("Maybe"), "failurePolicy"),
        ("connectInject.timeoutSeconds", json!(31), "maximum"),
        ("connectInject.k8sAllowNamespaces", json!("shop"), "array"),
        ("connectInject.k8sDenyNamespaces", json!(["Shop"]), "pattern"),
        // "*" is no name: the API server would reject it in the webhook's namespaceSelector.
        ("connectInject.k8sDenyNamespaces", json!(["*"]), "pattern"),
        ("connectInject.kubernetesVersion", json!(1.3), "string"),
        ("connectInject.kubernetesVersion", json!("latest"), "pattern"),
        ("connectInject.logLevel", json!("loud"), "logLevel"),
        ("connectInject.port", json!(443), "minimum"),
        ("connectInject.port", json!(9445), "port"),
        ("connectInject.sidecarProxy.resources.limits.cpu", json!("1 core"), "pattern"),
        ("connectInject.sidecarProxy.resources.limit.cpu", json!(1), "limit"),
        ("connectInject.sidecarProxy.mode", json!("both"), "mode"),
        ("connectInject.certs.secretName", json!("serving"), "caBundle"),
        ("connectInject.namespaceSelector", json!("a: [b"), "not a label selector"),
        ("connectInject.certs.caBundle", json!(BUNDLE), "secretName"),
        ("connectInject.certs.caBundle", json!("-----BEGIN"), "caBundle"),
        ("connectInject.aclInjectToken.secretName", json!("token"), "secretKey"),
        ("connectInject.audit.schedule", json!(""), "schedule"),
        ("connectInject.audit.only", json!(["pod-withuot-sidecar"]), "pod-without-sidecar"),
        ("connectInject.cni.cniNetDir", json!("etc/cni/net.d"), "pattern"),
        ("global.imagePullSecrets", json!(["two words"]), "pattern"),
        ("global.extraLabels", json!("team: [a"), "not a YAML map"),
        ("global.logLevel", json!("verbose"), "logLevel"),
        ("fullnameOverride", json!("Injector"), "pattern"),
    ];
    let values: Vec<_> = cases.iter().map(|case| values_of(&[(case.0, case.1.clone())])).collect();
    let releases = render(&tools, &values).releases;
    for ((path, value, reason), release) in cases.iter().zip(releases) {
        let error = release.expect_err(path);
        assert!(error.contains(reason), "{path}: {value}: {error}");
    }
}

/// The injector would exit with code 64.
#[test]
fn values_that_contradict_each_other_are_rejected_with_the_reason() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let sidecar = |request: Value, limit: Value| {
        [
            ("connectInject.sidecarProxy.resources.requests.memory", request),
            ("connectInject.sidecarProxy.resources.limits.memory", limit),
        ]
    };
    let refused = [
        (
            [
                ("global.openshift.enabled", json!(true)),
                ("connectInject.transparentProxy.defaultEnabled", json!(true)),
            ],
            "on OpenShift",
        ),
        (
            [
                ("connectInject.sidecarProxy.mode", json!("native")),
                ("connectInject.kubernetesVersion", json!("1.28")),
            ],
            "Kubernetes 1.28 has no native sidecars",
        ),
        (
            [
                ("connectInject.dataplaneAsSidecarInitContainer.defaultEnabled", json!(true)),
                ("connectInject.kubernetesVersion", json!("1.28")),
            ],
            "Kubernetes 1.28 has no native sidecars",
        ),
        (
            [
                ("connectInject.initContainer.resources.requests.cpu", json!(1)),
                ("connectInject.initContainer.resources.limits.cpu", json!("999m")),
            ],
            "connectInject.initContainer.resources.requests.cpu is 1, above its limit of 999m",
        ),
        (sidecar(json!("65Mi"), json!("68M")), "is 65Mi, above its limit of 68M"),
        (sidecar(json!("2e9"), json!("1Gi")), "is 2e9, above its limit of 1Gi"),
        (
            sidecar(json!(100_000_000), json!(10_000_000)),
            "is 100000000, above its limit of 10000000:",
        ),
    ];
    let accepted = [
        sidecar(json!("64Mi"), json!("68M")),
        sidecar(json!("1000m"), json!(1)),
        sidecar(json!("1e9"), json!("1Gi")),
        sidecar(json!("1Gi"), Value::Null),
    ];
    let settings: Vec<_> = refused.iter().map(|(settings, _)| settings).chain(&accepted).collect();
    let values: Vec<_> = settings.iter().map(|settings| values_of(&settings[..])).collect();
    let mut releases = render(&tools, &values).releases.into_iter();
    for ((settings, reason), release) in refused.iter().zip(releases.by_ref()) {
        let error = release.expect_err(reason);
        assert!(error.contains(reason), "{settings:?}: {error}");
    }
    for (settings, release) in accepted.iter().zip(releases) {
        release.unwrap_or_else(|error| panic!("{settings:?}: {error}"));
    }
}

#[test]
fn the_schema_has_the_codes_of_all_findings() {
    let chart = Path::new(CHART);
    let schema = std::fs::read_to_string(chart.join("values.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let only = "/properties/connectInject/properties/audit/properties/only/items/enum";
    let allowed = schema.pointer(only).unwrap();
    let readme = std::fs::read_to_string(chart.join("../README.md")).unwrap();
    let findings = readme.split("### Findings of audit").nth(1).unwrap();
    let findings = findings.split("\n## ").next().unwrap();
    let codes = findings.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    assert_eq!(*allowed, json!(codes.collect::<Vec<_>>()));
}

/// A value that is null, as in a parent chart or a copied file, means the default.
#[test]
fn null_is_the_default() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let all = render(&tools, &[json!({})]);
    // Values whose default is unset.
    let paths = paths(&all.values, "").into_iter().filter(|path| !path.contains(".resources."));
    let paths: Vec<_> = paths.filter(|path| !path.starts_with("connectInject.image")).collect();
    let sections = paths.iter().filter_map(|path| path.rsplit_once('.')).map(|(path, _)| path);
    let sections: BTreeSet<_> = sections.collect();
    // Images have no default.
    let sections = sections.into_iter().filter(|path| *path != "connectInject");
    let paths: Vec<_> = paths.iter().map(String::as_str).chain(sections).collect();
    let values: Vec<_> = paths.iter().map(|path| values_of(&[(path, json!(null))])).collect();
    let nulls = render(&tools, &values).releases;
    let default = all.releases[0].as_ref().unwrap();
    for (path, objects) in paths.iter().zip(nulls) {
        assert_eq!(objects.as_ref(), Ok(default), "{path}");
    }
}

/// Features of values files of Consul's own chart: multi-line strings, `-`, nulls, other
/// components, and x- keys for anchors.
#[test]
fn a_values_file_of_consuls_own_chart_is_accepted() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let values: Value = serde_saphyr::from_str(
        r#"
x-labels: &labels {team: mesh}
global:
  name: consul
  enabled: true
  datacenter: dc1
  image: hashicorp/consul:1.14.11
  imageEnvoy: registry.example/envoy:1
  imagePullSecrets: [{name: a}, {name: b}]
  tls: {enabled: true, httpsOnly: false, caCert: {secretName: null, secretKey: null}}
  acls: {manageSystemACLs: true}
  adminPartitions: {enabled: false}
server: {replicas: 3, storage: 5Gi}
client: {enabled: true, grpc: true, exposeGossipPorts: true}
dns: {enableRedirection: "-"}
ui: {enabled: "-"}
meshGateway: {enabled: true}
connectInject:
  x-more: {}
  enabled: "-"
  default: null
  replicas: 3
  transparentProxy: {defaultEnabled: true, defaultOverwriteProbes: true}
  dataplaneAsSidecarInitContainer: {defaultEnabled: true}
  consulNamespaces: {mirroringK8S: true}
  extraLabels: *labels
  annotations: |
    "sample/annotation": "{{ .Release.Name }}"
  serviceAccount:
    annotations: |
      eks.amazonaws.com/role-arn: "arn"
  nodeSelector: |
    kubernetes.io/arch: amd64
  resources: |
    requests: {memory: 50Mi}
  namespaceSelector: |
    matchLabels: {mesh: "on"}
  sidecarProxy:
    concurrency: "3"
    lifecycle: {defaultEnabled: true, defaultGracefulPort: 20600}
    resources: {requests: {memory: 100Mi, cpu: null}, limits: {memory: null, cpu: null}}
"#,
    )
    .unwrap();
    let objects = render(&tools, &[values]).releases.remove(0).unwrap();
    is_valid(&tools, std::slice::from_ref(&objects));
    let deployment = objects.one("Deployment");
    assert_eq!(deployment["metadata"]["name"], "consul-connect-inject");
    assert_eq!(deployment["spec"]["replicas"], 3);
    let pod = &deployment["spec"]["template"];
    assert_eq!(pod["metadata"]["annotations"]["sample/annotation"], "mesh");
    assert_eq!(pod["metadata"]["labels"]["team"], "mesh");
    assert_eq!(pod["spec"]["nodeSelector"]["kubernetes.io/arch"], "amd64");
    let container = container(&objects);
    assert_eq!(container["resources"], json!({"requests": {"memory": "50Mi"}}));
    let policy = config(&objects);
    for line in ["default-transparent-proxy: true", "default-consul-dns: true"] {
        assert!(policy.contains(line), "{policy}");
    }
    let account = objects.one("ServiceAccount");
    assert_eq!(account["imagePullSecrets"], json!([{"name": "a"}, {"name": "b"}]));
    assert_eq!(account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"], "arn");
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    assert!(volumes.iter().any(|volume| volume["secret"]["secretName"] == "consul-ca-cert"));
    let config = config(&objects);
    for line in [
        "envoy-image: \"registry.example/envoy:1\"",
        "consul-ca-cert: /consul/ca/tls.crt",
        "acl-auth-method: \"consul-k8s-auth-method\"",
        "default-envoy-proxy-concurrency: 3",
        "sidecar-mode: \"native\"",
        "default-sidecar-proxy-cpu-request: \"\"",
        "default-sidecar-proxy-memory-request: \"100Mi\"",
    ] {
        assert!(config.lines().any(|found| found == line), "{line}\n{config}");
    }
    // The notes name guessed values.
    for part in ["consul/consul-ca-cert", "consul-k8s-auth-method", "global.name"] {
        assert!(objects.notes.contains(part), "{part}: {}", objects.notes);
    }
}

/// The labels exist by which the Prometheus operator, Grafana and a network plug-in select.
#[test]
fn monitoring_finds_the_injector() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let objects = rendered(
        &tools,
        &[
            ("connectInject.networkPolicy.enabled", json!(true)),
            ("connectInject.networkPolicy.metricsFrom", json!([{"namespaceSelector": {}}])),
            ("connectInject.monitoring.serviceMonitor.enabled", json!(true)),
            ("connectInject.monitoring.serviceMonitor.labels", json!({"release": "prometheus"})),
            ("connectInject.monitoring.podMonitor.enabled", json!(true)),
            ("connectInject.monitoring.prometheusRule.enabled", json!(true)),
            ("connectInject.monitoring.dashboard.enabled", json!(true)),
        ],
    );
    let has = |labels: &Value, selector: &Value| {
        let selector = selector["matchLabels"].as_object().unwrap();
        selector.iter().all(|(key, value)| labels[key] == *value)
    };
    let service = objects.one("Service");
    let monitor = objects.one("ServiceMonitor");
    assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
    assert!(has(&service["metadata"]["labels"], &monitor["spec"]["selector"]));
    let endpoint = &monitor["spec"]["endpoints"][0];
    let ports = service["spec"]["ports"].as_array().unwrap();
    let port = ports.iter().find(|port| port["name"] == endpoint["port"]).unwrap();
    let of_container = container(&objects)["ports"].as_array().unwrap();
    assert!(of_container.iter().any(|found| found["name"] == port["targetPort"]));

    let policy = &objects.one("NetworkPolicy")["spec"];
    let pod = &objects.one("Deployment")["spec"]["template"];
    assert!(has(&pod["metadata"]["labels"], &policy["podSelector"]));
    assert_eq!(policy["policyTypes"], json!(["Ingress"]));
    let open = |name: &str| {
        let rules = policy["ingress"].as_array().unwrap();
        let rule = rules.iter().find(|rule| rule["ports"][0]["port"] == name).unwrap();
        rule["from"].clone()
    };
    assert_eq!(open("webhook"), Value::Null);
    assert_eq!(open("admin"), json!([{"namespaceSelector": {}}]));

    // bins/connect-inject sets the port's name and the label.
    let pods = &objects.one("PodMonitor")["spec"];
    let ports = pods["podMetricsEndpoints"].as_array().unwrap().iter().map(|each| &each["port"]);
    assert_eq!(ports.collect::<Vec<_>>(), ["prometheus", "envoy-metrics"]);
    assert_eq!(
        pods["selector"]["matchLabels"],
        json!({"consul.hashicorp.com/connect-inject-status": "injected"})
    );
    let groups = objects.one("PrometheusRule")["spec"]["groups"].as_array().unwrap();
    let groups: Vec<_> = groups.iter().map(|group| group["name"].as_str().unwrap()).collect();
    assert_eq!(groups, ["connect-inject", "connect-audit", "connect-sidecars"]);
    let maps = objects.all("ConfigMap");
    let dashboard = maps.iter().find(|map| map["metadata"]["labels"]["grafana_dashboard"] == "1");
    let text = dashboard.unwrap()["data"]["mesh-connect-inject.json"].as_str().unwrap();
    let dashboard: Value = serde_json::from_str(text).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 10);
    is_valid(&tools, &[objects]);
}

/// For clusters whose API server reaches only nodes.
#[test]
fn it_can_run_in_the_network_of_the_nodes() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let host = ("connectInject.hostNetwork", json!(true));
    let objects = rendered(&tools, std::slice::from_ref(&host));
    let spec = &objects.one("Deployment")["spec"];
    let pod = &spec["template"]["spec"];
    assert_eq!(pod["hostNetwork"], true);
    assert_eq!(pod["dnsPolicy"], "ClusterFirstWithHostNet");
    assert_eq!(pod["nodeSelector"], json!({"kubernetes.io/os": "linux"}));
    // A new pod may find no node whose ports are free.
    assert_eq!(spec["strategy"]["rollingUpdate"], json!({"maxSurge": 0, "maxUnavailable": 1}));
    let both = [host, ("connectInject.networkPolicy.enabled", json!(true))];
    let error = render(&tools, &[values_of(&both)]).releases.remove(0).unwrap_err();
    assert!(error.contains("turn one of them off"), "{error}");
}

/// The injector reads the roots of Connect's CA from a server whose CA is known.
#[test]
fn with_auto_encrypt_trust_is_based_on_the_servers_ca() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let mut settings = vec![
        ("global.name", json!("consul")),
        ("global.datacenter", json!("dc3")),
        ("global.tls.enabled", json!(true)),
        ("global.tls.enableAutoEncrypt", json!(true)),
    ];
    let variable = |objects: &Objects, name: &str| {
        let env = container(objects)["env"].as_array().unwrap();
        env.iter().find(|each| each["name"] == name).unwrap()["value"].clone()
    };
    let objects = rendered(&tools, &settings);
    assert!(config(&objects).contains("enable-auto-encrypt: true"));
    assert!(config(&objects).contains("consul-ca-cert: /consul/ca/tls.crt"));
    let server = "https://consul-server.consul.svc:8501";
    assert_eq!(variable(&objects, "CONSUL_HTTP_ADDR"), server);
    assert_eq!(variable(&objects, "CONSUL_CACERT"), "/consul/ca/tls.crt");
    assert_eq!(variable(&objects, "CONSUL_TLS_SERVER_NAME"), "server.dc3.consul");
    assert!(objects.notes.contains(server), "{}", objects.notes);
    settings.push(("externalServers.enabled", json!(true)));
    settings.push(("externalServers.hosts", json!(["consul.example"])));
    settings.push(("externalServers.httpsPort", json!(443)));
    let objects = rendered(&tools, &settings);
    assert_eq!(variable(&objects, "CONSUL_HTTP_ADDR"), "https://consul.example:443");
    // Consul's own chart also accepts a command here, whose output are the addresses.
    for hosts in
        [json!(["exec=discover -q addrs"]), json!(["exec=discover"]), json!(["::1"]), json!([])]
    {
        let with = |further: &[(&'static str, Value)]| {
            let hosts = ("externalServers.hosts", hosts.clone());
            render(&tools, &[values_of(&[&settings[..], &[hosts], further].concat())])
                .releases
                .remove(0)
        };
        let error = with(&[]).unwrap_err();
        assert!(error.contains("set connectInject.agent.autoEncrypt.serverAddr to"), "{error}");
        let address = ("connectInject.agent.autoEncrypt.serverAddr", json!("https://s:8501"));
        let objects = with(&[address]).unwrap();
        assert_eq!(variable(&objects, "CONSUL_HTTP_ADDR"), "https://s:8501");
    }
    let alone = values_of(&[("connectInject.agent.autoEncrypt.enabled", json!(true))]);
    let error = render(&tools, &[alone]).releases.remove(0).unwrap_err();
    assert!(error.contains("the Secret with the CA of Consul's servers"), "{error}");
}

/// Earlier defaults named images that nobody can pull.
#[test]
fn images_are_required() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let release = |values: Value| Release { name: "mesh", namespace: "consul", values };
    let off = json!({"connectInject": {"enabled": false}});
    let mut releases = tools.render(&[release(json!({})), release(off)]).unwrap().releases;
    assert!(releases.remove(1).is_ok());
    let error = releases.remove(0).unwrap_err();
    for part in ["connectInject.image is not set", "connectInject.imageInit is not set", "push"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

/// A registry's folder may be named like the image of Consul's own injector.
#[test]
fn only_an_image_named_like_that_of_consuls_injector_is_refused() {
    let Some(tools) = Tools::find_or_skip() else { return };
    for (image, is_refused) in [
        ("hashicorp/consul-k8s-control-plane:1.0.0", true),
        ("consul-k8s-control-plane@sha256:00", true),
        ("reg.example/hashicorp/consul-k8s", true),
        ("reg.example/consul-k8s/connect-inject:0.1.0", false),
        ("reg.example:5000/consul-k8s-mirror:0.1.0", false),
    ] {
        let values = values_of(&[("connectInject.image", json!(image))]);
        let release = render(&tools, &[values]).releases.remove(0);
        assert_eq!(release.is_err(), is_refused, "{image}: {release:?}");
        let error = release.err().unwrap_or_default();
        assert_eq!(error.contains("the image of another injector"), is_refused, "{image}: {error}");
    }
}

/// `with` drops 0, which is not the default.
#[test]
fn a_history_of_no_revisions_is_kept_apart_from_the_default() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let cni = ("connectInject.cni.enabled", json!(true));
    for (limit, rendered) in
        [(json!(0), json!(0)), (json!(2), json!(2)), (json!(null), json!(null))]
    {
        let objects =
            self::rendered(&tools, &[cni.clone(), ("connectInject.revisionHistoryLimit", limit)]);
        for kind in ["Deployment", "DaemonSet"] {
            assert_eq!(objects.one(kind)["spec"]["revisionHistoryLimit"], rendered, "{kind}");
        }
    }
}

/// `consul.yaml` of the chart: a list of values of Consul's own chart.
fn of_consul(list: &str) -> Vec<Value> {
    let text = include_str!("../../../bins/connect-inject/chart/consul.yaml");
    let all: Value = serde_saphyr::from_str(text).unwrap();
    all[list].as_array().unwrap().clone()
}

/// They were ignored silently. Each is rejected with a hint, and all of a file at once.
#[test]
fn unsupported_values_are_rejected_with_a_hint() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let refused = of_consul("refused");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let sample = |entry: &Value| match &entry["if"] {
        Value::Null => json!(true),
        list => list[0].clone(),
    };
    let values: Vec<_> =
        refused.iter().map(|entry| values_of(&[(&text(&entry["value"]), sample(entry))])).collect();
    for (entry, release) in refused.iter().zip(render(&tools, &values).releases) {
        let error = release.expect_err(&text(&entry["value"]));
        let said =
            format!("{} is {}: {}", text(&entry["value"]), sample(entry), text(&entry["instead"]));
        assert!(error.contains(&said), "{said}\n{error}");
    }
    let mut harmless = Vec::new();
    for entry in &refused {
        let unless = entry["unless"].as_array().cloned().unwrap_or_default();
        let off = if entry["if"].is_null() { json!(false) } else { json!(true) };
        for value in [vec![off, json!(null)], unless].concat() {
            harmless.push(values_of(&[(&text(&entry["value"]), value)]));
        }
    }
    for (values, release) in harmless.iter().zip(render(&tools, &harmless).releases) {
        assert!(release.is_ok(), "{values}: {release:?}");
    }
    let both = [
        ("connectInject.cni.multus", json!(true)),
        ("global.enableConsulNamespaces", json!(true)),
        ("connectInject.image", json!("hashicorp/consul-k8s-control-plane:1.0.0")),
    ];
    let error = render(&tools, &[values_of(&both)]).releases.remove(0).unwrap_err();
    for (path, _) in both {
        assert!(error.contains(path), "{path}: {error}");
    }
}

/// The paths that a schema accepts.
fn leaves(schema: &Value, path: &str, found: &mut Vec<String>) {
    match schema["properties"].as_object() {
        Some(properties) if !properties.is_empty() => {
            for (key, schema) in properties {
                leaves(schema, &format!("{path}.{key}"), found);
            }
        }
        _ => found.push(path.trim_start_matches('.').to_owned()),
    }
}

/// The schema, the list in the templates and the table of the migration page agree.
#[test]
fn the_table_of_consuls_values_agrees_with_the_chart() {
    let upgrading = include_str!("../../../bins/connect-inject/docs/upgrading.md");
    let schema: Value =
        serde_json::from_str(include_str!("../../../bins/connect-inject/chart/values.schema.json"))
            .unwrap();
    let ours: Value =
        serde_saphyr::from_str(include_str!("../../../bins/connect-inject/chart/values.yaml"))
            .unwrap();
    // Values that the schema does not mention are accepted.
    let accepts = |path: &str| {
        let mut place = &schema;
        path.split('.').all(|key| match place.get("properties") {
            None => true,
            Some(properties) => properties.get(key).is_some_and(|next| {
                place = next;
                true
            }),
        })
    };
    let (mut expected, mut known) = (BTreeSet::new(), paths(&ours, ""));
    for (list, column) in [("adopted", "as"), ("refused", "instead"), ("ignored", "why")] {
        for entry in of_consul(list) {
            let text = |key: &str| entry[key].as_str().unwrap().to_owned();
            let path = text("value");
            // The schema accepts all global values, which other charts use, too.
            assert!(path.starts_with("global.") || accepts(&path), "{path}");
            expected.insert(format!("| `{path}` | {list} | {} |", text(column)));
            assert!(known.insert(path.clone()), "{path}");
        }
    }
    let table: BTreeSet<_> = upgrading
        .lines()
        .filter(|line| {
            [" | adopted | ", " | refused | ", " | ignored | "]
                .iter()
                .any(|part| line.contains(part))
        })
        .map(str::to_owned)
        .collect();
    assert_eq!(table, expected);

    // Conversely, every value in the schema is in the table.
    let mut accepted = Vec::new();
    leaves(&schema, "", &mut accepted);
    for path in accepted {
        let is_known = known.iter().any(|known| {
            known == &path
                || known.starts_with(&format!("{path}."))
                || path.starts_with(&format!("{known}."))
        });
        assert!(is_known, "{path}");
    }
}

/// As a dependency of another chart: with a condition, under an alias, twice, and with global
/// values.
#[test]
fn it_can_be_a_dependency_of_another_chart() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let folder = tempfile::tempdir().unwrap();
    let parent = folder.path().join("platform");
    let write = |name: &str, text: &str| {
        #[expect(clippy::disallowed_methods, reason = "nobody reads it yet")]
        std::fs::write(parent.join(name), text).unwrap();
    };
    std::fs::create_dir_all(parent.join("charts")).unwrap();
    std::os::unix::fs::symlink(
        Path::new(CHART).canonicalize().unwrap(),
        parent.join("charts/connect-inject"),
    )
    .unwrap();
    write(
        "Chart.yaml",
        &format!(
            "apiVersion: v2\nname: platform\nversion: 1.0.0\nicon: none\ndependencies:\n  \
             - {{name: connect-inject, version: {version}, condition: connect-inject.enabled}}\n  \
             - {{name: connect-inject, version: {version}, alias: edgeInjector, condition: edgeInjector.enabled}}\n",
            version = env!("CARGO_PKG_VERSION")
        ),
    );
    write(
        "values.yaml",
        "global: {imagePullSecrets: [a], registry: other, consul: {enabled: true}}\n\
         connect-inject: {enabled: true, connectInject: {image: a, imageInit: b, replicas: null, annotations: null}}\n\
         edgeInjector: {enabled: false, connectInject: {image: a, imageInit: b, audit: {enabled: true}, cni: {enabled: true}}}\n",
    );
    let release = |values: Value| Release { name: "platform", namespace: "platform", values };
    let releases = [
        release(json!({})),
        release(
            json!({"edgeInjector": {"enabled": true, "connectInject": {"k8sAllowNamespaces": ["b"]}}}),
        ),
        release(json!({
            "connect-inject": {"enabled": false},
            "edgeInjector": {"enabled": true},
        })),
        release(json!({"connect-inject": {"enabled": false}})),
        release(json!({"connect-inject": {"connectInject": {"replica": 1}}})),
    ];
    let rendered = tools.render_chart(&parent, &releases).unwrap();
    let mut releases = rendered.releases.into_iter();
    let one = releases.next().unwrap().unwrap();
    assert_eq!(one.one("Deployment")["metadata"]["name"], "platform-connect-inject");
    assert_eq!(one.one("Deployment")["spec"]["replicas"], 2);
    assert_eq!(one.one("ServiceAccount")["imagePullSecrets"], json!([{"name": "a"}]));
    let two = releases.next().unwrap().unwrap();
    let names: Vec<_> =
        two.all("Deployment").iter().map(|each| each["metadata"]["name"].clone()).collect();
    assert_eq!(names, ["platform-connect-inject", "platform-edge-injector"]);
    // Each release selects only its own pods.
    let selectors: BTreeSet<_> =
        two.all("Deployment").iter().map(|each| each["spec"]["selector"].to_string()).collect();
    assert_eq!(selectors.len(), 2);
    // An alias need not be valid in an object's name, and the audit looks for the chart's name.
    let alias = releases.next().unwrap().unwrap();
    for document in &alias.documents {
        let name = document["metadata"]["name"].as_str().unwrap();
        assert!(name.starts_with("platform-edge-injector"), "{name}");
        let label = document["metadata"]["labels"]["app.kubernetes.io/name"].as_str().unwrap();
        assert!(label.starts_with("connect-inject"), "{name}: {label}");
    }
    let webhook = alias.one("MutatingWebhookConfiguration");
    assert_eq!(webhook["metadata"]["labels"]["app.kubernetes.io/name"], "connect-inject");
    let left_out = &webhook["webhooks"][0]["objectSelector"]["matchExpressions"][0]["values"];
    assert_eq!(*left_out, json!(["connect-inject"]));
    let daemon = &alias.one("DaemonSet")["spec"];
    for (key, value) in daemon["selector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(daemon["template"]["metadata"]["labels"][key], *value);
    }
    assert_eq!(releases.next().unwrap().unwrap().documents, Vec::<Value>::new());
    assert!(releases.next().unwrap().unwrap_err().contains("replica"));
    is_valid(&tools, &[one, two, alias]);
}

#[test]
fn it_can_be_installed_beside_consuls_chart() {
    let Some(tools) = Tools::find_or_skip() else { return };
    // With the same names, and the values that a parent chart passes to all its charts.
    let values = json!({"global": {"name": "consul", "datacenter": "dc1"}});
    let release = Release { name: "consul", namespace: "consul", values: with_images(&values) };
    let objects = tools.render(&[release]).unwrap().releases.remove(0).unwrap();
    for document in &objects.documents {
        let name = document["metadata"]["name"].as_str().unwrap();
        assert!(["consul-connect-inject", "consul-connect-inject-tls"].contains(&name), "{name}");
        let labels = document["metadata"]["labels"].as_object().unwrap();
        assert!(!labels.contains_key("app"), "a label that Consul's chart selects by");
    }
    assert!(objects.notes.contains("connectInject.enabled=false there"), "{}", objects.notes);
}

#[test]
fn newer_features_are_used_if_the_version_is_known() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let with = |version| rendered(&tools, &[("connectInject.kubernetesVersion", json!(version))]);
    // `helm template` does not know the cluster's version: Helm assumes one.
    let unknown = rendered(&tools, &[]);
    assert!(!config(&unknown).contains("kubernetes-version"));
    assert!(unknown.notes.contains("version is not known"), "{}", unknown.notes);
    for (version, is_conditional) in
        [("1.25", false), ("v1.27.9", false), ("v1.28.4-gke.1083000", true), ("1.37", true)]
    {
        let objects = with(version);
        assert_eq!(webhooks(&objects)[0]["matchConditions"].is_array(), is_conditional);
        assert!(config(&objects).contains(&format!("kubernetes-version: \"{version}\"")));
        assert!(!objects.notes.contains("version is not known"), "{version}");
    }
}

/// Argo CD passes the cluster's version; the one that Helm assumes does not count. An
/// injector that asks the API server gets no version from the chart, which would be stale
/// after the cluster's next upgrade.
#[test]
fn a_version_passed_by_argo_cd_is_used() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let template = |more: &[&str]| {
        let images = "--set=connectInject.image=a,connectInject.imageInit=b";
        let args =
            ["template", "mesh", CHART, "--namespace=consul", "--kube-version=1.29.3", images];
        let output = tools.helm(&[args.as_slice(), more].concat()).unwrap();
        assert!(output.status.success(), "{output:?}");
        let documents = tools.strict(&String::from_utf8(output.stdout).unwrap()).unwrap();
        Objects { documents, notes: String::new() }
    };
    let known = "--api-versions=apps/v1,apiregistration.k8s.io/v1";
    assert!(webhooks(&template(&[]))[0]["matchConditions"].is_null());
    let objects = template(&[known]);
    assert!(webhooks(&objects)[0]["matchConditions"].is_array());
    assert!(!config(&objects).contains("kubernetes-version"));
    // With a certificate in files, the injector has no access to the API server.
    let files = "--set=connectInject.certs.secretName=serving,connectInject.certs.caBundle=QQ==";
    assert!(config(&template(&[known, files])).contains("kubernetes-version: \"v1.29.3\""));
}

/// The webhooks for namespaces without a transparent-proxy label.
fn webhooks(objects: &Objects) -> &[Value] {
    let all = objects.one("MutatingWebhookConfiguration")["webhooks"].as_array().unwrap();
    &all[..all.len() / 3]
}

/// Reviews don't contain labels of namespaces, so there is one path per label value.
#[test]
fn a_namespaces_label_decides_whether_its_pods_are_transparent() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let objects = rendered(&tools, &[("connectInject.kubernetesVersion", json!("1.30"))]);
    let all = objects.one("MutatingWebhookConfiguration")["webhooks"].as_array().unwrap();
    let asked = |label: Value| {
        let mut asked: Vec<(&str, &str)> = all
            .iter()
            .filter(|webhook| is_selected(webhook, "shop", &label))
            .map(|webhook| {
                let path = &webhook["clientConfig"]["service"]["path"];
                let of = webhook["matchConditions"][0]["name"].as_str().unwrap();
                (of, path.as_str().unwrap())
            })
            .collect();
        asked.sort_unstable();
        asked
    };
    let key = "consul.hashicorp.com/transparent-proxy";
    for (label, path) in [
        (json!({}), "/mutate"),
        (json!({key: "true"}), "/mutate/transparent"),
        (json!({key: "false"}), "/mutate/direct"),
        (json!({key: "maybe"}), "/mutate"),
    ] {
        assert_eq!(asked(label), [("asks", path), ("does-not-say", path)]);
    }
}

/// Name, failure policy and match conditions of each webhook.
fn asked(objects: &Objects) -> Vec<(&str, &str, Vec<&str>)> {
    fn text(value: &Value) -> &str {
        value.as_str().unwrap()
    }
    webhooks(objects)
        .iter()
        .map(|webhook| {
            let name = text(&webhook["name"]).strip_suffix(".consul.hashicorp.com").unwrap();
            let conditions = webhook["matchConditions"].as_array();
            let names = conditions.into_iter().flatten().map(|each| text(&each["name"]));
            (name, text(&webhook["failurePolicy"]), names.collect())
        })
        .collect()
}

/// Without conditions, every pod of every namespace was rejected while no injector answered.
/// Now only pods that ask for injection are, unless the operator sets otherwise.
#[test]
fn it_fails_closed_only_for_pods_that_ask_for_injection() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let name = "mesh-connect-inject";
    let advice = ("advice.mesh-connect-inject", "Ignore", vec!["does-not-say", "is-annotated"]);
    let with = |settings: &[(&str, Value)]| {
        let version = [("connectInject.kubernetesVersion", json!("1.30"))];
        rendered(&tools, &[version.as_slice(), settings].concat())
    };
    let default = ("connectInject.default", json!(true));
    let policy = |policy: &str| ("connectInject.failurePolicy", json!(policy));

    assert_eq!(asked(&rendered(&tools, &[])), [(name, "Ignore", vec![])]);
    assert_eq!(asked(&rendered(&tools, &[policy("Fail")])), [(name, "Fail", vec![])]);
    assert_eq!(asked(&with(&[])), [(name, "Fail", vec!["asks"]), advice.clone()]);
    assert_eq!(asked(&with(&[policy("Ignore")])), [(name, "Ignore", vec!["asks"]), advice]);
    let silent = "default.mesh-connect-inject";
    for (settings, expected) in [
        (vec![default.clone()], "Ignore"),
        // If the operator sets it, pods without an annotation are rejected, too.
        (vec![default, policy("Fail")], "Fail"),
    ] {
        let objects = with(&settings);
        let expected = [(name, "Fail", vec!["asks"]), (silent, expected, vec!["does-not-say"])];
        assert_eq!(asked(&objects), expected);
    }
    let notes = |objects: &Objects| {
        let words: Vec<_> = objects.notes.split_whitespace().collect();
        words.join(" ").contains("start without a sidecar")
    };
    assert!(notes(&rendered(&tools, &[])) && !notes(&with(&[])));
}

/// Evaluates a webhook's namespaceSelector as Kubernetes does.
fn is_selected(webhook: &Value, namespace: &str, labels: &Value) -> bool {
    let mut labels = labels.as_object().cloned().unwrap_or_default();
    labels.insert("kubernetes.io/metadata.name".to_owned(), json!(namespace));
    let selector = &webhook["namespaceSelector"];
    let matches = selector["matchLabels"].as_object();
    let matches = matches.into_iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let expressions = selector["matchExpressions"].as_array();
    matches
        && expressions.into_iter().flatten().all(|expression| {
            let value = labels.get(expression["key"].as_str().unwrap());
            let is_in =
                || value.is_some_and(|v| expression["values"].as_array().unwrap().contains(v));
            match expression["operator"].as_str().unwrap() {
                "In" => is_in(),
                "NotIn" => !is_in(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                other => panic!("{other}"),
            }
        })
}

/// An injector installed for one namespace blocked annotated pods of every namespace while
/// it was down.
#[test]
fn the_webhook_selects_only_the_namespaces_of_the_policy() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let selector = json!({"matchExpressions": [{"key": "mesh", "operator": "Exists"}]});
    let version = ("connectInject.kubernetesVersion", json!("1.30"));
    let allow = |names: Value| vec![version.clone(), ("connectInject.k8sAllowNamespaces", names)];
    let none = json!({});
    let mesh = json!({"mesh": "on"});
    let monitoring = json!({"openshift.io/cluster-monitoring": "true"});
    let cases = [
        (vec![version.clone()], vec![("shop", &none, true), ("openshift-dns", &monitoring, false)]),
        (allow(json!(["shop"])), vec![("shop", &none, true), ("till", &none, false)]),
        (allow(json!(["*", "shop"])), vec![("till", &none, true)]),
        (allow(json!([])), vec![("shop", &none, false), ("default", &none, false)]),
        (
            vec![("connectInject.k8sDenyNamespaces", json!(["vault"]))],
            vec![("vault", &none, false), ("shop", &none, true)],
        ),
        (
            vec![("connectInject.namespaceSelector", selector.clone())],
            vec![("shop", &none, false), ("shop", &mesh, true)],
        ),
        (
            // As a string, like in Consul's chart.
            vec![
                ("connectInject.namespaceSelector", json!(selector.to_string())),
                ("connectInject.k8sAllowNamespaces", json!(["shop"])),
            ],
            vec![("shop", &none, false), ("shop", &mesh, true), ("till", &mesh, false)],
        ),
    ];
    let values: Vec<_> = cases.iter().map(|(settings, _)| values_of(settings)).collect();
    let releases = render(&tools, &values).releases;
    let releases: Vec<_> = releases.into_iter().map(Result::unwrap).collect();
    for ((settings, cases), objects) in cases.iter().zip(&releases) {
        for webhook in webhooks(objects) {
            for (namespace, labels, expected) in cases {
                let found = is_selected(webhook, namespace, labels);
                assert_eq!(found, *expected, "{namespace} {labels} by {settings:?}");
            }
            // Never selected: the injector's own namespace and those of the cluster itself.
            for system in
                ["consul", "kube-system", "kube-public", "calico-system", "longhorn-system"]
            {
                assert!(!is_selected(webhook, system, &mesh), "{system} by {settings:?}");
            }
        }
    }
    is_valid(&tools, &releases);
}

/// Labels of both levels and of the chart itself made a key appear twice, which Flux and
/// kustomize reject. Each rendering is parsed strictly.
#[test]
fn labels_and_annotations_of_the_user_replace_those_of_the_chart() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let objects = rendered(
        &tools,
        &[
            ("global.extraLabels", json!({"app.kubernetes.io/part-of": "shop", "team": "a"})),
            ("global.metrics.enabled", json!(true)),
            ("connectInject.extraLabels", json!({"team": "b"})),
            (
                "connectInject.annotations",
                json!({"prometheus.io/scrape": "false", "checksum/config": "none"}),
            ),
        ],
    );
    let deployment = objects.one("Deployment");
    assert_eq!(deployment["metadata"]["labels"]["team"], "a");
    let pod = &deployment["spec"]["template"]["metadata"];
    assert_eq!(pod["labels"]["team"], "b");
    assert_eq!(pod["labels"]["app.kubernetes.io/part-of"], "shop");
    assert_eq!(pod["annotations"]["prometheus.io/scrape"], "false");
    assert_eq!(pod["annotations"]["prometheus.io/port"], "9445");
    let selector = json!({"app.kubernetes.io/name": "other"});
    for path in ["global.extraLabels", "connectInject.extraLabels"] {
        let error = render(&tools, &[values_of(&[(path, selector.clone())])]).releases.remove(0);
        assert!(error.unwrap_err().contains("choose another key"), "{path}");
    }
    assert!(tools.strict("a: 1\nb: {c: 1, c: 2}\n").is_err());
}

#[test]
fn the_notes_verify_the_installation_like_the_installing_page() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let objects = rendered(&tools, &[]);
    let pod: String = ECHO_SERVER.lines().flat_map(|line| ["  ", line, "\n"]).collect();
    for part in [
        pod.as_str(),
        "kubectl get pod echo-server -o yaml",
        "consul.hashicorp.com/connect-inject-status set to injected",
        "kubectl --namespace consul logs ",
    ] {
        assert!(objects.notes.contains(part), "{part}\n{}", objects.notes);
    }
    // Names in the commands.
    let deployment = objects.one("Deployment");
    assert_eq!(deployment["metadata"]["name"], "mesh-connect-inject");
    assert!(objects.notes.contains("rollout status deployment/mesh-connect-inject\n"));
    let selector = deployment["spec"]["selector"]["matchLabels"].as_object().unwrap();
    for (label, value) in selector {
        assert!(objects.notes.contains(&format!("{label}={}", value.as_str().unwrap())), "{label}");
    }
}

/// If the release is in `default`, or the allow list excludes its namespace, the pod in the
/// notes would not be injected.
#[test]
fn the_notes_name_a_namespace_whose_pods_are_injected() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let allow = |names: &[&str]| values_of(&[("connectInject.k8sAllowNamespaces", json!(names))]);
    let notes = |namespace: &'static str, values: Value| {
        let release = Release { name: "mesh", namespace, values: with_images(&values) };
        tools.render(&[release]).unwrap().releases.remove(0).unwrap().notes
    };
    let plain = notes("consul", json!({}));
    assert!(plain.contains("kubectl apply -f - <<EOF"), "{plain}");
    let own = notes("default", json!({}));
    assert!(own.contains("kubectl create namespace connect-example\n"), "{own}");
    assert!(own.contains("kubectl --namespace connect-example apply -f - <<EOF"), "{own}");
    let allowed = notes("consul", allow(&["consul", "shop"]));
    assert!(allowed.contains("kubectl --namespace shop apply -f - <<EOF"), "{allowed}");
    assert!(!allowed.contains("create namespace"), "{allowed}");
    let nobody = notes("consul", allow(&[]));
    assert!(nobody.contains("no pod is injected") && !nobody.contains("<<EOF"), "{nobody}");
}

/// The audit has read access only, and the webhook's Service does not select its pods.
#[test]
fn the_audit_only_reads_and_gets_no_admission_reviews() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let objects = rendered(&tools, &[("connectInject.audit.enabled", json!(true))]);
    let job = objects.one("CronJob");
    let pod = &job["spec"]["jobTemplate"]["spec"]["template"];
    assert_eq!(pod["spec"]["restartPolicy"], "Never");
    assert_eq!(pod["spec"]["serviceAccountName"], job["metadata"]["name"]);
    let selector = &objects.one("Service")["spec"]["selector"];
    let labels = &pod["metadata"]["labels"];
    assert!(selector.as_object().unwrap().iter().any(|(key, value)| labels[key] != *value));
    assert_eq!(pod["metadata"]["annotations"]["consul.hashicorp.com/connect-inject"], "false");
    let name = &job["metadata"]["name"];
    let roles = objects.documents.iter().filter(|object| object["kind"] == "ClusterRole");
    let role = roles.into_iter().find(|role| role["metadata"]["name"] == *name).unwrap();
    for rule in role["rules"].as_array().unwrap() {
        assert_eq!(rule["verbs"], json!(["get", "list"]), "{rule}");
    }
    // It only writes its results, into an existing ConfigMap.
    let named = |objects: &Objects, kind: &str| {
        let mut named = objects.documents.iter();
        named.find(|one| one["kind"] == kind && one["metadata"]["name"] == *name).cloned()
    };
    let allowed = &named(&objects, "Role").unwrap()["rules"];
    let patch = json!([{"apiGroups": [""], "resources": ["configmaps"],
        "resourceNames": [name], "verbs": ["patch"]}]);
    assert_eq!(*allowed, patch);
    assert!(named(&objects, "ConfigMap").is_some());
    let silent = [
        ("connectInject.audit.enabled", json!(true)),
        ("connectInject.audit.metrics", json!(false)),
    ];
    let objects = rendered(&tools, &silent);
    assert_eq!((named(&objects, "Role"), named(&objects, "ConfigMap")), (None, None));
    let injector = objects.one("Deployment").to_string();
    assert!(!injector.contains("audit"), "{injector}");
}

/// On nodes that the injector may not use, the image may not even be available.
#[test]
fn the_audit_runs_on_the_nodes_of_the_injector() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let nodes = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["mesh"]}]}
    ]}});
    // If each node has a replica, this leaves no node for the audit.
    let apart = json!({"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchExpressions": [
            {"key": "app.kubernetes.io/part-of", "operator": "In", "values": ["consul"]}
        ]}}
    ]});
    let affinity = json!({"nodeAffinity": nodes, "podAntiAffinity": apart});
    let pods = |affinity: &Value| {
        let objects = rendered(
            &tools,
            &[
                ("connectInject.audit.enabled", json!(true)),
                ("connectInject.nodeSelector", json!("pool: mesh\n")),
                ("connectInject.affinity", affinity.clone()),
            ],
        );
        let job = objects.one("CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"].clone();
        let pod = objects.one("Deployment")["spec"]["template"]["spec"].clone();
        is_valid(&tools, &[objects]);
        (job, pod)
    };
    for given in [&affinity, &json!(affinity.to_string())] {
        let (job, pod) = pods(given);
        assert_eq!(pod["nodeSelector"], json!({"kubernetes.io/os": "linux", "pool": "mesh"}));
        assert_eq!(job["nodeSelector"], pod["nodeSelector"]);
        assert_eq!(pod["affinity"], affinity);
        assert_eq!(job["affinity"], json!({"nodeAffinity": nodes}));
    }
    let (job, _) = pods(&json!({"podAntiAffinity": apart}));
    assert_eq!(job.get("affinity"), None);
}

/// Its pods mount the node's two directories, write to them whoever owns them, and have no
/// other rights.
#[test]
fn connect_cni_is_installed_without_other_rights() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let objects = rendered(&tools, &[("connectInject.cni.enabled", json!(true))]);
    assert!(config(&objects).contains("transparent-proxy-by: cni"));
    let daemon = objects.one("DaemonSet");
    let pod = &daemon["spec"]["template"];
    let spec = &pod["spec"];
    assert_eq!(spec["automountServiceAccountToken"], false);
    assert_eq!(spec["serviceAccountName"], daemon["metadata"]["name"]);
    let rights = objects.documents.iter().filter(|object| {
        let kind = object["kind"].as_str().unwrap();
        kind.contains("Role") && object.to_string().contains("-cni")
    });
    assert_eq!(rights.count(), 0);
    let volumes = spec["volumes"].as_array().unwrap();
    let paths: Vec<_> = volumes.iter().map(|volume| &volume["hostPath"]["path"]).collect();
    assert_eq!(paths, ["/etc/cni/net.d", "/opt/cni/bin"]);
    // A wrong path is an error: the runtime would not read a directory that the kubelet creates.
    assert!(volumes.iter().all(|volume| volume["hostPath"]["type"] == "Directory"));
    let security = &spec["containers"][0]["securityContext"];
    assert_eq!(security["capabilities"], json!({"drop": ["ALL"], "add": ["DAC_OVERRIDE"]}));
    assert_eq!(security["readOnlyRootFilesystem"], true);
    let selector = &objects.one("Service")["spec"]["selector"];
    let labels = &pod["metadata"]["labels"];
    assert!(selector.as_object().unwrap().iter().any(|(key, value)| labels[key] != *value));
    let own = daemon["spec"]["selector"]["matchLabels"].as_object().unwrap();
    assert!(own.iter().all(|(key, value)| labels[key] == *value));
    assert_eq!(daemon["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"], 1);
    is_valid(&tools, &[objects]);
}

#[test]
fn a_disabled_chart_renders_nothing() {
    let Some(tools) = Tools::find_or_skip() else { return };
    let objects = rendered(&tools, &[("connectInject.enabled", json!(false))]);
    assert_eq!(objects, Objects { documents: Vec::new(), notes: String::new() });
    assert!(Path::new(CHART).join("values.schema.json").is_file());
}
