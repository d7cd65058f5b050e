//! Suggestions for misspelt keys.

/// Longer texts are not misspellings of any key.
const LONGEST: usize = 64;

/// The most similar one of `known`, if any is close. Case and separators don't count:
/// `EnableTagOverride` is `enable_tag_override`.
pub(crate) fn nearest<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    if found.len() > LONGEST {
        return None;
    }
    let found = plain(found);
    known
        .iter()
        .map(|candidate| (strsim::osa_distance(&found, &plain(candidate)), *candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn plain(text: &str) -> String {
    text.to_lowercase().chars().filter(|c| c.is_alphanumeric()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_near() {
        let known = ["id", "interval", "http", "port", "enable_tag_override"];
        for (found, meant) in [
            ("intervall", Some("interval")),
            ("Intreval", Some("interval")),
            ("EnableTagOverride", Some("enable_tag_override")),
            ("https", Some("http")),
            ("ids", Some("id")),
            ("prot", Some("port")),
            ("name", None),
            ("", None),
        ] {
            assert_eq!(nearest(found, &known), meant, "{found}");
        }
    }
}
