//! Go's durations, used by Consul's files, its HTTP API and our flags: a signed
//! sequence of decimal numbers, each with a unit, such as `1h30m`, `1.5s` or `-2m`.
//!
//! The grammar is that of `time.ParseDuration` in Go's standard library; no crate
//! parses exactly that (`1d`, `90` and `1m 30s` are errors here, `.5s` and `0` are
//! valid).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Signed nanoseconds in 64 bits, as in Go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoDuration {
    nanoseconds: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The text does not have Go's form.
    #[error(
        "invalid duration `{text}`: expected a number with a unit (ns, us, ms, s, m or h), such as `90s`, `1m30s` or `1.5h`"
    )]
    Form { text: String },
    /// The duration does not fit into 64 bits of nanoseconds (about 292 years).
    #[error("duration `{text}` is too long: at most 2562047h")]
    TooLong { text: String },
    /// The duration is negative where it must not be.
    #[error("duration `{text}` is negative: expected zero or more")]
    Negative { text: String },
}

/// Parses a duration that is not negative, such as those of our flags.
pub fn parse_length(text: &str) -> Result<Duration, ParseError> {
    let duration: GoDuration = text.parse()?;
    u64::try_from(duration.nanoseconds)
        .map(Duration::from_nanos)
        .map_err(|_| ParseError::Negative { text: text.to_owned() })
}

const UNITS: [(&str, i64); 8] = [
    // Longer names first, so that `ms` is not parsed as `m` and a stray `s`.
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),  // micro sign
    ("\u{3bc}s", 1_000), // Greek letter mu
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3600 * 1_000_000_000),
];

// === impl GoDuration ===

impl GoDuration {
    pub const fn from_secs(seconds: u32) -> Self {
        Self { nanoseconds: seconds as i64 * 1_000_000_000 }
    }

    /// The unit of durations in Go's JSON numbers.
    pub const fn nanoseconds(self) -> i64 {
        self.nanoseconds
    }

    pub const fn from_nanoseconds(nanoseconds: i64) -> Self {
        Self { nanoseconds }
    }
}

impl FromStr for GoDuration {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let form = || ParseError::Form { text: text.to_owned() };
        let too_long = || ParseError::TooLong { text: text.to_owned() };

        let (negative, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if rest == "0" {
            return Ok(Self::default());
        }
        if rest.is_empty() {
            return Err(form());
        }
        // i128 holds any accepted sum; more than 64 bits is rejected below.
        let mut total: i128 = 0;
        while !rest.is_empty() {
            let (whole, after) = take_digits(rest);
            let (fraction, after) = match after.strip_prefix('.') {
                Some(after) => take_digits(after),
                None => ("", after),
            };
            if whole.is_empty() && fraction.is_empty() {
                return Err(form());
            }
            let (after, unit) = UNITS
                .iter()
                .find_map(|(name, unit)| Some((after.strip_prefix(name)?, i128::from(*unit))))
                .ok_or_else(form)?;
            if !whole.is_empty() {
                let whole: u64 = whole.parse().map_err(|_| too_long())?;
                total += i128::from(whole) * unit;
            }
            total += fraction_of(fraction, unit);
            if total > i128::from(i64::MAX) + i128::from(negative) {
                return Err(too_long());
            }
            rest = after;
        }
        let signed = if negative { -total } else { total };
        i64::try_from(signed).map(Self::from_nanoseconds).map_err(|_| too_long())
    }
}

/// Splits off the leading ASCII digits.
fn take_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// `unit` times `0.<digits>`, rounded down. Like Go, ignores digits below a nanosecond.
fn fraction_of(digits: &str, unit: i128) -> i128 {
    let (mut numerator, mut denominator): (i128, i128) = (0, 1);
    for digit in digits.bytes().take(18) {
        numerator = numerator * 10 + i128::from(digit - b'0');
        denominator *= 10;
    }
    numerator * unit / denominator
}

