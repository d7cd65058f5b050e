//! Signals are forwarded, and orphans are reaped.

use std::process::Command;

use testkit::process::Signal;
use testkit::{Process, ScriptedAgent};

use crate::pod::Pod;

#[test]
fn the_command_gets_its_arguments_unchanged() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let script =
        r#"test "$#" = 3 && test "$1" = "a b" && test "$2" = --dir && test "$3" = "" && exit 9"#;
    let mut sidecar = pod.run_command(&[], &["/bin/sh", "-c", script, "envoy", "a b", "--dir", ""]);
    assert_eq!(sidecar.end(), Some(9), "{}", sidecar.log());
}

/// Envoy reopens its log files on SIGUSR1.
#[test]
fn signals_that_do_not_mean_exit_are_forwarded() {
    for (signal, name) in [
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGQUIT, "QUIT"),
        (Signal::SIGUSR1, "USR1"),
        (Signal::SIGUSR2, "USR2"),
        (Signal::SIGWINCH, "WINCH"),
    ] {
        let agent = ScriptedAgent::start();
        let pod = Pod::of(&agent);
        // It polls until the pod is gone: `read` would miss a signal just before it.
        let file = pod.path("registration.json");
        let script =
            format!("trap 'exit 7' {name}; echo up >&2; while test -e {file}; do sleep 0.01; done");
        let mut sidecar = pod.run_command(&[], &["/bin/sh", "-c", &script]);
        sidecar.await_log("up\n");
        sidecar.signal(signal);
        assert_eq!(sidecar.end(), Some(7), "{}", sidecar.log());
    }
}

/// As process 1 of a container it inherits the container's orphans.
#[test]
fn orphans_are_reaped() {
    const NAMESPACE: [&str; 5] = ["--user", "--map-root-user", "--pid", "--fork", "--kill-child"];
    let namespace = || {
        let mut command = Command::new("unshare");
        command.args(NAMESPACE);
        command
    };
    let made = namespace().arg("true").status();
    let made = made.map_err(|error| error.to_string()).and_then(|status| {
        let why = "`unshare` cannot make a PID namespace here, so there is no process 1";
        if status.success() { Ok(()) } else { Err(why.to_owned()) }
    });
    let Some(()) = testkit::or_skip(made) else { return };
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let run = pod.command("run", &["--log-level", "debug"]);
    // The middle process exits first, so that the inner one is reparented to process 1.
    let script = "sh -c 'sh -c \"exit 0\" &'; read code";
    let mut sidecar = Process::start(
        namespace()
            .arg(run.get_program())
            .args(run.get_args())
            .args(["--", "/bin/sh", "-c", script]),
    );
    sidecar.await_log("reaped an orphan");
    drop(sidecar.take_stdin());
    assert_eq!(sidecar.end(), Some(1), "{}", sidecar.log());
}
