//! The attributes that a message is made of: a kind and a value each, aligned to
//! four bytes. A value is bytes or attributes again.
//!
//! See [`netlink.h`](https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/netlink.h),
//! `struct nlattr`.

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    kind: u16,
    value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Bytes(Vec<u8>),
    Nested(Vec<Attribute>),
}

/// `NLA_F_NESTED`: the value is attributes.
const NESTED: u16 = 0x8000;

/// `NLA_TYPE_MASK`: the kind without such flags.
const KIND: u16 = 0x3fff;

const HEADER: usize = 4;

// === impl Attribute ===

impl Attribute {
    pub(crate) fn bytes(kind: u16, value: &[u8]) -> Self {
        Self { kind, value: Value::Bytes(value.to_owned()) }
    }

    pub(crate) fn text(kind: u16, value: &str) -> Self {
        Self { kind, value: Value::Bytes([value.as_bytes(), b"\0"].concat()) }
    }

    /// A number, as nf_tables wants it: in the order of the network.
    pub(crate) fn number(kind: u16, value: u32) -> Self {
        Self::bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn nested(kind: u16, value: Vec<Self>) -> Self {
        Self { kind, value: Value::Nested(value) }
    }
}

/// The attributes as they are sent.
pub(crate) fn encode(attributes: &[Attribute]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for Attribute { kind, value } in attributes {
        let (kind, value) = match value {
            Value::Bytes(value) => (*kind, value.clone()),
            Value::Nested(inner) => (kind | NESTED, encode(inner)),
        };
        let length = u16::try_from(HEADER + value.len()).expect("a rule takes hundreds of bytes");
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// The kinds and values of attributes that came from the kernel; what is cut off
/// is left out.
pub(crate) fn decode(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d, ..] = *bytes else { return None };
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & KIND, value))
    })
}

/// Whether everything that was sent is in what the kernel has. It may have more:
/// it fills in defaults.
pub(crate) fn is_in(sent: &[Attribute], kept: &[u8]) -> bool {
    sent.iter().all(|attribute| {
        // A list has its kind once for each of its elements.
        let of_kind = || sent.iter().filter(|other| other.kind == attribute.kind);
        let mut kept = decode(kept).filter(|(kind, _)| *kind == attribute.kind);
        of_kind().all(|Attribute { value, .. }| match (value, kept.next()) {
            (Value::Bytes(sent), Some((_, kept))) => sent == kept,
            (Value::Nested(sent), Some((_, kept))) => is_in(sent, kept),
            (_, None) => false,
        }) && kept.next().is_none()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Kinds differ within one level, as they do in a message, or are those of a
    /// list.
    fn attributes() -> impl Strategy<Value = Vec<Attribute>> {
        let leaf =
            prop::collection::vec(any::<u8>(), 0..12).prop_map(|value| Attribute::bytes(0, &value));
        let one = leaf.prop_recursive(3, 24, 4, |inner| {
            prop::collection::vec(inner, 0..4)
                .prop_map(|value| Attribute::nested(0, numbered(value)))
        });
        prop::collection::vec(one, 0..4).prop_map(numbered)
    }

    fn numbered(mut attributes: Vec<Attribute>) -> Vec<Attribute> {
        for (kind, attribute) in (1..).zip(&mut attributes) {
            attribute.kind = kind;
        }
        attributes
    }

    proptest! {
        #[test]
        fn what_was_sent_is_in_what_was_sent(attributes in attributes()) {
            prop_assert!(is_in(&attributes, &encode(&attributes)));
        }

        #[test]
        fn what_the_kernel_adds_does_not_count(attributes in attributes()) {
            let mut more = attributes.clone();
            more.push(Attribute::number(100, 7));
            prop_assert!(is_in(&attributes, &encode(&more)));
            prop_assert!(!is_in(&more, &encode(&attributes)));
        }

        #[test]
        fn no_bytes_make_it_panic(attributes in attributes(), bytes: Vec<u8>) {
            is_in(&attributes, &bytes);
            decode(&bytes).for_each(drop);
        }
    }

    #[test]
    fn a_list_has_as_many_elements_and_in_that_order() {
        let list = |values: &[u32]| -> Vec<_> {
            values.iter().map(|value| Attribute::number(1, *value)).collect()
        };
        assert!(is_in(&list(&[1, 2]), &encode(&list(&[1, 2]))));
        for other in [&[2, 1][..], &[1], &[1, 2, 3]] {
            assert!(!is_in(&list(&[1, 2]), &encode(&list(other))), "{other:?}");
        }
    }
}
