//! Documents as text: YAML, several in a file, or JSON, one behind the other.
//! One that is not changed is written as it was read, comments and all.

use serde_json::Value;

/// A document of a file.
#[derive(Debug)]
pub(crate) struct Document {
    value: Value,
    text: String,
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Yaml,
}

/// Reads the documents of a file.
///
/// # Errors
/// A sentence with the line and the column.
pub(crate) fn read(text: &str) -> Result<Vec<Document>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if !text.trim_start().starts_with(['{', '[']) {
        return read_yaml(text);
    }
    // YAML's flow style begins like JSON; what is neither was meant as JSON.
    read_json(text).or_else(|error| read_yaml(text).map_err(|_| format!("no JSON: {error}")))
}

fn read_json(text: &str) -> Result<Vec<Document>, serde_json::Error> {
    let mut documents = Vec::new();
    let mut values = serde_json::Deserializer::from_str(text).into_iter();
    let mut start = 0;
    while let Some(value) = values.next() {
        let end = values.byte_offset();
        let text = text[start..end].trim().to_owned() + "\n";
        documents.push(Document { value: value?, text, format: Format::Json });
        start = end;
    }
    Ok(documents)
}

fn read_yaml(text: &str) -> Result<Vec<Document>, String> {
    let mut documents = Vec::new();
    let mut line = 0;
    for text in split(text) {
        let value = serde_saphyr::from_str(&text).map_err(|_| explain(&text, line))?;
        line += text.lines().count();
        if !text.trim().is_empty() {
            documents.push(Document { value, text, format: Format::Yaml });
        }
    }
    Ok(documents)
}

/// Splits at the lines that begin with `---`. Nothing else may begin so: not
/// even the text of a block scalar.
///
/// Source: "YAML Ain't Markup Language", version 1.2.2, 9.1.2 Document Markers.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for line in text.split_inclusive('\n') {
        let content = line
            .strip_prefix("---")
            .filter(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if content.is_some() {
            parts.push(String::new());
        }
        if let Some(part) = parts.last_mut() {
            part.push_str(content.unwrap_or(line));
        }
    }
    for part in &mut parts {
        if !part.is_empty() && !part.ends_with('\n') {
            part.push('\n');
        }
    }
    parts
}

/// What is wrong with a document that begins behind `line` lines of its file.
fn explain(text: &str, line: usize) -> String {
    let placed = "\n".repeat(line) + text;
    match serde_saphyr::from_str::<Value>(&placed) {
        Err(error) => format!("no YAML: {}", error.without_snippet()),
        Ok(_) => "no YAML".to_owned(),
    }
}

/// Writes documents.
pub(crate) fn write<'a>(documents: impl Iterator<Item = &'a Document>) -> String {
    let mut text = String::new();
    let mut before: Option<Format> = None;
    for document in documents {
        if before.is_some_and(|before| (before, document.format) != (Format::Json, Format::Json)) {
            text.push_str("---\n");
        }
        text.push_str(document.text.trim_start_matches(['\r', '\n']));
        before = Some(document.format);
    }
    text
}

// === impl Document ===

impl Document {
    /// What it says.
    pub(crate) fn value(&self) -> &Value {
        &self.value
    }

    /// Whether it holds comments only.
    pub(crate) fn is_blank(&self) -> bool {
        self.value.is_null()
    }

    /// Puts another content in its place.
    pub(crate) fn replace(&mut self, value: Value) {
        self.text = match self.format {
            Format::Json => serde_json::to_string_pretty(&value)
                .map(|text| text + "\n")
                .expect("a value has string keys only"),
            Format::Yaml => {
                serde_saphyr::to_string(&value).expect("a value can be written as YAML")
            }
        };
        self.value = value;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn values(text: &str) -> Vec<Value> {
        read(text).unwrap().into_iter().map(|document| document.value).collect()
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
    }

    #[test]
    fn what_is_not_changed_is_written_as_it_was_read() {
        for text in [
            "# first\na:   1 # one\n---\n# only a comment\n---\nb: [ 2 ]\n",
            "{ \"a\": 1 }\n{\"b\":2}\n",
        ] {
            assert_eq!(rewritten(text), text);
        }
        assert_eq!(rewritten("---\na: 1\n---\n\n---\nb: 1"), "a: 1\n---\nb: 1\n");
    }

    #[test]
    fn mistakes_have_their_place_in_the_file() {
        let error = read("a: 1\n---\nb: 2\nc: [\n").unwrap_err();
        assert!(error.contains("line 4, column 4"), "{error}");
        let error = read("{\"a\": 1}\n{\"a\"").unwrap_err();
        assert!(error.starts_with("no JSON: ") && error.contains("line 2"), "{error}");
        let error = read("a: 1\na: 2\n").unwrap_err();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn deep_nesting_is_an_error() {
        for text in
            ["[".repeat(100_000), "a: ".to_owned() + &"[".repeat(100_000), "- ".repeat(50_000)]
        {
            assert!(read(&text).is_err());
        }
    }

    /// Text that YAML readers, those of YAML 1.1 among them, take for something
    /// else is written in quotes.
    #[test]
    fn text_stays_text() {
        for text in [
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
            "é",
            "\u{0}",
            "\u{7f}",
            "\u{2028}",
            "{a",
            "[",
            ",",
            "?",
            "---",
            "...",
        ] {
            let mut document =
                Document { value: Value::Null, text: String::new(), format: Format::Yaml };
            document.replace(json!({text: [text, {"a": text}]}));
            assert_eq!(values(&document.text), [document.value], "{}", document.text);
            if matches!(
                text,
                "true"
                    | "yes"
                    | "no"
                    | "on"
                    | "off"
                    | "null"
                    | "~"
                    | ""
                    | "1"
                    | "010"
                    | "0x1f"
                    | "1_000"
                    | "1e3"
            ) {
                let bare = format!("a: {text}\n");
                assert!(!document.text.contains(&bare), "{}", document.text);
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_back(key: String, text: String, ascii in "[ -~\n]{0,20}", number: i64) {
            let mut document = Document { value: Value::Null, text: String::new(), format: Format::Yaml };
            document.replace(json!({key: [&text, {"a": [ascii, number]}], "z": &text}));
            prop_assert_eq!(values(&document.text), [document.value]);
        }

        #[test]
        fn no_text_panics(text in "(---\n|[a-z]: |[{}\\[\\]\"'|>&*!-]|\n| |\\PC){0,30}") {
            let _ = read(&text);
        }
    }
}
