//! When a device collects its inventory by itself (INV-2, INV-3, INV-8): the schedule as an administrator writes it, and
//! its calendar. Pure: instants and zones are handed in.
//!
//! ```text
//!   daily                    at the inventory hour, with the rule of INV-2
//!   monthly 3 10:00          on that day of each month; day 31 is a shorter month's last
//!   cron 0 10 3 * *          minute, hour, day of month, month, day of week
//! ```

mod cron;

use crate::refusal::Refusal;
use cron::Cron;
use jiff::{
    Zoned,
    civil::{Date, Time},
    tz::TimeZone,
};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Characters of a schedule's text.
pub const SCHEDULE_CHARS_MAX: usize = 100;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Schedule {
    /// Every day at the settings' inventory hour, by the rule of INV-2 and INV-3.
    #[default]
    Daily,
    /// Once a month at a device-local time.
    Monthly {
        /// 1 to 31; a month without it runs on its last day (INV-8).
        day: i8,
        /// Device-local.
        at: Time,
    },
    /// Whenever these five fields fit, device-local.
    Cron(Box<Cron>),
}

/// Why a text is no schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleFault {
    /// None of the three forms.
    #[error("{0:?} is none of `daily`, `monthly DAY HH:MM` and `cron MINUTE HOUR DAY MONTH WEEKDAY`")]
    Form(String),
    /// A day no month has.
    #[error("a day of the month is 1 to 31, not {0}")]
    Day(String),
    /// A time no day has.
    #[error("a time is 00:00 to 23:59, not {0}")]
    Time(String),
    /// A cron field that cannot be read.
    #[error("the {field} of a cron schedule is {low} to {high}, with `*`, `-`, `,` and `/`; {found:?} is not")]
    Field {
        /// Which.
        field: &'static str,
        /// Least value.
        low: u8,
        /// Greatest value.
        high: u8,
        /// As written.
        found: String,
    },
    /// More than one start within an hour: 90,000 devices would do nothing else.
    #[error("a cron schedule starts at most once an hour: name one minute")]
    TooOften,
    /// A day no year has.
    #[error("no such day ever comes")]
    Never,
}

impl ScheduleFault {
    /// 422 `bad_schedule`, with the field's name.
    pub fn refusal(&self, field: &str) -> Refusal {
        Refusal::new(422, "bad_schedule", self.to_string()).field(field)
    }
}

impl Schedule {
    /// The first start after an instant, in that instant's zone; `hour` is the settings' inventory hour. A time that a
    /// change of the clocks leaves out comes as much later; one that comes twice counts once.
    pub fn next(&self, hour: u8, after: &Zoned) -> Option<Zoned> {
        let zone = after.time_zone();
        match self {
            Schedule::Daily => {
                let at = hour_of_day(hour);
                let today = after.date();
                [today, today.tomorrow().ok()?].into_iter().find_map(|day| on(day, at, zone).filter(|t| t > after))
            }
            Schedule::Monthly { day, at } => {
                let this = after.date().first_of_month();
                let next = this.last_of_month().tomorrow().ok()?;
                let within = |month: Date| on(day_of(month, *day), *at, zone).filter(|t| t > after);
                [this, next].into_iter().find_map(within)
            }
            Schedule::Cron(cron) => cron.next(after),
        }
    }

    /// Whether two schedules are of one form, so that a day done under one is done under the other.
    pub fn same_form(&self, other: &Schedule) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// A full hour, 0 to 23.
pub fn hour_of_day(hour: u8) -> Time {
    Time::constant(hour.min(23) as i8, 0, 0, 0)
}

/// A civil time on a date; one that a change of the clocks leaves out comes as much later.
pub fn on(date: Date, at: Time, zone: &TimeZone) -> Option<Zoned> {
    date.to_datetime(at).to_zoned(zone.clone()).ok()
}

/// The day of a month, or the month's last where it has fewer.
fn day_of(month: Date, day: i8) -> Date {
    let day = day.clamp(1, month.days_in_month());
    Date::new(month.year(), month.month(), day).unwrap_or(month)
}

impl FromStr for Schedule {
    type Err = ScheduleFault;

