//! A cluster whose node and pods only have IPv6 addresses.

use std::time::Duration;

use cluster::client::Cluster;
use cluster::parts::Parts;
use harness::process::Process;
use harness::until_within;

use crate::support::is_ours;

/// A cluster starts beside another one.
const PATIENCE: Duration = Duration::from_secs(300);

/// "too many colons in address". The tutorial works unchanged, without mentioning the address
/// family. Reported in <https://github.com/hashicorp/consul/issues/10291>.
#[test]
fn the_document_happens_on_a_cluster_of_ipv6() {
    if !Cluster::find_or_skip().is_some_and(is_ours) {
        return;
    }
    let Some(parts) = Parts::find_or_skip() else { return };
    let program = parts.common.harness("cluster");
    let folder = tempfile::tempdir().unwrap();
    let demo = ["run", &program.to_string_lossy(), "demo"];
    let family = [("CLUSTER_FAMILY", "ipv6")];
    let log = folder.path().join("log");
    let mut demo = Process::start("cluster run", log, &program, &demo, &family).unwrap();
    let mut ended = None;
    until_within(PATIENCE, "the end of the tutorial", || {
        ended = demo.ended().unwrap();
        ended.is_some()
    })
    .unwrap_or_else(|error| panic!("{error}: {}", demo.output()));
    let said = demo.output();
    assert!(ended.is_some_and(|status| status.success()), "{said}");
    // It really is the IPv6 cluster.
    assert!(said.contains("fd00:201::"), "{said}");
    assert!(!said.contains("10.200."), "{said}");
}
