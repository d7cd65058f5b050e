//! Reads and writes Consul's service definition files.
//!
//! - [`Format`]: HCL or JSON
//! - [`parse`]: a file's text into its [`Definition`]s, or every [`Problem`] in it
//! - [`Since`]: which agents know a key
//! - [`print()`]: services as a definition file
//!
//! Reading has two steps, so that a format only has to produce the first: a
//! text becomes a tree (`json`, `hcl`), and the tree becomes registrations
//! (`decode`). `encode` goes back.
//!
//! Keys and types are those of Consul's "Service definition reference", "Health
//! check configuration reference" and "Connect proxy configuration reference".
//! Types are as strict as in `consul services register`; keys are read in any
//! case and also as the HTTP API spells them.
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
mod since;
mod spelling;
mod tree;

use registration::Service;
use secrecy::SecretString;

pub use encode::print;
pub use error::{Problem, UnknownFormat};
pub use format::Format;
pub use since::Since;

#[derive(Clone, Debug, Default)]
pub struct Definition {
    /// What is sent to the agent.
    pub service: Service,
    /// The ACL token for this service's requests; `None`: that of all requests.
    pub token: Option<SecretString>,
    pub place: Place,
    /// What the file says without effect.
    pub warnings: Vec<Problem>,
    /// The keys that not every supported agent knows. An agent refuses a
    /// registration with a key that it does not know.
    pub newer: Vec<Newer>,
}

/// A key that not every supported agent knows.
#[derive(Clone, Debug)]
pub struct Newer {
    /// The agents that know it.
    pub since: Since,
    /// Where the key is. The message is the requirement.
    pub place: Problem,
}

/// Where in a file a definition begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub file: String,
    /// The line, from 1.
    pub line: usize,
}

/// Reads a definition file: the entries of `services`, then `service`, which is
/// the order in which Consul's CLI registers them. A file may define none.
///
/// `file` is the file's name, for problems.
///
/// # Errors
/// The problems of the file, in its order; of very many the first ones.
pub fn parse(file: &str, format: Format, text: &str) -> Result<Vec<Definition>, Vec<Problem>> {
    let parsed = match format {
        // As HCL 1 does itself.
        Format::Hcl if !text.trim_start().starts_with('{') => hcl::parse(text),
        Format::Hcl | Format::Json => json::parse(text),
    };
    let decoded = parsed.map_err(|found| vec![found]).and_then(|root| decode::definitions(&root));
    let problem = |found| Problem::new(file, text, found);
    match decoded {
        Ok(found) => {
            let mut lines = Lines { text, offset: 0, line: 1 };
            let definitions = found.into_iter().map(|read| Definition {
                service: read.service,
                token: read.token,
                place: Place { file: file.to_owned(), line: lines.of(read.offset) },
                warnings: read.warnings.into_iter().map(problem).collect(),
                newer: read
                    .newer
                    .into_iter()
                    .map(|(since, found)| Newer { since, place: problem(found) })
                    .collect(),
            });
            Ok(definitions.collect())
        }
        Err(mut found) => {
            found.sort_by_key(|found| found.offset);
            Err(found.into_iter().map(problem).collect())
        }
    }
}

/// Counts lines from the place that was asked for last.
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
