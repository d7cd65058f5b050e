//! The virtual address of a service that follows a Kubernetes Service, whose cluster IP
//! changes when the Service is recreated.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use testkit::process::await_that;
use testkit::{Process, Route, ScriptedAgent};

use crate::dns::without_repeated;
use crate::nameserver::{Nameserver, answer_for, fail};
use crate::pod::{PROXY, PROXY_LEASE, Pod, await_alive};

const NAME: &str = "db.shop.svc";
const WHOLE: &str = "db.shop.svc.cluster.local";

const OLD: [u8; 4] = [10, 96, 0, 10];
const NEW: [u8; 4] = [10, 96, 0, 11];
const NEWER: [u8; 4] = [10, 96, 0, 12];

/// The address of the pods of these tests.
const OWN: [u8; 4] = [127, 0, 0, 1];

const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;

/// The cluster's DNS, with one Service.
struct Cluster {
    nameserver: Nameserver,
    addresses: Arc<Mutex<Vec<[u8; 4]>>>,
}

impl Cluster {
    fn with(address: [u8; 4], ttl: u8) -> Self {
        let addresses = Arc::new(Mutex::new(vec![address]));
        let answered = Arc::clone(&addresses);
        let nameserver = Nameserver::start(move |asked| {
            vec![if asked.name == WHOLE {
                answer_for(&asked.message, &answered.lock().unwrap(), ttl)
            } else {
                fail(&asked.message, NXDOMAIN)
            }]
        });
        Self { nameserver, addresses }
    }

    fn change(&self, addresses: &[[u8; 4]]) {
        *self.addresses.lock().unwrap() = addresses.to_vec();
    }

    fn run(&self, pod: &Pod) -> Process {
        run(&self.nameserver, pod)
    }
}

/// Starts the sidecar of a pod with that nameserver.
fn run(nameserver: &Nameserver, pod: &Pod) -> Process {
    let at = nameserver.address();
    let search = "search shop.svc.cluster.local svc.cluster.local cluster.local";
    pod.write("resolv.conf", &format!("{search}\nnameserver [{}]:{}\n", at.ip(), at.port()));
    pod.run_with(&["--resolv-conf", &pod.path("resolv.conf")])
}

/// An agent whose blocking queries return at once, so that heartbeats follow each other.
fn agent() -> ScriptedAgent {
    let agent = ScriptedAgent::start();
    agent.longest_wait(Duration::from_millis(20));
    agent
}

fn await_address(agent: &ScriptedAgent, address: [u8; 4]) {
    let address = Ipv4Addr::from(address).to_string();
    agent.await_that(&format!("the address {address}"), |state| {
        let there = &state.model.services()[PROXY]["TaggedAddresses"]["virtual"];
        there["Address"] == address.as_str()
    });
}

/// Waits for that many more heartbeats.
fn await_heartbeats(agent: &ScriptedAgent, count: usize) {
    agent.forget_requests();
    agent.await_that("heartbeats", |state| {
        let of_proxy = |id: Option<String>| id.as_deref() == Some(PROXY_LEASE);
        state.requests.iter().filter(|request| of_proxy(request.id())).count() >= count
    });
}

#[test]
fn the_address_of_a_recreated_service_is_registered() {
    let (agent, cluster) = (agent(), Cluster::with(NEW, 0));
    let pod = Pod::known_by(&agent, NAME, Some(OLD));
    let sidecar = cluster.run(&pod);
    await_address(&agent, NEW);
    sidecar.await_log("registered again: its virtual address is 10.96.0.11 now");
    cluster.change(&[NEWER]);
    await_address(&agent, NEWER);
    await_alive(&agent);
    let there = &agent.services()[PROXY]["TaggedAddresses"]["virtual"];
    assert_eq!(there["Port"], 80, "it is the Service's still");
    drop(sidecar);

    // A container that restarts keeps it, whatever DNS answers.
    agent.forget_requests();
    let _again = run(&Nameserver::silent(), &pod);
    await_heartbeats(&agent, 3);
    assert!(agent.asked(Route::Register).is_empty());
    await_address(&agent, NEWER);
}

#[test]
fn the_address_of_a_service_created_after_the_pod_is_registered() {
    let (agent, cluster) = (agent(), Cluster::with(NEW, 0));
    cluster.change(&[]);
    let pod = Pod::known_by(&agent, NAME, None);
    let _sidecar = cluster.run(&pod);
    await_heartbeats(&agent, 3);
    assert!(agent.asked(Route::Register).is_empty());
    cluster.change(&[NEW]);
    await_address(&agent, NEW);
}

/// Such answers say nothing about the Service, and clients may have cached the address.
#[test]
fn the_address_stays_if_the_name_does_not_resolve_to_exactly_one() {
    type Answer = fn(&[u8]) -> Vec<u8>;
    let answers: [(&str, Answer); 6] = [
        ("gone", |query| fail(query, NXDOMAIN)),
        ("failing", |query| fail(query, SERVFAIL)),
        ("none", |query| answer_for(query, &[], 0)),
        ("headless", |query| answer_for(query, &[NEW, NEWER], 0)),
        ("headless, of one pod", |query| answer_for(query, &[OWN], 0)),
        ("noise", |query| answer_for(query, &[NEW], 0)[..40].to_vec()),
    ];
    for (what, answer) in answers {
        let agent = agent();
        let nameserver = Nameserver::start(move |asked| vec![answer(&asked.message)]);
        let pod = Pod::known_by(&agent, NAME, Some(OLD));
        let sidecar = run(&nameserver, &pod);
        await_heartbeats(&agent, 5);
        assert!(!nameserver.asked().is_empty(), "{what}");
        assert!(agent.asked(Route::Register).is_empty(), "{what}");
        let unclear = "as that of a headless Service";
        let is_unclear = what != "gone" && what != "failing" && what != "noise";
        if is_unclear {
            sidecar.await_log(unclear);
        }
        assert_eq!(sidecar.log().matches(unclear).count(), usize::from(is_unclear), "{what}");
        await_address(&agent, OLD);
    }
}

#[test]
fn a_name_is_looked_up_once_per_ttl_with_one_query() {
    let (agent, cluster) = (agent(), Cluster::with(OLD, 60));
    let pod = Pod::known_by(&agent, NAME, Some(OLD));
    let _sidecar = cluster.run(&pod);
    await_that("the name to be found", || cluster.nameserver.knows(WHOLE));
    await_heartbeats(&agent, 10);
    let asked = without_repeated(cluster.nameserver.asked());
    let asked: Vec<_> = asked.into_iter().map(|it| it.name).collect();
    let searched = ["db.shop.svc.shop.svc.cluster.local", "db.shop.svc.svc.cluster.local", WHOLE];
    assert_eq!(asked, searched);

    // From then on, only the fully qualified name that resolved.
    let (agent, cluster) = (self::agent(), Cluster::with(OLD, 0));
    let pod = Pod::known_by(&agent, NAME, Some(OLD));
    let _sidecar = cluster.run(&pod);
    let asked = || without_repeated(cluster.nameserver.asked());
    await_that("several lookups", || asked().len() > 6);
    let asked = asked();
    assert!(asked[3..].iter().all(|it| it.name == WHOLE), "{asked:?}");
}
