//! The domain that queries are forwarded for.

use std::fmt;
use std::str::FromStr;

/// A domain such as `consul`, with or without a trailing dot. Case does not matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// In wire format: each label behind its length, then a zero.
    encoded: Vec<u8>,
    text: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("domain `{text}`: {problem}; expected labels separated by dots, such as `consul`")]
pub struct InvalidDomain {
    text: String,
    problem: &'static str,
}

/// Maximum length of a name in wire format. Source: RFC 1035, section 2.3.4.
pub(crate) const LONGEST_NAME: usize = 255;

/// Maximum length of a label. Source: RFC 1035, section 2.3.4.
pub(crate) const LONGEST_LABEL: usize = 63;

// === impl Domain ===

impl FromStr for Domain {
    type Err = InvalidDomain;

    fn from_str(text: &str) -> Result<Self, InvalidDomain> {
        let invalid = |problem| InvalidDomain { text: text.to_owned(), problem };
        let mut encoded = Vec::new();
        let name = text.strip_suffix('.').unwrap_or(text);
        for label in name.split('.') {
            let is_known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            if label.is_empty() {
                return Err(invalid("a label is empty"));
            }
            if !label.bytes().all(is_known) {
                return Err(invalid("a label has other characters than letters, digits, - and _"));
            }
            let length = u8::try_from(label.len()).ok();
            match length.filter(|length| usize::from(*length) <= LONGEST_LABEL) {
                Some(length) => encoded.push(length),
                None => return Err(invalid("a label is longer than 63 characters")),
            }
            encoded.extend(label.bytes());
        }
        encoded.push(0);
        if encoded.len() > LONGEST_NAME {
            return Err(invalid("it is longer than 253 characters"));
        }
        Ok(Self { encoded, text: name.to_owned() })
    }
}

impl Domain {
    /// In wire format.
    pub(crate) fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    /// This name under another.
    ///
    /// # Errors
    /// The name would be too long.
    pub fn under(&self, parent: &Self) -> Result<Self, InvalidDomain> {
        format!("{self}.{parent}").parse()
    }

    /// Whether a name in wire format is the domain or under it.
    pub(crate) fn has(&self, mut name: &[u8]) -> bool {
        // A length is at most 63, and so never a letter.
        while !name.eq_ignore_ascii_case(&self.encoded) {
            match name.split_first() {
                Some((&length, rest)) if length > 0 => {
                    name = rest.get(usize::from(length)..).unwrap_or_default();
                }
                _ => return false,
            }
        }
        true
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_read_with_or_without_its_last_dot() {
        let domain = |text: &str| text.parse::<Domain>();
        assert_eq!(domain("consul"), domain("consul."));
        assert_eq!(domain("a.b").unwrap().encoded, b"\x01a\x01b\0");
        assert_eq!(domain("dc1.example.").unwrap().to_string(), "dc1.example");
        let long = format!("{0}.{0}.{0}.{0}", "x".repeat(63));
        for text in ["", ".", "a..b", ".a", "a b", "käse", &"x".repeat(64), &long] {
            assert!(domain(text).is_err(), "{text}");
        }
        assert_eq!(
            domain("a..b").unwrap_err().to_string(),
            "domain `a..b`: a label is empty; expected labels separated by dots, such as `consul`"
        );
    }

    #[test]
    fn a_name_is_under_a_domain_by_whole_labels() {
        let consul: Domain = "consul".parse().unwrap();
        for name in [&b"\x03web\x07virtual\x06consul\0"[..], b"\x06consul\0", b"\x01a\x06CoNsUl\0"]
        {
            assert!(consul.has(name), "{name:?}");
        }
        for name in [
            &b"\x03web\x07virtual\x06consul\x07default\x03svc\x07cluster\x05local\0"[..],
            b"\x07xconsul\0",
            b"\x01x\x05onsul\0",
            b"\x0bfake.consul\0", // one label that has a dot in it
            b"\0",
            b"",
        ] {
            assert!(!consul.has(name), "{name:?}");
        }
        let two: Domain = "a.b".parse().unwrap();
        assert!(two.has(b"\x01x\x01a\x01B\0"));
        assert!(!two.has(b"\x01b\0"));
    }
}
