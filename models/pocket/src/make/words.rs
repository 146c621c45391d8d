//! The corpus' word lists and the values that stand for a fact: names, products, codes, dates, and invented words.
//!
//! A small model copies badly what it has never seen: so the lists are wide, and a share of all names is invented from
//! syllables, numbers and codes are drawn digit by digit.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

const WORDS: &str = include_str!("../../data/words.txt");
pub(crate) const MONTHS: &str = "month";

/// The named word lists of data/words.txt.
pub(crate) struct Words {
    lists: BTreeMap<&'static str, Vec<&'static str>>,
}

impl Words {
    pub(crate) fn new() -> Self {
        let mut lists: BTreeMap<&'static str, Vec<&'static str>> = BTreeMap::new();
        let mut name = "";
        for line in WORDS.lines().filter(|line| !line.starts_with('#')) {
            match line
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'))
            {
                Some(list) => name = list,
                None => lists
                    .entry(name)
                    .or_default()
                    .extend(line.split(", ").filter(|word| !word.is_empty())),
            }
        }
        Words { lists }
    }

    /// All words of a list; none where there is no such list.
    pub(crate) fn list(&self, name: &str) -> &[&'static str] {
        self.lists.get(name).map_or(&[], Vec::as_slice)
    }

    fn one(&self, name: &str, rng: &mut ChaCha8Rng) -> &'static str {
        self.list(name).choose(rng).copied().unwrap_or_default()
    }

    /// A value for a slot of a sentence. `iso`: dates are drawn as YYYY-MM-DD.
    pub(crate) fn value(&self, slot: &str, iso: bool, rng: &mut ChaCha8Rng) -> Result<String> {
        Ok(match slot {
            "product" => self.product(rng),
            "person" => self.person(rng),
            "city" if rng.random_bool(0.15) => invented(rng, true),
            "company" => self.company(rng),
            "street" => self.street(rng),
            "code" => code(rng),
            "amount" => amount(rng),
            "date" if iso => self.date(0, rng),
            "date" => {
                let form = rng.random_range(0..10);
                self.date(form, rng)
            }
            "time" => time(rng),
            "email" => self.email(rng),
            "phone" => phone(rng),
            "flight" => flight(rng),
            "user" => user(rng),
            "number" => rng.random_range(2..40).to_string(),
            "age" => rng.random_range(1..100).to_string(),
            list => self
                .list(list)
                .choose(rng)
                .with_context(|| format!("no words for the slot {slot}"))?
                .to_string(),
        })
    }

    fn product(&self, rng: &mut ChaCha8Rng) -> String {
        let thing = self.one("thing", rng);
        let brand = if rng.random_bool(0.25) {
            invented(rng, true)
        } else {
            self.one("brand", rng).to_owned()
        };
        match rng.random_range(0..100) {
            0..15 => thing.to_owned(),
            15..35 => format!("{} {thing}", self.one("adjective", rng)),
            35..75 => format!("{brand} {thing}"),
            75..85 => format!("{brand} {}", model(rng)),
            85..93 => format!("{brand} {thing} {}", model(rng)),
            _ => format!("{} {brand} {thing}", self.one("adjective", rng)),
        }
    }

    fn person(&self, rng: &mut ChaCha8Rng) -> String {
        let first = if rng.random_bool(0.12) {
            invented(rng, true)
        } else {
            self.one("first", rng).to_owned()
        };
        let last = if rng.random_bool(0.2) {
            invented(rng, true)
        } else {
            self.one("last", rng).to_owned()
        };
        match rng.random_range(0..10) {
            0..3 => first,
            3..8 => format!("{first} {last}"),
            8 => format!("Mr {last}"),
            _ => format!("Mrs {last}"),
        }
    }

    fn company(&self, rng: &mut ChaCha8Rng) -> String {
        let name = if rng.random_bool(0.25) {
            invented(rng, true)
        } else {
            self.one("company", rng).to_owned()
        };
        if rng.random_bool(0.5) {
            format!("{name} {}", self.one("company_end", rng))
        } else {
            name
        }
    }

    fn street(&self, rng: &mut ChaCha8Rng) -> String {
        let street = if rng.random_bool(0.2) {
            format!("{} Street", invented(rng, true))
        } else {
            self.one("street", rng).to_owned()
        };
        if rng.random_bool(0.6) {
            format!("{} {street}", rng.random_range(1..200))
        } else {
            street
        }
    }

    fn email(&self, rng: &mut ChaCha8Rng) -> String {
        let name = if rng.random_bool(0.6) {
            self.one("first", rng).to_lowercase()
        } else {
            invented(rng, false)
        };
        let digits = if rng.random_bool(0.3) {
            rng.random_range(1..100).to_string()
        } else {
            String::new()
        };
        let end = ["com", "net", "org", "eu", "de", "info"]
            .choose(rng)
            .copied()
            .unwrap_or_default();
        format!("{name}{digits}@{}.{end}", invented(rng, false))
    }

    /// A date as people write it; form 0 is YYYY-MM-DD.
    fn date(&self, form: u32, rng: &mut ChaCha8Rng) -> String {
        let (number, name) = {
            let months = self.list(MONTHS);
            let index = rng.random_range(0..months.len().max(1));
            (index + 1, months.get(index).copied().unwrap_or_default())
        };
        let days = match number {
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let day: u32 = rng.random_range(1..=days);
        let year: u32 = if rng.random_bool(0.7) {
            rng.random_range(2018..2034)
        } else {
            rng.random_range(1940..2018)
        };
        let short = &name[..name.len().min(3)];
        match form {
            0 | 1 => format!("{year}-{number:02}-{day:02}"),
            2 => format!("{day} {name}"),
            3 => format!("{day} {name} {year}"),
            4 => format!("{name} {day}"),
            5 => format!("{name} {day}, {year}"),
            6 => format!("the {} of {name}", ordinal(day)),
            7 => format!("{name} {}, {year}", ordinal(day)),
            8 => format!("{day} {short} {year}"),
            _ => format!("{day:02}.{number:02}.{year}"),
        }
    }
}

