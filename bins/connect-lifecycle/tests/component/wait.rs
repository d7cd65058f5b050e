//! A command that runs while the proxy runs, for Jobs.

use testkit::process::{Signal, await_that};
use testkit::{Port, Process, ScriptedAgent};

use crate::envoy::FakeEnvoy;
use crate::pod::{Pod, assert_nothing_left, await_alive};

const QUIT: &str = "POST /quitquitquit";

#[test]
fn the_command_starts_only_when_envoy_is_ready() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.envoy.is_ready(false);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("started");
    let mut job = pod.wait(&[], &["/bin/sh", "-c", &format!("echo > {}", file.display())]);
    await_that("several looks", || pod.envoy.asked().len() > 2);
    assert!(job.is_running());
    assert!(!file.exists());
    pod.envoy.is_ready(true);
    assert_eq!(job.end(), Some(0), "{}", job.log());
    assert!(file.exists());
    // Without --quit, Envoy keeps running.
    assert!(pod.envoy.asked().iter().all(|asked| asked.what == "GET /ready"));
}

#[test]
fn the_commands_exit_code_is_returned() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    for (script, code) in
        [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 128 + 9), ("kill -15 $$", 128 + 15)]
    {
        let mut job = pod.wait(&[], &["/bin/sh", "-c", script]);
        assert_eq!(job.end(), Some(code), "{script}: {}", job.log());
    }
}

#[test]
fn the_command_gets_its_arguments_and_signals() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    for (signal, name) in [
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGQUIT, "QUIT"),
        (Signal::SIGUSR1, "USR1"),
        (Signal::SIGUSR2, "USR2"),
        (Signal::SIGWINCH, "WINCH"),
    ] {
        // The shell prints nothing but `up`.
        // It polls until the pod is gone: `read` would miss a signal just before it.
        let script = r#"trap "exit 7" "$1"; test "$2" = "--quit" && echo up >&2
            while test -e "$3"; do sleep 0.01; done"#;
        let file = pod.path("registration.json");
        let mut job = pod.wait(&[], &["/bin/sh", "-c", script, "job", name, "--quit", &file]);
        job.await_log("up\n");
        job.signal(signal);
        assert_eq!(job.end(), Some(7), "{name}: {}", job.log());
    }
}

/// The sidecar exits with 0, and the pod is deregistered, whatever the command's exit code.
#[test]
fn the_sidecar_exits_after_the_command() {
    for code in [0, 7] {
        let agent = ScriptedAgent::start();
        let pod = Pod::of(&agent);
        let mut sidecar = pod.run();
        await_alive(&agent);
        let mut job = pod.wait(&["--quit"], &["/bin/sh", "-c", &format!("exit {code}")]);
        assert_eq!(job.end(), Some(code), "{}", job.log());
        job.await_log("told the sidecar to exit");
        assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
        assert!(pod.is_buried());
        assert_nothing_left(&agent);
        let mut asked: Vec<_> = pod.envoy.asked().into_iter().map(|asked| asked.what).collect();
        // The heartbeat also checks.
        asked.retain(|what| !what.starts_with("GET /stats") && what != "GET /certs");
        assert_eq!(asked, ["GET /ready", QUIT]);
    }
}

/// A sidecar alone would keep the pod running forever.
#[test]
fn the_sidecar_exits_if_the_command_cannot_be_started() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let mut sidecar = pod.run();
    await_alive(&agent);
    let mut job = pod.wait(&["--quit"], &["/nonexistent/job"]);
    assert_eq!(job.end(), Some(64), "{}", job.log());
    job.await_log("cannot start `/nonexistent/job`");
    assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    assert_nothing_left(&agent);
}

#[test]
fn it_gives_up_on_an_envoy_that_is_not_ready_at_the_deadline() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.envoy.is_ready(false);
    let mut job = pod.wait(&["--quit", "--timeout", "200ms"], &["/bin/true"]);
    assert_eq!(job.end(), Some(75), "{}", job.log());
    for words in [
        "Envoy was not ready within 200ms",
        "the command was not started",
        "PRE_INITIALIZING",
        "hint: it waits for its configuration from the agent's gRPC port",
    ] {
        job.await_log(words);
    }
    pod.envoy.await_asked(QUIT);
}

