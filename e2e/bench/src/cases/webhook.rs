//! The injector under load, over TLS with kept-alive connections. The peer is the injector of
//! consul-k8s 0.25, the last release whose pods register with their node's agent. The floor is
//! our server, which does not parse the review.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::ready;
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

/// The injectors, the floor, and files with reviews.
struct Bench<'n> {
    plan: &'n Plan,
    node: &'n Node,
    folder: PathBuf,
    injector: Injector,
    /// `None` without consul-k8s.
    peer: Option<Process>,
    floor: Process,
}

/// A review, in the API versions of ours and of the peer.
struct Body {
    v1: PathBuf,
    v1beta1: PathBuf,
}

/// The same load on each of the three.
#[derive(Default)]
struct Loads {
    ours: Vec<Load>,
    peer: Vec<Load>,
    floor: Vec<Load>,
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

/// Part of an injector's answer with a patch.
const PATCHED: &str = "\"patch\":\"";

/// # Errors
/// A part does not do what it is for.
pub(super) fn run(plan: &Plan) -> Result<Found> {
    let node = Node::new(plan.parts.clone())?;
    let bench = Bench::start(plan, &node)?;
    let mut found = Found::default();
    found.rows.extend(ready::rows(plan, &node)?);
    let document = serde_saphyr::from_str::<Value>(ECHO_SERVER)?;

    let many = if plan.full { 1_000_000 } else { 20_000 };
    let body = bench.body("resident", &document)?;
    let whole = Shape { connections: 32, millis: 0, rate: None, reviews: Some(many) };
    bench.ours(&body, whole)?;
    let resident = Figure::exact(process::memory(bench.injector.pid(), "Rss")?);
    let some = Shape { reviews: Some(20_000), ..whole };
    bench.floor(&body, some)?;
    let floor = Figure::exact(process::memory(bench.floor.pid(), "Rss")?);
    let peer = match &bench.peer {
        Some(peer) => {
            bench.peer(peer, &body, some)?;
            Some(Figure::exact(process::memory(peer.pid(), "Rss")?))
        }
        None => None,
    };
    found.rows.push(
        Row::new(format!("webhook: resident after {many} reviews"), "MiB", resident)
            .peer(peer)
            .floor(floor)
            .budget(Budget::AtMost(20.0)),
    );

    for Pod { name, bytes, rate, slowest: budget, times_floor } in PODS {
        let body = bench.body(name, &padded(&document, bytes))?;
        for connections in [1, 8, 32] {
            let flat_out = Shape { connections, millis: 1000, rate: None, reviews: None };
            let loads = bench.all(&body, flat_out)?;
            let on = match connections {
                1 => format!("webhook: {name}, 1 connection"),
                _ => format!("webhook: {name}, {connections} connections"),
            };
            let row = |what: &str, unit, figure: &dyn Fn(&Load) -> f64| {
                loads.row(format!("{on}: {what}"), unit, figure)
            };
            found.rows.push(row("reviews", "/s", &|load| load.reviews / load.took_ns * 1e9)?);
            let median = row("median", "ms", &|load| load.p50_ns / 1e6)?;
            found.rows.push(median.budget(Budget::TimesLessThanPeer(1.0)));
            let cpu = row("processor of a review", "µs", &|load| {
                load.cpu.as_secs_f64() * 1e6 / load.reviews
            })?;
            found.rows.push(match times_floor {
                Some(times) => {
                    cpu.budget(Budget::TimesFloor(times)).budget(Budget::TimesLessThanPeer(10.0))
                }
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
            let what = format!("{on}: p99 at {rate} reviews/s");
            let loads = bench.all(&body, paced)?;
            found.rows.push(judged(loads.row(what, "ms", &|load| load.p99_ns / 1e6)?));
        }
    }
    let resident = Figure::exact(process::memory(bench.injector.pid(), "Rss")?);
    found.rows.push(Row::new("webhook: resident after all that", "MiB", resident));

    bench.growth(&document, &mut found)?;
    Ok(found)
}

// === impl Loads ===

impl Loads {
    fn row(&self, what: String, unit: &'static str, figure: &dyn Fn(&Load) -> f64) -> Result<Row> {
        let of = |loads: &[Load]| Figure::of(loads.iter().map(figure).collect());
        let ours = of(&self.ours).ok_or("no load")?;
        Ok(Row::new(what, unit, ours).peer(of(&self.peer)).floor(of(&self.floor)))
    }
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
        let peer = plan.consul_k8s.as_ref().map(|it| start_peer(it, node, &folder)).transpose()?;
        Ok(Self { plan, node, folder, injector, peer, floor })
    }

    /// Writes a review of that pod to files.
    fn body(&self, name: &str, pod: &Value) -> Result<Body> {
        let name = name.replace([' ', '\''], "-");
        let [v1, v1beta1] = ["v1", "v1beta1"]
            .map(|version| (version, self.folder.join(format!("{name}-{version}.json"))));
        let mut review = review(pod, "default", "b6b7e1f0-0000-4000-8000-000000000000");
        for (version, file) in [&v1, &v1beta1] {
            review["apiVersion"] = format!("admission.k8s.io/{version}").into();
            write(file, &review.to_string())?;
        }
        Ok(Body { v1: v1.1, v1beta1: v1beta1.1 })
    }

    /// Measures the three in turn.
    fn all(&self, body: &Body, shape: Shape) -> Result<Loads> {
        let mut loads = Loads::default();
        for _ in 0..ROUNDS {
            loads.ours.push(self.ours(body, shape)?);
            if let Some(peer) = &self.peer {
                loads.peer.push(self.peer(peer, body, shape)?);
            }
            loads.floor.push(self.floor(body, shape)?);
        }
        Ok(loads)
    }

    // An injector's answer must contain a patch.

    fn ours(&self, body: &Body, shape: Shape) -> Result<Load> {
        self.load(self.injector.pid(), 8443, &body.v1, shape, PATCHED)
    }

    fn peer(&self, peer: &Process, body: &Body, shape: Shape) -> Result<Load> {
        self.load(peer.pid(), 8445, &body.v1beta1, shape, PATCHED)
    }

    fn floor(&self, body: &Body, shape: Shape) -> Result<Load> {
        self.load(self.floor.pid(), 8444, &body.v1, shape, "\"allowed\":true")
    }

    /// Length of the review in bytes, and its time in milliseconds.
    fn median(&self, body: &Body, shape: Shape) -> Result<(f64, f64)> {
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

/// Starts the injector of consul-k8s. It refuses to run without the files and variables of a
/// pod, so it gets them in a mount namespace of its own. Its controllers, which need an API
/// server, are off.
fn start_peer(consul_k8s: &Path, node: &Node, folder: &Path) -> Result<Process> {
    const AS_IN_A_POD: &str = "mount -t tmpfs tmpfs /var/run
        mkdir -p /var/run/secrets/kubernetes.io/serviceaccount
        touch /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
        echo none > /var/run/secrets/kubernetes.io/serviceaccount/token
        export KUBERNETES_SERVICE_HOST=127.0.0.1 KUBERNETES_SERVICE_PORT=443
        exec \"$@\"";
    let (cert, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    let mut args: Vec<String> =
        ["--mount", "sh", "-ec", AS_IN_A_POD, "sh"].map(str::to_owned).into();
    args.push(text(consul_k8s));
    args.push("inject-connect".to_owned());
    args.push(format!("-listen={}:8445", node.ip()));
    args.push(format!("-tls-cert-file={}", text(&cert)));
    args.push(format!("-tls-key-file={}", text(&key)));
    args.extend(
        [
            "-consul-image=consul:1.9",
            "-consul-k8s-image=consul-k8s:0.25",
            "-envoy-image=envoy:1.16",
            "-allow-k8s-namespace=*",
            "-enable-health-checks-controller=false",
            "-enable-cleanup-controller=false",
        ]
        .map(str::to_owned),
    );
    let mut peer = node.start(Path::new("unshare"), &args)?;
    peer.await_output("Updating certs")?;
    Ok(peer)
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
