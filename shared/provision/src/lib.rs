//! The files that a sidecar starts from, in the directory that `connect-lifecycle`
//! reads: prepared before anything is registered, and written afterwards.

mod prepare;
mod provide;

pub use prepare::{Trust, copies, prepare};
pub use provide::{Watched, agent_record, bootstrap};
