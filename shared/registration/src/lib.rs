//! What is registered with Consul's agent: a service, its sidecar proxy, their
//! checks and their upstreams, in the agent's own terms and JSON.
//!
//! - [`service`]: the body of a registration, as "Register Service" of Consul's
//!   Agent HTTP API takes it
//! - [`proxy`]: what makes a service a Connect proxy
//! - [`check`]: how the agent learns of its health
//! - [`listener`]: which listeners on one host can't stand side by side
//! - [`upstream`]: the one grammar for upstreams, of annotation and flags
//! - [`port`]: a port as a number or by a container port's name
//! - [`name`]: what may be the name of a service
//! - [`machine`]: what a service and sidecar of a definition file are registered as
//! - [`pod`]: what a pod's service and sidecar are registered as
//!
//! Nothing here does I/O. Empty fields are left out of the JSON, because an
//! older agent refuses a key that it does not know.

pub mod check;
pub mod listener;
pub mod machine;
pub mod name;
pub mod pod;
pub mod port;
pub mod proxy;
pub mod service;
mod token;
pub mod upstream;

pub use check::Check;
pub use proxy::Proxy;
pub use service::Service;
pub use token::Token;
pub use upstream::Upstream;

/// Whether a value is its type's default: such a key is not sent.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
