//! The node's container runtime.
//!
//! - [`container`]: one container, and the program that creates it
//! - [`image`]: stand-ins for container images
//! - [`cgroup`]: a memory limit
//! - [`volume`]: an in-memory volume of a given size

pub mod cgroup;
pub mod container;
pub mod image;
pub mod volume;
