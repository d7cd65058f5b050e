//! Quantities of Kubernetes, such as `250m` of CPU and `64Mi` of memory.
//!
//! Source: "Quantity" of the Kubernetes API reference.

use std::str::FromStr;

/// A quantity as it was written, and its size for comparisons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Quantity {
    text: String,
    /// Billionths, rounded up: the finest unit that Kubernetes knows.
    billionths: u128,
}

/// Request and limit of one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) request: Option<Quantity>,
    pub(crate) limit: Option<Quantity>,
}

/// Requests and limits of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    pub(crate) cpu: Bounds,
    pub(crate) memory: Bounds,
    /// Local disk: logs, the writable layer and emptyDirs.
    pub(crate) ephemeral_storage: Bounds,
}

const FORM: &str = "expected a number with a suffix such as `m`, `k`, `M`, `Mi` or `Gi`";

// === impl Quantity ===

impl Quantity {
    /// The quantity as it was written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The quantity in billionths, rounded up.
    pub(crate) fn billionths(&self) -> u128 {
        self.billionths
    }
}

impl FromStr for Quantity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at = |rest: &str| text[..text.len() - rest.len()].chars().count() + 1;
        let rest = text.strip_prefix('+').unwrap_or(text);
        if rest.starts_with('-') {
            return Err("column 1: a resource cannot be negative".to_owned());
        }
        let (whole, rest) = digits(rest);
        let (fraction, rest) = rest.strip_prefix('.').map_or(("", rest), digits);
        if whole.is_empty() && fraction.is_empty() {
            return Err(format!("column {}: {FORM}", at(rest)));
        }
        let (base, exponent) =
            suffix(rest).ok_or_else(|| format!("column {}: {FORM}", at(rest)))?;
        billionths(whole, fraction, base, exponent)
            .map(|billionths| Self { text: text.to_owned(), billionths })
            .ok_or_else(|| "the number is too large or too long".to_owned())
    }
}

/// Splits a text after its leading digits.
fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

/// Base and exponent of a suffix.
fn suffix(text: &str) -> Option<(u128, i32)> {
    Some(match text {
        "n" => (10, -9),
        "u" => (10, -6),
        "m" => (10, -3),
        "" => (10, 0),
        "k" => (10, 3),
        "M" => (10, 6),
        "G" => (10, 9),
        "T" => (10, 12),
        "P" => (10, 15),
        "E" => (10, 18),
        "Ki" => (1024, 1),
        "Mi" => (1024, 2),
        "Gi" => (1024, 3),
        "Ti" => (1024, 4),
        "Pi" => (1024, 5),
        "Ei" => (1024, 6),
        exponent => {
            let exponent = exponent.strip_prefix(['e', 'E'])?;
            let plain = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if plain.is_empty() || !plain.bytes().all(|b| b.is_ascii_digit()) || plain.len() > 2 {
                return None;
            }
            (10, exponent.parse().ok()?)
        }
    })
}

/// `whole.fraction * base^exponent` in billionths, rounded up.
fn billionths(whole: &str, fraction: &str, base: u128, exponent: i32) -> Option<u128> {
    let fraction = fraction.trim_end_matches('0');
    let joined = format!("{whole}{fraction}");
    let joined = joined.trim_start_matches('0');
    let number: u128 = if joined.is_empty() { 0 } else { joined.parse().ok()? };
    if number == 0 {
        return Some(0);
    }
    let tens = |power: i32| 10_u128.checked_pow(u32::try_from(power).ok()?);
    let mut tenth = 9 - i32::try_from(fraction.len()).ok()?;
    let mut number = number;
    if base == 10 {
        tenth += exponent;
    } else {
        number = number.checked_mul(base.checked_pow(u32::try_from(exponent).ok()?)?)?;
    }
    if tenth >= 0 {
        number.checked_mul(tens(tenth)?)
    } else {
        // A smaller amount is rounded up to one billionth.
        Some(tens(-tenth).map_or(1, |divisor| number.div_ceil(divisor)))
    }
}

// === impl Resources ===

