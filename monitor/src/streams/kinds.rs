//! The kinds of failures that streams watch: what the reference says of each, and which of them a row is.

use retune_ledger::Reference;
use retune_task::{FAILURE_CLASSES, failure_class};

use super::rates::Kind;
use super::{Row, Stream};

/// One-sided confidence of the limit on the reference's rate of invalid answers.
const CONFIDENCE: f64 = 0.95;
/// The same where there are several kinds beside each other: each has its part of the chance of being wrong about one.
const CONFIDENCE_OF_MANY: f64 = 0.99;
/// Nobody needs to hear of two answers in a hundred that are longer, or shorter, or refuse.
const TOLERANCE_OF_TRAITS: f64 = 0.02;

/// What is configured.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Exchanges that make a reference where none was made by an examination.
    pub reference_exchanges: u64,
    /// Added to the reference's rate of invalid answers.
    pub tolerance: f64,
    /// Natural logarithm of the statistic at which a stream alarms.
    pub threshold_log: f64,
}

/// A stream's kinds, by a reference; None where it says nothing of that stream.
pub fn kinds(stream: Stream, reference: &Reference, rules: &Rules) -> Option<Vec<Kind>> {
    match stream {
        Stream::Format => format(reference, rules),
        Stream::Output => output(reference),
        Stream::Input | Stream::Quality | Stream::Operations => None,
    }
}

/// For each of a stream's kinds whether a row is of it, added to `failed`; nothing where it says nothing of the stream.
pub fn failed(stream: Stream, reference: &Reference, row: &Row, failed: &mut Vec<Option<bool>>) {
    match stream {
        Stream::Format => format_failed(row, failed),
        Stream::Output => output_failed(reference, row, failed),
        Stream::Input | Stream::Quality | Stream::Operations => {}
    }
}

/// Any failure, with half of the weight, and each class.
fn format(reference: &Reference, rules: &Rules) -> Option<Vec<Kind>> {
    let counts = &reference.counts;
    if counts.exchanges == 0 {
        return None;
    }
    let classes = counts.failures.as_ref();
    let kind = |name, weight, failures, confidence| Kind {
        name,
        weight,
        failures,
        of: counts.exchanges,
        confidence,
        tolerance: rules.tolerance,
    };
    let weight = if classes.is_some() { 0.5 } else { 1.0 };
    let mut kinds = vec![kind("any", weight, counts.format_invalid, CONFIDENCE)];
    if let Some(classes) = classes {
        let weight = 0.5 / FAILURE_CLASSES.len() as f64;
        kinds.extend(FAILURE_CLASSES.map(|class| {
            let failures = classes.get(class).copied().unwrap_or(0);
            kind(class, weight, failures, CONFIDENCE_OF_MANY)
        }));
    }
    Some(kinds)
}

fn format_failed(row: &Row, failed: &mut Vec<Option<bool>>) {
    let Some(check) = &row.check else {
        return;
    };
    let reason = check.failed.as_deref();
    let class = reason.map(|reason| failure_class(reason, check.was_cut_off));
    failed.push(Some(reason.is_some()));
    failed.extend(FAILURE_CLASSES.map(|name| Some(class == Some(name))));
}

fn output(reference: &Reference) -> Option<Vec<Kind>> {
    let texts = reference.counts.texts?;
    let kinds = [
        ("empty", texts.empty),
        ("refusal", texts.refusals),
        ("repetition", texts.repetitions),
        ("short", texts.outside.0),
        ("long", texts.outside.1),
    ];
    let weight = 1.0 / kinds.len() as f64;
    let kind = |(name, failures)| Kind {
        name,
        weight,
        failures,
        of: texts.answers,
        confidence: CONFIDENCE_OF_MANY,
        tolerance: TOLERANCE_OF_TRAITS,
    };
    Some(kinds.map(kind).to_vec())
}

fn output_failed(reference: &Reference, row: &Row, failed: &mut Vec<Option<bool>>) {
    let (Some(texts), Some(traits)) = (reference.counts.texts, row.traits) else {
        return;
    };
    let (shortest, longest) = texts.characters;
    let kinds = [
        traits.is_empty,
        traits.refuses,
        traits.repeats,
        traits.characters < shortest,
        traits.characters > longest,
    ];
    failed.extend(kinds.map(Some));
}
