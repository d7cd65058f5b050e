//! `connect-inject inject`.

use assert_cmd::Command;
use serde_json::Value;

use crate::harness::{ECHO_CLIENT, ECHO_SERVER, IMAGES, yaml};

pub(crate) fn command(name: &str) -> Command {
    let mut command = assert_cmd::cargo::cargo_bin_cmd!("connect-inject");
    command.arg(name);
    command
}

fn inject() -> Command {
    let mut command = command("inject");
    command.args(IMAGES);
    command
}

/// Runs the command; returns its exit code, standard output and standard error.
pub(crate) fn run(command: &mut Command, input: &str) -> (i32, String, String) {
    let output = command.write_stdin(input).output().unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

pub(crate) fn documents(text: &str) -> Vec<Value> {
    text.split("---\n").map(yaml).collect()
}

pub(crate) fn is_injected(pod: &Value) -> bool {
    pod["metadata"]["annotations"]["consul.hashicorp.com/connect-inject-status"] == "injected"
}

#[test]
fn manifests_keep_their_order_and_format() {
    let service = "# our service\nkind: Service\napiVersion: v1\n";
    let (code, out, log) =
        run(&mut inject(), &format!("{ECHO_SERVER}---\n{service}---{ECHO_CLIENT}"));
    assert_eq!(code, 0, "{log}");
    let found = documents(&out);
    assert!(is_injected(&found[0]) && is_injected(&found[2]), "{out}");
    assert!(out.contains(&format!("---\n{service}---\n")), "{out}");
    assert!(log.contains("Service default/(no name): unchanged"), "{log}");

    let (code, out, _) = run(&mut inject(), &yaml(ECHO_SERVER).to_string());
    assert_eq!(code, 0);
    assert!(is_injected(&serde_json::from_str(&out).unwrap()), "{out}");
}

/// Injecting a pod again must not add a second sidecar. Reported in
/// <https://github.com/istio/istio/issues/25931>.
#[test]
fn injecting_again_changes_nothing() {
    let (_, once, _) = run(&mut inject(), &format!("{ECHO_SERVER}---{ECHO_CLIENT}"));
    let (code, twice, log) = run(&mut inject(), &once);
    assert_eq!((code, twice), (0, once));
    assert_eq!(log.matches("already-injected").count(), 2, "{log}");
}

#[test]
fn a_denied_manifest_is_written_unchanged() {
    let bad = ECHO_CLIENT.replace(":1234", "");
    let (code, out, log) = run(&mut inject(), &format!("{bad}---{ECHO_SERVER}"));
    assert_eq!(code, 64);
    assert!(out.starts_with(&bad), "{out}");
    assert!(is_injected(&documents(&out)[1]), "{out}");
    assert!(log.contains("column 1: no local port") && log.contains("denied: 1"), "{log}");
}

/// A shell executed the text of an annotation. Reported in
/// <https://github.com/hashicorp/consul-k8s/pull/115>.
#[test]
fn hostile_values_are_data() {
    let hostile = ECHO_CLIENT.replace("echo-server:1234", "prepared_query:$(POD_NAME)`id`;'x:1234");
    let (code, out, log) = run(&mut inject(), &hostile);
    assert_eq!(code, 0, "{log}");
    assert_eq!(
        yaml(&out)["spec"]["initContainers"][0]["args"][1],
        "--upstream=prepared_query:$$(POD_NAME)`id`;'x:1234"
    );
}

#[test]
fn nothing_is_written_if_one_file_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.yaml");
    let (code, out, log) = run(inject().args(["-f", "-", "-f"]).arg(&missing), ECHO_SERVER);
    assert_eq!((code, out.as_str()), (64, ""));
    assert!(log.contains("missing.yaml: No such file"), "{log}");
    let (code, out, log) = run(&mut inject(), &format!("{ECHO_SERVER}---\ncontainers: [\n"));
    assert_eq!((code, out.as_str()), (64, ""));
    assert!(log.contains("standard input: document 2: invalid YAML: line 19"), "{log}");
    let (code, out, _) = run(&mut inject(), "");
    assert_eq!((code, out.as_str()), (0, ""));
}

#[test]
fn the_policy_comes_from_flags_and_the_environment() {
    let plain = "apiVersion: v1\nkind: Pod\nspec: {containers: [{name: web}]}\n";
    for (command, expected) in [
        (inject().args(["--default-inject"]), true),
        (inject().args(["--default-inject=false"]), false),
        (inject().env("CONNECT_INJECT_DEFAULT_INJECT", "true"), true),
        (inject().args(["--default-inject", "--k8s-namespace", "kube-system"]), false),
        (inject().args(["--default-inject", "--allow-k8s-namespace", "a,b"]), false),
        (inject().args(["--default-inject", "--deny-k8s-namespace", "default"]), false),
    ] {
        let (code, out, log) = run(command, plain);
        assert_eq!(code, 0, "{log}");
        assert_eq!(is_injected(&yaml(&out)), expected, "{log}");
    }
    let (_, out, _) = run(
        inject()
            .args(["--envoy-extra-args", "--log-level 'debug'"])
            .args(["--consul-http-addr-template", "https://$(NODE_NAME):8501"]),
        ECHO_SERVER,
    );
    let pod = yaml(&out);
    let command = pod["spec"]["containers"][0]["command"].as_array().unwrap();
    assert_eq!(command[command.len() - 2..], ["--log-level", "debug"]);
    let addresses = &pod["spec"]["initContainers"][0]["env"].as_array().unwrap()[7..];
    assert_eq!(addresses[0]["value"], "https://$(NODE_NAME):8501");
}

