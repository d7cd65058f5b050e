//! Resolves the type of a scalar.
//!
//! Source: `resolve` in the YAML library that kubectl uses (go-yaml 2).

use base64_simd::STANDARD;
use granit_parser::Tag;
use serde_json::{Number, Value};

const PREFIX: &str = "tag:yaml.org,2002:";

/// The value of a scalar: a string if it is quoted, unless a tag says otherwise.
pub(super) fn resolve(text: &str, is_plain: bool, tag: Option<&Tag>) -> Result<Value, String> {
    let Some(tag) = tag else {
        return Ok(if is_plain { plain(text) } else { text.into() });
    };
    if tag.handle() != PREFIX {
        // `!` or an application's own tag: a string.
        return Ok(text.into());
    }
    let invalid = || format!("`{}` is not of the type {}", text.escape_debug(), tag.suffix());
    let is = |value: Value, right: bool| if right { Ok(value) } else { Err(invalid()) };
    let value = plain(text);
    match tag.suffix() {
        "int" => is(value.clone(), value.is_i64() || value.is_u64()),
        "float" => is(value.clone(), value.is_number()),
        "bool" => is(value.clone(), value.is_boolean()),
        "null" => is(value.clone(), value.is_null()),
        "binary" => {
            let text: String = text.split_whitespace().collect();
            let bytes = STANDARD.decode_to_vec(text).map_err(|_| invalid())?;
            String::from_utf8(bytes).map(Value::from).map_err(|_| invalid())
        }
        _ => Ok(text.into()),
    }
}

/// The value of an unquoted, untagged scalar.
pub(super) fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return true.into();
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return false.into();
        }
        _ => {}
    }
    number(text).map_or_else(|| text.into(), Value::Number)
}

fn number(text: &str) -> Option<Number> {
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return None;
    }
    let digits = text.replace('_', "");
    integer(&digits).or_else(|| float(text, &digits))
}

/// Like `strconv.ParseInt` with base 0, plus the prefix `0o`.
fn integer(digits: &str) -> Option<Number> {
    let (negative, rest) = match digits.strip_prefix(['+', '-']) {
        Some(rest) => (digits.starts_with('-'), rest),
        None => (false, digits),
    };
    let (radix, rest) = match rest.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &rest[2..]),
        [b'0', b'o' | b'O', ..] => (8, &rest[2..]),
        [b'0', b'b' | b'B', ..] => (2, &rest[2..]),
        [b'0', _, ..] => (8, &rest[1..]),
        _ => (10, rest),
    };
    if !rest.bytes().all(|b| char::from(b).is_digit(radix)) {
        return None;
    }
    let size = u64::from_str_radix(rest, radix).ok()?;
    if negative { 0_i64.checked_sub_unsigned(size).map(Number::from) } else { Some(size.into()) }
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn float(text: &str, digits: &str) -> Option<Number> {
    // Go allows an underscore only after a digit.
    if text.starts_with("._") {
        return None;
    }
    let rest = digits.strip_prefix(['+', '-']).unwrap_or(digits);
    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (rest, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let are_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let has_exponent = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !exponent.is_empty() && are_digits(exponent)
    });
    if whole.len() + fraction.len() == 0
        || !are_digits(whole)
        || !are_digits(fraction)
        || !has_exponent
    {
        return None;
    }
    let value: f64 = digits.parse().ok()?;
    whole_number(value).or_else(|| Number::from_f64(value))
}

/// Go writes 1000.0 as 1000, and an integer field accepts only that form.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "only numbers that both conversions keep are returned"
)]
fn whole_number(value: f64) -> Option<Number> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let whole = value as i64;
    (value.abs() <= EXACT && (whole as f64).to_bits() == (value + 0.0).to_bits())
        .then(|| Number::from(whole))
}
