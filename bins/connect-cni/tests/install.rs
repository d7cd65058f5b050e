//! `install`, `ready` and `uninstall` on the directories of a node.

#![expect(clippy::unwrap_used, reason = "fixtures are tests, too: the panic is the report")]
#![expect(clippy::disallowed_methods, reason = "installers of networks write files like this")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::Process;
use testkit::process::{Signal, await_that};

const LIST: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"pods\",\n  \"plugins\": [\n    {\"type\": \"bridge\"}\n  ]\n}\n";
const ONE: &str = "{\"cniVersion\": \"0.4.0\", \"name\": \"pods\", \"type\": \"bridge\"}\n";

/// A node's directories.
struct Node {
    folder: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["net.d", "bin"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        for plugin in ["bridge", "ptp"] {
            fs::write(folder.path().join("bin").join(plugin), "").unwrap();
        }
        Self { folder }
    }

    fn net(&self, file: &str) -> PathBuf {
        self.folder.path().join("net.d").join(file)
    }

    fn bin(&self, plugin: &str) -> PathBuf {
        self.folder.path().join("bin").join(plugin)
    }

    fn binary(&self) -> PathBuf {
        self.bin("connect-cni")
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.net(file), text).unwrap();
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.net(file)).unwrap_or_default()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.net("")).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn command(&self, command: &str) -> Command {
        let mut process = Command::new(assert_cmd::cargo::cargo_bin!("connect-cni"));
        process.arg(command).env("CONNECT_TERMINATION_LOG", "");
        process.arg("--cni-net-dir").arg(self.net(""));
        process.arg("--cni-bin-dir").arg(self.bin(""));
        if command != "uninstall" {
            process.args(["--node-address", "10.0.0.1,fd00::1"]);
        }
        process
    }

    fn install(&self) -> Process {
        Process::start(&mut self.command("install"))
    }

    fn is_ready(&self) -> bool {
        self.command("ready").output().unwrap().status.success()
    }

    fn until_ready(&self) {
        await_that("ready", || self.is_ready());
    }
}

fn end(mut process: Process) {
    process.signal(Signal::SIGTERM);
    assert_eq!(process.end(), Some(0), "{}", process.log());
}

#[test]
fn the_entry_is_kept_in_the_list_in_use_until_sigterm() {
    let node = Node::new();
    node.write("10-pods.conflist", LIST);
    node.write("99-other.conflist", LIST);
    fs::set_permissions(node.net("10-pods.conflist"), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(!node.is_ready());
    let process = node.install();
    node.until_ready();
    let list = node.read("10-pods.conflist");
    assert!(list.contains(r#""nodeAddresses":["10.0.0.1","fd00::1"]"#), "{list}");
    assert_eq!(node.read("99-other.conflist"), LIST);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&node.net("10-pods.conflist")), 0o600);
    assert_eq!(mode(&node.binary()), 0o755);

    // The network's own installer writes the list again; another list comes first.
    node.write("10-pods.conflist", LIST);
    node.until_ready();
    node.write("05-first.conflist", LIST);
    node.until_ready();
    assert!(node.read("05-first.conflist").contains("connect-cni"));
    fs::remove_file(node.binary()).unwrap();
    node.until_ready();

    end(process);
    assert_eq!(node.names(), ["05-first.conflist", "10-pods.conflist", "99-other.conflist"]);
    for file in node.names() {
        assert_eq!(node.read(&file), LIST, "{file}");
    }
    assert!(!node.binary().exists());
}

#[test]
fn a_conf_file_becomes_a_list_and_is_restored() {
    let node = Node::new();
    node.write("10-pods.conf", ONE);
    node.write("10-pods.conflist", LIST);
    let process = node.install();
    node.until_ready();
    let list = "10-pods.conf-connect-cni.conflist";
    assert_eq!(node.names(), [list, "10-pods.conf.connect-cni", "10-pods.conflist"]);
    assert!(node.read(list).contains(ONE.trim()), "{}", node.read(list));
    let newer = ONE.replace("bridge", "ptp");
    node.write("10-pods.conf", &newer);
    await_that("rewritten", || {
        node.read(list).contains("ptp") && !node.net("10-pods.conf").exists()
    });
    end(process);
    assert_eq!(node.names(), ["10-pods.conf", "10-pods.conflist"]);
    assert_eq!((node.read("10-pods.conf"), node.read("10-pods.conflist")), (newer, LIST.into()));
}

#[test]
fn install_waits_for_a_network_and_logs_it() {
    let node = Node::new();
    let process = node.install();
    process.await_log("there is no network configuration");
    process.await_log("hint: if the node has a network, set connectInject.cni.cniNetDir");
    node.write("10-pods.conflist", &LIST[..20]);
    process.await_log("it is invalid");
    node.write("10-pods.conflist", LIST);
    node.until_ready();
    end(process);
    assert_eq!(node.read("10-pods.conflist"), LIST);
}

/// On k3s and GKE, for instance, the runtime looks for plugins in other directories than
/// most. With an entry whose binary it can't find, no new pod would get a network.
#[test]
fn nothing_is_installed_in_a_directory_without_the_networks_plugins() {
    for (file, text) in [("10-pods.conflist", LIST), ("10-pods.conf", ONE)] {
        let node = Node::new();
        fs::remove_file(node.bin("bridge")).unwrap();
        fs::create_dir(node.bin("bridge")).unwrap();
        node.write(file, text);
        let process = node.install();
        process.await_log("none of its plugins (bridge) is in ");
        process.await_log("hint: set connectInject.cni.cniBinDir");
        assert_eq!((node.names(), node.read(file)), (vec![file.to_owned()], text.to_owned()));
        assert!(!node.binary().exists());

        // The network's own installer writes its plugin later than its configuration. On
        // k3s it is a link to a directory that the container does not see.
        fs::remove_dir(node.bin("bridge")).unwrap();
        std::os::unix::fs::symlink("/var/lib/rancher/k3s/bin/cni", node.bin("bridge")).unwrap();
        node.until_ready();

        fs::remove_file(node.bin("bridge")).unwrap();
        let output = node.command("ready").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains("cniBinDir"), "{said}");
        end(process);
        assert_eq!((node.names(), node.read(file)), (vec![file.to_owned()], text.to_owned()));
    }
}

