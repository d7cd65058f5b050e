//! Pods on a real Kubernetes: from their creation until they are ready, and until a
//! client reaches them through the mesh; and rollouts of a single replica. The floor is
//! pods with the same containers, none of which does anything.
//! Needs a cluster: `scripts/bench pods` starts one.
//!
//! Times are those of this machine's clock: of the API server's answers and watch
//! events, of the answers that a client in another pod gets, and of the lines that the
//! containers log. So a cluster on other machines needs the same clock.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cluster::client::{Cluster, Namespace, text};
use harness::{Result, until, until_within};
use serde_json::{Value, json};

use super::scale::time_of;
use crate::figure::{Budget, Figure, Row};
use crate::timeline::{Timeline, Whose};
use crate::{Found, Plan};

/// Timeout for twenty pods on two cores.
const PATIENCE: Duration = Duration::from_secs(180);

/// How many pods start at the same time.
const MANY: usize = 20;

const SERVICE: &str = "bench";
const CLIENT: &str = "bench-client";

/// Port of the service on the client's loopback.
const UPSTREAM: u16 = 1234;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Not injected.
    Plain,
    Container,
    Native,
    /// Not injected, with containers like those of an injected pod, which do nothing: what
    /// Kubernetes takes for such a pod.
    IdleContainer,
    IdleNative,
}

/// Pods that started at the same time, in milliseconds since the first was sent.
#[derive(Debug)]
struct Lives {
    /// The API server accepted the first.
    accepted: f64,
    /// Events of each pod.
    pods: Vec<Marks>,
}

/// Events of a pod: name and time.
type Marks = BTreeMap<&'static str, f64>;

/// A client in a pod, which sends requests to the service repeatedly.
struct Client {
    child: Child,
    heard: Arc<Mutex<Heard>>,
}

#[derive(Debug, Default)]
struct Heard {
    /// When each answer first arrived.
    first: BTreeMap<String, SystemTime>,
    answers: u32,
    failures: u32,
}

/// The pods of the benchmark.
struct Bench<'c> {
    cluster: &'c Cluster,
    namespace: Namespace<'c>,
    client: Client,
    count: u32,
}

/// # Errors
/// There is no cluster, or its pods do not become ready.
pub(super) fn run(plan: &Plan) -> Result<Found> {
    let cluster = Cluster::find()?;
    let mut bench = Bench::new(&cluster)?;
    let mut found = Found::default();
    let (single, many) = if plan.full { (plan.runs, 5) } else { (plan.runs.min(7), 2) };
    for (pods, runs) in [(1, single), (MANY, many)] {
        let mut lives: [Vec<Lives>; 3] = Default::default();
        for _ in 0..runs {
            for (mode, lives) in Mode::ALL.into_iter().zip(&mut lives) {
                lives.push(bench.begin(mode, pods)?);
            }
        }
        let mut idle: [Vec<Lives>; 2] = Default::default();
        for _ in 0..runs {
            for (mode, lives) in Mode::IDLE.into_iter().zip(&mut idle) {
                lives.push(bench.begin(mode, pods)?);
            }
        }
        found.rows.extend(rows(pods, &lives, &idle));
        if pods == 1 {
            let [_, container, native] = &lives;
            for (mode, lives) in [(Mode::Native, native), (Mode::Container, container)] {
                found.timelines.extend(middle(lives).map(|one| one.timeline(mode)));
            }
        }
    }
    found.rows.extend(bench.roll(if plan.full { 10 } else { 3 })?);
    Ok(found)
}

