//! Many pods start and end with a real agent and Envoys, while random faults happen. After
//! each round catalog, Envoys and pods agree, deny intentions are enforced, and nothing is
//! left of pods that have ended.
//!
//! `SOAK_SEED` repeats a run's choices, though not their timing. `SOAK_SECONDS` is how long
//! pods start and end, one minute by default, and `SOAK_LIVES` the minimum number of pods.
//! Then the test waits until killed pods are gone, which takes two to three minutes more,
//! mostly idle.
//!
//! - [`pod`]: a pod made of processes
//! - [`slot`]: runs one pod at a time, and picks a fault for each round

#![expect(clippy::unwrap_used, reason = "fixtures are tests, too: the panic is the report")]
#![expect(clippy::print_stdout, reason = "the seed and the number of lives are a result")]

mod pod;
mod slot;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use fastrand::Rng;
use harness::kubelet::{XDS_STATS, is_connected};
use harness::node::Node;
use harness::node::acl::Acls;
use harness::parts::Parts;
use harness::process::{Process, run, tail};
use harness::{Result, until_within};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use pod::{Dead, Ground, Identity, Pod};
use slot::{Round, Slot};

/// Number of pods at a time.
const SLOTS: u32 = 5;

/// Timeout of each round: more than agent and pods need on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

const LEASE: Duration = Duration::from_secs(30);

/// Time until a killed pod is gone: the TTL, the shortest time until the agent removes a
/// critical entry, and the agent's interval of checking for these.
const GONE: Duration = Duration::from_secs(30 + 60 + 30);

/// Port of the other pods' service on the client's loopback.
const UPSTREAM: u16 = 9000;

/// How often to repeat a request that must be denied.
const TRIES: u32 = 3;

/// The agent, and the expected state of the pods.
struct Soak<'n> {
    node: &'n Node,
    acls: Option<&'n Acls<'n>>,
    ground: Ground,
    /// A pod that sends requests to the others.
    client: Pod,
    is_denied: bool,
    rng: Rng,
    agent: Option<Process>,
    living: BTreeMap<u32, (Identity, String)>,
    dead: Vec<Remains>,
    lives: u32,
    /// How often each thing happened.
    happened: BTreeMap<&'static str, u32>,
    /// The pods that may have left an ACL token.
    excused: BTreeSet<String>,
}

/// A dead pod, and whether its entries are known to be gone.
struct Remains {
    dead: Dead,
    is_gone: bool,
}

/// Result of a request of the client.
type Answer = Result<String>;

/// This node's entries in the catalog.
struct Catalog {
    /// Addresses by service.
    services: BTreeMap<String, String>,
    /// Passing checks.
    passing: BTreeSet<String>,
}

#[test]
fn catalog_and_pods_agree_whatever_happens() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let agent = node.start_agent().unwrap();
    soak(&node, None, agent);
}

#[test]
fn with_acls_only_killed_pods_leave_a_token() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let (acls, agent) = Acls::start(&node).unwrap();
    // Tokens expire in longer runs. Consul allows a minute, but then the token of a killed
    // pod may expire before its TTL check, and the agent can't update the catalog.
    acls.have_method_with(&json!({"MaxTokenTTL": "3m"})).unwrap();
    acls.bind("${value.account}").unwrap();
    soak(&node, Some(&acls), agent);
}

