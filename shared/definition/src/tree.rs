//! What a file says, whatever its format.

use std::fmt;

use serde_json::{Map, Number, Value as Json};

/// More nesting than any definition has. Reading is recursive.
pub(crate) const DEEPEST: usize = 64;

/// A value, and where it begins. Not `Debug`: it may hold a token.
pub(crate) struct Node {
    /// In bytes of the text.
    pub(crate) offset: usize,
    pub(crate) value: Value,
}

pub(crate) struct Key {
    pub(crate) text: String,
    /// In bytes of the text.
    pub(crate) offset: usize,
}

pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file; a key may come twice.
    Object(Vec<(Key, Node)>),
    /// The objects that a key was given one by one, of a format that has blocks:
    /// one is the object itself, and any number is a list.
    Blocks(Vec<Node>),
}

/// How much of a text is repeated in a message.
const LONGEST_QUOTE: usize = 60;

/// Whether a key's value is not to be seen in a message.
pub(crate) fn is_secret(key: &str) -> bool {
    key.to_ascii_lowercase().contains("token")
}

impl Node {
    /// The value as free JSON, for what is passed on and not understood here.
    pub(crate) fn to_json(&self) -> Json {
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Number(number) => Json::Number(number.clone()),
            Value::Text(text) => Json::String(text.clone()),
            Value::Blocks(nodes) if nodes.len() == 1 => nodes[0].to_json(),
            Value::List(nodes) | Value::Blocks(nodes) => nodes.iter().map(Self::to_json).collect(),
            Value::Object(entries) => Json::Object(to_map(entries)),
        }
    }
}

/// Free JSON of an object's entries.
pub(crate) fn to_map(entries: &[(Key, Node)]) -> Map<String, Json> {
    entries.iter().map(|(key, node)| (key.text.clone(), node.to_json())).collect()
}

impl Value {
    /// What it is, without what it says.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
            Self::Blocks(_) => "a block",
        }
    }
}

impl fmt::Display for Value {
    /// As a message says what was found.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(number) => write!(f, "the number {number}"),
            Self::Text(text) => match text.char_indices().nth(LONGEST_QUOTE) {
                Some((end, _)) => write!(f, "the text {:?}...", &text[..end]),
                None => write!(f, "the text {text:?}"),
            },
            Self::Null | Self::List(_) | Self::Object(_) | Self::Blocks(_) => {
                f.write_str(self.kind())
            }
        }
    }
}
