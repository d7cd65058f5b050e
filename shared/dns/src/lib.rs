//! What a DNS forwarder has to know of a message: its question. The rest, EDNS
//! and records of any type, passes through untouched, and is never decoded.
//!
//! - [`query`]: a query, and what answers it
//! - [`domain`]: the domain that a name may be under
//! - [`resolv_conf`]: the nameservers of a `resolv.conf`

pub mod domain;
pub mod query;
pub mod resolv_conf;

pub use domain::{Domain, InvalidDomain};
pub use query::{Malformed, Query, Rcode};
pub use resolv_conf::ResolvConf;
