//! A directory or a helper that is invalid.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use testkit::{Route, ScriptedAgent};

use crate::pod::{HELPER, Pod, assert_nothing_left, assert_registered};

#[test]
fn a_folder_that_cannot_be_written_to_is_found_before_anything_is_sent() {
    // The second is a file.
    for folder in ["missing", "etc/helper"] {
        let agent = ScriptedAgent::start();
        let pod = Pod::of(&agent).in_folder(folder);
        pod.run().code(73).says(&["cannot write", folder, "hint:"]);
        assert!(agent.requests().is_empty());
    }
}

#[test]
fn a_folder_that_the_pods_user_may_not_write_to_is_found_before_anything_is_sent() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent).by_an_ordinary_user();
    pod.close_the_folder();
    pod.run().code(73).says(&[
        "cannot write",
        "Permission denied",
        "let the user that this runs as",
    ]);
    assert!(agent.requests().is_empty());
    let reported = pod.termination_log();
    assert!(reported.contains("cannot write") && reported.contains("hint:"), "{reported}");
    let elsewhere = pod.in_folder("missing");
    elsewhere.run().code(73).says(&["the directory does not exist"]);
    assert!(agent.requests().is_empty());
}

#[test]
fn a_missing_helper_is_found_before_anything_is_sent() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent).with_path("--helper", Path::new("/nonexistent/helper"));
    pod.run().code(64).says(&["/nonexistent/helper", "hint: name connect-lifecycle with --helper"]);
    assert!(agent.requests().is_empty());
    assert!(pod.files().is_empty());
}

#[test]
fn a_helper_that_cannot_be_copied_leaves_nothing_registered() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    // A directory can be opened, but not read.
    let pod = pod.with_path("--helper", &std::env::temp_dir());
    pod.run().code(73).says(&["cannot write", "connect-lifecycle", "directory", "hint:"]);
    assert_nothing_left(&agent);
    assert_eq!(pod.files().into_keys().collect::<Vec<_>>(), ["envoy-bootstrap.json", "lock"]);
}

#[test]
fn the_pod_is_registered_while_the_helper_is_copied() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let pipe = pod.pipe("slow-helper");
    let pod = pod.with_path("--helper", &pipe);
    // Both ends, so that neither side waits for the other to open it.
    let mut helper = File::options().read(true).write(true).open(&pipe).unwrap();
    let mut init = pod.start();
    init.await_log("wrote Envoy's bootstrap");
    let files = pod.files();
    assert!(!files.contains_key("connect-lifecycle") && !files.contains_key("registration.json"));
    helper.write_all(HELPER.as_bytes()).unwrap();
    drop(helper);
    assert_eq!(init.end(), Some(0), "{}", init.log());
    assert_eq!(std::fs::read_to_string(pod.shared("connect-lifecycle")).unwrap(), HELPER);
    assert_registered(&agent);
}

#[test]
fn a_token_file_that_cannot_be_read_is_found_before_anything_is_sent() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent).with_path("--token-file", Path::new("/nonexistent/token"));
    pod.run().code(64).says(&["/nonexistent/token", "CONSUL_HTTP_TOKEN_FILE"]);
    assert!(agent.requests().is_empty());
}

#[test]
fn a_file_that_cannot_be_written_leaves_nothing_registered() {
    for name in ["envoy-bootstrap.json", "registration.json"] {
        let agent = ScriptedAgent::start();
        let pod = Pod::of(&agent);
        // A directory in its place can't be replaced.
        std::fs::create_dir(pod.shared(name)).unwrap();
        pod.run().code(73).says(&["cannot write", name, "hint:"]);
        assert_eq!(agent.asked(Route::Register).len(), 2);
        assert_nothing_left(&agent);
        let files = pod.files();
        assert!(!files.keys().any(|name| name.starts_with('.')), "{files:?}");
    }
}
