//! The pod's DNS, split between the agent and the pod's nameservers.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use testkit::process::{Signal, await_that};
use testkit::{Port, Process, ScriptedAgent};

use crate::nameserver::{
    Asked, Client, Nameserver, answer, code, connect, fail, query, read, send,
};
use crate::pod::{Pod, await_alive};

const AGENT: [u8; 4] = [240, 0, 0, 1];
const CLUSTER: [u8; 4] = [10, 96, 0, 1];
const OTHER: [u8; 4] = [10, 96, 0, 2];

const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;

/// A pod whose sidecar serves DNS.
struct Served {
    sidecar: Process,
    pod: Pod,
    port: Port,
    _agent: ScriptedAgent,
}

impl Served {
    /// With that address of the agent's DNS, and these nameservers.
    fn by(agent_dns: SocketAddr, nameservers: &[SocketAddr]) -> Self {
        Self::with(agent_dns, nameservers, &[])
    }

    fn with(agent_dns: SocketAddr, nameservers: &[SocketAddr], flags: &[&str]) -> Self {
        let agent = ScriptedAgent::start();
        let pod = Pod::of(&agent);
        pod.write("resolv.conf", &resolv_conf(nameservers));
        let (file, agent_dns) = (pod.path("resolv.conf"), agent_dns.to_string());
        let mut all = vec!["--consul-dns-addr", &agent_dns, "--resolv-conf", &file];
        all.extend(flags);
        // A port is reserved for TCP only: for UDP, another test's query may have it.
        let started = (0..10).find_map(|_| start_on(Port::keep(), &pod, &all));
        let (sidecar, port) = started.expect("one of ten ports is free");
        await_alive(&agent);
        Self { sidecar, pod, port, _agent: agent }
    }

    fn address(&self) -> SocketAddr {
        self.port.address()
    }

    fn client(&self) -> Client {
        Client::of(self.address())
    }
}

/// Starts a sidecar that serves DNS on that port; `None` if the port is in use.
fn start_on(port: Port, pod: &Pod, flags: &[&str]) -> Option<(Process, Port)> {
    const SERVING: &str = "serving DNS";
    let number = port.address().port().to_string();
    let sidecar = pod.run_with(&[&["--dns-port", &number], flags].concat());
    let is_serving = sidecar.await_one_of(&[SERVING, "Address already in use"]) == SERVING;
    is_serving.then_some((sidecar, port))
}

/// The queries without those that were sent again because no answer came for a second: such
/// a datagram has the same id and source port.
pub(crate) fn without_repeated(mut asked: Vec<Asked>) -> Vec<Asked> {
    let mut seen = BTreeSet::new();
    asked.retain(|asked| seen.insert((asked.from, asked.by_tcp, asked.message[..2].to_vec())));
    asked
}

/// Waits for the end of a connection without further messages. Not with a single `read`,
/// which may fail with `EINTR` because it has a timeout, as described in signal(7).
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.read_to_end(&mut Vec::new()).unwrap() == 0
}

fn resolv_conf(nameservers: &[SocketAddr]) -> String {
    let lines = nameservers.iter().map(|at| format!("nameserver [{}]:{}\n", at.ip(), at.port()));
    ["search default.svc.cluster.local\n".to_owned(), "options ndots:5\n".to_owned()]
        .into_iter()
        .chain(lines)
        .collect()
}

#[test]
fn names_under_the_domain_go_to_the_agent_and_others_to_the_nameserver() {
    let (agent, cluster) = (Nameserver::with(AGENT), Nameserver::with(CLUSTER));
    let served = Served::by(agent.address(), &[cluster.address()]);
    let client = served.client();
    let mut stream = connect(served.address());
    for (name, address) in [
        ("web.virtual.consul", AGENT),
        ("web.service.dc1.CONSUL", AGENT),
        ("consul", AGENT),
        ("kubernetes.default.svc.cluster.local", CLUSTER),
        // As a client with a search list and ndots:5 asks.
        ("web.virtual.consul.default.svc.cluster.local", CLUSTER),
        ("notconsul", CLUSTER),
    ] {
        let query = query(7, name);
        assert_eq!(client.ask(&query), answer(&query, address), "{name}");
        send(&mut stream, &query);
        assert_eq!(read(&mut stream), Some(answer(&query, address)), "{name} by TCP");
        let expected = if address == AGENT { &agent } else { &cluster };
        let mut asked = without_repeated(expected.asked());
        asked.retain(|asked| asked.name == name);
        assert_eq!(asked.iter().map(|it| it.by_tcp).collect::<Vec<_>>(), [false, true], "{name}");
    }
}

