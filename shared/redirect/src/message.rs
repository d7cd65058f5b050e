//! A plan as netlink messages, and what each of them is.

use std::net::{IpAddr, SocketAddr};

use crate::TABLE;
use crate::attribute::{Attribute, encode};
use crate::plan::Plan;
use crate::rule::{Chain, Cidr, Condition, Family, Protocol, Rule, Verdict};

/// What replaces the table, whatever was in it: the kernel takes all of it or
/// nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    messages: Vec<Message>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    kind: u16,
    flags: u16,
    attributes: Vec<Attribute>,
    /// For errors.
    what: String,
}

/// What the kernel can be asked to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum List {
    /// The chains of all tables.
    Chains = kind::GET_CHAIN,
    /// The rules of all tables.
    Rules = kind::GET_RULE,
}

mod kind {
    pub(super) const NEW_TABLE: u16 = 0;
    pub(super) const DELETE_TABLE: u16 = 2;
    pub(super) const NEW_CHAIN: u16 = 3;
    pub(super) const GET_CHAIN: u16 = 4;
    pub(super) const NEW_RULE: u16 = 6;
    pub(super) const GET_RULE: u16 = 7;
}

mod flag {
    pub(super) const REQUEST: u16 = 1;
    pub(super) const ACKNOWLEDGE: u16 = 4;
    pub(super) const DUMP: u16 = 0x300;
    pub(super) const EXCLUSIVE: u16 = 0x200;
    pub(super) const CREATE: u16 = 0x400;
    pub(super) const APPEND: u16 = 0x800;
}

/// How many messages come first that delete the table that there may be.
const REPLACING: usize = 2;

/// The part of netfilter that is spoken to, in front of each kind.
pub(crate) const NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// The family of a table for both IPv4 and IPv6.
const INET: u8 = 1;

// === impl Transaction ===

impl From<&Plan> for Transaction {
    fn from(plan: &Plan) -> Self {
        let table = || vec![Attribute::text(1, TABLE)];
        let mut messages = Vec::new();
        let mut add = |kind, flags, attributes, what| {
            messages.push(Message { kind, flags, attributes, what });
        };
        // The kernel refuses to delete a missing table, but not to add an existing one.
        add(kind::NEW_TABLE, flag::CREATE, table(), format!("table {TABLE}"));
        add(kind::DELETE_TABLE, 0, table(), format!("the old table {TABLE}"));
        add(kind::NEW_TABLE, flag::CREATE, table(), format!("table {TABLE}"));
        for chain in Chain::ALL {
            add(
                kind::NEW_CHAIN,
                flag::CREATE,
                attributes_of_chain(chain),
                format!("chain {chain}"),
            );
        }
        for rule in plan.rules() {
            let what = format!("rule `{rule}` of chain {}", rule.chain);
            let flags = flag::CREATE | flag::APPEND;
            add(kind::NEW_RULE, flags, attributes_of_rule(&rule), what);
        }
        // Only the last is acknowledged: a refusal is always told, and so many
        // acknowledgements would not fit into a socket's buffer.
        if let Some(last) = messages.last_mut() {
            last.flags |= flag::ACKNOWLEDGE;
        }
        Self { messages }
    }
}

