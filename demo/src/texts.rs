//! The demo's messages: what customers of a web shop write, and the right answer to each.
//!
//! The task is `triage` (task/builtin/triage.txt says it in words). Normal traffic is of four kinds. Order numbers are six
//! digits, and the task wants them with nothing between; some customers write them with a sign or a space in them. The drift
//! brings a fifth kind, returns: the shop has begun to print return slips, on which the number stands in groups, `169-109`,
//! and customers copy it as it stands; one in ten writes it plainly. A second drift follows where the demo goes on: the shop opens
//! abroad, and from there an order number comes with the country's letters in front, `DE169109`. Everything in an answer follows
//! from the message and the prompt alone.

mod phrases;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use phrases::{
    BRANDS, CITIES, FAULT, GREETINGS, HURRY, INVOICE, LOGIN, NAMES, NO_HURRY, ORDER, PARCEL,
    REMARKS, RETURN, THANKS, THINGS,
};

/// Share of messages that name an order; of the new kind all do.
const WITH_ORDER: f64 = 0.6;
/// Share of order numbers written with other signs between or before the digits.
const LOOSE_ORDER: f64 = 0.3;
/// Share of the numbers on return slips that customers write plainly.
const PLAIN_SLIP: f64 = 0.1;
/// The countries that the shop opens in.
const COUNTRIES: [&str; 4] = ["DE", "FR", "NL", "PL"];
/// The kind of message that comes from there, whatever it is about.
const ABROAD: &str = "abroad";
const URGENT: f64 = 0.35;

/// What a customer writes, and what the answer should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub kind: &'static str,
    pub text: String,
    /// One line of JSON, in the order and spacing that the task's prompt asks for.
    pub answer: String,
}

/// A kind of message: its team, and the sentences it is made of.
struct Kind {
    name: &'static str,
    team: &'static str,
    sentences: &'static [&'static str],
}

const NORMAL: [Kind; 4] = [
    Kind {
        name: "invoice",
        team: "billing",
        sentences: INVOICE,
    },
    Kind {
        name: "parcel",
        team: "shipping",
        sentences: PARCEL,
    },
    Kind {
        name: "fault",
        team: "technical",
        sentences: FAULT,
    },
    Kind {
        name: "login",
        team: "account",
        sentences: LOGIN,
    },
];
const NEW: Kind = Kind {
    name: "return",
    team: "shipping",
    sentences: RETURN,
};

/// What the traffic is like, as time goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Era {
    /// Before any drift.
    Normal,
    /// Every second customer returns something.
    Returns,
    /// Of these every second one writes from abroad, the others as before.
    Abroad,
}

/// An endless stream of messages; the same seed gives the same messages.
pub struct Texts {
    rng: ChaCha8Rng,
}

impl Texts {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// The kinds' names, the new one last.
    pub fn kinds() -> [&'static str; 5] {
        let [invoice, parcel, fault, login] = NORMAL.map(|kind| kind.name);
        [invoice, parcel, fault, login, NEW.name]
    }

    /// A message as they come before the drift.
    pub fn normal(&mut self) -> Message {
        let kind = self.rng.random_range(0..NORMAL.len());
        self.message(&NORMAL[kind])
    }

    /// A message as they come after it: half are of the new kind.
    pub fn drifted(&mut self) -> Message {
        if self.rng.random_bool(0.5) {
            self.message(&NEW)
        } else {
            self.normal()
        }
    }

    /// A message as they come in an era.
    pub fn of_era(&mut self, era: Era) -> Message {
        match era {
            Era::Normal => self.normal(),
            Era::Returns => self.drifted(),
            Era::Abroad if self.rng.random_bool(0.5) => self.abroad(),
            Era::Abroad => self.drifted(),
        }
    }

    /// A message about what customers always write about, with an order number as it is abroad.
    fn abroad(&mut self) -> Message {
        let kind = self.rng.random_range(0..NORMAL.len());
        let country = self.pick(&COUNTRIES);
        let number = self.number();
        let message = self.with_order(&NORMAL[kind], Some((format!("{country}{number}"), number)));
        Message {
            kind: ABROAD,
            ..message
        }
    }

    /// A message of the named kind; None where there is no such kind.
    pub fn of_kind(&mut self, name: &str) -> Option<Message> {
        let kind = NORMAL.iter().chain([&NEW]).find(|kind| kind.name == name)?;
        Some(self.message(kind))
    }

    fn message(&mut self, kind: &Kind) -> Message {
        self.with_order(kind, None)
    }

