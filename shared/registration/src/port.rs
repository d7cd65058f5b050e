//! A port as a number or by a container port's name.

/// A named container port of a pod.
pub type Named<'a> = (&'a str, u16);

/// Why a text is not a port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPort {
    #[error("the port is empty: expected a number from 1 to 65535 or the name of a container port")]
    Empty,
    /// A number out of range.
    #[error("port `{text}` is out of range: expected 1 to 65535")]
    Range { text: String },
    /// No container port has that name.
    #[error("port `{text}` is neither a number from 1 to 65535 nor the name of a container port ({})", list(.known))]
    Unknown { text: String, known: Vec<String> },
}

fn list(known: &[String]) -> String {
    if known.is_empty() {
        "no container port has a name".to_owned()
    } else {
        format!("there are: {}", known.join(", "))
    }
}

/// Resolves a port, by name first: a name may look like a number. Hexadecimal, octal
/// and underscores, which consul-k8s accepts by accident, are not numbers here.
pub fn resolve(text: &str, named: &[Named<'_>]) -> Result<u16, InvalidPort> {
    if text.is_empty() {
        return Err(InvalidPort::Empty);
    }
    if let Some((_, port)) = named.iter().find(|(name, _)| *name == text) {
        return Ok(*port);
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        let known = named.iter().map(|(name, _)| (*name).to_owned()).collect();
        return Err(InvalidPort::Unknown { text: text.to_owned(), known });
    }
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(InvalidPort::Range { text: text.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_or_a_number() {
        let named = [("http", 8080), ("admin", 9090)];
        assert_eq!(resolve("http", &named), Ok(8080));
        assert_eq!(resolve("80", &named), Ok(80));
        assert_eq!(resolve("65535", &[]), Ok(65535));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["0", "65536", "-1", "99999999999999999999"] {
            assert!(matches!(resolve(text, &[]), Err(InvalidPort::Range { .. })), "{text}");
        }
        for text in ["0x50", "8_080", "grpc", " 80", "+80", "-", "80 "] {
            assert!(
                matches!(resolve(text, &[("http", 8080)]), Err(InvalidPort::Unknown { .. })),
                "{text}"
            );
        }
        assert_eq!(resolve("", &[]), Err(InvalidPort::Empty));
        let error = resolve("grpc", &[("http", 8080)]).unwrap_err().to_string();
        assert!(error.contains("there are: http"), "{error}");
    }
}
