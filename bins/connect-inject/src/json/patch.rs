//! Edits of a JSON document, and the JSON patch that they make.
//!
//! Source: RFC 6902 (JSON Patch) and RFC 6901 (JSON Pointer).

use std::collections::BTreeMap;

use serde::ser::SerializeSeq as _;
use serde::{Deserialize as _, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

use super::{WrongShape, escape, find};

/// A JSON value as text. The webhook only writes the values that it adds; building each as
/// a [`Value`] first took most of a review's time.
#[derive(Clone, Debug)]
pub(crate) struct Text(Box<RawValue>);

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

/// Serializes edits as the operations of a JSON patch.
#[derive(Debug)]
pub(crate) struct Patch<'e>(pub(crate) &'e [Edit]);

#[derive(Serialize)]
struct Operation<'e> {
    op: &'static str,
    path: &'e str,
    value: &'e Text,
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
        Self(to_raw_value(value).expect("what is added has string keys only"))
    }

    pub(crate) fn value(&self) -> Value {
        let mut reader = serde_json::Deserializer::from_str(self.0.get());
        // A value from an annotation may be as deep as the limit allows, and is nested deeper
        // here.
        reader.disable_recursion_limit();
        Value::deserialize(&mut reader).expect("it was written as JSON")
    }

    fn len(&self) -> usize {
        self.0.get().len()
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
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
                    let path = format!("{path}/{}", escape(key));
                    self.push(Edit::Set { path, value, replaces });
                }
                Ok(())
            }
            _ => self.make(path, Text::of(&members)),
        }
    }

    /// Inserts values at the start of the array at `path`.
    pub(crate) fn prepend(&mut self, path: &str, values: Vec<Text>) -> Result<(), WrongShape> {
        match self.find(path, "an array")? {
            Found::Array => {
                self.push(Edit::Front { path: path.to_owned(), values });
                Ok(())
            }
            _ => self.make(path, Text::of(&values)),
        }
    }

    /// Appends a value to the array at `path`.
    pub(crate) fn append(&mut self, path: &str, value: Text) -> Result<(), WrongShape> {
        match self.find(path, "an array")? {
            Found::Array => {
                self.push(Edit::Back { path: path.to_owned(), value });
                Ok(())
            }
            _ => self.make(path, Text::of(&[value])),
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
            self.make(parent, Text::of(&Map::new()))?;
        }
        let was_null = find(self.document, path).is_some();
        self.made.push(path.to_owned());
        self.push(Edit::Make { path: path.to_owned(), value, was_null });
        Ok(())
    }

    fn push(&mut self, edit: Edit) {
        const OPERATION: usize = 32;
        self.weight += match &edit {
            Edit::Make { path, value, .. }
            | Edit::Set { path, value, .. }
            | Edit::Back { path, value } => OPERATION + path.len() + value.len(),
            Edit::Front { path, values } => {
                values.iter().map(|value| OPERATION + path.len() + value.len()).sum()
            }
        };
        self.edits.push(edit);
    }
}

// === impl Patch ===

impl Serialize for Patch<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut operations = serializer.serialize_seq(None)?;
        let mut add = |op, path: &str, value: &Text| {
            operations.serialize_element(&Operation { op, path, value })
        };
        for edit in self.0 {
            match edit {
                Edit::Make { path, value, .. } => add("add", path, value)?,
                Edit::Set { path, value, replaces } => {
                    add(if *replaces { "replace" } else { "add" }, path, value)?;
                }
                Edit::Front { path, values } => {
                    for (index, value) in values.iter().enumerate() {
                        add("add", &format!("{path}/{index}"), value)?;
                    }
                }
                Edit::Back { path, value } => add("add", &format!("{path}/-"), value)?,
            }
        }
        operations.end()
    }
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
        let operations = serde_json::to_value(Patch(&editor.finish())).unwrap();
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
