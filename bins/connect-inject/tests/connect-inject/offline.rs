//! `connect-inject uninject` and `explain`.

use serde_json::Value;

use crate::harness::{ECHO_CLIENT, ECHO_SERVER, IMAGES, yaml};
use crate::inject::{command, documents, is_injected, run};

/// A manifest of every kind that has a pod.
fn every_kind() -> String {
    let template = "metadata:\n      annotations:\n        consul.hashicorp.com/connect-inject: \"true\"\n        consul.hashicorp.com/connect-service-upstreams: db:1234\n    spec:\n      containers: [{name: web, env: [{name: A, value: b}]}, {name: log}]\n";
    let mut documents = vec![format!("{ECHO_SERVER}---{ECHO_CLIENT}")];
    for (version, kind) in [
        ("apps/v1", "Deployment"),
        ("apps/v1", "StatefulSet"),
        ("apps/v1", "DaemonSet"),
        ("apps/v1", "ReplicaSet"),
        ("v1", "ReplicationController"),
        ("batch/v1", "Job"),
    ] {
        documents.push(format!(
            "---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: web}}\nspec:\n  template:\n    {template}"
        ));
    }
    let deeper = template.replace("\n    ", "\n        ");
    documents.push(format!(
        "---\napiVersion: batch/v1\nkind: CronJob\nmetadata: {{name: web}}\nspec:\n  jobTemplate:\n    spec:\n      template:\n        {deeper}"
    ));
    let pod = yaml(ECHO_SERVER);
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [pod, {"kind": "Service"}]});
    documents.push(format!("---\n{list}\n"));
    documents.concat()
}

#[test]
fn uninject_is_the_inverse_for_every_kind() {
    let before = every_kind();
    let (code, injected, log) = run(command("inject").args(IMAGES), &before);
    assert_eq!(code, 0, "{log}");
    assert_eq!(log.matches("requested").count(), 10, "{log}");
    let (code, after, log) = run(&mut command("uninject"), &injected);
    assert_eq!(code, 0, "{log}");
    assert_eq!(documents(&after), documents(&before));
    assert_eq!(log.matches(": uninjected").count(), 10, "{log}");

    let (code, twice, log) = run(&mut command("uninject"), &after);
    assert_eq!((code, twice), (0, after));
    assert_eq!(log.matches("not injected").count(), 10, "{log}");
}

#[test]
fn a_pod_of_another_injector_is_not_changed() {
    let other =
        ECHO_SERVER.replace("connect-inject\": \"true\"", "connect-inject-status\": \"injected\"");
    let (code, out, log) = run(&mut command("uninject"), &other);
    assert_eq!((code, out.trim()), (64, other.trim()));
    assert!(log.contains("not uninjected: 1"), "{log}");
}

#[test]
fn explain_has_a_line_for_each_pod() {
    let mistaken = "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\n  namespace: shop\n  annotations: {consul.hashicorp.com/connect-inject: \"true\"}\nspec: {template: {spec: {containers: [{name: web}]}}}\n";
    let denied = ECHO_CLIENT.replace(":1234", "");
    let input = format!("{ECHO_SERVER}---{denied}---\n{mistaken}---\nkind: Service\n");
    let (code, out, log) = run(command("explain").args(IMAGES), &input);
    assert_eq!(code, 64, "{log}");
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(lines.len(), 3, "{out}");
    assert_eq!(lines[0][..3], ["Pod default/echo-server", "injected", "requested"]);
    assert!(lines[0][3].contains("service `echo-server` on port 8080"), "{out}");
    assert_eq!(lines[1][..3], ["Pod default/echo-client", "denied", "invalid-upstreams"]);
    assert!(lines[1][3].contains("column 1"), "{out}");
    assert_eq!(lines[2][..3], ["Deployment shop/web", "skipped", "not-requested"]);
    assert!(lines[2][3].contains("move it to spec.template.metadata.annotations"), "{out}");

    let (code, _, log) = run(command("inject").args(IMAGES), mistaken);
    assert!(code == 0 && log.contains("a common mistake"), "{log}");
}