fn rows(pods: usize, lives: &[Vec<Lives>; 3], idle: &[Vec<Lives>; 2]) -> Vec<Row> {
    let figure = |lives: &[Lives], of: &dyn Fn(&Lives) -> Option<f64>| {
        Figure::of(lives.iter().filter_map(of).collect())
    };
    let [plain, ..] = lives;
    let ready = |lives: &[Lives]| figure(lives, &|life| life.last(READY));
    let plain = ready(plain);
    let floors = [plain, ready(&idle[0]), ready(&idle[1])];
    let mut rows = Vec::new();
    for ((mode, lives), floor) in Mode::ALL.into_iter().zip(lives).zip(floors) {
        let name = format!("{pods} {}{}", mode.name(), if pods == 1 { " pod" } else { " pods" });
        let mut add = |what: &str, figure: Option<Figure>, floor, budget: Option<Budget>| {
            let row = figure.map(|ours| Row::new(format!("{name}: {what}"), "ms", ours));
            rows.extend(row.map(|row| Row { floor, budgets: budget.into_iter().collect(), ..row }));
        };
        let own = ready(lives);
        add("created to Ready", own, floor, None);
        if pods == 1 && mode.is_injected() {
            let later = own.zip(plain).map(|(own, plain)| own.median - plain.median);
            let most = Budget::AtMost(1000.0);
            add("Ready later than a plain pod", later.map(Figure::exact), None, Some(most));
        }
        let reached = figure(lives, &|life| life.last(REACHED));
        add("created to reached through the mesh", reached, None, None);
        let each = |of: &dyn Fn(&Marks) -> Option<f64>| {
            Figure::of(lives.iter().flat_map(|life| &life.pods).filter_map(of).collect())
        };
        let since_envoy = each(&|pod| Some(pod.get(REACHED)? - pod.get(ENVOY_READY)?));
        add("Envoy ready to reached", since_envoy, None, None);
        // The kubelet starts the application only then.
        let since_both =
            each(&|pod| Some(pod.get(REACHED)? - pod.get(ENVOY_READY)?.max(*pod.get(SERVING)?)));
        let most = Some(Budget::AtMost(500.0));
        add("Envoy and the application ready to reached", since_both, None, most);
    }
    rows
}

/// The run with the median time.
fn middle(lives: &[Lives]) -> Option<&Lives> {
    let mut sorted: Vec<&Lives> = lives.iter().collect();
    let ready = |life: &Lives| life.last(READY).unwrap_or_default();
    sorted.sort_by(|one, other| ready(one).total_cmp(&ready(other)));
    sorted.get(sorted.len() / 2).copied()
}

// === impl Mode ===

impl Mode {
    const ALL: [Self; 3] = [Self::Plain, Self::Container, Self::Native];
    const IDLE: [Self; 2] = [Self::IdleContainer, Self::IdleNative];

    fn is_injected(self) -> bool {
        matches!(self, Self::Container | Self::Native)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Container => "container-mode",
            Self::Native => "native",
            Self::IdleContainer => "idle container-mode",
            Self::IdleNative => "idle native",
        }
    }

    /// A pod that answers with its own name.
    fn pod(self, name: &str) -> Value {
        // The shell is process 1, which ignores signals without a trap.
        let line = "echo \"$0\" > /tmp/index.html; trap 'exit 0' TERM; \
                    echo serving; httpd -f -p 8080 -h /tmp & wait";
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": SERVICE}},
            "spec": {
                "containers": [{
                    "name": SERVICE,
                    "image": "busybox",
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", line, name],
                    "ports": [{"containerPort": 8080}],
                }],
            },
        });
        let mode = match self {
            Self::Plain => return pod,
            Self::Container => "container",
            Self::Native => "native",
            Self::IdleContainer | Self::IdleNative => {
                with_idle_containers(&mut pod, self == Self::IdleNative);
                return pod;
            }
        };
        pod["metadata"]["annotations"] = json!({
            "consul.hashicorp.com/connect-inject": "true",
            "consul.hashicorp.com/sidecar-mode": mode,
        });
        pod
    }
}