/// Runtimes can have several directories of plugins.
#[test]
fn one_of_the_networks_plugins_is_enough() {
    let node = Node::new();
    node.write("10-pods.conflist", &LIST.replace("{\"type\"", "{\"type\": \"own\"}, {\"type\""));
    let process = node.install();
    node.until_ready();
    end(process);
}

/// Azure's, Antrea's and kube-router's lists have this version.
#[test]
fn a_list_of_version_0_3_0_gets_the_entry() {
    let node = Node::new();
    node.write("10-pods.conflist", &LIST.replace("1.0.0", "0.3.0"));
    let process = node.install();
    node.until_ready();
    end(process);
}

/// The kubelet makes an event of the output, and counts equal events.
#[test]
fn a_failed_probe_leaves_the_termination_message_alone() {
    let node = Node::new();
    let message = node.folder.path().join("termination-log");
    fs::write(&message, "the installer's").unwrap();
    let mut ready = node.command("ready");
    ready.env("CONNECT_TERMINATION_LOG", &message);
    let (first, second) = (ready.output().unwrap(), ready.output().unwrap());
    assert_eq!(first.status.code(), Some(1));
    assert_eq!(first, second);
    assert_eq!(fs::read_to_string(&message).unwrap(), "the installer's");
}

#[test]
fn uninstall_skips_what_is_not_a_configuration() {
    let node = Node::new();
    node.write("50-pods.conflist", LIST);
    let process = node.install();
    node.until_ready();
    drop(process);
    let others = ["10-folder.conflist", "11-folder.conf-connect-cni.conflist", "12-x.connect-cni"];
    for folder in others {
        fs::create_dir(node.net(folder)).unwrap();
    }
    std::os::unix::fs::symlink("gone", node.net("20-dangling.conflist")).unwrap();
    fs::write(node.net("30-latin-1.conflist"), b"{\"name\": \"\xe9\"}").unwrap();
    let output = node.command("uninstall").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(node.read("50-pods.conflist"), LIST);
    assert_eq!(node.names().len(), 6);
    assert!(!node.binary().exists());
}

#[test]
fn a_plugin_that_is_an_array_is_not_the_entry() {
    let node = Node::new();
    let odd = LIST.replace("}\n  ]", "},\n    [\"connect-cni\"]\n  ]");
    node.write("10-pods.conflist", &odd);
    fs::write(node.binary(), "").unwrap();
    let output = node.command("ready").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let process = node.install();
    node.until_ready();
    end(process);
    assert_eq!(node.read("10-pods.conflist"), odd);
}

/// In a rollout with a surge, the new process starts before the old one ends.
#[test]
fn only_the_last_process_uninstalls() {
    let node = Node::new();
    node.write("10-pods.conflist", LIST);
    let old = node.install();
    old.await_log("installed connect-cni");
    let new = node.install();
    new.await_log("installed connect-cni");
    end(old);
    assert!(node.is_ready());
    end(new);
    assert_eq!(node.read("10-pods.conflist"), LIST);
    assert!(!node.binary().exists());
}

