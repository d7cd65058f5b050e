//! A command that runs while the proxy does, for Jobs (pain 11, 12).

use std::path::Path;

use testkit::ScriptedAgent;
use testkit::process::{Signal, await_that};

use crate::pod::{Pod, assert_nothing_left, await_alive};

const QUIT: &str = "POST /quitquitquit";

#[test]
fn the_command_starts_when_envoy_is_ready_and_not_before() {
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
    // It was not asked to end anything.
    assert!(pod.envoy.asked().iter().all(|asked| asked.what == "GET /ready"));
}

#[test]
fn the_commands_end_is_passed_on() {
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
        // Without a word more from the shell than `up`.
        let script = r#"trap "exit 7" "$1"; test "$2" = "--quit" && echo up >&2; read nothing"#;
        let mut job = pod.wait(&[], &["/bin/sh", "-c", script, "job", name, "--quit"]);
        job.await_log("up\n");
        job.signal(signal);
        assert_eq!(job.end(), Some(7), "{name}: {}", job.log());
    }
}

/// The sidecar ends with exit code 0, and nothing of the pod is left, however
/// the command ended.
#[test]
fn the_sidecar_ends_after_the_command() {
    for code in [0, 7] {
        let agent = ScriptedAgent::start();
        let pod = Pod::of(&agent);
        let mut sidecar = pod.run();
        await_alive(&agent);
        let mut job = pod.wait(&["--quit"], &["/bin/sh", "-c", &format!("exit {code}")]);
        assert_eq!(job.end(), Some(code), "{}", job.log());
        job.await_log("told the sidecar to end");
        assert_eq!(sidecar.end(), Some(0), "{}", sidecar.log());
        assert!(pod.is_buried());
        assert_nothing_left(&agent);
        let mut asked: Vec<_> = pod.envoy.asked().into_iter().map(|asked| asked.what).collect();
        // The heartbeat looks, too.
        asked.retain(|what| !what.starts_with("GET /stats"));
        assert_eq!(asked, ["GET /ready", QUIT]);
    }
}

/// A sidecar alone would keep the pod for ever.
#[test]
fn the_sidecar_ends_if_there_never_was_a_command() {
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
fn an_envoy_that_never_gets_ready_is_given_up_at_the_deadline() {
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
fn sigterm_ends_the_wait() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.envoy.is_ready(false);
    let mut job = pod.wait(&[], &["/bin/true"]);
    pod.envoy.await_asked("GET /ready");
    job.signal(Signal::SIGTERM);
    assert_eq!(job.end(), Some(1), "{}", job.log());
    job.await_log("the command was not started");
}

/// The command's exit code is what the Job is about.
#[test]
fn a_sidecar_that_is_gone_takes_nothing_from_the_commands_exit_code() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let file = tempfile::NamedTempFile::new().unwrap();
    let wait =
        |path: &Path| format!("while test -e {}; do sleep 0.01; done; exit 3", path.display());
    let mut job = pod.wait(&["--quit"], &["/bin/sh", "-c", &wait(file.path())]);
    pod.envoy.await_asked("GET /ready");
    job.await_log("started /bin/sh");
    drop(pod);
    drop(file);
    assert_eq!(job.end(), Some(3), "{}", job.log());
    job.await_log("cannot tell the sidecar to end");
}

/// A Job that runs with and without a sidecar. Reported in
/// <https://github.com/linkerd/linkerd2/issues/8758>.
#[test]
fn a_command_goes_on_without_a_sidecar_if_told_so() {
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_connect-lifecycle"));
    program.env_clear().args(["wait", "--admin-bind", "127.0.0.1:1", "--quit"]);
    program.args(["--go-on-without", "50ms", "--", "/bin/sh", "-c", "exit 7"]);
    testkit::Outcome::of(program).code(7).says(&["no sidecar runs"]);
}

/// A Job of two services.
#[test]
fn all_sidecars_end_after_the_command() {
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
