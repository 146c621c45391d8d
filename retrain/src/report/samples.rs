//! Examined prompts with both answers, as a report shows some of them.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// One examined prompt with both answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    pub request_id: String,
    /// The last user message.
    pub prompt: String,
    /// Empty where there was none to judge by.
    pub known: String,
    pub candidate: String,
    pub baseline: String,
}

pub(super) fn samples(page: &mut String, title: &str, samples: &[Sample]) -> std::fmt::Result {
    if samples.is_empty() {
        return Ok(());
    }
    writeln!(page, "\n### {title}")?;
    for sample in samples {
        writeln!(page)?;
        let texts = [
            ("prompt", &sample.prompt),
            ("known", &sample.known),
            ("candidate", &sample.candidate),
            ("baseline", &sample.baseline),
        ];
        let is_there = |(what, text): &(&str, &String)| *what != "known" || !text.is_empty();
        for (what, text) in texts.into_iter().filter(is_there) {
            // Indented text is literal in Markdown, whatever a user wrote.
            writeln!(
                page,
                "    {what:>9}: {}",
                text.replace('\n', "\n               ")
            )?;
        }
    }
    Ok(())
}
