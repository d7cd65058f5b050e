//! A pod's init container, run as often as a test likes.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use testkit::{Outcome, Process, ScriptedAgent};

/// The id of the pod's service.
pub(crate) const SERVICE: &str = "shop_web-0_web";
/// The id of its sidecar proxy.
pub(crate) const PROXY: &str = "shop_web-0_web-sidecar-proxy";
/// What stands in for the lifecycle helper.
pub(crate) const HELPER: &str = "#!/bin/sh\n# the lifecycle helper\n";

/// The pod `web-0` with the service `web`.
pub(crate) struct Pod {
    folder: TempDir,
    flags: Vec<(&'static str, String)>,
    switches: Vec<&'static str>,
    variables: Vec<(&'static str, String)>,
    program: PathBuf,
    user: Option<u32>,
}

impl Pod {
    /// A pod on the node of that agent. Its directory is empty.
    pub(crate) fn of(agent: &ScriptedAgent) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["shared", "etc"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let pod = Self {
            folder,
            flags: Vec::new(),
            switches: Vec::new(),
            variables: Vec::new(),
            program: env!("CARGO_BIN_EXE_connect-init").into(),
            user: None,
        };
        let helper = pod.file("helper", HELPER);
        let termination_log = pod.file("termination-log", "");
        pod.with("--service", "web:8080")
            .with("--pod-name", "web-0")
            .with("--pod-namespace", "shop")
            .with("--pod-ip", "10.0.0.7")
            .with("--node-name", "n1")
            .with("--http-addr", agent.address())
            .with("--grpc-addr", "127.0.0.1:8502")
            .with("--timeout", "1m")
            .with_path("--helper", &helper)
            .with_path("--termination-log", &termination_log)
            .in_folder("shared")
    }

    /// A flag, in the place of one of that name.
    pub(crate) fn with(self, flag: &'static str, value: impl Into<String>) -> Self {
        self.without(flag).and(flag, value)
    }

    /// A flag, besides those of that name.
    pub(crate) fn and(mut self, flag: &'static str, value: impl Into<String>) -> Self {
        self.flags.push((flag, value.into()));
        self
    }

    pub(crate) fn without(mut self, flag: &str) -> Self {
        self.flags.retain(|(name, _)| *name != flag);
        self
    }

    pub(crate) fn with_path(self, flag: &'static str, path: &Path) -> Self {
        self.with(flag, path.to_str().unwrap())
    }

    /// A flag without a value.
    pub(crate) fn switch(mut self, flag: &'static str) -> Self {
        self.switches.push(flag);
        self
    }

    /// An environment variable in the place of a flag.
    pub(crate) fn by_env(mut self, flag: &str, variable: &'static str) -> Self {
        let place = self.flags.iter().position(|(name, _)| *name == flag).unwrap();
        let (_, value) = self.flags.remove(place);
        self.variables.push((variable, value));
        self
    }

    pub(crate) fn with_env(mut self, variable: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((variable, value.into()));
        self
    }

    /// Run by a user who may not do everything, as in a pod; by whoever runs
    /// the tests, if that is one.
    pub(crate) fn by_an_ordinary_user(mut self) -> Self {
        if !nix::unistd::Uid::effective().is_root() {
            return self;
        }
        let open = |path: &Path| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        open(self.folder.path());
        // The directory of the build may be closed to others.
        let copy = self.folder.path().join("etc/connect-init");
        // By another process: one that another test starts meanwhile would inherit the open file,
        // and the copy could not be run ("text file busy").
        let copied = Command::new("cp").args([&self.program, &copy]).status().unwrap();
        assert!(copied.success());
        open(&copy);
        let log = self.folder.path().join("etc/termination-log");
        std::fs::set_permissions(log, std::fs::Permissions::from_mode(0o666)).unwrap();
        self.program = copy;
        self.user = Some(5995);
        self
    }

    /// Lets the shared directory be one that the user may only look into.
    pub(crate) fn close_the_folder(&self) {
        std::fs::set_permissions(self.shared(""), std::fs::Permissions::from_mode(0o555)).unwrap();
    }

    /// With the shared directory at that place in the pod's own.
    pub(crate) fn in_folder(self, name: &str) -> Self {
        let folder = self.folder.path().join(name);
        self.with_path("--dir", &folder)
    }

    /// Makes a file of the init container's, outside the shared directory.
    #[expect(clippy::disallowed_methods, reason = "nobody reads it meanwhile")]
    pub(crate) fn file(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.folder.path().join("etc").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, contents).unwrap();
        path
    }

    /// Makes a named pipe of the init container's.
    pub(crate) fn pipe(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join("etc").join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path
    }

    /// The path of a file in the shared directory.
    pub(crate) fn shared(&self, name: &str) -> PathBuf {
        self.folder.path().join("shared").join(name)
    }

    /// The ACL token that the pod has.
    pub(crate) fn token(&self) -> String {
        std::fs::read_to_string(self.shared("acl-token")).unwrap()
    }

    /// A file of the shared directory, as JSON.
    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.shared(name)).unwrap()).unwrap()
    }

    /// Writes a file of the shared directory again.
    #[expect(clippy::disallowed_methods, reason = "nobody reads it meanwhile")]
    pub(crate) fn replace(&self, name: &str, contents: &str) {
        std::fs::write(self.shared(name), contents).unwrap();
    }

    /// The files of the shared directory with their modes.
    pub(crate) fn files(&self) -> BTreeMap<String, u32> {
        let entries = std::fs::read_dir(self.shared("")).unwrap().map(Result::unwrap);
        entries
            .map(|entry| {
                let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
                (entry.file_name().into_string().unwrap(), mode)
            })
            .collect()
    }

    /// Runs the init container to its end.
    pub(crate) fn run(&self) -> Outcome {
        Outcome::of(self.command())
    }

    /// Runs it to its end while nobody reads what it prints.
    pub(crate) fn run_unread(&self) -> Outcome {
        Outcome::unread(self.command())
    }

    /// What the pod's termination log says.
    pub(crate) fn termination_log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("etc/termination-log")).unwrap()
    }

    /// Starts the init container.
    pub(crate) fn start(&self) -> Process {
        Process::start(&mut self.command())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command.env_clear().envs(self.variables.iter().map(|(name, value)| (name, value)));
        for (flag, value) in &self.flags {
            // As one argument: a value may begin with a dash.
            command.arg(format!("{flag}={value}"));
        }
        command.args(&self.switches);
        command
    }
}

/// Both are there, and nothing else.
#[track_caller]
pub(crate) fn assert_registered(agent: &ScriptedAgent) {
    let services = agent.services();
    assert_eq!(services.keys().collect::<Vec<_>>(), [SERVICE, PROXY]);
}

/// Nothing is there.
#[track_caller]
pub(crate) fn assert_nothing_left(agent: &ScriptedAgent) {
    let services = agent.services();
    assert!(services.is_empty(), "left on the agent: {:?}", services.keys());
}
