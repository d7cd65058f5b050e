//! The injector under load, over TLS with kept-alive connections. The floor is the same
//! server, which does not parse the review.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::start::{text, write};
use crate::figure::{Budget, Figure, Line, Row};
use crate::{Found, Plan, process};
use harness::Result;
use harness::admission::review;
use harness::node::{Injector, Node};
use harness::process::{Process, run as output_of};
use harness::tutorial::ECHO_SERVER;

/// Results of a load, as `measure-load` prints them, and the server's CPU time.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Load {
    reviews: f64,
    bytes: f64,
    took_ns: f64,
    p50_ns: f64,
    p99_ns: f64,
    #[serde(skip)]
    cpu: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    connections: u32,
    millis: u32,
    /// Reviews per second; `None`: as many as are answered.
    rate: Option<u32>,
    reviews: Option<u32>,
}

/// The injector, the floor, and files with reviews.
struct Bench<'n> {
    plan: &'n Plan,
    node: &'n Node,
    folder: PathBuf,
    injector: Injector,
    floor: Process,
}

/// A pod to review.
struct Pod {
    name: &'static str,
    /// Minimum length in bytes.
    bytes: usize,
    /// Reviews per second that do not saturate the webhook.
    rate: u32,
    /// Budget for the 99th percentile, in milliseconds.
    slowest: Option<f64>,
    /// Budget for the CPU time of a review, as a multiple of the floor's.
    times_floor: Option<f64>,
}

const PODS: [Pod; 3] = [
    Pod {
        name: "the tutorial's pod",
        bytes: 0,
        rate: 400,
        slowest: Some(1.0),
        times_floor: Some(3.0),
    },
    Pod { name: "64 KiB pod", bytes: 64 << 10, rate: 200, slowest: Some(5.0), times_floor: None },
    Pod { name: "1 MiB pod", bytes: 1 << 20, rate: 20, slowest: None, times_floor: None },
];

const ROUNDS: usize = 3;

/// # Errors
/// A part does not do what it is for.
pub(super) fn run(plan: &Plan) -> Result<Found> {
    let node = Node::new(plan.parts.clone())?;
    let bench = Bench::start(plan, &node)?;
    let mut found = Found::default();
    let document = serde_saphyr::from_str::<Value>(ECHO_SERVER)?;

    let many = if plan.full { 1_000_000 } else { 20_000 };
    let body = bench.body("resident", &document)?;
    let whole = Shape { connections: 32, millis: 0, rate: None, reviews: Some(many) };
    bench.ours(&body, whole)?;
    let resident = Figure::exact(process::memory(bench.injector.pid(), "Rss")?);
    bench.floor(&body, Shape { reviews: Some(20_000), ..whole })?;
    let floor = Figure::exact(process::memory(bench.floor.pid(), "Rss")?);
    found.rows.push(
        Row::new(format!("webhook: resident after {many} reviews"), "MiB", resident)
            .floor(floor)
            .budget(Budget::AtMost(20.0)),
    );

    for Pod { name, bytes, rate, slowest: budget, times_floor } in PODS {
        let body = bench.body(name, &padded(&document, bytes))?;
        for connections in [1, 8, 32] {
            let flat_out = Shape { connections, millis: 1000, rate: None, reviews: None };
            let (ours, floor) = bench.both(&body, flat_out)?;
            let on = match connections {
                1 => format!("webhook: {name}, 1 connection"),
                _ => format!("webhook: {name}, {connections} connections"),
            };
            let row = |what: &str, unit, figure: &dyn Fn(&Load) -> f64| {
                figure_row(format!("{on}: {what}"), unit, &ours, &floor, figure)
            };
            found.rows.push(row("reviews", "/s", &|load| load.reviews / load.took_ns * 1e9)?);
            found.rows.push(row("median", "ms", &|load| load.p50_ns / 1e6)?);
            let cpu = row("processor of a review", "µs", &|load| {
                load.cpu.as_secs_f64() * 1e6 / load.reviews
            })?;
            found.rows.push(match times_floor {
                Some(times) => cpu.budget(Budget::TimesFloor(times)),
                None => cpu,
            });
            let judged = |row: Row| match budget {
                Some(most) => row.budget(Budget::AtMost(most)),
                None => row,
            };
            let slowest = row("p99", "ms", &|load| load.p99_ns / 1e6)?;
            if connections < 32 {
                found.rows.push(if connections == 1 { judged(slowest) } else { slowest });
                continue;
            }
            // Under saturation an answer waits for the 31 before it, so the latency is 32
            // divided by the throughput. The latency with 32 connections is measured with a
            // load that does not saturate the webhook.
            found.rows.push(Row { what: slowest.what + ", saturated", ..slowest });
            let paced = Shape { millis: 2000, rate: Some(rate), ..flat_out };
            let (ours, floor) = bench.both(&body, paced)?;
            let what = format!("{on}: p99 at {rate} reviews/s");
            found
                .rows
                .push(judged(figure_row(what, "ms", &ours, &floor, &|load| load.p99_ns / 1e6)?));
        }
    }
    let resident = Figure::exact(process::memory(bench.injector.pid(), "Rss")?);
    found.rows.push(Row::new("webhook: resident after all that", "MiB", resident));

    bench.growth(&document, &mut found)?;
    Ok(found)
}

fn figure_row(
    what: String,
    unit: &'static str,
    ours: &[Load],
    floor: &[Load],
    figure: &dyn Fn(&Load) -> f64,
) -> Result<Row> {
    let of = |loads: &[Load]| Figure::of(loads.iter().map(figure).collect());
    Ok(Row::new(what, unit, of(ours).ok_or("no load")?).floor(of(floor)))
}

// === impl Bench ===

