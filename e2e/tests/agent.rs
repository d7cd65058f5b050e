//! The node's agent comes late, or loses everything: the pods stay in the mesh.

use e2e::document::{
    ECHO_CLIENT, ECHO_SERVER, HELLO, await_answer, await_passing, injected, started,
};
use e2e::kubelet::Pod;
use e2e::node::Node;
use e2e::parts::Parts;

/// Pain 5: a node's agent restarts, and all its registrations vanish.
#[test]
fn a_wiped_agent_has_its_registrations_back() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let agent = node.start_agent().unwrap();
    let _xds = node.start_xds().unwrap();
    let injector = node.start_injector().unwrap();
    let _server = started(&node, &injected(&node, &injector, ECHO_SERVER).unwrap()).unwrap();
    let client = started(&node, &injected(&node, &injector, ECHO_CLIENT).unwrap()).unwrap();
    await_answer(&client, HELLO).unwrap();

    // A development agent keeps its data in memory only.
    drop(agent);
    let _agent = node.start_agent().unwrap();
    for service in ["echo-server", "echo-client"] {
        await_passing(&node, service).unwrap();
    }
    await_answer(&client, HELLO).unwrap();
}

/// Pain 16: the init container fails at once when the agent is not there yet.
#[test]
fn an_agent_that_comes_late_is_waited_for() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let injector = node.start_injector().unwrap();
    let manifest = injected(&node, &injector, ECHO_SERVER).unwrap();
    let mut pod = Pod::create(&node, &manifest).unwrap();
    let (mut agent, mut xds) = (None, None);
    pod.start_with(|pod| {
        e2e::until("the init container to wait", || {
            pod.log("consul-connect-inject-init").contains("connection refused")
        })?;
        agent = Some(node.start_agent()?);
        xds = Some(node.start_xds()?);
        Ok(())
    })
    .unwrap();
    await_passing(&node, "echo-server").unwrap();
}
