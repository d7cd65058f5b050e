//! Edits of a JSON document, each recorded as an operation of a JSON patch.
//!
//! Source: RFC 6902 (JSON Patch) and RFC 6901 (JSON Pointer).

use serde::Serialize;
use serde_json::{Map, Value};

use crate::shape::{WrongShape, escape, find, find_mut};
use crate::undo::{Step, place};

/// One operation of a JSON patch. There are only these two: the injector takes
/// nothing away.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(crate) enum Operation {
    /// A member, or an element of an array, that was not there.
    Add {
        /// Where, as a JSON pointer.
        path: String,
        /// What.
        value: Value,
    },
    /// Another value of a member.
    Replace {
        /// Where, as a JSON pointer.
        path: String,
        /// What.
        value: Value,
    },
}

/// A document under edit, at JSON pointers that have nothing escaped. Objects and
/// arrays that are absent are made, and null counts as absent; what is of another
/// type is an error.
#[derive(Debug)]
pub(crate) struct Editor {
    document: Value,
    operations: Vec<Operation>,
    /// How it is taken back, in the order in which it was done.
    steps: Vec<Step>,
}

// === impl Editor ===

impl Editor {
    pub(crate) fn new(document: Value) -> Self {
        Self { document, operations: Vec::new(), steps: Vec::new() }
    }

    /// The document as it is now, and how it came to be so.
    pub(crate) fn finish(self) -> (Value, Vec<Operation>) {
        (self.document, self.operations)
    }

    /// How what was done so far is taken back.
    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Sets members of the object at `path`.
    pub(crate) fn set(
        &mut self,
        path: &str,
        members: Map<String, Value>,
    ) -> Result<(), WrongShape> {
        let place = place(&self.document, path);
        match find_mut(&mut self.document, path) {
            Some(Value::Object(object)) => {
                for (key, value) in members {
                    let (path, place) =
                        (format!("{path}/{}", escape(&key)), format!("{place}/{}", escape(&key)));
                    if let Some(old) = object.insert(key, value.clone()) {
                        self.steps.push(Step::Replaced(place, old));
                        self.operations.push(Operation::Replace { path, value });
                    } else {
                        self.steps.push(Step::Added(place));
                        self.operations.push(Operation::Add { path, value });
                    }
                }
                Ok(())
            }
            None | Some(Value::Null) => {
                let keys: Vec<_> = members.keys().map(|key| escape(key)).collect();
                self.make(path, Value::Object(members))?;
                self.steps.extend(keys.iter().map(|key| Step::Added(format!("{place}/{key}"))));
                Ok(())
            }
            Some(other) => Err(WrongShape::new(path, "an object", other)),
        }
    }

    /// Puts values in front of those of the array at `path`.
    pub(crate) fn prepend(&mut self, path: &str, values: Vec<Value>) -> Result<(), WrongShape> {
        let step = Step::Front(place(&self.document, path), values.iter().map(name).collect());
        match find_mut(&mut self.document, path) {
            Some(Value::Array(array)) => {
                for (index, value) in values.iter().enumerate() {
                    let path = format!("{path}/{index}");
                    self.operations.push(Operation::Add { path, value: value.clone() });
                }
                array.splice(0..0, values);
            }
            None | Some(Value::Null) => self.make(path, Value::Array(values))?,
            Some(other) => return Err(WrongShape::new(path, "an array", other)),
        }
        self.steps.push(step);
        Ok(())
    }

    /// Puts a value behind those of the array at `path`.
    pub(crate) fn append(&mut self, path: &str, value: Value) -> Result<(), WrongShape> {
        let step = Step::Back(place(&self.document, path), name(&value));
        match find_mut(&mut self.document, path) {
            Some(Value::Array(array)) => {
                self.operations
                    .push(Operation::Add { path: format!("{path}/-"), value: value.clone() });
                array.push(value);
            }
            None | Some(Value::Null) => self.make(path, Value::Array(vec![value]))?,
            Some(other) => return Err(WrongShape::new(path, "an array", other)),
        }
        self.steps.push(step);
        Ok(())
    }

