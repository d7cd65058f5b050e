//! Findings of the last audit, counted by code. The audit's pod ends before Prometheus can
//! scrape it, so it writes the counts to a ConfigMap; the injector mounts that as a file and
//! exports them.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Key in the ConfigMap, which is also the name of the mounted file.
pub(crate) const KEY: &str = "results.json";

/// Maximum size of the file. About thirty codes need 3 KiB.
const LARGEST: u64 = 64 * 1024;

/// The results of an audit. The field names are an interface: releases read each other's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Results {
    /// When the audit ran, in seconds since 1970.
    pub(crate) time: i64,
    /// Counts of all codes that the audit checked, including zeros.
    pub(crate) findings: Vec<Found>,
}

/// Number of findings of one code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) code: String,
    pub(crate) severity: String,
    pub(crate) count: u32,
}

impl Results {
    /// Reads the file; `None` until an audit has written it.
    ///
    /// # Errors
    /// Why it can't be read.
    pub(crate) fn read(file: &Path) -> Result<Option<Self>, String> {
        let mut text = String::new();
        match File::open(file).and_then(|file| file.take(LARGEST).read_to_string(&mut text)) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        }
        serde_json::from_str(&text).map(Some).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_as_they_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(KEY);
        assert_eq!(Results::read(&file), Ok(None));
        let count =
            Found { code: "unreadable".to_owned(), severity: "warning".to_owned(), count: 3 };
        let results = Results { time: 7, findings: vec![count] };
        let text = serde_json::to_string(&results).unwrap();
        runtime::file::write_whole(&file, 0o600, text.as_bytes()).unwrap();
        assert_eq!(Results::read(&file), Ok(Some(results)));
        runtime::file::write_whole(&file, 0o600, "{".as_bytes()).unwrap();
        assert!(Results::read(&file).is_err());
        // A field of a later release.
        let later = r#"{"time": 7, "findings": [], "more": true}"#;
        runtime::file::write_whole(&file, 0o600, later.as_bytes()).unwrap();
        assert_eq!(Results::read(&file), Ok(Some(Results { time: 7, findings: Vec::new() })));
    }
}
