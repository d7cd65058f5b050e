//! Validity dates of a certificate, for callers that renew or warn. Pure.
//!
//! Source: RFC 5280, 4.1 Basic Certificate Fields, and X.690 for DER.

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first valid second, since 1970.
    pub not_before: i64,
    /// The last valid second, since 1970.
    pub not_after: i64,
}

/// The validity of a DER certificate; `None` if it can't be parsed.
pub fn validity(certificate: &[u8]) -> Option<Validity> {
    let (body, _) = element(certificate, Some(SEQUENCE))?;
    let (mut fields, _) = element(body, Some(SEQUENCE))?;
    if fields.first() == Some(&VERSION) {
        fields = element(fields, None)?.1;
    }
    // Serial number, signature algorithm and issuer come first.
    for _ in 0..3 {
        fields = element(fields, None)?.1;
    }
    let (validity, _) = element(fields, Some(SEQUENCE))?;
    let (_, end) = element(validity, None)?;
    Some(Validity { not_before: time(validity)?, not_after: time(end)? })
}

/// Formats seconds since 1970 as RFC 3339 in UTC.
pub fn rfc3339(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400) + EPOCH, seconds.rem_euclid(86_400));
    // Years begin in March here, and eras of 400 years on the first day of one.
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = (year + 400 * era, if month < 10 { month + 3 } else { month - 9 });
    let year = if month <= 2 { year + 1 } else { year };
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// 1970-01-01, in days since the first of March of the year 0.
const EPOCH: i64 = 719_468;

/// Parses the time at the start of the input.
fn time(input: &[u8]) -> Option<i64> {
    let (text, _) = element(input, None)?;
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    match *input.first()? {
        // The two-digit year stands for 1950 to 2049.
        UTC_TIME if text.starts_with(['5', '6', '7', '8', '9']) => seconds(&format!("19{text}")),
        UTC_TIME => seconds(&format!("20{text}")),
        GENERALIZED_TIME => seconds(text),
        _ => None,
    }
}

/// The contents of the first element, which must have the given tag, and the rest.
fn element(input: &[u8], tag: Option<u8>) -> Option<(&[u8], &[u8])> {
    let (found, rest) = input.split_first()?;
    if tag.is_some_and(|tag| tag != *found) {
        return None;
    }
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        // The length follows in that many bytes.
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// Parses `YYYYMMDDHHMMSS` into seconds since 1970.
fn seconds(text: &str) -> Option<i64> {
    if text.len() != 14 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number = |range| text.get::<std::ops::Range<usize>>(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
    let (hour, minute, second) = (number(8..10)?, number(10..12)?, number(12..14)?);
    // Years begin in March here, so that a leap day is the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    Some(((days - EPOCH) * 24 + hour) * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn not_after(certificate: &[u8]) -> Option<i64> {
        validity(certificate).map(|validity| validity.not_after)
    }

    fn ending(year: i32, month: u8, day: u8) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, month, day);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_end_of_a_certificate() {
        for (year, month, day, seconds) in [
            (1970, 1, 2, 86_400),
            (2000, 3, 1, 951_868_800),
            (2026, 11, 22, 1_795_305_600),
            (2049, 12, 31, 2_524_521_600),
            (2100, 2, 28, 4_107_456_000), // as GeneralizedTime
        ] {
            assert_eq!(not_after(&ending(year, month, day)), Some(seconds), "{year}-{month}-{day}");
        }
    }

    #[test]
    fn the_beginning_of_a_certificate() {
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(1999, 12, 31);
        params.not_after = rcgen::date_time_ymd(2000, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let expected = Validity { not_before: 946_598_400, not_after: 946_684_800 };
        assert_eq!(validity(certificate.der()), Some(expected));
    }

    #[test]
    fn a_time_for_people() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (4_107_456_000, "2100-02-28T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(seconds in -62_000_000_000..250_000_000_000_i64) {
            let text: String = rfc3339(seconds).chars().filter(char::is_ascii_digit).collect();
            if text.len() == 14 {
                prop_assert_eq!(super::seconds(&text), Some(seconds));
            }
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, cut in 0..400_usize, at in 0..400_usize, byte: u8) {
            let _ = not_after(&bytes);
            let mut certificate = ending(2030, 1, 1);
            if let Some(slot) = certificate.get_mut(at) {
                *slot = byte;
            }
            certificate.truncate(cut);
            let _ = not_after(&certificate);
        }
    }
}