#[test]
fn an_error_names_the_flag_and_what_it_accepts() {
    for (flag, value, accepted) in [
        ("--init-image", "", "such as `registry/name:tag`"),
        ("--envoy-image", "a b", "such as `registry/name:tag`"),
        ("--envoy-extra-args", "'", "column 1"),
        ("--consul-grpc-addr-template", "$(X)", "unknown variable `$(X)`"),
        ("--default-sidecar-proxy-cpu-limit", "1mm", "column 2"),
        ("--sidecar-mode", "natif", "`auto`, `native` or `container`"),
        ("--kubernetes-version", "new", "such as `1.31`"),
        ("--consul-ca-cert", "/none", "cannot read /none"),
        ("--acl-auth-method", "a b", "expected one word"),
    ] {
        let mut command = command("inject");
        for pair in IMAGES.chunks(2).filter(|pair| pair[0] != flag) {
            command.args(pair);
        }
        let (code, out, log) = run(command.arg(format!("{flag}={value}")), ECHO_SERVER);
        assert_eq!((code, out.as_str()), (64, ""), "{flag}");
        assert!(log.contains(flag) && log.contains(accepted), "{log}");
    }
    let contradictions = [
        "--init-container-cpu-limit=1m",
        "--default-sidecar-proxy-memory-limit=1",
        "--sidecar-mode=native",
        "--kubernetes-version=1.28",
    ];
    let (code, _, log) = run(inject().args(contradictions), ECHO_SERVER);
    assert_eq!(code, 64);
    for problem in [
        "--init-container: the cpu request `50m` is above the cpu limit `1m`",
        "--default-sidecar-proxy: the memory request",
        "--sidecar-mode: Kubernetes 1.28 has no native sidecars",
    ] {
        assert!(log.contains(problem), "{problem}: {log}");
    }
}

/// The init container gets the operator's CA and auth method, and each service has an Envoy.
#[test]
fn pods_of_several_services_work_with_agents_that_use_tls() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    let ca = crate::harness::Certified::new().cert;
    std::io::Write::write_all(&mut std::fs::File::create(&file).unwrap(), ca.as_bytes()).unwrap();
    let pod = ECHO_SERVER.replace(
        "connect-inject\": \"true\"",
        "connect-inject\": \"true\"\n    consul.hashicorp.com/connect-service: web,web-admin\n    \
         consul.hashicorp.com/connect-service-port: http,9090",
    );
    let (code, out, log) = run(inject().arg("--consul-ca-cert").arg(&file), &pod);
    assert_eq!(code, 0, "{log}");
    let injected = yaml(&out);
    let variables = injected["spec"]["initContainers"][0]["env"].as_array().unwrap();
    for (name, value) in [
        ("CONSUL_HTTP_ADDR", "https://$(HOST_IP):8501"),
        ("CONSUL_GRPC_ADDR", "https://$(HOST_IP):8502"),
        ("CONSUL_CACERT_PEM", &ca),
    ] {
        assert!(
            variables.iter().any(|v| v["name"] == name && v["value"] == value),
            "{variables:?}"
        );
    }
    assert_eq!(
        injected["spec"]["initContainers"][0]["args"].as_array().unwrap()[..2],
        ["--service=web:8080", "--service=web-admin:9090"]
    );
    let names: Vec<_> =
        injected["spec"]["containers"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["envoy-sidecar", "envoy-sidecar-web-admin", "echo-server"]);
    let (code, back, log) = run(&mut command("uninject"), &out);
    assert_eq!((code, yaml(&back)), (0, yaml(&pod)), "{log}");

    // With ACLs, a pod has only the service of its account.
    let acls = ["--acl-auth-method", "k8s"];
    let (code, _, log) = run(inject().args(acls), ECHO_SERVER);
    assert_eq!(code, 64);
    assert!(log.contains("service-account-mismatch") && log.contains("`default`"), "{log}");
    let pod = ECHO_SERVER.replace("spec:\n", "spec:\n  serviceAccountName: echo-server\n");
    let (code, out, log) = run(inject().args(acls), &pod);
    assert_eq!(code, 0, "{log}");
    let token = &yaml(&out)["spec"]["volumes"][1]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["path"], "token");
    assert_eq!(token["expirationSeconds"], 3600);
}