#[test]
fn a_killed_process_leaves_the_plugin_installed_and_uninstall_removes_it() {
    let node = Node::new();
    node.write("10-pods.conflist", LIST);
    let process = node.install();
    node.until_ready();
    drop(process);
    assert!(node.is_ready());
    fs::write(node.net(".whole-x.tmp"), "").unwrap();
    for _ in 0..2 {
        assert!(node.command("uninstall").status().unwrap().success());
        assert_eq!(node.names(), ["10-pods.conflist"]);
        assert_eq!(node.read("10-pods.conflist"), LIST);
        assert!(!node.binary().exists());
    }
}

/// Two releases differ in binary and entry, and neither may restore its own while the
/// other runs.
#[test]
fn the_process_that_started_last_wins_until_it_ends() {
    let node = Node::new();
    node.write("10-pods.conflist", LIST);
    let old = node.install();
    old.await_log("installed connect-cni");
    let generation = |text: &str| {
        let list: serde_json::Value = serde_json::from_str(text).unwrap();
        list["plugins"][1]["generation"].as_u64().unwrap()
    };
    let first = generation(&node.read("10-pods.conflist"));
    // What another release installs, whose clock is ahead.
    let release = node.folder.path().join("release");
    fs::write(&release, "#!/bin/sh").unwrap();
    fs::set_permissions(&release, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&release, node.binary()).unwrap();
    let ahead = first + 1000;
    let list = node.read("10-pods.conflist").replace(&first.to_string(), &ahead.to_string());
    node.write("10-pods.conflist", &list);
    old.await_log("left connect-cni to a process that was started later");
    // The old process may have restored its binary before it saw the entry.
    fs::write(node.binary(), "#!/bin/sh").unwrap();

    let new = node.install();
    new.await_log("installed connect-cni");
    assert_eq!(generation(&node.read("10-pods.conflist")), ahead + 1);
    let written = fs::metadata(node.binary()).unwrap();
    assert!(written.len() > 1000, "the new process replaces the binary");

    // A rollback ends the new process first: the old one installs its own release. The
    // new one, stopped, does not restore its binary before it ends.
    new.signal(Signal::SIGSTOP);
    fs::write(node.binary(), "#!/bin/sh").unwrap();
    new.signal(Signal::SIGTERM);
    new.signal(Signal::SIGCONT);
    await_that("the old entry", || generation(&node.read("10-pods.conflist")) == first);
    assert!(node.is_ready());
    let written = fs::metadata(node.binary()).unwrap();
    assert!(written.len() > 1000, "the old process replaces the binary");
    end(new);
    assert!(node.is_ready());

    // Or somebody removes the later entry.
    node.write("10-pods.conflist", LIST);
    node.until_ready();
    assert_eq!(generation(&node.read("10-pods.conflist")), first);
    end(old);
    assert_eq!(node.read("10-pods.conflist"), LIST);
}

/// Cilium restores its list as soon as another program changes it:
/// <https://github.com/cilium/cilium/issues/26760>.
#[test]
fn a_program_that_keeps_removing_the_entry_is_logged_and_not_raced() {
    let node = Node::new();
    node.write("10-pods.conflist", LIST);
    let process = node.install();
    let restored = std::cell::Cell::new(0);
    await_that("the warning", || {
        if node.read("10-pods.conflist") != LIST {
            node.write("10-pods.conflist", LIST);
            restored.set(restored.get() + 1);
        }
        process.log().contains("cni.exclusive=false")
    });
    assert!((10..=12).contains(&restored.get()), "{restored:?}");
    node.until_ready();
    end(process);
    assert_eq!(node.read("10-pods.conflist"), LIST);
}

/// A container goes on seeing a directory of the node that was removed, and never the one
/// that takes its place.
/// A mount; unmounted when dropped, because a directory that is one can't be removed.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = nix::mount::umount(&self.0);
    }
}

#[test]
fn install_fails_when_the_mounted_directory_was_removed() {
    let is_root = nix::unistd::Uid::effective().is_root();
    let root = is_root.then_some(()).ok_or_else(|| "mounting requires root".to_owned());
    if testkit::or_skip(root).is_none() {
        return;
    }
    std::thread::spawn(|| {
        use nix::mount::{MsFlags, mount};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
        let node = Node::new();
        node.write("10-pods.conflist", LIST);
        let original = node.folder.path().join("original");
        fs::rename(node.net(""), &original).unwrap();
        fs::create_dir(node.net("")).unwrap();
        mount(Some(&original), &node.net(""), nothing, MsFlags::MS_BIND, nothing).unwrap();
        let mounted = Mounted(node.net(""));
        let mut process = node.install();
        node.until_ready();
        fs::remove_dir_all(&original).unwrap();
        assert_eq!(process.end(), Some(1), "{}", process.log());
        process.await_log("net.d/ was removed");
        assert!(!node.is_ready());
        drop(mounted);
    })
    .join()
    .unwrap();
}