fn ordinal(day: u32) -> String {
    let end = match (day % 10, day) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{day}{end}")
}

/// A word that nobody has heard, from two to four syllables.
pub(crate) fn invented(rng: &mut ChaCha8Rng, capital: bool) -> String {
    const FIRST: [&str; 30] = [
        "b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z", "br", "cl",
        "dr", "fl", "gr", "kr", "pl", "pr", "sh", "sk", "st", "th", "tr", "",
    ];
    const MIDDLE: [&str; 12] = [
        "a", "e", "i", "o", "u", "a", "e", "o", "ai", "ee", "ou", "y",
    ];
    const LAST: [&str; 16] = [
        "", "", "", "n", "r", "l", "s", "t", "k", "m", "x", "nd", "rt", "ck", "ng", "p",
    ];
    let syllables = *[2, 2, 2, 3, 3, 4].choose(rng).unwrap_or(&2);
    let mut word = String::new();
    for syllable in 0..syllables {
        word.push_str(FIRST.choose(rng).copied().unwrap_or_default());
        word.push_str(MIDDLE.choose(rng).copied().unwrap_or_default());
        if syllable + 1 == syllables || rng.random_bool(0.3) {
            word.push_str(LAST.choose(rng).copied().unwrap_or_default());
        }
    }
    if capital { capitalised(&word) } else { word }
}

/// The text with its first letter in upper case.
pub(crate) fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

pub(crate) fn digits(count: usize, rng: &mut ChaCha8Rng) -> String {
    (0..count)
        .map(|_| char::from(b'0' + rng.random_range(0..10u8)))
        .collect()
}

fn letters(count: usize, rng: &mut ChaCha8Rng) -> String {
    (0..count)
        .map(|_| char::from(b'A' + rng.random_range(0..26u8)))
        .collect()
}

