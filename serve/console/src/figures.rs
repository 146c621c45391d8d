//! Figures as people read them.

use chrono::{DateTime, SecondsFormat, Utc};

/// A time, to the second.
pub(crate) fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// How long ago, or how long until then, in its largest unit.
pub(crate) fn from_now(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let seconds = (now - at).num_seconds();
    let span = span(seconds.unsigned_abs());
    match seconds {
        0.. => format!("{span} ago"),
        _ => format!("in {span}"),
    }
}

fn span(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3_600 => (seconds / 60, "minute"),
        3_600..172_800 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{s}")
}

/// A whole number with spaces between its thousands.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut spaced = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            // Narrow, and never where a line ends.
            spaced.push('\u{202f}');
        }
        spaced.push(digit);
    }
    spaced
}

/// A share as a percentage; a dash of nothing.
pub(crate) fn percent(part: u64, of: u64) -> String {
    match of {
        0 => "–".to_owned(),
        _ => format!("{:.1} %", 100.0 * part as f64 / of as f64),
    }
}

/// Milliseconds, as seconds where they are many.
pub(crate) fn milliseconds(ms: Option<f64>) -> String {
    match ms {
        None => "–".to_owned(),
        Some(ms) if ms < 1_000.0 => format!("{ms:.0} ms"),
        Some(ms) => format!("{:.1} s", ms / 1_000.0),
    }
}

/// A figure with so many decimals; a dash of nothing.
pub(crate) fn decimal(figure: Option<f64>, decimals: usize) -> String {
    figure.map_or_else(|| "–".to_owned(), |figure| format!("{figure:.decimals$}"))
}

/// Money: with as many decimals as tell something.
pub(crate) fn money(amount: f64, currency: &str) -> String {
    let decimals = if amount.abs() < 0.995 { 4 } else { 2 };
    format!("{amount:.decimals$} {currency}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        let at = |seconds| DateTime::from_timestamp(seconds, 0).unwrap_or_default();
        for (then, now, said) in [
            (0, 0, "0 seconds ago"),
            (0, 61, "1 minute ago"),
            (7_200, 0, "in 2 hours"),
            (0, 172_800, "2 days ago"),
        ] {
            assert_eq!(from_now(at(then), at(now)), said);
        }
        assert_eq!(count(7), "7");
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(percent(1, 3), "33.3 %");
        assert_eq!(percent(0, 0), "–");
        assert_eq!(milliseconds(Some(1_234.0)), "1.2 s");
        assert_eq!(money(0.01234, "EUR"), "0.0123 EUR");
        assert_eq!(money(12.0, "EUR"), "12.00 EUR");
    }
}
