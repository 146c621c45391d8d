//! What is found and what is not, on texts that a generator labels; and that surrogates have the shape of what they stand for.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;

fn all() -> Redaction {
    Redaction::new(&Sensitive::ALL, &[]).unwrap()
}

fn found(text: &str) -> Vec<(Sensitive, &str)> {
    let found = all().find(text);
    let said = found.into_iter().map(|f| (f.kind.unwrap(), &text[f.range]));
    said.collect()
}

#[test]
fn what_people_write_is_found_whole() {
    use Sensitive::{Card, Email, Iban, Ip, Phone, Secret};
    let cases: &[(&str, &[(Sensitive, &str)])] = &[
        (
            "mail ann.o'neil+x@mail.example.co.uk.",
            &[(Email, "ann.o'neil+x@mail.example.co.uk")],
        ),
        (
            "card 4111 1111 1111 1111 12/27, or 378282246310005",
            &[(Card, "4111 1111 1111 1111"), (Card, "378282246310005")],
        ),
        (
            "DE89 3704 0044 0532 0130 00 BIC COBADEFFXXX",
            &[(Iban, "DE89 3704 0044 0532 0130 00")],
        ),
        (
            "GB82WEST12345698765432",
            &[(Iban, "GB82WEST12345698765432")],
        ),
        (
            "from 10.0.0.1:8080, ::1 and fe80::1ff:fe23:4567:890a",
            &[
                (Ip, "10.0.0.1"),
                (Ip, "::1"),
                (Ip, "fe80::1ff:fe23:4567:890a"),
            ],
        ),
        (
            "call +49 (0)30 1234567 or (555) 123-4567",
            &[(Phone, "+49 (0)30 1234567"), (Phone, "(555) 123-4567")],
        ),
        ("phone:01.23.45.67.89", &[(Phone, "01.23.45.67.89")]),
        (
            "key sk-proj-abcdefghijklmnopqrstuvwx",
            &[(Secret, "sk-proj-abcdefghijklmnopqrstuvwx")],
        ),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
            &[(
                Secret,
                "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
            )],
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(&found(text), expected, "{text}");
    }
}

#[test]
fn numbers_that_are_nobody_s_stay() {
    for text in [
        "order 589 555, 169109 or 2039485712",
        "on 2026-11-27 10:30:00, 01.02.2026 10 o'clock, 12/31/2025",
        "1,234,567.89 EUR, 1.234.567,89, 0.123456789, 3.14159265",
        "version 1.2.3.4.5, v10.2.11",
        "550e8400-e29b-41d4-a716-446655440000",
        "3f786850e387550fdab836ed7e6dc881de23001b",
        "4111 1111 1111 1112 is no card, DE88 3704 0044 0532 0130 00 no account, 256.1.1.1 no address",
        "12:30:45 and 10:20, a::b::c",
        "user@localhost, @ann, price@3",
    ] {
        assert_eq!(found(text), [], "{text}");
    }
}

