//! The effect of intentions on new, pooled and open connections.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use harness::kubelet::Pod;
use harness::load::{self, KEPT_REQUEST, REQUEST};
use harness::until;
use serde_json::{Value, json};

use crate::mesh::{Mesh, ROUNDS, UPSTREAM, admin, await_heard, client, started, status};

/// How many responses according to the old intention a client may get after the server's
/// Envoy has the new one: pooled connections between the Envoys are closed after their next
/// response. Each worker thread of Envoy has a pool, and a sidecar has two threads.
const STALE: usize = 3;

/// Writes an intention, and waits until the server's Envoy has a listener with it.
fn intend_and_await(mesh: &Mesh, server: &Pod<'_>, source: &Value) {
    let updates = || admin(server, "/stats?filter=listener_manager.lds.update_success$");
    let before = updates();
    mesh.intend(source);
    until("Envoy to hear of the intention", || updates() != before).unwrap();
}

/// Repeats a request; at most [`STALE`] results may be old ones.
fn follow<T: PartialEq + std::fmt::Debug>(what: &str, new: &T, mut ask: impl FnMut() -> T) {
    let answers: Vec<T> = (0..STALE + ROUNDS).map(|_| ask()).collect();
    let stale = answers.iter().filter(|answer| *answer != new).count();
    println!("{what}: {stale} old answers");
    assert!(stale <= STALE, "{what}: {answers:?}");
}

/// Whether a request over a new connection succeeds.
fn is_answered(client: &Pod<'_>) -> bool {
    load::connect(&client.network(), UPSTREAM).and_then(load::get).is_ok()
}

/// The status of a request over a new connection.
fn status_over_new(client: &Pod<'_>) -> u16 {
    let mut stream = load::connect(&client.network(), UPSTREAM).unwrap();
    stream.write_all(REQUEST).unwrap();
    load::response(&stream).unwrap().0
}

/// The status of a request over a connection that stays open.
fn status_over_kept(mut stream: &TcpStream) -> u16 {
    stream.write_all(KEPT_REQUEST).unwrap();
    load::response(stream).unwrap().0
}

/// Envoy checks intentions when a TCP connection is opened. An open connection stays until
/// the listener that accepted it has been drained: after `--drain-time-s`, which the injector
/// sets to the sidecar's shutdown grace period, 20 s by default. Envoy's own default is 10
/// minutes.
#[test]
fn a_tcp_deny_rejects_new_connections_at_once_and_closes_open_ones_at_the_drain_time() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let (server, client) = (mesh.server("api-1"), mesh.client());
    await_heard(&client, &["api-1"]);
    let [mut used, mut idle] = [(); 2].map(|()| {
        let mut stream = load::connect(&client.network(), UPSTREAM).unwrap();
        stream.write_all(&REQUEST[..9]).unwrap();
        stream
    });

    intend_and_await(&mesh, &server, &json!({"Action": "deny"}));
    let denied = Instant::now();
    follow("deny", &false, || is_answered(&client));
    used.write_all(&REQUEST[9..]).unwrap();
    assert_eq!(load::answer(&used).unwrap(), "api-1");
    let end = idle.read_exact(&mut [0]).unwrap_err();
    println!("the open connection ended {:?} after the deny: {end}", denied.elapsed());
    assert!(matches!(end.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{end}");

    intend_and_await(&mesh, &server, &json!({"Action": "allow"}));
    follow("allow", &true, || is_answered(&client));
}

#[test]
fn a_deny_and_an_allow_reach_http_clients_within_three_requests() {
    reach_clients("http");
}

/// Over HTTP/2, all requests share one connection between the Envoys.
#[test]
fn a_deny_and_an_allow_reach_http2_clients_within_three_requests() {
    reach_clients("http2");
}

/// One client opens a connection for each request, the other keeps one. Each has its own
/// Envoy, which keeps connections to the server's Envoy in a pool.
fn reach_clients(protocol: &str) {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    mesh.speak(protocol);
    let [server, new] = mesh.application(&json!({}));
    let mut keeper = client(&json!({}));
    keeper["metadata"]["name"] = "web-2".into();
    let keeper = started(&mesh.node, &mesh.injector, &keeper);
    until("the second client's upstream", || status_over_new(&keeper) == 200).unwrap();
    let kept = load::connect(&keeper.network(), UPSTREAM).unwrap();
    assert_eq!(status_over_kept(&kept), 200);
    for (action, status) in [("deny", 403), ("allow", 200), ("deny", 403), ("allow", 200)] {
        intend_and_await(&mesh, &server, &json!({"Action": action}));
        follow(&format!("{action}, new connections"), &status, || status_over_new(&new));
        follow(&format!("{action}, a kept one"), &status, || status_over_kept(&kept));
    }
}

#[test]
fn permissions_of_http_requests_are_enforced_by_path_and_method() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    mesh.speak("http");
    mesh.intend(&json!({"Permissions": [
        {"Action": "deny", "HTTP": {"PathPrefix": "/admin"}},
        {"Action": "deny", "HTTP": {"PathPrefix": "/", "Methods": ["POST"]}},
        {"Action": "allow", "HTTP": {"PathPrefix": "/"}},
    ]}));
    let (_server, client) = (mesh.server("api-1"), mesh.client());
    await_heard(&client, &["api-1"]);
    for _ in 0..ROUNDS {
        assert_eq!(status(&client, "/", &[]), "200");
        assert_eq!(status(&client, "/admin/users", &[]), "403");
        assert_eq!(status(&client, "/", &["-X", "POST"]), "403");
    }
}
