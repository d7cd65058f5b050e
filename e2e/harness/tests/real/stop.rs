//! A pod ends while others send it requests: no request is lost, and nothing waits longer
//! than necessary.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use harness::kubelet::Pod;
use harness::load::{self, Load};
use harness::node::{Node, RELAY};
use harness::parts::Parts;
use harness::process::Process;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::mesh::{ROUNDS, UPSTREAM, await_heard, await_instances, client, server, started};

/// The annotation with the drain timeout.
const BUDGET: &str = "sidecar-proxy-lifecycle-shutdown-grace-period-seconds";

/// A version of Kubernetes with native sidecars and the sleep action.
const KUBERNETES: &str = "--kubernetes-version=1.33";

/// All containers get SIGTERM at the same time. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/4463> and
/// <https://github.com/hashicorp/consul-k8s/issues/536>.
#[test]
fn no_request_is_lost_when_a_pod_ends_whose_sidecar_is_a_container() {
    no_request_is_lost("container");
}

/// The sidecar gets SIGTERM after the application has exited. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/4463> and
/// <https://github.com/hashicorp/consul-k8s/issues/536>.
#[test]
fn no_request_is_lost_when_a_pod_ends_whose_sidecar_is_native() {
    no_request_is_lost("native");
}

/// Two of three servers are stopped one after the other, under load: one whose application
/// keeps running until its clients have new endpoints, which is delayed here, and has
/// requests in flight then; and one whose application got the sleep action from the
/// injector.
fn no_request_is_lost(mode: &str) {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let _agent = node.start_agent().unwrap();
    let relay = node.start_relay().unwrap();
    let xds = format!("--consul-grpc-addr-template=$(HOST_IP):{RELAY}");
    let injector = node.start_injector_with(&[KUBERNETES, &xds]).unwrap();
    let start = |name: &str, lifecycle: &Value| {
        let pod = server(name, &json!({"sidecar-mode": mode, BUDGET: "120"}), lifecycle);
        started(&node, &injector, &pod)
    };
    let with_hook = start("api-1", &until_told());
    let with_sleep = start("api-2", &Value::Null);
    let _stays = start("api-3", &Value::Null);
    let client = started(&node, &injector, &client(&json!({"sidecar-mode": mode})));
    await_instances(&node, 3);

    await_heard(&client, &["api-1", "api-2", "api-3"]);
    let load = Load::start(&client, UPSTREAM, 4);
    load.await_answers(&["api-1", "api-2", "api-3"]).unwrap();
    // For a while the clients get no new endpoints.
    relay.signal(Signal::SIGSTOP).unwrap();
    let (told, network) = (Told::of(&with_hook), client.network());
    // A native sidecar does not get SIGTERM yet: the hook has deregistered.
    let gone = if mode == "native" {
        "the pod was deregistered"
    } else {
        "deregistered service=\"default_api-1_api\""
    };
    let meanwhile = std::thread::scope(|scope| {
        let meanwhile = scope.spawn(|| {
            let result = serve_those_who_have_not_heard(&load, &network, &relay, &told, gone);
            // Even on failure, so that the application does not wait.
            told.tell();
            result
        });
        stop(mode, with_hook);
        meanwhile.join().unwrap()
    });
    meanwhile.unwrap();
    stop(mode, with_sleep);
    load.await_answers(&["api-3"]).unwrap();
    let tally = load.stop();
    println!("{mode}: {:?}, slowest {:?}", tally.answers, tally.slowest);
    assert_eq!(tally.failures, Vec::<String>::new());
}

/// The server that ends still gets requests; then its clients get new endpoints, and then
/// the requests in flight finish.
fn serve_those_who_have_not_heard(
    load: &Load,
    network: &Path,
    relay: &Process,
    told: &Told,
    gone: &str,
) -> harness::Result<()> {
    told.await_log(gone)?;
    for _ in 0..ROUNDS {
        load.await_answers(&["api-1", "api-2", "api-3"])?;
    }
    // Enough for each server to get some of them.
    let in_flight: harness::Result<Vec<_>> =
        (0..12).map(|_| load::connect(network, UPSTREAM)).collect();
    let mut in_flight = in_flight?;
    for stream in &mut in_flight {
        stream.write_all(&load::REQUEST[..9])?;
    }
    relay.signal(Signal::SIGCONT)?;
    let of_the_one = || load.so_far().answers.get("api-1").copied();
    harness::until("no request to the server that ends", || {
        let before = of_the_one();
        // A third of them would go to it.
        (0..ROUNDS).all(|_| load.await_answers(&["api-2", "api-3"]).is_ok())
            && of_the_one() == before
    })?;
    let mut answers = BTreeMap::<String, u32>::new();
    for mut stream in in_flight {
        stream.write_all(&load::REQUEST[9..])?;
        *answers.entry(load::answer(&stream)?).or_default() += 1;
    }
    println!("in flight: {answers:?}");
    Ok(())
}

/// Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/268>.
#[test]
fn an_idle_pod_exits_at_once_and_an_open_connection_is_closed_at_the_drain_timeout() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let _agent = node.start_agent().unwrap();
    let injector = node.start_injector().unwrap();
    let client = started(&node, &injector, &client(&json!({"sidecar-mode": "container"})));

    let idle = started(&node, &injector, &server("api-1", &json!({}), &Value::Null));
    await_instances(&node, 1);
    let log = idle.log_file("envoy-sidecar");
    stop("idle", idle);
    let log = fs::read_to_string(log).unwrap();
    let order = ["received SIGTERM: shutting down", "no connection is in flight", "Envoy exited"];
    let order = order.map(|words| log.find(words).unwrap_or_else(|| panic!("no `{words}`: {log}")));
    assert!(order.is_sorted(), "{log}");

    let used = server("api-2", &json!({BUDGET: "1"}), &until_told());
    let used = started(&node, &injector, &used);
    await_instances(&node, 1);
    await_heard(&client, &["api-2"]);
    let mut endless = load::connect(&client.network(), UPSTREAM).unwrap();
    endless.write_all(&load::REQUEST[..9]).unwrap();
    await_connection(&used);
    let told = Told::of(&used);
    std::thread::scope(|scope| {
        let cut = scope.spawn(|| {
            let result = told.await_log("closing open connections");
            let end = endless.read(&mut [0]);
            told.tell();
            result.map(|()| end)
        });
        stop("a connection that never ends", used);
        let end = cut.join().unwrap().unwrap();
        // With whichever error of a reset arrives first.
        let is_closed = end.as_ref().map_or_else(|error| !is_timeout(error), |read| *read == 0);
        assert!(is_closed, "{end:?}");
    });
}

fn is_timeout(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    matches!(error.kind(), TimedOut | WouldBlock)
}

/// Stops a pod, and asserts that all containers exit with 0.
fn stop(what: &str, pod: Pod<'_>) {
    let began = Instant::now();
    let log = pod.log_file("envoy-sidecar");
    let ended = pod.stop().unwrap();
    println!("{what}: ended in {:?}", began.elapsed());
    let well = "exit status: 0".to_owned();
    let all = ["api", "envoy-sidecar"].map(|name| (name.to_owned(), well.clone()));
    let log = fs::read_to_string(log).unwrap_or_default();
    // The log last, because it is long.
    assert!(ended == BTreeMap::from(all), "{what}: {ended:?}\n{log}");
}

/// Waits until the pod's Envoy has a connection.
fn await_connection(pod: &Pod<'_>) {
    const STATS: &str = "http://127.0.0.1:19000/stats?usedonly&filter=20000.downstream_cx_active$";
    harness::until("a connection to the server", || {
        pod.exec("envoy-sidecar", &["curl", "-s", STATS])
            .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("cx_active: 1"))
    })
    .unwrap();
}

// === an application that keeps running until the test lets it end ===

const TOLD: &str = "tmp/told";

/// The application's own preStop hook.
fn until_told() -> Value {
    let script = format!("until test -e /{TOLD}; do sleep 0.05; done");
    json!({"preStop": {"exec": {"command": ["sh", "-c", script]}}})
}

/// A pod with such an application, while it is being stopped.
struct Told {
    file: PathBuf,
    log: PathBuf,
}

impl Told {
    fn of(pod: &Pod<'_>) -> Self {
        let file = pod.root("api").unwrap().join(TOLD);
        Self { file, log: pod.log_file("envoy-sidecar") }
    }

    /// Lets the application end.
    fn tell(&self) {
        File::create(&self.file).unwrap();
    }

    /// Waits until the sidecar's log contains these words.
    fn await_log(&self, words: &str) -> harness::Result<()> {
        let log = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        harness::until(&format!("`{words}`"), || log(&self.log).contains(words))
            .map_err(|error| format!("{error}\n{}", log(&self.log)).into())
    }
}
