//! Redirect rules of a transparent pod: which of its connections go through
//! Envoy, as one nf_tables transaction. Pure: nothing here sends or opens
//! anything.
//!
//! - [`plan`]: what is redirected and what is not; the rules in their order
//! - [`rule`]: one rule: conditions and a verdict; as `nft` writes it
//! - [`message`]: the same as netlink messages, and what each of them is
//! - [`attribute`]: the attributes that a message is made of
//! - [`answer`]: what the kernel says: refusals, and the rules it has
//!
//! The numbers are those of the kernel's
//! [`nf_tables.h`](https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/netfilter/nf_tables.h)
//! and [`nfnetlink.h`](https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/netfilter/nfnetlink.h).

pub mod answer;
pub mod attribute;
pub mod message;
pub mod plan;
pub mod rule;

pub use answer::{Answer, Difference};
pub use message::Transaction;
pub use plan::{Mistake, Plan};
pub use rule::{Cidr, Rule};

/// The table that holds the rules, of the family `inet`. Nobody else writes to it.
pub const TABLE: &str = "connect_redirect";
