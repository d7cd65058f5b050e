//! When a certificate ends. Pure.
//!
//! Source: RFC 5280, section 4.1: a certificate in DER begins with version,
//! serial number, algorithm, issuer and validity.

/// When a certificate ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// As RFC 3339 has it.
    pub text: String,
    /// In seconds since 1970.
    pub seconds: i64,
}

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// When a certificate ends; none if it is not one.
pub fn end(der: &[u8]) -> Option<End> {
    let body = inside(inside(der)?)?;
    let (tag, _, mut rest) = element(body)?;
    if tag == VERSION {
        (_, _, rest) = element(rest)?;
    }
    for _ in ["algorithm", "issuer"] {
        (_, _, rest) = element(rest)?;
    }
    let (_, _, not_after) = element(inside(rest)?)?;
    let (tag, time, _) = element(not_after)?;
    let time = std::str::from_utf8(time).ok()?.strip_suffix('Z')?;
    let time = match tag {
        // A year of two digits is one of 1950 to 2049.
        UTC_TIME => format!("{}{time}", if time < "5" { "20" } else { "19" }),
        GENERALIZED_TIME => time.to_owned(),
        _ => return None,
    };
    if time.len() != 14 || !time.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = |from: usize, to: usize| time[from..to].parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    let (hour, minute, second) = (number(8, 10)?, number(10, 12)?, number(12, 14)?);
    Some(End {
        text: format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"),
        seconds: ((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second,
    })
}

/// The contents of a sequence.
fn inside(der: &[u8]) -> Option<&[u8]> {
    let (tag, contents, _) = element(der)?;
    (tag == SEQUENCE).then_some(contents)
}

/// Tag and contents of the first element, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = der.split_first_chunk()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if bytes.len() > 3 {
            return None;
        }
        (bytes.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)), rest)
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((tag, contents, rest))
}

/// Days from 1970-01-01 to a day of the Gregorian calendar: years begin in
/// March here, so that the leap day is their last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(year: i32) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(["a".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 3, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    /// Seconds are by `date -u -d YEAR-03-01 +%s`.
    #[test]
    fn the_end_is_read_in_both_forms_of_time() {
        for (year, seconds) in [
            (1999, 920_246_400),
            (2024, 1_709_251_200),
            (2049, 2_498_169_600),
            (2150, 5_685_379_200),
        ] {
            let end = end(&certificate(year)).unwrap();
            assert_eq!((end.text, end.seconds), (format!("{year}-03-01T00:00:00Z"), seconds));
        }
    }

    #[test]
    fn what_is_cut_or_changed_is_no_panic() {
        let whole = certificate(2030);
        for length in 0..whole.len().min(200) {
            assert_eq!(end(&whole[..length]), None);
        }
        for place in 0..200 {
            for byte in [0, 0x7f, 0x80, 0x84, 0xff] {
                let mut changed = whole.clone();
                changed[place] = byte;
                let _ = end(&changed);
            }
        }
    }
}
