//! Writes YAML that all readers read alike: a string that some reader would take for
//! another type is quoted.

use serde_json::Value;

use super::scalar::plain;

pub(crate) fn write(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(members) if !members.is_empty() => block(&mut text, value, 0, false),
        Value::Array(elements) if !elements.is_empty() => block(&mut text, value, 0, false),
        other => {
            scalar(&mut text, other, 0);
            text.push('\n');
        }
    }
    text
}

/// Writes a collection that is not empty. If `begun`, the first line is indented already.
fn block(text: &mut String, value: &Value, indent: usize, mut begun: bool) {
    let mut line = |text: &mut String| {
        if !std::mem::take(&mut begun) {
            text.extend(std::iter::repeat_n(' ', indent));
        }
    };
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                line(text);
                quoted(text, key);
                text.push(':');
                match value {
                    Value::Object(members) if !members.is_empty() => {
                        text.push('\n');
                        block(text, value, indent + 2, false);
                    }
                    Value::Array(elements) if !elements.is_empty() => {
                        text.push('\n');
                        block(text, value, indent, false);
                    }
                    other => {
                        text.push(' ');
                        scalar(text, other, indent + 2);
                        text.push('\n');
                    }
                }
            }
        }
        Value::Array(elements) => {
            for value in elements {
                line(text);
                text.push_str("- ");
                let has_members = value.as_object().is_some_and(|members| !members.is_empty())
                    || value.as_array().is_some_and(|elements| !elements.is_empty());
                if has_members {
                    block(text, value, indent + 2, true);
                } else {
                    scalar(text, value, indent + 2);
                    text.push('\n');
                }
            }
        }
        _ => {}
    }
}

fn scalar(text: &mut String, value: &Value, indent: usize) {
    match value {
        Value::String(value) => {
            if let Some(lines) = literal(value) {
                text.push_str(if value.ends_with('\n') { "|" } else { "|-" });
                for line in lines {
                    text.push('\n');
                    if !line.is_empty() {
                        text.extend(std::iter::repeat_n(' ', indent));
                        text.push_str(line);
                    }
                }
            } else {
                quoted(text, value);
            }
        }
        Value::Number(number) => {
            let number = number.to_string();
            match number.split_once('e') {
                // Some readers require a point and a sign.
                Some((mantissa, exponent)) => {
                    let point = if mantissa.contains('.') { "" } else { ".0" };
                    let sign = if exponent.starts_with(['-', '+']) { "" } else { "+" };
                    text.extend([mantissa, point, "e", sign, exponent]);
                }
                None => text.push_str(&number),
            }
        }
        Value::Object(_) => text.push_str("{}"),
        Value::Array(_) => text.push_str("[]"),
        Value::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
        Value::Null => text.push_str("null"),
    }
}

/// The lines of a text that can be written as a block scalar.
fn literal(value: &str) -> Option<impl Iterator<Item = &str>> {
    let body = value.strip_suffix('\n').unwrap_or(value);
    let is_fine = |line: &str| {
        !line.starts_with([' ', '\t']) && !line.ends_with([' ', '\t']) && line.chars().all(is_plain)
    };
    let starts = body.split('\n').next().is_some_and(|line| !line.is_empty());
    let ends = !body.ends_with('\n');
    // Scripts often have indented lines; only the first line can't be indented.
    let rest = body.split('\n').skip(1).all(|line| {
        !line.starts_with('\t')
            && (line.is_empty() || !line.trim().is_empty())
            && line.chars().all(is_plain)
    });
    let first = body.split('\n').next().is_some_and(is_fine);
    (value.contains('\n') && starts && ends && first && rest).then(|| body.split('\n'))
}

/// Writes a string on one line, quoted if a reader could take it for another type.
fn quoted(text: &mut String, value: &str) {
    let is_word = |c: char| {
        c.is_ascii_alphanumeric()
            || matches!(c, '_' | '/' | '.' | '-' | '$' | '(' | ')' | ' ' | '=' | '+' | '@')
    };
    let begins = value.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '$'));
    let is_text =
        begins && value.chars().all(is_word) && !value.ends_with(' ') && plain(value).is_string();
    if is_text {
        text.push_str(value);
        return;
    }
    text.push('"');
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            c if is_plain(c) => text.push(c),
            c if u32::from(c) <= 0xffff => text.extend(["\\u", &hexadecimal(c, 4)]),
            c => text.extend(["\\U", &hexadecimal(c, 8)]),
        }
    }
    text.push('"');
}

fn hexadecimal(c: char, digits: usize) -> String {
    format!("{:0digits$x}", u32::from(c))
}

/// Characters that all YAML readers accept unescaped.
fn is_plain(c: char) -> bool {
    matches!(c, ' '..='~' | '\u{a1}'..='\u{167f}' | '\u{2030}'..='\u{205e}' | '\u{3001}'..='\u{d7ff}' | '\u{10000}'..='\u{1ffff}')
}
