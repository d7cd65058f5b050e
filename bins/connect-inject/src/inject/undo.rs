//! Undoing an injection: `inject` records its steps in an annotation, and `uninject`
//! reverses them.
//!
//! Places are JSON pointers in which the index of an array element is followed by its name,
//! as in `/spec/containers/0:web/env`. So an element is found even if another webhook has
//! inserted something before it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::annotation::{STATUS, UNDO};
use crate::json::patch::{Edit, Text};
use crate::json::{child, find_mut, member, push_escaped, unescape};

/// A step of an injection, to be reversed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Step {
    /// An object or array was added; it is removed if nothing is left in it.
    Made(String),
    /// As [`Step::Made`], where there was a null, which is restored.
    MadeOfNull(String),
    /// A member was added.
    Added(String),
    /// A member was replaced; the old value.
    Replaced(String, Value),
    /// Elements of these names were inserted at the start of an array.
    Front(String, Vec<String>),
    /// As [`Step::Front`], for several arrays.
    FrontOfEach(Vec<String>, Vec<String>),
    /// An element of that name was appended to an array.
    Back(String, String),
}

/// Result of undoing an injection.
#[derive(Debug, PartialEq)]
pub(crate) enum Undone {
    /// The pod without the injection.
    Pod(Value),
    NotInjected,
    /// The pod was injected, but has no steps that can be read.
    NoSteps(String),
}

/// Removes an injection from a pod.
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
    remove(&mut pod, &member("/metadata/annotations", UNDO));
    for step in steps.iter().rev() {
        step.take_back(&mut pod);
    }
    Undone::Pod(pod)
}

/// Applies edits; returns the steps that reverse them.
pub(super) fn carry_out(document: &mut Value, edits: Vec<Edit>) -> Vec<Step> {
    let mut steps = Vec::new();
    for edit in edits {
        edit_one(document, edit, &mut steps);
    }
    steps
}

/// Applies an edit. The editor has checked its path, so nothing is missing here.
fn edit_one(document: &mut Value, edit: Edit, steps: &mut Vec<Step>) {
    match edit {
        Edit::Make { path, value, was_null } => {
            let value = value.value();
            let place = place(document, &path);
            steps.push(if was_null {
                Step::MadeOfNull(place.clone())
            } else {
                Step::Made(place.clone())
            });
            match &value {
                Value::Object(object) => {
                    let members = object.keys().map(|key| member(&place, key));
                    steps.extend(members.map(Step::Added));
                }
                Value::Array(array) => front(steps, place, array),
                _ => {}
            }
            insert(document, &path, value);
        }
        Edit::Set { path, value, .. } => {
            let place = place(document, &path);
            steps.push(match insert(document, &path, value.value()) {
                Some(old) => Step::Replaced(place, old),
                None => Step::Added(place),
            });
        }
        Edit::Front { path, values } => {
            let values: Vec<Value> = values.iter().map(Text::value).collect();
            front(steps, place(document, &path), &values);
            if let Some(Value::Array(array)) = find_mut(document, &path) {
                array.splice(0..0, values);
            }
        }
        Edit::Back { path, value } => {
            let value = value.value();
            let wanted = name(&value).unwrap_or_default().to_owned();
            steps.push(Step::Back(place(document, &path), wanted));
            if let Some(Value::Array(array)) = find_mut(document, &path) {
                array.push(value);
            }
        }
    }
}

/// Records elements inserted at the start of an array. The same names in several arrays,
/// such as variables of containers, are recorded once.
fn front(steps: &mut Vec<Step>, place: String, values: &[Value]) {
    let names: Vec<String> =
        values.iter().map(|value| name(value).unwrap_or_default().to_owned()).collect();
    let made = matches!(steps.last(), Some(Step::Made(_) | Step::MadeOfNull(_)));
    let earlier = steps.len().checked_sub(1 + usize::from(made));
    let mut places = Vec::new();
    if let Some(earlier) = earlier
        && matches!(&steps[earlier], Step::FrontOfEach(_, known) if *known == names)
        && let Step::FrontOfEach(known, _) = steps.remove(earlier)
    {
        // The step moves behind that of the new array, so that undoing empties the array before
        // it removes the array.
        places = known;
    }
    places.push(place);
    steps.push(Step::FrontOfEach(places, names));
}

