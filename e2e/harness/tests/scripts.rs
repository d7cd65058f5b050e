//! How `scripts/tools` gets a part, and what `scripts/image` builds, with stand-ins for `go`,
//! `cargo`, `consul`, `apt-get` and `dpkg` on a `PATH` that otherwise has only basic commands.
//! Nothing is downloaded.

#![expect(clippy::unwrap_used, reason = "fixtures are tests, too: the panic is the report")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Basic commands that the scripts use.
const COMMANDS: [&str; 25] = [
    "basename",
    "bash",
    "cat",
    "chmod",
    "cp",
    "dirname",
    "env",
    "flock",
    "grep",
    "head",
    "id",
    "mkdir",
    "mktemp",
    "mv",
    "nice",
    "rm",
    "sed",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "tail",
    "tee",
    "uname",
    "wc",
];

/// Version of the fake Debian's Go.
const DEBIAN_GO: &str = "1.26.1";

/// A machine: its `PATH`, its home and our cache directory.
struct Machine {
    folder: TempDir,
}

// === impl Machine ===

impl Machine {
    /// A machine with that version of Go on the `PATH`, if any.
    fn new(go: Option<&str>) -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(machine.path("bin")).unwrap();
        for command in COMMANDS {
            let path = std::env::var_os("PATH").unwrap();
            let found = std::env::split_paths(&path).map(|folder| folder.join(command));
            let found = found.into_iter().find(|file| file.is_file());
            let found = found.unwrap_or_else(|| panic!("this machine has no {command}"));
            symlink(found, machine.path("bin").join(command)).unwrap();
        }
        if let Some(go) = go {
            machine.have("go", &machine.go(go));
        }
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts a command on the `PATH`.
    fn have(&self, name: &str, script: &str) {
        write(&self.path("bin").join(name), script);
    }

    /// A Consul of that version; `None`: one that fails.
    fn consul(&self, release: Option<&str>) -> String {
        let command = release.map_or("exit 1".to_owned(), |release| {
            format!("[ \"$*\" = version ]\necho 'Consul v{release}'\necho 'Revision 0123abcd'")
        });
        format!("#!{}\nset -e\n{command}\n", self.path("bin/sh").display())
    }

    /// A Go of that version. It logs what it builds, and its settings. It finds no modules
    /// while the file `offline` exists, and hangs on the program named in the file `stuck`.
    fn go(&self, release: &str) -> String {
        let (bash, folder) = (self.path("bin/bash"), self.folder.path());
        let (bash, folder) = (bash.display(), folder.display());
        format!(
            r#"#!{bash}
set -eu
case $1 in
  env)
    [ "$GOTOOLCHAIN" = local ]
    case $2 in
      GOVERSION) echo 'go{release}' ;;
      GOPROXY) echo 'https://modules.example.com' ;;
    esac
    ;;
  list)
    [ ! -e {folder}/offline ] || {{ echo 'dial tcp: lookup modules.example.com' >&2; exit 1; }}
    echo module
    ;;
  build)
    package=${{@: -1}}
    while [ "$1" != -o ]; do shift; done
    echo "${{package##*/}} by {release} GOENV=$GOENV GOPROXY=$GOPROXY GOFLAGS=$GOFLAGS" >> {folder}/built
    printf '#!{bash}\necho half\n' > "$2"
    chmod +x "$2"
    if [ "${{package##*/}}" = "$(cat {folder}/stuck 2>/dev/null)" ]; then
      : > {folder}/waits
      exec sleep infinity
    fi
    printf '#!{bash}\necho whole\n' > "$2"
    ;;
esac
"#
        )
    }

    /// Makes Debian's packages of Go and Consul available.
    fn have_debian(&self) {
        let (bash, folder) = (self.path("bin/bash"), self.folder.path());
        let (bash, folder) = (bash.display(), folder.display());
        write(&self.path("debian-go"), &self.go(DEBIAN_GO));
        write(&self.path("debian-consul"), &format!("#!{bash}\necho whole\n"));
        self.have(
            "apt-get",
            &format!(
                r#"#!{bash}
set -eu
case "$*" in
  indextargets*) echo 'https://packages.example.com' ;;
  *update) ;;
  *download*) for name in "${{@: -2}}"; do : > "$name"_1_all.deb; done ;;
  *) exit 1 ;;