#[test]
fn within_a_conversation_it_is_the_same_and_in_another_it_is_another() {
    let redact = |text: &str, scope: &str| all().redact(text, b"secret", scope).into_owned();
    let one = redact("I am ann@example.org.", "a");
    let answer = redact(r#"{"mail": "ann@example.org", "order": "169109"}"#, "a");
    let said = one
        .strip_prefix("I am ")
        .unwrap()
        .strip_suffix('.')
        .unwrap();
    assert!(
        said.ends_with(".org") && said != "ann@example.org",
        "{said}"
    );
    assert_eq!(
        answer,
        format!(r#"{{"mail": "{said}", "order": "169109"}}"#)
    );
    assert_ne!(redact("I am ann@example.org.", "b"), one);
    assert_ne!(all().redact("I am ann@example.org.", b"other", "a"), one);
    let own = Redaction::new(&[], &[r"\bCUST-\d{6}\b".into()]).unwrap();
    let said = own.redact("CUST-123456 and ann@example.org", b"secret", "a");
    assert!(
        said.ends_with(" and ann@example.org") && !said.contains("CUST-123456"),
        "{said}"
    );
    assert!(Redaction::new(&[], &["(".into()]).is_err());
}

proptest! {
    #[test]
    fn a_surrogate_is_of_the_kind_and_length_that_it_stands_for(labelled in labelled(), scope in "[a-z]{0,9}") {
        let Labelled { text, parts } = labelled;
        let redacted = all().redact(&text, b"secret", &scope).into_owned();
        prop_assert_eq!(redacted.chars().count(), text.chars().count());
        let kinds = |text: &str| all().find(text).into_iter().map(|f| f.kind).collect::<Vec<_>>();
        prop_assert_eq!(kinds(&redacted), kinds(&text), "{} became {}", text, redacted);
        for (_, part) in parts {
            prop_assert!(!redacted.contains(&part), "{} is in {}", part, redacted);
        }
    }

    #[test]
    fn any_text_is_taken(text in "\\PC{0,60}|[0-9 .:+()/-]{0,40}|[a-f0-9:]{0,40}") {
        let redacted = all().redact(&text, b"secret", "").into_owned();
        prop_assert_eq!(redacted.chars().count(), text.chars().count());
    }
}

/// A text, and the personal data in it, in order.
#[derive(Debug, Clone)]
struct Labelled {
    text: String,
    parts: Vec<(Sensitive, String)>,
}

/// Made here again by other means than the product's, so that a mistake is not made twice.
fn check_digit(body: &str) -> u32 {
    let sum: u32 = body
        .bytes()
        .rev()
        .enumerate()
        .map(|(place, byte)| {
            let digit = u32::from(byte - b'0');
            if place % 2 == 0 {
                [0, 2, 4, 6, 8, 1, 3, 5, 7, 9][digit as usize]
            } else {
                digit
            }
        })
        .sum();
    (10 - sum % 10) % 10
}

fn account(country: &str, body: &str) -> String {
    let mut number = String::new();
    for c in format!("{body}{country}00").chars() {
        number += &c.to_digit(36).unwrap().to_string();
    }
    let rest = number.bytes().fold(0_u32, |rest, byte| {
        (rest * 10 + u32::from(byte - b'0')) % 97
    });
    format!("{country}{:02}{body}", 98 - rest)
}

fn grouped(text: &str, size: usize, by: &str) -> String {
    let groups: Vec<String> = text
        .as_bytes()
        .chunks(size)
        .map(|c| String::from_utf8(c.to_vec()).unwrap())
        .collect();
    groups.join(by)
}

fn personal() -> impl Strategy<Value = (Sensitive, String)> {
    let email = "[a-z]{2,8}([._-][a-z]{2,8})?[0-9]{0,3}@[a-z]{3,12}(\\.[a-z]{2,6})?\\.(com|org|net|de|co\\.uk|io)".prop_map(|e| (Sensitive::Email, e));
    let card = ("(4[0-9]{14}|5[1-5][0-9]{13}|3[47][0-9]{12})", 0..3).prop_map(
        |(body, how): (String, i32)| {
            let number = format!("{body}{}", check_digit(&body));
            let is_long = number.len() == 16;
            let said = match how {
                1 if is_long => grouped(&number, 4, " "),
                2 if is_long => grouped(&number, 4, "-"),
                _ => number,
            };
            (Sensitive::Card, said)
        },
    );
    let iban = (
        prop_oneof![
            "[0-9]{18}".prop_map(|b| ("DE", b)),
            "[0-9]{16}".prop_map(|b| ("AT", b)),
            "[0-9]{20}".prop_map(|b| ("ES", b)),
            "[A-Z]{4}[0-9]{14}".prop_map(|b| ("GB", b)),
            "[A-Z]{4}[0-9]{10}".prop_map(|b| ("NL", b)),
            "[A-Z][0-9]{22}".prop_map(|b| ("IT", b)),
        ],
        any::<bool>(),
    )
        .prop_map(|((country, body), spaced)| {
            let number = account(country, &body);
            (
                Sensitive::Iban,
                if spaced {
                    grouped(&number, 4, " ")
                } else {
                    number
                },
            )
        });
    let ip = prop_oneof![
        any::<[u8; 4]>().prop_map(|b| Ipv4Addr::from(b).to_string()),
        any::<[u16; 8]>().prop_map(|b| Ipv6Addr::from(b).to_string()),
        any::<(u16, u16)>().prop_map(|(a, b)| format!("fe80::{a:x}:{b:x}")),
    ]
    .prop_map(|ip| (Sensitive::Ip, ip));
    let phone = prop_oneof![
        "\\+[1-9][0-9]{0,2} [0-9]{2,4} [0-9]{5,7}",
        "\\+[1-9][0-9]{9,11}",
        "00(49|33|44) [1-9][0-9]{2} [0-9]{6,7}",
        "0[1-9][0-9]{2}[ /-][0-9]{6,8}",
        "0[1-9]\\.[0-9]{2}\\.[0-9]{2}\\.[0-9]{2}\\.[0-9]{2}",
        "\\([2-9][0-9]{2}\\) [2-9][0-9]{2}-[0-9]{4}",
        "[2-9][0-9]{2}-[2-9][0-9]{2}-[0-9]{4}",
    ]
    .prop_map(|p| (Sensitive::Phone, p));
    let secret = prop_oneof![
        "sk-(proj-)?[A-Za-z0-9]{32,48}",
        "ghp_[A-Za-z0-9]{36}",
        "AKIA[0-9A-Z]{16}",
        "xoxb-[0-9]{10}-[A-Za-z0-9]{24}",
        "hf_[A-Za-z0-9]{34}",
        "AIza[0-9A-Za-z_-]{34}[A-Za-z0-9]",
        "eyJ[A-Za-z0-9]{20}\\.[A-Za-z0-9]{30}\\.[A-Za-z0-9]{30}",
    ]
    .prop_map(|s| (Sensitive::Secret, s));
    prop_oneof![email, card, iban, ip, phone, secret]
}

/// What stands in the same texts, and is nobody's.
fn harmless() -> impl Strategy<Value = String> {
    prop_oneof![
        "order [1-9][0-9]{5,9}",
        "[1-9][0-9]{2} [0-9]{3}",
        "20[0-9]{2}-[01][0-9]-[0-3][0-9]",
        "[0-3][0-9]\\.[01][0-9]\\.20[0-9]{2}",
        "[0-2][0-9]:[0-5][0-9](:[0-5][0-9])?",
        "[1-9][0-9]{0,2}(,[0-9]{3}){1,2}\\.[0-9]{2} EUR",
        "[1-9][0-9]{0,2}\\.[0-9]{3}\\.[0-9]{3}",
        "0\\.[0-9]{4,9}",
        "v[0-9]{1,2}\\.[0-9]{1,2}\\.[0-9]{1,2}",
        "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-a[0-9a-f]{3}-[0-9a-f]{12}",
        "[0-9a-f]{40}",
        "[A-Z]{2,3}-[0-9]{4,6}",
        "[A-Z]{2}[0-9]{2}",
        "#[0-9]{5,8}",
        "[1-9][0-9]?/[1-9][0-9]?",
        "Room [1-9][0-9]{2}",
        "@[a-z]{4,9}",
        "[1-9][0-9]{0,2} (Main|High) Street",
        "[0-9]{1,3}%",
        "(two|three) [a-z]{3,8}s",
    ]
}

fn labelled() -> impl Strategy<Value = Labelled> {
    let word = "(my|the|is|please|call|write to|use|and|at|from|with|card|account|for|on|we|lost|Ünïcode|“so”)";
    let piece = prop_oneof![
        2 => word.prop_map(|w| (None, w)),
        1 => harmless().prop_map(|w| (None, w)),
        1 => personal().prop_map(|(kind, w)| (Some(kind), w)),
    ];
    let end = prop_oneof![
        Just(" "),
        Just(", "),
        Just(". "),
        Just("; "),
        Just("\n"),
        Just("? ")
    ];
    // Words between, since two numbers side by side are one to anybody.
    prop::collection::vec((piece, end, word), 1..8).prop_map(|pieces| {
        let (mut text, mut parts) = (String::new(), Vec::new());
        for ((kind, said), end, word) in pieces {
            text += &said;
            text += end;
            text += &word;
            text += " ";
            parts.extend(kind.map(|kind| (kind, said)));
        }
        Labelled { text, parts }
    })
}

/// Precision and recall by kind, on 20,000 texts from a seed that nothing was tuned on.
#[test]
fn precision_and_recall_are_at_least_99_in_100_for_every_kind() {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[11; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategy = labelled();
    let mut counts = std::collections::BTreeMap::<&str, [u32; 3]>::new();
    let mut wrong = Vec::new();
    for _ in 0..20_000 {
        let Labelled { text, parts } = strategy.new_tree(&mut runner).unwrap().current();
        let seen: Vec<(Sensitive, String)> = found(&text)
            .into_iter()
            .map(|(k, s)| (k, s.to_owned()))
            .collect();
        for part in &seen {
            counts.entry(part.0.name()).or_default()[if parts.contains(part) { 0 } else { 1 }] += 1;
        }
        for part in &parts {
            counts.entry(part.0.name()).or_default()[2] += u32::from(!seen.contains(part));
        }
        if seen != parts && wrong.len() < 20 {
            wrong.push(format!("{text:?}\n  is  {parts:?}\n  saw {seen:?}"));
        }
    }
    assert_eq!(counts.len(), Sensitive::ALL.len());
    let mut low = false;
    for (kind, [right, false_ones, missed]) in &counts {
        let (right, false_ones, missed) = (
            f64::from(*right),
            f64::from(*false_ones),
            f64::from(*missed),
        );
        let (precision, recall) = (right / (right + false_ones), right / (right + missed));
        println!(
            "{kind:7} precision {precision:.4} recall {recall:.4} ({right} right, {false_ones} false, {missed} missed)"
        );
        low |= precision < 0.99 || recall < 0.99;
    }
    assert!(!low, "{}", wrong.join("\n"));
}

#[test]
fn what_overlaps_is_found_once_in_order() {
    let own = Redaction::new(&Sensitive::ALL, &["b+".to_owned(), "[abc]{3}".to_owned()]).unwrap();
    let ranges =
        |text: &str| -> Vec<Range<usize>> { own.find(text).into_iter().map(|f| f.range).collect() };
    // The earlier pattern has its way, wherever the later one would begin or end.
    assert_eq!(ranges("xbbx abc cab ccc"), [1..3, 6..7, 11..12, 13..16]);
    assert_eq!(
        ranges("bob@example.org, ann@example.org"),
        [0..1, 2..3, 17..32]
    );
}