fn insert(document: &mut Value, path: &str, value: Value) -> Option<Value> {
    let (parent, key) = path.rsplit_once('/')?;
    match find_mut(document, parent)? {
        Value::Object(object) => object.insert(unescape(key).into_owned(), value),
        _ => None,
    }
}

/// Converts a pointer into a place in the current document.
fn place(document: &Value, pointer: &str) -> String {
    let mut place = String::new();
    let mut value = Some(document);
    for part in pointer.split('/').skip(1) {
        place.extend(["/", part]);
        let is_array = value.is_some_and(Value::is_array);
        value = value.and_then(|value| child(value, part));
        if let Some(name) = value.filter(|_| is_array).and_then(name) {
            place.push(':');
            push_escaped(&mut place, name);
        }
    }
    place
}

fn name(element: &Value) -> Option<&str> {
    element.get("name")?.as_str()
}

fn find<'a>(document: &'a mut Value, place: &str) -> Option<&'a mut Value> {
    let mut pointer = String::new();
    let mut value = &*document;
    for part in place.split('/').skip(1) {
        let part: Cow<'_, str> = match (value, part.split_once(':')) {
            (Value::Array(array), Some((index, wanted))) => {
                near(array, &unescape(wanted), index.parse().ok()?)?.to_string().into()
            }
            _ => part.into(),
        };
        value = child(value, &part)?;
        pointer.extend(["/", &*part]);
    }
    find_mut(document, &pointer)
}

/// The index of the element of that name: `index`, or the first match.
fn near(array: &[Value], wanted: &str, index: usize) -> Option<usize> {
    let is_it = |element: &Value| name(element).unwrap_or_default() == wanted;
    match array.get(index) {
        Some(element) if is_it(element) => Some(index),
        _ => array.iter().position(is_it),
    }
}

fn remove(document: &mut Value, place: &str) {
    if let Some((parent, key)) = place.rsplit_once('/')
        && let Some(Value::Object(object)) = find(document, parent)
    {
        object.remove(&*unescape(key));
    }
}

fn take_from_front(pod: &mut Value, place: &str, names: &[String]) {
    if let Some(Value::Array(array)) = find(pod, place) {
        for name in names {
            if let Some(index) = near(array, name, 0) {
                array.remove(index);
            }
        }
    }
}

// === impl Step ===

impl Step {
    /// Reverses the step. Does nothing if another tool has removed its place already.
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
                    object.insert(unescape(key).into_owned(), old.clone());
                }
            }
            Self::Front(place, names) => take_from_front(pod, place, names),
            Self::FrontOfEach(places, names) => {
                for place in places {
                    take_from_front(pod, place, names);
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
    use crate::inject::edited;
    use crate::judge::judge;
    use crate::policy::Cluster;
    use crate::policy::tests::policy;

    fn injected(pod: &Value) -> Value {
        let edits = judge(pod, "default", &policy(), &Cluster::default()).edits.unwrap();
        edited(pod.clone(), edits).unwrap()
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

    /// Another injector may add containers after ours. Reported in
    /// <https://github.com/istio/istio/issues/25931>.
    #[test]
    fn additions_of_others_are_kept() {
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
    fn only_our_own_injection_is_undone() {
        assert_eq!(uninject(&pod()), Undone::NotInjected);
        assert_eq!(uninject(&json!("text")), Undone::NotInjected);
        let other = json!({"metadata": {"annotations": {STATUS: "injected"}}});
        assert!(matches!(uninject(&other), Undone::NoSteps(_)));
        let broken = json!({"metadata": {"annotations": {UNDO: "[{}]"}}});
        assert!(matches!(uninject(&broken), Undone::NoSteps(_)));
    }

    proptest! {
        /// Users can write the annotation, too.
        #[test]
        fn invalid_steps_do_not_panic(place in "(/(metadata|spec|containers|[0-9]:[a-z]?|annotations|~[01]|)){0,4}", name in "[a-z]?") {
            let mut pod = injected(&pod());
            let steps = vec![
                Step::Made(place.clone()), Step::MadeOfNull(place.clone()), Step::Added(place.clone()),
                Step::Replaced(place.clone(), Value::Null), Step::Front(place.clone(), vec![name.clone()]),
                Step::FrontOfEach(vec![place.clone()], vec![name.clone()]),
                Step::Back(place, name),
            ];
            for step in steps {
                pod["metadata"]["annotations"][UNDO] = serde_json::to_string(&[step]).unwrap().into();
                prop_assert!(matches!(uninject(&pod), Undone::Pod(_)));
            }
        }
    }
}
