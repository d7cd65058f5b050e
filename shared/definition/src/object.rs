//! Reads a tree's values strictly, and notes every problem on the way.
//!
//! Types are those of Consul's CLI. Null counts as no key, and a list of one
//! value as the value.

use std::collections::BTreeMap;
use std::str::FromStr;

use duration::GoDuration;
use secrecy::SecretString;
use serde_json::{Map, Value as Json};

use crate::error::Found;
use crate::since::Since;
use crate::spelling::nearest;
use crate::tree::{Key, Node, Value, to_map};

#[derive(Default)]
pub(crate) struct Reader {
    /// The first problems: nobody reads more.
    pub(crate) problems: Vec<Found>,
    /// How many problems there are in all.
    count: usize,
    /// What is accepted and has no effect; the first ones.
    pub(crate) warnings: Vec<Found>,
    /// Keys that older agents do not know; the first ones.
    pub(crate) newer: Vec<(Since, Found)>,
    /// How many warnings and newer keys were kept in all: each costs a look
    /// through the text.
    kept: usize,
    /// The services that checks say they belong to.
    pub(crate) owners: Vec<(Found, String)>,
}

/// How many problems, warnings or newer keys are kept.
const MOST: usize = 50;

/// A value and the path to it.
pub(crate) struct At<'t> {
    pub(crate) node: &'t Node,
    pub(crate) path: String,
}

/// An object that is being read, key by key. The keys that the code asks for are
/// the accepted ones; any other key is unknown.
pub(crate) struct Object<'t, 'r> {
    reader: &'r mut Reader,
    path: String,
    offset: usize,
    entries: Vec<Entry<'t>>,
    known: Vec<&'static str>,
    /// What to say of an unknown key, if more than the accepted ones.
    explain: Option<fn(&str) -> Option<String>>,
    /// How many problems there were before it.
    problems_before: usize,
}

struct Entry<'t> {
    key: &'t Key,
    node: &'t Node,
    asked_for: bool,
}

/// Keys that the HTTP API names otherwise than files do.
const API_NAMES: [(&str, &str); 1] = [("args", "script_args")];

// === impl Reader ===

impl Reader {
    pub(crate) fn report(&mut self, at: &At<'_>, message: impl Into<String>) {
        self.report_at(at.node.offset, || (at.path.clone(), message.into()));
    }

    /// Notes what is accepted and has no effect.
    pub(crate) fn warn(&mut self, at: &At<'_>, message: impl Into<String>) {
        self.kept += 1;
        if self.kept <= MOST {
            let (path, message) = (at.path.clone(), message.into());
            self.warnings.push(Found { offset: at.node.offset, path, message });
        }
    }

    /// Notes a problem; path and message are only made if it is kept.
    fn report_at(&mut self, offset: usize, say: impl FnOnce() -> (String, String)) {
        self.count += 1;
        if self.count <= MOST {
            let (path, message) = say();
            self.problems.push(Found { offset, path, message });
        }
    }

    fn wrong<T: Default>(&mut self, at: &At<'_>, expected: &str) -> T {
        let say = || (at.path.clone(), format!("expected {expected}, found {}", at.node.value));
        self.report_at(at.node.offset, say);
        T::default()
    }

