//! Plays the tutorial on a cluster, with its own commands.

use reqwest::Method;
use serde_json::json;

use crate::client::{Cluster, Namespace, text};
use harness::tutorial::{DEPLOYMENT, ECHO_CLIENT, ECHO_SERVER, HELLO};
use harness::{Result, until};

/// Arguments of the tutorial's `kubectl` command.
const EXEC: [&str; 6] = ["exec", "echo-client", "--", "curl", "-s", "http://127.0.0.1:1234/"];

/// Plays the whole tutorial in a new namespace. `say` gets a line for each step; a line that
/// begins with a blank belongs to the step before.
///
/// # Errors
/// A step failed; with what happened instead.
pub fn play(cluster: &Cluster, say: &mut dyn FnMut(&str)) -> Result<()> {
    let version = cluster.get("/version")?;
    let release = cluster.consul("/v1/agent/self")?["Config"]["Version"].clone();
    say("A cluster with the injector, and a Consul client agent on its node");
    say(&format!("  Kubernetes {}, Consul {}", text(&version["gitVersion"]), text(&release)));
    let namespace = cluster.namespace("document")?;

    for (name, manifest) in [("echo-server", ECHO_SERVER), ("echo-client", ECHO_CLIENT)] {
        say(&format!("kubectl apply -f {name}.yaml"));
        for line in namespace.apply(manifest)?.lines() {
            say(&format!("  {line}"));
        }
    }
    for name in ["echo-server", "echo-client"] {
        namespace.await_condition(&format!("pod/{name}"), "Ready")?;
        show_pod(&namespace, name, say)?;
    }
    for service in ["echo-server", "echo-client"] {
        cluster.await_instances(service, 1)?;
        show_catalog(cluster, service, say)?;
    }

    say(&format!("kubectl {}", EXEC.join(" ")));
    await_answer(&namespace)?;
    say(&format!("  {}", HELLO.trim_end()));

    say("A deny intention, without touching a pod");
    let intention =
        json!({"SourceName": "echo-client", "DestinationName": "echo-server", "Action": "deny"});
    let made = cluster.consul_request(Method::POST, "/v1/connect/intentions", Some(&intention))?;
    let code = await_refusal(&namespace);
    let path = format!("/v1/connect/intentions/{}", text(&made["ID"]));
    // Even on failure, because an intention affects the whole mesh.
    cluster.consul_request(Method::DELETE, &path, None)?;
    say(&format!("  command terminated with exit code {}", code?));
    await_answer(&namespace)?;
    say(&format!("  after the intention is deleted: {}", HELLO.trim_end()));

    say("kubectl apply -f deployment.yaml");
    namespace.apply(DEPLOYMENT)?;
    namespace.await_rollout("deployment/consul-example-deployment")?;
    for pod in namespace.pods("app=consul-example")? {
        show_pod(&namespace, text(&pod["metadata"]["name"]), say)?;
    }
    cluster.await_instances("example", 1)?;
    show_catalog(cluster, "example", say)?;

    say("kubectl delete: the pods and the Deployment");
    namespace.kubectl(&["delete", "--wait=false", "pod/echo-server", "pod/echo-client"])?;
    namespace.kubectl(&["delete", "--wait=false", "deployment/consul-example-deployment"])?;
    for service in ["echo-server", "echo-client", "example"] {
        cluster.await_instances(service, 0)?;
        say(&format!("  {service} and its proxy are gone from the catalog"));
    }
    Ok(())
}

/// Prints a pod's containers. Fails if it is not injected.
fn show_pod(namespace: &Namespace<'_>, name: &str, say: &mut dyn FnMut(&str)) -> Result<()> {
    let pod = namespace.pod(name)?;
    let status = &pod["metadata"]["annotations"]["consul.hashicorp.com/connect-inject-status"];
    say(&format!("  {name}: connect-inject-status is {}", text(status)));
    if status != "injected" {
        return Err(format!("{name} was not injected: {pod:#}").into());
    }
    for (kind, list) in [("init container", "initContainers"), ("container", "containers")] {
        for container in pod["spec"][list].as_array().into_iter().flatten() {
            say(&format!("    {kind} {}", text(&container["name"])));
        }
    }
    Ok(())
}

/// Prints a service and its proxy in the catalog.
fn show_catalog(cluster: &Cluster, service: &str, say: &mut dyn FnMut(&str)) -> Result<()> {
    for name in [service.to_owned(), format!("{service}-sidecar-proxy")] {
        for instance in cluster.passing(&name)? {
            let entry = &instance["Service"];
            let (id, address) = (text(&entry["ID"]), text(&entry["Address"]));
            let checks = instance["Checks"].as_array().map_or(0, Vec::len);
            say(&format!(
                "  {name}: id {id}, {address}, port {}, {checks} checks pass",
                entry["Port"]
            ));
        }
    }
    Ok(())
}

/// Waits until the tutorial's command prints the server's response.
fn await_answer(namespace: &Namespace<'_>) -> Result<()> {
    let mut seen = String::new();
    until("the answer to curl", || {
        seen = match namespace.try_kubectl(&EXEC, "") {
            Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
            Err(error) => error.to_string(),
        };
        seen == HELLO
    })
    .map_err(|error| format!("{error}; last seen: {seen:?}").into())
}

/// Waits until the tutorial's command fails as the tutorial says: with exit code 52.
fn await_refusal(namespace: &Namespace<'_>) -> Result<i32> {
    let mut seen = None;
    until("curl to end with exit code 52", || {
        seen = namespace.try_kubectl(&EXEC, "").ok().and_then(|output| output.status.code());
        seen == Some(52)
    })
    .map_err(|error| format!("{error}; last seen: {seen:?}"))?;
    Ok(52)
}
