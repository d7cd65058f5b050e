//! A real one-node Kubernetes, in namespaces of its own: etcd, API server,
//! controller manager, scheduler, kubelet and containerd, with a Consul server,
//! the node's Consul client and the injector in it.
//!
//! - [`parts`]: the programs that run
//! - [`keeper`]: from outside: starts a cluster and leaves nothing of it behind
//! - [`network`]: its addresses
//! - [`node`]: from inside: mounts, network, and the programs in their order
//! - [`images`]: the images, made of programs of this machine
//! - [`registry`]: serves them
//! - [`helm`]: the `helm` command
//! - [`mesh`]: what is installed: Consul and the injector
//! - [`client`]: what a user has: kubectl, the API, Consul
//! - [`demo`]: the tutorial, played on a cluster

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

/// Writes a file of the cluster's, which nothing reads before it is written.
fn write(path: &Path, text: &str) -> Result<()> {
    File::create(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| format!("cannot write {}: {error}", path.display()).into())
}