impl fmt::Display for GoDuration {
    /// In Go's form: `1h30m0s`, `1.5s`, `250ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.nanoseconds.unsigned_abs();
        if total == 0 {
            return f.write_str("0s");
        }
        if self.nanoseconds < 0 {
            f.write_str("-")?;
        }
        if total < 1_000_000_000 {
            let (unit, name) = match total {
                0..1_000 => (1, "ns"),
                1_000..1_000_000 => (1_000, "\u{b5}s"),
                _ => (1_000_000, "ms"),
            };
            write_decimal(f, total / unit, total % unit, unit)?;
            return f.write_str(name);
        }
        let seconds = total / 1_000_000_000;
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if hours > 0 || minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        write_decimal(f, seconds, total % 1_000_000_000, 1_000_000_000)?;
        f.write_str("s")
    }
}

/// Writes `whole.fraction`, where `fraction` counts parts of `scale` (a power of ten),
/// without trailing zeros.
fn write_decimal(f: &mut fmt::Formatter<'_>, whole: u64, fraction: u64, scale: u64) -> fmt::Result {
    write!(f, "{whole}")?;
    if fraction == 0 {
        return Ok(());
    }
    let digits = format!("{:0width$}", fraction, width = scale.ilog10() as usize);
    write!(f, ".{}", digits.trim_end_matches('0'))
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// Consul's HTTP API accepts a Go string or nanoseconds.
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a duration such as `10s`, or nanoseconds")]
        enum Either {
            Text(String),
            Nanoseconds(i64),
        }
        match Either::deserialize(deserializer)? {
            Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
            Either::Nanoseconds(nanoseconds) => Ok(Self { nanoseconds }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_go_reads() {
        let second = 1_000_000_000;
        for (text, nanoseconds) in [
            ("0", 0),
            ("+0", 0),
            ("0s", 0),
            ("10s", 10 * second),
            ("1.5h", 5400 * second),
            ("2h45m30.5s", 9_930_500_000_000),
            ("-1.5h", -5400 * second),
            ("+5s", 5 * second),
            (".5s", second / 2),
            ("1.s", second),
            ("1m1m", 120 * second),
            ("1us", 1_000),
            ("1\u{b5}s", 1_000),
            ("1\u{3bc}s", 1_000),
            ("1ms", 1_000_000),
            ("0.3333333333333333333h", 1_199_999_999_999),
            ("-9223372036854775808ns", i64::MIN),
        ] {
            assert_eq!(text.parse(), Ok(GoDuration { nanoseconds }), "{text}");
        }
    }

    #[test]
    fn refuses_what_go_refuses() {
        for text in [
            "", "-", "+", "1d", "1M", "90", "1m 30s", " 1s", "1s ", "1hour", ".s", "s", "1..5s",
            "--1s", "\u{662}s",
        ] {
            assert!(matches!(text.parse::<GoDuration>(), Err(ParseError::Form { .. })), "{text}");
        }
        for text in ["9223372036854775808ns", "2562048h", "99999999999999999999h"] {
            assert!(
                matches!(text.parse::<GoDuration>(), Err(ParseError::TooLong { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn a_length_is_not_negative() {
        assert_eq!(parse_length("1m"), Ok(Duration::from_secs(60)));
        assert!(matches!(parse_length("-1s"), Err(ParseError::Negative { .. })));
    }

    #[test]
    fn prints_as_go_prints() {
        for (nanoseconds, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1\u{b5}s"),
            (2_200_000, "2.2ms"),
            (3_300_000_000, "3.3s"),
            (600_000_000_000, "10m0s"),
            (5_400_000_000_000, "1h30m0s"),
            (-1_500_000_000, "-1.5s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(GoDuration { nanoseconds }.to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(nanoseconds: i64) {
            let duration = GoDuration { nanoseconds };
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in r"[-+0-9.nuµmsh ]{0,20}") {
            let _ = text.parse::<GoDuration>();
        }
    }
}
