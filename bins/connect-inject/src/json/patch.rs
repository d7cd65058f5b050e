//! Edits of a JSON document, and the JSON patch that they make.
//!
//! Source: RFC 6902 (JSON Patch) and RFC 6901 (JSON Pointer).

use std::collections::BTreeMap;

use serde::{Deserialize as _, Serialize};
use serde_json::{Map, Value};

use super::{WrongShape, find};
use crate::json;

/// A JSON value as text. The webhook only writes the values that it adds; building each as
/// a [`Value`] first took most of a review's time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Text(String);

/// An edit. Nothing is ever removed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Edit {
    /// Adds an object or array that is absent.
    Make {
        path: String,
        value: Text,
        /// Whether it was null before.
        was_null: bool,
    },
    /// Sets a member of an object.
    Set {
        path: String,
        value: Text,
        /// Whether the member existed.
        replaces: bool,
    },
    /// Inserts elements at the start of an array.
    Front { path: String, values: Vec<Text> },
    /// Appends an element to an array.
    Back { path: String, value: Text },
}

/// Collects edits of a document without changing it. Paths are JSON pointers into the
/// original document. Absent or null objects and arrays are added; another type is an
/// error.
#[derive(Debug)]
pub(crate) struct Editor<'d> {
    document: &'d Value,
    edits: Vec<Edit>,
    made: Vec<String>,
    weight: usize,
}

/// What exists at a path.
enum Found<'d> {
    Object(Option<&'d Map<String, Value>>),
    Array,
    Nothing,
}

// === impl Text ===

impl Text {
    /// Serializes a value.
    pub(crate) fn of(value: &impl Serialize) -> Self {
        Self(serde_json::to_string(value).expect("what is added has string keys only"))
    }

    fn object(members: BTreeMap<&str, Self>) -> Self {
        let mut object = String::from("{");
        for (key, Self(value)) in members {
            object.push_str(if object.len() > 1 { "," } else { "" });
            object.push_str(&Self::of(&key).0);
            object.push(':');
            object.push_str(&value);
        }
        object.push('}');
        Self(object)
    }

    fn array(elements: &[Self]) -> Self {
        let mut array = String::from("[");
        for Self(element) in elements {
            array.push_str(if array.len() > 1 { "," } else { "" });
            array.push_str(element);
        }
        array.push(']');
        Self(array)
    }

