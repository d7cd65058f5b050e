//! What someone may have meant.

/// Longer texts are no misspellings of anything here.
const LONGEST: usize = 64;

/// The one of `known` that is spelt most like `found`, if any is near. Case and
/// separators don't count: `EnableTagOverride` is `enable_tag_override`.
pub(crate) fn nearest<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    if found.len() > LONGEST {
        return None;
    }
    let found = plain(found);
    known
        .iter()
        .map(|candidate| (distance(&found, &plain(candidate)), *candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn plain(text: &str) -> Vec<char> {
    text.to_lowercase().chars().filter(|c| c.is_alphanumeric()).collect()
}

/// How many characters have to be put in, taken out, changed or swapped with
/// their neighbour (optimal string alignment).
fn distance(from: &[char], to: &[char]) -> usize {
    let mut rows = vec![(0..=to.len()).collect::<Vec<usize>>()];
    for i in 1..=from.len() {
        let mut row = vec![i];
        for j in 1..=to.len() {
            let above = &rows[i - 1];
            let changed = above[j - 1] + usize::from(from[i - 1] != to[j - 1]);
            let mut least = changed.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
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