    /// An object; `build` asks for its keys.
    pub(crate) fn object<'t, T: Default>(
        &mut self,
        at: &At<'t>,
        build: impl FnOnce(&mut Object<'t, '_>) -> T,
    ) -> T {
        let Some(entries) = self.entries(at) else {
            return T::default();
        };
        let entries = entries.iter().map(|(key, node)| Entry { key, node, asked_for: false });
        let mut object = Object {
            offset: at.node.offset,
            path: at.path.clone(),
            entries: entries.collect(),
            known: Vec::new(),
            explain: None,
            problems_before: self.count,
            reader: self,
        };
        let value = build(&mut object);
        object.report_unknown();
        value
    }

    /// An object whose keys are the user's own.
    pub(crate) fn map<'t, T>(
        &mut self,
        at: &At<'t>,
        read: impl Fn(&mut Self, &At<'t>) -> T,
    ) -> BTreeMap<String, T> {
        let mut map = BTreeMap::new();
        for (key, node) in self.entries(at).unwrap_or_default() {
            let inner = At { node, path: join(&at.path, &key.text) };
            if map.contains_key(&key.text) {
                self.report_at(key.offset, || (inner.path.clone(), "given twice".to_owned()));
            }
            let value = read(self, &inner);
            map.insert(key.text.clone(), value);
        }
        map
    }

    /// An object that is passed on as it is.
    pub(crate) fn free(&mut self, at: &At<'_>) -> Map<String, Json> {
        self.entries(at).map(to_map).unwrap_or_default()
    }

    fn entries<'t>(&mut self, at: &At<'t>) -> Option<&'t [(Key, Node)]> {
        match &only(at.node).value {
            Value::Object(entries) => return Some(entries),
            Value::Blocks(blocks) => {
                let offset = blocks.get(1).map_or(at.node.offset, |second| second.offset);
                let message = format!("expected one block, found {}", blocks.len());
                self.report_at(offset, || (at.path.clone(), message));
            }
            Value::List(items) => {
                self.report(at, format!("expected an object, found a list of {}", items.len()));
            }
            _ => self.wrong(at, "an object"),
        }
        None
    }

    pub(crate) fn list<'t, T>(
        &mut self,
        at: &At<'t>,
        mut read: impl FnMut(&mut Self, &At<'t>) -> T,
    ) -> Vec<T> {
        let (Value::List(items) | Value::Blocks(items)) = &at.node.value else {
            return self.wrong(at, "a list");
        };
        let items = items.iter().enumerate().map(|(index, node)| {
            let path = format!("{}[{index}]", at.path);
            read(self, &At { node, path })
        });
        items.collect()
    }

    pub(crate) fn texts(&mut self, at: &At<'_>) -> Vec<String> {
        self.list(at, Self::text)
    }

    pub(crate) fn text(&mut self, at: &At<'_>) -> String {
        match &only(at.node).value {
            Value::Text(text) => text.clone(),
            Value::Null => String::new(),
            _ => self.wrong(at, "a text between quotes"),
        }
    }

    /// A text that no message may repeat.
    pub(crate) fn secret(&mut self, at: &At<'_>) -> Option<SecretString> {
        if let Value::Text(text) = &only(at.node).value {
            return (!text.is_empty()).then(|| SecretString::from(text.as_str()));
        }
        let found = at.node.value.kind();
        self.report(at, format!("expected a text between quotes, found {found}"));
        None
    }

    pub(crate) fn boolean(&mut self, at: &At<'_>) -> bool {
        match only(at.node).value {
            Value::Bool(value) => value,
            _ => self.wrong(at, "true or false"),
        }
    }

    /// A port; 0 is none.
    pub(crate) fn port(&mut self, at: &At<'_>) -> u16 {
        self.whole(at, 0, u16::MAX)
    }

    pub(crate) fn count(&mut self, at: &At<'_>) -> u32 {
        self.whole(at, 0, u32::MAX)
    }

    /// A whole number of a range; JSON may write it as `8e1`.
    pub(crate) fn whole<T>(&mut self, at: &At<'_>, least: T, most: T) -> T
    where
        T: Copy + Default + PartialOrd + FromStr + std::fmt::Display,
    {
        if let Value::Number(number) = &only(at.node).value {
            // A float without a fraction prints without one.
            let digits = match number.as_f64() {
                Some(float) if number.is_f64() => float.to_string(),
                _ => number.to_string(),
            };
            if let Ok(whole) = digits.parse()
                && (least..=most).contains(&whole)
            {
                return whole;
            }
        }
        self.wrong(at, &format!("a whole number from {least} to {most}"))
    }

    pub(crate) fn duration(&mut self, at: &At<'_>) -> Option<GoDuration> {
        let Value::Text(text) = &only(at.node).value else {
            return self.wrong(at, "a duration between quotes, such as \"10s\"");
        };
        match text.parse() {
            Ok(duration) => Some(duration),
            Err(error) => {
                self.report(at, error.to_string());
                None
            }
        }
    }

    pub(crate) fn one_of<T: Copy + Default>(&mut self, at: &At<'_>, words: &[(&str, T)]) -> T {
        let Value::Text(text) = &only(at.node).value else {
            return self.wrong(at, "a text between quotes");
        };
        if let Some((_, meaning)) = words.iter().find(|(word, _)| word == text) {
            return *meaning;
        }
        self.report_at(at.node.offset, || {
            let words: Vec<&str> =
                words.iter().map(|(word, _)| *word).filter(|w| !w.is_empty()).collect();
            let meant = nearest(text, &words).map_or_else(String::new, did_you_mean);
            let found = &at.node.value;
            let message = format!("expected one of {}, found {found}{meant}", listed(&words));
            (at.path.clone(), message)
        });
        T::default()
    }
}

// === impl Object ===

