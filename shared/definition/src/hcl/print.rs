//! A tree's HCL.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json};

use super::lexer::{is_first_of_name, is_of_name};

/// Writes an object's entries as HCL. What is null is left out: HCL has no word
/// for it.
pub(crate) fn print(entries: &Map<String, Json>) -> String {
    let mut text = String::new();
    body(&mut text, entries, 0);
    text
}

/// The keys that people look for first.
const FIRST: [&str; 5] = ["id", "name", "kind", "address", "port"];

fn body(text: &mut String, entries: &Map<String, Json>, depth: usize) {
    let mut entries: Vec<_> = entries.iter().filter(|(_, value)| !value.is_null()).collect();
    entries
        .sort_by_key(|(key, _)| FIRST.iter().position(|first| first == key).unwrap_or(FIRST.len()));
    for (key, value) in entries {
        indent(text, depth);
        if is_name(key) {
            text.push_str(key);
        } else {
            quote(text, key);
        }
        if value.is_object() {
            text.push(' ');
        } else {
            text.push_str(" = ");
        }
        print_value(text, value, depth);
        text.push('\n');
    }
}

fn print_value(text: &mut String, value: &Json, depth: usize) {
    match value {
        // Only in a list, where it keeps its place.
        Json::Null => text.push_str("\"\""),
        // Writing to a string can't fail.
        Json::Bool(value) => drop(write!(text, "{value}")),
        Json::Number(number) => match number.as_i64() {
            Some(number) => drop(write!(text, "{number}")),
            // With a point or an exponent, so that it is read as what it is.
            None => drop(write!(text, "{:?}", number.as_f64().unwrap_or_default())),
        },
        Json::String(value) => quote(text, value),
        Json::Array(items) if items.iter().any(Json::is_object) => {
            text.push_str("[\n");
            for item in items {
                indent(text, depth + 1);
                print_value(text, item, depth + 1);
                text.push_str(",\n");
            }
            indent(text, depth);
            text.push(']');
        }
        Json::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push_str(", ");
                }
                print_value(text, item, depth);
            }
            text.push(']');
        }
        Json::Object(entries) if entries.is_empty() => text.push_str("{}"),
        Json::Object(entries) => {
            text.push_str("{\n");
            body(text, entries, depth + 1);
            indent(text, depth);
            text.push('}');
        }
    }
}

fn indent(text: &mut String, depth: usize) {
    for _ in 0..depth {
        text.push_str("  ");
    }
}

/// Whether a key needs no quotes.
fn is_name(key: &str) -> bool {
    key.starts_with(is_first_of_name)
        && key.chars().all(is_of_name)
        && !matches!(key, "true" | "false")
}

fn quote(text: &mut String, value: &str) {
    text.push('"');
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            '\r' => text.push_str("\\r"),
            // Or else `${` would begin what is not read as it is written.
            '$' if value.contains("${") => text.push_str("\\x24"),
            c if c.is_control() => drop(write!(text, "\\U{:08x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text.push('"');
}
