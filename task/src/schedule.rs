//! When a task is retrained by the calendar: five cron fields, in UTC.

use std::fmt;
use std::str::FromStr as _;

use chrono::{DateTime, Utc};

/// Minute, hour, day of the month, month, day of the week.
const FIELDS: usize = 5;

/// A cron pattern, such as `0 3 1 */3 *`: at 03:00 on the first day of each quarter.
#[derive(Debug, Clone)]
pub struct Schedule {
    text: String,
    cron: croner::Cron,
}

impl Schedule {
    /// Reads five fields; a sixth (seconds, years) is not a schedule that Retune keeps. None if it is no pattern, or one
    /// that never comes true (the 30th of February).
    pub fn parse(text: &str) -> Option<Self> {
        let cron = (text.split_whitespace().count() == FIELDS)
            .then(|| croner::Cron::from_str(text).ok())
            .flatten()?;
        cron.find_next_occurrence(&DateTime::<Utc>::UNIX_EPOCH, false)
            .ok()?;
        Some(Self {
            text: text.to_owned(),
            cron,
        })
    }

    /// The last time it named, at or before `now`.
    pub fn last(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.cron.find_previous_occurrence(&now, true).ok()
    }

    /// The next time it names, after `now`.
    pub fn next(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.cron.find_next_occurrence(&now, false).ok()
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn a_quarterly_schedule_names_the_quarters_first_days() {
        let schedule = Schedule::parse("0 3 1 */3 *").unwrap();
        let last = |now| schedule.last(time(now)).unwrap();
        assert_eq!(last("2026-11-24T12:00:00Z"), time("2026-10-01T03:00:00Z"));
        assert_eq!(last("2026-10-01T03:00:00Z"), time("2026-10-01T03:00:00Z"));
        assert_eq!(last("2026-10-01T02:59:59Z"), time("2026-07-01T03:00:00Z"));
        assert_eq!(last("2027-01-01T02:00:00Z"), time("2026-10-01T03:00:00Z"));
        let next = |now| schedule.next(time(now)).unwrap();
        assert_eq!(next("2026-11-24T12:00:00Z"), time("2027-01-01T03:00:00Z"));
        assert_eq!(next("2027-01-01T03:00:00Z"), time("2027-04-01T03:00:00Z"));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in [
            "",
            "* * * *",
            "0 25 * * *",
            "0 5-1 * * *",
            "0 0 3 1 */3 *",
            "0 0 30 2 *",
            "x * * * *",
        ] {
            assert!(Schedule::parse(text).is_none(), "{text}");
        }
        for text in ["0 3 1 */3 *", "*/5 * * * *", "0 0 * * 1-5", "0,30 4 * * 7"] {
            assert!(Schedule::parse(text).is_some(), "{text}");
        }
    }
}
