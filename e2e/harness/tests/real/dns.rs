//! The pod's DNS with a real agent: queries sent by the test, and by the C library with a
//! search list like the kubelet's.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;

use harness::node::Node;
use harness::parts::Parts;
use harness::process::{Process, run};
use harness::tutorial::await_passing;
use harness::{PATIENCE, process, until};
use serde_json::json;
use simple_dns::rdata::{A, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, ResourceRecord, TYPE};

use crate::bare::{API, Bare, await_xds};

/// Where the sidecar serves DNS: on the port that the C library uses, because there are no
/// redirect rules here.
const DNS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 53);

/// The cluster's DNS, with one name.
const CLUSTER: &str = "127.0.0.1:5353";
const KNOWN: &str = "known.default.svc.cluster.local";
const ITS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 7);

/// The first virtual address that Consul assigns.
const VIRTUAL: Ipv4Addr = Ipv4Addr::new(240, 0, 0, 1);

/// Response code and addresses of an answer.
type Answer = (RCODE, Vec<Ipv4Addr>);

#[test]
fn the_agent_answers_its_names_and_the_cluster_all_others_even_if_the_agent_is_down() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let further = json!({"ports": {"dns": 8600}});
    let agent = node.start_agent_with(&further).unwrap();
    start_cluster_dns();
    let (_application, mut sidecar) = start_sidecar(&node);

    let ip: Ipv4Addr = node.ip().parse().unwrap();
    // The servers assign the address once they have the proxy; the agent caches nothing.
    until("the virtual address", || by_udp("api.virtual.consul") == found(VIRTUAL)).unwrap();
    for (name, expected) in [
        ("api.virtual.consul", found(VIRTUAL)),
        ("API.Virtual.CONSUL", found(VIRTUAL)),
        ("api.service.consul", found(ip)),
        ("none.service.consul", (RCODE::NameError, vec![])),
        (KNOWN, found(ITS_ADDRESS)),
        ("api.virtual.consul.default.svc.cluster.local", (RCODE::NameError, vec![])),
    ] {
        assert_eq!(by_udp(name), expected, "{name}");
        assert_eq!(by_tcp(name), expected, "{name} by TCP");
    }
    let resolv_conf = node.folder("pod").unwrap().join("resolv.conf");
    let search = "search default.svc.cluster.local svc.cluster.local cluster.local";
    process::write(&resolv_conf, &format!("{search}\nnameserver 127.0.0.1\noptions ndots:5\n"))
        .unwrap();
    // The search list comes first: four labels are fewer than five dots.
    assert_eq!(by_c_library(&resolv_conf, "api.virtual.consul"), Some(VIRTUAL));
    assert_eq!(by_c_library(&resolv_conf, "known"), Some(ITS_ADDRESS));
    assert_eq!(by_c_library(&resolv_conf, "none.virtual.consul"), None);

    drop(agent);
    let refused = (RCODE::ServerFailure, vec![]);
    assert_eq!(by_udp("api.virtual.consul"), refused);
    assert_eq!(by_tcp("api.virtual.consul"), refused);
    assert_eq!(by_udp(KNOWN), found(ITS_ADDRESS));
    assert_eq!(by_c_library(&resolv_conf, "known"), Some(ITS_ADDRESS));
    assert_eq!(by_c_library(&resolv_conf, "api.virtual.consul"), None);
    sidecar.await_output("the agent's DNS does not answer").unwrap();

    let _agent = node.start_agent_with(&further).unwrap();
    until("the agent's DNS", || by_udp("api.virtual.consul") == found(VIRTUAL)).unwrap();
    sidecar.await_output("the agent's DNS answers again").unwrap();
}

/// A sidecar that serves DNS, and its application.
fn start_sidecar(node: &Node) -> (Process, Process) {
    let flags = vec![
        format!("--http-addr=http://{}:8500", node.ip()),
        format!("--grpc-addr={}:8502", node.ip()),
    ];
    let bare = Bare { node, service: API, ip: node.ip(), flags };
    let application = ["-text=api".to_owned(), "-listen=127.0.0.1:8080".to_owned()];
    let application = node.start(&node.parts().harness("http-echo"), &application).unwrap();
    let (code, log) = bare.init(&[]);
    assert_eq!(code, Some(0), "{log}");
    let file = node.folder("sidecar").unwrap().join("resolv.conf");
    let (ip, port) = CLUSTER.split_once(':').unwrap();
    process::write(&file, &format!("nameserver [{ip}]:{port}\n")).unwrap();
    let sidecar = bare.run_with(&["--dns-port=53", &format!("--resolv-conf={}", file.display())]);
    await_xds(19000, &sidecar);
    await_passing(node, "api").unwrap();
    (application, sidecar)
}

/// Starts a fake of the cluster's DNS in this thread's network namespace, until the tests
/// end.
fn start_cluster_dns() {
    let tcp = std::net::TcpListener::bind(CLUSTER).unwrap();
    let udp = UdpSocket::bind(CLUSTER).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&answer_of_cluster(&buffer[..length]), client);
        }
    });
    std::thread::spawn(move || {
        while let Ok((mut client, _)) = tcp.accept() {
            let query = read(&mut client);
            send(&mut client, &answer_of_cluster(&query));
        }
    });
}

fn answer_of_cluster(query: &[u8]) -> Vec<u8> {
    let query = Packet::parse(query).unwrap();
    let mut answer = query.clone().into_reply();
    let question = &query.questions[0];
    if question.qname.to_string() == KNOWN {
        if question.qtype == TYPE::A.into() {
            let data = RData::A(A { address: ITS_ADDRESS.into() });
            let record = ResourceRecord::new(question.qname.clone(), CLASS::IN, 0, data);
            answer.answers.push(record);
        }
    } else {
        *answer.rcode_mut() = RCODE::NameError;
    }
    answer.build_bytes_vec().unwrap()
}

fn found(address: Ipv4Addr) -> Answer {
    (RCODE::NoError, vec![address])
}

fn query(name: &str) -> Vec<u8> {
    let mut query = Packet::new_query(7);
    query.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(name).unwrap();
    query.questions.push(Question::new(name, TYPE::A.into(), CLASS::IN.into(), false));
    query.build_bytes_vec().unwrap()
}

fn read_answer(answer: &[u8]) -> Answer {
    let answer = Packet::parse(answer).unwrap();
    let addresses = answer.answers.iter().filter_map(|record| match &record.rdata {
        RData::A(found) => Some(found.address.into()),
        _ => None,
    });
    (answer.rcode(), addresses.collect())
}

fn by_udp(name: &str) -> Answer {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(DNS).unwrap();
    socket.send(&query(name)).unwrap();
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).unwrap();
    read_answer(&buffer[..length])
}

fn by_tcp(name: &str) -> Answer {
    let mut stream = TcpStream::connect(DNS).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    send(&mut stream, &query(name));
    read_answer(&read(&mut stream))
}

fn send(stream: &mut TcpStream, message: &[u8]) {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, message].concat()).unwrap();
}

fn read(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message).unwrap();
    message
}

/// The address that this machine's C library finds, with that file as its resolv.conf.
fn by_c_library(resolv_conf: &Path, name: &str) -> Option<Ipv4Addr> {
    let script = "mount --bind \"$1\" /etc/resolv.conf && exec getent ahostsv4 \"$2\"";
    let file = resolv_conf.to_string_lossy();
    let args = ["--mount", "sh", "-c", script, "sh", &file, name];
    let found = run("unshare", &args).ok()?;
    found.split_whitespace().next()?.parse().ok()
}
