//! Which agents know a key.
//!
//! Sources: the "Added in" remarks of Consul's reference pages on services,
//! checks and proxies, and the types of its public Go module `consul/api`,
//! release by release. Keys that Consul 1.10 knows need no entry.

use std::fmt;

/// From which agent on a key is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// A release, by its major and minor number.
    Release(u64, u64),
    /// Any release of Consul Enterprise.
    Enterprise,
}

// === impl Since ===

impl Since {
    /// Whether an agent of this version, such as `1.14.11` or `1.21.4+ent`,
    /// knows it. A version that can't be read is taken as new enough: the agent
    /// itself has the last word.
    pub fn is_known_to(self, version: &str) -> bool {
        match self {
            Self::Enterprise => version.contains("+ent"),
            Self::Release(major, minor) => {
                let mut numbers = version.trim_start_matches('v').split(['.', '-', '+']);
                let mut number = || numbers.next().and_then(|number| number.parse::<u64>().ok());
                match (number(), number()) {
                    (Some(is_major), Some(is_minor)) => (is_major, is_minor) >= (major, minor),
                    _ => true,
                }
            }
        }
    }
}

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Release(major, minor) => write!(f, "requires Consul {major}.{minor} or newer"),
            Self::Enterprise => f.write_str("requires Consul Enterprise"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_knows_the_keys_of_its_release_and_of_older_ones() {
        for (version, since, is_known) in [
            ("1.14.11", Since::Release(1, 14), true),
            ("1.14.11", Since::Release(1, 15), false),
            ("1.9.0", Since::Release(1, 14), false),
            ("2.0.0-rc1", Since::Release(1, 22), true),
            ("1.22.0+ent", Since::Release(2, 0), false),
            ("1.22.0+ent", Since::Enterprise, true),
            ("1.22.0", Since::Enterprise, false),
            ("unknown", Since::Release(2, 0), true),
            ("", Since::Release(2, 0), true),
        ] {
            assert_eq!(since.is_known_to(version), is_known, "{version} {since}");
        }
    }
}
