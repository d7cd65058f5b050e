//! Bytes of the binaries and of the image, and a helper at rest: what a pod
//! costs when nothing happens.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use super::command::{Steps, Taken};
use super::figure::{Budget, Figure, Row};
use super::start::{Bench, SERVICE, text};
use super::{Found, Plan, process};
use harness::node::Node;
use harness::{Result, until};

const MILLION: f64 = 1e6;

/// # Errors
/// A part does not do what it is for.
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
    Ok(Found { rows, lines: Vec::new() })
}

/// `connect-lifecycle run` with an Envoy that does nothing.
fn at_rest(plan: &Plan) -> Result<Vec<Row>> {
    let node = Node::new(plan.parts.clone())?;
    let _agent = node.start_agent()?;
    let bench = Bench::new(plan, &node)?;
    bench.describe()?;
    let init = bench.init()?;
    Taken::default().add(plan, &init)?;
    // An application that listens: one that does not is looked at more often.
    let _application = TcpListener::bind((Ipv4Addr::LOCALHOST, 8080))?;
    let args = ["run", "--dir", &text(&bench.last_folder()), "--", "sleep", "infinity"];
    let helper =
        node.start(&plan.parts.bins.join("connect-lifecycle"), &args.map(str::to_owned))?;
    until("the application's check", || {
        let checks = node.get("/v1/agent/checks").unwrap_or_default();
        checks[format!("{SERVICE}-application")]["Status"] == "passing"
    })?;
    // Several renewals, which come every 10 s.
    let watched = Duration::from_secs(if plan.full { 60 } else { 21 });
    let (began, before) = (Instant::now(), process::cpu(helper.pid())?);
    std::thread::sleep(watched);
    let used = process::cpu(helper.pid())?.saturating_sub(before);
    let a_minute = used.as_secs_f64() * 1000.0 * 60.0 / began.elapsed().as_secs_f64();
    // What holds a registration without a helper: told again, every 10 s.
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
    Ok(vec![
        Row::new("helper at rest: resident", "MiB", memory("Rss")?)
            .peer(again.peak())
            .budget(Budget::AtMost(4.0)),
        Row::new("helper at rest: its share of it (PSS)", "MiB", memory("Pss")?),
        // Not measurable: less than the 10 ms in which the kernel's own tools count.
        Row::new("helper at rest: processor, a minute", "ms", Figure::exact(a_minute))
            .peer(six)
            .budget(Budget::AtMost(10.0)),
    ])
}