fn soak(node: &Node, acls: Option<&Acls<'_>>, agent: Process) {
    let number = |name: &str| -> Option<u64> {
        Some(std::env::var_os(name)?.to_string_lossy().parse().unwrap())
    };
    let seed = number("SOAK_SEED").unwrap_or_else(|| fastrand::u64(..));
    let length = Duration::from_secs(number("SOAK_SECONDS").unwrap_or(60));
    let lives = number("SOAK_LIVES").unwrap_or(0);
    println!("SOAK_SEED={seed} SOAK_SECONDS={} SOAK_LIVES={lives}", length.as_secs());
    run("ip", &["route", "add", "local", "10.98.0.0/16", "dev", "lo"]).unwrap();
    let application = ["-text=web", "-listen=127.0.0.1:8080"].map(str::to_owned);
    let _application = node.start(&node.parts().harness("http-echo"), &application).unwrap();
    let folder = node.folder("soak").unwrap();
    let of = |service: &'static str, flags: &[&str]| Ground {
        bins: node.parts().bins.clone(),
        envoy: node.parts().envoy.clone(),
        service,
        flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
        folder: folder.clone(),
        agent: node.ip().to_owned(),
        bearer_token: acls.map(|acls| {
            let file = node.folder("bearers").unwrap().join(service);
            let token = acls.bearer_token(service, 24 * 3600).unwrap();
            harness::process::write(&file, &token).unwrap();
            file
        }),
    };
    let ground = of("web", &[]);
    let mut rng = Rng::with_seed(seed);
    let client = Identity {
        name: "client".to_owned(),
        ip: "10.98.255.1".to_owned(),
        uid: "client".to_owned(),
    };
    let upstream = format!("--upstream=web:{UPSTREAM}");
    let client = Pod::start(&of("client", &[&upstream]), client, &mut rng);
    let mut soak = Soak {
        node,
        acls,
        ground: ground.clone(),
        client,
        is_denied: false,
        rng,
        agent: Some(agent),
        living: BTreeMap::new(),
        dead: Vec::new(),
        lives: 0,
        happened: BTreeMap::new(),
        excused: BTreeSet::new(),
    };
    soak.intend();
    let began = Instant::now();
    // A process ends with the thread that started it, so each slot's thread lives to the end.
    std::thread::scope(|scope| {
        let slots: Vec<(Sender<bool>, Receiver<Round>)> = (0..SLOTS)
            .map(|number| {
                let mut slot = Slot::new(number, ground.clone(), seed);
                let ((ask, asked), (answer, answered)) = (channel(), channel());
                scope.spawn(move || {
                    for is_last in asked {
                        let round = if is_last { slot.end() } else { slot.round() };
                        let _ = answer.send(round);
                    }
                });
                (ask, answered)
            })
            .collect();
        while began.elapsed() < length || u64::from(soak.lives) < lives {
            soak.round(&slots, false);
        }
        soak.round(&slots, true);
    });
    soak.await_agreement(true);
    println!("{} lives in {:?}: {:?}", soak.lives, began.elapsed(), soak.happened);
    soak.end();
}

// === impl Soak ===

