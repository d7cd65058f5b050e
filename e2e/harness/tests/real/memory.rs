//! The image, run as in a pod: as its own user, with a read-only root, and with a memory
//! limit of 10 MiB, which includes the volume's files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use harness::node::Node;
use harness::node::acl::{Acls, METHOD};
use harness::parts::Parts;
use harness::runtime::cgroup::MemoryLimit;
use harness::runtime::container::{Mount, Spec};
use harness::runtime::image;
use harness::runtime::volume::{self, Volume};
use serde_json::json;

const LIMIT: u64 = 10 * 1024 * 1024;

/// More than any release binary of the pod.
const SHIPPED: u64 = 6_000_000;

/// Mount point of the shared directory in the pod's containers.
const SHARED: &str = "/consul/connect-inject";

/// The node and the limit, or `None` with a message; in CI, a failure.
fn needed() -> Option<(Node, MemoryLimit)> {
    let parts = Parts::find_or_skip()?;
    let helper = parts.bins.join("connect-lifecycle");
    let limit = if std::fs::metadata(helper).unwrap().len() > SHIPPED {
        Err("E2E_BIN_DIR has binaries that are not as they are shipped: scripts/build makes them"
            .into())
    } else {
        MemoryLimit::new(LIMIT)
    };
    let limit = testkit::or_skip(limit.map_err(|missing| missing.to_string()))?;
    Some((Node::new(parts).unwrap(), limit))
}

/// Runs the image's program with these flags and mounts. Returns the pod's volume.
fn run(node: &Node, limit: &MemoryLimit, flags: &[String], further: &[Mount]) -> Volume {
    let folder = node.folder("memory").unwrap();
    let shared = node.folder("memory/shared").unwrap();
    let volume = volume::mount_in_memory(&shared, 16 * 1024).unwrap();
    let image = node.image(image::INIT).unwrap();
    assert_ne!(image.user, 0);
    let mut mounts = image.mounts;
    mounts.push(Mount { source: shared, target: PathBuf::from(SHARED), writable: true });
    mounts.extend(further.iter().cloned());
    std::fs::create_dir_all(folder.join("root")).unwrap();
    let thread = nix::unistd::gettid();
    let spec = Spec {
        root: folder.join("root"),
        mounts,
        links: image.links,
        read_only_root: true,
        network: PathBuf::from(format!("/proc/{}/task/{thread}/ns/net", std::process::id())),
        command: image.entrypoint.iter().chain(flags).cloned().collect(),
        env: BTreeMap::new(),
        uid: image.user,
        gid: image.user,
        started: folder.join("started"),
        cgroup: Some(limit.entrance()),
    };
    let file = folder.join("spec.json");
    serde_json::to_writer(File::create(&file).unwrap(), &spec).unwrap();
    let args = ["run".to_owned(), file.to_string_lossy().into_owned()];
    let mut run = node.start(&node.parts().harness("pod-runtime"), &args).unwrap();
    let status = run.wait().unwrap();
    assert!(status.success(), "{status}\n{}", run.output());
    volume
}

fn flags(further: &[&str]) -> Vec<String> {
    let pod = [
        "--service=web:8080",
        "--pod-name=web-0",
        "--pod-ip=10.99.0.77",
        "--grpc-addr=10.99.0.1:8502",
        "--timeout=20s",
    ];
    pod.iter().chain(further).map(|&flag| flag.to_owned()).collect()
}

#[track_caller]
fn assert_done(shared: &Path, services: &[String], limit: &MemoryLimit, how: &str) {
    assert_eq!(services, ["default_web-0_web", "default_web-0_web-sidecar-proxy"]);
    for name in ["envoy-bootstrap.json", "registration.json", "connect-lifecycle"] {
        assert!(shared.join(name).is_file(), "{name}");
    }
    let peak = limit.peak().unwrap();
    assert!(peak > 0 && peak <= LIMIT, "{peak}");
    // Not `eprintln!`, which the test runner captures.
    let _ = writeln!(std::io::stderr(), "connect-init {how}: peak {} KiB of 10240", peak / 1024);
}

#[test]
fn the_image_does_its_whole_job_in_10_mib() {
    let Some((node, limit)) = needed() else { return };
    let _agent = node.start_agent().unwrap();
    let shared = run(&node, &limit, &flags(&["--http-addr=http://10.99.0.1:8500"]), &[]);
    let services = node.get("/v1/agent/services").unwrap();
    let services: Vec<String> = services.as_object().unwrap().keys().cloned().collect();
    assert_done(shared.path(), &services, &limit, "over http");
}

#[test]
fn the_image_does_its_whole_job_in_10_mib_over_https_with_a_login() {
    let Some((node, limit)) = needed() else { return };
    let folder = node.folder("tls").unwrap();
    let made = rcgen::generate_simple_self_signed([node.ip().to_owned()]).unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        path
    };
    let cert = file("agent.pem", &made.cert.pem());
    let key = file("agent-key.pem", &made.signing_key.serialize_pem());
    let settings = json!({
        "ports": {"https": 8501}, "ca_file": cert, "cert_file": cert, "key_file": key,
    });
    let (acls, _agent) = Acls::start_with(&node, &settings).unwrap();
    acls.have_method().unwrap();
    acls.bind("${value.account}").unwrap();
    let bearer = file("bearer", &acls.bearer_token("web", 600).unwrap());
    let mount = |source: PathBuf, target: &str| Mount {
        source,
        target: PathBuf::from(target),
        writable: false,
    };
    let flags = flags(&[
        "--http-addr=https://10.99.0.1:8501",
        "--ca-file=/etc/ca.pem",
        "--bearer-token-file=/etc/bearer",
        &format!("--acl-auth-method={METHOD}"),
    ]);
    let mounts = [mount(cert, "/etc/ca.pem"), mount(bearer, "/etc/bearer")];
    let shared = run(&node, &limit, &flags, &mounts);
    assert_eq!(acls.logins().unwrap().len(), 1);
    assert_done(shared.path(), &acls.services().unwrap(), &limit, "over https with a login");
}