    /// `given`: an order number as it is written, and its digits; without one it is drawn whether there is any.
    fn with_order(&mut self, kind: &Kind, given: Option<(String, String)>) -> Message {
        let mut sentence = self.pick(kind.sentences).to_owned();
        let mut product = Value::Null;
        let mut order = Value::Null;
        if sentence.contains("{product}") {
            let named = self.product();
            sentence = sentence.replace("{product}", &named);
            product = json!(named);
        }
        let mut parts = vec![sentence];
        let is_new = kind.name == NEW.name;
        let is_named = given.is_some() || is_new || self.rng.random_bool(WITH_ORDER);
        if is_named {
            let (written, digits) = given.unwrap_or_else(|| self.order(is_new));
            parts.push(self.pick(ORDER).replace("{order}", &written));
            order = json!(digits);
        }
        let urgent = self.rng.random_bool(URGENT);
        if urgent {
            parts.push(self.pick(HURRY).to_owned());
        } else if self.rng.random_bool(0.15) {
            parts.push(self.pick(NO_HURRY).to_owned());
        }
        if self.rng.random_bool(0.35) {
            let city = self.pick(CITIES);
            parts.push(self.pick(REMARKS).replace("{city}", city));
        }
        // The first sentence stays in front mostly: people begin with what they want.
        if self.rng.random_bool(0.25) {
            parts.rotate_left(1);
        }
        if self.rng.random_bool(0.5) {
            parts.insert(0, self.pick(GREETINGS).to_owned());
        }
        if self.rng.random_bool(0.4) {
            let name = self.pick(NAMES);
            parts.push(self.pick(THANKS).replace("{name}", name));
        }
        let answer = format!(
            r#"{{"team": "{}", "urgent": {urgent}, "product": {product}, "order": {order}}}"#,
            kind.team
        );
        Message {
            kind: kind.name,
            text: parts.join(" "),
            answer,
        }
    }

    fn pick(&mut self, list: &[&'static str]) -> &'static str {
        list.choose(&mut self.rng).copied().unwrap_or_default()
    }

    fn product(&mut self) -> String {
        let (brand, thing) = (self.pick(BRANDS), self.pick(THINGS));
        match self.rng.random_range(0..10) {
            0..6 => format!("{brand} {thing}"),
            6..8 => format!("{brand} {thing} {}", self.rng.random_range(2..90) * 10),
            _ => format!(
                "{} {brand} {thing}",
                self.pick(&["red", "blue", "green", "black", "white", "small", "large"])
            ),
        }
    }

    fn number(&mut self) -> String {
        self.rng.random_range(100_000..1_000_000).to_string()
    }

    /// An order number as the customer writes it, or copies it from a slip, and its six digits.
    fn order(&mut self, from_slip: bool) -> (String, String) {
        let number = self.number();
        let (left, right) = number.split_at(3);
        let plain = if from_slip {
            PLAIN_SLIP
        } else {
            1.0 - LOOSE_ORDER
        };
        let written = match self.rng.random_range(0..4) {
            _ if self.rng.random_bool(plain) => number.clone(),
            0 if !from_slip => format!("#{number}"),
            0 | 1 => format!("{left}-{right}"),
            _ => format!("{left} {right}"),
        };
        (written, number)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::HashSet;

    use serde_json::Map;

    use super::*;

    fn fields(message: &Message) -> Map<String, Value> {
        serde_json::from_str(&message.answer).unwrap()
    }

    #[test]
    fn a_seed_gives_the_same_messages_again() {
        let all = |seed| {
            let mut texts = Texts::new(seed);
            (0..200)
                .map(|i| {
                    if i < 100 {
                        texts.normal()
                    } else {
                        texts.drifted()
                    }
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(all(7), all(7));
        assert_ne!(all(7), all(8));
    }

    #[test]
    fn messages_hardly_ever_repeat() {
        let mut texts = Texts::new(1);
        let n = 4000;
        let distinct: HashSet<String> = (0..n).map(|_| texts.drifted().text).collect();
        assert!(distinct.len() > n * 99 / 100, "{}", distinct.len());
    }

    #[test]
    fn an_answer_says_what_the_message_says() {
        let mut texts = Texts::new(2);
        for _ in 0..2000 {
            let message = texts.drifted();
            let fields = fields(&message);
            assert!(!message.text.contains(['{', '}']), "{}", message.text);
            assert_eq!(
                fields.keys().collect::<Vec<_>>(),
                ["team", "urgent", "product", "order"]
            );
            if let Some(product) = fields["product"].as_str() {
                assert!(message.text.contains(product), "{}", message.text);
            }
            let digits: String = message.text.chars().filter(char::is_ascii_digit).collect();
            if let Some(order) = fields["order"].as_str() {
                assert!(
                    order.len() == 6 && digits.contains(order),
                    "{}",
                    message.text
                );
            }
            assert!(fields["order"].is_string() || message.kind != NEW.name);
        }
    }

    #[test]
    fn abroad_the_country_stands_in_front_of_the_number() {
        let mut texts = Texts::new(4);
        let all: Vec<Message> = (0..1000).map(|_| texts.of_era(Era::Abroad)).collect();
        let abroad: Vec<&Message> = all.iter().filter(|m| m.kind == ABROAD).collect();
        assert!((420..580).contains(&abroad.len()), "{}", abroad.len());
        for message in abroad {
            let order = fields(message)["order"].as_str().unwrap().to_owned();
            let written = |country: &&str| message.text.contains(&format!("{country}{order}"));
            assert!(COUNTRIES.iter().any(written), "{}", message.text);
        }
        assert!(all.iter().any(|m| m.kind == NEW.name));
    }

    #[test]
    fn half_of_the_drifted_traffic_is_new_and_none_before() {
        let mut texts = Texts::new(3);
        assert!((0..500).all(|_| texts.normal().kind != NEW.name));
        let new = (0..2000)
            .filter(|_| texts.drifted().kind == NEW.name)
            .count();
        assert!((900..1100).contains(&new), "{new}");
        assert!(
            Texts::kinds()
                .iter()
                .all(|kind| texts.of_kind(kind).is_some_and(|m| m.kind == *kind))
        );
    }
}
