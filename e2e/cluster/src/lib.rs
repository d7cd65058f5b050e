//! A real one-node Kubernetes in its own Linux namespaces: etcd, API server, controller
//! manager, scheduler, kubelet and containerd, with a Consul server, the node's Consul client
//! agent and the injector.
//!
//! - [`parts`]: finds the programs
//! - [`keeper`]: starts a cluster from outside, and leaves nothing of it behind
//! - [`network`]: its addresses
//! - [`node`]: inside of the cluster: mounts, network, and the programs in their order
//! - [`images`]: builds the images from programs of this machine
//! - [`registry`]: serves them
//! - [`helm`]: the `helm` command
//! - [`mesh`]: installs Consul and the injector
//! - [`client`]: kubectl, the API and Consul, for tests
//! - [`demo`]: plays the tutorial on a cluster

pub mod client;
pub mod demo;
pub mod helm;
pub mod images;
pub mod keeper;
pub mod mesh;
pub mod network;
pub mod node;
pub mod parts;
pub mod registry;

use std::fs::File;
use std::io::Write;
use std::path::Path;

use harness::Result;

/// Writes a file of the cluster, which no program reads before.
fn write(path: &Path, text: &str) -> Result<()> {
    File::create(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| format!("cannot write {}: {error}", path.display()).into())
}
