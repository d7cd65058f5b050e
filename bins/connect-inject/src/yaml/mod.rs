//! Reads YAML as kubectl does: YAML 1.1 as Go's library reads it, where `0400` is octal,
//! `on` is true, and the last of two equal keys wins.
//!
//! Source: the output of `kubectl --dry-run=client -o json` for the same text, from which
//! the test data was made.

mod scalar;
mod write;

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::{Map, Value};

pub(crate) use write::write;

/// Maximum nesting; no Kubernetes object is as deep.
const DEEPEST: usize = 512;
/// Bytes that aliases may add to any document, however small.
const ROOM_FOR_ALIASES: usize = 1 << 20;

/// A collection that is not closed yet.
enum Open {
    Sequence(Vec<Value>),
    Mapping { members: Map<String, Value>, key: Option<Key> },
}

/// A key of a mapping.
enum Key {
    Text(String),
    /// `<<` merges the members of other mappings.
    Merge,
}

/// Reads one document; an empty one is null.
///
/// # Errors
/// A sentence with line and column.
pub(crate) fn value(text: &str) -> Result<Value, String> {
    value_at(text, 0)
}

/// Reads a document that starts after `lines` lines of its file. Errors count from the start
/// of the file.
pub(crate) fn value_at(text: &str, lines: usize) -> Result<Value, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader { room: ROOM_FOR_ALIASES + 16 * text.len(), ..Reader::default() };
    for event in Parser::new_from_str(text) {
        let (line, column, problem) = match event {
            Ok((event, span)) => match reader.read(event) {
                Ok(()) => continue,
                Err(problem) => (span.start.line(), span.start.col(), problem),
            },
            Err(error) => (error.marker().line(), error.marker().col(), error.info()),
        };
        return Err(format!(
            "invalid YAML: line {}, column {}: {problem}",
            lines + line,
            column + 1
        ));
    }
    Ok(reader.root.unwrap_or_default())
}

#[derive(Default)]
struct Reader {
    root: Option<Value>,
    open: Vec<(Open, usize)>,
    anchors: HashMap<usize, Value>,
    documents: usize,
    /// Bytes that aliases may still add.
    room: usize,
}

impl Reader {
    fn read(&mut self, event: Event<'_>) -> Result<(), String> {
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err("expected one document".to_owned());
                }
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.scalar(&text, style, anchor, tag.as_deref())
            }
            Event::Alias(anchor) => {
                let value = self.anchors.get(&anchor).cloned().unwrap_or_default();
                let weight = crate::json::weight(&value);
                self.room = self
                    .room
                    .checked_sub(weight)
                    .ok_or("aliases make the document many times larger than it is")?;
                match &value {
                    Value::String(text) if self.expects_key() => {
                        self.key(Key::Text(text.clone()));
                        Ok(())
                    }
                    _ => self.add(value, 0),
                }
            }
            Event::SequenceStart(_, anchor, _) => self.start(Open::Sequence(Vec::new()), anchor),
            Event::MappingStart(_, anchor, _) => {
                self.start(Open::Mapping { members: Map::new(), key: None }, anchor)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some((Open::Sequence(elements), anchor)) => {
                    self.add(Value::Array(elements), anchor)
                }
                Some((Open::Mapping { members, .. }, anchor)) => {
                    self.add(Value::Object(members), anchor)
                }
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Tag>,
    ) -> Result<(), String> {
        let is_plain = style == ScalarStyle::Plain;
        if self.expects_key() && is_plain && tag.is_none() && text == "<<" {
            self.key(Key::Merge);
            return Ok(());
        }
        let value = scalar::resolve(text, is_plain, tag)?;
        if !self.expects_key() {
            return self.add(value, anchor);
        }
        if anchor > 0 {
            self.anchors.insert(anchor, value.clone());
        }
        let key = match value {
            Value::String(text) => text,
            Value::Null => "null".to_owned(),
            other => other.to_string(),
        };
        self.key(Key::Text(key));
        Ok(())
    }

    fn start(&mut self, open: Open, anchor: usize) -> Result<(), String> {
        if self.expects_key() {
            return Err("expected a string as key".to_owned());
        }
        if self.open.len() >= DEEPEST {
            return Err(format!("nested deeper than {DEEPEST} levels"));
        }
        self.open.push((open, anchor));
        Ok(())
    }

    fn expects_key(&self) -> bool {
        matches!(self.open.last(), Some((Open::Mapping { key: None, .. }, _)))
    }

    fn key(&mut self, new: Key) {
        if let Some((Open::Mapping { key, .. }, _)) = self.open.last_mut() {
            *key = Some(new);
        }
    }

    fn add(&mut self, value: Value, anchor: usize) -> Result<(), String> {
        if anchor > 0 {
            self.anchors.insert(anchor, value.clone());
        }
        match self.open.last_mut() {
            None => self.root = Some(value),
            Some((Open::Sequence(elements), _)) => elements.push(value),
            Some((Open::Mapping { members, key }, _)) => match key.take() {
                Some(Key::Text(key)) => {
                    members.insert(key, value);
                }
                Some(Key::Merge) => merge(members, value)?,
                None => return Err("expected a string as key".to_owned()),
            },
        }
        Ok(())
    }
}

