//! Consul's service-definition files, into registrations and back.
//!
//! - [`Format`]: the formats, and which one a file is in
//! - [`parse`]: a file's text into its [`Definition`]s, or every [`Problem`] in it
//! - [`print()`]: services as a definition file
//!
//! Two steps, so that a format is nothing but a producer of the first: a text
//! becomes a tree (`json`, `hcl`), and the tree becomes registrations
//! (`decode`). `encode` goes back.
//!
//! Keys and types are those of Consul's "Define services", "Define health
//! checks" and "Deploy sidecar services" pages, read as strictly as
//! `consul services register` reads them: snake_case keys in any case, and
//! neither an unknown key nor a number between quotes.
//!
//! ```
//! use definition::Format;
//!
//! let text = r#"service { name = "web" port = 8080 connect { sidecar_service {} } }"#;
//! let definitions = definition::parse("web.hcl", Format::of("web.hcl")?, text).unwrap();
//! assert_eq!(definitions[0].service.name, "web");
//! # Ok::<(), definition::UnknownFormat>(())
//! ```

mod decode;
mod encode;
mod error;
mod format;
mod hcl;
mod json;
mod object;
mod spelling;
mod tree;

use registration::Service;
use secrecy::SecretString;

pub use encode::print;
pub use error::{Problem, UnknownFormat};
pub use format::Format;

/// A service as a file defines it.
#[derive(Clone, Debug, Default)]
pub struct Definition {
    /// What is registered.
    pub service: Service,
    /// The ACL token to register it with; none: the one that all requests have.
    pub token: Option<SecretString>,
    /// Where it stands.
    pub place: Place,
}

/// Where in a file a definition begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The file's name.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
}

/// Reads a definition file: those of `services`, then `service`, which is the
/// order in which Consul's CLI registers them. A file may define none.
///
/// `file` is the file's name, for problems.
///
/// # Errors
/// The problems of the file, in its order, of very many the first ones.
pub fn parse(file: &str, format: Format, text: &str) -> Result<Vec<Definition>, Vec<Problem>> {
    let parsed = match format {
        // As HCL 1 does itself.
        Format::Hcl if !text.trim_start().starts_with('{') => hcl::parse(text),
        Format::Hcl | Format::Json => json::parse(text),
    };
    let decoded = parsed.map_err(|found| vec![found]).and_then(|root| decode::definitions(&root));
    match decoded {
        Ok(found) => {
            let mut lines = Lines { text, offset: 0, line: 1 };
            let placed = found.into_iter().map(|(offset, definition)| {
                let place = Place { file: file.to_owned(), line: lines.of(offset) };
                Definition { place, ..definition }
            });
            Ok(placed.collect())
        }
        Err(mut found) => {
            found.sort_by_key(|found| found.offset);
            Err(found.into_iter().map(|found| Problem::new(file, text, found)).collect())
        }
    }
}

/// Line numbers, counted on from the one asked for last.
struct Lines<'t> {
    text: &'t str,
    offset: usize,
    line: usize,
}

impl Lines<'_> {
    fn of(&mut self, offset: usize) -> usize {
        if offset < self.offset {
            (self.offset, self.line) = (0, 1);
        }
        self.line += self.text[self.offset..offset].matches('\n').count();
        self.offset = offset;
        self.line
    }
}
