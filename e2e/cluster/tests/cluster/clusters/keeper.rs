//! An interrupted cluster leaves nothing behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cluster::client::Cluster;
use cluster::parts::Parts;
use harness::process::Process;
use harness::{until, until_within};
use nix::sys::signal::Signal;

use crate::support::is_ours;

/// When the signal comes: while the cluster starts, or when its command runs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    Starting,
    Running,
}

#[test]
fn an_interrupted_cluster_leaves_nothing_behind() {
    if !Cluster::find_or_skip().is_some_and(is_ours) {
        return;
    }
    let Some(parts) = Parts::find_or_skip() else { return };
    let program = parts.common.harness("cluster");
    let settings = kernel_settings();
    // One after the other, because each needs the resources of a cluster.
    for (signal, when) in [
        (Signal::SIGINT, When::Starting),
        (Signal::SIGTERM, When::Starting),
        (Signal::SIGKILL, When::Running),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let line = "echo \"command: $$\"; exec sleep 1000000";
        // A shell lets background processes ignore SIGINT: this test may be one, and its
        // children inherit that.
        let cluster = program.to_string_lossy();
        let args = ["--default-signal=INT", "--", &cluster, "run", "sh", "-c", line];
        let log = folder.path().join("log");
        let env = Path::new("/usr/bin/env");
        let mut run = Process::start("cluster run", log, env, &args, &[]).unwrap();
        let name = format!("connect-cluster-run-{}", run.pid());
        // Another cluster runs at the same time, so this takes longer.
        let came = until_within(Duration::from_secs(300), &format!("{when:?}"), || {
            run.ended().is_ok_and(|ended| ended.is_some())
                || match when {
                    // By then the kubelet has created groups for pods.
                    When::Starting => {
                        groups(&name).iter().any(|group| group.join("kubepods").exists())
                    }
                    When::Running => run.output().contains("command: "),
                }
        });
        came.unwrap_or_else(|error| panic!("{error}: {}", run.output()));
        assert!(run.ended().unwrap().is_none(), "{}", run.output());
        let said = run.output();
        let command = said.lines().find_map(|line| line.strip_prefix("command: "));
        let place = std::env::temp_dir().join(&name);
        assert!(place.exists());

        run.signal(signal).unwrap();
        run.wait().unwrap();
        let mut left = Vec::new();
        until("nothing left", || {
            left = processes(&name);
            left.extend(
                command.filter(|id| Path::new("/proc").join(id).exists()).map(str::to_owned),
            );
            left.extend(groups(&name).iter().map(|group| group.display().to_string()));
            left.extend(place.exists().then(|| place.display().to_string()));
            left.extend(mounts(&name));
            left.is_empty()
        })
        .unwrap_or_else(|error| panic!("{signal} while {when:?}: {error}: {left:#?}"));
        assert_eq!(kernel_settings(), settings);
    }
}

/// The control groups of a cluster.
fn groups(name: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
    hierarchies.map(|each| each.path().join(name)).filter(|group| group.exists()).collect()
}

/// The processes with a cluster's name in their arguments, and those in its groups.
fn processes(name: &str) -> Vec<String> {
    let all = fs::read_dir("/proc").unwrap().flatten().map(|each| each.path());
    // A process that exits meanwhile has neither.
    let read = |path: &Path, file: &str| fs::read(path.join(file)).unwrap_or_default();
    let of_it = |path: &PathBuf| {
        ["cmdline", "cgroup"]
            .iter()
            .any(|file| String::from_utf8_lossy(&read(path, file)).contains(name))
    };
    all.filter(|path| path.join("cmdline").exists())
        .filter(of_it)
        .map(|path| {
            let command = String::from_utf8_lossy(&read(&path, "cmdline")).replace('\0', " ");
            format!("{}: {command}", path.display())
        })
        .collect()
}

fn mounts(name: &str) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    mounts.lines().filter(|line| line.contains(name)).map(str::to_owned).collect()
}

/// The kernel settings that a kubelet would change.
fn kernel_settings() -> Vec<String> {
    ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"]
        .map(|name| fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap())
        .into()
}
