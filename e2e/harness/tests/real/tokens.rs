//! ACL tokens under traffic: they expire, are deleted, and can't be checked while agent or
//! servers are away. Envoy keeps its xDS stream, and a deny intention is enforced at any
//! time.
//!
//! `E2E_TOKEN_SECONDS` sets how long traffic runs, `E2E_AWAY_SECONDS` how long agent and
//! servers are away.

use std::time::{Duration, Instant};

use harness::kubelet::{XDS_STATS, is_connected};
use harness::load::{self, Load, Tally};
use harness::node::Node;
use harness::node::acl::{Acls, METHOD};
use harness::parts::Parts;
use harness::process::{Process, run, tail};
use harness::{until, until_within};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::json;

use crate::bare::{Bare, await_xds};
use crate::mesh::ROUNDS;

/// Port of the service on the client's loopback.
const UPSTREAM: u16 = 1234;

/// The admin ports of both Envoys.
const ADMIN: [u16; 2] = [19000, 19001];

/// Longer than two lifetimes of a token.
const TRAFFIC: u64 = 150;

/// Longer than a TTL check, `--cut-off-after` (`CUT_OFF`), and the lifetime of a token.
const AWAY: u64 = 75;

/// `--cut-off-after` in these tests.
const CUT_OFF: &str = "5s";

/// A version of Envoy that watches the file with its token.
const KNOWN: &str = "--envoy-version=1.40.0";

/// How soon Envoy has another stream: its first attempt is half a second later at most.
const AT_ONCE: Duration = Duration::from_secs(5);

/// A server and its client, which have logged in.
struct Used<'n> {
    node: &'n Node,
    acls: &'n Acls<'n>,
    pods: [Bare<'n>; 2],
    sidecars: [Process; 2],
    _application: Process,
}