/// Adds containers as an injected pod has them, hook and probe included, which do nothing.
fn with_idle_containers(pod: &mut Value, native: bool) {
    let nothing = json!({"exec": {"command": ["true"]}});
    let container = |name: &str, command: Value| {
        json!({
            "name": name,
            "image": "busybox",
            "imagePullPolicy": "IfNotPresent",
            "command": command,
        })
    };
    let mut init = vec![container("init", json!(["true"]))];
    let line = "trap 'exit 0' TERM; sleep 1000000 & wait";
    let mut sidecar = container("sidecar", json!(["sh", "-c", line]));
    sidecar["lifecycle"] = json!({"postStart": nothing});
    sidecar["readinessProbe"] = json!({"exec": nothing["exec"], "periodSeconds": 10});
    if native {
        sidecar["restartPolicy"] = "Always".into();
        init.push(sidecar);
    } else if let Some(containers) = pod["spec"]["containers"].as_array_mut() {
        containers.insert(0, sidecar);
    }
    pod["spec"]["initContainers"] = Value::Array(init);
}

// === impl Bench ===

impl<'c> Bench<'c> {
    fn new(cluster: &'c Cluster) -> Result<Self> {
        let namespace = cluster.namespace("bench")?;
        let client = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": CLIENT,
                "annotations": {
                    "consul.hashicorp.com/connect-inject": "true",
                    "consul.hashicorp.com/connect-service-upstreams":
                        format!("{SERVICE}:{UPSTREAM}"),
                },
            },
            "spec": {
                "containers": [{
                    "name": CLIENT,
                    "image": "curlimages/curl",
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "1000000"],
                }],
            },
        });
        namespace.apply(&client.to_string())?;
        namespace.await_condition(&format!("pod/{CLIENT}"), "Ready")?;
        let client = Client::start(&namespace)?;
        let mut bench = Self { cluster, namespace, client, count: 0 };
        // From now on, the images are pulled.
        for mode in Mode::ALL.into_iter().chain(Mode::IDLE) {
            bench.begin(mode, 1)?;
        }
        Ok(bench)
    }

    /// Starts that many pods at the same time, and stops them when the client had an answer
    /// from all.
    fn begin(&mut self, mode: Mode, pods: usize) -> Result<Lives> {
        let names: Vec<String> = (0..pods)
            .map(|_| {
                self.count += 1;
                format!("{SERVICE}-{}", self.count)
            })
            .collect();
        let path = format!("/api/v1/namespaces/{}/pods", self.namespace.name);
        let (cluster, watched) = (self.cluster, Mutex::new(Watched::default()));
        let selected = format!("{path}?labelSelector=app%3D{SERVICE}");
        let began = std::thread::scope(|scope| -> Result<SystemTime> {
            let (opened, open) = mpsc::channel();
            let watching = scope.spawn(|| {
                let opened = move || {
                    // The receiver waits below for as long as this thread lives.
                    let _ = opened.send(());
                };
                cluster.watch(&selected, PATIENCE, opened, |event, at| {
                    let mut watched = lock(&watched);
                    watched.see(&event["object"], at);
                    names.iter().all(|name| watched.at(name, READY).is_some())
                })
            });
            open.recv().map_err(|_| "the watch did not begin")?;
            let began = SystemTime::now();
            for name in &names {
                cluster.request(reqwest::Method::POST, &path, Some(&mode.pod(name)))?;
                lock(&watched).accepted.get_or_insert_with(SystemTime::now);
            }
            watching.join().map_err(|_| "the watch panicked")??;
            Ok(began)
        })?;
        if mode.is_injected() {
            self.client.await_all(&names)?;
        }
        let watched = watched.into_inner().unwrap_or_else(PoisonError::into_inner);
        let since = |at: SystemTime| milliseconds(at.duration_since(began).unwrap_or_default());
        let mut pods = Vec::new();
        for name in &names {
            let mut of_pod: Marks = watched.of(name).map(|(mark, at)| (mark, since(at))).collect();
            if mode.is_injected() {
                of_pod.extend(self.lines(name, time_of_day(began))?);
                let reached = lock(&self.client.heard).first.get(name).copied();
                of_pod.extend(reached.map(|at| (REACHED, since(at))));
            }
            pods.push(of_pod);
        }
        let accepted = since(watched.accepted.unwrap_or(began));
        for name in &names {
            self.namespace.kubectl(&["delete", "pod", name, "--wait=false"])?;
        }
        self.await_nothing()?;
        Ok(Lives { accepted, pods })
    }

    /// Waits until all pods of the service are gone, from Consul, too.
    fn await_nothing(&self) -> Result<()> {
        until_within(PATIENCE, "the end of all pods", || {
            self.namespace.pods(&format!("app={SERVICE}")).is_ok_and(|pods| pods.is_empty())
                && self.cluster.is_unknown(SERVICE).unwrap_or_default()
        })
    }

    /// Times of the lines in a pod's container logs.
    fn lines(&self, pod: &str, zero: f64) -> Result<Marks> {
        let mut marks = Marks::new();
        let path = format!("/api/v1/namespaces/{}/pods/{pod}/log", self.namespace.name);
        for (container, wanted) in LINES {
            let log = self.cluster.get(&format!("{path}?container={container}&timestamps=true"))?;
            let log = text(&log);
            let lines = log.lines().filter_map(|line| Some((time_of(line)?, line)));
            let lines: Vec<_> =
                lines.map(|(at, line)| ((at - zero).rem_euclid(DAY), line)).collect();
            for (mark, words) in *wanted {
                let mut meant = lines.iter().filter(|(_, line)| line.contains(words));
                // Without a text, it is the last line.
                let at = if words.is_empty() { lines.last() } else { meant.next() };
                marks.extend(at.map(|(at, _)| (*mark, *at)));
            }
        }
        Ok(marks)
    }

    /// Rolls out a single replica, under load if it is in the mesh.
    fn roll(&mut self, times: u32) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        let mut floor = None;
        for mode in Mode::ALL {
            let pod = mode.pod(SERVICE);
            let deployment = json!({
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": SERVICE},
                "spec": {
                    "replicas": 1,
                    "selector": {"matchLabels": {"app": SERVICE}},
                    "template": {
                        "metadata": {
                            "labels": {"app": SERVICE},
                            "annotations": pod["metadata"]["annotations"],
                        },
                        "spec": pod["spec"],
                    },
                },
            });
            let rollout = format!("deployment/{SERVICE}");
            self.namespace.apply(&deployment.to_string())?;
            self.namespace.await_rollout(&rollout)?;
            if mode.is_injected() {
                self.cluster.await_instances(SERVICE, 1)?;
                self.client.await_all(&[SERVICE.to_owned()])?;
            }
            let before = self.client.tally();
            let mut took = Vec::new();
            for _ in 0..times {
                let began = SystemTime::now();
                self.namespace.kubectl(&["rollout", "restart", &rollout])?;
                self.namespace.await_rollout(&rollout)?;
                took.push(milliseconds(began.elapsed().unwrap_or_default()));
                if mode.is_injected() {
                    self.cluster.await_instances(SERVICE, 1)?;
                }
            }
            let after = self.client.tally();
            let name = format!("a rollout of one {} replica", mode.name());
            let took = Figure::of(took).ok_or("nothing was rolled out")?;
            rows.push(Row::new(name.clone(), "ms", took).floor(floor));
            if mode == Mode::Plain {
                floor = Some(took);
            } else {
                let [asked, lost] = [after.0 - before.0, after.1 - before.1];
                let what = format!("{name}, {times} times: requests lost of {}", asked + lost);
                let lost = Figure::exact(f64::from(lost));
                rows.push(Row::new(what, "", lost).budget(Budget::AtMost(0.0)));
            }
            self.namespace.kubectl(&["delete", &rollout])?;
            self.await_nothing()?;
            lock(&self.client.heard).first.remove(SERVICE);
        }
        Ok(rows)
    }
}

