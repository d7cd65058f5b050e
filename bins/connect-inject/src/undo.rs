//! How an injection is taken back: the steps that the injector writes into the
//! pod, and `uninject`, which follows them.
//!
//! Places are JSON pointers in which an element of an array has its name behind
//! its index, `/spec/containers/0:web/env`. So it is found even if another
//! webhook has put something in front of it since.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::annotation::{STATUS, UNDO};
use crate::shape::{child, escape};

/// What was done, of which the opposite is to be done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Step {
    /// An object or array was made; it goes when nothing is left in it.
    Made(String),
    /// The same where there was a null, which comes back.
    MadeOfNull(String),
    /// A member was added.
    Added(String),
    /// A member was replaced, with what it was before.
    Replaced(String, Value),
    /// Elements of these names were put in front of an array.
    Front(String, Vec<String>),
    /// An element of that name was put behind an array.
    Back(String, String),
}

/// What became of a pod that was to be as before.
#[derive(Debug, PartialEq)]
pub(crate) enum Undone {
    /// It is as before.
    Pod(Value),
    /// It was never injected.
    NotInjected,
    /// It was, but by something that left no steps that can be read.
    NoSteps(String),
}

/// Takes an injection back.
pub(crate) fn uninject(pod: &Value) -> Undone {
    let annotations = pod.pointer("/metadata/annotations");
    let annotation = |key| annotations.and_then(|annotations| annotations.get(key));
    let Some(text) = annotation(UNDO).and_then(Value::as_str) else {
        return match annotation(STATUS).and_then(Value::as_str) {
            None | Some("") => Undone::NotInjected,
            Some(_) => Undone::NoSteps(format!("there is no annotation `{UNDO}`")),
        };
    };
    let steps: Vec<Step> = match serde_json::from_str(text) {
        Ok(steps) => steps,
        Err(error) => return Undone::NoSteps(format!("annotation `{UNDO}`: {error}")),
    };
    let mut pod = pod.clone();
    remove(&mut pod, &format!("/metadata/annotations/{}", escape(UNDO)));
    for step in steps.iter().rev() {
        step.take_back(&mut pod);
    }
    Undone::Pod(pod)
}

/// A pointer that has nothing escaped, as a place of the document as it is now.
pub(crate) fn place(document: &Value, pointer: &str) -> String {
    let mut place = String::new();
    let mut value = Some(document);
    for part in pointer.split('/').skip(1) {
        place.extend(["/", part]);
        let is_array = value.is_some_and(Value::is_array);
        value = value.and_then(|value| child(value, part));
        if let Some(name) = value.filter(|_| is_array).and_then(name) {
            place.extend([":", &escape(name)]);
        }
    }
    place
}

fn name(element: &Value) -> Option<&str> {
    element.get("name")?.as_str()
}

fn unescape(part: &str) -> String {
    part.replace("~1", "/").replace("~0", "~")
}

/// What is at a place.
fn find<'a>(document: &'a mut Value, place: &str) -> Option<&'a mut Value> {
    let mut value = document;
    for part in place.split('/').skip(1) {
        value = match value {
            Value::Object(object) => object.get_mut(&unescape(part))?,
            Value::Array(array) => {
                let (index, wanted) = match part.split_once(':') {
                    Some((index, wanted)) => (index, Some(unescape(wanted))),
                    None => (part, None),
                };
                let index = index.parse().ok()?;
                let index = match wanted {
                    Some(wanted) => near(array, &wanted, index)?,
                    None => index,
                };
                array.get_mut(index)?
            }
            _ => return None,
        };
    }
    Some(value)
}

/// The element of that name: at `index`, or the first that has it.
fn near(array: &[Value], wanted: &str, index: usize) -> Option<usize> {
    let is_it = |element: &Value| name(element).unwrap_or_default() == wanted;
    match array.get(index) {
        Some(element) if is_it(element) => Some(index),
        _ => array.iter().position(is_it),
    }
}

/// Removes the member at a place.
fn remove(document: &mut Value, place: &str) {
    if let Some((parent, key)) = place.rsplit_once('/')
        && let Some(Value::Object(object)) = find(document, parent)
    {
        object.remove(&unescape(key));
    }
}

// === impl Step ===

