//! JSON into a tree.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::Found;
use crate::tree::{DEEPEST, Key, Node, Value};

/// Reads a JSON text. It takes time in proportion to the length times the depth.
pub(crate) fn parse(text: &str) -> Result<Node, Found> {
    let raw: &RawValue = read(text, text)?;
    node(text, raw, 0)
}

fn node(text: &str, raw: &RawValue, depth: usize) -> Result<Node, Found> {
    let source = raw.get();
    let offset = offset_in(text, source);
    if depth > DEEPEST {
        let message = format!("nested more than {DEEPEST} levels deep");
        return Err(Found { offset, path: String::new(), message });
    }
    let value = match source.as_bytes().first() {
        Some(b'{') => {
            let Entries(entries) = read(text, source)?;
            let entries = entries
                .into_iter()
                .map(|(key, raw)| Ok((self::key(text, key)?, node(text, raw, depth + 1)?)));
            Value::Object(entries.collect::<Result<_, _>>()?)
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = read(text, source)?;
            let nodes = items.into_iter().map(|raw| node(text, raw, depth + 1));
            Value::List(nodes.collect::<Result<_, _>>()?)
        }
        Some(b'"') => Value::Text(read::<Cow<'_, str>>(text, source)?.into_owned()),
        Some(b't' | b'f') => Value::Bool(read(text, source)?),
        Some(b'n') => Value::Null,
        _ => Value::Number(read(text, source)?),
    };
    Ok(Node { offset, value })
}

fn key(text: &str, raw: &RawValue) -> Result<Key, Found> {
    let source = raw.get();
    let offset = offset_in(text, source);
    Ok(Key { text: read::<Cow<'_, str>>(text, source)?.into_owned(), offset })
}

/// Reads one level of a part of the text.
fn read<'a, T: Deserialize<'a>>(text: &str, part: &'a str) -> Result<T, Found> {
    serde_json::from_str(part).map_err(|error| {
        // The place is said by us, for the text as a whole.
        let message = error.to_string();
        let message = message.rsplit_once(" at line ").map_or(&*message, |(message, _)| message);
        Found {
            offset: offset_in(text, part) + place(part, error.line(), error.column()),
            path: String::new(),
            message: format!("not JSON: {message}"),
        }
    })
}

/// Where a part of the text begins.
fn offset_in(text: &str, part: &str) -> usize {
    part.as_ptr().addr() - text.as_ptr().addr()
}

/// The offset of serde_json's line and column (in bytes, of the last one read).
fn place(text: &str, line: usize, column: usize) -> usize {
    let before: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let offset = (before + column.saturating_sub(1)).min(text.len());
    // Not within a character.
    (0..=offset).rev().find(|offset| text.is_char_boundary(*offset)).unwrap_or(0)
}

/// An object's entries, in order and with repeated keys.
struct Entries<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Vec<(&'de RawValue, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(entries)
            }
        }

        deserializer.deserialize_map(InOrder).map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn error(text: &str) -> (usize, String) {
        let found = parse(text).err().expect("an error");
        (found.offset, found.message)
    }

    #[test]
    fn values_know_their_place() {
        let text = " {\"a\": [1, \"\\u00e9\"],\n \"b\" : {\"c\": null, \"d\": true}}";
        let root = parse(text).ok().unwrap();
        assert_eq!(root.to_json(), json!({"a": [1, "é"], "b": {"c": null, "d": true}}));
        let Value::Object(entries) = &root.value else { panic!("an object") };
        let Value::Object(inner) = &entries[1].1.value else { panic!("an object") };
        assert_eq!(root.offset, 1);
        assert_eq!(&text[inner[1].1.offset..], "true}}");
    }

    #[test]
    fn errors_say_where() {
        assert_eq!(error(""), (0, "not JSON: EOF while parsing a value".to_owned()));
        assert_eq!(error("{\"a\":\n nope}").0, 8);
        assert_eq!(error("{} {}").0, 3);
        assert_eq!(error("{\"a\": 1e999}"), (10, "not JSON: number out of range".to_owned()));
        let (offset, message) = error("{\"a\": {\"b\": \"\\ud800\"}}");
        assert!((12..20).contains(&offset) && message.contains("hex escape"), "{offset} {message}");
    }

    #[test]
    fn depth_has_a_limit() {
        let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(&nested(DEEPEST)).is_ok());
        assert!(error(&nested(100_000)).1.contains("64 levels"));
    }

    proptest! {
        #[test]
        fn reads_what_serde_json_reads(text in r#"[{}\[\]:, "ab\\u0-9\.e-]{0,24}"#) {
            let ours = parse(&text).ok().map(|node| node.to_json());
            prop_assert_eq!(ours, serde_json::from_str(&text).ok());
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = parse(&text);
        }
    }
}
