//! Lengths of time as people write them: `500ms`, `120s`, `10m`, `1h`, `30d`.

use std::time::Duration;

/// The longest that is accepted, ten years: longer ones are typing errors, and sums with it cannot overflow.
pub const DURATION_MAX: Duration = Duration::from_secs(3_650 * 86_400);

/// Unit words with their milliseconds, smallest first.
const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// A text that is no length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no length of time: write a whole number and one of ms, s, m, h, d, such as 10m, at most 3650d")]
pub struct BadDuration(String);

/// Reads one whole number with its unit.
pub fn parse_duration(text: &str) -> Result<Duration, BadDuration> {
    let bad = || BadDuration(text.to_string());
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(unit_at);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let (_, unit_ms) = UNITS.iter().find(|(word, _)| *word == unit).ok_or_else(bad)?;
    let duration = Duration::from_millis(number.checked_mul(*unit_ms).ok_or_else(bad)?);
    if duration > DURATION_MAX { Err(bad()) } else { Ok(duration) }
}

/// The shortest text that reads back as the same whole milliseconds.
pub fn duration_text(duration: Duration) -> String {
    let ms = duration.as_millis();
    let (word, unit_ms) =
        UNITS.iter().rev().find(|(_, unit_ms)| ms != 0 && ms.is_multiple_of(u128::from(*unit_ms))).unwrap_or(&UNITS[1]);
    format!("{}{word}", ms / u128::from(*unit_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read_and_written_back() {
        for (text, ms) in
            [("500ms", 500), ("120s", 120_000), ("10m", 600_000), ("1h", 3_600_000), ("30d", 2_592_000_000), ("0s", 0)]
        {
            let duration = parse_duration(text).unwrap();
            assert_eq!(duration, Duration::from_millis(ms), "{text}");
            assert_eq!(parse_duration(&duration_text(duration)).unwrap(), duration, "{text}");
        }
        assert_eq!(duration_text(Duration::from_secs(120)), "2m");
    }

    #[test]
    fn the_bound_holds_and_one_past_it_does_not() {
        assert_eq!(parse_duration("3650d"), Ok(DURATION_MAX));
        assert!(parse_duration("3651d").is_err());
        assert!(parse_duration("315360000001ms").is_err());
        assert!(parse_duration("18446744073709551616s").is_err());
        assert!(parse_duration("18446744073709551615d").is_err());
    }

    #[test]
    fn what_is_no_length_of_time_is_refused() {
        for bad in ["", "10", "m", "-1s", "1.5h", "1h30m", "10 m", "10M", "+1s", "1s "] {
            assert_eq!(parse_duration(bad), Err(BadDuration(bad.to_string())), "{bad:?}");
        }
    }
}
