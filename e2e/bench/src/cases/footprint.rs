//! Sizes of binaries and image, and the cost of an idle sidecar.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use super::start::{Bench, POD_IP, text};
use crate::command::{Steps, Taken};
use crate::figure::{Budget, Figure, Row};
use crate::{Found, Plan, process};
use harness::node::Node;
use harness::process::run as output_of;
use harness::{Result, until};
use nix::sys::signal::Signal;

const MILLION: f64 = 1e6;

/// # Errors
/// A program fails.
pub(super) fn run(plan: &Plan) -> Result<Found> {
    let bytes = |path: &std::path::Path| -> Result<f64> {
        let length = std::fs::metadata(path)?.len();
        Ok(f64::from(u32::try_from(length)?) / MILLION)
    };
    let consul = Figure::exact(bytes(&plan.parts.consul)?);
    let mut rows = Vec::new();
    let mut pod = 0.0;
    for name in ["connect-init", "connect-lifecycle", "connect-register", "connect-inject"] {
        let size = bytes(&plan.parts.bins.join(name))?;
        if ["connect-init", "connect-lifecycle"].contains(&name) {
            pod += size;
        }
        rows.push(Row::new(name, "MB", Figure::exact(size)).peer(consul));
    }
    rows.push(
        Row::new("connect-init and connect-lifecycle", "MB", Figure::exact(pod))
            .peer(consul)
            .budget(Budget::AtMost(6.0)),
    );
    if let Some(image) = &plan.parts.init_image {
        rows.push(Row::new("image connect-init", "MB", Figure::exact(bytes(image)?)).peer(consul));
    }
    rows.extend(at_rest(plan)?);
    Ok(Found { rows, ..Found::default() })
}

/// `connect-lifecycle run` with an Envoy that does nothing.
fn at_rest(plan: &Plan) -> Result<Vec<Row>> {
    let node = Node::new(plan.parts.clone())?;
    let _agent = node.start_agent()?;
    let bench = Bench::new(plan, &node)?;
    bench.describe()?;
    let init = bench.init()?;
    Taken::default().add(plan, &init)?;
    // The pod's address, on which Envoy listens.
    output_of("ip", &["address", "add", POD_IP, "dev", "lo"])?;
    // Both listen: otherwise the sidecar would check them more often.
    let _application = TcpListener::bind((Ipv4Addr::LOCALHOST, 8080))?;
    let folder = bench.last_folder();
    let bootstrap = text(&folder.join("envoy-bootstrap.json"));
    let (dir, envoy) = (text(&folder), text(&plan.parts.envoy));
    let args = ["run", "--dir", &dir, "--", &envoy, "--config-path", &bootstrap];
    let args = [args.as_slice(), &["--disable-hot-restart", "--concurrency", "1"]].concat();
    let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
    let mut helper = node.start(&plan.parts.bins.join("connect-lifecycle"), &args)?;
    until("all checks to pass", || {
        let checks = node.get("/v1/agent/checks").unwrap_or_default();
        let checks = checks.as_object().filter(|checks| !checks.is_empty());
        checks.is_some_and(|checks| checks.values().all(|check| check["Status"] == "passing"))
    })?;
    // The first heartbeats, which are 10 s apart, still see changes: the servers give the proxy
    // a virtual address.
    std::thread::sleep(Duration::from_secs(15));
    let watched = Duration::from_secs(if plan.full { 600 } else { 60 });
    let (began, before) = (Instant::now(), process::cpu(helper.pid())?);
    std::thread::sleep(watched);
    let used = process::cpu(helper.pid())?.saturating_sub(before);
    let a_minute = used.as_secs_f64() * 1000.0 * 60.0 / began.elapsed().as_secs_f64();
    // The peer, without a sidecar: registers again every 10 s.
    let mut again = Taken::default();
    let consul = text(&plan.parts.consul);
    let address = format!("-http-addr={}", bench.url());
    for _ in 0..plan.runs.min(5) {
        let args = [&consul, "services", "register", &address, &text(&bench.definition())];
        again.add(plan, &Steps::default().then(&args))?;
    }
    let six = again.cpu().map(|one| Figure {
        median: one.median * 6.0,
        min: one.min * 6.0,
        max: one.max * 6.0,
        ..one
    });
    let memory = |name| process::memory(helper.pid(), name).map(Figure::exact);
    let (resident, share) = (memory("Rss")?, memory("Pss")?);
    // It stops Envoy.
    helper.signal(Signal::SIGTERM)?;
    helper.wait()?;
    Ok(vec![
        Row::new("helper at rest: resident", "MiB", resident)
            .peer(again.peak())
            .budget(Budget::AtMost(4.0)),
        Row::new("helper at rest: its share of it (PSS)", "MiB", share),
        // Not measurable: less than the 10 ms in which the kernel's own tools count.
        Row::new("helper at rest: processor, a minute", "ms", Figure::exact(a_minute))
            .peer(six)
            .budget(Budget::AtMost(10.0)),
    ])
}