    pub(crate) fn value(&self) -> Value {
        let mut reader = serde_json::Deserializer::from_str(&self.0);
        // A value from an annotation may be as deep as the limit allows, and is nested deeper
        // here.
        reader.disable_recursion_limit();
        Value::deserialize(&mut reader).expect("it was written as JSON")
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

// === impl Editor ===

impl<'d> Editor<'d> {
    pub(crate) fn new(document: &'d Value) -> Self {
        Self { document, edits: Vec::new(), made: Vec::new(), weight: 0 }
    }

    pub(crate) fn finish(self) -> Vec<Edit> {
        self.edits
    }

    /// Approximate size of the patch in bytes so far.
    pub(crate) fn weight(&self) -> usize {
        self.weight
    }

    /// Sets members of the object at `path`.
    pub(crate) fn set(
        &mut self,
        path: &str,
        members: BTreeMap<&str, Text>,
    ) -> Result<(), WrongShape> {
        match self.find(path, "an object")? {
            Found::Object(there) => {
                for (key, value) in members {
                    let replaces = there.is_some_and(|object| object.contains_key(key));
                    let path = json::member(path, key);
                    self.push(Edit::Set { path, value, replaces });
                }
                Ok(())
            }
            _ => self.make(path, Text::object(members)),
        }
    }

    /// Inserts values at the start of the array at `path`.
    pub(crate) fn prepend(&mut self, path: &str, values: Vec<Text>) -> Result<(), WrongShape> {
        match self.find(path, "an array")? {
            Found::Array => {
                self.push(Edit::Front { path: path.to_owned(), values });
                Ok(())
            }
            _ => self.make(path, Text::array(&values)),
        }
    }

    /// Appends a value to the array at `path`.
    pub(crate) fn append(&mut self, path: &str, value: Text) -> Result<(), WrongShape> {
        match self.find(path, "an array")? {
            Found::Array => {
                self.push(Edit::Back { path: path.to_owned(), value });
                Ok(())
            }
            _ => self.make(path, Text::array(&[value])),
        }
    }

    fn find(&self, path: &str, expected: &'static str) -> Result<Found<'d>, WrongShape> {
        if self.made.iter().any(|made| made == path) {
            return Ok(if expected == "an array" { Found::Array } else { Found::Object(None) });
        }
        match find(self.document, path) {
            Some(Value::Object(object)) if expected == "an object" => {
                Ok(Found::Object(Some(object)))
            }
            Some(Value::Array(_)) if expected == "an array" => Ok(Found::Array),
            None | Some(Value::Null) => Ok(Found::Nothing),
            Some(other) => Err(WrongShape::new(path, expected, other)),
        }
    }

    /// Adds an absent member, and its absent parents.
    fn make(&mut self, path: &str, value: Text) -> Result<(), WrongShape> {
        let Some((parent, _)) = path.rsplit_once('/') else {
            return Err(WrongShape::new(path, "an object", self.document));
        };
        if matches!(self.find(parent, "an object")?, Found::Nothing) {
            self.make(parent, Text::object(BTreeMap::new()))?;
        }
        let was_null = find(self.document, path).is_some();
        self.made.push(path.to_owned());
        self.push(Edit::Make { path: path.to_owned(), value, was_null });
        Ok(())
    }

    fn push(&mut self, edit: Edit) {
        self.weight += edit.weight();
        self.edits.push(edit);
    }
}

// === impl Edit ===

impl Edit {
    /// Approximate size of its operations in bytes.
    fn weight(&self) -> usize {
        const OPERATION: usize = 32;
        match self {
            Self::Make { path, value, .. }
            | Self::Set { path, value, .. }
            | Self::Back { path, value } => OPERATION + path.len() + value.len(),
            Self::Front { path, values } => {
                values.iter().map(|value| OPERATION + path.len() + value.len()).sum()
            }
        }
    }
}

/// Writes the operations of a JSON patch. Its values are JSON already, so only they and the
/// paths are copied.
pub(crate) fn patch(edits: &[Edit]) -> Vec<u8> {
    let mut patch = Vec::with_capacity(edits.iter().map(Edit::weight).sum::<usize>() + 2);
    let mut add = |op: &str, path: &str, Text(value): &Text| {
        patch.extend_from_slice(if patch.is_empty() { b"[" } else { b"," });
        patch.extend_from_slice(br#"{"op":""#);
        patch.extend_from_slice(op.as_bytes());
        patch.extend_from_slice(br#"","path":"#);
        serde_json::to_writer(&mut patch, path).expect("a vector accepts any text");
        patch.extend_from_slice(br#","value":"#);
        patch.extend_from_slice(value.as_bytes());
        patch.push(b'}');
    };
    for edit in edits {
        match edit {
            Edit::Make { path, value, .. } => add("add", path, value),
            Edit::Set { path, value, replaces } => {
                add(if *replaces { "replace" } else { "add" }, path, value);
            }
            Edit::Front { path, values } => {
                for (index, value) in values.iter().enumerate() {
                    add("add", &format!("{path}/{index}"), value);
                }
            }
            Edit::Back { path, value } => add("add", &[path, "/-"].concat(), value),
        }
    }
    patch.extend_from_slice(if patch.is_empty() { b"[]" } else { b"]" });
    patch
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn members(value: &Value) -> BTreeMap<&str, Text> {
        value.as_object().unwrap().iter().map(|(key, it)| (&**key, Text::of(it))).collect()
    }

    fn text(value: &Value) -> Text {
        Text::of(value)
    }

    /// Applies the operations as an API server would.
    fn patched(before: &Value, editor: Editor<'_>) -> (Value, Value) {
        let operations: Value = serde_json::from_slice(&patch(&editor.finish())).unwrap();
        let patch: json_patch::Patch = serde_json::from_value(operations.clone()).unwrap();
        let mut after = before.clone();
        json_patch::patch(&mut after, &patch).unwrap();
        (after, operations)
    }

    /// `doc is missing path: /metadata/annotations`. Reported in
    /// <https://github.com/hashicorp/consul-k8s/issues/20>.
    #[test]
    fn absent_parents_are_added() {
        for before in
            [json!({}), json!({"metadata": null}), json!({"metadata": {"annotations": null}})]
        {
            let mut editor = Editor::new(&before);
            editor.set("/metadata/annotations", members(&json!({"a/b~c": "d"}))).unwrap();
            editor.set("/metadata/annotations", members(&json!({"e": "f"}))).unwrap();
            editor.append("/spec/volumes", text(&json!({"name": "v"}))).unwrap();
            editor.append("/spec/volumes", text(&json!({"name": "w"}))).unwrap();
            let (after, _) = patched(&before, editor);
            assert_eq!(
                after,
                json!({"metadata": {"annotations": {"a/b~c": "d", "e": "f"}},
                    "spec": {"volumes": [{"name": "v"}, {"name": "w"}]}})
            );
        }
    }

    #[test]
    fn existing_members_and_elements_are_kept() {
        let before = json!({"m": {"x": 1, "y/z": 2}, "a": [1, 2]});
        let mut editor = Editor::new(&before);
        editor.set("/m", members(&json!({"y/z": 3, "n": 4}))).unwrap();
        editor.prepend("/a", vec![text(&json!(8)), text(&json!(9))]).unwrap();
        editor.append("/a", text(&json!(7))).unwrap();
        let weight = editor.weight();
        let (after, operations) = patched(&before, editor);
        assert_eq!(after, json!({"m": {"x": 1, "y/z": 3, "n": 4}, "a": [8, 9, 1, 2, 7]}));
        assert_eq!(
            operations,
            json!([
                {"op": "add", "path": "/m/n", "value": 4},
                {"op": "replace", "path": "/m/y~1z", "value": 3},
                {"op": "add", "path": "/a/0", "value": 8},
                {"op": "add", "path": "/a/1", "value": 9},
                {"op": "add", "path": "/a/-", "value": 7},
            ])
        );
        let length = operations.to_string().len();
        assert!(weight.abs_diff(length) < length / 3, "{weight} {length}");
    }

    #[test]
    fn another_type_is_an_error() {
        let document = json!({"m": [], "a": {}, "s": "text"});
        let mut editor = Editor::new(&document);
        assert!(editor.set("/m", BTreeMap::new()).is_err());
        assert!(editor.append("/a", text(&Value::Null)).is_err());
        assert!(editor.prepend("/a", Vec::new()).is_err());
        let error = editor.append("/s/deep/er", text(&Value::Null)).unwrap_err().to_string();
        assert_eq!(error, "`s`: expected an object, found the string `text`");
        assert!(Editor::new(&json!(5)).set("/m", BTreeMap::new()).is_err());
    }

    proptest! {
        #[test]
        fn any_key_can_be_set(key in any::<String>(), value in any::<String>()) {
            let before = json!({"annotations": {"x": "y"}});
            let mut editor = Editor::new(&before);
            editor.set("/annotations", BTreeMap::from([(&*key, Text::of(&value))])).unwrap();
            let (after, _) = patched(&before, editor);
            prop_assert_eq!(&after["annotations"][key], &value);
        }
    }
}
