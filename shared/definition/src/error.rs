//! What is wrong with a definition file.

use std::fmt;

/// Something in a file that can't be understood: where, what stands there, and
/// what is accepted. Never with a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    /// The file's name.
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
}

/// A problem within a text: not yet by line and column.
pub(crate) struct Found {
    /// Where, in bytes.
    pub(crate) offset: usize,
    pub(crate) path: String,
    pub(crate) message: String,
}

/// A file whose format is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownFormat {
    /// HCL.
    #[error("HCL is not read yet: expected a .json file with the same keys")]
    Hcl,
    /// Neither of Consul's formats.
    #[error("the name tells no format: expected one that ends in .json")]
    Other,
}

// === impl Problem ===

impl Problem {
    pub(crate) fn new(file: &str, text: &str, found: Found) -> Self {
        let before = text.get(..found.offset).unwrap_or(text);
        let start_of_line = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            file: file.to_owned(),
            line: 1 + before.bytes().filter(|byte| *byte == b'\n').count(),
            column: 1 + before[start_of_line..].chars().count(),
            path: found.path,
            message: found.message,
        }
    }
}

impl fmt::Display for Problem {
    /// As compilers write it, so that editors find the place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, path, message } = self;
        write!(f, "{file}:{line}:{column}: ")?;
        if !path.is_empty() {
            write!(f, "{path}: ")?;
        }
        f.write_str(message)
    }
}
