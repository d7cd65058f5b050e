//! A sidecar without a pod: `connect-init` and Envoy as processes in the node's network
//! namespace, for tests that depend on flags and agents rather than on pods.

use std::path::PathBuf;

use harness::kubelet::{XDS_STATS, has_rejected, is_settled};
use harness::node::Node;
use harness::process::{Process, run, tail};
use harness::until;

/// A sidecar at that address.
pub(crate) struct Bare<'n> {
    pub(crate) node: &'n Node,
    pub(crate) service: &'n str,
    pub(crate) ip: &'n str,
    /// Flags of `connect-init` that say how to reach the agent.
    pub(crate) flags: Vec<String>,
}

/// The service of most sidecars.
pub(crate) const API: &str = "api:8080";

impl Bare<'_> {
    fn folder(&self) -> PathBuf {
        self.node.folder(&format!("bare-{}", self.ip)).unwrap()
    }

    /// Runs `connect-init`. Returns its exit code and its log.
    pub(crate) fn init(&self, further: &[&str]) -> (Option<i32>, String) {
        let mut init = self.start_init(further);
        (init.wait().unwrap().code(), init.output())
    }

    pub(crate) fn start_init(&self, further: &[&str]) -> Process {
        let bins = &self.node.parts().bins;
        let mut args = vec![
            format!("--service={}", self.service),
            format!("--pod-name=bare-{}", self.ip.replace('.', "-")),
            format!("--pod-ip={}", self.ip),
            format!("--dir={}", self.folder().display()),
            format!("--helper={}", bins.join("connect-lifecycle").display()),
        ];
        args.extend(self.flags.iter().cloned());
        args.extend(further.iter().map(|&flag| flag.to_owned()));
        self.node.start(&bins.join("connect-init"), &args).unwrap()
    }

    /// Starts the readiness probe.
    pub(crate) fn start_ready(&self) -> Process {
        let args = ["ready".to_owned(), format!("--dir={}", self.folder().display())];
        self.node.start(&self.node.parts().bins.join("connect-lifecycle"), &args).unwrap()
    }

    /// Starts `connect-lifecycle deregister`.
    pub(crate) fn start_deregister(&self) -> Process {
        let args = ["deregister".to_owned(), format!("--dir={}", self.folder().display())];
        self.node.start(&self.node.parts().bins.join("connect-lifecycle"), &args).unwrap()
    }

    /// Starts `connect-lifecycle run` with Envoy and the files of `connect-init`.
    pub(crate) fn run(&self) -> Process {
        self.run_with(&[])
    }

    /// Like [`Self::run`], with additional flags of `connect-lifecycle`.
    pub(crate) fn run_with(&self, flags: &[&str]) -> Process {
        let folder = self.folder();
        let mut args = vec![
            "run".to_owned(),
            format!("--dir={}", folder.display()),
            "--drain-timeout=1s".to_owned(),
        ];
        args.extend(flags.iter().map(|&flag| flag.to_owned()));
        args.extend([
            "--".to_owned(),
            // Ends with its parent, even if that is killed.
            "setpriv".to_owned(),
            "--pdeathsig=KILL".to_owned(),
            self.node.parts().envoy.to_string_lossy().into_owned(),
            "--config-path".to_owned(),
            folder.join("envoy-bootstrap.json").to_string_lossy().into_owned(),
            "--disable-hot-restart".to_owned(),
            // As the injector sets it.
            "--drain-strategy".to_owned(),
            "immediate".to_owned(),
        ]);
        self.node.start(&self.node.parts().bins.join("connect-lifecycle"), &args).unwrap()
    }
}

/// Waits until the Envoy with that admin port is connected to xDS and has accepted all
/// updates.
pub(crate) fn await_xds(port: u16, envoy: &Process) {
    let url = format!("http://127.0.0.1:{port}/stats?filter={XDS_STATS}");
    let mut stats = String::new();
    until("Envoy to be connected to xDS", || {
        stats = run("curl", &["-s", &url]).unwrap_or_default();
        is_settled(&stats)
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", tail(&envoy.output(), 20)));
    assert!(!has_rejected(&stats), "{stats}\n{}", tail(&envoy.output(), 20));
}