// === impl Client ===

impl Client {
    fn start(namespace: &Namespace<'_>) -> Result<Self> {
        // A single process, because starting one costs more than a request. Each request has
        // its own connection, because the client's Envoy chooses an instance for each. The
        // status goes to stderr, which is not buffered.
        let line = format!(
            "exec curl --silent --fail --no-buffer --max-time 2 --rate 100/s \
             --header 'Connection: close' --write-out '%{{stderr}}%{{http_code}}\\n' 'http://127.0.0.1:{UPSTREAM}/?[1-1000000000]' 2>&1"
        );
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "kubectl", "--namespace", &namespace.name])
            .args(["exec", CLIENT, "--container", CLIENT, "--", "sh", "-c", &line])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = child.stdout.take().ok_or("kubectl has no output")?;
        let heard = Arc::new(Mutex::new(Heard::default()));
        let hearing = Arc::clone(&heard);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(std::result::Result::ok) {
                let (at, mut heard) = (SystemTime::now(), lock(&hearing));
                match line.trim() {
                    "200" => heard.answers += 1,
                    status if status.parse::<u16>().is_ok() => heard.failures += 1,
                    name => {
                        heard.first.entry(name.to_owned()).or_insert(at);
                    }
                }
            }
        });
        let client = Self { child, heard };
        until("the client to ask", || client.tally() != (0, 0))?;
        Ok(client)
    }

    /// Waits until it has had an answer from each of these pods.
    fn await_all(&self, names: &[String]) -> Result<()> {
        until_within(PATIENCE, "an answer of each pod", || {
            let heard = lock(&self.heard);
            names.iter().all(|name| heard.first.contains_key(name))
        })
    }

    /// How many requests were answered, and how many failed.
    fn tally(&self) -> (u32, u32) {
        let heard = lock(&self.heard);
        (heard.answers, heard.failures)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It may have exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Lives ===

impl Lives {
    /// When the last pod had that event; `None` if one did not.
    fn last(&self, mark: &str) -> Option<f64> {
        let times: Option<Vec<f64>> = self.pods.iter().map(|pod| pod.get(mark).copied()).collect();
        times?.into_iter().reduce(f64::max)
    }

    /// The phases of the first pod, with who is responsible for each.
    fn timeline(&self, mode: Mode) -> Timeline {
        let mut timeline = Timeline::new(format!("One pod, {}", mode.name()));
        timeline.span(Whose::Ours, "admission, the webhook included", 0.0, self.accepted);
        for (whose, what, begin, end) in SPANS {
            let mark = |mark: &str| self.pods.first()?.get(mark).copied();
            if let (Some(begin), Some(end)) = (mark(begin), mark(end)) {
                timeline.span(*whose, what, begin, end);
            }
        }
        timeline
    }
}

/// Phases: who is responsible, name, and the events at which they begin and end.
const SPANS: &[(Whose, &str, &str, &str)] = &[
    (Whose::Kubernetes, "scheduler", CREATED, SCHEDULED),
    (Whose::Kubernetes, "kubelet: volumes, network, starts connect-init", SCHEDULED, INIT_LOGS),
    (Whose::Ours, "connect-init: registers, writes the bootstrap", INIT_LOGS, INIT_DONE),
    (Whose::Kubernetes, "kubelet: starts the sidecar", INIT_DONE, ENVOY_STARTED),
    (Whose::Envoy, "Envoy: starts, gets its configuration", ENVOY_STARTED, ENVOY_READY),
    (Whose::Ours, "connect-lifecycle: tells the agent that it listens", ENVOY_READY, LISTENER_TOLD),
    (Whose::Kubernetes, "kubelet: starts the application", ENVOY_READY, SERVING),
    (Whose::Ours, "connect-lifecycle: tells that the application is up", SERVING, APPLICATION_TOLD),
    (Whose::Mesh, "Consul and the client's Envoy, until an answer", APPLICATION_TOLD, REACHED),
    (Whose::Kubernetes, "readiness probe, status, until the pod is Ready", SERVING, READY),
];

const CREATED: &str = "created";
const SCHEDULED: &str = "scheduled";
const READY: &str = "ready";
const REACHED: &str = "reached";
const INIT_LOGS: &str = "init logs";
const INIT_DONE: &str = "init done";
const ENVOY_STARTED: &str = "Envoy started";
const ENVOY_READY: &str = "Envoy ready";
const LISTENER_TOLD: &str = "listener told";
const SERVING: &str = "serving";
const APPLICATION_TOLD: &str = "application told";

/// Events, and the text in a container's log that marks each.
const LINES: &[(&str, &[(&str, &str)])] = &[
    ("consul-connect-inject-init", &[(INIT_LOGS, " "), (INIT_DONE, "")]),
    (
        "envoy-sidecar",
        &[
            (ENVOY_STARTED, "started envoy"),
            (ENVOY_READY, "starting workers"),
            (LISTENER_TOLD, "told the agent that Envoy listens"),
            (APPLICATION_TOLD, "the application listens on port"),
        ],
    ),
    (SERVICE, &[(SERVING, "serving")]),
];

const DAY: f64 = 86_400_000.0;

// === impl Watched ===

/// When each event of each pod was seen.
#[derive(Debug, Default)]
struct Watched {
    accepted: Option<SystemTime>,
    seen: BTreeMap<(String, &'static str), SystemTime>,
}

impl Watched {
    fn see(&mut self, pod: &Value, at: SystemTime) {
        let name = text(&pod["metadata"]["name"]);
        let conditions = pod["status"]["conditions"].as_array();
        let is_ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
        for (mark, is_so) in [
            (CREATED, true),
            (SCHEDULED, pod["spec"]["nodeName"].is_string()),
            (READY, conditions.into_iter().flatten().any(is_ready)),
        ] {
            if is_so {
                self.seen.entry((name.to_owned(), mark)).or_insert(at);
            }
        }
    }

    fn at(&self, pod: &str, mark: &'static str) -> Option<SystemTime> {
        self.seen.get(&(pod.to_owned(), mark)).copied()
    }

    fn of<'a>(&'a self, pod: &'a str) -> impl Iterator<Item = (&'static str, SystemTime)> + 'a {
        self.seen.iter().filter(move |((name, _), _)| name == pod).map(|((_, m), at)| (*m, *at))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Time of day of a log line, in milliseconds and UTC.
fn time_of_day(at: SystemTime) -> f64 {
    milliseconds(at.duration_since(UNIX_EPOCH).unwrap_or_default()).rem_euclid(DAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_way_is_told_by_its_events() {
        let mut watched = Watched::default();
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let pod = |node: Value, ready: &str| {
            json!({
                "metadata": {"name": "a"},
                "spec": {"nodeName": node},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            })
        };
        watched.see(&pod(Value::Null, "False"), at(1));
        watched.see(&pod(json!("n"), "False"), at(2));
        watched.see(&pod(json!("n"), "True"), at(3));
        watched.see(&pod(json!("n"), "True"), at(4));
        let seen = [CREATED, SCHEDULED, READY].map(|mark| watched.at("a", mark));
        assert_eq!(seen, [1, 2, 3].map(|seconds| Some(at(seconds))));
        assert_eq!(watched.at("b", READY), None);
    }

    #[test]
    fn a_log_and_this_clock_tell_the_same_time() {
        let at = UNIX_EPOCH + Duration::from_millis(86_400_000 + 3_723_004);
        let line = time_of("1970-01-02T01:02:03.004005006Z started envoy").unwrap();
        assert!((time_of_day(at) - line).abs() < 1.0);
    }
}