impl<'n> Bench<'n> {
    fn start(plan: &'n Plan, node: &'n Node) -> Result<Self> {
        let injector = node.start_injector()?;
        let folder = node.folder("injector")?;
        let args = [
            "--listen".to_owned(),
            format!("{}:8444", node.ip()),
            "--cert".to_owned(),
            text(&folder.join("tls.crt")),
            "--key".to_owned(),
            text(&folder.join("tls.key")),
        ];
        let mut floor = node.start(&plan.measure.join("measure-floor"), &args)?;
        floor.await_output("listening")?;
        Ok(Self { plan, node, folder, injector, floor })
    }

    /// Writes a review of that pod to a file.
    fn body(&self, name: &str, pod: &Value) -> Result<PathBuf> {
        let file = self.folder.join(format!("{}.json", name.replace([' ', '\''], "-")));
        write(&file, &review(pod, "default", "b6b7e1f0-0000-4000-8000-000000000000").to_string())?;
        Ok(file)
    }

    /// Measures injector and floor in turn.
    fn both(&self, body: &Path, shape: Shape) -> Result<(Vec<Load>, Vec<Load>)> {
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(self.ours(body, shape)?);
            floor.push(self.floor(body, shape)?);
        }
        Ok((ours, floor))
    }

    fn ours(&self, body: &Path, shape: Shape) -> Result<Load> {
        // The answer must contain a patch.
        self.load(self.injector.pid(), 8443, body, shape, "\"patchType\":\"JSONPatch\"")
    }

    fn floor(&self, body: &Path, shape: Shape) -> Result<Load> {
        self.load(self.floor.pid(), 8444, body, shape, "\"allowed\":true")
    }

    /// Length of the review in bytes, and its time in milliseconds.
    fn median(&self, body: &Path, shape: Shape) -> Result<(f64, f64)> {
        let loads = (0..ROUNDS).map(|_| self.ours(body, shape)).collect::<Result<Vec<Load>>>()?;
        let took = Figure::of(loads.iter().map(|load| load.p50_ns / 1e6).collect());
        Ok((loads[0].bytes, took.ok_or("no load")?.median))
    }

    fn load(&self, pid: i32, port: u16, body: &Path, shape: Shape, expect: &str) -> Result<Load> {
        let Shape { connections, millis, rate, reviews } = shape;
        let mut args = vec![
            format!("--address={}:{port}", self.node.ip()),
            format!("--ca={}", text(&self.folder.join("tls.crt"))),
            format!("--body={}", text(body)),
            format!("--expect={expect}"),
            format!("--connections={connections}"),
            format!("--millis={millis}"),
        ];
        args.extend(rate.map(|rate| format!("--rate={rate}")));
        args.extend(reviews.map(|reviews| format!("--reviews={reviews}")));
        let before = process::cpu(pid)?;
        let output = output_of(&text(&self.plan.measure.join("measure-load")), &args)?;
        let load: Load = serde_json::from_str(&output)?;
        Ok(Load { cpu: process::cpu(pid)?.saturating_sub(before), ..load })
    }

    /// Growth of the time with the pod's size, and with its upstreams.
    fn growth(&self, document: &Value, found: &mut Found) -> Result<()> {
        let shape = Shape { connections: 1, millis: 500, rate: None, reviews: None };
        let mut sizes = Vec::new();
        for bytes in [1, 2, 4, 8, 16].map(|times| times * (64 << 10)) {
            let body = self.body("growth", &padded(document, bytes))?;
            let (bytes, took) = self.median(&body, shape)?;
            sizes.push((bytes / 1024.0, took));
        }
        let with_size =
            Line { what: "a review".to_owned(), with: "KiB of it", unit: "ms", points: sizes };
        let mut counts = Vec::new();
        for count in [16_u16, 32, 64, 128, 256] {
            let body = self.body("growth", &with_upstreams(document, count))?;
            let (_, took) = self.median(&body, shape)?;
            counts.push((f64::from(count), took));
        }
        let with_upstreams =
            Line { what: "a review".to_owned(), with: "upstreams", unit: "ms", points: counts };
        for line in [with_size, with_upstreams] {
            let exponent = line.exponent().ok_or("no points")?;
            let what = format!("webhook: time grows with {} to the power of", line.with);
            // A line has exponent 1; more than 1.15 is not noise.
            found
                .rows
                .push(Row::new(what, "", Figure::exact(exponent)).budget(Budget::AtMost(1.15)));
            found.lines.push(line);
        }
        // Convert milliseconds per KiB to MB per second.
        if let Some(slope) =
            found.lines.iter().find(|line| line.with == "KiB of it").and_then(Line::slope)
        {
            let rate = 1024.0 / slope / 1000.0;
            found.rows.push(Row::new("webhook: a longer review", "MB/s", Figure::exact(rate)));
        }
        Ok(())
    }
}

/// The pod with enough environment variables to reach that length.
pub(crate) fn padded(pod: &Value, bytes: usize) -> Value {
    let mut pod = pod.clone();
    let length = pod.to_string().len();
    let mut variables = Vec::new();
    let mut more = 0;
    while length + more < bytes {
        let variable = json!({
            "name": format!("SETTING_{}", variables.len()),
            "value": "a value of a usual length, with some words in it",
        });
        more += variable.to_string().len() + 1;
        variables.push(variable);
    }
    if !variables.is_empty() {
        pod["spec"]["containers"][0]["env"] = Value::Array(variables);
    }
    pod
}

fn with_upstreams(pod: &Value, count: u16) -> Value {
    let mut pod = pod.clone();
    let list: Vec<String> =
        (0..count).map(|index| format!("service-{index}:{}", 10_000 + index)).collect();
    pod["metadata"]["annotations"]["consul.hashicorp.com/connect-service-upstreams"] =
        list.join(",").into();
    pod
}