impl Step {
    /// What can't be found is gone already, and that is fine.
    fn take_back(&self, pod: &mut Value) {
        let is_empty = |value: Option<&mut Value>| match value {
            Some(Value::Object(object)) => object.is_empty(),
            Some(Value::Array(array)) => array.is_empty(),
            _ => false,
        };
        match self {
            Self::Made(place) => {
                if is_empty(find(pod, place)) {
                    remove(pod, place);
                }
            }
            Self::MadeOfNull(place) => {
                if let Some(value) = find(pod, place)
                    && is_empty(Some(value))
                {
                    *value = Value::Null;
                }
            }
            Self::Added(place) => remove(pod, place),
            Self::Replaced(place, old) => {
                if let Some((parent, key)) = place.rsplit_once('/')
                    && let Some(Value::Object(object)) = find(pod, parent)
                {
                    object.insert(unescape(key), old.clone());
                }
            }
            Self::Front(place, names) => {
                if let Some(Value::Array(array)) = find(pod, place) {
                    for name in names {
                        if let Some(index) = near(array, name, 0) {
                            array.remove(index);
                        }
                    }
                }
            }
            Self::Back(place, wanted) => {
                if let Some(Value::Array(array)) = find(pod, place) {
                    let is_it = |element: &Value| name(element).unwrap_or_default() == wanted;
                    if let Some(index) = array.iter().rposition(is_it) {
                        array.remove(index);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::decision::tests::policy;
    use crate::verdict::judge;

    fn injected(pod: &Value) -> Value {
        judge(pod.clone(), "default", &policy()).injected.unwrap().pod
    }

    fn pod() -> Value {
        json!({
            "metadata": {"annotations": {
                crate::annotation::INJECT: "true", crate::annotation::UPSTREAMS: "db:1234",
            }},
            "spec": {"containers": [
                {"name": "web", "env": [{"name": "A"}]},
                {"name": "log", "env": null},
            ]},
        })
    }

    /// Pain 35: what other injectors do between the two.
    #[test]
    fn what_others_added_since_stays() {
        let mut after = injected(&pod());
        let containers = after["spec"]["containers"].as_array_mut().unwrap();
        containers.insert(0, json!({"name": "mesh-proxy"}));
        containers[2]["env"].as_array_mut().unwrap().insert(0, json!({"name": "B"}));
        after["spec"]["initContainers"].as_array_mut().unwrap().push(json!({"name": "mesh-init"}));
        after["metadata"]["labels"]["other"] = "x".into();
        let mut expected = pod();
        expected["metadata"]["labels"] = json!({"other": "x"});
        expected["spec"]["initContainers"] = json!([{"name": "mesh-init"}]);
        expected["spec"]["containers"] = json!([
            {"name": "mesh-proxy"},
            {"name": "web", "env": [{"name": "B"}, {"name": "A"}]},
            {"name": "log", "env": null},
        ]);
        assert_eq!(uninject(&after), Undone::Pod(expected));
    }

    #[test]
    fn only_what_we_injected_is_taken_back() {
        assert_eq!(uninject(&pod()), Undone::NotInjected);
        assert_eq!(uninject(&json!("text")), Undone::NotInjected);
        let other = json!({"metadata": {"annotations": {STATUS: "injected"}}});
        assert!(matches!(uninject(&other), Undone::NoSteps(_)));
        let broken = json!({"metadata": {"annotations": {UNDO: "[{}]"}}});
        assert!(matches!(uninject(&broken), Undone::NoSteps(_)));
    }

    proptest! {
        /// The annotation is the user's to write, too.
        #[test]
        fn no_steps_panic(place in "(/(metadata|spec|containers|[0-9]:[a-z]?|annotations|~[01]|)){0,4}", name in "[a-z]?") {
            let mut pod = injected(&pod());
            let steps = vec![
                Step::Made(place.clone()), Step::MadeOfNull(place.clone()), Step::Added(place.clone()),
                Step::Replaced(place.clone(), Value::Null), Step::Front(place.clone(), vec![name.clone()]),
                Step::Back(place, name),
            ];
            for step in steps {
                pod["metadata"]["annotations"][UNDO] = serde_json::to_string(&[step]).unwrap().into();
                prop_assert!(matches!(uninject(&pod), Undone::Pod(_)));
            }
        }
    }
}