/// Runs a test with both pods, whose tokens expire after a minute. The flags are those of
/// `connect-init`.
fn with_pods(
    parts: Option<Parts>,
    flags: &[&str],
    test: impl FnOnce(&mut Used<'_>, &mut Option<Process>),
) {
    let Some(parts) = parts else { return };
    let node = Node::new(parts).unwrap();
    let (acls, agent) = Acls::start(&node).unwrap();
    acls.have_method_with(&json!({"MaxTokenTTL": "1m"})).unwrap();
    acls.bind("${value.account}").unwrap();
    let defaults = json!({"Kind": "service-defaults", "Name": "api", "Protocol": "http"});
    acls.ask(Method::PUT, "/v1/config", Some(&defaults)).unwrap();
    intend(&acls, "allow");
    run("ip", &["route", "add", "local", "10.97.0.0/16", "dev", "lo"]).unwrap();
    let application = ["-text=api", "-listen=127.0.0.1:8080"].map(str::to_owned);
    let application = node.start(&node.parts().harness("http-echo"), &application).unwrap();
    let folder = node.folder("bearers").unwrap();
    let pods = [("api:8080", "10.97.0.1"), ("web:8080", "10.97.0.2")].map(|(service, ip)| {
        let account = &service[..3];
        let bearer = folder.join(account);
        let token = acls.bearer_token(account, 24 * 3600).unwrap();
        harness::process::write(&bearer, &token).unwrap();
        let flags = [
            "--http-addr=http://10.99.0.1:8500".to_owned(),
            "--grpc-addr=10.99.0.1:8502".to_owned(),
            format!("--acl-auth-method={METHOD}"),
            format!("--bearer-token-file={}", bearer.display()),
        ];
        Bare { node: &node, service, ip, flags: flags.to_vec() }
    });
    let upstream = format!("--upstream=api:{UPSTREAM}");
    let further = [vec![], vec![upstream.as_str(), "--admin-bind=127.0.0.1:19001"]];
    let mut sidecars = Vec::new();
    for (pod, further) in pods.iter().zip(further) {
        let (code, log) = pod.init(&[further, flags.to_vec()].concat());
        assert_eq!(code, Some(0), "{log}");
        sidecars.push(pod.run_with(&[&format!("--cut-off-after={CUT_OFF}")]));
    }
    let sidecars: [Process; 2] = sidecars.try_into().unwrap();
    let used = Used { node: &node, acls: &acls, pods, sidecars, _application: application };
    for (port, sidecar) in ADMIN.into_iter().zip(&used.sidecars) {
        await_xds(port, sidecar);
    }
    let mut used = used;
    until("the first answer", || used.is_answered()).unwrap_or_else(|error| used.panic(&error));
    // The agent may have to be told first that Envoy listens.
    until("both to be ready", || used.are_ready()).unwrap_or_else(|error| used.panic(&error));
    let mut agent = Some(agent);
    test(&mut used, &mut agent);
    used.end();
}

/// Writes an intention for the client. Retries while agent or servers have just come back.
fn intend(acls: &Acls<'_>, action: &str) {
    let sources = json!([{"Name": "web", "Action": action}]);
    let entry = json!({"Kind": "service-intentions", "Name": "api", "Sources": sources});
    let mut refusal = None;
    until("the intention to be taken", || {
        refusal = acls.ask(Method::PUT, "/v1/config", Some(&entry)).err();
        refusal.is_none()
    })
    .unwrap_or_else(|error| panic!("{error}: {refusal:?}"));
}

// === impl Used ===

impl Used<'_> {
    /// Whether a request over a new connection succeeds.
    fn is_answered(&self) -> bool {
        load::connect(&self.node.network(), UPSTREAM).and_then(load::get).is_ok()
    }

    /// Checks that a deny is enforced, and an allow afterwards.
    fn a_deny_is_enforced(&self) {
        intend(self.acls, "deny");
        until("the deny", || !self.is_answered()).unwrap_or_else(|error| self.panic(&error));
        intend(self.acls, "allow");
        // Pooled connections of Envoy close one by one.
        let every_time = || (0..ROUNDS).all(|_| self.is_answered());
        until("the allow", every_time).unwrap_or_else(|error| self.panic(&error));
    }

    /// Whether each Envoy has its xDS stream.
    fn are_connected(&self) -> bool {
        ADMIN.iter().all(|port| {
            let url = format!("http://127.0.0.1:{port}/stats?filter={XDS_STATS}");
            let stats = self.node.request(Method::GET, &url, None).unwrap_or_default();
            stats.as_str().is_some_and(is_connected)
        })
    }

    /// How often Envoys were started.
    fn starts(&self) -> usize {
        let log = |sidecar: &Process| sidecar.output().matches("started setpriv").count();
        self.sidecars.iter().map(log).sum()
    }

    fn logins(&self) -> usize {
        self.logins_of_each().iter().sum()
    }

    fn logins_of_each(&self) -> [usize; 2] {
        self.sidecars.each_ref().map(|sidecar| sidecar.output().matches("logged in again").count())
    }

    /// Sends requests over new connections and over a kept one until `meanwhile` is done.
    fn under_traffic(&self, meanwhile: impl FnOnce()) -> Tally {
        let network = self.node.network();
        let load = [Load::start_in(&network, UPSTREAM, 2), Load::start_kept_in(&network, UPSTREAM)];
        meanwhile();
        let mut all = Tally::default();
        for tally in load.map(Load::stop) {
            all.add(tally);
        }
        all
    }

    fn are_ready(&self) -> bool {
        self.pods.iter().all(|pod| pod.start_ready().wait().is_ok_and(|status| status.success()))
    }

    /// Asserts that the readiness probes of both pods succeed.
    fn assert_ready(&self, when: &str) {
        for pod in &self.pods {
            let mut ready = pod.start_ready();
            let status = ready.wait().unwrap();
            assert!(status.success(), "{when}: {}\n{}", ready.output(), self.log());
        }
    }

    /// Stops both pods, and asserts that nothing of them is left.
    fn end(&mut self) {
        for sidecar in &self.sidecars {
            sidecar.signal(Signal::SIGTERM).unwrap();
        }
        for sidecar in &mut self.sidecars {
            assert_eq!(sidecar.wait().unwrap().code(), Some(0), "{}", sidecar.output());
        }
        until("no token to be left", || self.acls.logins().is_ok_and(|left| left.is_empty()))
            .unwrap_or_else(|error| panic!("{error}: {:?}\n{}", self.acls.logins(), self.log()));
        assert_eq!(self.acls.services().unwrap(), [""; 0], "{}", self.log());
    }

    fn log(&self) -> String {
        self.sidecars.each_ref().map(|sidecar| tail(&sidecar.output(), 40)).join("\n---\n")
    }

    fn panic(&self, error: &dyn std::fmt::Display) {
        panic!("{error}\n{}", self.log());
    }
}

