//! ACL tokens that expire while their pods live.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use harness::node::Node;
use harness::node::acl::{Acls, METHOD};
use harness::parts::Parts;
use harness::process::run;
use harness::{until, until_within};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::json;

use crate::bare::{API, Bare, await_xds};

/// The shortest lifetime that Consul allows.
const TTL: Duration = Duration::from_secs(60);

/// With an expired token, Envoy gets no new intentions, so the sidecars replace the token
/// before. The server's Envoy reads the new token from a file; the client's, whose version
/// is not known, is restarted.
#[test]
fn a_deny_is_enforced_after_the_first_tokens_have_expired() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let (acls, _agent) = Acls::start(&node).unwrap();
    acls.have_method_with(&json!({"MaxTokenTTL": format!("{}s", TTL.as_secs())})).unwrap();
    acls.bind("${value.account}").unwrap();
    let configure = |entry: &serde_json::Value| {
        acls.ask(Method::PUT, "/v1/config", Some(entry)).unwrap();
    };
    let intend = |action: &str| {
        configure(&json!({"Kind": "service-intentions", "Name": "api", "Sources": [
            {"Name": "web", "Action": action},
        ]}));
    };
    configure(&json!({"Kind": "service-defaults", "Name": "api", "Protocol": "http"}));
    intend("allow");
    let folder = node.folder("bearers").unwrap();
    let bare = |service: &'static str, ip: &'static str, account: &str, further: &[&str]| {
        let file = folder.join(account);
        let token = acls.bearer_token(account, 3600).unwrap();
        File::create(&file).unwrap().write_all(token.as_bytes()).unwrap();
        let mut flags = vec![
            format!("--http-addr=http://{}:8500", node.ip()),
            format!("--grpc-addr={}:8502", node.ip()),
            format!("--acl-auth-method={METHOD}"),
            format!("--bearer-token-file={}", file.display()),
        ];
        flags.extend(further.iter().map(|&flag| flag.to_owned()));
        Bare { node: &node, service, ip, flags }
    };
    let application = ["-text=api".to_owned(), "-listen=127.0.0.1:8080".to_owned()];
    let _application = node.start(&node.parts().harness("http-echo"), &application).unwrap();
    let server = bare(API, node.ip(), "api", &["--envoy-version=1.40.0"]);
    let client = bare(
        "web",
        node.server_ip(),
        "web",
        &["--upstream=api:1234", "--admin-bind=127.0.0.1:19010"],
    );
    let start = |bare: &Bare<'_>, admin: u16| {
        let (code, log) = bare.init(&[]);
        assert_eq!(code, Some(0), "{log}");
        let sidecar = bare.run();
        await_xds(admin, &sidecar);
        sidecar
    };
    let (server, client) = (start(&server, 19000), start(&client, 19010));
    let is_answered_with = |expected: &str| {
        let what = ["-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:1234/"];
        run("curl", &what).is_ok_and(|status| status == expected)
    };
    until("an answer", || is_answered_with("200")).unwrap();

    let first = acls.accessors().unwrap();
    assert_eq!(first.len(), 2, "{first:?}");
    until_within(3 * TTL, "the end of the first tokens", || {
        acls.accessors().is_ok_and(|now| first.iter().all(|token| !now.contains(token)))
    })
    .unwrap();
    // 403 is the answer of the intention, not of a restart.
    intend("deny");
    until("the deny", || is_answered_with("403")).unwrap_or_else(|error| {
        panic!("{error}\n{}\n{}", server.output(), client.output());
    });
    for (admin, mut sidecar) in [(19000, server), (19010, client)] {
        await_xds(admin, &sidecar);
        sidecar.signal(Signal::SIGTERM).unwrap();
        assert_eq!(sidecar.wait().unwrap().code(), Some(0), "{}", sidecar.output());
    }
    assert_eq!(acls.logins().unwrap(), [""; 0]);
}