impl Resources {
    /// Each resource with its name.
    pub(crate) fn each(&self) -> [(&'static str, &Bounds); 3] {
        [
            ("cpu", &self.cpu),
            ("memory", &self.memory),
            ("ephemeral-storage", &self.ephemeral_storage),
        ]
    }

    /// Whether CPU and memory requests equal their limits, as the QoS class Guaranteed
    /// requires.
    pub(crate) fn is_equal(&self) -> bool {
        let size = |quantity: &Option<Quantity>| quantity.as_ref().map(Quantity::billionths);
        [&self.cpu, &self.memory]
            .into_iter()
            .all(|bounds| bounds.request.is_some() && size(&bounds.request) == size(&bounds.limit))
    }

    /// Rejects a request above its limit, as the API server would.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (name, Bounds { request, limit }) in self.each() {
            if let (Some(request), Some(limit)) = (request, limit)
                && request.billionths > limit.billionths
            {
                return Err(format!(
                    "the {name} request `{}` is above the {name} limit `{}`",
                    request.text, limit.text
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(text: &str) -> u128 {
        text.parse::<Quantity>().unwrap_or_else(|error| panic!("{text}: {error}")).billionths
    }

    #[test]
    fn every_suffix() {
        const ONE: u128 = 1_000_000_000;
        for (text, expected) in [
            ("0", 0),
            ("0.0Gi", 0),
            ("1", ONE),
            ("+1", ONE),
            ("007", 7 * ONE),
            ("1.5", ONE / 2 * 3),
            (".5", ONE / 2),
            ("5.", 5 * ONE),
            ("100m", ONE / 10),
            ("1n", 1),
            ("0.1n", 1),
            ("1u", 1000),
            ("2k", 2000 * ONE),
            ("1e3", 1000 * ONE),
            ("1E3", 1000 * ONE),
            ("1E-3", ONE / 1000),
            ("1e-99", 1),
            ("1E", 1_000_000_000_000_000_000 * ONE),
            ("1Ki", 1024 * ONE),
            ("1.5Gi", 1_610_612_736 * ONE),
            ("1Ei", (1 << 60) * ONE),
        ] {
            assert_eq!(size(text), expected, "{text}");
        }
        assert_eq!("64.0Mi".parse::<Quantity>().unwrap().text(), "64.0Mi");
    }

    #[test]
    fn an_invalid_quantity_is_an_error_with_its_column() {
        for (text, column) in [
            ("", 1),
            (".", 2),
            ("-1", 1),
            ("Mi", 1),
            ("10 Mi", 3),
            ("10mb", 3),
            ("1.2.3", 4),
            ("1e", 2),
            ("1e+", 2),
            ("0x10", 2),
            ("10é", 3),
            ("1e100", 2),
        ] {
            let error = text.parse::<Quantity>().unwrap_err();
            assert!(error.starts_with(&format!("column {column}: ")), "{text}: {error}");
        }
        for text in ["9".repeat(60).as_str(), "1e99", "99999999999999Ei"] {
            assert!(text.parse::<Quantity>().unwrap_err().contains("too large"), "{text}");
        }
    }

    #[test]
    fn a_request_is_at_most_its_limit() {
        let bounds = |request: &str, limit: &str| Resources {
            cpu: Bounds { request: request.parse().ok(), limit: limit.parse().ok() },
            ..Resources::default()
        };
        for (request, limit) in [("1", "1000m"), ("", "0"), ("5", ""), ("0", "0"), ("1k", "1Ki")] {
            assert_eq!(bounds(request, limit).check(), Ok(()), "{request} {limit}");
        }
        assert_eq!(
            bounds("1.1", "1").check().unwrap_err(),
            "the cpu request `1.1` is above the cpu limit `1`"
        );
        assert!(bounds("1", "0").check().is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[+-]?[0-9.]{0,45}(\\PC{0,3}|[eE][+-]?[0-9]{0,12}|[KMGTPE]i)") {
            let _ = text.parse::<Quantity>();
        }

        #[test]
        fn sizes_are_in_order(a: u32, b: u32) {
            let [small, large, kilo, kibi] =
                [(a, "m"), (b, "m"), (a, "k"), (a, "Ki")].map(|(n, unit)| size(&(n.to_string() + unit)));
            prop_assert_eq!(small < large, a < b);
            prop_assert!(kibi >= kilo);
        }
    }
}