impl Transaction {
    /// The transaction as it is sent, in one piece. Messages are numbered from 0.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_from(0, 0)
    }

    /// The same for a network that has no such table yet; where it has, the kernel refuses
    /// it with EEXIST. That is quicker: for what a transaction deletes, the kernel waits
    /// until no processor can be looking at it any more.
    pub fn encode_first(&self) -> Vec<u8> {
        self.encode_from(REPLACING, flag::EXCLUSIVE)
    }

    /// The messages from that number on, the first with further flags.
    fn encode_from(&self, first: usize, further: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        push(&mut bytes, BATCH_BEGIN, 0, u32::MAX, 0, NFTABLES, &[]);
        for (message, number) in self.messages.iter().zip(0_u32..).skip(first) {
            let Message { kind, flags, attributes, .. } = message;
            let flags = flags | if number as usize == first { further } else { 0 };
            push(&mut bytes, NFTABLES << 8 | kind, flags, number, INET, 0, attributes);
        }
        push(&mut bytes, BATCH_END, 0, u32::MAX, 0, NFTABLES, &[]);
        bytes
    }

    /// What the message of that number is.
    pub fn what(&self, number: u32) -> &str {
        let message = usize::try_from(number).ok().and_then(|number| self.messages.get(number));
        message.map_or("the transaction", |message| &message.what)
    }

    /// What the kernel should list of that kind, in its order, each with what it is.
    pub(crate) fn expected(&self, list: List) -> impl Iterator<Item = (&[Attribute], &str)> {
        let kind = match list {
            List::Chains => kind::NEW_CHAIN,
            List::Rules => kind::NEW_RULE,
        };
        let messages = self.messages.iter().filter(move |message| message.kind == kind);
        messages.map(|message| (&message.attributes[..], message.what.as_str()))
    }
}

// === impl List ===

impl List {
    /// The request for it, as it is sent.
    pub fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        push(&mut bytes, NFTABLES << 8 | self as u16, flag::DUMP, 0, INET, 0, &[]);
        bytes
    }
}

/// Adds a message: `struct nlmsghdr`, `struct nfgenmsg`, attributes.
fn push(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    number: u32,
    family: u8,
    resource: u16,
    attributes: &[Attribute],
) {
    let attributes = encode(attributes);
    let length = u32::try_from(20 + attributes.len()).expect("a rule takes hundreds of bytes");
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | flag::REQUEST).to_ne_bytes());
    bytes.extend(number.to_ne_bytes());
    bytes.extend([0; 4]); // the sender's port: the kernel knows it
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
}

fn attributes_of_chain(chain: Chain) -> Vec<Attribute> {
    let hook: u32 = match chain {
        Chain::Prerouting => 0,
        Chain::Output => 3,
    };
    let priority = (-100i32).cast_unsigned();
    vec![
        Attribute::text(1, TABLE),
        Attribute::text(3, &chain.to_string()),
        Attribute::nested(4, vec![Attribute::number(1, hook), Attribute::number(2, priority)]),
        Attribute::number(5, 1), // the policy: accept
        Attribute::text(7, "nat"),
    ]
}

fn attributes_of_rule(rule: &Rule) -> Vec<Attribute> {
    let Rule { chain, conditions, verdict } = rule;
    let mut expressions = Vec::new();
    let mut protocol = None;
    for condition in conditions {
        // A port and a first packet are both of TCP: asked for once.
        let of = condition.protocol();
        if of.is_some() && of != protocol {
            protocol = of;
            expressions
                .extend(of.into_iter().flat_map(|of| meta(META_PROTOCOL, EQUAL, &[of as u8])));
        }
        expressions.extend(of_condition(*condition));
    }
    expressions.extend(of_verdict(*verdict));
    vec![
        Attribute::text(1, TABLE),
        Attribute::text(2, &chain.to_string()),
        Attribute::nested(4, expressions),
    ]
}

const META_OUT_INTERFACE: u32 = 5;
const META_USER: u32 = 10;
const META_FAMILY: u32 = 15;
const META_PROTOCOL: u32 = 16;

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

/// The loopback interface has this index in every network namespace.
const LOOPBACK: u32 = 1;

fn of_condition(condition: Condition) -> Vec<Attribute> {
    match condition {
        Condition::User(uid) => meta(META_USER, EQUAL, &uid.to_ne_bytes()).into(),
        Condition::Family(family) => meta(META_FAMILY, EQUAL, &[number_of(family)]).into(),
        Condition::NotTcp => meta(META_PROTOCOL, NOT_EQUAL, &[Protocol::Tcp as u8]).into(),
        Condition::OutOfLoopback => meta(META_OUT_INTERFACE, EQUAL, &LOOPBACK.to_ne_bytes()).into(),
        Condition::To(cidr) => to(cidr),
        // Source and destination come first in TCP's header and UDP's.
        Condition::Port(_, port) => {
            vec![payload(TRANSPORT_HEADER, 2, 2), compare(EQUAL, &port.to_be_bytes())]
        }
        // Of FIN, SYN, RST and ACK only SYN.
        Condition::FirstPacket => {
            vec![payload(TRANSPORT_HEADER, 13, 1), mask(&[0x17]), compare(EQUAL, &[0x02])]
        }
    }
}

