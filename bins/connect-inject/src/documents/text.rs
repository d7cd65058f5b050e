//! Manifests as text: YAML documents, or JSON values one after another. A document that is
//! not changed is written as it was read, byte for byte.

use serde_json::Value;

use crate::yaml;

/// A document of a manifest file.
#[derive(Debug)]
pub(crate) struct Document {
    /// Its value, or why it can't be parsed; in that case it has no pod.
    value: Result<Value, String>,
    /// What precedes it: directives and the `---` line.
    marker: String,
    text: String,
    format: Format,
    /// Whether it is the first document of its file.
    is_first: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Yaml,
}

/// Reads the documents of a file.
///
/// # Errors
/// A sentence with document, line and column.
pub(crate) fn read(text: &str) -> Result<Vec<Document>, String> {
    if !text.trim_start_matches('\u{feff}').trim_start().starts_with(['{', '[']) {
        return read_yaml(text);
    }
    // YAML flow style also begins with a bracket. If neither parses, JSON was probably
    // meant.
    read_json(text).or_else(|error| read_yaml(text).map_err(|_| format!("invalid JSON: {error}")))
}

fn read_json(text: &str) -> Result<Vec<Document>, serde_json::Error> {
    let (mark, body) = text.split_at(text.len() - text.trim_start_matches('\u{feff}').len());
    let mut documents: Vec<Document> = Vec::new();
    let mut values = serde_json::Deserializer::from_str(body).into_iter();
    let mut start = 0;
    while let Some(value) = values.next() {
        let end = values.byte_offset();
        documents.push(Document {
            value: Ok(value?),
            marker: if start == 0 { mark.to_owned() } else { String::new() },
            text: body[start..end].to_owned(),
            format: Format::Json,
            is_first: start == 0,
        });
        start = end;
    }
    if let Some(last) = documents.last_mut() {
        last.text.push_str(&body[start..]);
    }
    Ok(documents)
}

fn read_yaml(text: &str) -> Result<Vec<Document>, String> {
    let mut documents = Vec::new();
    let mut line = 0;
    for (number, (marker, text)) in (1..).zip(split(text)) {
        let before = line + marker.lines().count();
        let value = yaml::value_at(&text, before);
        if let Err(problem) = &value
            // A pod has containers. Invalid documents without that word are written
            // unchanged.
            && text.contains("containers")
        {
            return Err(format!("document {number}: {problem}"));
        }
        line = before + text.lines().count();
        documents.push(Document {
            value,
            marker,
            text,
            format: Format::Yaml,
            is_first: number == 1,
        });
    }
    Ok(documents)
}

/// Splits a file into documents, each with the marker before it. A line that begins with
/// `---` is a marker even in a block scalar; directives precede it.
///
/// Source: "YAML Ain't Markup Language", version 1.2.2, 9.1.2 Document Markers.
fn split(text: &str) -> Vec<(String, String)> {
    let mut parts = vec![(String::new(), String::new())];
    let mut ended = false;
    for line in text.split_inclusive('\n') {
        let Some((marker, part)) = parts.last_mut() else { break };
        if let Some(dashes) = marked(line, "---") {
            // What follows the dashes is content, unless it is a comment.
            let behind = line[dashes..].trim_start();
            let is_blank = behind.is_empty() || behind.starts_with('#');
            let (dashes, content) = line.split_at(if is_blank { line.len() } else { dashes });
            if marker.is_empty() && (part.is_empty() || are_directives(part)) {
                *marker = std::mem::take(part) + dashes;
                part.push_str(content);
            } else {
                parts.push((dashes.to_owned(), content.to_owned()));
            }
            ended = false;
        } else if ended && !line.trim().is_empty() {
            // After `...`, the next content begins another document.
            parts.push((String::new(), line.to_owned()));
            ended = false;
        } else {
            part.push_str(line);
            ended |= marked(line, "...").is_some();
        }
    }
    parts.retain(|(marker, part)| !marker.is_empty() || !part.is_empty());
    parts
}

/// The end of the marker that a line begins with.
fn marked(line: &str, marker: &str) -> Option<usize> {
    let content = line.trim_start_matches('\u{feff}');
    let rest = content.strip_prefix(marker)?;
    (rest.is_empty() || rest.starts_with(char::is_whitespace)).then(|| line.len() - rest.len())
}

