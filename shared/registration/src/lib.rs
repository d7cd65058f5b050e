//! Registrations with Consul's agent: a service, its sidecar proxy, their checks and
//! upstreams, in the agent's terms and JSON.
//!
//! - [`service`]: the request body of "Register Service" in Consul's Agent HTTP API
//! - [`proxy`]: the proxy part of a service
//! - [`check`]: health checks
//! - [`listener`]: collisions between listeners on one host
//! - [`upstream`]: upstreams, and their grammar in annotations and flags
//! - [`port`]: a port as a number or by a container port's name
//! - [`name`]: rules for service names
//! - [`machine`]: the registrations of a definition file with a sidecar
//! - [`pod`]: the registrations of a pod's service and sidecar
//!
//! Nothing here does I/O. Empty fields are left out of the JSON, because an older agent
//! rejects a key that it does not know.

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

/// Whether a value is its type's default, and not sent.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