/// Merges members of other mappings; the first mapping wins.
fn merge(members: &mut Map<String, Value>, value: Value) -> Result<(), String> {
    match value {
        Value::Object(more) => {
            members.extend(more);
            Ok(())
        }
        Value::Array(all) if all.iter().all(Value::is_object) => {
            all.into_iter().rev().try_for_each(|more| merge(members, more))
        }
        _ => Err("`<<` requires a mapping, or a list of mappings".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// `defaultMode: 0400` was read as 400, which is mode 0620. The expected values are
    /// what kubectl 1.34 prints.
    #[test]
    fn scalars_are_read_as_by_kubectl() {
        for (text, expected) in [
            (
                "[0400, 0o400, 0x1F, 0b101, +12, 1_000, 1__0, 0600, 08, 0_7, -0400, -0x10, 12e3, 012e3]",
                json!([256, 256, 31, 5, 12, 1000, 10, 384, 8, 7, -256, -16, 12000, 12000]),
            ),
            ("[1:30, 190:20:30]", json!(["1:30", "190:20:30"])),
            (
                "[1.5, .5, 5., 1e3, 1E-3, 685.230_15e+03, 1_0.5, -1.0, 0.0, 1.30]",
                json!([1.5, 0.5, 5, 1000, 0.001, 685_230.15, 10.5, -1, 0, 1.3]),
            ),
            ("[18446744073709551615, 5_]", json!([u64::MAX, 5])),
            ("[y, Y, yes, Yes, YES, on, On, ON, true, True, TRUE]", Value::from(vec![true; 11])),
            (
                "[n, N, no, No, NO, off, Off, OFF, false, False, FALSE]",
                Value::from(vec![false; 11]),
            ),
            ("[yEs, tRUE, oN, nULL]", json!(["yEs", "tRUE", "oN", "nULL"])),
            ("[null, Null, NULL, ~]", json!([null, null, null, null])),
            (
                "[2001-01-01, 2001-12-14t21:59:43.10-05:00, =, \"0400\", '0400', 0x, 0xZ, 1.2.3, 1e, e3, .e3, \"y\", +, 1-2, 0b2, 0o8, ._5, _5]",
                json!([
                    "2001-01-01",
                    "2001-12-14t21:59:43.10-05:00",
                    "=",
                    "0400",
                    "0400",
                    "0x",
                    "0xZ",
                    "1.2.3",
                    "1e",
                    "e3",
                    ".e3",
                    "y",
                    "+",
                    "1-2",
                    "0b2",
                    "0o8",
                    "._5",
                    "_5"
                ]),
            ),
            (
                "[!!str 0400, !!int \"0400\", !!float 1, !!bool \"yes\", !!str true, !!binary aGVsbG8=, ! 12]",
                json!(["0400", 256, 1, true, "true", "hello", "12"]),
            ),
            (
                "{1: a, 0400: b, true: c, y: d, 1.5: e, on: f}",
                json!({"1": "a", "256": "b", "true": "f", "1.5": "e"}),
            ),
            ("{a: 1, a: 2}", json!({"a": 2})),
            ("\"\\tx\\ny\\n\"", json!("\tx\ny\n")),
        ] {
            assert_eq!(value(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn anchors_and_merges_are_read_as_by_kubectl() {
        let text = "a: &x {a: 1, b: 2}\nm1: {<<: *x, b: 3}\nm2: {b: 3, <<: *x}\nm3: {<<: [*x, {c: 9, a: 8}]}\nl: [*x, *x]\n";
        assert_eq!(
            value(text),
            Ok(json!({"a": {"a": 1, "b": 2}, "m1": {"a": 1, "b": 3}, "m2": {"a": 1, "b": 2},
                "m3": {"a": 1, "b": 2, "c": 9}, "l": [{"a": 1, "b": 2}, {"a": 1, "b": 2}]}))
        );
        assert!(value("a: {<<: 5}").unwrap_err().contains("requires a mapping"));
    }

    /// kubectl reads large documents. An earlier version of this reader rejected them.
    #[test]
    fn large_documents_are_read_and_alias_bombs_are_not() {
        let pods = "  - {a: {b: {c: {d: [1, 2, 3]}}}}\n".repeat(100_000);
        assert!(value(&format!("items:\n{pods}")).is_ok());
        let aliases = "- *x\n".repeat(1000);
        assert!(value(&format!("- &x {{a: b}}\n{aliases}")).is_ok());
        let deep = format!("{}1{}", "[".repeat(100), "]".repeat(100));
        assert!(value(&deep).is_ok());
        assert!(value("%YAML 1.2\n---\na: 1\n").is_ok());
        assert_eq!(value("\u{feff}a: 1\r\nb: |\r\n  x\r\n"), Ok(json!({"a": 1, "b": "x\n"})));
        // A billion laughs.
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..12 {
            let aliases = vec![format!("*a{}", n - 1); 10].join(", ");
            bomb.extend([format!("a{n}: &a{n} [{aliases}]\n")]);
        }
        assert!(value(&bomb).unwrap_err().contains("many times larger"));
        for text in ["[".repeat(100_000), "- ".repeat(50_000), "a: ".to_owned() + &"[".repeat(9999)]
        {
            assert!(value(&text).is_err());
        }
    }

    #[test]
    fn errors_have_line_and_column() {
        let error = value_at("b: 2\nc: [\n", 2).unwrap_err();
        assert!(error.starts_with("invalid YAML: line 4, column 4: "), "{error}");
        let error = value("a: 1\n[x]: 2\n").unwrap_err();
        assert!(error.contains("line 2") && error.contains("as key"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::cases(1024)))]

        #[test]
        fn any_text_is_read_back(key: String, text: String, ascii in "[ -~\n\t]{0,20}", number: i64, float: f64) {
            // Integral floats are written, and read, as integers.
            let float = if float.is_finite() && float.fract() != 0.0 { float } else { 0.5 };
            let document = json!({key: [&text, {"a": [ascii, number, float]}], "z": &text, "e": [{}, []]});
            let text = write(&document);
            prop_assert_eq!(value(&text), Ok(document), "{}", text);
        }

        #[test]
        fn no_text_panics(text in "(---\n|[a-z]: |[{}\\[\\]\"'|>&*!-]|<<: |&[ab] |\\*[ab]|, |\n| |\\PC){0,30}") {
            if let Ok(value) = value(&text) {
                prop_assert!(crate::json::weight(&value) < 2 * ROOM_FOR_ALIASES);
            }
        }

        /// Aliases of aliases, and merges of them.
        #[test]
        fn aliases_cannot_exceed_their_limit(lines in prop::collection::vec((0..6_u8, 0..6_u8, 1..12_usize, any::<bool>()), 1..40)) {
            let mut text = String::new();
            for (index, (anchor, alias, times, merges)) in lines.into_iter().enumerate() {
                let used = vec![format!("*x{alias}"); times].join(", ");
                let used = if merges { format!("{{<<: [{used}]}}") } else { format!("[{used}, a]") };
                text.extend([format!("k{index}: &x{anchor} {used}\n")]);
            }
            if let Ok(value) = value(&format!("a: &x0 {{b: c}}\n{text}")) {
                prop_assert!(crate::json::weight(&value) < 2 * ROOM_FOR_ALIASES + 64 * text.len());
            }
        }
    }
}
