//! Cron's five fields. Where both days are restricted, either fits, as in Vixie cron.

use super::{ScheduleFault, on};
use jiff::{
    Zoned,
    civil::{Date, Time},
    tz::TimeZone,
};
use std::fmt;

/// Days looked ahead: past 29 February over a century's year that is no leap year.
const DAYS_MAX: u32 = 9 * 366;

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// A field's name, least and greatest value, and the names of its values from the least on.
type Kind = (&'static str, u8, u8, &'static [&'static str]);
const KINDS: [Kind; 5] = [
    ("minute", 0, 59, &[]),
    ("hour", 0, 23, &[]),
    ("day of the month", 1, 31, &[]),
    ("month", 1, 12, &MONTHS),
    ("day of the week", 0, 7, &WEEKDAYS),
];

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cron {
    text: String,
    minute: u8,
    /// Bit n: value n fits.
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether each of the two days is restricted.
    restricted: (bool, bool),
}

impl Cron {
    /// Reads the five fields.
    ///
    /// # Errors
    /// A field that cannot be read, more than one minute, or a day that never comes.
    pub(super) fn read(words: [&str; 5]) -> Result<Cron, ScheduleFault> {
        let mut bits = [0u64; 5];
        for ((bits, word), kind) in bits.iter_mut().zip(words).zip(&KINDS) {
            *bits = field(word, kind)?;
        }
        let [minutes, hours, days, months, weekdays] = bits;
        if minutes.count_ones() != 1 {
            return Err(ScheduleFault::TooOften);
        }
        // 0 and 7 are both Sunday.
        let weekdays = weekdays | weekdays >> 7 & 1;
        let restricted = (!words[2].starts_with('*'), !words[4].starts_with('*'));
        let minute = minutes.trailing_zeros() as u8;
        let cron = Cron { text: words.join(" "), minute, hours, days, months, weekdays, restricted };
        let from = on(Date::constant(2026, 1, 1), Time::midnight(), &TimeZone::UTC);
        match from.and_then(|from| cron.next(&from)) {
            Some(_) => Ok(cron),
            None => Err(ScheduleFault::Never),
        }
    }

    /// The first start after an instant, in its zone.
    pub fn next(&self, after: &Zoned) -> Option<Zoned> {
        let mut day = after.date();
        for _ in 0..DAYS_MAX {
            if self.fits(day) {
                let hours = (0..24).filter(|hour| self.hours >> hour & 1 == 1);
                let times = hours.filter_map(|hour| Time::new(hour, self.minute as i8, 0, 0).ok());
                let starts = times.filter_map(|at| on(day, at, after.time_zone())).filter(|start| start > after);
                // Where the clocks go forward a later hour may come first.
                if let Some(first) = starts.min() {
                    return Some(first);
                }
            }
            day = day.tomorrow().ok()?;
        }
        None
    }

    fn fits(&self, day: Date) -> bool {
        let of_month = self.days >> day.day() & 1 == 1;
        let of_week = self.weekdays >> day.weekday().to_sunday_zero_offset() & 1 == 1;
        let fits = match self.restricted {
            (true, true) => of_month || of_week,
            _ => of_month && of_week,
        };
        fits && self.months >> day.month() & 1 == 1
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn field(text: &str, kind: &Kind) -> Result<u64, ScheduleFault> {
    let (field, low, high, _) = *kind;
    let bad = || ScheduleFault::Field { field, low, high, found: text.into() };
    let mut bits = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, step.parse::<u8>().ok().filter(|s| *s > 0).ok_or_else(bad)?),
            None => (part, 1),
        };
        let (from, to) = match range.split_once('-') {
            _ if range == "*" => (low, high),
            Some((from, to)) => (value(from, kind).ok_or_else(bad)?, value(to, kind).ok_or_else(bad)?),
            // `5/15` means nothing that everybody agrees on.
            None if step > 1 => return Err(bad()),
            None => value(range, kind).map(|n| (n, n)).ok_or_else(bad)?,
        };
        if from > to {
            return Err(bad());
        }
        bits |= (from..=to).step_by(step.into()).fold(0u64, |bits, n| bits | 1 << n);
    }
    Ok(bits)
}

fn value(text: &str, (_, low, high, names): &Kind) -> Option<u8> {
    if let Some(at) = names.iter().position(|name| name.eq_ignore_ascii_case(text)) {
        return Some(low + at as u8);
    }
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|n| digits && (low..=high).contains(&n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Cron, ScheduleFault> {
        let words: Vec<&str> = text.split(' ').collect();
        Cron::read(words.try_into().unwrap())
    }

    fn utc(text: &str) -> Zoned {
        text.parse::<jiff::civil::DateTime>().unwrap().to_zoned(TimeZone::UTC).unwrap()
    }

    fn days(text: &str, from: &str, count: usize) -> Vec<String> {
        let cron = read(text).unwrap();
        let mut now = utc(from);
        (0..count)
            .map(|_| {
                now = cron.next(&now).unwrap();
                now.strftime("%m-%d %H:%M").to_string()
            })
            .collect()
    }

    #[test]
    fn inv_8_fields_mean_what_cron_means() {
        // 2026-11-25 is a Wednesday.
        assert_eq!(days("0 10 3 * *", "2026-11-25T00:00:00", 2), ["12-03 10:00", "01-03 10:00"]);
        assert_eq!(days("30 6 * * mon-fri", "2026-11-27T06:30:00", 2), ["11-30 06:30", "12-01 06:30"]);
        assert_eq!(days("0 0 * * 7", "2026-11-25T00:00:00", 1), days("0 0 * * 0", "2026-11-25T00:00:00", 1));
        assert_eq!(days("0 */8 * * *", "2026-11-25T08:00:00", 3), ["11-25 16:00", "11-26 00:00", "11-26 08:00"]);
        assert_eq!(
            days("15 1-5/2 1,15 FEB *", "2026-11-25T00:00:00", 4),
            ["02-01 01:15", "02-01 03:15", "02-01 05:15", "02-15 01:15"]
        );
        let either = days("0 12 13 * fri", "2026-11-13T12:00:00", 3);
        assert_eq!(either, ["11-20 12:00", "11-27 12:00", "12-04 12:00"], "either day, where both are restricted");
        assert_eq!(days("0 0 29 2 *", "2096-03-01T00:00:00", 1), ["02-29 00:00"], "2104: 2100 has no such day");
    }

    #[test]
    fn inv_8_bad_fields_are_refused_at_their_bounds() {
        for good in ["59 23 31 12 7", "0 0 1 1 0", "0 0-23 1-31 1-12 0-7", "0 * * JAN-dec SUN-sat", "5 */255 * * *"] {
            assert!(read(good).is_ok(), "{good}");
        }
        for (bad, name) in [
            ("60 0 * * *", "minute"),
            ("0 24 * * *", "hour"),
            ("0 0 0 * *", "day of the month"),
            ("0 0 32 * *", "day of the month"),
            ("0 0 * 0 *", "month"),
            ("0 0 * 13 *", "month"),
            ("0 0 * * 8", "day of the week"),
            ("0 5-3 * * *", "hour"),
            ("0 */0 * * *", "hour"),
            ("0 5/2 * * *", "hour"),
            ("0 , * * *", "hour"),
            ("0 +5 * * *", "hour"),
            ("0 x * * *", "hour"),
            ("0 0 * monday *", "month"),
            ("0 0 L * *", "day of the month"),
        ] {
            assert!(matches!(read(bad), Err(ScheduleFault::Field { field, .. }) if field == name), "{bad}");
        }
        assert_eq!(read("* 0 * * *"), Err(ScheduleFault::TooOften));
        assert_eq!(read("0,30 0 * * *"), Err(ScheduleFault::TooOften));
        for never in ["0 0 30 2 *", "0 0 31 4,6,9,11 *"] {
            assert_eq!(read(never), Err(ScheduleFault::Never), "{never}");
        }
    }

    proptest! {
        /// The next start is the first minute that fits, as found by trying every minute.
        #[test]
        fn inv_8_the_next_start_is_the_first_that_fits(
            minute in 0u8..60, hours in "[0-9]|1[0-9]|\\*/[2-9]", day in "\\*|[1-9]|2[0-8]|1-7",
            weekday in "\\*|[0-7]|mon-fri", from in 1_700_000_000i64..1_900_000_000
        ) {
            let cron = read(&format!("{minute} {hours} {day} * {weekday}")).unwrap();
            let now = jiff::Timestamp::from_second(from).unwrap().to_zoned(TimeZone::UTC);
            let found = cron.next(&now).unwrap();
            let mut tried = jiff::Timestamp::from_second(from / 60 * 60 + 60).unwrap().to_zoned(TimeZone::UTC);
            let fits = |t: &Zoned| {
                t.minute() as u8 == minute && cron.hours >> t.hour() & 1 == 1 && cron.fits(t.date())
            };
            while !fits(&tried) {
                tried = tried.checked_add(jiff::SignedDuration::from_mins(1)).unwrap();
            }
            prop_assert_eq!(found, tried);
        }

        /// Whatever is typed: a schedule or a fault, never a panic.
        #[test]
        fn strange_fields_never_panic(words in proptest::array::uniform5("[-0-9a-z*/,]{0,8}")) {
            let _ = Cron::read([&words[0], &words[1], &words[2], &words[3], &words[4]]);
        }
    }
}
