//! The page on virtual machines, as it is written.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::cargo::cargo_bin;
use serde_json::json;

use crate::program::Files;
use crate::real_agent::{PATIENCE, RealAgent, free_ports, program_or_skip};

const PAGE: &str = include_str!("../../docs/virtual-machine.md");

fn blocks(language: &str) -> Vec<&'static str> {
    let begin = format!("```{language}\n");
    PAGE.split(begin.as_str()).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

/// A machine with what the page asks for.
struct Machine {
    agent: RealAgent,
    files: Files,
}

impl Machine {
    fn shell(&self, commands: &str) -> Command {
        let mut shell = Command::new("bash");
        shell.args(["-euxc", commands]).current_dir(self.files.folder()).env_clear();
        shell.env("PATH", format!("{}:/usr/bin:/bin", self.files.folder()));
        shell.env("CONSUL_HTTP_ADDR", &self.agent.http);
        shell
    }

    /// Runs commands, which have to succeed and to say this.
    fn run(&self, commands: &str, words: &[&str]) {
        let output = self.shell(commands).output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        for words in words {
            assert!(said.contains(words), "lacks {words}: {said}");
        }
    }

    /// Runs Envoy until it says on its administration port that it is the sidecar of `web`;
    /// false if it ends instead.
    fn runs_envoy(&self, start: &str, admin: u16) -> bool {
        let mut envoy = self.shell(&format!("exec {start} --disable-hot-restart"));
        let mut envoy = envoy.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let began = Instant::now();
        let runs = loop {
            let about = server_info(admin);
            if about.as_ref().is_ok_and(|about| about.contains("\"web-sidecar-proxy\"")) {
                break Ok(true);
            }
            if envoy.try_wait().unwrap().is_some() {
                break Ok(false);
            }
            if began.elapsed() > PATIENCE {
                break Err(about);
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        envoy.kill().unwrap();
        envoy.wait().unwrap();
        runs.unwrap_or_else(|about| panic!("not the sidecar of web: {about:?}"))
    }
}

/// What Envoy says of itself; it does not speak HTTP/1.0.
fn server_info(admin: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", admin))?;
    // Another process that has the port may never answer.
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    write!(stream, "GET /server_info HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn the_commands_of_the_virtual_machine_page_work_as_written() {
    let (Some(envoy), Some(agent)) = (program_or_skip("ENVOY_BIN"), RealAgent::start(&json!({})))
    else {
        return;
    };
    let machine = Machine { agent, files: Files::new() };
    let Machine { files, .. } = &machine;
    let programs = [("envoy", envoy.into()), ("connect-register", cargo_bin("connect-register"))];
    for (name, program) in programs {
        std::os::unix::fs::symlink(program, files.path(name)).unwrap();
    }
    let [definition] = blocks("hcl")[..] else { panic!("one definition") };
    files.add("web.hcl", definition);
    let [validate, register, bootstrap, deregister] = blocks("sh")[..] else { panic!("4 steps") };
    machine.run(validate, &["Valid: 1 service in 1 file"]);
    machine.run(register, &["Registered service: web", "web-sidecar-proxy", "db:5432 (0 healthy)"]);
    machine.run(bootstrap, &["configuration 'web-envoy.json' OK"]);

    // The unit's commands, with paths and an administration port of the test's own.
    let [unit] = blocks("ini")[..] else { panic!("one unit") };
    let of_unit = |key: &str| {
        let lines = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        lines.collect::<Vec<_>>().join("\n")
    };
    let here = |commands: &str, admin: u16| {
        commands.replace("/etc/connect/", "").replace("/run/web-envoy/", "").replace(
            "bootstrap --side",
            &format!("bootstrap --admin-bind 127.0.0.1:{admin} --side"),
        )
    };
    // A port that was free may be taken a moment later, so more than once.
    let runs = (0..5).any(|_| {
        let [admin] = free_ports();
        machine.run(&here(&of_unit("ExecStartPre"), admin), &["Registered service: web"]);
        machine.runs_envoy(&here(&of_unit("ExecStart"), admin), admin)
    });
    assert!(runs, "Envoy does not start");

    machine.run(deregister, &["Deregistered service: web"]);
}

/// The unit's commands themselves run under a supervisor or systemd only; a
/// variable that no program reads would go unnoticed there.
#[test]
fn the_systemd_units_set_only_variables_that_the_programs_read() {
    let references = [
        include_str!("../../../connect-init/README.md"),
        include_str!("../../../connect-lifecycle/README.md"),
    ];
    let unit = include_str!("../../../../examples/systemd/connect-sidecar@.service");
    let settings = include_str!("../../../../examples/systemd/web.env");
    let of_unit = unit.lines().filter_map(|line| line.strip_prefix("Environment="));
    let of_file = settings.lines().filter(|line| !line.starts_with('#'));
    let variables: Vec<&str> =
        of_unit.chain(of_file).filter_map(|line| line.split('=').next()).collect();
    assert!(variables.len() > 5, "{variables:?}");
    for variable in variables {
        let quoted = format!("`{variable}`");
        assert!(references.iter().any(|page| page.contains(&quoted)), "{variable}");
    }
}
