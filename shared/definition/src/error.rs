//! What is wrong with a definition file.

use std::fmt;

use crate::tree::is_secret;

/// Something in a file that can't be understood: where, what stands there, and
/// what is accepted. Never with a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The key, from the top: `service.checks[0].interval`. Empty where the text
    /// as a whole is meant.
    pub path: String,
    /// What is wrong, and what is accepted.
    pub message: String,
    /// The line itself, without its indentation if it is long, and with a token
    /// made unreadable.
    pub excerpt: String,
    /// Where in the excerpt the column is, in characters, from 0.
    pub caret: usize,
}

/// A problem within a text: not yet by line and column.
pub(crate) struct Found {
    /// Where, in bytes.
    pub(crate) offset: usize,
    pub(crate) path: String,
    pub(crate) message: String,
}

/// A file whose format is not read: its name ends in neither `.hcl` nor `.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name tells no format: expected one that ends in .hcl or .json")]
pub struct UnknownFormat;

/// How many characters of a line are shown before and after the place.
const SHOWN: usize = 60;

/// How many bytes may stand between the word `token` and the end of one.
const LONGEST_TOKEN: usize = 4096;

// === impl Problem ===

impl Problem {
    pub(crate) fn new(file: &str, text: &str, found: Found) -> Self {
        let before = text.get(..found.offset).unwrap_or(text);
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let end = text[before.len()..].find('\n').map_or(text.len(), |end| before.len() + end);
        let column = before[start..].chars().count();

        let shown = before[start..].char_indices().rev().take(SHOWN).last();
        let shown = start + shown.map_or(column, |(offset, _)| offset);
        let last = text[shown..end].char_indices().nth(2 * SHOWN);
        let end = last.map_or(end, |(offset, _)| shown + offset);
        let seen = shown.saturating_sub(LONGEST_TOKEN).max(start);
        let seen = (seen..=shown).find(|at| text.is_char_boundary(*at)).unwrap_or(shown);
        let previous = text[..start].lines().next_back().unwrap_or_default();
        let masked = mask(previous, text[seen..end].trim_end());
        let excerpt = masked.filter(|(offset, _)| seen + offset >= shown).map(|(_, c)| c).collect();
        Self {
            file: file.to_owned(),
            line: 1 + before.bytes().filter(|byte| *byte == b'\n').count(),
            column: 1 + column,
            path: found.path,
            message: found.message,
            excerpt,
            caret: column.min(SHOWN),
        }
    }
}

/// A line's characters with their places, printable and without what may be a
/// token: all that follows the word on its line, and the next one if the value
/// stands there.
fn mask<'t>(previous: &str, line: &'t str) -> impl Iterator<Item = (usize, char)> + 't {
    let goes_on = previous.trim_end().ends_with(['=', ':', '[']) || previous.contains("<<");
    let secret_from = if goes_on && is_secret(previous) {
        Some(0)
    } else {
        let is_of_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
        let mut end = 0;
        line.split_inclusive(|c| !is_of_word(c)).find_map(|word| {
            end += word.len();
            is_secret(word).then_some(end)
        })
    };
    line.char_indices().map(move |(offset, c)| match c {
        _ if c.is_control() => (offset, ' '),
        _ if c.is_alphanumeric() && secret_from.is_some_and(|from| offset >= from) => (offset, '*'),
        c => (offset, c),
    })
}

impl fmt::Display for Problem {
    /// As compilers write it: editors find the place, and people see it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, path, message, excerpt, caret } = self;
        write!(f, "{file}:{line}:{column}: ")?;
        if !path.is_empty() {
            write!(f, "{path}: ")?;
        }
        write!(f, "{message}\n{line:>5} | {excerpt}\n      | {:caret$}^", "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, offset: usize) -> (String, usize) {
        let problem =
            Problem::new("f", text, Found { offset, path: String::new(), message: String::new() });
        (problem.excerpt, problem.caret)
    }

    #[test]
    fn the_line_and_the_place_are_shown() {
        let text = "service {\n  port = \"80\"\r\n}";
        let found = Found { offset: 19, path: "service.port".to_owned(), message: "no".to_owned() };
        assert_eq!(
            Problem::new("web.hcl", text, found).to_string(),
            "web.hcl:2:10: service.port: no\n    2 |   port = \"80\"\n      |          ^"
        );
        assert_eq!(shown("", 0), (String::new(), 0));
        assert_eq!(shown("\u{e9}\tx", 3), ("\u{e9} x".to_owned(), 2));
        // Of a long line, what is around the place.
        let (excerpt, caret) = shown(&"x".repeat(1000), 500);
        assert_eq!((excerpt.len(), caret), (120, 60));
    }

    #[test]
    fn a_token_is_not_shown() {
        for line in [
            "token = \"s3cret\" 1",
            "name = \"a\" \"Token\": \"s3cret\",",
            "token = s3cret",
            "header { X-Consul-Token = [\"s3cret\"] }",
            "token =\n \"s3cret\"",
            "\"token\":\n\"s3cret\"",
            "token = <<END\ns3cret",
        ] {
            let (excerpt, _) = shown(line, line.len());
            assert!(!excerpt.contains("s3cret"), "{excerpt}");
        }
        assert_eq!(shown("{ token = \"a-b\" }", 0).0, "{ token = \"*-*\" }");
        assert_eq!(shown("token = \"x\",\nname = 1", 13).0, "name = 1");
    }
}