fn are_directives(text: &str) -> bool {
    let mut lines = text.lines().map(|line| line.trim_start_matches('\u{feff}'));
    let is_before = |line: &str| line.trim().is_empty() || line.starts_with(['%', '#']);
    text.contains('%') && lines.all(is_before)
}

pub(crate) fn write<'a>(documents: impl Iterator<Item = &'a Document>) -> String {
    let mut text = String::new();
    let mut before: Option<Format> = None;
    for document in documents {
        // Within a file, the text between documents is part of them.
        if let Some(before) = before.filter(|_| document.is_first) {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            let are_json = (before, document.format) == (Format::Json, Format::Json);
            if !are_json && !document.marker.contains("---") {
                text.push_str("---\n");
            }
        }
        text.push_str(&document.marker);
        text.push_str(&document.text);
        before = Some(document.format);
    }
    text
}

// === impl Document ===

impl Document {
    /// The parsed document.
    ///
    /// # Errors
    /// Why it can't be parsed. It has no pod.
    pub(crate) fn value(&self) -> Result<&Value, &str> {
        self.value.as_ref().map_err(String::as_str)
    }

    /// Whether it contains only comments.
    pub(crate) fn is_blank(&self) -> bool {
        matches!(self.value, Ok(Value::Null))
    }

    /// Replaces the content.
    pub(crate) fn replace(&mut self, value: Value) {
        let has_marker = self.marker.contains("---");
        let old = std::mem::take(&mut self.text);
        self.text = match self.format {
            Format::Json => serde_json::to_string_pretty(&value)
                .map(|text| text + "\n")
                .expect("a value has string keys only"),
            Format::Yaml => yaml::write(&value),
        };
        if old.lines().any(|line| marked(line, "...").is_some()) {
            // `...` may be the only separator before the next document.
            self.text.push_str("...\n");
        }
        // The content of `--- {a: 1}` was on the marker's line.
        if has_marker && !self.marker.ends_with('\n') {
            self.marker.push('\n');
        }
        self.value = Ok(value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn values(text: &str) -> Vec<Value> {
        let documents = read(text).unwrap().into_iter();
        documents.map(|document| document.value.unwrap()).filter(|value| !value.is_null()).collect()
    }

    fn rewritten(text: &str) -> String {
        write(read(text).unwrap().iter())
    }

    #[test]
    fn documents_are_split() {
        assert_eq!(values(""), Vec::<Value>::new());
        assert_eq!(
            values("a: 1\n---\nb: |\n  --- x\n--- # c\nc: 3"),
            [json!({"a": 1}), json!({"b": "--- x\n"}), json!({"c": 3})]
        );
        assert_eq!(values("---\r\na: 1\r\n---\r\n"), [json!({"a": 1})]);
        assert_eq!(values("{\"a\": 1}\n{\"b\": 2}"), [json!({"a": 1}), json!({"b": 2})]);
        assert_eq!(values("{a: 1}"), [json!({"a": 1})]);
        assert_eq!(values("--- {a: 1}\n--- [2]\n"), [json!({"a": 1}), json!([2])]);
        assert_eq!(
            values("%YAML 1.1\n# x\n---\na: 1\n...\n%YAML 1.1\n---\nb: 0400\n...\nc: 3\n"),
            [json!({"a": 1}), json!({"b": 256}), json!({"c": 3})]
        );
    }

    #[test]
    fn unchanged_documents_are_written_as_they_were_read() {
        for text in [
            "",
            "\n\n# only a comment",
            "# first\na:   1 # one\n---\n# only a comment\n---\nb: [ 2 ]\n",
            "{ \"a\": 1 }\n{\"b\":2}\n",
            "{ \"a\": 1 }  {\"b\":2}",
            "---\na: 1\n---\n\n---\nb: 1",
            "\u{feff}---\r\na: 0400\r\n---\r\nb: |\r\n  x\r\n",
            "\u{feff}{\"a\": 1.0}\n\n",
            "%YAML 1.2\n---\na: 1\n...\n---\nb: 2\n",
            "--- {a: 1}\n--- # c\nb: 2\n",
            "a: 1\n---\n\tnobody: [can read\n---\nb: 2\n",
        ] {
            assert_eq!(rewritten(text), text);
        }
    }

    #[test]
    fn a_changed_document_stays_in_its_place() {
        let text = "# a\na: 1\n--- {b: 2}\n---\n# c\nc: 3\n";
        let mut documents = read(text).unwrap();
        documents[1].replace(json!({"b": [1, "x"]}));
        assert_eq!(write(documents.iter()), "# a\na: 1\n---\nb:\n- 1\n- x\n---\n# c\nc: 3\n");
        let mut documents = read("a: 1\n...\nb: 2\n").unwrap();
        documents[0].replace(json!({"a": 3}));
        assert_eq!(write(documents.iter()), "a: 3\n...\nb: 2\n");
        let mut documents = read("{\"a\": 1}{\"b\": 2}").unwrap();
        documents[0].replace(json!({"a": 3}));
        assert_eq!(write(documents.iter()), "{\n  \"a\": 3\n}\n{\"b\": 2}");
        let two = [read("a: 1").unwrap(), read("{\"b\": 1}").unwrap()].into_iter().flatten();
        assert_eq!(write(two.collect::<Vec<_>>().iter()), "a: 1\n---\n{\"b\": 1}");
    }

    #[test]
    fn errors_have_their_line_in_the_file() {
        let error = read("a: 1\n---\ncontainers: 2\nc: [\n").unwrap_err();
        assert!(error.starts_with("document 2: invalid YAML: line 4, column 4"), "{error}");
        let error = read("{\"a\": 1}\n{\"containers\"").unwrap_err();
        assert!(error.starts_with("invalid JSON: ") && error.contains("line 2"), "{error}");
    }

    /// One invalid document made the command reject all files.
    #[test]
    fn a_document_without_containers_may_be_invalid() {
        let documents = read("a: [\n---\nb: 1\n").unwrap();
        assert!(documents[0].value().unwrap_err().contains("line 1"));
        assert_eq!(documents[1].value(), Ok(&json!({"b": 1})));
    }

    /// Strings that are hard to write in YAML.
    const TEXTS: &[&str] = &[
        "true",
        "yes",
        "no",
        "on",
        "off",
        "y",
        "n",
        "null",
        "~",
        "",
        "1",
        "0x1f",
        "0o7",
        "010",
        "1e3",
        "1_000",
        ".5",
        "1:30",
        "2001-01-01",
        "- a",
        "a: b",
        "#",
        "a #b",
        "'",
        "\"",
        "|",
        "<<",
        "=",
        "*a",
        "&a",
        "!a",
        "@a",
        "%a",
        " a ",
        "a\nb\n",
        "\t",
        "\tx\ny\n",
        "é",
        "\u{0}",
        "\u{7f}",
        "\u{85}",
        "\u{2028}",
        "\u{feff}",
        "{a",
        "[",
        ",",
        "?",
        "---",
        "...",
        "a\n",
        "\na",
        "a\n\n",
        "a\n b\n",
        "a \nb",
        "a\r\nb",
        "a\n\tb",
        "a\n  \nb",
    ];

    /// A string that some YAML reader would take for another type is quoted.
    #[test]
    fn strings_stay_strings() {
        for &text in TEXTS {
            let mut document = Document {
                value: Ok(Value::Null),
                marker: String::new(),
                text: String::new(),
                format: Format::Yaml,
                is_first: true,
            };
            document.replace(json!({text: [text, {"a": text}], "z": text}));
            assert_eq!(
                values(&document.text),
                [document.value.clone().unwrap()],
                "{}",
                document.text
            );
            let bare = format!("a: {text}\n");
            let is_word = text.chars().all(|c| c.is_ascii_alphanumeric() || "_:.-~=<".contains(c));
            assert!(!is_word || !document.text.contains(&bare), "{}", document.text);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::cases(2048)))]

        #[test]
        fn any_text_comes_out_as_it_went_in(text in "((%YAML 1.1|---|\\.\\.\\.|a: [a-z0-9]{1,3}|- x|# c|\"\"|\\{\\}|--- b| *|\\PC{0,3})(\n|\r\n)){0,12}") {
            if let Ok(documents) = read(&text) {
                prop_assert_eq!(write(documents.iter()), text);
            }
        }

        #[test]
        fn no_text_panics(text in "(---\n|[a-z]: |[{}\\[\\]\"'|>&*!-]|\n| |\\PC){0,30}") {
            let _ = read(&text);
        }
    }
}