#[test]
fn the_domain_can_be_set() {
    let (agent, cluster) = (Nameserver::with(AGENT), Nameserver::with(CLUSTER));
    let flags = ["--consul-domain", "mesh.example."];
    let served = Served::with(agent.address(), &[cluster.address()], &flags);
    for (name, address) in [("web.virtual.mesh.example", AGENT), ("web.virtual.consul", CLUSTER)] {
        let query = query(1, name);
        assert_eq!(served.client().ask(&query), answer(&query, address), "{name}");
    }
}

#[test]
fn an_answer_is_forwarded_unchanged() {
    let nxdomain = |message: &[u8]| fail(message, NXDOMAIN);
    // Truncated over UDP, and larger than any datagram over TCP.
    let long = |message: &[u8]| [answer(message, CLUSTER), vec![0; 60_000]].concat();
    let cluster = Nameserver::start(move |asked| match (asked.name.as_str(), asked.by_tcp) {
        ("long.example", false) => {
            let mut truncated = fail(&asked.message, 0);
            truncated[2] |= 0x02;
            vec![truncated]
        }
        ("long.example", true) => vec![long(&asked.message)],
        ("edns.example", _) => vec![[answer(&asked.message, CLUSTER), vec![0; 4000]].concat()],
        _ => vec![nxdomain(&asked.message)],
    });
    let served = Served::by(cluster.address(), &[cluster.address()]);
    let client = served.client();

    let missing = query(1, "missing.consul");
    assert_eq!(client.ask(&missing), nxdomain(&missing));

    let question = query(2, "long.example");
    assert_eq!(client.ask(&question)[2] & 0x02, 0x02);
    let mut stream = connect(served.address());
    send(&mut stream, &question);
    assert_eq!(read(&mut stream), Some(long(&question)));

    // An EDNS record with a cookie, and the checking-disabled flag.
    let mut edns = query(3, "edns.example");
    edns[3] |= 0x10;
    edns[11] = 1;
    edns.extend([0, 0, 41, 0x10, 0, 0, 0, 0x80, 0, 0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(client.ask(&edns).len(), answer(&edns, CLUSTER).len() + 4000);
    let asked = cluster.asked().into_iter().find(|asked| asked.name == "edns.example").unwrap();
    assert_eq!(asked.message[2..], edns[2..]);
}

#[test]
fn only_names_under_the_domain_fail_when_the_agent_is_down() {
    let port = Port::keep();
    let cluster = Nameserver::with(CLUSTER);
    let served = Served::by(port.address(), &[cluster.address()]);
    let client = served.client();
    let (consul, other) = (query(1, "web.virtual.consul"), query(2, "example.com"));

    let refused = client.ask(&consul);
    assert_eq!(refused, fail(&consul, SERVFAIL));
    assert_eq!(client.ask(&other), answer(&other, CLUSTER));
    let mut stream = connect(served.address());
    send(&mut stream, &consul);
    assert_eq!(read(&mut stream), Some(fail(&consul, SERVFAIL)));
    send(&mut stream, &other);
    assert_eq!(read(&mut stream), Some(answer(&other, CLUSTER)));
    served.sidecar.await_log("the agent's DNS does not answer");
    served.sidecar.await_log("Connection refused");

    let _agent = Nameserver::start_at(&port, |asked| vec![answer(&asked.message, AGENT)]);
    assert_eq!(client.ask(&consul), answer(&consul, AGENT));
    served.sidecar.await_log("the agent's DNS answers again");
    // Logged once, however many queries failed.
    assert_eq!(served.sidecar.log().matches("does not answer").count(), 1);
}

#[test]
fn a_refused_query_fails_at_once() {
    let (gone, silent, second) = (Port::keep(), Nameserver::silent(), Nameserver::with(OTHER));
    let served = Served::by(gone.address(), &[silent.address(), second.address()]);
    let client = served.client();
    // The query to the silent nameserver waits; the agent's refusal arrives by itself.
    let (slow, refused) = (query(1, "a.example"), query(2, "a.consul"));
    client.send(&slow);
    client.send(&refused);
    assert_eq!(client.receive(), fail(&refused, SERVFAIL));
    assert_eq!(client.receive(), answer(&slow, OTHER));
    served.sidecar.await_log("Connection refused");
}

#[test]
fn queries_to_a_silent_agent_end_with_servfail() {
    let (agent, cluster) = (Nameserver::silent(), Nameserver::with(CLUSTER));
    let served = Served::by(agent.address(), &[cluster.address()]);
    let consul = query(1, "web.virtual.consul");
    let mut stream = connect(served.address());
    send(&mut stream, &consul);
    let waits = served.client();
    // More than may wait for the agent at once.
    for id in 0..100 {
        waits.send(&query(id, "web.virtual.consul"));
    }
    let other = query(2, "example.com");
    assert_eq!(served.client().ask(&other), answer(&other, CLUSTER));
    for _ in 0..100 {
        assert_eq!(code(&waits.receive()), SERVFAIL);
    }
    assert_eq!(read(&mut stream), Some(fail(&consul, SERVFAIL)));
    served.sidecar.await_log("the agent's DNS does not answer: no answer within 4s");
}

#[test]
fn the_next_nameserver_is_asked_when_one_is_silent_or_gone() {
    let (silent, second) = (Nameserver::silent(), Nameserver::with(OTHER));
    let gone = Port::keep();
    let served = Served::by(gone.address(), &[gone.address(), silent.address(), second.address()]);
    let client = served.client();
    let question = query(1, "a.example");
    assert_eq!(client.ask(&question), answer(&question, OTHER));
    await_that("the silent one to be asked", || silent.knows("a.example"));
    let mut stream = connect(served.address());
    send(&mut stream, &question);
    assert_eq!(read(&mut stream), Some(answer(&question, OTHER)));

    // From now on the silent one is asked last.
    let mut names = (0..).map(|number| format!("n{number}.example"));
    loop {
        let name = names.next().unwrap();
        let question = query(2, &name);
        assert_eq!(client.ask(&question), answer(&question, OTHER));
        if !silent.knows(&name) {
            break;
        }
    }
}

/// As the C library does with several nameservers in its resolv.conf.
#[test]
fn the_next_nameserver_is_asked_when_one_returns_an_error() {
    for failure in [SERVFAIL, 4, 5] {
        let first = Nameserver::start(move |asked| vec![fail(&asked.message, failure)]);
        let second = Nameserver::start(|asked| match asked.name.as_str() {
            "a.example" => vec![answer(&asked.message, OTHER)],
            _ => vec![fail(&asked.message, SERVFAIL)],
        });
        let served = Served::by(first.address(), &[first.address(), second.address()]);
        let client = served.client();
        let known = query(1, "a.example");
        assert_eq!(client.ask(&known), answer(&known, OTHER));
        // If none has an answer, the first one's error counts.
        let unknown = query(2, "b.example");
        assert_eq!(client.ask(&unknown), fail(&unknown, failure));
        let consul = query(3, "a.consul");
        assert_eq!(client.ask(&consul), fail(&consul, failure));
    }
}

#[test]
fn one_nameserver_is_enough_for_a_name_that_does_not_exist() {
    let nameserver = || Nameserver::start(|asked| vec![fail(&asked.message, NXDOMAIN)]);
    let both = [nameserver(), nameserver()];
    let served = Served::by(both[0].address(), &both.each_ref().map(Nameserver::address));
    // The other one is asked, too, if there is no answer for a second, but not each time.
    let is_enough = |name: &str| {
        let question = query(1, name);
        assert_eq!(served.client().ask(&question), fail(&question, NXDOMAIN));
        both.iter().filter(|nameserver| nameserver.knows(name)).count() == 1
    };
    let names = ["a", "b", "c", "d", "e"].map(|name| format!("{name}.example"));
    let asked = || both.each_ref().map(Nameserver::asked);
    assert!(names.iter().any(|name| is_enough(name)), "both are always asked: {:?}", asked());
}

#[test]
fn a_lost_datagram_is_sent_again() {
    let cluster = Nameserver::start(|asked| match asked.before {
        0 => vec![],
        _ => vec![answer(&asked.message, CLUSTER)],
    });
    let served = Served::by(cluster.address(), &[cluster.address()]);
    let question = query(1, "a.example");
    assert_eq!(served.client().ask(&question), answer(&question, CLUSTER));
}

#[test]
fn nameservers_are_read_again_when_the_file_changes() {
    let (first, second) = (Nameserver::with(CLUSTER), Nameserver::with(OTHER));
    let served = Served::by(first.address(), &[first.address()]);
    let question = query(1, "a.example");
    assert_eq!(served.client().ask(&question), answer(&question, CLUSTER));
    let changed = resolv_conf(&[second.address()]) + "# by the kubelet\n";
    served.pod.write("resolv.conf", &changed);
    assert_eq!(served.client().ask(&question), answer(&question, OTHER));
    // A file that can't be read changes nothing.
    served.pod.remove("resolv.conf");
    assert_eq!(served.client().ask(&question), answer(&question, OTHER));
}

#[test]
fn a_forged_answer_is_ignored() {
    const FORGED: [u8; 4] = [6, 6, 6, 6];
    let cluster = Nameserver::start(|asked| {
        let forged = answer(&asked.message, FORGED);
        // Correct, but from another address.
        let elsewhere = UdpSocket::bind("127.0.0.1:0").unwrap();
        let _ = elsewhere.send_to(&forged, asked.from);
        let mut other_id = forged.clone();
        other_id[1] ^= 1;
        let [high, low] = [asked.message[0], asked.message[1]];
        let other_name = answer(&query(u16::from_be_bytes([high, low]), "b.example"), FORGED);
        let mut no_answer = forged;
        no_answer[2] &= 0x7f;
        vec![other_id, other_name, no_answer, vec![], answer(&asked.message, CLUSTER)]
    });
    let served = Served::by(cluster.address(), &[cluster.address()]);
    let question = query(1, "a.example");
    assert_eq!(served.client().ask(&question), answer(&question, CLUSTER));
}

#[test]
fn each_query_has_its_own_port_and_id() {
    let cluster = Nameserver::with(CLUSTER);
    let served = Served::by(cluster.address(), &[cluster.address()]);
    let client = served.client();
    let question = query(7, "a.example");
    for _ in 0..20 {
        client.ask(&question);
    }
    let asked = cluster.asked();
    let ids: BTreeSet<_> = asked.iter().map(|asked| &asked.message[..2]).collect();
    let ports: BTreeSet<_> = asked.iter().map(|asked| asked.from.port()).collect();
    assert!(ids.len() > 10 && ports.len() > 10, "{ids:?} {ports:?}");
}

#[test]
fn malformed_queries_are_answered_with_an_error_or_ignored() {
    let cluster = Nameserver::with(CLUSTER);
    let served = Served::by(cluster.address(), &[cluster.address()]);
    let client = served.client();
    let good = query(9, "a.example");
    // No answer to these, so that two servers never answer each other in a loop.
    for noise in [&b""[..], b"x", &good[..11], &answer(&good, AGENT)] {
        client.send(noise);
    }
    assert_eq!(client.ask(&good), answer(&good, CLUSTER));
    let mut two = good.clone();
    two[5] = 2;
    let mut endless = good.clone();
    endless[12] = 0xc0;
    let mut none = good[..12].to_vec();
    none[5] = 0;
    let formerr = [0, 9, 0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0];
    for malformed in [&good[..20], &two, &endless, &none] {
        assert_eq!(client.ask(malformed), formerr);
    }
    let huge = [good.clone(), vec![0; 5000]].concat();
    assert_eq!(code(&client.ask(&huge)), 1);
    assert_eq!(without_repeated(cluster.asked()).len(), 1);

    let mut stream = connect(served.address());
    send(&mut stream, &two);
    assert_eq!(read(&mut stream).unwrap(), formerr);
    send(&mut stream, &good);
    assert_eq!(read(&mut stream), Some(answer(&good, CLUSTER)));
    // The connection is closed after a message that is not a query.
    for noise in [&b""[..], b"x", &answer(&good, AGENT), &huge] {
        let mut stream = connect(served.address());
        send(&mut stream, noise);
        assert_eq!(read(&mut stream), None);
    }
    assert_eq!(client.ask(&good), answer(&good, CLUSTER));
}

#[test]
fn in_a_flood_new_queries_evict_the_oldest() {
    const PLACES: u16 = 128;
    const MORE: u16 = 40;
    let cluster = Nameserver::start(|asked| match asked.name.as_str() {
        "slow.example" => vec![],
        _ => vec![answer(&asked.message, CLUSTER)],
    });
    let agent = Nameserver::with(AGENT);
    let served = Served::by(agent.address(), &[cluster.address()]);
    let flood = served.client();
    for id in 0..PLACES + MORE {
        flood.send(&query(id, "slow.example"));
    }
    // Other names are still answered. Each takes a place, too.
    let others = [("fast.example", CLUSTER), ("web.virtual.consul", AGENT)];
    for (name, address) in others {
        let question = query(1, name);
        assert_eq!(served.client().ask(&question), answer(&question, address));
    }
    // Before the first query of the flood is given up.
    let sockets = std::fs::read_dir(format!("/proc/{}/fd", served.sidecar.id())).unwrap().count();
    assert!(sockets < usize::from(PLACES) + 40, "{sockets}");

    let evicted = 0..MORE + u16::try_from(others.len()).unwrap();
    let mut oldest: Vec<_> = evicted.clone().map(|_| flood.receive()).collect();
    oldest.sort();
    let expected: Vec<_> = evicted.map(|id| fail(&query(id, "slow.example"), SERVFAIL)).collect();
    assert_eq!(oldest, expected);
}

#[test]
fn queries_on_one_connection_are_answered_in_order() {
    let cluster = Nameserver::with(CLUSTER);
    let served = Served::by(cluster.address(), &[cluster.address()]);
    let mut stream = connect(served.address());
    let queries: Vec<_> = (0..5).map(|id| query(id, &format!("n{id}.example"))).collect();
    for query in &queries {
        // Byte by byte, as TCP may deliver it.
        let length = u16::try_from(query.len()).unwrap().to_be_bytes();
        for byte in length.iter().chain(query) {
            stream.write_all(&[*byte]).unwrap();
        }
    }
    for query in &queries {
        assert_eq!(read(&mut stream), Some(answer(query, CLUSTER)));
    }
}

#[test]
fn a_new_connection_evicts_the_one_idle_longest() {
    const CONNECTIONS: u16 = 64;
    let cluster = Nameserver::with(CLUSTER);
    let served = Served::by(cluster.address(), &[cluster.address()]);
    let ask = |stream: &mut TcpStream, id| {
        let question = query(id, "a.example");
        send(stream, &question);
        assert_eq!(read(stream), Some(answer(&question, CLUSTER)), "{id}");
    };
    let mut streams: Vec<_> = (0..CONNECTIONS).map(|_| connect(served.address())).collect();
    for (stream, id) in streams.iter_mut().zip(0..) {
        ask(stream, id);
    }
    // The first connection is now the most recently used.
    ask(&mut streams[0], 100);
    let mut newcomer = connect(served.address());
    ask(&mut newcomer, 200);
    ask(&mut streams[0], 300);
    assert!(is_closed(&mut streams[1]), "the second one is closed");
    ask(&mut streams[2], 400);
}

#[test]
fn an_idle_connection_is_closed() {
    let cluster = Nameserver::with(CLUSTER);
    let served = Served::by(cluster.address(), &[cluster.address()]);
    let mut idle = connect(served.address());
    let mut half = connect(served.address());
    half.write_all(&[0, 40, 1]).unwrap();
    assert!(is_closed(&mut idle));
    assert!(is_closed(&mut half));
}

#[test]
fn dns_is_served_during_the_drain_and_does_not_delay_the_exit() {
    let cluster = Nameserver::start(|asked| match asked.name.as_str() {
        "slow.example" => vec![],
        _ => vec![answer(&asked.message, CLUSTER)],
    });
    let mut served = Served::by(cluster.address(), &[cluster.address()]);
    served.pod.envoy.has_connections(1);
    served.sidecar.signal(Signal::SIGTERM);
    served.pod.envoy.await_asked("GET /stats?usedonly");
    let question = query(1, "a.example");
    assert_eq!(served.client().ask(&question), answer(&question, CLUSTER));
    served.client().send(&query(2, "slow.example"));
    await_that("the query to be forwarded", || cluster.knows("slow.example"));
    let _stream = connect(served.address());
    served.pod.envoy.has_connections(0);
    assert_eq!(served.sidecar.end(), Some(0), "{}", served.sidecar.log());
}

#[test]
fn a_port_in_use_and_an_agent_without_an_ip_address_are_reported() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut sidecar = pod.run_with(&["--dns-port", &port]);
    assert_eq!(sidecar.end(), Some(1));
    sidecar.await_log(&format!("cannot serve DNS at 127.0.0.1:{port}: Address already in use"));
    sidecar.await_log("hint: set --dns-port to a port that nothing in the pod uses");

    let mut record = pod.record(&agent, pod.envoy.admin());
    record["agent"]["http_addr"] = "http://agent.example:8500".into();
    pod.write("registration.json", &record.to_string());
    let mut sidecar = pod.run_with(&["--dns-port", "1"]);
    assert_eq!(sidecar.end(), Some(64));
    sidecar.await_log("hint: give --consul-dns-addr as IP:PORT");
}