fn seconds(variable: &str, default: u64) -> Duration {
    let given = std::env::var_os(variable);
    Duration::from_secs(given.map_or(default, |text| text.to_string_lossy().parse().unwrap()))
}

/// When the agent has an update for a stream whose first token has expired, it closes the
/// stream, and Envoy opens another with the new token at once.
#[test]
fn tokens_that_expire_cause_no_failed_request_and_no_restart() {
    with_pods(Parts::find_or_skip(), &[KNOWN], |used, _agent| {
        let (began, length) = (Instant::now(), seconds("E2E_TOKEN_SECONDS", TRAFFIC));
        let mut rng = fastrand::Rng::new();
        let (mut all, mut looks, mut denies) = (Tally::default(), 0, 0);
        let mut opened_again = 0;
        while began.elapsed() < length {
            let moment = Duration::from_millis(rng.u64(5_000..30_000));
            all.add(used.under_traffic(|| {
                let began = Instant::now();
                while began.elapsed() < moment {
                    if !used.are_connected() {
                        opened_again += 1;
                        until_within(AT_ONCE, "another stream", || used.are_connected())
                            .unwrap_or_else(|error| panic!("{error}\n{}", used.log()));
                    }
                    looks += 1;
                    std::thread::sleep(Duration::from_millis(500));
                }
            }));
            used.a_deny_is_enforced();
            denies += 1;
        }
        let answers: u64 = all.answers.values().sum();
        println!(
            "{:?}: {answers} requests, {} failed, slowest {:?}; {looks} looks at both streams, {opened_again} met one being opened again; {denies} denies; {} logins",
            began.elapsed(),
            all.failures.len(),
            all.slowest,
            used.logins(),
        );
        assert_eq!(all.failures, Vec::<String>::new());
        assert_eq!(used.starts(), 2, "{}", used.log());
        assert!(used.logins() >= 4, "{}", used.log());
        assert!(opened_again <= used.logins(), "{opened_again}: {}", used.log());
        used.assert_ready("after all that");
    });
}

#[test]
fn tokens_that_are_deleted_cause_no_failed_request_no_lost_stream_and_no_restart() {
    with_pods(Parts::find_or_skip(), &[KNOWN], |used, _agent| {
        let before = used.logins_of_each();
        let tally = used.under_traffic(|| {
            used.acls.revoke().unwrap();
            let deleted = Instant::now();
            // A token may also have been due.
            let again = || used.logins_of_each().iter().zip(before).all(|(now, then)| *now > then);
            until("both to log in again", again).unwrap_or_else(|error| used.panic(&error));
            println!("noticed {:?} after it was deleted", deleted.elapsed());
            until("another registration", || {
                used.sidecars.iter().all(|sidecar| {
                    let log = sidecar.output();
                    log.rfind("registered again") > log.rfind("logged in again")
                })
            })
            .unwrap_or_else(|error| used.panic(&error));
        });
        assert_eq!(tally.failures, Vec::<String>::new());
        used.a_deny_is_enforced();
        // An agent may close a stream whose token is gone from its cache; Envoy opens another.
        until_within(AT_ONCE, "both streams", || used.are_connected())
            .unwrap_or_else(|error| used.panic(&error));
        assert_eq!(used.starts(), 2, "{}", used.log());
    });
}