/// A product's model: `X200`, `40`, `Pro 3`.
fn model(rng: &mut ChaCha8Rng) -> String {
    match rng.random_range(0..4) {
        0 => {
            let count = rng.random_range(1..4);
            format!("{}{}", letters(1, rng), digits(count, rng))
        }
        1 => rng.random_range(2..1000).to_string(),
        2 => format!("Pro {}", rng.random_range(2..10)),
        _ => format!("{}{}", letters(2, rng), rng.random_range(1..100)),
    }
}

fn code(rng: &mut ChaCha8Rng) -> String {
    let count = rng.random_range(3..9);
    match rng.random_range(0..10) {
        0..5 => digits(count, rng),
        5 => format!("{}-{}", letters(2, rng), digits(count.min(6), rng)),
        6 => format!("{}{}", letters(1, rng), digits(count.min(6), rng)),
        7 => format!("#{}", digits(count, rng)),
        8 => format!("{}-{}", digits(4, rng), digits(count.min(4), rng)),
        _ => format!("{} {}", digits(3, rng), digits(count.min(4), rng)),
    }
}

fn amount(rng: &mut ChaCha8Rng) -> String {
    let whole = if rng.random_bool(0.6) {
        rng.random_range(2..100)
    } else {
        rng.random_range(100..3000)
    };
    let sum = if rng.random_bool(0.5) {
        format!("{whole}.{}", digits(2, rng))
    } else {
        whole.to_string()
    };
    match rng.random_range(0..7) {
        0 => format!("${sum}"),
        1 => format!("€{sum}"),
        2 => format!("{sum} EUR"),
        3 => format!("{sum} dollars"),
        4 => format!("{sum} pounds"),
        _ => format!("{sum} euros"),
    }
}

fn time(rng: &mut ChaCha8Rng) -> String {
    let hour = rng.random_range(1..13);
    match rng.random_range(0..4) {
        0 => format!(
            "{}:{:02}",
            rng.random_range(0..24),
            rng.random_range(0..12) * 5
        ),
        1 => format!("{hour} o'clock"),
        2 => format!("{hour} {}", if rng.random_bool(0.5) { "am" } else { "pm" }),
        _ => format!("{}:{:02}", rng.random_range(6..23), rng.random_range(0..60)),
    }
}

fn phone(rng: &mut ChaCha8Rng) -> String {
    match rng.random_range(0..4) {
        0 => format!(
            "+{} {} {}",
            rng.random_range(1..99),
            digits(3, rng),
            digits(6, rng)
        ),
        1 => format!("0{} {}", digits(3, rng), digits(6, rng)),
        2 => format!("{}-{}", digits(3, rng), digits(4, rng)),
        _ => format!("0{}", digits(9, rng)),
    }
}

fn flight(rng: &mut ChaCha8Rng) -> String {
    let space = if rng.random_bool(0.5) { " " } else { "" };
    format!("{}{space}{}", letters(2, rng), rng.random_range(10..9999))
}

fn user(rng: &mut ChaCha8Rng) -> String {
    let capital = rng.random_bool(0.3);
    let word = invented(rng, capital);
    match rng.random_range(0..4) {
        0 => format!("{word}{}", rng.random_range(1..2000)),
        1 => format!("{word}_{}", invented(rng, false)),
        _ => word,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn every_list_has_words_and_no_empty_one() {
        let words = Words::new();
        assert!(words.lists.len() > 20);
        assert!(words.lists.values().flatten().count() > 800);
        assert!(
            words
                .lists
                .values()
                .flatten()
                .all(|word| word.trim() == *word && !word.is_empty())
        );
        assert_eq!(words.list(MONTHS).len(), 12);
    }

    #[test]
    fn dates_in_iso_form_are_dates() {
        let words = Words::new();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..200 {
            let date = words.value("date", true, &mut rng).unwrap();
            assert_eq!((date.len(), date.matches('-').count()), (10, 2), "{date}");
        }
        assert_eq!(
            (ordinal(1), ordinal(12), ordinal(23)),
            ("1st".into(), "12th".into(), "23rd".into())
        );
    }
}