impl<'t> Object<'t, '_> {
    /// Whether all of it was read and is well-formed.
    pub(crate) fn is_sound(&self) -> bool {
        self.reader.count == self.problems_before
            && self.entries.iter().all(|entry| entry.asked_for)
    }

    /// Sets what to say of an unknown key.
    pub(crate) fn explain_unknown(&mut self, explain: fn(&str) -> Option<String>) {
        self.explain = Some(explain);
    }

    /// The value of a key that agents know from a release on. Only a value that
    /// is sent counts: the default is not.
    pub(crate) fn read_since<T: Default + PartialEq>(
        &mut self,
        since: Since,
        key: &'static str,
        read: impl FnOnce(&mut Reader, &At<'t>) -> T,
    ) -> T {
        let value = self.read(key, read);
        if value != T::default() {
            self.requires(since, key);
        }
        value
    }

    /// Notes that only agents from a release on can work with this key.
    pub(crate) fn requires(&mut self, since: Since, key: &str) {
        let entry = self.entries.iter().find(|entry| is_spelt(&entry.key.text, key));
        if let Some(entry) = entry.filter(|_| self.reader.kept < MOST) {
            let path = join(&self.path, &entry.key.text);
            let found = Found { offset: entry.key.offset, path, message: since.to_string() };
            self.reader.newer.push((since, found));
            self.reader.kept += 1;
        }
    }

    /// A key's value; the type's default without it.
    pub(crate) fn read<T: Default>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Reader, &At<'t>) -> T,
    ) -> T {
        self.optional(key, read).unwrap_or_default()
    }

    /// A key's value, if there is one.
    pub(crate) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Reader, &At<'t>) -> T,
    ) -> Option<T> {
        self.known.push(key);
        let mut first: Option<&Entry<'t>> = None;
        for entry in self.entries.iter_mut().filter(|entry| is_spelt(&entry.key.text, key)) {
            entry.asked_for = true;
            if let Some(first) = first {
                self.reader.report_at(entry.key.offset, || {
                    let message = format!("given twice: first as `{}`", first.key.text);
                    (join(&self.path, &entry.key.text), message)
                });
            } else {
                first = Some(entry);
            }
        }
        let Entry { key, node, .. } = first.filter(|entry| !is_null(entry.node))?;
        Some(read(self.reader, &At { node, path: join(&self.path, &key.text) }))
    }

    /// Notes a problem with a key, which may be one of an inner object:
    /// `proxy.upstreams[0].local_bind_port`. The place is that of the deepest
    /// part that the file has.
    pub(crate) fn report(&mut self, path: &str, message: impl Into<String>) {
        let offset = self.offset_of(path);
        self.reader.report_at(offset, || (join(&self.path, path), message.into()));
    }

    /// Notes that a key has no effect.
    pub(crate) fn warn(&mut self, key: &str, message: &str) {
        if let Some(entry) = self.entries.iter().find(|entry| is_spelt(&entry.key.text, key)) {
            self.reader.warn(&At { node: entry.node, path: join(&self.path, key) }, message);
        }
    }

    fn offset_of(&self, path: &str) -> usize {
        let mut steps = path.split(['.', '[']).map(|step| step.trim_end_matches(']'));
        let first = steps.next().unwrap_or(path);
        let entry = self.entries.iter().find(|entry| is_spelt(&entry.key.text, first));
        let Some(mut node) = entry.map(|entry| entry.node) else {
            return self.offset;
        };
        for step in steps {
            let inner = match (step.parse::<usize>(), &node.value) {
                (Ok(index), Value::List(items) | Value::Blocks(items)) => items.get(index),
                _ => match &only(node).value {
                    Value::Object(entries) => {
                        let entry = entries.iter().find(|(key, _)| is_spelt(&key.text, step));
                        entry.map(|(_, node)| node)
                    }
                    _ => None,
                },
            };
            let Some(inner) = inner else { break };
            node = inner;
        }
        node.offset
    }

    /// Notes a problem with an entry of an inner object whose keys are the user's.
    pub(crate) fn report_inner(&mut self, key: &str, inner: &str, message: impl Into<String>) {
        let node = self.entries.iter().find(|entry| is_spelt(&entry.key.text, key));
        let entries = match node.map(|entry| &only(entry.node).value) {
            Some(Value::Object(entries)) => entries.as_slice(),
            _ => &[],
        };
        let entry = entries.iter().find(|(found, _)| found.text == inner);
        let offset = entry.map_or(self.offset, |(found, _)| found.offset);
        let say = || (join(&join(&self.path, key), inner), message.into());
        self.reader.report_at(offset, say);
    }

    fn report_unknown(self) {
        for entry in self.entries.iter().filter(|entry| !entry.asked_for) {
            let key = &entry.key.text;
            self.reader.report_at(entry.key.offset, || {
                let explained = self.explain.and_then(|explain| explain(key));
                let message = explained.unwrap_or_else(|| {
                    let accepted = || format!("; accepted: {}", self.known.join(", "));
                    let meant = nearest(key, &self.known).map_or_else(accepted, did_you_mean);
                    format!("unknown key{meant}")
                });
                (join(&self.path, key), message)
            });
        }
    }
}

/// What a list of one has, or the value itself.
fn only(node: &Node) -> &Node {
    match &node.value {
        Value::List(items) | Value::Blocks(items) => match items.as_slice() {
            [item] => item,
            _ => node,
        },
        _ => node,
    }
}

fn is_null(node: &Node) -> bool {
    matches!(node.value, Value::Null)
}

/// Whether a key is meant: as files write it, in any case (`enable_tag_override`),
/// or as the HTTP API does (`EnableTagOverride`), of which Consul's CLI reads some.
fn is_spelt(found: &str, key: &str) -> bool {
    let is_key = |key: &str| {
        let mut letters = key.bytes().filter(|byte| *byte != b'_');
        found.eq_ignore_ascii_case(key)
            || (found
                .bytes()
                .all(|byte| letters.next().is_some_and(|l| l.eq_ignore_ascii_case(&byte)))
                && letters.next().is_none())
    };
    is_key(key) || API_NAMES.iter().any(|(name, api)| *name == key && is_key(api))
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn did_you_mean(word: &str) -> String {
    format!("; did you mean `{word}`?")
}

fn listed(words: &[&str]) -> String {
    words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ")
}
