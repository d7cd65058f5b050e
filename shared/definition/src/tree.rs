//! What a file says, whatever its format.
//!
//! A format with blocks, such as HCL, makes each block an object in a list: one
//! of them is as good as the object itself (see `object`).

use std::fmt;

use serde_json::{Map, Number, Value as Json};

/// A value, and where it begins. Not `Debug`: it may hold a token.
pub(crate) struct Node {
    /// In bytes of the text.
    pub(crate) offset: usize,
    pub(crate) value: Value,
}

pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file; a key may come twice.
    Object(Vec<(String, Node)>),
}

/// How much of a text is repeated in a message.
const LONGEST_QUOTE: usize = 60;

impl Node {
    /// The value as free JSON, for what is passed on and not understood here.
    pub(crate) fn to_json(&self) -> Json {
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Number(number) => Json::Number(number.clone()),
            Value::Text(text) => Json::String(text.clone()),
            Value::List(nodes) => nodes.iter().map(Self::to_json).collect(),
            Value::Object(entries) => Json::Object(to_map(entries)),
        }
    }
}

/// Free JSON of an object's entries.
pub(crate) fn to_map(entries: &[(String, Node)]) -> Map<String, Json> {
    entries.iter().map(|(key, node)| (key.clone(), node.to_json())).collect()
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
            Self::Null | Self::List(_) | Self::Object(_) => f.write_str(self.kind()),
        }
    }
}
