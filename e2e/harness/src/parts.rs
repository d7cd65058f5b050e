//! The real parts: where they are.

use std::path::{Path, PathBuf};

pub use testkit::or_skip;

/// The programs that the harness runs.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Consul, from `CONSUL_BIN`.
    pub consul: PathBuf,
    /// Envoy, from `ENVOY_BIN`.
    pub envoy: PathBuf,
    /// The folder with our four binaries as they are shipped, from `E2E_BIN_DIR`.
    pub bins: PathBuf,
    /// The archive of the image that `Dockerfile.init` makes, from
    /// `E2E_INIT_IMAGE`. Without it, the binaries stand for the image.
    pub init_image: Option<PathBuf>,
    /// The folder with the harness's own programs.
    pub harness: PathBuf,
}

impl Parts {
    /// Finds all parts.
    ///
    /// # Errors
    /// What is missing, and what to do.
    pub fn find() -> Result<Self, String> {
        if !nix::unistd::Uid::effective().is_root() {
            return Err(
                "pods are made of network namespaces, which takes root: run it as root".to_owned()
            );
        }
        let parts = Self {
            consul: part("CONSUL_BIN")?,
            envoy: part("ENVOY_BIN")?,
            bins: part("E2E_BIN_DIR")?,
            init_image: std::env::var_os("E2E_INIT_IMAGE")
                .map(|_| part("E2E_INIT_IMAGE"))
                .transpose()?,
            harness: harness()?,
        };
        for name in [
            "connect-inject",
            "connect-init",
            "connect-lifecycle",
            "connect-redirect",
            "connect-register",
        ] {
            if !parts.bins.join(name).is_file() {
                return Err(format!("E2E_BIN_DIR has no {name}: scripts/build makes it"));
            }
        }
        Ok(parts)
    }

    /// For tests: all parts, or none with a line that says so. In CI, where
    /// `CI` is set, a missing part is a failure.
    ///
    /// # Panics
    /// In CI, if a part is missing.
    pub fn find_or_skip() -> Option<Self> {
        or_skip(Self::find())
    }

    /// As [`Self::find_or_skip`], with the oldest Consul that is supported, from
    /// `CONSUL_OLDEST_BIN`.
    ///
    /// # Panics
    /// In CI, if a part is missing.
    pub fn with_oldest_consul_or_skip() -> Option<Self> {
        let parts =
            Self::find().and_then(|parts| Ok(Self { consul: part("CONSUL_OLDEST_BIN")?, ..parts }));
        or_skip(parts)
    }

    /// As [`Self::find_or_skip`], with the oldest Envoy that is supported, from
    /// `ENVOY_OLDEST_BIN`.
    ///
    /// # Panics
    /// In CI, if a part is missing.
    pub fn with_oldest_envoy_or_skip() -> Option<Self> {
        let parts =
            Self::find().and_then(|parts| Ok(Self { envoy: part("ENVOY_OLDEST_BIN")?, ..parts }));
        or_skip(parts)
    }

    /// As [`Self::find_or_skip`], and Prometheus, from `PROMETHEUS_BIN`.
    ///
    /// # Panics
    /// In CI, if a part is missing.
    pub fn with_prometheus_or_skip() -> Option<(Self, PathBuf)> {
        or_skip(Self::find().and_then(|parts| Ok((parts, part("PROMETHEUS_BIN")?))))
    }

    /// One of the harness's own programs.
    pub fn harness(&self, name: &str) -> PathBuf {
        self.harness.join(name)
    }
}

/// The file or folder that a variable names.
fn part(variable: &str) -> Result<PathBuf, String> {
    match std::env::var_os(variable).map(PathBuf::from) {
        Some(path) if path.exists() => Ok(path),
        Some(path) => Err(format!("{variable} names {}, which does not exist", path.display())),
        None => Err(format!("{variable} is not set: scripts/test and scripts/demo set it")),
    }
}

/// The folder of this program, which cargo fills with the other binaries of the
/// package; a test's is one folder below.
fn harness() -> Result<PathBuf, String> {
    let program = std::env::current_exe()
        .map_err(|error| format!("cannot tell where this program is: {error}"))?;
    program
        .ancestors()
        .skip(1)
        .take(2)
        .find(|folder| folder.join("pod-runtime").is_file())
        .map(Path::to_owned)
        .ok_or_else(|| "pod-runtime is not built: cargo build -p harness --bins".to_owned())
}