fn to(cidr: Cidr) -> Vec<Attribute> {
    let (family, network, offset) = match cidr.network() {
        IpAddr::V4(address) => (Family::V4, address.octets().to_vec(), 16),
        IpAddr::V6(address) => (Family::V6, address.octets().to_vec(), 24),
    };
    let mut expressions: Vec<_> = meta(META_FAMILY, EQUAL, &[number_of(family)]).into();
    let length = if family == Family::V4 { 4 } else { 16 };
    expressions.push(payload(NETWORK_HEADER, offset, length));
    if !cidr.is_one() {
        let ones = u128::MAX.checked_shl(128 - u32::from(cidr.prefix())).unwrap_or(0);
        expressions.push(mask(&ones.to_be_bytes()[..network.len()]));
    }
    expressions.push(compare(EQUAL, &network));
    expressions
}

fn of_verdict(verdict: Verdict) -> Vec<Attribute> {
    match verdict {
        Verdict::Return => {
            let code = Attribute::number(1, (-5i32).cast_unsigned());
            let data = Attribute::nested(2, vec![Attribute::nested(2, vec![code])]);
            vec![expression("immediate", vec![Attribute::number(1, 0), data])]
        }
        Verdict::Redirect(port) => {
            vec![load(1, &port.to_be_bytes()), expression("redir", vec![Attribute::number(1, 1)])]
        }
        Verdict::Dnat(to) => {
            let address = match to {
                SocketAddr::V4(to) => to.ip().octets().to_vec(),
                SocketAddr::V6(to) => to.ip().octets().to_vec(),
            };
            let nat = vec![
                Attribute::number(1, 1), // the destination is changed
                Attribute::number(2, number_of(to.into()).into()),
                Attribute::number(3, 1), // the register with the address
                Attribute::number(5, 2), // and that with the port
            ];
            vec![load(1, &address), load(2, &to.port().to_be_bytes()), expression("nat", nat)]
        }
    }
}

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
fn number_of(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// One step of a rule. Those below read and write register 1 if not told
/// otherwise.
fn expression(name: &str, data: Vec<Attribute>) -> Attribute {
    Attribute::nested(1, vec![Attribute::text(1, name), Attribute::nested(2, data)])
}

fn value(bytes: &[u8]) -> Vec<Attribute> {
    vec![Attribute::bytes(1, bytes)]
}

fn meta(key: u32, operator: u32, bytes: &[u8]) -> [Attribute; 2] {
    let load = expression("meta", vec![Attribute::number(1, 1), Attribute::number(2, key)]);
    [load, compare(operator, bytes)]
}

fn compare(operator: u32, bytes: &[u8]) -> Attribute {
    let data = vec![
        Attribute::number(1, 1),
        Attribute::number(2, operator),
        Attribute::nested(3, value(bytes)),
    ];
    expression("cmp", data)
}

fn payload(header: u32, offset: u32, length: u32) -> Attribute {
    let data = vec![
        Attribute::number(1, 1),
        Attribute::number(2, header),
        Attribute::number(3, offset),
        Attribute::number(4, length),
    ];
    expression("payload", data)
}

fn mask(mask: &[u8]) -> Attribute {
    let length = u32::try_from(mask.len()).expect("an address has at most 16 bytes");
    let data = vec![
        Attribute::number(1, 1),
        Attribute::number(2, 1),
        Attribute::number(3, length),
        Attribute::nested(4, value(mask)),
        Attribute::nested(5, value(&vec![0; mask.len()])),
    ];
    expression("bitwise", data)
}

fn load(register: u32, bytes: &[u8]) -> Attribute {
    let data = vec![Attribute::number(1, register), Attribute::nested(2, value(bytes))];
    expression("immediate", data)
}
