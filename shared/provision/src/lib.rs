//! What a sidecar starts from, in the directory that `connect-lifecycle` reads: made
//! ready before anything is registered, and filled afterwards.

mod prepare;
mod provide;

pub use prepare::{copies, prepare};
pub use provide::{agent_record, bootstrap, watches_token};
