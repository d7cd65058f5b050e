//! Consul's service-definition files, into registrations.
//!
//! - [`Format`]: the formats, and which one a file is in
//! - [`parse`]: a file's text into its [`Definition`]s, or every [`Problem`] in it
//!
//! Two steps, so that a format is nothing but a producer of the first: a text
//! becomes a tree (`json`), and the tree becomes registrations (`decode`).
//!
//! Keys and types are those of Consul's "Define services", "Define health
//! checks" and "Deploy sidecar services" pages, read as strictly as
//! `consul services register` reads them: snake_case keys in any case, and
//! neither an unknown key nor a number between quotes.
//!
//! ```
//! use definition::Format;
//!
//! let text = r#"{"service": {"name": "web", "port": 8080}}"#;
//! let definitions = definition::parse("web.json", Format::of("web.json")?, text).unwrap();
//! assert_eq!(definitions[0].service.name, "web");
//! # Ok::<(), definition::UnknownFormat>(())
//! ```

mod decode;
mod error;
mod format;
mod json;
mod object;
mod spelling;
mod tree;

use registration::Service;
use secrecy::SecretString;

pub use error::{Problem, UnknownFormat};
pub use format::Format;

/// A service as a file defines it.
#[derive(Clone, Debug, Default)]
pub struct Definition {
    /// What is registered.
    pub service: Service,
    /// The ACL token to register it with; none: the one that all requests have.
    pub token: Option<SecretString>,
}

/// Reads a definition file: those of `services`, then `service`, which is the
/// order in which Consul's CLI registers them. A file may define none.
///
/// `file` is the file's name, for problems.
///
/// # Errors
/// All problems of the file, in its order.
pub fn parse(file: &str, format: Format, text: &str) -> Result<Vec<Definition>, Vec<Problem>> {
    let parsed = match format {
        Format::Json => json::parse(text).map_err(|found| vec![found]),
    };
    parsed.and_then(|root| decode::definitions(&root)).map_err(|mut found| {
        found.sort_by_key(|found| found.offset);
        found.into_iter().map(|found| Problem::new(file, text, found)).collect()
    })
}
