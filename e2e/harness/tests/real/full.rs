//! A full volume: nothing stays registered, and no file is incomplete.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use harness::node::Node;
use harness::parts::Parts;
use harness::runtime::volume;

fn file(path: &Path, bytes: usize) {
    File::create(path).unwrap().write_all(&vec![b'x'; bytes]).unwrap();
}

/// 64 KiB have room for a small helper and the bootstrap, unless there is another file.
#[test]
fn a_full_volume_leaves_nothing_registered() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let node = Node::new(parts).unwrap();
    let _agent = node.start_agent().unwrap();
    let folder = node.folder("full").unwrap();
    let _volume = volume::mount_in_memory(&folder, 64).unwrap();
    let etc = node.folder("etc").unwrap();
    let (small, large) = (etc.join("small"), etc.join("large"));
    file(&small, 100);
    file(&large, 100_000);
    let log = etc.join("termination-log");
    file(&log, 0);
    let init = |helper: &Path| {
        let args = [
            "--service=web:8080".to_owned(),
            "--pod-name=web-0".to_owned(),
            "--pod-ip=10.99.0.77".to_owned(),
            "--grpc-addr=10.99.0.1:8502".to_owned(),
            format!("--http-addr=http://{}:8500", node.ip()),
            format!("--dir={}", folder.display()),
            format!("--helper={}", helper.display()),
            format!("--termination-log={}", log.display()),
        ];
        let mut init = node.start(&node.parts().bins.join("connect-init"), &args).unwrap();
        (init.wait().unwrap().code(), init.output())
    };
    let names = || {
        let entries = std::fs::read_dir(&folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let services = || node.get("/v1/agent/services").unwrap().as_object().unwrap().len();

    // No room for the helper, which is copied while the pod is registered.
    let (code, output) = init(&large);
    assert_eq!(code, Some(73), "{output}");
    for words in ["cannot write", "connect-lifecycle", "hint: the volume is full"] {
        assert!(output.contains(words), "{words}: {output}");
        assert!(std::fs::read_to_string(&log).unwrap().contains(words), "{words}");
    }
    assert_eq!(services(), 0);
    assert_eq!(names(), ["envoy-bootstrap.json", "lock"]);
    std::fs::remove_file(folder.join("envoy-bootstrap.json")).unwrap();

    // No room for the bootstrap.
    file(&folder.join("filler"), 60 * 1024);
    let (code, output) = init(&small);
    assert_eq!(code, Some(73), "{output}");
    for words in ["envoy-bootstrap.json", "hint: the volume is full", "deregistered"] {
        assert!(output.contains(words), "{words}: {output}");
    }
    assert_eq!(services(), 0);
    assert_eq!(names(), ["connect-lifecycle", "filler", "lock"]);

    // With enough room, it succeeds.
    std::fs::remove_file(folder.join("filler")).unwrap();
    let (code, output) = init(&small);
    assert_eq!((code, services()), (Some(0), 2), "{output}");
}
