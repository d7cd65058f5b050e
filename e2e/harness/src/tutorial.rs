//! The tutorial "Connect Sidecar on Kubernetes": its unchanged manifests and its steps.

use serde_json::Value;

use crate::kubelet::Pod;
use crate::node::{Injector, Node};
use crate::{Result, until};

/// The tutorial's server pod.
pub const ECHO_SERVER: &str = include_str!("../manifests/echo-server.yaml");
/// The tutorial's client pod.
pub const ECHO_CLIENT: &str = include_str!("../manifests/echo-client.yaml");
/// The tutorial's Deployment.
pub const DEPLOYMENT: &str = include_str!("../manifests/deployment.yaml");

/// The command of the tutorial's `kubectl exec` in the client.
const CURL: [&str; 3] = ["curl", "-s", "http://127.0.0.1:1234/"];

/// The answer of the tutorial's server.
pub const HELLO: &str = "\"hello world\"\n";

/// A pod of the tutorial as the API server would store it, with the injector's patch.
///
/// # Errors
/// The pod was denied or not injected.
pub fn injected(node: &Node, injector: &Injector, manifest: &str) -> Result<Value> {
    injected_pod(node, injector, &serde_saphyr::from_str(manifest)?)
}

/// Like [`injected`], for a parsed pod.
///
/// # Errors
/// As [`injected`].
pub fn injected_pod(node: &Node, injector: &Injector, pod: &Value) -> Result<Value> {
    let pod = node.admit(injector, pod, "default")?;
    let status = &pod["metadata"]["annotations"]["consul.hashicorp.com/connect-inject-status"];
    if status != "injected" {
        return Err(format!("the pod's status is {status}:\n{}", injector.log()).into());
    }
    Ok(pod)
}

/// Starts a pod and waits until every check of its service passes.
///
/// # Errors
/// It does not start, or a check does not pass; with the sidecar's log.
pub fn started<'n>(node: &'n Node, manifest: &Value) -> Result<Pod<'n>> {
    let mut pod = Pod::create(node, manifest)?;
    pod.start()?;
    await_passing(node, manifest["metadata"]["name"].as_str().unwrap_or_default())
        .map_err(|error| format!("{error}\n{}", pod.log("envoy-sidecar")))?;
    Ok(pod)
}

/// Waits until a service and its proxy have one healthy instance each.
///
/// # Errors
/// A check does not pass; with all checks.
pub fn await_passing(node: &Node, service: &str) -> Result<()> {
    let passing = until(&format!("{service}'s checks to pass"), || {
        [service.to_owned(), format!("{service}-sidecar-proxy")].iter().all(|service| {
            let found = node.get(&format!("/v1/health/service/{service}?passing"));
            found.is_ok_and(|found| found.as_array().is_some_and(|list| list.len() == 1))
        })
    });
    passing.map_err(|error| {
        let checks = node.get("/v1/agent/checks");
        format!("{error}\n{}", checks.map(|checks| format!("{checks:#}")).unwrap_or_default())
            .into()
    })
}

/// Waits until the node's agent has a service and its proxy, with all checks passing. The
/// catalog may still list the entries of an agent that lost its data.
///
/// # Errors
/// The agent does not have them; with all its checks.
pub fn await_registered(node: &Node, service: &str) -> Result<()> {
    let registered = until(&format!("{service} to be registered with the agent"), || {
        [service.to_owned(), format!("{service}-sidecar-proxy")].iter().all(|service| {
            // The status is 200 only if all checks pass.
            node.get(&format!("/v1/agent/health/service/name/{service}")).is_ok()
        })
    });
    registered.map_err(|error| {
        let checks = node.get("/v1/agent/checks");
        format!("{error}\n{}", checks.map(|checks| format!("{checks:#}")).unwrap_or_default())
            .into()
    })
}

/// Waits until the tutorial's curl prints the expected output.
///
/// # Errors
/// It prints something else; with that output.
pub fn await_answer(client: &Pod<'_>, expected: &str) -> Result<()> {
    let mut seen = String::new();
    let waited = until("the answer to curl", || {
        seen = match client.exec("echo-client", &CURL) {
            Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
            Err(error) => error.to_string(),
        };
        seen == expected
    });
    waited.map_err(|error| {
        format!("{error}; last seen: {seen:?}\n{}", client.log("envoy-sidecar")).into()
    })
}

/// Waits until the tutorial's curl fails because the connection was closed: exit code 52 (no
/// response) or 56 (closed while reading).
///
/// # Errors
/// It still succeeds, or fails with another code.
pub fn await_refusal(client: &Pod<'_>) -> Result<i32> {
    let mut code = None;
    until("curl to fail", || {
        code = client.exec("echo-client", &CURL).ok().and_then(|output| output.status.code());
        code != Some(0)
    })?;
    match code {
        Some(code @ (52 | 56)) => Ok(code),
        other => Err(format!("expected curl's exit code 52 or 56, not {other:?}").into()),
    }
}