esac
"#
            ),
        );
        self.have(
            "dpkg",
            &format!(
                r#"#!{bash}
set -eu
[ "$1" = -x ]
case $2 in
  */consul_*) program=usr/bin/consul ;;
  *) program=usr/lib/go-1.26/bin/go ;;
esac
mkdir -p "$3/${{program%/*}}"
cp {folder}/debian-"${{program##*/}}" "$3/$program"
"#
            ),
        );
    }

    fn command(&self, script: &str, variables: &[(&str, &str)]) -> Command {
        // A background process of a shell ignores SIGINT, and its children inherit that.
        let mut command = Command::new("/usr/bin/env");
        command
            .arg("--default-signal=INT,TERM")
            .arg(self.path("bin/bash"))
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
            .env_clear()
            .env("PATH", self.path("bin"))
            .env("HOME", self.path("home"))
            .env("CONNECT_CACHE", self.path("cache"))
            .envs(variables.iter().copied())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, script: &str, variables: &[(&str, &str)]) -> Ran {
        Ran::from(output(&mut self.command(script, variables)))
    }

    /// Runs `scripts/tools` for one part.
    fn get(&self, part: &str) -> Ran {
        self.run(&format!("scripts/tools {part}"), &[])
    }

    /// The programs that were built, each with the version and settings of Go.
    fn built(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("built")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    fn set(&self, name: &str, text: &str) {
        File::create(self.path(name)).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn unset(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }
}

/// Held while a program is written and while a process is started. A child that is forked
/// while the file is open has it open until `exec`, and meanwhile running the written
/// program fails with `ETXTBSY`.
static PROGRAMS: Mutex<()> = Mutex::new(());

fn start(command: &mut Command) -> Child {
    let _held = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    command.spawn().unwrap()
}

fn output(command: &mut Command) -> Output {
    start(command.stdout(Stdio::piped()).stderr(Stdio::piped())).wait_with_output().unwrap()
}

fn write(program: &Path, script: &str) {
    let _held = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    File::create(program).unwrap().write_all(script.as_bytes()).unwrap();
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A script's output, and whether it succeeded.
struct Ran {
    good: bool,
    assignments: String,
    said: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_owned()).unwrap();
        Self {
            good: output.status.success(),
            assignments: text(&output.stdout).trim_end().to_owned(),
            said: text(&output.stderr),
        }
    }
}

impl Ran {
    /// The program in the only assignment that the script printed.
    #[track_caller]
    fn program(&self, variable: &str) -> PathBuf {
        assert!(self.good, "{}", self.said);
        let value = self.assignments.strip_prefix(&format!("export {variable}="));
        PathBuf::from(value.unwrap_or_else(|| panic!("{}", self.assignments)))
    }

    /// Asserts that the script failed with these words, and printed no assignment.
    #[track_caller]
    fn is_refused_with(&self, words: &[&str]) {
        assert!(!self.good && self.assignments.is_empty(), "{}", self.said);
        for word in words {
            assert!(self.said.contains(word), "`{word}` is not in: {}", self.said);
        }
    }
}

/// Asserts that the built program is complete.
#[track_caller]
fn assert_whole(program: &Path) {
    let output = output(&mut Command::new(program));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "whole\n");
}

#[test]
fn a_program_named_by_a_variable_is_used_unchecked() {
    let machine = Machine::new(Some("1.26.0"));
    let own = machine.path("own-consul");
    write(&own, &machine.consul(Some("1.99.0")));
    let variables = [("CONSUL_BIN", own.to_str().unwrap())];
    assert_eq!(machine.run("scripts/tools consul", &variables).program("CONSUL_BIN"), own);
    let none = [("CONSUL_BIN", "/nowhere/consul")];
    machine
        .run("scripts/tools consul", &none)
        .is_refused_with(&["CONSUL_BIN is /nowhere/consul", "hint: "]);
    assert_eq!(machine.built(), [""; 0]);
}

