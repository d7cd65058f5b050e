//! Plays the tutorial: injects its two unchanged pods, runs them, sends a request through
//! their Envoys, and deregisters them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::kubelet::Pod;
use crate::node::Node;
use crate::parts::Parts;
use crate::process::run;
use crate::tutorial::{
    ECHO_CLIENT, ECHO_SERVER, HELLO, await_answer, await_refusal, injected, started,
};
use crate::{Result, until};

/// Plays the whole tutorial. `say` gets a line for each step; a line that begins with a
/// blank belongs to the step before.
///
/// # Errors
/// A step failed; with what happened instead.
pub fn play(parts: Parts, say: &mut dyn FnMut(&str)) -> Result<()> {
    say("A Consul server, and a node with its own network and a client agent");
    let node = Node::new(parts)?;
    let _agent = node.start_agent()?;
    let release = node.get("/v1/agent/self")?["Config"]["Version"].clone();
    let (release, ip) = (text(&release), node.ip());
    say(&format!("  Consul {release}: {}", node.parts().consul.display()));
    say(&format!("  server at {}, client agent at {ip}", node.server_ip()));
    say(&format!("  the agent's HTTP API at http://{ip}:8500, its xDS at {ip}:8502"));
    // "COMMIT/RELEASE/..."
    let envoy = run(&node.parts().envoy.to_string_lossy(), &["--version"])?;
    let envoy = envoy.rsplit("version: ").next().and_then(|version| version.split('/').nth(1));
    let envoy = envoy.ok_or("`envoy --version` prints no release")?;
    say(&format!("  Envoy {envoy}: {}", node.parts().envoy.display()));

    say("The injector, over HTTPS");
    let injector = node.start_injector()?;
    let server = injected(&node, &injector, ECHO_SERVER)?;
    let client = injected(&node, &injector, ECHO_CLIENT)?;
    for pod in [&server, &client] {
        show_pod(pod, say);
    }

    say("The pods start, as a kubelet would start them");
    let server = started(&node, &server)?;
    say(&format!("  echo-server runs at {}", server.ip));
    let client = started(&node, &client)?;
    say(&format!("  echo-client runs at {}", client.ip));
    show_catalog(&node, say)?;

    say("From the client's pod: curl -s http://127.0.0.1:1234/");
    await_answer(&client, HELLO)?;
    say(&format!("  {}", HELLO.trim_end()));
    let certificate = connect_certificate(&server)?;
    say(&format!("  over mutual TLS: the server shows {certificate}"));
    refuse_without_certificate(&server.ip, say)?;

    say("A deny intention, without touching a pod");
    node.consul(&["intention", "create", "-deny", "echo-client", "echo-server"])?;
    let code = await_refusal(&client)?;
    say(&format!("  the same curl ends with exit code {code}"));
    node.consul(&["intention", "delete", "echo-client", "echo-server"])?;
    await_answer(&client, HELLO)?;
    say(&format!("  after the intention is deleted: {}", HELLO.trim_end()));

    say("The server's pod stops, as the kubelet would stop it");
    let gone = server.ip.clone();
    let processes = server.processes();
    let ended = server.stop()?;
    for (container, how) in &ended {
        say(&format!("  {container}: {how}"));
    }
    let clean = BTreeMap::from(
        ["envoy-sidecar", "echo-server"].map(|name| (name.to_owned(), "exit status: 0".to_owned())),
    );
    if ended != clean {
        return Err(format!("the containers did not exit with status 0: {ended:?}").into());
    }
    let left: Vec<_> = processes.iter().filter(|pid| is_alive(**pid)).collect();
    if !left.is_empty() {
        return Err(format!("processes of the pod are left: {left:?}").into());
    }
    for service in ["echo-server", "echo-server-sidecar-proxy"] {
        let instances = node.get(&format!("/v1/health/service/{service}"))?;
        if instances != json!([]) {
            return Err(format!("{service} is still in the catalog: {instances}").into());
        }
        say(&format!("  {service} is gone from the catalog"));
    }
    say(&format!("  no process of {gone} is left"));
    Ok(())
}

/// Prints what the injector added to a pod.
fn show_pod(pod: &Value, say: &mut dyn FnMut(&str)) {
    let status = &pod["metadata"]["annotations"]["consul.hashicorp.com/connect-inject-status"];
    say(&format!(
        "  {}: connect-inject-status is {}",
        text(&pod["metadata"]["name"]),
        text(status)
    ));
    for (kind, list) in [("init container", "initContainers"), ("container", "containers")] {
        for container in pod["spec"][list].as_array().into_iter().flatten() {
            say(&format!("    {kind} {}", text(&container["name"])));
        }
    }
}

/// Prints services, proxies and their checks in the catalog.
fn show_catalog(node: &Node, say: &mut dyn FnMut(&str)) -> Result<()> {
    say("The catalog");
    for service in
        ["echo-server", "echo-server-sidecar-proxy", "echo-client", "echo-client-sidecar-proxy"]
    {
        let instances = node.get(&format!("/v1/health/service/{service}"))?;
        for instance in instances.as_array().into_iter().flatten() {
            let entry = &instance["Service"];
            let (id, address, port) = (text(&entry["ID"]), text(&entry["Address"]), &entry["Port"]);
            say(&format!("  {service}: id {id}, {address}, port {port}"));
            for check in instance["Checks"].as_array().into_iter().flatten() {
                if check["ServiceID"] != "" {
                    say(&format!("    {}: {}", text(&check["Name"]), text(&check["Status"])));
                }
            }
        }
    }
    Ok(())
}

/// The SPIFFE id in the sidecar's certificate. Fails if Envoy has counted no TLS handshake.
fn connect_certificate(server: &Pod<'_>) -> Result<String> {
    let admin = |path: &str| -> Result<String> {
        let url = format!("http://127.0.0.1:19000{path}");
        let output = server.exec("envoy-sidecar", &["curl", "-s", &url])?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let certificates: Value = serde_json::from_str(&admin("/certs")?)?;
    let uri = certificates.pointer("/certificates/0/cert_chain/0/subject_alt_names/0/uri");
    let uri = uri
        .and_then(Value::as_str)
        .ok_or_else(|| format!("Envoy has no certificate: {certificates}"))?;
    if !uri.starts_with("spiffe://") || !uri.ends_with("/svc/echo-server") {
        return Err(format!("the certificate is for {uri}").into());
    }
    let handshakes = admin("/stats?usedonly&filter=20000.ssl.handshake$")?;
    if !handshakes.contains("ssl.handshake") {
        return Err("no TLS handshake was counted on the public listener".into());
    }
    Ok(uri.to_owned())
}

/// Checks that a client without a certificate is rejected, with a TLS alert. If the reset of
/// the connection overtakes the alert, the check is repeated.
fn refuse_without_certificate(ip: &str, say: &mut dyn FnMut(&str)) -> Result<()> {
    let url = format!("https://{ip}:20000/");
    let mut answered = false;
    let mut why = String::new();
    until("the alert that asks for a certificate", || {
        match run("curl", &["-sSk", "--max-time", "10", &url]) {
            Ok(_) => answered = true,
            Err(error) => why = error.to_string(),
        }
        answered || why.contains("certificate required")
    })
    .map_err(|error| format!("{error}; last seen: {why}"))?;
    if answered {
        return Err("a client without a certificate was accepted".into());
    }
    say(&format!("  without a client certificate: {}", why.lines().last().unwrap_or_default()));
    Ok(())
}

fn is_alive(pid: i32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