#[test]
fn sigterm_interrupts_the_wait() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.envoy.is_ready(false);
    let mut job = pod.wait(&[], &["/bin/true"]);
    pod.envoy.await_asked("GET /ready");
    job.signal(Signal::SIGTERM);
    assert_eq!(job.end(), Some(1), "{}", job.log());
    job.await_log("the command was not started");
}

/// The command's exit code decides whether the Job succeeded.
#[test]
fn a_missing_sidecar_does_not_change_the_commands_exit_code() {
    // Kept, so that no other test gets it.
    let port = Port::keep();
    let envoy = FakeEnvoy::start_at(&port);
    let file = tempfile::NamedTempFile::new().unwrap();
    let script = format!("while test -e {}; do sleep 0.01; done; exit 3", file.path().display());
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_connect-lifecycle"));
    program.env_clear().args(["wait", "--admin-bind", &port.address().to_string(), "--quit"]);
    program.args(["--", "/bin/sh", "-c", &script]);
    let mut job = Process::start(&mut program);
    envoy.await_asked("GET /ready");
    job.await_log("started /bin/sh");
    drop(envoy);
    drop(file);
    assert_eq!(job.end(), Some(3), "{}", job.log());
    job.await_log("cannot tell the sidecar to exit");
}

/// A Job that runs with and without a sidecar. Reported in
/// <https://github.com/linkerd/linkerd2/issues/8758>.
#[test]
fn the_command_starts_without_a_sidecar_with_go_on_without() {
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_connect-lifecycle"));
    program.env_clear().args(["wait", "--admin-bind", "127.0.0.1:1", "--quit"]);
    program.args(["--go-on-without", "50ms", "--", "/bin/sh", "-c", "exit 7"]);
    testkit::Outcome::of(program).code(7).says(&["no sidecar is running"]);
}

/// A sidecar that was pausing between two restarts.
#[test]
fn a_sidecar_that_starts_during_the_command_exits_after_it() {
    let port = Port::keep();
    let file = tempfile::NamedTempFile::new().unwrap();
    let script = format!("while test -e {}; do sleep 0.01; done; exit 3", file.path().display());
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_connect-lifecycle"));
    program.env_clear().args(["wait", "--admin-bind", &port.address().to_string(), "--quit"]);
    program.args(["--go-on-without", "50ms", "--", "/bin/sh", "-c", &script]);
    let mut job = Process::start(&mut program);
    job.await_log("started /bin/sh");
    let envoy = FakeEnvoy::start_at(&port);
    drop(file);
    assert_eq!(job.end(), Some(3), "{}", job.log());
    job.await_log("told the sidecar to exit");
    envoy.await_asked(QUIT);
}

/// Of a Job with two services.
#[test]
fn a_sidecar_exits_after_the_command_although_another_is_absent() {
    let nowhere = Port::keep();
    for is_absent_first in [false, true] {
        let envoy = FakeEnvoy::start();
        let mut admins = [envoy.admin().to_string(), nowhere.address().to_string()];
        if is_absent_first {
            admins.reverse();
        }
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_connect-lifecycle"));
        program.env_clear().args(["wait", "--admin-bind", &admins.join(","), "--quit"]);
        program.args(["--go-on-without", "50ms", "--", "/bin/sh", "-c", "exit 7"]);
        let outcome = testkit::Outcome::of(program).code(7).says(&["told the sidecar to exit"]);
        // Nothing is wrong with a Job that has no sidecar.
        assert!(!outcome.stderr().contains("cannot tell"), "{}", outcome.stderr());
        envoy.await_asked(QUIT);
    }
}

/// A Job of two services.
#[test]
fn all_sidecars_exit_after_the_command() {
    let agents = [ScriptedAgent::start(), ScriptedAgent::start()];
    let pods = [Pod::of(&agents[0]), Pod::of(&agents[1])];
    let mut sidecars = [pods[0].run(), pods[1].run()];
    agents.iter().for_each(await_alive);
    let admins = format!("{},{}", pods[0].envoy.admin(), pods[1].envoy.admin());
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_connect-lifecycle"));
    program.env_clear().args(["wait", "--admin-bind", &admins, "--quit", "--", "/bin/true"]);
    testkit::Outcome::of(program).code(0);
    for sidecar in &mut sidecars {
        assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
    }
}
