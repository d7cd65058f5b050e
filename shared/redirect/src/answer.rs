//! What the kernel says: refusals, and the rules it has.

use std::fmt;

use crate::TABLE;
use crate::attribute::{Attribute, is_in};
use crate::message::{List, NFTABLES, Transaction};

/// One message of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The message of that number was refused, with that `errno`.
    Refused {
        /// The number within the transaction.
        number: u32,
        /// Why, as the C library numbers it.
        errno: i32,
    },
    /// There is nothing more to say: a list is at its end, or the transaction was
    /// taken.
    Done,
    /// One thing of a list.
    Item { kind: u16, attributes: &'a [u8] },
}

/// What the kernel has is not what it was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// Something else is in its place, or nothing.
    #[error("{0} is missing or was changed")]
    Missing(String),
    /// There is more of it.
    #[error("{0} more {1} than were loaded")]
    More(usize, List),
}

const ERROR: u16 = 2;
const DONE: u16 = 3;

/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// The messages of one reading; what is cut off is left out.
pub fn answers(mut bytes: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    std::iter::from_fn(move || {
        loop {
            let length = usize::try_from(number_at(bytes, 0)?).ok()?;
            let message = bytes.get(..length).filter(|message| message.len() >= HEADER)?;
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
            let kind = u16::from_ne_bytes([message[4], message[5]]);
            match kind {
                ERROR => {
                    // It is an acknowledgement if there is no error in it.
                    let errno = number_at(message, HEADER)?.cast_signed().checked_neg()?;
                    let number = number_at(message, 8)?;
                    return Some(match errno {
                        0 => Answer::Done,
                        errno => Answer::Refused { number, errno },
                    });
                }
                DONE => return Some(Answer::Done),
                // Behind `struct nfgenmsg`.
                // One that is too short for that says nothing.
                kind => {
                    if let Some(attributes) = message.get(HEADER + 4..) {
                        return Some(Answer::Item { kind, attributes });
                    }
                }
            }
        }
    })
}

fn number_at(bytes: &[u8], at: usize) -> Option<u32> {
    let number = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_ne_bytes(number))
}

// === impl List ===

impl List {
    /// What of an answer to this list is about our table.
    pub fn ours(self, bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> + use<'_> {
        answers(bytes).filter_map(move |answer| self.of_table(&answer).map(<[u8]>::to_vec))
    }

    /// The attributes of the answer, if it is one to that request about our table.
    fn of_table<'a>(self, answer: &Answer<'a>) -> Option<&'a [u8]> {
        // An answer has the kind of the message that would make it.
        let kind = NFTABLES << 8 | (self as u16 - 1);
        match *answer {
            Answer::Item { kind: got, attributes } if got == kind => {
                let table = [Attribute::text(1, TABLE)];
                is_in(&table, attributes).then_some(attributes)
            }
            _ => None,
        }
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chains => "chains",
            Self::Rules => "rules",
        })
    }
}

// === impl Transaction ===

impl Transaction {
    /// Whether the kernel lists what this transaction loads.
    ///
    /// # Errors
    /// The first difference.
    pub fn compare(&self, list: List, listed: &[Vec<u8>]) -> Result<(), Difference> {
        let mut rest = listed.iter();
        for (attributes, what) in self.expected(list) {
            if !rest.next().is_some_and(|kept| is_in(attributes, kept)) {
                return Err(Difference::Missing(what.to_owned()));
            }
        }
        match rest.len() {
            0 => Ok(()),
            more => Err(Difference::More(more, list)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Cidr, Plan};

    fn transaction(ports: &[u16]) -> Transaction {
        (&Plan {
            inbound: 20000,
            outbound: 15001,
            exclude_uids: vec![5995],
            exclude_inbound_ports: ports.to_vec(),
            exclude_outbound_ports: Vec::new(),
            exclude_outbound_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
            services: [(9090, 20001)].into(),
            dns: Some("127.0.0.1:8653".parse().unwrap()),
        })
            .into()
    }

    /// What was sent has the form of what is listed.
    fn listed(transaction: &Transaction, list: List) -> Vec<Vec<u8>> {
        list.ours(&transaction.encode()).collect()
    }

    #[test]
    fn what_was_loaded_is_found_again() {
        let loaded = transaction(&[80, 81]);
        for list in [List::Chains, List::Rules] {
            assert_eq!(loaded.compare(list, &listed(&loaded, list)), Ok(()));
        }
        assert_eq!(listed(&loaded, List::Chains).len(), 2);
        assert_eq!(listed(&loaded, List::Rules).len(), 12);
    }

    #[test]
    fn a_difference_is_named() {
        let loaded = transaction(&[80, 81]);
        let compare = |other: &Transaction| {
            loaded.compare(List::Rules, &listed(other, List::Rules)).unwrap_err().to_string()
        };
        let missing = "rule `tcp dport 81 return` of chain prerouting is missing or was changed";
        assert_eq!(compare(&transaction(&[80])), missing);
        assert_eq!(compare(&transaction(&[80, 82])), missing);
        let mut more = listed(&loaded, List::Rules);
        more.push(more[0].clone());
        let difference = loaded.compare(List::Rules, &more).unwrap_err();
        assert_eq!(difference.to_string(), "1 more rules than were loaded");
    }

    #[test]
    fn a_refusal_names_its_message() {
        let loaded = transaction(&[80]);
        let mut bytes = Vec::new();
        for word in [36u32, u32::from(ERROR), 6, 0, (-2i32).cast_unsigned(), 0, 0, 0, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        let refused = answers(&bytes).collect::<Vec<_>>();
        assert_eq!(refused, [Answer::Refused { number: 6, errno: 2 }]);
        assert_eq!(
            loaded.what(6),
            "rule `meta nfproto ipv4 udp dport 53 dnat ip to 127.0.0.1:8653` of chain output"
        );
        assert_eq!(loaded.what(u32::MAX), "the transaction");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            answers(&bytes).for_each(drop);
        }

        #[test]
        fn no_other_plan_is_taken_for_it(one in plan(), other in plan()) {
            let (loaded, found) = (Transaction::from(&one), Transaction::from(&other));
            let same = loaded.compare(List::Rules, &listed(&found, List::Rules)).is_ok();
            prop_assert_eq!(same, one.rules() == other.rules());
        }
    }

    /// Plans so small that two are often alike but for one thing.
    fn plan() -> impl Strategy<Value = Plan> {
        let ports = || prop::collection::vec(80u16..82, 0..2);
        let cidr = (0u8..2, 31u8..=32)
            .prop_map(|(last, prefix)| Cidr::new([10, 0, 0, last].into(), prefix).unwrap());
        let cidrs = prop::collection::vec(cidr, 0..2);
        let services = prop::collection::btree_map(90u16..92, 20001u16..20003, 0..2);
        let dns = prop::option::of((0u16..2).prop_map(|port| ([127, 0, 0, 1], port).into()));
        (prop::collection::vec(0u32..2, 0..2), ports(), ports(), cidrs, services, dns).prop_map(
            |(exclude_uids, inbound, outbound, exclude_outbound_cidrs, services, dns)| Plan {
                inbound: 20000,
                outbound: 15001,
                exclude_uids,
                exclude_inbound_ports: inbound,
                exclude_outbound_ports: outbound,
                exclude_outbound_cidrs,
                services,
                dns,
            },
        )
    }
}