    fn from_str(text: &str) -> Result<Self, ScheduleFault> {
        let form = || ScheduleFault::Form(text.chars().take(SCHEDULE_CHARS_MAX).collect());
        if text.len() > SCHEDULE_CHARS_MAX {
            return Err(form());
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        match words[..] {
            ["daily"] => Ok(Schedule::Daily),
            ["monthly", day, at] => {
                let number: Option<i8> = day.parse().ok().filter(|n| (1..=31).contains(n));
                let day = number.ok_or_else(|| ScheduleFault::Day(day.into()))?;
                Ok(Schedule::Monthly { day, at: time(at).ok_or_else(|| ScheduleFault::Time(at.into()))? })
            }
            ["cron", minute, hour, day, month, weekday] => {
                let cron = Cron::read([minute, hour, day, month, weekday])?;
                Ok(Schedule::Cron(Box::new(cron)))
            }
            _ => Err(form()),
        }
    }
}

fn time(text: &str) -> Option<Time> {
    let (hour, minute) = text.split_once(':')?;
    if hour.len() != 2 || minute.len() != 2 || !text.bytes().all(|b| b.is_ascii_digit() || b == b':') {
        return None;
    }
    Time::new(hour.parse().ok()?, minute.parse().ok()?, 0, 0).ok()
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Schedule::Daily => f.write_str("daily"),
            Schedule::Monthly { day, at } => write!(f, "monthly {day} {:02}:{:02}", at.hour(), at.minute()),
            Schedule::Cron(cron) => write!(f, "cron {cron}"),
        }
    }
}

impl TryFrom<String> for Schedule {
    type Error = ScheduleFault;
    fn try_from(text: String) -> Result<Self, ScheduleFault> {
        text.parse()
    }
}

