//! Rules for service names.

/// Length of a DNS label, because Consul's DNS answers for the name as one label.
pub const MAX_LENGTH: usize = 63;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("the service name is empty: expected letters, digits, `-`, `_` or `.`")]
    Empty,
    #[error("service name `{name}` has {length} characters: at most {MAX_LENGTH}")]
    TooLong {
        name: String,
        /// Its length in characters.
        length: usize,
    },
    /// A character that is not allowed there.
    #[error(
        "service name `{name}` has {found:?} at column {column}: expected letters, digits, `-`, `_` or `.`, with a letter or digit first and last"
    )]
    Character {
        name: String,
        found: char,
        /// In characters, from 1.
        column: usize,
    },
}

/// Checks a service name.
///
/// The agent accepts any text, but a name with another character can't be reached by
/// DNS, SPIFFE URIs and intentions. Newer Consul releases warn of it ("Service name ...
/// will not be discoverable via DNS").
pub fn check(name: &str) -> Result<(), InvalidName> {
    if name.is_empty() {
        return Err(InvalidName::Empty);
    }
    let last = name.chars().count();
    for (column, found) in (1..).zip(name.chars()) {
        let inner = matches!(found, '-' | '_' | '.') && column > 1 && column < last;
        if !found.is_ascii_alphanumeric() && !inner {
            return Err(InvalidName::Character { name: name.to_owned(), found, column });
        }
    }
    if last > MAX_LENGTH {
        return Err(InvalidName::TooLong { name: name.to_owned(), length: last });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_names_that_consul_can_serve() {
        for name in ["web", "Web-2", "a", "web_api", "web.v2", &"x".repeat(63)] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn points_at_what_is_wrong() {
        assert_eq!(check(""), Err(InvalidName::Empty));
        for (name, column) in
            [("we b", 3), ("-web", 1), ("web-", 4), ("wéb", 2), ("web/1", 4), ("$(id)", 1)]
        {
            let Err(InvalidName::Character { column: found, .. }) = check(name) else {
                panic!("{name} was taken");
            };
            assert_eq!(found, column, "{name}");
        }
        assert!(matches!(check(&"x".repeat(64)), Err(InvalidName::TooLong { .. })));
    }
}
