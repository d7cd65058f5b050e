//! A pod without its own network namespace: a directory, and the processes of its containers.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fastrand::Rng;
use harness::node::acl::METHOD;
use harness::process::Process;
use nix::sys::signal::Signal;

/// Common settings of all pods of a service.
#[derive(Clone, Debug)]
pub(crate) struct Ground {
    pub(crate) bins: PathBuf,
    pub(crate) envoy: PathBuf,
    /// The name of the service, and additional flags of `connect-init`.
    pub(crate) service: &'static str,
    pub(crate) flags: Vec<String>,
    /// Parent of the pods' directories.
    pub(crate) folder: PathBuf,
    /// The agent's address.
    pub(crate) agent: String,
    /// The ACLs for logins, if they are enabled.
    pub(crate) bearer_token: Option<PathBuf>,
}

/// Identity of a pod.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) ip: String,
    /// Unique among all pods, whatever their name.
    pub(crate) uid: String,
}

/// How a pod ended.
#[derive(Clone, Debug)]
pub(crate) struct Dead {
    pub(crate) who: Identity,
    pub(crate) when: Instant,
    /// It logged that nothing is left of it.
    pub(crate) is_clean: bool,
    /// It may have left an ACL token: a process was killed, or logged that the agent did not
    /// confirm the deregistration or the logout.
    pub(crate) may_leave_token: bool,
    /// A process was killed, and may have been writing a file.
    may_leave_half_files: bool,
    pub(crate) log: String,
}

/// A pod whose sidecar runs.
pub(crate) struct Pod {
    pub(crate) who: Identity,
    ground: Ground,
    run: Process,
    hook: Option<Process>,
    /// Number of processes started so far.
    number: u32,
    was_killed: bool,
    hook_was_killed: bool,
    log: String,
}

/// The port of each Envoy's admin interface, at its pod's address.
pub(crate) const ADMIN: u16 = 19000;

// === impl Ground ===

impl Ground {
    /// The log of a pod's latest sidecar.
    pub(crate) fn log_of_run(&self, who: &Identity) -> String {
        let folder = self.folder.join(&who.uid);
        let log = |number| {
            fs::read_to_string(folder.join(format!("{number}-connect-lifecycle.log"))).ok()
        };
        // The numbers of its other programs are between those of this one.
        let mut logs = (1..100).filter_map(log).filter(|log| log.contains("started setpriv"));
        logs.next_back().unwrap_or_default()
    }

    fn start(&self, who: &Identity, number: u32, program: &str, args: &[&str]) -> Process {
        let folder = self.folder.join(&who.uid);
        let dir = folder.to_string_lossy().into_owned();
        let mut all: Vec<String> = Vec::new();
        if program == "connect-init" {
            // A small file in place of the helper, which nobody runs from there.
            all.push("--helper=/bin/true".to_owned());
            all.push(format!("--service={}:8080", self.service));
            all.push(format!("--admin-bind={}:{ADMIN}", who.ip));
            all.push("--envoy-version=1.40.0".to_owned());
            all.extend(self.flags.iter().cloned());
            // How long it waits for its token, which the test may delete meanwhile.
            all.push("--timeout=20s".to_owned());
            all.push(format!("--http-addr=http://{}:8500", self.agent));
            all.push(format!("--grpc-addr={}:8502", self.agent));
            if let Some(file) = &self.bearer_token {
                all.push(format!("--acl-auth-method={METHOD}"));
                all.push(format!("--bearer-token-file={}", file.display()));
            }
        }
        all.extend(args.iter().map(|&arg| arg.to_owned()));
        let env = [
            ("POD_NAME", who.name.as_str()),
            ("POD_NAMESPACE", "shop"),
            ("POD_UID", &who.uid),
            ("POD_IP", &who.ip),
            ("CONNECT_DIR", &dir),
        ];
        let log = folder.join(format!("{number}-{program}.log"));
        Process::start(program, log, &self.bins.join(program), &all, &env).unwrap()
    }
}

// === impl Pod ===

impl Pod {
    /// Starts a pod. Its init container may be terminated or killed at a random time, and is
    /// then started again.
    pub(crate) fn start(ground: &Ground, who: Identity, rng: &mut Rng) -> Self {
        fs::create_dir(ground.folder.join(&who.uid)).unwrap();
        let (mut number, mut log, mut was_killed) = (0, String::new(), false);
        Self::init(ground, &who, rng, &mut number, &mut log, &mut was_killed);
        number += 1;
        let run = Self::run(ground, &who, number);
        let ground = ground.clone();
        Self { who, ground, run, hook: None, number, was_killed, hook_was_killed: false, log }
    }

