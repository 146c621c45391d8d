//! What a model said, and what of it was meant: models think aloud, explain, and put fences around what they were asked for.

use serde_json::Value;

/// Bytes of an answer beyond which nothing is looked for in it.
const MOST: usize = 1 << 20;

/// The JSON values that an answer may mean, the likeliest first.
pub(crate) fn values(said: &str) -> impl Iterator<Item = Value> {
    let said = if said.len() > MOST { "" } else { said };
    let said = without_thoughts(said);
    let between = |open: char, close: char| {
        let (from, to) = (said.find(open)?, said.rfind(close)?);
        said.get(from..=to)
    };
    let tries = [
        Some(said),
        unfenced(said),
        between('{', '}'),
        between('[', ']'),
    ];
    let tries = tries.into_iter().flatten();
    tries.filter_map(|text| serde_json::from_str(text).ok())
}

/// What a reasoning model says after it has thought aloud.
pub(crate) fn without_thoughts(said: &str) -> &str {
    let said = said.trim();
    let after = said.strip_prefix("<think>");
    match after.and_then(|after| after.split_once("</think>")) {
        Some((_, rest)) => rest.trim(),
        None => said,
    }
}

/// What is in a code fence, where that is the whole of it or the first in it.
pub(crate) fn unfenced(said: &str) -> Option<&str> {
    let (_, after) = said.split_once("```")?;
    // The language.
    let (_, after) = after.split_once('\n')?;
    let (inside, _) = after.split_once("```")?;
    Some(inside.trim())
}
