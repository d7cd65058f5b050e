//! Finds the programs of a cluster.

use std::path::PathBuf;

use crate::helm::Helm;
use harness::{Result, parts};

/// The programs that a cluster runs.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Consul, Envoy, our binaries, and those of the harness.
    pub common: parts::Parts,
    /// A Consul whose HTTP listeners Envoy rejects, from `CONSUL_OUTDATED_BIN`.
    pub outdated_consul: Option<PathBuf>,
    /// The archive of the image of `connect-init`.
    pub init_image: PathBuf,
    /// The archive of the image of `connect-inject`, from `E2E_INJECT_IMAGE`.
    pub inject_image: PathBuf,
    /// The directory with Kubernetes, from `KUBERNETES_DIR`.
    pub kubernetes: PathBuf,
    /// The directory with the other programs of a node, from `NODE_DIR`.
    pub node: PathBuf,
}

// === impl Parts ===

impl Parts {
    /// Finds all parts.
    ///
    /// # Errors
    /// A part is missing; with a hint.
    pub fn find() -> Result<Self> {
        let common = parts::Parts::find()?;
        // Needed to install the mesh.
        Helm::find()?;
        let part = |variable: &str| -> Result<PathBuf> {
            let path = std::env::var_os(variable)
                .map(PathBuf::from)
                .ok_or_else(|| format!("{variable} is not set: scripts/cluster sets it"))?;
            if path.exists() {
                return Ok(path);
            }
            Err(format!("{variable} names {}, which does not exist", path.display()).into())
        };
        Ok(Self {
            init_image: common
                .init_image
                .clone()
                .ok_or("E2E_INIT_IMAGE is not set: scripts/cluster sets it")?,
            common,
            outdated_consul: std::env::var_os("CONSUL_OUTDATED_BIN")
                .map(|_| part("CONSUL_OUTDATED_BIN"))
                .transpose()?,
            inject_image: part("E2E_INJECT_IMAGE")?,
            kubernetes: part("KUBERNETES_DIR")?,
            node: part("NODE_DIR")?,
        })
    }

    /// For tests: all parts, or `None` with a message on stderr. In CI, a missing part is a
    /// failure.
    ///
    /// # Panics
    /// In CI, if a part is missing.
    pub fn find_or_skip() -> Option<Self> {
        parts::or_skip(Self::find().map_err(|missing| missing.to_string()))
    }

    /// One of Kubernetes' programs.
    pub fn kubernetes(&self, name: &str) -> PathBuf {
        self.kubernetes.join(name)
    }

    /// One of the other programs of a node.
    pub fn node(&self, name: &str) -> PathBuf {
        self.node.join(name)
    }
}