/// Unknown kinds and the Namespace were skipped without a warning.
#[test]
fn an_annotation_on_an_object_without_a_pod_causes_a_warning() {
    let annotations = "annotations: {consul.hashicorp.com/connect-inject: \"true\"}";
    let knative = format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  template:\n    metadata: {{{annotations}}}\n"
    );
    let namespace =
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, {annotations}}}\n");
    let input = format!("{knative}---\n{namespace}");
    for name in ["inject", "explain"] {
        let (code, out, log) = run(command(name).args(IMAGES), &input);
        assert_eq!(code, 0, "{log}");
        assert!(log.contains("let the webhook inject the pods of this Service"), "{log}");
        assert!(log.contains("on a Namespace has no effect"), "{log}");
        assert_eq!(out, if name == "inject" { input.as_str() } else { "" });
    }
}

#[test]
fn the_policy_can_come_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.yaml");
    let policy = |text: &str| runtime::file::write_whole(&file, 0o600, text.as_bytes()).unwrap();
    let plain = "apiVersion: v1\nkind: Pod\nspec: {containers: [{name: web}]}\n";
    let inject = || {
        let mut inject = command("inject");
        inject.arg("--config").arg(&file);
        inject
    };
    let injected = |(code, out, log): (i32, String, String)| {
        assert_eq!(code, 0, "{log}");
        if is_injected(&yaml(&out)) { yaml(&out) } else { Value::Null }
    };
    policy(
        "init-image: i:1\nenvoy-image: e:1\ndefault-inject: true\ndefault-envoy-proxy-concurrency: 7\nimage-pull-secret: [a, b]\nkubernetes-version: \"1.32\"\n",
    );
    let pod = injected(run(&mut inject(), plain));
    let sidecar = &pod["spec"]["initContainers"][1];
    assert_eq!(sidecar["restartPolicy"], "Always");
    assert_eq!(sidecar["image"], "e:1");
    assert!(sidecar["command"].as_array().unwrap().contains(&"7".into()), "{sidecar}");
    assert_eq!(pod["spec"]["imagePullSecrets"], serde_json::json!([{"name": "a"}, {"name": "b"}]));

    // Flags and environment variables take precedence.
    let pod = injected(run(
        inject()
            .args(["--envoy-image", "e:2", "--image-pull-secret=c"])
            .env("CONNECT_INJECT_INIT_IMAGE", "i:2"),
        plain,
    ));
    assert_eq!(pod["spec"]["initContainers"][1]["image"], "e:2");
    assert_eq!(pod["spec"]["initContainers"][0]["image"], "i:2");
    assert_eq!(pod["spec"]["imagePullSecrets"], serde_json::json!([{"name": "c"}]));
    assert_eq!(injected(run(inject().arg("--default-inject=false"), plain)), Value::Null);
}

/// The chart's ConfigMap works as the policy, even without the files of the injector's pod;
/// `explain` requires no other flag.
#[test]
fn the_policy_can_be_the_charts_configmap() {
    let folder = tempfile::tempdir().unwrap();
    let (file, ca) = (folder.path().join("policy.yaml"), folder.path().join("ca.pem"));
    let write = |file: &std::path::Path, text: &str| {
        runtime::file::write_whole(file, 0o600, text.as_bytes()).unwrap();
    };
    write(
        &file,
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: mesh-connect-inject}\ndata:\n  config.yaml: |\n    init-image: i:1\n    envoy-image: e:1\n    default-inject: true\n    consul-ca-cert: /consul/ca/tls.crt\n",
    );
    let plain = "apiVersion: v1\nkind: Pod\nspec: {containers: [{name: web}]}\n";
    let with = |subcommand: &str, further: &[&str]| {
        let mut command = command(subcommand);
        run(command.arg("--config").arg(&file).args(further), plain)
    };
    let (code, out, log) = with("explain", &[]);
    assert_eq!(code, 0, "{log}");
    assert!(out.contains("by-default"), "{out}");
    let (code, _, log) = with("inject", &[]);
    assert_eq!(code, 64);
    assert!(log.contains("--consul-ca-cert") && log.contains("/consul/ca/tls.crt"), "{log}");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    write(&ca, &made.cert.pem());
    let (code, out, log) = with("inject", &["--consul-ca-cert", ca.to_str().unwrap()]);
    assert_eq!(code, 0, "{log}");
    assert!(is_injected(&yaml(&out)) && out.contains("BEGIN CERTIFICATE"), "{out}");
    write(&file, "kind: ConfigMap\ndata: {}\n");
    assert!(with("inject", &[]).2.contains("a ConfigMap without `config.yaml`"));
    // Offline, the roots of Connect's CA are unknown.
    write(&file, "init-image: i:1\nenvoy-image: e:1\nenable-auto-encrypt: true\n");
    let (code, _, log) = with("inject", &[]);
    assert!(code == 64 && log.contains("/v1/connect/ca/roots"), "{log}");
}

