//! `[cost]`: what things cost. Retune counts tokens, hours, bytes and corrections; prices make money of them.

use super::reader::Section;

/// `[cost]`. What has no price costs nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Prices {
    /// What the prices are in, for people.
    pub currency: String,
    /// An hour of training.
    pub training_hour: f64,
    /// A million tokens of prompts.
    pub prompt_million: f64,
    /// A million tokens of answers.
    pub completion_million: f64,
    /// A GiB kept for a month.
    pub storage_gib_month: f64,
    /// That somebody corrects one answer by hand.
    pub edit: f64,
}

pub(super) fn read(mut s: Section<'_>) -> Prices {
    let currency = s.text("currency", "a currency, such as \"EUR\"");
    let mut price = |key| s.share(key, 1e9).unwrap_or(0.0);
    let prices = Prices {
        training_hour: price("training_hour"),
        prompt_million: price("prompt_million"),
        completion_million: price("completion_million"),
        storage_gib_month: price("storage_gib_month"),
        edit: price("edit"),
        currency: currency.map_or_else(|| "USD".to_owned(), |(currency, _)| currency),
    };
    s.finish();
    prices
}
