//! What intentions do to new connections, pooled ones and open ones.

use std::io::Write;

use harness::kubelet::Pod;
use harness::load;
use harness::until;
use serde_json::json;

use crate::mesh::{Mesh, ROUNDS, UPSTREAM, await_heard, status};

/// Whether a request over a new connection is answered.
fn is_answered(client: &Pod<'_>) -> bool {
    load::connect(&client.network(), UPSTREAM).and_then(load::get).is_ok()
}

#[test]
fn a_tcp_deny_closes_new_connections_and_leaves_open_ones_to_their_drain() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let (_server, client) = (mesh.server("api-1"), mesh.client());
    await_heard(&client, &["api-1"]);
    let mut open = load::connect(&client.network(), UPSTREAM).unwrap();
    open.write_all(&load::REQUEST[..9]).unwrap();

    mesh.intend(&json!({"Action": "deny"}));
    until("the deny", || !is_answered(&client)).unwrap();
    assert!((0..ROUNDS).all(|_| !is_answered(&client)), "once denied, every time");
    open.write_all(&load::REQUEST[9..]).unwrap();
    assert_eq!(load::answer(&open).unwrap(), "api-1");

    mesh.intend(&json!({"Action": "allow"}));
    until("the allow", || is_answered(&client)).unwrap();
    assert!((0..ROUNDS).all(|_| is_answered(&client)), "once allowed, every time");
}

/// The client's Envoy keeps connections to the server's in a pool.
#[test]
fn a_deny_and_an_allow_reach_pooled_http_connections() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    mesh.speak("http");
    let (_server, client) = (mesh.server("api-1"), mesh.client());
    await_heard(&client, &["api-1"]);
    for (action, answer) in [("deny", "403"), ("allow", "200"), ("deny", "403")] {
        mesh.intend(&json!({"Action": action}));
        until(&format!("the {action}"), || status(&client, "/", &[]) == answer).unwrap();
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