/// The documentation shows this command line.
#[test]
fn explain_runs_without_a_flag() {
    let plain = "apiVersion: v1\nkind: Pod\nspec: {containers: [{name: web}]}\n";
    let (code, out, log) = run(command("explain").args(["-f", "-"]), plain);
    assert_eq!(code, 0, "{log}");
    assert!(out.contains("not-requested"), "{out}");
}

#[test]
fn all_errors_of_the_file_are_reported_in_one_run() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.yaml");
    let text = "kubernetes-version: 1.30\nlisten: x\nenvoy-imag: e\nenvoy-image: \"\"\ndefault-inject: perhaps\ninit-container-cpu-limit: 1mm\nsidecar-mode: natif\nconfig: x\n";
    runtime::file::write_whole(&file, 0o600, text.as_bytes()).unwrap();
    let mut inject = command("inject");
    inject.arg("--config").arg(&file);
    let (code, out, log) = run(&mut inject, "");
    assert_eq!((code, out.as_str()), (64, ""));
    for mistake in [
        "`kubernetes-version`: write 1.3 in quotes",
        "`listen`: unknown setting",
        "`config`: unknown setting",
        "`envoy-imag`: unknown setting: did you mean `envoy-image`?",
        "`envoy-image`: expected an image",
        "`default-inject`: expected `true` or `false`",
        "`init-container-cpu-limit`: column 2",
        "`sidecar-mode`: expected `auto`, `native` or `container`",
    ] {
        assert!(log.contains(mistake), "{mistake}: {log}");
    }
    for text in ["[]", "a: [", "5"] {
        runtime::file::write_whole(&file, 0o600, text.as_bytes()).unwrap();
        let (code, _, log) = run(command("inject").args(IMAGES).arg("--config").arg(&file), "");
        assert!(code == 64 && log.contains("policy.yaml: "), "{log}");
    }
    let (code, _, log) = run(command("inject").args(IMAGES).args(["--config", "missing.yaml"]), "");
    assert!(code == 64 && log.contains("--config missing.yaml: No such file"), "{log}");
}

/// An empty list set no flag, so the default allowed every namespace.
#[test]
fn an_empty_allow_list_allows_no_namespace() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.yaml");
    let injected = |text: &str, flags: &[&str], variable: Option<&str>| {
        runtime::file::write_whole(&file, 0o600, text.as_bytes()).unwrap();
        let mut inject = command("inject");
        inject.args(IMAGES).arg("--config").arg(&file).args(flags);
        if let Some(value) = variable {
            inject.env("CONNECT_INJECT_ALLOW_K8S_NAMESPACE", value);
        }
        let (code, out, log) = run(&mut inject, ECHO_SERVER);
        assert_eq!(code, 0, "{log}");
        is_injected(&yaml(&out))
    };
    assert!(!injected("allow-k8s-namespace: []\n", &[], None));
    assert!(injected("allow-k8s-namespace: null\n", &[], None), "the default");
    assert!(injected("allow-k8s-namespace: [default]\n", &[], None));
    assert!(!injected("allow-k8s-namespace: [other]\n", &[], None));
    // Flag over environment over file over default.
    assert!(injected("allow-k8s-namespace: []\n", &[], Some("default")));
    assert!(!injected("allow-k8s-namespace: []\n", &[], Some("")), "an empty variable is absent");
    assert!(!injected("allow-k8s-namespace: ['*']\n", &["--allow-k8s-namespace=x"], Some("*")));
}

/// The manifests in `examples/kubernetes` need only the annotations that they have.
#[test]
fn every_example_is_injected_without_a_warning() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/kubernetes");
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let files: Vec<_> =
        files.filter(|file| file.extension().is_some_and(|e| e == "yaml")).collect();
    assert!(files.len() > 3, "{files:?}");
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let (code, injected, log) =
            run(command("inject").args(IMAGES).arg("--kubernetes-version=1.34"), &text);
        assert_eq!(code, 0, "{}: {log}", file.display());
        assert!(injected.contains("envoy-sidecar"), "{}: {log}", file.display());
        assert!(!log.contains("WARN"), "{}: {log}", file.display());
    }
}

#[test]
fn a_closed_pipe_is_not_a_failure() {
    let program = assert_cmd::cargo::cargo_bin!("connect-inject");
    let mut command = std::process::Command::new(program);
    command.args(["audit", "--print-rbac"]);
    testkit::Outcome::unread(command).code(0);
}