#[test]
fn a_consul_on_the_path_is_used_only_if_its_version_fits() {
    for (part, variable, release, fits) in [
        ("consul", "CONSUL_BIN", Some("1.14.11"), true),
        ("consul", "CONSUL_BIN", Some("1.14.3"), true),
        ("consul", "CONSUL_BIN", Some("1.12.9"), false),
        ("consul", "CONSUL_BIN", Some("1.15.0"), false),
        ("consul", "CONSUL_BIN", Some("1.140.0"), false),
        ("consul", "CONSUL_BIN", None, false),
        ("consul-oldest", "CONSUL_OLDEST_BIN", Some("1.12.2"), true),
        ("consul-oldest", "CONSUL_OLDEST_BIN", Some("1.14.11"), false),
        ("consul-outdated", "CONSUL_OUTDATED_BIN", Some("1.11.11"), true),
        ("consul-1.8", "CONSUL_1_8_BIN", Some("1.8.7+dfsg1"), true),
    ] {
        let machine = Machine::new(Some("1.26.0"));
        machine.have("consul", &machine.consul(release));
        let ran = machine.get(part);
        let program = ran.program(variable);
        if fits {
            assert_eq!(program, machine.path("bin/consul"), "{release:?}");
            assert!(ran.said.contains(release.unwrap()), "{}", ran.said);
            assert_eq!(machine.built(), [""; 0], "{release:?}");
        } else {
            assert!(program.starts_with(machine.path("cache")), "{release:?}: {program:?}");
            assert_whole(&program);
            assert_eq!(machine.built().len(), 1, "{release:?}");
        }
    }
}

#[test]
fn a_part_of_a_debian_package_is_unpacked_once() {
    let machine = Machine::new(None);
    machine.get("consul-1.8").is_refused_with(&["apt-get", "hint: set CONSUL_1_8_BIN to"]);
    machine.have_debian();
    machine.have("consul", &machine.consul(Some("1.14.11")));
    let program = machine.get("consul-1.8").program("CONSUL_1_8_BIN");
    assert!(program.starts_with(machine.path("cache")), "{program:?}");
    assert_whole(&program);
    machine.unset("bin/apt-get");
    assert_eq!(machine.get("consul-1.8").program("CONSUL_1_8_BIN"), program);
}

/// It set `SOURCE_DATE_EPOCH`, the commit's time, for the builds, too. So after each commit, and
/// after each `scripts/build`, all crates with C code and those that depend on them were built
/// again.
#[test]
fn an_image_is_made_of_what_a_build_has_built() {
    let machine = Machine::new(None);
    let (bash, folder) = (machine.path("bin/bash"), machine.folder.path());
    let (bash, folder) = (bash.display(), folder.display());
    for tool in ["buildah", "cc", "date", "python3", "rustc", "timeout"] {
        machine.have(tool, &format!("#!{bash}\n"));
    }
    machine.have("git", &format!("#!{bash}\necho 1700000000\n"));
    let seen = format!("echo \"$* ${{SOURCE_DATE_EPOCH-unset}}\" >> {folder}/built");
    machine.have("cargo", &format!("#!{bash}\n{seen}\nexit 1\n"));
    for script in ["scripts/build", "scripts/image"] {
        let ran = machine.run(script, &[("CONNECT_LIBC", "gnu")]);
        assert!(!ran.good && machine.built().len() == 1, "{}", ran.said);
        let built = machine.built().pop().unwrap_or_default();
        assert!(built.starts_with("build ") && built.ends_with(" unset"), "{script}: {built}");
        machine.unset("built");
    }
}

/// The last script that builds removes Go's caches; the program stays.
#[test]
fn a_consul_is_built_once_and_nothing_else_is_left() {
    let machine = Machine::new(Some("1.26.0"));
    let program = machine.get("consul").program("CONSUL_BIN");
    assert_eq!(machine.get("consul").program("CONSUL_BIN"), program);
    assert_eq!(machine.built().len(), 1);
    let folder = program.parent().unwrap();
    let mut left: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["consul", "lock"]);
    let mut left: Vec<_> =
        fs::read_dir(machine.path("cache")).unwrap().map(|entry| entry.unwrap().path()).collect();
    left.sort();
    assert_eq!(left, [folder, &machine.path("cache/go")]);
    assert!(!machine.path("home").exists());
}

