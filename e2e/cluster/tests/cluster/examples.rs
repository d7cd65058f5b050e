//! `examples/kubernetes`: each file works unchanged.

use std::path::Path;

use cluster::client::text;
use harness::until;

use crate::support::{is_injected, is_ready, sharing};

/// Text of an example.
fn example(file: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/kubernetes");
    std::fs::read_to_string(folder.join(file)).unwrap()
}

#[test]
fn every_example_works_unchanged() {
    let Some((cluster, _shared)) = sharing() else { return };
    let namespace = cluster.namespace("examples").unwrap();
    for file in ["two-pods.yaml", "statefulset.yaml", "metrics.yaml"] {
        namespace.apply(&example(file)).unwrap();
    }
    namespace.await_rollout("statefulset/db").unwrap();
    namespace.await_rollout("deployment/shop").unwrap();
    for pod in ["pod/greeter", "pod/greeter-client"] {
        namespace.await_condition(pod, "Ready").unwrap();
    }
    let pods = namespace.pods("").unwrap();
    assert_eq!(pods.len(), 5);
    assert!(pods.iter().all(|pod| is_injected(pod) && is_ready(pod)), "{pods:#?}");

    let curl = |url: &str| {
        let line = ["exec", "greeter-client", "-c", "greeter-client", "--", "curl", "-s", url];
        namespace.kubectl(&line)
    };
    let answered = until("the server to answer its client", || {
        curl("127.0.0.1:1234").is_ok_and(|answer| answer.contains("hello world"))
    });
    answered.unwrap();
    let shop = &namespace.pods("app=shop").unwrap()[0];
    let url = format!("{}:20200/metrics", text(&shop["status"]["podIP"]));
    let scraped =
        until("its metrics", || curl(&url).is_ok_and(|page| page.contains("envoy_server_live")));
    scraped.unwrap();

    namespace.apply(&example("job.yaml")).unwrap();
    namespace.await_condition("job/report", "Complete").unwrap();
}
