//! The part of DNS messages that a forwarder reads: the question. Everything else, EDNS
//! and records of any type, passes through undecoded. And what
//! it takes to ask for the addresses of one name.
//!
//! - [`address`]: the addresses of a name
//! - [`query`]: a query, and its answer
//! - [`domain`]: the domain that queries are forwarded for
//! - [`resolv_conf`]: the nameservers of a `resolv.conf`

pub mod address;
pub mod domain;
pub mod query;
pub mod resolv_conf;

pub use address::Addresses;
pub use domain::{Domain, InvalidDomain};
pub use query::{Malformed, Query, Rcode};
pub use resolv_conf::ResolvConf;
