//! The formats of definition files.

use std::path::Path;

use crate::UnknownFormat;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    /// HCL 1; a text that begins with `{` is JSON all the same.
    Hcl,
}

impl Format {
    /// The format of a file by the end of its name, as Consul tells them apart.
    pub fn of(file: impl AsRef<Path>) -> Result<Self, UnknownFormat> {
        match file.as_ref().extension().and_then(|extension| extension.to_str()) {
            Some("json") => Ok(Self::Json),
            Some("hcl") => Ok(Self::Hcl),
            _ => Err(UnknownFormat),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_name_tells() {
        assert_eq!(Format::of("a/web.json"), Ok(Format::Json));
        assert_eq!(Format::of("web.hcl"), Ok(Format::Hcl));
        for name in ["web", "web.JSON", "web.yaml", "json", ".json", ""] {
            assert_eq!(Format::of(name), Err(UnknownFormat), "{name}");
        }
    }
}