/// An Envoy of unknown version may not be able to watch a file.
#[test]
fn an_envoy_of_unknown_version_is_restarted_in_place_with_the_new_token() {
    with_pods(Parts::with_oldest_envoy_or_skip(), &[], |used, _agent| {
        used.acls.revoke().unwrap();
        until_within(Duration::from_secs(120), "both Envoys to be restarted", || {
            used.starts() >= 4 && used.are_connected()
        })
        .unwrap_or_else(|error| used.panic(&error));
        until("an answer", || used.is_answered()).unwrap_or_else(|error| used.panic(&error));
        used.a_deny_is_enforced();
        assert!(used.sidecars.iter_mut().all(|sidecar| sidecar.ended().unwrap().is_none()));
    });
}

/// Envoy keeps its configuration, and its pod stays ready.
#[test]
fn pods_stay_ready_and_serve_while_the_servers_are_away() {
    with_pods(Parts::find_or_skip(), &[KNOWN], |used, _agent| {
        used.assert_ready("before");
        let (settings, logins) = (used.acls.server_settings(), used.logins_of_each());
        let tally = used.under_traffic(|| {
            used.node.kill_server();
            stays_ready(used, "while the servers are away");
        });
        assert_eq!(tally.failures, Vec::<String>::new());
        used.node.start_server_with(&settings).unwrap();
        comes_back(used, logins);
    });
}

/// The same without an agent, and then with an agent that has no servers.
#[test]
fn pods_stay_ready_and_serve_while_the_agent_is_away() {
    with_pods(Parts::find_or_skip(), &[KNOWN], |used, agent| {
        used.assert_ready("before");
        let (settings, logins) = (used.acls.server_settings(), used.logins_of_each());
        let tally = used.under_traffic(|| {
            *agent = None;
            stays_ready(used, "while the agent is away");
        });
        assert_eq!(tally.failures, Vec::<String>::new());
        // An agent that starts without its servers sends Envoy no endpoints.
        used.node.kill_server();
        *agent = Some(used.node.spawn_agent(&settings).unwrap());
        stays_ready(used, "while the agent has no servers");
        used.node.start_server_with(&settings).unwrap();
        comes_back(used, logins);
    });
}

fn stays_ready(used: &Used<'_>, when: &str) {
    let (began, length) = (Instant::now(), seconds("E2E_AWAY_SECONDS", AWAY));
    while began.elapsed() < length {
        used.assert_ready(when);
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Checks that registration, streams and enforcement are as before, and that each pod has
/// logged in again since it had so many logins: its token expired meanwhile.
fn comes_back(used: &Used<'_>, logins: [usize; 2]) {
    until_within(Duration::from_secs(120), "both to log in again", || {
        used.logins_of_each().iter().zip(logins).all(|(now, before)| *now > before)
    })
    .unwrap_or_else(|error| used.panic(&error));
    until_within(Duration::from_secs(120), "all to be passing and connected", || {
        let checks = used.acls.ask(Method::GET, "/v1/agent/checks", None).unwrap_or_default();
        let checks: Vec<_> = checks.as_object().into_iter().flatten().collect();
        let lease = |(id, check): &&(&String, &serde_json::Value)| {
            id.ends_with("-lease") && check["Status"] == "passing"
        };
        checks.iter().filter(lease).count() == 4 && used.are_connected()
    })
    .unwrap_or_else(|error| used.panic(&error));
    used.a_deny_is_enforced();
    used.assert_ready("after all that");
}
