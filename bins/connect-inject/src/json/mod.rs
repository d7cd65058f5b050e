//! Raw JSON: pointers into it, what is of the wrong type, and edits.

pub(crate) mod patch;

use std::borrow::Cow;
use std::fmt;

use serde_json::Value;

/// A part of a pod that is not of the type that Kubernetes gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WrongShape {
    pointer: String,
    expected: &'static str,
    found: String,
}

/// A key as a part of a JSON pointer.
pub(crate) fn escape(key: &str) -> String {
    let mut part = String::with_capacity(key.len() + 2);
    for c in key.chars() {
        match c {
            '~' => part.push_str("~0"),
            '/' => part.push_str("~1"),
            other => part.push(other),
        }
    }
    part
}

/// A part of a JSON pointer as a key.
pub(crate) fn unescape(part: &str) -> Cow<'_, str> {
    if part.contains('~') { part.replace("~1", "/").replace("~0", "~").into() } else { part.into() }
}

/// What is in an object or array under a part of a JSON pointer.
/// [`Value::pointer`] makes two copies of each part.
pub(crate) fn child<'a>(value: &'a Value, part: &str) -> Option<&'a Value> {
    match value {
        Value::Object(object) => object.get(&*unescape(part)),
        Value::Array(array) => array.get(index(part)?),
        _ => None,
    }
}

/// What is at a JSON pointer.
pub(crate) fn find<'a>(value: &'a Value, pointer: &str) -> Option<&'a Value> {
    pointer.split('/').skip(1).try_fold(value, child)
}

/// The same, to be changed.
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

/// About how many bytes a value takes as text.
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

/// A text as errors quote it: no longer than a line, and on one.
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
    /// What was expected and found at a JSON pointer.
    pub(crate) fn new(pointer: &str, expected: &'static str, found: &Value) -> Self {
        let found = match found {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => format!("the boolean {value}"),
            Value::Number(value) => format!("the number {value}"),
            Value::String(value) => format!("the string {}", quoted(value)),
            Value::Array(_) => "an array".to_owned(),
            Value::Object(_) => "an object".to_owned(),
        };
        Self { pointer: pointer.to_owned(), expected, found }
    }
}

impl fmt::Display for WrongShape {
    /// The place as people write it, `spec.containers[0].name`.
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
    fn a_pointer_leads_where_serde_jsons_own_does() {
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
        assert_eq!(escape("a/b~c~1"), "a~1b~0c~01");
    }

    #[test]
    fn quotes_stay_on_a_line() {
        assert_eq!(quoted("a\nb"), "`a\u{fffd}b`");
        assert_eq!(quoted(&"é".repeat(101)), format!("`{}…`", "é".repeat(100)));
    }
}