    /// Adds a member that is absent, and the objects above it that are.
    fn make(&mut self, path: &str, value: Value) -> Result<(), WrongShape> {
        let Some((parent, key)) = path.rsplit_once('/') else {
            return Err(WrongShape::new(path, "an object", &self.document));
        };
        if find(&self.document, parent).is_none_or(Value::is_null) {
            self.make(parent, Value::Object(Map::new()))?;
        }
        let place = place(&self.document, path);
        match find_mut(&mut self.document, parent) {
            Some(Value::Object(object)) => {
                // Only names of fields come here, which need no unescaping.
                let was_null = object.insert(key.to_owned(), value.clone()).is_some();
                self.operations.push(Operation::Add { path: path.to_owned(), value });
                self.steps.push(if was_null { Step::MadeOfNull(place) } else { Step::Made(place) });
                Ok(())
            }
            other => {
                Err(WrongShape::new(parent, "an object", other.as_deref().unwrap_or(&Value::Null)))
            }
        }
    }
}

/// An element's name, by which it is found again.
fn name(element: &Value) -> String {
    element.get("name").and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn members(value: &Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    /// Applies the recorded operations as an API server would.
    fn check(before: &Value, editor: Editor) -> (Value, Value) {
        let (after, operations) = editor.finish();
        let operations = serde_json::to_value(operations).unwrap();
        let patch: json_patch::Patch = serde_json::from_value(operations.clone()).unwrap();
        let mut patched = before.clone();
        json_patch::patch(&mut patched, &patch).unwrap();
        assert_eq!(patched, after);
        (after, operations)
    }

    /// Pain 34: `doc is missing path: /metadata/annotations`.
    #[test]
    fn parents_that_are_absent_are_made() {
        for before in
            [json!({}), json!({"metadata": null}), json!({"metadata": {"annotations": null}})]
        {
            let mut editor = Editor::new(before.clone());
            editor.set("/metadata/annotations", members(&json!({"a/b~c": "d"}))).unwrap();
            editor.append("/spec/volumes", json!({"name": "v"})).unwrap();
            let (after, _) = check(&before, editor);
            assert_eq!(
                after,
                json!({"metadata": {"annotations": {"a/b~c": "d"}}, "spec": {"volumes": [{"name": "v"}]}})
            );
        }
    }

    #[test]
    fn what_is_there_stays() {
        let before = json!({"m": {"x": 1, "y/z": 2}, "a": [1, 2]});
        let mut editor = Editor::new(before.clone());
        editor.set("/m", members(&json!({"y/z": 3, "n": 4}))).unwrap();
        editor.prepend("/a", vec![json!(8), json!(9)]).unwrap();
        editor.append("/a", json!(7)).unwrap();
        let (after, operations) = check(&before, editor);
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
    }

    #[test]
    fn another_type_is_an_error() {
        let mut editor = Editor::new(json!({"m": [], "a": {}, "s": "text"}));
        assert!(editor.set("/m", Map::new()).is_err());
        assert!(editor.append("/a", Value::Null).is_err());
        assert!(editor.prepend("/a", Vec::new()).is_err());
        let error = editor.append("/s/deep/er", Value::Null).unwrap_err().to_string();
        assert_eq!(error, "`s`: expected an object, found the string `text`");
        assert!(Editor::new(json!(5)).set("/m", Map::new()).is_err());
    }

    proptest! {
        #[test]
        fn any_key_can_be_set(key in any::<String>(), value in any::<String>()) {
            let before = json!({"annotations": {"x": "y"}});
            let mut editor = Editor::new(before.clone());
            editor.set("/annotations", Map::from_iter([(key, Value::String(value))])).unwrap();
            check(&before, editor);
        }
    }
}