impl Soak<'_> {
    /// Injects a fault into each slot and into the agent at the same time, and waits until
    /// catalog and pods agree.
    fn round(&mut self, slots: &[(Sender<bool>, Receiver<Round>)], is_last: bool) {
        for (ask, _) in slots {
            ask.send(is_last).unwrap();
        }
        if !is_last {
            self.trouble();
        }
        for (number, (_, answered)) in (0..).zip(slots) {
            let Round { what, dead, living } =
                answered.recv().expect("the slot says itself what went wrong");
            *self.happened.entry(what).or_default() += 1;
            if let Some(dead) = dead {
                if dead.may_leave_token {
                    self.excused.insert(dead.who.uid.clone());
                }
                self.dead.push(Remains { dead, is_gone: false });
            }
            let before = self.living.remove(&number);
            if let Some((who, log)) = living {
                if before.is_none_or(|(before, _)| before.uid != who.uid) {
                    self.lives += 1;
                }
                // A living pod's entries are not leftovers of a dead pod with its name.
                self.dead.retain(|remains| remains.dead.who.name != who.name);
                self.living.insert(number, (who, log));
            }
        }
        self.await_agreement(false);
        if let Some(acls) = self.acls
            && !is_last
            && self.rng.u8(0..5) == 0
            && self.dead.iter().all(|remains| remains.is_gone)
        {
            self.revoke(acls);
        }
    }

    /// Deletes all tokens, and waits until the pods have registered with new ones. If a pod
    /// ended before, the agent could not update the catalog, because it uses the token of the
    /// registration.
    fn revoke(&mut self, acls: &Acls<'_>) {
        let logins = |log: &str| log.matches("logged in again").count();
        let log = |who: &Identity| self.ground.log_of_run(who);
        let living = self.living.values().map(|(who, _)| who);
        let before: Vec<_> = living.map(|who| (who, logins(&log(who)))).collect();
        acls.revoke().unwrap();
        for (who, before) in before {
            let waited = until_within(PATIENCE, "a registration with another token", || {
                let log = log(who);
                logins(&log) > before
                    && log.rfind("logged in again") < log.rfind("registered again")
            });
            waited.unwrap_or_else(|error| panic!("{error}: {}", log(who)));
        }
        *self.happened.entry("all tokens are deleted").or_default() += 1;
        self.await_agreement(false);
    }

    /// Injects a fault into the agent or its data.
    fn trouble(&mut self) {
        let what = match self.rng.u8(0..14) {
            10 => {
                let milliseconds = self.rng.u32(1000..9000);
                let config = json!({"local_connect_timeout_ms": milliseconds});
                self.configure(&json!({
                    "Kind": "proxy-defaults", "Name": "global", "Config": config,
                }));
                "central configuration is written"
            }
            11..=13 => {
                pod::pause(&mut self.rng, 500);
                self.is_denied = !self.is_denied;
                self.intend();
                if self.is_denied { "a deny is written" } else { "an allow is written" }
            }
            2 | 3 => {
                let agent = self.agent.as_ref().unwrap();
                agent.signal(Signal::SIGSTOP).unwrap();
                pod::pause(&mut self.rng, 3000);
                agent.signal(Signal::SIGCONT).unwrap();
                "agent hangs"
            }
            0 => {
                pod::pause(&mut self.rng, 200);
                self.agent = None;
                self.start_wiped_agent();
                "agent loses everything"
            }
            1 => {
                self.agent = None;
                pod::pause(&mut self.rng, 4000);
                self.start_wiped_agent();
                "agent is away and loses everything"
            }
            4 | 5 => {
                pod::pause(&mut self.rng, 100);
                let living: Vec<_> = self.living.values().map(|(who, _)| who.clone()).collect();
                if let Some(who) = self.rng.choice(living) {
                    let id = self.rng.choice(halves(&who.name)).unwrap();
                    let path = format!("/v1/agent/service/deregister/{id}");
                    // The pod may be gone.
                    let _ = self.tell(&path, None);
                }
                "others delete an entry"
            }
            _ => "no trouble",
        };
        *self.happened.entry(what).or_default() += 1;
    }

    /// Writes an intention from the client to the others.
    fn intend(&self) {
        let action = if self.is_denied { "deny" } else { "allow" };
        self.configure(&json!({
            "Kind": "service-intentions", "Name": "web",
            "Sources": [{"Name": "client", "Action": action}],
        }));
    }

    /// Writes a config entry; retries, because the agent may hang or be starting.
    fn configure(&self, entry: &Value) {
        let written = until_within(PATIENCE, "an entry to be written", || {
            self.tell("/v1/config", Some(entry)).is_ok()
        });
        written.unwrap();
    }

    fn start_wiped_agent(&mut self) {
        self.node.wipe_agent().unwrap();
        let agent = match self.acls {
            Some(acls) => acls.start_agent(),
            None => self.node.start_agent(),
        };
        self.agent = Some(agent.unwrap());
    }

    /// Waits until service and proxy of each living pod pass their TTL checks, and entries of
    /// dead pods are gone, or not older than their TTL allows. With `for_good`, only entries
    /// may be left that Consul can't deregister any more.
    fn await_agreement(&mut self, for_good: bool) {
        let mut wrong = Vec::new();
        let waited = until_within(PATIENCE, "catalog and pods to agree", || {
            wrong = match self.catalog() {
                Ok(catalog) => self.compare(&catalog, for_good),
                Err(error) => vec![error.to_string()],
            };
            if wrong.is_empty() {
                wrong =
                    self.look_at_mesh(for_good).err().map(|e| e.to_string()).into_iter().collect();
            }
            if !wrong.is_empty() {
                std::thread::sleep(Duration::from_millis(100));
            }
            wrong.is_empty()
        });
        waited.unwrap_or_else(|error| {
            let agent = self.agent.as_ref().map(Process::output).unwrap_or_default();
            // The current state: earlier results are from the last round.
            let logs = self
                .living
                .values()
                .map(|(who, _)| format!("{}: {}", who.uid, tail(&self.ground.log_of_run(who), 20)));
            let logs: Vec<_> = logs.collect();
            panic!(
                "{error}: {wrong:#?}\n{}\n{}\n{:?}",
                logs.join("\n"),
                tail(&agent, 60),
                self.happened
            )
        });
    }

    fn compare(&mut self, catalog: &Catalog, for_good: bool) -> Vec<String> {
        let mut wrong = Vec::new();
        for (who, log) in self.living.values() {
            for id in halves(&who.name) {
                if catalog.services.get(&id) != Some(&who.ip) {
                    wrong.push(format!("{id} of {who:?} is not in the catalog: {log}"));
                } else if !catalog.passing.contains(&format!("{id}-lease")) {
                    wrong.push(format!("the lease of {id} of {who:?} is not good: {log}"));
                }
            }
        }
        for Remains { dead, is_gone } in &mut self.dead {
            let Dead { who, when, is_clean, log, .. } = dead;
            let there = halves(&who.name).into_iter().find(|id| catalog.services.contains_key(id));
            let passing = halves(&who.name)
                .into_iter()
                .find(|id| catalog.passing.contains(&format!("{id}-lease")));
            assert!(
                there.is_none() || !*is_gone || !*is_clean,
                "{there:?} of {who:?} came back: {log}"
            );
            let there_is_none = there.is_none();
            // Consul deregisters a dead pod's services with the token that registered them.
            // If it has expired, they stay in the catalog, critical.
            let may_stay = self.acls.is_some() && !*is_clean;
            let is_over = *is_clean || (!may_stay && (for_good || when.elapsed() > GONE));
            if let Some(id) = there.filter(|_| is_over) {
                wrong.push(format!("{id} of {who:?}, ended well: {is_clean}, is there: {log}"));
            } else if let Some(id) = passing.filter(|_| when.elapsed() > LEASE) {
                wrong.push(format!("the lease of {id} of {who:?} is good: {log}"));
            } else {
                *is_gone |= there_is_none;
            }
        }
        wrong
    }

    /// Checks that Envoys have the catalog's endpoints and enforce the last intention, and that
    /// no process or file is left over.
    fn look_at_mesh(&self, for_good: bool) -> Result<()> {
        let living: BTreeSet<&str> = self.living.values().map(|(who, _)| who.ip.as_str()).collect();
        for ip in living.iter().copied().chain([self.client.who.ip.as_str()]) {
            let stats = self.admin(ip, &format!("/stats?filter={XDS_STATS}"))?;
            if !stats.as_str().is_some_and(is_connected) {
                return Err(format!("the Envoy of {ip} has no stream: {stats}").into());
            }
        }
        // A killed pod is listed until its TTL check expires.
        let lately = |remains: &&Remains| !for_good && remains.dead.when.elapsed() < LEASE;
        let lately = self.dead.iter().filter(lately).map(|remains| remains.dead.who.ip.as_str());
        let may_be: BTreeSet<&str> = living.iter().copied().chain(lately).collect();
        let known = self.endpoints()?;
        let known: BTreeSet<&str> = known.iter().map(String::as_str).collect();
        if !known.is_superset(&living) || !known.is_subset(&may_be) {
            return Err(format!("the client's Envoy knows {known:?}, {living:?} live").into());
        }
        for _ in 0..TRIES {
            match (self.is_denied, request()) {
                (true, Ok(body)) => return Err(format!("denied, and answered {body}").into()),
                (true, Err(_)) => {}
                (false, Err(error)) if !living.is_empty() => return Err(error),
                (false, _) => break,
            }
        }
        self.look_for_leaks(living.len())
    }

    /// Checks that pods that ended gracefully left no entry, process or file.
    fn look_for_leaks(&self, living: usize) -> Result<()> {
        let services = self.ask(Method::GET, "/v1/agent/services")?;
        let checks = self.ask(Method::GET, "/v1/agent/checks")?;
        let owners = checks.as_object().into_iter().flatten();
        for (id, check) in owners {
            let owner = check["ServiceID"].as_str().unwrap_or_default();
            if services.get(owner).is_none() {
                return Err(format!("the check {id} is of no service").into());
            }
        }
        for Remains { dead, .. } in &self.dead {
            let litter = dead.litter(&self.ground);
            if dead.is_clean && !litter.is_empty() {
                return Err(format!("{:?} left {litter:?}", dead.who).into());
            }
        }
        // Each pod, the client included, has Envoy and connect-lifecycle.
        let folder = self.ground.folder.to_string_lossy().into_owned();
        let (there, expected) = (processes_with(&folder), 2 * (living + 1));
        if there.len() != expected {
            return Err(format!("{expected} processes are expected: {there:#?}").into());
        }
        Ok(())
    }

    /// The addresses to which the client's Envoy would send requests.
    fn endpoints(&self) -> Result<BTreeSet<String>> {
        let clusters = self.admin(&self.client.who.ip, "/clusters?format=json")?;
        let clusters = clusters["cluster_statuses"].as_array().ok_or("no clusters")?;
        let web = clusters
            .iter()
            .find(|cluster| cluster["name"].as_str().is_some_and(|name| name.starts_with("web.")));
        let hosts = web.and_then(|web| web["host_statuses"].as_array()).into_iter().flatten();
        Ok(hosts
            .filter(|host| host["health_status"]["eds_health_status"] == "HEALTHY")
            .filter_map(|host| host["address"]["socket_address"]["address"].as_str())
            .map(str::to_owned)
            .collect())
    }

    fn admin(&self, ip: &str, path: &str) -> Result<Value> {
        self.node.request(Method::GET, &format!("http://{ip}:{}{path}", pod::ADMIN), None)
    }

    fn catalog(&self) -> Result<Catalog> {
        let name = self.node.name();
        let node = self.ask(Method::GET, &format!("/v1/catalog/node/{name}"))?;
        let checks = self.ask(Method::GET, &format!("/v1/health/node/{name}"))?;
        let services = node["Services"].as_object().ok_or("the agent is not in the catalog")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Catalog {
            services: services.iter().map(|(id, s)| (id.clone(), text(&s["Address"]))).collect(),
            passing: checks
                .as_array()
                .into_iter()
                .flatten()
                .filter(|check| check["Status"] == "passing")
                .map(|check| text(&check["CheckID"]))
                .collect(),
        })
    }

    fn ask(&self, method: Method, path: &str) -> Result<Value> {
        self.send(method, path, None)
    }

    fn tell(&self, path: &str, body: Option<&Value>) -> Result<Value> {
        self.send(Method::PUT, path, body)
    }

    fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        match self.acls {
            Some(acls) => acls.ask(method, path, body),
            None => self.node.as_holder(None, method, path, body),
        }
    }

    /// Stops the client, too, and checks that only killed pods left tokens, which expire.
    fn end(mut self) {
        self.client.terminate();
        assert!(self.client.await_end(), "{}", self.client.log());
        let nothing_is_left = until_within(GONE, "the agent to have no service", || {
            self.ask(Method::GET, "/v1/agent/services").is_ok_and(|services| services == json!({}))
        });
        nothing_is_left.unwrap();
        let folder = self.ground.folder.to_string_lossy().into_owned();
        assert_eq!(processes_with(&folder), [""; 0]);
        let Some(acls) = self.acls else { return };
        let client = self.client.dead(true);
        if client.may_leave_token {
            self.excused.insert(client.who.uid);
        }
        let left = acls.logins().unwrap();
        println!("{} tokens are left, {} pods were killed", left.len(), self.excused.len());
        for token in left {
            let excused = self.excused.iter().any(|uid| token.contains(uid.as_str()));
            assert!(excused, "{token}");
        }
        until_within(PATIENCE, "the last token to end", || {
            acls.logins().is_ok_and(|left| left.is_empty())
        })
        .unwrap();
    }
}

/// Sends a request from the client.
fn request() -> Answer {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, UPSTREAM))?;
    stream.set_read_timeout(Some(harness::PATIENCE))?;
    harness::load::get(stream)
}

/// Command lines of processes that contain a text.
fn processes_with(text: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| {
        let line = std::fs::read(process.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    lines.filter(|line| line.contains(text)).collect()
}

fn halves(pod: &str) -> [String; 2] {
    ["web", "web-sidecar-proxy"].map(|half| format!("shop_{pod}_{half}"))
}
