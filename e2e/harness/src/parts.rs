//! Finds the programs that the harness runs.

use std::path::{Path, PathBuf};

pub use testkit::or_skip;
use testkit::part;

/// The programs that the harness runs.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Consul, from `CONSUL_BIN`.
    pub consul: PathBuf,
    /// Envoy, from `ENVOY_BIN`.
    pub envoy: PathBuf,
    /// The directory with our release binaries, from `E2E_BIN_DIR`.
    pub bins: PathBuf,
    /// The archive of the image that `Dockerfile.init` builds, from `E2E_INIT_IMAGE`. Without
    /// it, the binaries are mounted in its place.
    pub init_image: Option<PathBuf>,
    /// The directory with the harness's own programs.
    pub harness: PathBuf,
}

impl Parts {
    /// Finds all parts.
    ///
    /// # Errors
    /// A part is missing; with a hint.
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
            "connect-cni",
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

    /// For tests: all parts, or `None` with a message on stderr. If `CI` is set, a missing
    /// part is a failure.
    ///
    /// # Panics
    /// In CI, if a part is missing.
    pub fn find_or_skip() -> Option<Self> {
        or_skip(Self::find())
    }

    /// Like [`Self::find_or_skip`], with the oldest supported Consul, from
    /// `CONSUL_OLDEST_BIN`.
    ///
    /// # Panics
    /// In CI, if a part is missing.
    pub fn with_oldest_consul_or_skip() -> Option<Self> {
        let parts =
            Self::find().and_then(|parts| Ok(Self { consul: part("CONSUL_OLDEST_BIN")?, ..parts }));
        or_skip(parts)
    }

    /// Like [`Self::find_or_skip`], with the oldest supported Envoy, from
    /// `ENVOY_OLDEST_BIN`.
    ///
    /// # Panics
    /// In CI, if a part is missing.
    pub fn with_oldest_envoy_or_skip() -> Option<Self> {
        let parts =
            Self::find().and_then(|parts| Ok(Self { envoy: part("ENVOY_OLDEST_BIN")?, ..parts }));
        or_skip(parts)
    }

    /// Like [`Self::find_or_skip`], and Prometheus, from `PROMETHEUS_BIN`.
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

/// The directory of this program, in which cargo puts the other binaries of the package; a
/// test is one directory below.
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
