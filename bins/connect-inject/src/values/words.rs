//! Splits a text into words as a shell does: spaces separate words; single quotes, double
//! quotes and backslashes prevent that. Nothing is expanded.
//!
//! Source: "Shell Command Language", 2.2 Quoting, of POSIX.

/// Why a text can't be split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfinished {
    /// An unclosed quote, and its column.
    Quote(char, usize),
    /// A backslash at the end.
    Backslash,
}

pub(crate) fn split(text: &str) -> Result<Vec<String>, Unfinished> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut opened = 0;
    let mut rest = (1..).zip(text.chars());
    while let Some((column, c)) = rest.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                opened = column;
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => {
                let (_, escaped) = rest.next().ok_or(Unfinished::Backslash)?;
                let word = word.get_or_insert_default();
                if quote.is_some() && !matches!(escaped, '"' | '\\' | '$' | '`') {
                    word.push('\\');
                }
                word.push(escaped);
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(quote) = quote {
        return Err(Unfinished::Quote(quote, opened));
    }
    words.extend(word);
    Ok(words)
}

impl std::fmt::Display for Unfinished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Quote(quote, column) => {
                write!(f, "column {column}: unclosed {quote}")
            }
            Self::Backslash => f.write_str("a backslash at the end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_split_as_a_shell_does() {
        for (text, words) in [
            ("", &[][..]),
            ("  ", &[]),
            ("--log-level debug", &["--log-level", "debug"]),
            (r#"a"b c"d '' "" e"#, &["ab cd", "", "", "e"]),
            (r#"'a\n' "a\n" "a\"b" a\ b \'"#, &["a\\n", "a\\n", "a\"b", "a b", "'"]),
            ("$(id) `id` # x", &["$(id)", "`id`", "#", "x"]),
        ] {
            assert_eq!(split(text).unwrap(), words, "{text}");
        }
        assert_eq!(split("'a"), Err(Unfinished::Quote('\'', 1)));
        assert_eq!(split(r#""a\""#), Err(Unfinished::Quote('"', 1)));
        assert_eq!(split("a 'b"), Err(Unfinished::Quote('\'', 3)));
        assert_eq!(split("a\\"), Err(Unfinished::Backslash));
    }

    proptest! {
        #[test]
        fn quoted_words_come_back(words in prop::collection::vec(any::<String>(), 0..5)) {
            let text: Vec<_> =
                words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
            prop_assert_eq!(split(&text.join(" ")).unwrap(), words);
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = split(&text);
        }
    }
}