    fn init(
        ground: &Ground,
        who: &Identity,
        rng: &mut Rng,
        number: &mut u32,
        log: &mut String,
        was_killed: &mut bool,
    ) {
        let began = Instant::now();
        loop {
            *number += 1;
            let mut init = ground.start(who, *number, "connect-init", &[]);
            let signal = match rng.u8(0..6) {
                0 => Some(Signal::SIGKILL),
                1 => Some(Signal::SIGTERM),
                _ => None,
            };
            if let Some(signal) = signal {
                pause(rng, 80);
                // It may have exited.
                let _ = init.signal(signal);
                *was_killed |= signal == Signal::SIGKILL;
            }
            let status = init.wait().unwrap_or_else(|error| panic!("{error}: {}", init.output()));
            log.push_str(&init.output());
            if status.success() {
                return;
            }
            // It also fails if the agent loses its data meanwhile: the registration or the
            // auth method. The kubelet starts it again.
            pause(rng, 100);
            assert!(began.elapsed() < 3 * harness::PATIENCE, "{status}: {log}");
        }
    }

    fn run(ground: &Ground, who: &Identity, number: u32) -> Process {
        let bootstrap = ground.folder.join(&who.uid).join("envoy-bootstrap.json");
        let (envoy, bootstrap) = (ground.envoy.to_string_lossy(), bootstrap.to_string_lossy());
        // The sidecar must not wait for the application, which never exits. Envoy ends with
        // its parent.
        let args = ["run", "--drain-timeout=100ms", "--", "setpriv", "--pdeathsig", "KILL"];
        let envoy = [&envoy, "--config-path", &bootstrap, "--disable-hot-restart"];
        let settings = ["--concurrency", "1", "--drain-strategy", "immediate", "-l", "error"];
        let args: Vec<_> = args.into_iter().chain(envoy).chain(settings).collect();
        ground.start(who, number, "connect-lifecycle", &args)
    }

    /// The container restarts, and its directory stays.
    pub(crate) fn restart(&mut self) {
        self.note();
        self.number += 1;
        self.run = Self::run(&self.ground, &self.who, self.number);
    }

    /// The sandbox is recreated: the init container runs again.
    pub(crate) fn restart_from_init(&mut self, rng: &mut Rng) {
        self.note();
        let Self { ground, who, number, log, was_killed, .. } = self;
        Self::init(ground, who, rng, number, log, was_killed);
        self.number += 1;
        self.run = Self::run(&self.ground, &self.who, self.number);
    }

    /// Starts the preStop hook.
    pub(crate) fn start_hook(&mut self) {
        self.number += 1;
        let args = ["deregister", "--timeout=5s"];
        self.hook = Some(self.ground.start(&self.who, self.number, "connect-lifecycle", &args));
    }

    /// Runs the preStop hook.
    pub(crate) fn hook(&mut self) {
        self.start_hook();
        self.hook.as_mut().map(Process::wait).transpose().unwrap();
    }

    pub(crate) fn kill_hook(&mut self) {
        if let Some(hook) = self.hook.take() {
            let _ = hook.signal(Signal::SIGKILL);
            self.hook_was_killed = true;
            self.log.push_str(&hook.output());
        }
    }

    /// Sends SIGTERM to the sidecar.
    pub(crate) fn terminate(&self) {
        self.run.signal(Signal::SIGTERM).unwrap();
    }

    /// Waits until the sidecar has exited by itself. This also ends the hook.
    pub(crate) fn await_end(&mut self) -> bool {
        let status = self.run.wait().unwrap();
        self.kill_hook();
        status.success() && !self.run.output().contains("TTL check expires")
    }

    /// Kills the sidecar, and the hook with it. Like a container runtime, it returns once
    /// Envoy is gone, too: the next one needs its ports.
    pub(crate) fn kill(&mut self) {
        let _ = self.run.signal(Signal::SIGKILL);
        self.run.wait().unwrap();
        let admin = format!("{}:{ADMIN}", self.who.ip);
        harness::until("Envoy to be gone", || TcpListener::bind(&admin).is_ok()).unwrap();
        self.kill_hook();
        self.was_killed = true;
    }

    /// Called when no container is left.
    pub(crate) fn dead(mut self, is_clean: bool) -> Dead {
        self.note();
        let Self { who, was_killed, hook_was_killed, log, .. } = self;
        let may_leave_token = was_killed || log.contains("the ACL token is left behind");
        let may_leave_half_files = was_killed || hook_was_killed;
        Dead { who, when: Instant::now(), is_clean, may_leave_token, may_leave_half_files, log }
    }

    /// Logs of its processes.
    pub(crate) fn log(&self) -> String {
        self.log.clone() + &self.run.output()
    }

    fn note(&mut self) {
        self.log.push_str(&self.run.output());
    }
}

// === impl Dead ===

impl Dead {
    /// Files in its directory that should not be left.
    pub(crate) fn litter(&self, ground: &Ground) -> Vec<String> {
        let files = fs::read_dir(ground.folder.join(&self.who.uid)).unwrap();
        let names = files.map(|file| file.unwrap().file_name().to_string_lossy().into_owned());
        let is_litter = |name: &String| {
            (name.starts_with('.') && !self.may_leave_half_files)
                || (name == "acl-token" && !self.may_leave_token)
        };
        names.filter(is_litter).collect()
    }
}

/// Waits for a random time, up to that many milliseconds.
pub(crate) fn pause(rng: &mut Rng, longest: u64) {
    std::thread::sleep(Duration::from_micros(rng.u64(0..longest * 1000)));
}
