//! Three servers, whose leader dies while pods start and end.

use harness::node::Node;
use harness::node::consul::Agent;
use harness::parts::Parts;
use harness::process::{Process, run};
use harness::until;
use serde_json::json;

use crate::bare::{API, Bare};

const SERVERS: [&str; 3] = ["10.99.0.2", "10.99.0.3", "10.99.0.4"];

/// How many pods start before the leader dies, and how many after.
const PODS: usize = 8;

#[test]
fn pods_start_and_end_while_the_leader_of_three_servers_dies() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let settings = |name: &str| json!({"node_name": name, "bootstrap_expect": SERVERS.len(), "retry_join": SERVERS});
    node.start_server_with(&settings("server-0")).unwrap();
    let mut others: Vec<(&str, Process)> = Vec::new();
    for (number, address) in SERVERS.into_iter().enumerate().skip(1) {
        run("ip", &["addr", "add", &format!("{address}/24"), "dev", "pods"]).unwrap();
        let name = format!("server-{number}");
        let server = Agent { further: settings(&name), ..Agent::server(address) };
        let folder = node.folder(&name).unwrap();
        let server = server.start(&node.parts().consul, node.release(), &folder).unwrap();
        others.push((address, server));
    }
    let _agent = node.start_agent_with(&json!({"retry_join": SERVERS})).unwrap();
    let flags = ["--http-addr=http://10.99.0.1:8500", "--grpc-addr=10.99.0.1:8502"];
    let addresses: Vec<String> = (0..2 * PODS).map(|pod| format!("10.97.0.{}", pod + 1)).collect();
    let pods: Vec<Bare<'_>> = addresses
        .iter()
        .map(|ip| Bare { node: &node, service: API, ip, flags: flags.map(str::to_owned).to_vec() })
        .collect();
    let kill_leader = |others: &mut Vec<(&str, Process)>| {
        let mut leader = String::new();
        // There is none while a new one is elected.
        until("a leader", || {
            let answer = node.get("/v1/status/leader").unwrap_or_default();
            let address = answer.as_str().unwrap_or_default().split(':').next();
            leader = address.unwrap_or_default().to_owned();
            !leader.is_empty()
        })
        .unwrap();
        if leader == SERVERS[0] {
            node.kill_server();
        }
        others.retain(|(address, _)| *address != leader);
        leader
    };
    let all_end_well = |processes: Vec<Process>| {
        for mut process in processes {
            assert_eq!(process.wait().unwrap().code(), Some(0), "{}", process.output());
        }
    };

    let mut inits: Vec<_> = pods[..PODS].iter().map(|pod| pod.start_init(&[])).collect();
    let leader = kill_leader(&mut others);
    inits.extend(pods[PODS..].iter().map(|pod| pod.start_init(&[])));
    all_end_well(inits);
    let count = || {
        let found = node.get("/v1/catalog/service/api").unwrap_or_default();
        found.as_array().map(Vec::len)
    };
    until("all pods in the catalog", || count() == Some(2 * PODS)).unwrap();
    let another = node.get("/v1/status/leader").unwrap();
    assert!(!another.as_str().unwrap().starts_with(&leader), "{another}");

    all_end_well(pods.iter().map(Bare::start_deregister).collect());
    until("no pod in the catalog", || count() == Some(0)).unwrap();
    assert_eq!(node.get("/v1/agent/services").unwrap(), json!({}));
}
