//! Raw JSON: JSON pointers, errors for unexpected types, and edits.

pub(crate) mod patch;

use std::borrow::Cow;
use std::fmt::{self, Display};

use serde_json::Value;

/// A value of another type than Kubernetes defines for that field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WrongShape {
    pointer: String,
    expected: &'static str,
    found: String,
}

/// The JSON pointer to a member of the object at `pointer`.
pub(crate) fn member(pointer: &str, key: &str) -> String {
    let mut member = String::with_capacity(pointer.len() + key.len() + 4);
    member.push_str(pointer);
    member.push('/');
    push_escaped(&mut member, key);
    member
}

/// Appends a key to a JSON pointer.
pub(crate) fn push_escaped(pointer: &mut String, key: &str) {
    let mut rest = key;
    while let Some(at) = rest.bytes().position(|byte| matches!(byte, b'~' | b'/')) {
        pointer.push_str(&rest[..at]);
        pointer.push_str(if rest[at..].starts_with('~') { "~0" } else { "~1" });
        rest = &rest[at + 1..];
    }
    pointer.push_str(rest);
}

/// Reverses [`push_escaped`].
pub(crate) fn unescape(part: &str) -> Cow<'_, str> {
    if part.bytes().any(|byte| byte == b'~') {
        part.replace("~1", "/").replace("~0", "~").into()
    } else {
        part.into()
    }
}

/// The member or element that one part of a JSON pointer selects. [`Value::pointer`] would
/// copy each part twice.
pub(crate) fn child<'a>(value: &'a Value, part: &str) -> Option<&'a Value> {
    match value {
        Value::Object(object) => object.get(&*unescape(part)),
        Value::Array(array) => array.get(index(part)?),
        _ => None,
    }
}

/// The value at a JSON pointer.
pub(crate) fn find<'a>(value: &'a Value, pointer: &str) -> Option<&'a Value> {
    pointer.split('/').skip(1).try_fold(value, child)
}

/// The mutable value at a JSON pointer.
pub(crate) fn find_mut<'a>(value: &'a mut Value, pointer: &str) -> Option<&'a mut Value> {
    pointer.split('/').skip(1).try_fold(value, |value, part| match value {
        Value::Object(object) => object.get_mut(&*unescape(part)),
        Value::Array(array) => array.get_mut(index(part)?),
        _ => None,
    })
}

fn index(part: &str) -> Option<usize> {
    part.parse().ok().filter(|_| !part.starts_with('+'))
}

/// Approximate size of a value as JSON text, in bytes.
pub(crate) fn weight(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 3,
        Value::Array(array) => array.iter().fold(2, |sum, value| sum + weight(value)),
        Value::Object(object) => {
            object.iter().fold(2, |sum, (key, value)| sum + key.len() + 4 + weight(value))
        }
        _ => 6,
    }
}

/// Quotes a text for an error: one line of at most 100 characters.
pub(crate) fn quoted(text: &str) -> String {
    const MOST: usize = 100;
    let end = text.char_indices().nth(MOST).map(|(end, _)| end);
    let shown: String = text[..end.unwrap_or(text.len())]
        .chars()
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect();
    format!("`{shown}{}`", if end.is_some() { "…" } else { "" })
}

// === impl WrongShape ===

impl WrongShape {
    pub(crate) fn new(pointer: impl Display, expected: &'static str, found: &Value) -> Self {
        let found = match found {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => format!("the boolean {value}"),
            Value::Number(value) => format!("the number {value}"),
            Value::String(value) => format!("the string {}", quoted(value)),
            Value::Array(_) => "an array".to_owned(),
            Value::Object(_) => "an object".to_owned(),
        };
        Self { pointer: pointer.to_string(), expected, found }
    }
}

impl Display for WrongShape {
    /// Writes the pointer as people write a field: `spec.containers[0].name`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut place = String::new();
        for part in self.pointer.split('/').skip(1) {
            if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
                place.extend(["[", part, "]"]);
            } else {
                place.push_str(if place.is_empty() { "" } else { "." });
                place.push_str(&unescape(part));
            }
        }
        if place.is_empty() {
            place.push_str("the pod");
        }
        write!(f, "{}: expected {}, found {}", quoted(&place), self.expected, self.found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_resolved_as_by_serde_json() {
        let mut value =
            serde_json::json!({"a": [{"b": 1}, null], "c": {"0": 2}, "": {"": 3}, "x/~y": 4});
        for pointer in [
            "", "/a", "/a/0/b", "/a/1", "/a/+1", "/a/2", "/a/-", "/c/0", "/c/1", "/", "//",
            "/a/0/b/c", "/x~1~0y",
        ] {
            assert_eq!(find(&value, pointer), value.pointer(pointer), "{pointer}");
            let expected = value.pointer(pointer).cloned();
            assert_eq!(find_mut(&mut value, pointer).cloned(), expected, "{pointer}");
        }
        assert_eq!(member("/x", "a/b~c~1/"), "/x/a~1b~0c~01~1");
    }

    #[test]
    fn quoted_text_stays_on_one_line() {
        assert_eq!(quoted("a\nb"), "`a\u{fffd}b`");
        assert_eq!(quoted(&"é".repeat(101)), format!("`{}…`", "é".repeat(100)));
    }
}
