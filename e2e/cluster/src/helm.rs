//! The `helm` command.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use harness::Result;
use serde_json::Value;
use tempfile::TempDir;

use crate::write;

/// The injector's chart.
pub const CHART: &str = harness::python::CHART;

/// Helm, with temporary directories instead of the user's.
#[derive(Debug)]
pub struct Helm {
    program: PathBuf,
    folder: TempDir,
    kubeconfig: Option<PathBuf>,
}

// === impl Helm ===

impl Helm {
    /// # Errors
    /// `HELM_BIN` does not name a program; with a hint.
    pub fn find() -> Result<Self> {
        let program = std::env::var_os("HELM_BIN")
            .map(PathBuf::from)
            .filter(|program| program.is_file())
            .ok_or("HELM_BIN names no program: scripts/cluster sets it")?;
        Ok(Self { program, folder: tempfile::tempdir()?, kubeconfig: None })
    }

    /// Uses another cluster than that of `KUBECONFIG`.
    #[must_use]
    pub fn on(self, kubeconfig: &Path) -> Self {
        Self { kubeconfig: Some(kubeconfig.to_owned()), ..self }
    }

    /// Runs a command, and returns its output.
    ///
    /// # Errors
    /// It can't be started, or fails; with its output.
    pub fn run(&self, args: &[impl AsRef<OsStr>]) -> Result<String> {
        let output = self.output(args)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        let args: Vec<_> =
            args.iter().map(|arg| arg.as_ref().to_string_lossy().into_owned()).collect();
        let errors = String::from_utf8_lossy(&output.stderr);
        Err(format!("helm {}: {}\n{text}{errors}", args.join(" "), output.status).into())
    }

    /// Installs or upgrades the chart as a release in the namespace of the same
    /// name, and waits until its objects are ready.
    ///
    /// # Errors
    /// Helm fails; with its output.
    pub fn apply(&self, command: &str, release: &str, values: &Value) -> Result<String> {
        let file = self.folder.path().join(format!("{release}.json"));
        write(&file, &values.to_string())?;
        let values = file.to_string_lossy();
        self.run(&[
            command,
            release,
            CHART,
            "--namespace",
            release,
            "--values",
            &values,
            "--wait",
            "--timeout=120s",
        ])
    }

    fn output(&self, args: &[impl AsRef<OsStr>]) -> Result<Output> {
        let mut command = Command::new(&self.program);
        for name in ["CACHE", "CONFIG", "DATA"] {
            command.env(format!("HELM_{name}_HOME"), self.folder.path().join(name));
        }
        if let Some(kubeconfig) = &self.kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        let output = command.args(args).stdin(Stdio::null()).output();
        Ok(output.map_err(|error| format!("cannot start helm: {error}"))?)
    }
}