impl From<Schedule> for String {
    fn from(schedule: Schedule) -> String {
        schedule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokyo() -> TimeZone {
        TimeZone::fixed(jiff::tz::offset(9))
    }

    /// Clocks go forward at 02:00 on the last Sunday of March, back at 03:00 on the last of October.
    fn berlin() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    fn at(text: &str, zone: TimeZone) -> Zoned {
        text.parse::<jiff::civil::DateTime>().unwrap().to_zoned(zone).unwrap()
    }

    fn starts(schedule: &str, from: &str, zone: TimeZone, count: usize) -> Vec<String> {
        let schedule: Schedule = schedule.parse().unwrap();
        let mut now = at(from, zone);
        let mut found = Vec::new();
        for _ in 0..count {
            now = schedule.next(9, &now).unwrap();
            found.push(now.strftime("%Y-%m-%d %H:%M").to_string());
        }
        found
    }

    #[test]
    fn inv_8_day_3_runs_on_day_3_and_day_31_on_a_shorter_months_last() {
        let third = starts("monthly 3 10:00", "2026-06-03T09:59:59", tokyo(), 3);
        assert_eq!(third, ["2026-06-03 10:00", "2026-07-03 10:00", "2026-08-03 10:00"]);
        assert_eq!(starts("monthly 3 10:00", "2026-06-03T10:00:00", tokyo(), 1), ["2026-07-03 10:00"]);
        let last = starts("monthly 31 23:59", "2026-05-31T23:59:00", tokyo(), 3);
        assert_eq!(last, ["2026-06-30 23:59", "2026-07-31 23:59", "2026-08-31 23:59"]);
        assert_eq!(starts("monthly 30 00:00", "2028-02-01T00:00:00", tokyo(), 1), ["2028-02-29 00:00"]);
        assert_eq!(starts("monthly 1 00:00", "2026-12-31T00:00:00", tokyo(), 1), ["2027-01-01 00:00"]);
    }

    #[test]
    fn inv_3_daily_follows_the_local_clock_through_its_changes() {
        let spring = starts("daily", "2026-03-28T09:00:00", berlin(), 2);
        assert_eq!(spring, ["2026-03-29 09:00", "2026-03-30 09:00"]);
        let seconds = at("2026-03-29T09:00:00", berlin()).timestamp().as_second()
            - at("2026-03-28T09:00:00", berlin()).timestamp().as_second();
        assert_eq!(seconds, 23 * 3_600, "the day that lacks an hour");
        assert_eq!(starts("daily", "2026-03-29T08:59:59", berlin(), 1), ["2026-03-29 09:00"]);
    }

    #[test]
    fn a_time_that_is_left_out_comes_later_and_one_that_comes_twice_counts_once() {
        assert_eq!(starts("monthly 29 02:30", "2026-03-28T12:00:00", berlin(), 1), ["2026-03-29 03:30"]);
        let night = starts("cron 30 2 * * *", "2026-10-24T12:00:00", berlin(), 2);
        assert_eq!(night, ["2026-10-25 02:30", "2026-10-26 02:30"]);
        let hourly = starts("cron 0 1-3 * * *", "2026-03-29T00:00:00", berlin(), 3);
        assert_eq!(hourly, ["2026-03-29 01:00", "2026-03-29 03:00", "2026-03-30 01:00"]);
    }

    #[test]
    fn texts_come_back_as_they_were_written() {
        for text in ["daily", "monthly 3 10:00", "monthly 31 00:00", "cron 0 10 3 * *", "cron 5 */6 1-7,20 JAN mon-FRI"]
        {
            let schedule: Schedule = text.parse().unwrap();
            assert_eq!(schedule.to_string(), text);
            let packed = rmp_serde::to_vec_named(&schedule).unwrap();
            assert_eq!(rmp_serde::from_slice::<Schedule>(&packed).unwrap(), schedule);
        }
    }

    #[test]
    fn inv_8_bad_schedules_are_told_apart_at_their_bounds() {
        let fault = |text: &str| text.parse::<Schedule>().unwrap_err();
        for day in ["0", "32", "-1", "x", "300"] {
            assert!(matches!(fault(&format!("monthly {day} 10:00")), ScheduleFault::Day(_)), "{day}");
        }
        for time in ["24:00", "10:60", "9:00", "1000", "10:00:00", "+1:00"] {
            assert!(matches!(fault(&format!("monthly 3 {time}")), ScheduleFault::Time(_)), "{time}");
        }
        assert!("monthly 3 23:59".parse::<Schedule>().is_ok());
        for text in ["", "weekly", "monthly", "monthly 3", "cron * * * *", "cron 0 0 1 1 1 2026", "daily 9"] {
            assert!(matches!(fault(text), ScheduleFault::Form(_)), "{text}");
        }
        let long = format!("cron 0 {} * * *", vec!["10"; 40].join(","));
        assert!(long.len() > SCHEDULE_CHARS_MAX && matches!(fault(&long), ScheduleFault::Form(_)));
        let refusal = fault("monthly 0 10:00").refusal("schedule");
        assert_eq!((refusal.status, &*refusal.code, refusal.field.as_deref()), (422, "bad_schedule", Some("schedule")));
    }

    proptest! {
        /// Whatever the schedule and the instant: the next start is later, and the one after it later still.
        #[test]
        fn starts_only_move_forward(day in 1i8..=31, hour in 0u8..24, minute in 0u8..60, second in 0i64..3_000_000_000) {
            let now = jiff::Timestamp::from_second(second).unwrap().to_zoned(berlin());
            for text in [
                "daily".to_string(), format!("monthly {day} {hour:02}:{minute:02}"),
                format!("cron {minute} {hour} {day} * *"), format!("cron {minute} * * * {}", hour % 7),
            ] {
                let schedule: Schedule = text.parse().unwrap();
                let first = schedule.next(hour, &now).unwrap();
                prop_assert!(first > now, "{text}");
                prop_assert!(schedule.next(hour, &first).unwrap() > first, "{text}");
            }
        }
    }
}
