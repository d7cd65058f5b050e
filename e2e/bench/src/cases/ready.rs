//! The injector's start: how long until it is ready to answer reviews, also if it first asks
//! the API server for its version.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::kubeconfig;
use super::start::{text, write};
use crate::Plan;
use crate::figure::{Budget, Figure, Row};
use harness::Result;
use harness::node::Node;

/// What an API server answers at `/version`.
const VERSION: &str = r#"{"major":"1","minor":"34","gitVersion":"v1.34.4","gitCommit":"","gitTreeState":"","buildDate":"","goVersion":"","compiler":"","platform":""}"#;

/// Longer than any start.
const PATIENCE: Duration = Duration::from_secs(10);

/// # Errors
/// The injector does not become ready.
pub(super) fn rows(plan: &Plan, node: &Node) -> Result<[Row; 2]> {
    let folder = node.folder("injector")?;
    let api = format!("{}:8446", node.ip());
    let file = |name: &str| text(&folder.join(name));
    let args = [
        format!("--listen={api}"),
        format!("--cert={}", file("tls.crt")),
        format!("--key={}", file("tls.key")),
        format!("--answer={VERSION}"),
    ];
    let mut server = node.start(&plan.measure.join("measure-floor"), &args)?;
    server.await_output("listening")?;
    let config = folder.join("kubeconfig");
    let cluster =
        json!({"server": format!("https://{api}"), "certificate-authority": file("tls.crt")});
    write(&config, &kubeconfig(&cluster))?;

    let told = "--kubernetes-version=1.34".to_owned();
    let asking = format!("--kubeconfig={}", text(&config));
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..plan.runs {
        for (flag, took) in [&told, &asking].into_iter().zip(&mut took) {
            took.push(start(plan, node, &folder, flag)?.as_secs_f64() * 1000.0);
        }
    }
    let [told, asking] = took.map(Figure::of);
    let row = |what: &str, figure: Option<Figure>| -> Result<Row> {
        Ok(Row::new(format!("webhook: start to ready{what}"), "ms", figure.ok_or("no run")?))
    };
    // Half of what the kernel waits before it acknowledges by itself.
    let most = Budget::AtMost(20.0);
    Ok([row("", told)?, row(", asking the API server's version", asking)?.budget(most)])
}

fn start(plan: &Plan, node: &Node, folder: &Path, flag: &str) -> Result<Duration> {
    let admin = format!("{}:9447", node.ip()).parse()?;
    let args = [
        "serve".to_owned(),
        format!("--listen={}:8447", node.ip()),
        format!("--admin-listen={admin}"),
        "--init-image=connect-init:1".to_owned(),
        "--envoy-image=envoy:v1.40.0".to_owned(),
        format!("--tls-cert-file={}", text(&folder.join("tls.crt"))),
        format!("--tls-key-file={}", text(&folder.join("tls.key"))),
        flag.to_owned(),
    ];
    let began = Instant::now();
    let injector = node.start(&plan.parts.bins.join("connect-inject"), &args)?;
    while !is_ready(admin) {
        if began.elapsed() > PATIENCE {
            return Err(format!("not ready after {PATIENCE:?}:\n{}", injector.output()).into());
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(began.elapsed())
}

fn is_ready(admin: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(admin)?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    };
    ask().unwrap_or(false)
}