/// Of the user's `go env -w`, only the source of modules applies.
#[test]
fn the_users_go_settings_do_not_affect_a_build() {
    let machine = Machine::new(Some("1.26.0"));
    machine
        .run("scripts/tools consul", &[("GOFLAGS", "-mod=mod -tags=theirs"), ("GOOS", "plan9")])
        .program("CONSUL_BIN");
    let built = machine.built();
    for word in ["GOENV=off", "GOPROXY=https://modules.example.com", "GOFLAGS=-mod=readonly "] {
        assert!(built[0].contains(word), "{built:?}");
    }
    assert!(!built[0].contains("theirs"), "{built:?}");
}

#[test]
fn a_go_that_is_too_old_or_missing_is_replaced_by_debians() {
    for (go, why) in
        [(Some("1.19.8"), "is 1.19.8"), (Some("1.9"), "is 1.9"), (None, "the PATH has no Go")]
    {
        let machine = Machine::new(go);
        machine.have_debian();
        let ran = machine.get("consul");
        assert_whole(&ran.program("CONSUL_BIN"));
        assert!(ran.said.contains(why) && ran.said.contains("Debian's archive"), "{}", ran.said);
        assert!(machine.built()[0].starts_with(&format!("consul by {DEBIAN_GO} ")));
    }
}

#[test]
fn a_go_that_is_new_enough_is_used() {
    for go in ["1.24.0", "1.26.8", "1.100.1"] {
        let machine = Machine::new(Some(go));
        machine.have_debian();
        machine.get("consul").program("CONSUL_BIN");
        assert!(machine.built()[0].starts_with(&format!("consul by {go} ")));
    }
}

#[test]
fn without_go_and_debian_the_script_says_which_go_to_install() {
    for go in [Some("1.19.8"), None] {
        let machine = Machine::new(go);
        machine.get("consul").is_refused_with(&["no apt-get", "hint: install Go 1.24.0 or newer"]);
    }
}

#[test]
fn without_a_network_the_script_says_so_and_continues_later() {
    let machine = Machine::new(Some("1.26.0"));
    machine.set("offline", "");
    machine.get("consul").is_refused_with(&[
        "lookup modules.example.com",
        "cannot fetch the sources of consul",
        "hint: check that Go reaches where it gets modules",
    ]);
    assert_eq!(machine.built(), [""; 0]);
    machine.unset("offline");
    assert_whole(&machine.get("consul").program("CONSUL_BIN"));
}

/// Of a part with several programs, complete programs are kept, and the incomplete one is
/// built again.
#[test]
fn an_interrupted_build_continues_where_it_stopped() {
    const BUILD: &str = ". scripts/go-parts.sh; build_part kubernetes-1.34; echo \"$built\"";
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let machine = Machine::new(Some("1.26.0"));
        machine.set("stuck", "kube-controller-manager");
        let mut run = machine.command(BUILD, &[]);
        run.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mut run = Group(start(&mut run));
        harness::until("the build that does not end", || machine.path("waits").exists()).unwrap();
        run.signal(signal);
        assert!(!run.0.wait().unwrap().success());
        let programs = |built: &[String]| -> Vec<String> {
            built.iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
        };
        assert_eq!(programs(&machine.built()), ["kube-apiserver", "kube-controller-manager"]);

        machine.unset("stuck");
        let ran = machine.run(BUILD, &[]);
        assert!(ran.good, "{}", ran.said);
        let all =
            ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet"];
        let mut now = programs(&machine.built()[2..]);
        now.sort();
        assert_eq!(now, all[1..], "{signal}");
        for program in all {
            assert_whole(&Path::new(&ran.assignments).join(program));
        }
    }
}

/// A script and its child processes.
struct Group(Child);

impl Group {
    fn signal(&self, signal: Signal) {
        killpg(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = killpg(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}
